"""Grid features: the last map or the last tokens of any image model of transformers, a region a cell.

The whole picture is squeezed into a square, so that the cells' boxes cover all of it (Jiang et al., In Defense of Grid Features,
CVPR 2020, show that such cells do as well as a detector's regions). Letters: B pictures, n × n cells, D channels.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itm_lib.features.extractor import NetworkExtractor, Regions, as_arrays
from itm_lib.features.pretrained import BACKBONE_FILES, fingerprint, read_preparation, read_pretrained
from itm_lib.files import InputError, one_line


class GridBackbone(NetworkExtractor):
    """Cells of the image model ``name``, a folder or a name on the Hub: R = n², all of its cells, or ``regions`` of them.

    Class and register tokens are left out. With fewer ``regions``, a square number, neighbouring cells are averaged (adaptive
    pooling) and their boxes joined. ``size``: the side of the square that pictures become, in pixels.
    """

    def __init__(self, name: str, regions: int | None = None, size: int | None = None, device: str | torch.device | None = None,
                 precision: str = "no"):
        network = read_pretrained(name, "backbone", BACKBONE_FILES)
        config = network.config
        if network.main_input_name != "pixel_values":
            raise InputError(f"backbone {name!r} is a {config.model_type!r}, which does not read pictures: give an image model of transformers")
        preparation = read_preparation(name, config, size, squeeze=True)
        side, patch = min(preparation.height, preparation.width), _patch(config)
        if patch and size is None:
            side = max(patch, side // patch * patch)  # SigLIP's 384 is no multiple of its 14 either: it drops what is left over
        elif patch and size % patch:
            raise InputError(f"size {size} is no multiple of the {patch} pixels of a patch of backbone {name!r}: give "
                             f"{max(patch, round(size / patch) * patch)}")
        self._resizes = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        self.cells, dim = self._try(name, network, side, patch)
        self._check_stride(name, side, patch)
        self.side = self._pooled_side(regions)
        settings = {"backbone": str(name), "weights": fingerprint(network), "features": "grid", "regions": self.side**2, "size": side}
        super().__init__(config.model_type, network, replace(preparation, height=side, width=side, shortest=side), settings, dim,
                         self.side**2, precision, device)
        self._boxes = cell_boxes(self.cells, self.side)

    def _try(self, name: str, network: nn.Module, side: int, patch: int | None) -> tuple[int, int]:
        """One picture of zeros: the number of cells along a side, and D."""
        try:
            with torch.inference_mode():
                states = self._states(network.eval(), torch.zeros(1, 3, side, side))
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            raise InputError(f"backbone {name!r}, a {network.config.model_type!r}, makes no cells of a picture of {side} pixels "
                             f"({one_line(error)}): give an image model of transformers, and a size that it reads") from None
        if states.dim() == 4:
            return states.shape[2], states.shape[1]
        whole = (side // patch) ** 2 if patch else states.shape[1]
        cells = math.isqrt(min(whole, states.shape[1]))
        if cells**2 != min(whole, states.shape[1]):
            raise InputError(f"backbone {name!r} makes {states.shape[1]} tokens of a picture, which form no square: give another model")
        return cells, states.shape[2]

    def _check_stride(self, name: str, side: int, patch: int | None) -> None:
        """A last cell that reaches beyond the picture would make all boxes wrong."""
        stride = 2 ** round(math.log2(side / self.cells))
        if not patch and side != stride * self.cells:
            raise InputError(f"size {side} is no multiple of the {stride} pixels of a cell of backbone {name!r}: give {stride * self.cells}")

    def _pooled_side(self, regions: int | None) -> int:
        side = self.cells if regions is None else math.isqrt(regions)
        if regions is not None and (side**2 != regions or not 1 <= side <= self.cells):
            nearest = min(self.cells, max(1, round(math.sqrt(regions))))
            raise InputError(f"regions {regions}: this backbone has {self.cells} × {self.cells} cells, of which a square number of regions can be "
                             f"made, {self.cells**2} at most: give {nearest**2}, or a larger size")
        return side

    def _states(self, network: nn.Module, pixels: Tensor) -> Tensor:
        options = {"interpolate_pos_encoding": True} if self._resizes else {}
        return network(pixel_values=pixels, **options).last_hidden_state

    def _regions(self, pixels: Tensor) -> list[Regions]:
        states = self._states(self.network, pixels).float()
        if states.dim() == 3:
            states = states[:, states.shape[1] - self.cells**2:].mT.unflatten(2, (self.cells, self.cells))
        if self.side < self.cells:
            states = F.adaptive_avg_pool2d(states, self.side)
        (features,) = as_arrays(states.flatten(2).mT)
        scores, labels = np.ones(self.side**2, np.float32), ("",) * self.side**2
        return [Regions(part, self._boxes.copy(), scores.copy(), labels) for part in features]


def cell_boxes(cells: int, side: int) -> np.ndarray:
    """(side², 4) float32, row by row: the part of the picture that each of side × side averages of cells × cells covers."""
    numbers = np.arange(side)
    low, high = numbers * cells // side / cells, -(-(numbers + 1) * cells // side) / cells  # adaptive pooling's floor and ceiling
    y, x = np.divmod(np.arange(side**2), side)
    return np.stack([low[x], low[y], high[x], high[y]], axis=1).astype(np.float32)


def _patch(config: Any) -> int | None:
    """Pixels of a patch, for models of patches."""
    patch = getattr(config, "patch_size", None) if hasattr(config, "num_attention_heads") or hasattr(config, "num_heads") else None
    return patch[0] if isinstance(patch, Sequence) else patch
