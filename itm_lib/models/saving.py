"""A trained model as a folder: ``config.json``, ``model.safetensors`` and, where given, ``vocabulary.json``.

``config.json`` holds ``{"method": "scan", "config": {...}, "metadata": {...}}``. Nothing is pickled. Saving goes through
huggingface_hub's mixin, so ``model.push_to_hub("owner/name")`` works; ``from_pretrained("hf://owner/name")`` reads it back.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import ModelHubMixin, snapshot_download
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights

from itm_lib.data.captions import Vocabulary, WordPieces, load_vocabulary
from itm_lib.files import InputError, nearest, one_line, read_json, write_json

if TYPE_CHECKING:
    from typing import Self

CONFIG, WEIGHTS, VOCABULARY = "config.json", "model.safetensors", "vocabulary.json"
CARD = """---
{{ card_data }}
---
An image-text matching model of itm_lib. `config.json` names the method and its settings, `vocabulary.json` its words or word pieces.
"""
Config = TypeVar("Config", bound=BaseModel)


def checked_config(config_class: type[Config], values: dict[str, Any], where: str) -> Config:
    """``config_class(**values)``; what is wrong becomes one line that names the key, its place and the nearest key."""
    if not isinstance(values, dict):
        raise InputError(f"{where}: the model's settings must be a mapping of names to values, not {type(values).__name__}")
    try:
        return config_class(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            hint = nearest(key, config_class.model_fields)
            raise InputError(f"{where}: {config_class.__name__} has no setting {key!r}; {hint}") from None
        given = "" if first["type"] == "missing" else f" (given: {first['input']!r})"
        what = f"setting {key!r}{given}" if key else "settings"
        raise InputError(f"{where}: {what} of {config_class.__name__}: {first['msg']}") from None


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Method and settings in ``folder/config.json``."""
    if not folder.is_dir():
        raise InputError(f"no model folder {folder}: check the path, or train and save a model first")
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or not isinstance(content.get("method"), str) or "config" not in content:
        raise InputError(f'{folder / CONFIG} is not of a saved model: expected {{"method": ..., "config": {{...}}}}')
    return content["method"], content["config"]


def resolve_folder(folder: str | Path) -> Path:
    """The local folder of ``folder``; ``hf://owner/name`` is fetched from the Hugging Face Hub."""
    if str(folder).startswith("hf://"):
        patterns = [f"*{name}" for name in (CONFIG, WEIGHTS, VOCABULARY)]  # of an ensemble's members too
        return Path(snapshot_download(str(folder).removeprefix("hf://"), allow_patterns=patterns))
    return Path(folder)


class FolderModel(ModelHubMixin, library_name="itm_lib", tags=["image-text-matching"], model_card_template=CARD):
    """What a model needs to be saved and read. ``vocabulary`` is the one it was saved or read with, if any."""

    vocabulary: Vocabulary | WordPieces | None = None
    metadata: dict[str, Any] | None = None

    def save_pretrained(self, folder: str | Path, vocabulary: Vocabulary | WordPieces | None = None,
                        metadata: dict[str, Any] | None = None, **hub_options: Any) -> str | None:
        """Write the model into ``folder``; each file is replaced whole. ``metadata``: JSON values to keep in config.json."""
        self.vocabulary = vocabulary if vocabulary is not None else self.vocabulary
        self.metadata = metadata if metadata is not None else self.metadata
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as part:
            result = super().save_pretrained(part, **{"repo_id": folder.name, **hub_options})
            written = sorted(Path(part).iterdir(), key=lambda path: path.name == CONFIG)  # config.json last
            for path in written:
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(path, folder / path.name)
        if self.vocabulary is None:
            (folder / VOCABULARY).unlink(missing_ok=True)  # one left from another model would be read with this one
        return result

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, str(save_directory / WEIGHTS))
        if self.vocabulary is not None:
            self.vocabulary.save(save_directory / VOCABULARY)
        extra = {"metadata": self.metadata} if self.metadata else {}
        write_json(save_directory / CONFIG, {"method": self.name, "config": self.config.model_dump(mode="json"), **extra})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """The model saved in ``folder`` (or at ``hf://owner/name``), in evaluation mode.

        Raises :class:`InputError` where the folder holds another method's model, or a damaged one.
        """
        folder = resolve_folder(folder)
        method, values = read_config(folder)
        if method != cls.name:
            raise InputError(f"{folder} holds a model of method {method!r}, not {cls.name!r}: use models.load_model")
        model = cls(checked_config(cls.config_class, values, str(folder / CONFIG)))
        read_weights(model, folder / WEIGHTS)
        if (folder / VOCABULARY).is_file():
            model.vocabulary = load_vocabulary(folder / VOCABULARY)
        model.metadata = read_json(folder / CONFIG).get("metadata")
        return model.eval()


def read_weights(model: Any, path: Path) -> None:
    """Fill ``model`` from the safetensors file ``path``; a damaged file or one of another shape is an InputError."""
    if not path.is_file():
        raise InputError(f"no weights {path}: the model folder is incomplete, save the model again")
    try:
        load_weights(model, path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read ({error}): it is damaged or cut short, save the model again") from None
    except RuntimeError as error:
        why = one_line(error, 200)
        raise InputError(f"{path} does not fit the config.json beside it ({why}): save the model again") from None
