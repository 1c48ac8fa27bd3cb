"""Regions of any picture by the course's region encoder: windows slid over it, the best of them kept.

This is how detectors worked before there were networks that propose boxes: a classifier looks through windows of several sizes and
shapes, and non-maximum suppression keeps the best of those that overlap. Where nothing is known of a scene, it takes the place of
:func:`itm_lib.features.region_encoder.propose_regions`. A window is cut out by RoIAlign of the picture itself.
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
from itm_lib.features.roi_align import nms, roi_align

NAME = "region-encoder"
SHORTEST = 224  # pixels, as the pictures that the encoder was trained on


class SlidingWindows(NetworkExtractor):
    """The encoder's features of the ``regions`` best windows, 128 and the 6 of the box, and its own names as labels."""

    def __init__(self, regions: int = NUM_REGIONS, nms: float = 0.3, size: int | None = None,
                 device: str | torch.device | None = None, precision: str = "no", encoder: RegionEncoder | None = None):
        encoder = encoder or load_region_encoder()
        size = SHORTEST if size is None else size
        self.nms = nms
        self._background = torch.tensor([name.endswith("(background)") for name in encoder.object_names])
        settings = {"backbone": NAME, "weights": encoder.fingerprint(), "features": "windows", "regions": regions, "nms": nms, "size": size}
        super().__init__(NAME, encoder, Preparation(shortest=size, longest=2 * size), settings, FEATURE_DIM + GEOMETRY_DIM, regions,
                         precision, device)

    def _regions(self, pixels: Tensor) -> list[Regions]:
        return [self._picture(picture) for picture in pixels]

    def _picture(self, picture: Tensor) -> Regions:
        boxes = window_boxes(*picture.shape[1:]).to(picture.device)
        outputs = [self.network(roi_align(picture, part, CROP_PIXELS)) for part in boxes.split(256)]
        chances = torch.cat([output.objects for output in outputs]).float().softmax(1)
        chances[:, self._background.to(chances.device)] = 0
        scores, labels = chances.max(1)
        kept = nms(boxes, scores, self.nms, self.max_regions)
        features, kept_boxes, kept_scores = as_arrays(torch.cat([output.features for output in outputs])[kept], boxes[kept], scores[kept])
        names = tuple(self.network.object_names[number] for number in labels[kept].tolist())
        return Regions(np.concatenate([features, box_geometry(kept_boxes)], 1), kept_boxes, kept_scores, names)


def window_boxes(height: int, width: int) -> Tensor:
    """(W, 4) windows over a picture of this shape."""
    longer, boxes = max(height, width), []
    short = min(height, width)
    for side in (0.17, 0.27, 0.41, 0.62, 0.94):
        for aspect in (1.0, 0.6, 1 / 0.6):
            tall, wide = (side * short * min(1, 1 / aspect) / height, side * short * min(1, aspect) / width)
            steps = [max(1, int(np.ceil((1 - part) / (part * 0.35)))) + 1 for part in (tall, wide)]
            top, left = np.meshgrid(np.linspace(0, 1 - tall, steps[0]), np.linspace(0, 1 - wide, steps[1]), indexing="ij")
            boxes.append(np.stack([left, top, left + wide, top + tall], -1).reshape(-1, 4))
    assert longer >= short
    return torch.tensor(np.concatenate(boxes), dtype=torch.float32).clamp(0, 1)
