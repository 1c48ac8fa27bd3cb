"""Regions of the detectors in transformers: DETR and its kin, the best queries after non-maximum suppression.

A query has a box and a score for each class: softmax over the classes and "no object" in DETR, a sigmoid a class in the others. Its
score is its best class's. Its feature is either the backbone's last map, averaged over the box by RoIAlign ("pooled"), as bottom-up
attention has it, or the decoder's last hidden state ("queries"). The network runs once for both: a hook keeps the map.

Letters: B pictures, Q queries, R regions at most, D = channels of the map or of the decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itm_lib.features.extractor import NetworkExtractor, Regions, as_arrays
from itm_lib.features.pretrained import BACKBONE_FILES, STEP, Preparation, fingerprint, read_preparation, read_pretrained
from itm_lib.features.roi_align import nms, pool_boxes
from itm_lib.files import InputError

NUM_REGIONS = 36
NMS = 0.7
SMALLEST = 1e-4  # of the picture's side: a box that is narrower shows nothing
DETECTORS = ("detr", "conditional_detr", "deformable_detr", "rt_detr", "rt_detr_v2")


class Detector(NetworkExtractor):
    """The best ``regions`` queries of the detector ``name``, of the model_type ``kind``."""

    def __init__(self, name: str, kind: str, regions: int = NUM_REGIONS, features: str = "pooled", nms: float = NMS,
                 size: int | None = None, device: str | torch.device | None = None, precision: str = "no"):
        network = read_pretrained(name, "backbone", BACKBONE_FILES, "AutoModelForObjectDetection")
        config, convolutions = network.config, network.model.backbone
        if regions > config.num_queries:
            raise InputError(f"regions {regions}: backbone {name!r} has {config.num_queries} queries: give at most so many")
        preparation = read_preparation(name, config, size)
        _check_sides(name, preparation, config)
        self.kind, self.features, self.nms = kind, features, float(nms)
        self._softmax = kind == "detr" or not getattr(config, "use_focal_loss", True)
        self._names = [str(config.id2label.get(number, number)) for number in range(config.num_labels)]
        self._maps: list[Tensor] = []
        convolutions.register_forward_hook(self._keep_map)
        settings = {"backbone": str(name), "weights": fingerprint(network), "features": features, "regions": regions, "nms": self.nms,
                    "size": preparation.shortest}
        dim = convolutions.intermediate_channel_sizes[-1] if features == "pooled" else config.d_model
        super().__init__(kind, network, preparation, settings, dim, regions, precision, device)

    def _keep_map(self, module: torch.nn.Module, inputs: tuple, maps: list[tuple[Tensor, Tensor]]) -> None:
        self._maps = [maps[-1][0]]  # of each stage: the map, and the mask of what is not padding, here everything

    def _regions(self, pixels: Tensor) -> list[Regions]:
        found = self.network(pixel_values=pixels)
        maps, states = self._maps.pop().float(), found.last_hidden_state.float()
        with torch.autocast(pixels.device.type, enabled=False):
            scores, labels = self._scores(found.logits.float())
            return [self._picture(*parts) for parts in zip(maps, states, to_corners(found.pred_boxes.float()), scores, labels)]

    def _scores(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, Q, classes) to each query's score and class (B, Q), as transformers' own processors have it."""
        return (logits.softmax(-1)[..., :-1] if self._softmax else logits.sigmoid()).max(-1)

    def _picture(self, maps: Tensor, states: Tensor, boxes: Tensor, scores: Tensor, labels: Tensor) -> Regions:
        chosen = best(boxes, scores, self.nms, self.max_regions)
        boxes, scores = widened(boxes[chosen]), scores[chosen]
        features = pool_boxes(maps, boxes) if self.features == "pooled" else states[chosen]
        return Regions(*as_arrays(features, boxes, scores), tuple(self._names[number] for number in labels[chosen].tolist()))


def to_corners(boxes: Tensor) -> Tensor:
    """Centre x, centre y, width, height (..., 4) to x0 y0 x1 y1, cut off at the picture's edges."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - sides / 2, centre + sides / 2], -1).clamp(0, 1)


def best(boxes: Tensor, scores: Tensor, iou: float, count: int) -> Tensor:
    """Numbers of the ``count`` best boxes (Q, 4) after non-maximum suppression, by falling score. Boxes that show nothing are left
    out; where all show nothing, the best one stays."""
    shown = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST).all(1).nonzero().flatten()
    if not len(shown):
        return scores.argmax()[None]
    return shown[nms(boxes[shown], scores[shown], iou, count)]


def widened(boxes: Tensor) -> Tensor:
    """Boxes (R, 4) of which each side is at least SMALLEST; the others are unchanged."""
    low = boxes[:, :2].clamp_max(1 - SMALLEST)
    return torch.cat([low, torch.maximum(boxes[:, 2:], low + SMALLEST)], 1)


def _check_sides(name: str, preparation: Preparation, config: Any) -> None:
    """Of a fixed size: multiples of the coarsest cell, and the one that the model's positions were computed for."""
    if preparation.longest is not None:
        return
    sides = preparation.height, preparation.width
    if any(side % STEP for side in sides):
        raise InputError(f"size {sides[0]} × {sides[1]}: backbone {name!r} reads multiples of {STEP} pixels: give "
                         f"{max(STEP, round(sides[0] / STEP) * STEP)}")
    fixed = getattr(config, "anchor_image_size", None) or getattr(config, "eval_size", None)
    if fixed and tuple([fixed] * 2 if isinstance(fixed, int) else fixed) != sides:
        raise InputError(f"size {sides[0]} × {sides[1]}: backbone {name!r} reads pictures of {fixed} pixels alone: leave the size out")
