"""Ranks, recall, mAP@R, R-Precision, exact R@1 and the ceiling of a score matrix, and what chance gives.

Scores are (I, C): a row an image, a column a caption, higher is better. Two directions: i2t ranks the captions of
each image (caption retrieval), t2i ranks the images of each caption (image retrieval). All numbers but ranks are in
percent. The rules, the same everywhere:

* **Ties count against the query**: a candidate that is not a match and has the match's score stands before it. A
  constant scorer thus gets 0 wherever the gallery holds at least K non-matches, never a lucky number.
* NaN scores raise, because no comparison with NaN is true and every rank would come out as 1.
* Any number of captions an image. An image without captions is no i2t query, but stays in the t2i gallery.

Ranks are counted by comparison: rank = number of candidates that are no match and not below the best match.
No row is sorted, and the working memory is a few MB whatever the size of the matrix.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from itm_lib.files import InputError

KS = (1, 5, 10)
_BLOCK = 2**20  # elements compared at once: small enough for the processor's cache, large enough for NumPy


@dataclass(frozen=True)
class RetrievalMetrics:
    """Recall@K in percent, their sum, and the median and mean rank (1 is best) of both directions."""

    i2t_r1: float
    i2t_r5: float
    i2t_r10: float
    t2i_r1: float
    t2i_r5: float
    t2i_r10: float
    rsum: float
    i2t_median_rank: float
    i2t_mean_rank: float
    t2i_median_rank: float
    t2i_mean_rank: float

    @classmethod
    def from_scores(cls, scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> RetrievalMetrics:
        """Metrics of ``scores`` (I, C), where caption c belongs to image row ``caption_to_image[c]`` (C,).

        i2t takes the best-ranked of an image's captions. The median rank is floor(median of 0-based ranks) + 1, as the
        papers' code has it. Raises :class:`InputError` on NaN and on shapes that do not match.
        """
        return cls.from_ranks(*retrieval_ranks(scores, caption_to_image))

    @classmethod
    def from_ranks(cls, i2t: np.ndarray, t2i: np.ndarray) -> RetrievalMetrics:
        """Metrics of 0-based ranks, one a query: ``i2t`` of images (those with captions), ``t2i`` of captions."""
        recalls = [100.0 * int(np.count_nonzero(ranks < k)) / len(ranks) for ranks in (i2t, t2i) for k in KS]
        places = [value for ranks in (i2t, t2i)
                  for value in (float(np.floor(np.median(ranks)) + 1), float(np.mean(ranks) + 1))]
        return cls(*recalls, sum(recalls), *places)

    @classmethod
    def mean(cls, parts: list[RetrievalMetrics]) -> RetrievalMetrics:
        """The mean of each field over ``parts``, as the folds of COCO 1K are averaged."""
        rows = [part.to_dict() for part in parts]
        return cls(**{name: float(np.mean([row[name] for row in rows])) for name in rows[0]})

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def retrieval_ranks(scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """0-based ranks (i2t of each image with captions, t2i of each caption); see the module's rules."""
    values = score_array(scores)
    images = checked_caption_to_image(caption_to_image, values.shape)
    own = values[images, np.arange(values.shape[1])]                     # (C,) the score of each true pair
    best = np.full(values.shape[0], -np.inf, dtype=values.dtype)         # (I,) the best of an image's captions
    np.maximum.at(best, images, own)
    i2t = np.empty(values.shape[0], dtype=np.int64)
    t2i = np.full(values.shape[1], -1, dtype=np.int64)                   # the match itself is not below itself
    for rows in _row_blocks(values):
        block = values[rows]
        t2i += (block >= own).sum(0, dtype=np.uint32)
        for row, above in enumerate(block >= best[rows, None], rows.start):
            i2t[row] = np.count_nonzero(above)
    i2t -= np.bincount(images[own == best[images]], minlength=len(i2t))  # an image's own captions are not against it
    return i2t[np.bincount(images, minlength=len(i2t)) > 0], t2i


