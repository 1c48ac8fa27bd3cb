"""The models. ``build_model`` makes one from its name and settings, ``load_model`` reads a saved one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.files import InputError, nearest, read_json
from itm_lib.models.base import Encoding, MatchingModel, ModelConfig
from itm_lib.models.camp import CAMP, CampConfig
from itm_lib.models.dive import DivE, DiveConfig
from itm_lib.models.ensemble import Ensemble
from itm_lib.models.hrem import HREM, HremConfig
from itm_lib.models.saving import CONFIG, checked_config, read_config, resolve_folder
from itm_lib.models.scan import SCAN, SCANConfig
from itm_lib.models.vse import VSE, VSEConfig

MODELS: dict[str, tuple[type[MatchingModel], type[ModelConfig]]] = {
    "vse": (VSE, VSEConfig),
    "scan": (SCAN, SCANConfig),
    "camp": (CAMP, CampConfig),
    "hrem": (HREM, HremConfig),
    "dive": (DivE, DiveConfig),
}

__all__ = ["CAMP", "HREM", "MODELS", "SCAN", "VSE", "CampConfig", "DivE", "DiveConfig", "Encoding", "Ensemble", "HremConfig",
           "MatchingModel", "ModelConfig", "SCANConfig", "VSEConfig", "build_model", "load_model", "model_classes"]


def model_classes(name: str) -> tuple[type[MatchingModel], type[ModelConfig]]:
    """Model and config class of a registered name; another name is an InputError that names the nearest."""
    if name not in MODELS:
        raise InputError(f"no model is called {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]


def build_model(name: str, config: dict[str, Any] | None = None, region_dim: int | None = None,
                vocabulary_size: int | None = None) -> MatchingModel:
    """A new model. ``region_dim`` and ``vocabulary_size`` come from the data, everything else from ``config``."""
    model_class, config_class = model_classes(name)
    values = dict(config or {})
    for key, found in (("region_dim", region_dim), ("vocab_size", vocabulary_size)):
        if found is not None and values.setdefault(key, found) != found:
            raise InputError(f"model {name}: {key} is set to {values[key]} but the data has {found}; leave it out")
    return model_class(checked_config(config_class, values, f"model {name}"))


def load_model(folder: str | Path, revision: str | None = None,
               token: str | None = None) -> tuple[MatchingModel, Vocabulary | WordPieces | None]:
    """The model saved in ``folder`` (or at ``hf://owner/name``, there at ``revision``), in evaluation mode, and its vocabulary."""
    folder = resolve_folder(folder, revision, token)
    method, values = read_config(folder)
    if method == Ensemble.name:
        model = Ensemble([load_model(folder / str(number))[0] for number in range(values.get("members", 0))]).eval()
        model.metadata = read_json(folder / CONFIG).get("metadata")
    else:
        model = model_classes(method)[0].from_pretrained(folder)
    return model, model.vocabulary
