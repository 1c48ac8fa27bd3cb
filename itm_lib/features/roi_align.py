"""RoIAlign (He et al., Mask R-CNN, ICCV 2017) as two small matrix products a box, and non-maximum suppression.

A box is cut into ``bins`` × ``bins`` cells; in each, ``samples`` × ``samples`` points are read from the map by bilinear interpolation
and averaged. The points form a grid, a column of ys times a row of xs, and bilinear weights are a product too: point (y, x) reads
cell (i, j) with the weight h(y - i) h(x - j), h(t) = max(0, 1 - |t|). So the sums over rows and columns come apart, and

    out = Wy F Wx^T    with    Wy[p, i] = mean over the samples y of bin p of h(y - i),    Wx alike,

exactly: no gather, and a gradient that is two matrix products as well. The mean over all bins, which a region's feature is, needs
one row of each matrix. Cells are points at half pixels: cell i of a map of H rows lies at (i + 1/2) / H of the picture, and a point
beyond the outermost cells reads the nearest one.

Letters: B pictures, C channels, H × W the map, R boxes x0 y0 x1 y1 in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from itm_lib.files import InputError


def roi_align(maps: Tensor, boxes: Tensor, bins: int = 7, samples: int = 2, rows: Tensor | None = None) -> Tensor:
    """Maps (C, H, W) or (B, C, H, W) and boxes (R, 4) to (R, C, bins, bins). ``rows`` (R,): the map of each box, where B > 1."""
    parts = _by_map(maps, boxes, rows)
    out = maps.new_zeros(len(boxes), maps.shape[-3], bins, bins)
    for picture, chosen in parts:
        y, x = axis_weights(boxes[chosen], picture.shape[-2:], bins, samples, maps.dtype)
        with torch.autocast(maps.device.type, enabled=False):  # half precision would move the points
            tall = torch.einsum("rph,chw->rpcw", y, picture)
            out = out.index_copy(0, chosen, torch.einsum("rpcw,rqw->rcpq", tall, x))
    return out


def pool_boxes(maps: Tensor, boxes: Tensor, bins: int = 7, samples: int = 2, rows: Tensor | None = None) -> Tensor:
    """The mean of :func:`roi_align` over the bins, (R, C), without computing them one by one."""
    parts = _by_map(maps, boxes, rows)
    out = maps.new_zeros(len(boxes), maps.shape[-3])
    for picture, chosen in parts:
        y, x = (weights.mean(1) for weights in axis_weights(boxes[chosen], picture.shape[-2:], bins, samples, maps.dtype))
        with torch.autocast(maps.device.type, enabled=False):
            out = out.index_copy(0, chosen, torch.einsum("rcw,rw->rc", torch.einsum("rh,chw->rcw", y, picture), x))
    return out


def axis_weights(boxes: Tensor, size: tuple[int, int], bins: int | tuple[int, int], samples: int,
                 dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Wy (R, bins, H) and Wx (R, bins, W) of boxes (R, 4) over a map of ``size`` (H, W). Each row sums to 1.

    ``bins``: of both axes, or of y and of x."""
    weights = []
    for first, length, count in zip((1, 0), size, (bins, bins) if isinstance(bins, int) else bins):
        steps = (torch.arange(count * samples, device=boxes.device, dtype=dtype) + 0.5) / (count * samples)
        low, high = boxes[:, first : first + 1].to(dtype), boxes[:, first + 2 : first + 3].to(dtype)
        points = ((low + steps * (high - low)) * length - 0.5).clamp(0, length - 1)  # (R, count · samples), in cells
        cells = torch.arange(length, device=boxes.device, dtype=dtype)
        hats = (1 - (points[..., None] - cells).abs()).clamp_min(0)
        weights.append(hats.unflatten(1, (count, samples)).mean(2))
    return weights[0], weights[1]


def _by_map(maps: Tensor, boxes: Tensor, rows: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """Each map (C, H, W) with the numbers of its boxes."""
    if maps.dim() not in (3, 4) or boxes.dim() != 2 or boxes.shape[1] != 4:
        raise InputError(f"maps have the shape {tuple(maps.shape)} and boxes {tuple(boxes.shape)}: (C, H, W) or (B, C, H, W) and (R, 4) are "
                         "needed")
    maps = maps if maps.dim() == 4 else maps[None]
    if rows is None:
        if len(maps) != 1:
            raise InputError(f"there are {len(maps)} maps: rows must say which one each box lies in")
        rows = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return [(maps[number], (rows == number).nonzero().flatten()) for number in rows.unique().tolist()]


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Boxes (R, 4) and (S, 4) to their intersections over unions (R, S); 0 where both are empty."""
    sides = torch.minimum(boxes[:, None, 2:], others[None, :, 2:]) - torch.maximum(boxes[:, None, :2], others[None, :, :2])
    shared = sides.clamp_min(0).prod(-1)
    areas, other_areas = ((part[:, 2:] - part[:, :2]).prod(-1) for part in (boxes, others))
    union = areas[:, None] + other_areas - shared
    return torch.where(union > 0, shared / union.clamp_min(torch.finfo(union.dtype).tiny), 0)


def nms(boxes: Tensor, scores: Tensor, iou: float, count: int | None = None) -> Tensor:
    """Numbers of the boxes (R, 4) that stay, by falling score: a box goes if its IoU with a better one that stays exceeds ``iou``.

    Of equal scores the first comes first. ``count``: the first so many of them alone. Computed in float64.
    """
    left = torch.sort(scores, descending=True, stable=True).indices
    exact, kept = boxes.double(), []
    while len(left) and (count is None or len(kept) < count):
        kept.append(left[0])
        left = left[1:]
        left = left[pairwise_iou(exact[kept[-1]][None], exact[left])[0] <= iou]
    return torch.stack(kept) if kept else left
