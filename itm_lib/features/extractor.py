"""What turns pictures into regions, whatever is inside: the contract of all backbones, and what those of transformers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from itm_lib.features.pretrained import Preparation
from itm_lib.files import InputError, nearest

PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Regions(NamedTuple):
    """Of one picture: ``features`` (r, D) and ``boxes`` (r, 4) with 0 <= x0 < x1 <= 1 and y0 < y1 alike, ``scores`` (r,), all
    float32; ``labels``: a class name each, empty where there are no classes. The best region comes first; grids go row by row."""

    features: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: tuple[str, ...]


class PictureExtractor(Protocol):
    """Pictures to regions, in batches of pictures of one input size; nothing is padded to another picture's size.

    ``settings`` become attributes of the region file, and are enough to open the same extractor again; ``dim`` is D and
    ``max_regions`` R. ``input_size`` and ``prepare`` are small objects that a loader's workers get without the model.
    """

    name: str
    settings: dict[str, str | int | float]
    dim: int
    max_regions: int

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """A picture's (width, height) to its tensor's (height, width)."""

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture, RGB, to (3, H, W) float32, on the CPU."""

    def __call__(self, pixels: Tensor) -> list[Regions]:
        """(B, 3, H, W) to the regions of each picture, the same to rounding whatever B."""

    def to(self, device: str | torch.device) -> Self:
        """Itself, on that device."""


class NetworkExtractor:
    """A :class:`PictureExtractor` around a network: subclasses have ``_regions(pixels)``, called under autocast without gradients."""

    def __init__(self, name: str, network: nn.Module, preparation: Preparation, settings: dict[str, str | int | float], dim: int,
                 max_regions: int, precision: str, device: str | torch.device | None):
        if precision not in PRECISIONS:
            raise InputError(f"unknown precision {precision!r}: {nearest(precision, PRECISIONS)}")
        self.name, self.network, self.preparation = name, network.eval().requires_grad_(False), preparation
        self.settings = {**settings, "pictures": preparation.describe(), "precision": precision}
        self.dim, self.max_regions, self.precision = dim, max_regions, precision
        self.input_size, self.prepare = preparation.input_size, preparation.__call__
        self.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> Self:
        self.device = torch.device(device)
        self.network.to(self.device)
        return self

    def __call__(self, pixels: Tensor) -> list[Regions]:
        if pixels.dim() != 4 or pixels.shape[1] != 3 or not len(pixels):
            raise InputError(f"pictures of shape {tuple(pixels.shape)} were given: (pictures, 3, height, width) is needed, each as prepare() "
                             "makes it")
        with torch.inference_mode(), autocast(self.device, self.precision):
            found = self._regions(pixels.to(self.device))
        if not all(np.isfinite(part.features).all() for part in found):
            advice = "extract with precision bf16 or no" if self.precision == "fp16" else "its weights are broken, fetch it again"
            raise InputError(f"backbone {self.settings['backbone']!r} makes features that are NaN or infinite: {advice}")
        return found

    def _regions(self, pixels: Tensor) -> list[Regions]:
        raise NotImplementedError


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Networks compute in ``precision`` inside: "no", "bf16" or "fp16"."""
    dtype = PRECISIONS[precision]
    with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        yield


def as_arrays(*tensors: Tensor) -> Sequence[np.ndarray]:
    """Tensors to float32 arrays."""
    return [tensor.float().cpu().numpy() for tensor in tensors]