def map_at_r(scores: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> dict[str, float]:
    """mAP@R, R-Precision and R@1 from the exact many-to-many ``truth`` (I, C) bool, in percent, of both directions.

    For a query with R true candidates, P@k the share of true ones among its first k and rel_k whether the k-th is true:
    AP@R = 1/R Σ_{k≤R} P@k rel_k, R-Precision = P@R, and exact R@1 = P@1, whichever of the true ones it is. A tie between a
    true and a false candidate puts the false one first. Queries without a true candidate are left out. Keys: i2t_map_at_r,
    t2i_map_at_r, i2t_r_precision, t2i_r_precision, i2t_exact_r1, t2i_exact_r1.
    """
    values, relevant = score_array(scores), _truth(truth)
    if relevant.shape != values.shape:
        raise InputError(f"scores are {values.shape} but truth is {relevant.shape}; both are images x captions")
    ways = _precisions(values, relevant), _precisions(values.T, relevant.T)
    names = ("map_at_r", "r_precision", "exact_r1")
    return {f"{way}_{name}": found[place] for place, name in enumerate(names) for way, found in zip(("i2t", "t2i"), ways)}


def _precisions(values: np.ndarray, relevant: np.ndarray) -> tuple[float, float, float]:
    """(mAP@R, R-Precision, R@1) in percent; rows are queries."""
    queries, candidates = np.nonzero(relevant)                           # one entry a true pair, sorted by query
    if not len(queries):
        raise InputError("truth marks no pair as true: there is nothing to rank")
    true_scores = values[queries, candidates]
    ahead = np.empty(len(queries), dtype=np.int64)                       # false candidates not below each true one
    step = max(1, _BLOCK // values.shape[1])
    for first in range(0, len(queries), step):
        pairs = slice(first, first + step)
        rows = queries[pairs]
        ahead[pairs] = ((values[rows] >= true_scores[pairs, None]) & ~relevant[rows]).sum(1)
    order = np.lexsort((-true_scores, queries))                          # each query's true candidates, best first
    counts = np.bincount(queries, minlength=len(relevant))
    found = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts) + 1  # 1..R within a query
    rank, total = ahead[order] + found, np.repeat(counts, counts)
    inside = rank <= total
    asked = counts > 0
    precision = np.bincount(queries, weights=inside * found / rank, minlength=len(relevant))[asked] / counts[asked]
    hits = np.bincount(queries, weights=inside, minlength=len(relevant))[asked] / counts[asked]
    return 100.0 * float(precision.mean()), 100.0 * float(hits.mean()), 100.0 * int((rank == 1).sum()) / int(asked.sum())


def ceiling(truth: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> dict[str, float]:
    """The recalls that a perfect matcher reaches: it ranks what is true first, in random order among the true.

    Recall asks for the picture a caption was written for, or for one of the captions written for a picture; where more
    is true than that, even a perfect matcher misses some. Of R true candidates, m of them asked for, the chance that
    the first K hold one is 1 − C(R−m, K) / C(R, K), the hypergeometric distribution's; for a caption m is 1 and the
    chance min(1, K/R). Returns the expected i2t_r1 … t2i_r10 and rsum in percent, in closed form.
    """
    relevant = _truth(truth)
    images = checked_caption_to_image(caption_to_image, relevant.shape)
    false = int((~relevant[images, np.arange(len(images))]).sum())
    if false:
        raise InputError(f"truth says that {false} captions are false of their own image; build the dataset again")
    own = np.bincount(images, minlength=len(relevant))
    asked = own > 0
    i2t = {f"i2t_r{k}": _chance(relevant.sum(1)[asked], own[asked], k) for k in KS}
    t2i = {f"t2i_r{k}": _chance(relevant.sum(0), np.ones(len(images), dtype=np.int64), k) for k in KS}
    return {**i2t, **t2i, "rsum": sum(i2t.values()) + sum(t2i.values())}


def chance(images: int, captions_each: int = 5) -> dict[str, float]:
    """The expected i2t_r1 … t2i_r10 and rsum, in percent, of a random order: of ``images`` pictures with ``captions_each`` captions."""
    captions = images * captions_each
    one = np.ones(1, dtype=np.int64)
    i2t = {f"i2t_r{k}": _chance(captions * one, captions_each * one, k) for k in KS}
    t2i = {f"t2i_r{k}": _chance(images * one, one, k) for k in KS}
    return {**i2t, **t2i, "rsum": sum(i2t.values()) + sum(t2i.values())}


def _chance(true: np.ndarray, own: np.ndarray, k: int) -> float:
    """Mean over queries, in percent, of 1 − C(true−own, k) / C(true, k), as a product of k fractions."""
    missed = np.ones(len(true))
    for drawn in range(k):
        missed *= np.clip(true - own - drawn, 0, None) / np.maximum(true - drawn, 1)
    return 100.0 * float(np.mean(1.0 - missed))


def score_array(scores: Tensor | np.ndarray) -> np.ndarray:
    """``scores`` as a NumPy matrix, checked: two axes, not empty, no NaN. No copy where none is needed."""
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu()
        scores = (scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores).numpy()
    values = np.asarray(scores)
    if values.ndim != 2 or not values.size:
        raise InputError(f"scores have the shape {values.shape}; a matrix of images x captions is needed")
    if values.dtype.kind != "f":
        raise InputError(f"scores are of type {values.dtype}; floating-point numbers are needed")
    bad = sum(int(np.isnan(values[rows]).sum()) for rows in _row_blocks(values))
    if bad:
        raise InputError(f"{bad} of {values.size} scores are NaN: look for infinite losses or empty inputs in the model")
    return values


def _row_blocks(values: np.ndarray) -> list[slice]:
    step = max(1, _BLOCK // values.shape[1])
    return [slice(first, min(first + step, len(values))) for first in range(0, len(values), step)]


def _truth(truth: Tensor | np.ndarray) -> np.ndarray:
    relevant = truth.cpu().numpy() if isinstance(truth, Tensor) else np.asarray(truth)
    if relevant.ndim != 2 or relevant.dtype != np.bool_:
        raise InputError(f"truth is {relevant.dtype} of shape {relevant.shape}; a bool matrix of images x captions is needed")
    return relevant


def checked_caption_to_image(caption_to_image: Tensor | np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """``caption_to_image`` as int64 (C,), checked against a score matrix of ``shape`` (I, C)."""
    images = np.asarray(caption_to_image.cpu() if isinstance(caption_to_image, Tensor) else caption_to_image)
    if images.shape != (shape[1],):
        raise InputError(f"caption_to_image has the shape {images.shape} for {shape[1]} captions; one image a caption is needed")
    if images.dtype.kind not in "iu":
        raise InputError(f"caption_to_image is of type {images.dtype}; row numbers of images are needed")
    if images.min() < 0 or images.max() >= shape[0]:
        worst = int(images.min() if images.min() < 0 else images.max())
        raise InputError(f"caption_to_image names image row {worst}, but the rows are 0..{shape[0] - 1}")
    return images.astype(np.int64)
