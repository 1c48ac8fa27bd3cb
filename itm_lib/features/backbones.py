"""Backbones by name: what makes regions of any picture.

"region-encoder" is the course's own; any other name is a folder that holds a model of transformers, or its name on the Hugging Face
Hub: a detector (its best queries) or an image model (its cells). Whatever it is, it is a :class:`PictureExtractor`, and the region
file that it writes names it, so that the same one reads a new picture later.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from itm_lib.data.captions import pretrained_folder
from itm_lib.features.detectors import DETECTORS, Detector
from itm_lib.features.extractor import PictureExtractor, Regions
from itm_lib.features.grids import GridBackbone
from itm_lib.features.pretrained import BACKBONE_FILES
from itm_lib.features.windows import NAME as REGION_ENCODER
from itm_lib.features.windows import SlidingWindows
from itm_lib.files import InputError, nearest, read_json

__all__ = ["FEATURES", "REGION_ENCODER", "PictureExtractor", "Regions", "open_backbone", "reopen_backbone"]

FEATURES = ("pooled", "queries")
_GIVEN = ("regions", "features", "nms", "size", "precision")  # settings that open_backbone takes


def open_backbone(name: str | Path, regions: int | None = None, features: str = "pooled", nms: float | None = None, size: int | None = None,
                  device: str | torch.device | None = None, precision: str = "no") -> PictureExtractor:
    """The backbone ``name``: "region-encoder", or a folder or Hub name of a transformers model, its kind found from config.json.

    ``regions``: R, at most so many a picture; 36 of detectors, 12 of region-encoder and all cells of grids if None. ``features``:
    of a detector's regions, its backbone's map "pooled" over each box, or its decoder's "queries". ``nms``: of two regions with a
    larger IoU the better stays; 0.7 of detectors and 0.55 of region-encoder if None. ``size``: pixels of the picture's shorter side, or of both, in place of the model's own.
    ``precision``: "no", "bf16" or "fp16". ``device``: a GPU if there is one, if None.
    """
    _check(regions, features, nms, size)
    given: dict[str, Any] = {"size": size, "device": device, "precision": precision}
    picked = {key: value for key, value in (("regions", regions), ("nms", nms)) if value is not None}  # else the kind's own
    if str(name) == REGION_ENCODER:
        _pooled_alone(name, features, "it has no decoder")
        return SlidingWindows(**given, **picked)
    kind = _kind(str(name))
    if kind in DETECTORS:
        return Detector(str(name), kind, features=features, **given, **picked)
    _pooled_alone(name, features, f"a {kind!r} is no detector")
    return GridBackbone(str(name), regions, **given)


def reopen_backbone(attrs: Mapping[str, Any], name: str | Path | None = None, device: str | torch.device | None = None) -> PictureExtractor:
    """The backbone that made a region file, by the file's attributes. ``name``: where it is now, if it was moved.

    Other weights or settings than those are an :class:`InputError`.
    """
    if "backbone" not in attrs or "weights" not in attrs:
        raise InputError(f"these regions were made by {attrs.get('extractor', 'something else')!r}, not by a backbone that can be opened again: "
                         "extract them with itm extract")
    plain = {key: value.item() if hasattr(value, "item") else value for key, value in attrs.items()}
    given = {key: plain[key] for key in _GIVEN if key in plain}
    if given.get("features") not in FEATURES:
        given.pop("features", None)
    backbone = open_backbone(name or plain["backbone"], device=device, **given)
    for key, value in backbone.settings.items():
        if key != "backbone" and plain.get(key) != value:
            raise InputError(f"backbone {str(name or plain['backbone'])!r} has {key} {value}, and the regions were made with {plain.get(key)}: "
                             "give the one that made them, or extract again")
    return backbone


def _check(regions: int | None, features: str, nms: float | None, size: int | None) -> None:
    if regions is not None and regions < 1:
        raise InputError(f"regions {regions}: a picture needs at least 1")
    if features not in FEATURES:
        raise InputError(f"unknown features {features!r}: {nearest(features, FEATURES)}")
    if nms is not None and not 0 < nms <= 1:
        raise InputError(f"nms {nms}: an IoU above 0 and up to 1 is needed; 1 keeps all regions")
    if size is not None and size < 1:
        raise InputError(f"size {size}: a picture needs at least 1 pixel")


def _pooled_alone(name: str | Path, features: str, why: str) -> None:
    if features != "pooled":
        raise InputError(f"backbone {str(name)!r} has no features {features!r}, {why}: leave features out, or give a detector")


def _kind(name: str) -> str:
    """The model_type of the model in a folder or on the Hub."""
    if not Path(name).expanduser().is_dir() and difflib.get_close_matches(name, [REGION_ENCODER], cutoff=0.7):
        raise InputError(f"unknown backbone {name!r}: {nearest(name, [REGION_ENCODER])}")
    try:
        folder = pretrained_folder(name, BACKBONE_FILES, "backbone")
    except InputError as error:
        raise InputError(f"{error}, or {REGION_ENCODER!r}") from None
    if not (folder / "config.json").is_file():
        raise InputError(f"backbone {name!r} has no config.json: give a folder that transformers' save_pretrained wrote, {REGION_ENCODER!r}, or "
                         "a name on the Hub")
    config = read_json(folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"{folder / 'config.json'} names no model_type: give a folder that transformers' save_pretrained wrote")
    return kind
