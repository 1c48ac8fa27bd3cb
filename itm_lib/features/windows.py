"""Regions of any picture by the course's region encoder: windows slid over it, the best of them moved into place and kept.

This is how detectors worked before there were networks that propose boxes: a classifier looks through windows of several sizes and
shapes, and non-maximum suppression keeps the best of those that overlap. A window's score is the probability of its likeliest
object, so windows of background and of pieces of objects score low. Where nothing is known of a scene, this takes the place of
:func:`itm_lib.features.region_encoder.propose_regions`.

A window is cut out by RoIAlign of the picture itself. Windows of one size need that only once: the picture is resized so that such a
window becomes a crop of 32 × 32 pixels, and they are its crops at every eighth pixel. The best windows, three for each region that
is wanted, then try 14 small moves of their edges and keep the best.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from itm_lib.features.extractor import NetworkExtractor, Regions, as_arrays
from itm_lib.features.pretrained import Preparation
from itm_lib.features.region_encoder import (
    CROP_PIXELS,
    FEATURE_DIM,
    GEOMETRY_DIM,
    NUM_REGIONS,
    RegionEncoder,
    box_geometry,
    load_region_encoder,
)
from itm_lib.features.roi_align import axis_weights, nms, roi_align

NAME = "region-encoder"
NMS = 0.55
SHORTEST = 224                        # pixels, as the pictures that the encoder was trained on
SIDES = (0.17, 0.27, 0.41, 0.62, 0.94)  # of a window's longer side, as shares of the picture's shorter one
ASPECTS = (1.0, 0.6, 1 / 0.6)           # width by height
STEP = 8                              # pixels of a crop between windows: a quarter of its side
MOVES = 0.15 * torch.tensor([         # of x0 y0 x1 y1, in shares of the box's width and height: edges one by one, larger and
    [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0, -1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1],
    [-1, -1, 1, 1], [1, 1, -1, -1],   # smaller, and to four sides
    [-1, 0, -1, 0], [0, -1, 0, -1], [1, 0, 1, 0], [0, 1, 0, 1],
])
_CROPS_AT_ONCE = 256


class SlidingWindows(NetworkExtractor):
    """The encoder's features of the ``regions`` best windows, 128 and the 6 of the box, with its own names as labels."""

    def __init__(self, regions: int = NUM_REGIONS, nms: float = NMS, size: int | None = None,
                 device: str | torch.device | None = None, precision: str = "no", encoder: RegionEncoder | None = None):
        encoder = encoder or load_region_encoder()
        size = SHORTEST if size is None else size
        self.nms = float(nms)
        self._background = torch.tensor([name.endswith("(background)") for name in encoder.object_names])
        settings = {"backbone": NAME, "weights": encoder.fingerprint(), "features": "windows", "regions": regions, "nms": self.nms,
                    "size": size}
        super().__init__(NAME, encoder, Preparation(shortest=size, longest=2 * size), settings, FEATURE_DIM + GEOMETRY_DIM, regions,
                         precision, device)

    def _regions(self, pixels: Tensor) -> list[Regions]:
        return [self._picture(picture) for picture in pixels]

    def _picture(self, picture: Tensor) -> Regions:
        boxes, crops = windows(picture)
        scores, _, _ = self._look(crops)
        chosen = nms(boxes, scores, 0.5, 3 * self.max_regions)
        boxes, scores = self._moved(picture, boxes[chosen], scores[chosen])
        boxes = boxes[nms(boxes, scores, self.nms, self.max_regions)]
        scores, labels, features = self._look(roi_align(picture, boxes, CROP_PIXELS))
        features, boxes, scores = as_arrays(features, boxes, scores)
        names = tuple(self.network.object_names[number] for number in labels.tolist())
        return Regions(np.concatenate([features, box_geometry(boxes)], 1), boxes, scores, names)

    def _look(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (n, 3, 32, 32) to scores and objects (n,) and features (n, 128)."""
        outputs = [self.network(part) for part in crops.split(_CROPS_AT_ONCE)]
        chances = torch.cat([output.objects for output in outputs]).float().softmax(1)
        scores, labels = chances.masked_fill(self._background.to(chances.device), 0).max(1)
        return scores, labels, torch.cat([output.features for output in outputs])

    def _moved(self, picture: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and scores (n,), each moved the way that raises its score most, if one does."""
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = (boxes[:, None] + MOVES.to(boxes.device) * sides[:, None]).clamp(0, 1)  # (n, moves, 4)
        tried = torch.cat([self._look(roi_align(picture, part, CROP_PIXELS))[0] for part in moved.flatten(0, 1).split(_CROPS_AT_ONCE)])
        options, their_scores = torch.cat([boxes[:, None], moved], 1), torch.cat([scores[:, None], tried.view(len(boxes), -1)], 1)
        best = their_scores.max(1)
        return options[torch.arange(len(boxes), device=boxes.device), best.indices], best.values


def windows(picture: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (3, H, W) to all of its windows: boxes (n, 4), and crops (n, 3, 32, 32) as ``roi_align(picture, boxes, 32)``."""
    whole, shorter = picture.new_tensor([[0, 0, 1, 1]]), min(picture.shape[1:])
    boxes, crops = [], []
    for side in SIDES:
        for aspect in ASPECTS:
            tall, wide = side * shorter * min(1, 1 / aspect), side * shorter * min(1, aspect)
            size = _resized(picture.shape[1] / tall), _resized(picture.shape[2] / wide)
            y, x = axis_weights(whole, tuple(picture.shape[1:]), size, 2, picture.dtype)
            found = (y[0] @ picture @ x[0].T).unfold(1, CROP_PIXELS, STEP).unfold(2, CROP_PIXELS, STEP)  # (3, rows, columns, 32, 32)
            crops.append(found.permute(1, 2, 0, 3, 4).flatten(0, 1))
            top, left = (STEP * torch.arange(count, device=picture.device) for count in found.shape[1:3])
            corners = torch.cartesian_prod(top, left).flip(1)
            edges = picture.new_tensor([size[1], size[0]]).repeat(2)
            boxes.append((torch.cat([corners, corners + CROP_PIXELS], 1) / edges).clamp(0, 1))
    return torch.cat(boxes), torch.cat(crops)


def _resized(windows_along: float) -> int:
    """Pixels of a side of the picture that is so many windows long: the last window ends where the picture does."""
    return CROP_PIXELS + STEP * max(0, round(CROP_PIXELS * (windows_along - 1) / STEP))
