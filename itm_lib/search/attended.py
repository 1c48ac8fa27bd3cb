"""What a model looks at in the pictures it found: boxes with weights, where the model says so.

=================  =======================================================================================================
SCAN, text-image   attention of the query's words over the regions, averaged over the words
SCAN, image-text   how well each region fits the words that it attends to, as shares
CAMP               attention of the query's words over the regions, averaged over the words
DivE               what the slot takes of each region, of the element that is nearest to one of the query's
VSE++              each region's part of the score, which is a sum over regions: with a mean, v·t = Σ_k x_k·t / (R ‖v̄‖); with
                   a maximum, the parts of the dimensions that the region won. Parts can be negative.
=================  =======================================================================================================

HREM mixes the regions before it pools them and has no such parts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from itm_lib.data import pictures
from itm_lib.evaluation.scoring import encode_images, evaluating
from itm_lib.models import VSE, Ensemble
from itm_lib.models.base import Encoding, MatchingModel
from itm_lib.search.gallery import Gallery

WORDS = "attention of the query's words, averaged"
FIT = "how well a region fits the words it attends to, as a share"
SLOT = "what the slot of the nearest element takes of a region"
PART = "a region's part of the score"


@dataclass(frozen=True)
class Region:
    """A box (x0, y0, x1, y1) in [0, 1] with its weight, and the weight that each word of the query gives it, if any."""

    box: tuple[float, float, float, float]
    weight: float
    words: tuple[float, ...] = ()


Weights = tuple[Tensor, Tensor | None, str]  # (I, R), (I, W, R) or None, and what they are


def attended(model: MatchingModel, gallery: Gallery, rows: Sequence[int], query: Encoding, said: Sequence[bool] | None,
             device: torch.device | str | None = None) -> tuple[list[tuple[Region, ...]], str]:
    """The regions of pictures ``rows`` with their weights for one encoded ``query``, and what the weights are.

    ``said``: which tokens are words of the text; None for a picture as the query. Empty where the model does not say, or
    where the boxes are not known.
    """
    nothing = [() for _ in rows], ""
    if isinstance(model, Ensemble):
        for member, own in zip(model.models, query.members):
            found = attended(member, gallery, rows, own, said, device)
            if found[1]:
                return found
        return nothing
    boxes = _boxes(model, gallery, rows)
    weights = None if boxes is None else _weights(model, gallery, rows, query, said, device)
    if weights is None:
        return nothing
    whole, by_word, meaning = weights
    return [_regions(each, whole[place], None if by_word is None else by_word[place]) for place, each in enumerate(boxes)], meaning


def _regions(boxes: np.ndarray, weights: Tensor, by_word: Tensor | None) -> tuple[Region, ...]:
    """Of one picture, largest weight first."""
    order = weights[: len(boxes)].argsort(descending=True, stable=True).tolist()
    return tuple(Region(tuple(boxes[k].tolist()), float(weights[k]), () if by_word is None else tuple(by_word[:, k].tolist()))
                 for k in order)


def _weights(model: MatchingModel, gallery: Gallery, rows: Sequence[int], query: Encoding, said: Sequence[bool] | None,
             device: torch.device | str | None) -> Weights | None:
    if isinstance(model, VSE):
        regions, mask = gallery.image_tensors(rows)
        with evaluating(model, device) as where:
            return parts_of_score(model, regions.to(where), mask.to(where), query.embedding[0].to(where)).cpu(), None, PART
    images = encode_images(model, gallery, device=device, rows=rows)
    with evaluating(model, device) as where:
        seen = model.explain(images.to(where), query.to(where))
    if "image_attention" in seen:
        best = seen["elements"][:, 0].amax(-1).argmax(-1).cpu()                       # (I,) the picture's nearest element
        return seen["image_attention"].cpu()[torch.arange(len(best)), best], None, SLOT
    if "attention" not in seen or said is None:
        return None
    words = seen["attention"][:, 0, : len(said)][:, torch.tensor(said)].cpu().float()   # (I, W, R)
    if getattr(model.config, "direction", "t2i") == "t2i":
        return words.mean(1), words, WORDS
    fit = seen["relevance"][:, 0].clamp(min=0).cpu().float()                          # (I, R)
    fit = fit / fit.sum(1, keepdim=True).clamp(min=1e-12)
    return fit, words * fit[:, None], FIT


def parts_of_score(model: VSE, regions: Tensor, mask: Tensor, query: Tensor) -> Tensor:
    """(I, R) parts that add up to the cosine of each picture with ``query`` (d,); 0 on padding."""
    x = model.image(regions).to(query.dtype).masked_fill(~mask[..., None], 0)
    if model.config.image_pooling == "mean":
        count = mask.sum(1, keepdim=True)
        return x @ query / count / (torch.linalg.vector_norm(x.sum(1) / count, dim=-1, keepdim=True) + 1e-8)
    pooled, winner = x.masked_fill(~mask[..., None], -torch.inf).max(1)                    # (I, d)
    length = torch.linalg.vector_norm(pooled, dim=-1, keepdim=True) + 1e-8
    return torch.zeros_like(x[..., 0]).scatter_add_(1, winner, pooled / length * query)


def _boxes(model: MatchingModel, gallery: Gallery, rows: Sequence[int]) -> list[np.ndarray] | None:
    if gallery.pixels is None:
        return [gallery.boxes(row) for row in rows] if gallery.has_boxes else None
    cells = encode_images(model, gallery, rows=rows[:1]).fragments
    side = 0 if cells is None else math.isqrt(cells.shape[1])
    if not side or side**2 != cells.shape[1]:
        return None
    return [cell_boxes(pictures.picture_size(gallery.path(row)), side) for row in rows]


def cell_boxes(size: tuple[int, int], side: int) -> np.ndarray:
    """(side², 4) boxes, row by row, of the cells of the largest square in the middle of a picture of ``size`` (width, height)."""
    shorter = min(size)
    start, step = [(edge - shorter) / 2 / edge for edge in size], [shorter / side / edge for edge in size]
    y, x = np.divmod(np.arange(side**2), side)
    corner = np.stack([start[0] + x * step[0], start[1] + y * step[1]], 1)
    return np.clip(np.concatenate([corner, corner + step], 1), 0, 1).astype(np.float32)
