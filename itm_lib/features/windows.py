"""Regions of any picture by the course's region encoder: windows slid over it, the best of them moved into place and kept.

This is how detectors worked before there were networks that propose boxes: a classifier looks through windows of several sizes and
shapes, and non-maximum suppression keeps the best of those that overlap. A window's score is the probability of its likeliest
object, so windows of background and of pieces of objects score low. Where nothing is known of a scene, this takes the place of
:func:`itm_lib.features.region_encoder.propose_regions`.

Thousands of windows are scored at the price of a few hundred. The picture is resized so that a window becomes 32 × 32 pixels, and
the encoder's convolutions run once over all of it; they halve the picture three times, so each 4 × 4 cells of their output are what
the rest of the encoder sees of a window, one every 8 pixels (OverFeat, Sermanet et al., ICLR 2014, scans so). That is not quite what
it sees of the window by itself, whose surroundings are cut off: the best windows are therefore cut out, by RoIAlign of the picture,
and scored again; and the best of those try 14 small moves of their edges.
"""

from __future__ import annotations

from collections.abc import Iterator

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
SHORTEST = 224                          # pixels, as the pictures that the encoder was trained on
SIDES = (0.17, 0.27, 0.41, 0.62, 0.94)  # of a window's longer side, as shares of the picture's shorter one
ASPECTS = (1.0, 0.6, 1 / 0.6)           # width by height
CROP_CELLS = 4                          # of the convolutions' output, along a crop's side
STEP = CROP_PIXELS // CROP_CELLS        # pixels of a crop between windows
CANDIDATES, MOVED = 16, 3               # windows that are scored again, and moved, for each region that is wanted
MOVES = 0.15 * torch.tensor([           # of x0 y0 x1 y1, in shares of the box's width and height: edges one by one, larger and
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
        boxes, scores = self._scan(picture)
        boxes = boxes[nms(boxes, scores, 0.7, CANDIDATES * self.max_regions)]
        scores = self._look(roi_align(picture, boxes, CROP_PIXELS))[0]
        chosen = nms(boxes, scores, 0.5, MOVED * self.max_regions)
        boxes, scores = self._moved(picture, boxes[chosen], scores[chosen])
        boxes = boxes[nms(boxes, scores, self.nms, self.max_regions)]
        scores, labels, features = self._look(roi_align(picture, boxes, CROP_PIXELS))
        features, boxes, scores = as_arrays(features, boxes, scores)
        names = tuple(self.network.object_names[number] for number in labels.tolist())
        return Regions(np.concatenate([features, box_geometry(boxes)], 1), boxes, scores, names)

    def _look(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Crops (n, 3, 32, 32) to scores and objects (n,) and features (n, 128)."""
        outputs = [self.network(part) for part in crops.split(_CROPS_AT_ONCE)]
        scores, labels = self._scores(torch.cat([output.objects for output in outputs]))
        return scores, labels, torch.cat([output.features for output in outputs])

    def _scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, objects) to the probability of the likeliest object that is no background, and which it is."""
        return logits.float().softmax(1).masked_fill(self._background.to(logits.device), 0).max(1)

    def _scan(self, picture: Tensor) -> tuple[Tensor, Tensor]:
        """A picture (3, H, W) to all of its windows (n, 4) and their scores, nearly: see above."""
        boxes, scores = [], []
        for resized in scales(picture):
            cells = self.network.trunk(resized[None] * 2 - 1)[0].unfold(1, CROP_CELLS, 1).unfold(2, CROP_CELLS, 1)
            cells = cells.permute(1, 2, 0, 3, 4).flatten(0, 1)  # (windows, channels, 4, 4)
            scores.append(self._scores(self.network.object_head(self.network.project(cells)))[0])
            boxes.append(window_boxes(resized))
        return torch.cat(boxes), torch.cat(scores)

    def _moved(self, picture: Tensor, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes (n, 4) and scores (n,), each moved the way that raises its score most, if one does."""
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = (boxes[:, None] + MOVES.to(boxes.device) * sides[:, None]).clamp(0, 1)  # (n, moves, 4)
        tried = torch.cat([self._look(roi_align(picture, part, CROP_PIXELS))[0] for part in moved.flatten(0, 1).split(_CROPS_AT_ONCE)])
        options, their_scores = torch.cat([boxes[:, None], moved], 1), torch.cat([scores[:, None], tried.view(len(boxes), -1)], 1)
        best = their_scores.max(1)
        return options[torch.arange(len(boxes), device=boxes.device), best.indices], best.values


def scales(picture: Tensor) -> Iterator[Tensor]:
    """A picture (3, H, W) resized for each size and shape of window, so that such a window has 32 × 32 pixels; sides are multiples
    of 8. Two samples a pixel and axis, as of any crop."""
    whole, (height, width) = picture.new_tensor([[0, 0, 1, 1]]), picture.shape[1:]
    base = max(min(height, width), max(height, width) / 2)  # of a long strip as of one of 2 : 1, or windows would be countless
    for side in SIDES:
        for aspect in ASPECTS:
            size = _resized(height / (side * base * min(1, 1 / aspect))), _resized(width / (side * base * min(1, aspect)))
            y, x = axis_weights(whole, (height, width), size, 2, picture.dtype)
            with torch.autocast(picture.device.type, enabled=False):
                resized = y[0] @ picture @ x[0].T
            yield resized


def window_boxes(resized: Tensor) -> Tensor:
    """The windows of one of :func:`scales`, (n, 4), row by row."""
    height, width = resized.shape[1:]
    top, left = (torch.arange(0, side - CROP_PIXELS + 1, STEP, device=resized.device) for side in (height, width))
    corners = torch.cartesian_prod(top, left).flip(1)
    return torch.cat([corners, corners + CROP_PIXELS], 1) / resized.new_tensor([width, height, width, height])


def _resized(windows_along: float) -> int:
    """Pixels of a side of the picture that is so many windows long: the last window ends where the picture does."""
    return CROP_PIXELS + STEP * max(0, round(CROP_PIXELS * (windows_along - 1) / STEP))
