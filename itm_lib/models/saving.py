"""A trained model as a folder: ``config.json``, ``model.safetensors``, ``README.md`` and, where given, ``vocabulary.json``.

``config.json`` holds ``{"method": "scan", "config": {...}, "metadata": {...}}``; README.md is the model card, made of it. Nothing is
pickled. Saving goes through huggingface_hub's mixin, so ``model.push_to_hub("owner/name")`` works;
``from_pretrained("hf://owner/name")`` reads it back.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model as load_weights
from safetensors.torch import save_model as save_weights

from itm_lib.data.captions import Vocabulary, WordPieces, load_vocabulary
from itm_lib.files import InputError, nearest, one_line, read_json, write_json
from itm_lib.models.card import CONFIG, model_card

if TYPE_CHECKING:
    from typing import Self

WEIGHTS, VOCABULARY = "model.safetensors", "vocabulary.json"
HUB = "hf://"  # before a name on the Hugging Face Hub
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
        hub = f"; one of the Hugging Face Hub is {HUB}{folder}" if re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)) else ""
        raise InputError(f"no model folder {folder}: check the path, or train and save a model first{hub}")
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict) or not isinstance(content.get("method"), str) or "config" not in content:
        raise InputError(f'{folder / CONFIG} is not of a saved model: expected {{"method": ..., "config": {{...}}}}')
    return content["method"], content["config"]


def resolve_folder(folder: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The local folder of ``folder``; ``hf://owner/name`` is fetched from the Hugging Face Hub.

    ``revision``: a branch, tag or commit there; ``token``: of who may read it, by default the one that is logged in.
    """
    if not str(folder).startswith(HUB):
        return Path(folder)
    patterns = [f"*{name}" for name in (CONFIG, WEIGHTS, VOCABULARY)]  # of an ensemble's members too
    name = str(folder).removeprefix(HUB)
    try:
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the Hub's errors are of these kinds
        raise InputError(f"the Hugging Face Hub does not give {name} ({one_line(error)}): check the name, and log in if it is private") from None


class FolderModel(ModelHubMixin, library_name="itm_lib"):
    """What a model needs to be saved and read. ``vocabulary`` is the one it was saved or read with, if any; ``metadata``: what
    config.json says of how it came to be, see :mod:`itm_lib.models.card`."""

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

    def push_to_hub(self, repo_id: str, private: bool | None = None, token: str | None = None, commit_message: str = "Upload the model",
                    license: str | None = None, **hub_options: Any) -> str:
        """Upload the model folder as ``repo_id``, "owner/name", on the Hugging Face Hub; the address of the commit.

        ``private``: whether nobody else may see it; ``token``: of who may write there, by default the one that is logged in;
        ``license``: for the card; further options are huggingface_hub's (branch, create_pr ...).
        """
        about_card = {"address": f"{HUB}{repo_id}", **({"license": license} if license else {})}
        try:
            return super().push_to_hub(repo_id, private=private, token=token, commit_message=commit_message,
                                       **{"model_card_kwargs": about_card, **hub_options})
        except InputError:
            raise
        except (OSError, ValueError) as error:
            raise InputError(f"the Hugging Face Hub does not take {repo_id} ({one_line(error)}): check the name, and log in with a token that "
                             "may write") from None

    def generate_model_card(self, **about: Any) -> ModelCard:
        """The card, as huggingface_hub asks for it; ``about``: address and license, see :func:`itm_lib.models.card.model_card`."""
        return ModelCard(model_card(self.content(), **about))

    def content(self) -> dict[str, Any]:
        """What config.json holds."""
        extra = {"metadata": self.metadata} if self.metadata else {}
        return {"method": self.name, "config": self.config.model_dump(mode="json"), **extra}

    def _save_pretrained(self, save_directory: Path) -> None:
        save_weights(self, str(save_directory / WEIGHTS))
        if self.vocabulary is not None:
            self.vocabulary.save(save_directory / VOCABULARY)
        write_json(save_directory / CONFIG, self.content())

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None, token: str | None = None) -> Self:
        """The model saved in ``folder`` (or at ``hf://owner/name``, there at ``revision``), in evaluation mode.

        Raises :class:`InputError` where the folder holds another method's model, or a damaged one.
        """
        folder = resolve_folder(folder, revision, token)
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
