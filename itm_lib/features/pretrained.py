"""Models of the transformers library, read from a folder or from the Hugging Face Hub, and how each wants its pictures.

A folder that is here is read without a network. Nothing of torchvision is used: pictures are resized by Pillow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from itm_lib.data.captions import pretrained_folder
from itm_lib.files import InputError, one_line, read_json

PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")  # the second: of a model for pictures and text
BACKBONE_FILES = ("config.json", "model*.safetensors*", *PROCESSOR_FILES)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and standard deviation of red, green and blue
_HALF = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
_CLIP = {"image_mean": (0.48145466, 0.4578275, 0.40821073), "image_std": (0.26862954, 0.26130258, 0.27577711), "resample": 3}
_DETR, _RT_DETR = {"size": {"shortest_edge": 800, "longest_edge": 1333}}, {"size": {"height": 640, "width": 640}, "do_normalize": False}
USUAL = {  # how the published models of a kind want their pictures, where a folder does not say it; the others as ImageNet's
    "detr": _DETR, "conditional_detr": _DETR, "deformable_detr": _DETR, "rt_detr": _RT_DETR, "rt_detr_v2": _RT_DETR,
    "vit": _HALF, "siglip": _HALF, "siglip_vision_model": _HALF, "clip": _CLIP, "clip_vision_model": _CLIP,
}
STEP = 32  # sides of pictures that keep their shape are rounded to its multiples, so that many pictures share a batch


def read_pretrained(name: str, what: str, files: Sequence[str], reader: str = "AutoModel") -> nn.Module:
    """The model in the folder ``name``, or of that name on the Hub, in float32; of one for pictures and text, its half for pictures.

    ``what``: the setting that names it, "bert" or "backbone"; ``reader``: transformers' class that reads it.
    """
    import transformers  # only here: it takes seconds to import
    from huggingface_hub.errors import StrictDataclassError  # a setting of another type than the config's

    folder, problem = pretrained_folder(name, files, what), None
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder)
            config = getattr(config, "vision_config", config)
            model, report = getattr(transformers, reader).from_pretrained(folder, config=config, dtype=torch.float32,
                                                                          output_loading_info=True)
    except (OSError, ValueError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        problem = one_line(error)
    else:
        lacking = [key for key in sorted(report["missing_keys"]) if "pooler." not in key]
        if lacking:
            problem = f"its weights lack {lacking[0]}"
    if problem:
        raise InputError(f"{what} {name!r} cannot be read ({problem}): give a folder that holds one, or its name on the Hub")
    return model


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bar and its report on weights, in which nothing is wrong that is not told here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def fingerprint(model: nn.Module) -> str:
    """Twelve hexadecimal digits of a hash of all weights, by name: the same for a folder and for a copy of it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def read_normalisation(name: str) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of pictures, in its preprocessor_config.json, or ImageNet's where that says nothing."""
    path, content = _processor(name)
    return _normalisation(path, content)


def _processor(name: str) -> tuple[Path, dict[str, Any]]:
    """What the model's folder says on its pictures, and in which file."""
    folder = pretrained_folder(name, BACKBONE_FILES, "backbone")
    path = next((folder / file for file in PROCESSOR_FILES if (folder / file).is_file()), folder / PROCESSOR_FILES[0])
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings of pictures: mend the file")
    return path, content.get("image_processor", content)


def _normalisation(path: Path, content: dict[str, Any]) -> tuple[Sequence[float], Sequence[float]]:
    mean, std = (content.get(key, usual) for key, usual in zip(("image_mean", "image_std"), IMAGENET))
    if not content.get("do_normalize", True):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if any(not isinstance(part, Sequence) or len(part) != 3 for part in (mean, std)) or not all(std):
        raise InputError(f"{path}: image_mean and image_std must be three numbers each: mend the file")
    return mean, std


# ------------------------------------------------------------------------------------------------ pictures as a model wants them

@dataclass(frozen=True)
class Preparation:
    """How a picture becomes a tensor: the whole of it is resized, then normalised. Small, so that a loader's worker gets this alone.

    ``shortest``, ``longest``: the sides in pixels; every picture keeps its shape, but for the rounding of both sides to multiples
    of 32, and its shorter side becomes ``shortest`` unless the longer one then exceeds ``longest``. Where ``longest`` is None every
    picture is squeezed into ``height`` × ``width``. ``scale`` is what a byte is multiplied with, ``resample`` Pillow's number.
    """

    height: int = 224
    width: int = 224
    longest: int | None = None
    shortest: int = 224
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1 / 255
    resample: int = Image.Resampling.BILINEAR

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """A picture's (width, height) to its tensor's (height, width)."""
        if self.longest is None:
            return self.height, self.width
        scale = min(self.shortest / min(size), self.longest / max(size))
        width, height = (max(STEP, STEP * round(side * scale / STEP)) for side in size)
        return height, width

    def __call__(self, picture: Image.Image) -> Tensor:
        """A picture, RGB, to (3, H, W) float32."""
        height, width = self.input_size(picture.size)
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling(self.resample))
        pixels = np.asarray(picture, dtype=np.float32) * np.float32(self.scale)
        return torch.from_numpy(((pixels - np.float32(self.mean)) / np.float32(self.std)).transpose(2, 0, 1).copy())

    def describe(self) -> str:
        """All of it as one line of JSON: an attribute of a region file."""
        return json.dumps(asdict(self), sort_keys=True)


def read_preparation(name: str, config: Any, size: int | None = None, squeeze: bool = False) -> Preparation:
    """How the model ``name`` of this ``config`` wants its pictures, by its preprocessor_config.json; what that leaves open, by
    what is usual for its kind.

    ``size``: pixels, in place of those of the file: of the shorter side where pictures keep their shape, else of both sides.
    ``squeeze``: pictures do not keep their shape. They are not cut either: what a processor would cut off is squeezed in.
    """
    path, content = _processor(name)
    known = {key: value for key, value in content.items() if value is not None}
    content = {"size": getattr(config, "image_size", 224), **USUAL.get(config.model_type, {}), **known}
    mean, std = _normalisation(path, content)
    sides = _sides(path, content, squeeze)
    if size is not None:
        longest = sides["longest"] and round(size * sides["longest"] / sides["shortest"])
        sides = {"height": size, "width": size, "shortest": size, "longest": longest}
    scale = content.get("rescale_factor", 1 / 255) if content.get("do_rescale", True) else 1.0
    return Preparation(**sides, mean=tuple(mean), std=tuple(std), scale=float(scale), resample=int(content.get("resample", 2)))


def _sides(path: Path, content: dict[str, Any], squeeze: bool) -> dict[str, int | None]:
    """The sides of a :class:`Preparation`: {"shortest_edge": 800, "longest_edge": 1333}, {"height": 640, "width": 640} and 224 are
    how files say it, some with the square that is cut out in "crop_size"."""
    size = content["size"]
    if squeeze and content.get("do_center_crop") and content.get("crop_size"):
        size = content["crop_size"]
    sides = {"height": size, "width": size, "shortest_edge": size} if isinstance(size, int) else dict(size or {})
    short, longest = sides.get("shortest_edge"), content.get("max_size", sides.get("longest_edge"))
    height, width = sides.get("height", short), sides.get("width", short)
    if not all(isinstance(side, int) and side > 0 for side in (height, width)):
        raise InputError(f"{path}: size {size!r} names no sides in pixels: mend the file, or give the size")
    keeps_shape = not squeeze and short is not None and longest is not None
    return {"height": height, "width": width, "shortest": short if keeps_shape else height, "longest": longest if keeps_shape else None}
