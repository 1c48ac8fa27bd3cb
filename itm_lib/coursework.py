"""Checkers of the exercises: ``check_xxx(answer)`` runs a student's function and says what is wrong with it.

A right answer prints one line; anything else raises :class:`NotRight` with one line for the student. Every checker tries
the function on small cases whose values can be worked out on paper, names the mistake where the value is that of a
known one, and ends with random cases against the library, which no typed-in number passes.

To write a checker, call :func:`expect` once a case and :func:`right` at the end.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itm_lib.evaluation.ranking import RetrievalMetrics, ceiling, map_at_r
from itm_lib.evaluation.sets import circular_variance
from itm_lib.features.region_encoder import overlap
from itm_lib.losses import bce_loss, distance_weights, hinge_loss
from itm_lib.models.base import Encoding
from itm_lib.models.dive import compete, set_similarity
from itm_lib.models.hrem import closeness, graph_bias, match_fragments
from itm_lib.models.layers import l2norm
from itm_lib.models.scan import SCAN, SCANConfig


class NotRight(AssertionError):
    """An exercise's answer is missing or wrong. A notebook shows the message alone, without a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [f"Not right yet: {self}"]


def expect(answer: Callable[..., Any], arguments: Sequence[Any], expected: Any, case: str,
           mistakes: Mapping[str, Any] | None = None, tolerance: float = 1e-5) -> None:
    """Call ``answer(*arguments)`` and compare with ``expected``: a number, an array or a tensor of any shape.

    ``case`` says in words what was tried. ``mistakes`` {explanation: the value that a known mistake gives}. Arguments are
    copied, so that an answer that changes them in place is judged by what it returns. Raises :class:`NotRight`.
    """
    name = getattr(answer, "__name__", "the answer")
    try:
        found = answer(*copy.deepcopy(list(arguments)))
    except NotImplementedError:
        raise NotRight(f"{name} is not written yet: put your lines in place of NotImplementedError") from None
    except Exception as error:
        raise NotRight(f"{name} stops with {type(error).__name__} ({error}) on {case}") from error
    if found is None or found is Ellipsis:
        raise NotRight(f"{name} returns {found}: end it with 'return' and the value")
    values, wanted = _array(found, name), _array(expected, "expected")
    if values.shape != wanted.shape:
        raise NotRight(f"{name} returns {_shape(values)} on {case}, the answer is {_shape(wanted)}")
    if np.isnan(values).any() and not np.isnan(wanted).any():
        raise NotRight(f"{name} returns NaN on {case}: look for 0/0, or for infinity minus infinity")
    if np.allclose(values, wanted, rtol=tolerance, atol=tolerance):
        return
    for explanation, value in (mistakes or {}).items():
        value = _array(value, "mistake")
        if value.shape == values.shape and np.allclose(values, value, rtol=tolerance, atol=tolerance):
            raise NotRight(f"{name} gives {_show(values)} on {case}, the answer is {_show(wanted)}: {explanation}")
    raise NotRight(f"{name} gives {_show(values)} on {case}, the answer is {_show(wanted)}")


def right(answer: Callable[..., Any]) -> None:
    """Say that every case of ``answer`` came out right."""
    print(f"{getattr(answer, '__name__', 'the answer')}: right")


def _array(value: Any, name: str) -> np.ndarray:
    try:
        return np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=float)
    except (TypeError, ValueError):
        raise NotRight(f"{name} returns a {type(value).__name__}: return a number, an array or a tensor") from None


def _shape(values: np.ndarray) -> str:
    return "one number" if values.ndim == 0 else f"an array of shape {values.shape}"


def _show(values: np.ndarray) -> str:
    return f"{float(values):.4g}" if values.ndim == 0 else np.array2string(values, precision=3, threshold=12).replace("\n", "")


# ---- 00 Image-text retrieval -------------------------------------------------------------------------------------------

def check_caption_recall(answer: Callable[[Tensor, Tensor, int], float]) -> None:
    """``answer(scores (I, C), caption_to_image (C,), k)``: i2t recall@k in percent, ties against the query."""
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.8, 0.3, 0.2, 0.7]])
    owners = torch.tensor([0, 0, 1, 1])
    expect(answer, (scores, owners, 1), 50.0, "a picture found by its second caption and a picture missed",
           {"that is a share, recall is in percent": 0.5,
            "a picture counts as found when the best of its captions is in the first k, not only its first caption": 0.0,
            "that is t2i: the queries of i2t are the pictures, so each row is ranked": 75.0})
    tied = torch.tensor([[0.5, 0.5, 0.1, 0.1], [0.1, 0.1, 0.9, 0.2]])
    expect(answer, (tied, torch.tensor([0, 1, 1, 1]), 1), 50.0, "a tie between a right and a wrong caption",
           {"ties count against the query: a wrong caption with the same score stands before the right one": 100.0})
    expect(answer, (torch.zeros(4, 8), torch.arange(8) // 2, 5), 0.0, "a scorer that gives every pair the same score",
           {"ties count against the query, so a constant scorer finds nothing": 100.0})
    expect(answer, (torch.tensor([[0.7, 0.7, 0.1], [0.0, 0.1, 0.9]]), torch.tensor([0, 0, 1]), 1), 100.0,
           "two captions of one picture that tie with each other",
           {"a picture's own captions never stand against it": 50.0})
    for seed, k in ((0, 1), (1, 5), (2, 10)):
        random, owners = torch.randint(0, 30, (12, 36), generator=_seed(seed)) / 30, torch.arange(36) // 3
        metrics = RetrievalMetrics.from_scores(random, owners).to_dict()
        expect(answer, (random, owners, k), metrics[f"i2t_r{k}"], f"a random 12 × 36 matrix with ties, k = {k}")
    right(answer)


def check_hardest_hinge(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """``answer(scores (B, B), positive_mask (B, B) bool, margin)``: mean over pairs, the diagonal; i2t plus t2i."""
    scores = torch.tensor([[0.8, 0.7, 0.1], [0.45, 0.6, 0.5], [0.2, 0.4, 0.9]])
    expect(answer, (scores, torch.eye(3, dtype=torch.bool), 0.2), 0.5 / 3, "three pairs",
           {"the loss is the mean over the pairs, not their sum": 0.5,
            "keep the hardest negative of each row and of each column, not all of them": 0.55 / 6,
            "keep the hardest negative of each row and of each column, and take the mean over the pairs": 0.55,
            "the columns are missing: add the hardest picture of each caption (t2i)": 0.2 / 3,
            "the rows are missing: add the hardest caption of each picture (i2t)": 0.3 / 3,
            "a cost below 0 must be cut to 0": -0.05})
    repeated = torch.eye(3, dtype=torch.bool)
    repeated[0, 1] = repeated[1, 0] = True
    expect(answer, (scores, repeated, 0.2), 1 / 30, "three pairs, of which the first two share their picture",
           {"use positive_mask: a caption of the same picture is no negative": 0.5 / 3})
    expect(answer, (torch.full((4, 4), 0.3), torch.eye(4, dtype=torch.bool), 0.2), 0.4, "a collapsed model, margin 0.2",
           {"a collapsed model costs the margin twice, once in each direction": 0.2,
            "mask the positives before you take the hardest: a pair is not its own negative": 0.0})
    for seed in range(3):
        random, ids = torch.randn(8, 8, generator=_seed(seed)), torch.randint(0, 6, (8,), generator=_seed(seed + 10))
        mask, diagonal = ids[:, None] == ids[None, :], torch.arange(8)
        expect(answer, (random, mask, 0.3), hinge_loss(random, (diagonal, diagonal), mask, 0.3)["loss"],
               "a random 8 × 8 matrix with repeated pictures, margin 0.3",
               {"use positive_mask: a caption of the same picture is no negative":
                hinge_loss(random, (diagonal, diagonal), torch.eye(8, dtype=torch.bool), 0.3)["loss"]})
    right(answer)


def check_map_at_r(answer: Callable[[Tensor, Tensor], float]) -> None:
    """``answer(scores (I, C), truth (I, C) bool)``: t2i mAP@R in percent; scores have no ties."""
    scores = torch.tensor([[0.9, 0.2], [0.8, 0.9], [0.7, 0.3], [0.1, 0.6]])
    truth = torch.tensor([[True, False], [False, True], [True, False], [True, False]])
    expect(answer, (scores, truth), 100 * (5 / 9 + 1) / 2, "a caption true of 3 pictures and a caption true of 1",
           {"that is R-Precision: AP@R also asks where in the first R the true pictures stand": 100 * (2 / 3 + 1) / 2,
            "divide by R, the number of true pictures, not by the number found": 100 * (5 / 6 + 1) / 2,
            "stop after the first R pictures: a true one below them adds nothing": 100 * (29 / 36 + 1) / 2,
            "that is a share, mAP@R is in percent": (5 / 9 + 1) / 2})
    for seed in range(3):
        random, true = torch.rand(9, 20, generator=_seed(seed)), torch.rand(9, 20, generator=_seed(seed + 10)) < 0.25
        true[torch.arange(20) % 9, torch.arange(20)] = True
        metrics = map_at_r(random, true)
        expect(answer, (random, true), metrics["t2i_map_at_r"], "a random 9 × 20 matrix",
               {"that is i2t: in t2i every caption, a column, is a query": metrics["i2t_map_at_r"],
                "that is R-Precision": metrics["t2i_r_precision"]})
    right(answer)


def check_recall_ceiling(answer: Callable[[Tensor, int], float]) -> None:
    """``answer(truth (I, C) bool, k)``: the t2i recall@k, in percent, that a perfect matcher reaches on average."""
    truth = torch.zeros(6, 3, dtype=torch.bool)
    truth[0, 0] = truth[:2, 1] = True
    truth[:4, 2] = True
    mistakes = {"a perfect matcher cannot know which of the true pictures is asked for, so it misses some": 100.0,
                "that is the worst case; on average k of the R true pictures are in the first k": 100 / 3,
                "that is a share, recall is in percent": (1 + 1 / 2 + 1 / 4) / 3}
    expect(answer, (truth, 1), 100 * (1 + 1 / 2 + 1 / 4) / 3, "captions true of 1, 2 and 4 pictures, k = 1", mistakes)
    expect(answer, (truth, 2), 100 * (1 + 1 + 1 / 2) / 3, "captions true of 1, 2 and 4 pictures, k = 2",
           {"no chance is above 1: a caption true of fewer than k pictures is always answered": 100 * (2 + 1 + 1 / 2) / 3,
            "k counts too: with k places the chance is k/R": 100 * (1 + 1 / 2 + 1 / 4) / 3})
    for seed, k in ((0, 1), (1, 5), (2, 10)):
        true, owners = torch.rand(25, 40, generator=_seed(seed)) < 0.3, torch.arange(40) % 25
        true[owners, torch.arange(40)] = True
        best = ceiling(true, owners)
        expect(answer, (true, k), best[f"t2i_r{k}"], f"a random 25 × 40 truth, k = {k}",
               {"average over the captions (the columns), they are the queries of t2i": float((k / true.sum(1)).clamp(max=1).mean() * 100)})
    right(answer)


# ---- 01 From pixels to regions ------------------------------------------------------------------------------------------

def check_pooled_convolution(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``answer(picture (H, W), kernel (k, k))``: slide the kernel over the picture, ReLU, then the mean of all places."""
    def pooled(picture: Tensor, kernel: Tensor, relu: bool = True, pad: int = 0) -> Tensor:
        values = torch.nn.functional.conv2d(picture[None, None], kernel[None, None], padding=pad)
        return (values.relu() if relu else values).mean()

    picture = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 3.0]])
    expect(answer, (picture, torch.tensor([[1.0, -1.0], [0.0, 0.0]])), 1.0, "a picture of 2 × 3 and a kernel of 2 × 2",
           {"ReLU makes negative values 0, before the mean": 0.5,
            "that is the largest place, or the sum of all; the mean over the places is asked for": 2.0,
            "a convolution layer does not flip its kernel": pooled(picture, torch.tensor([[0.0, 0.0], [-1.0, 1.0]]))})
    expect(answer, (-picture, torch.tensor([[1.0]])), 0.0, "a picture without a positive value and a kernel of one 1",
           {"ReLU makes negative values 0, before the mean": float(-picture.mean())})
    for seed in range(3):
        picture, kernel = torch.randn(7, 9, generator=_seed(seed)), torch.randn(3, 3, generator=_seed(seed + 10))
        expect(answer, (picture, kernel), pooled(picture, kernel), "a random picture of 7 × 9 and a kernel of 3 × 3",
               {"ReLU belongs between the convolution and the mean": pooled(picture, kernel, relu=False),
                "ReLU comes before the mean, not after it": pooled(picture, kernel, relu=False).relu(),
                "the kernel stays inside the picture: 5 × 7 places, no padding": pooled(picture, kernel, pad=1),
                "a convolution layer does not flip its kernel": pooled(picture, kernel.flip(0, 1))})
    right(answer)


def check_box_iou(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``answer(boxes (n, 4), others (m, 4))``: intersection over union of every pair, (n, m)."""
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    others = torch.tensor([[0.25, 0.0, 0.75, 0.5], [0.6, 0.6, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    expect(answer, (boxes, others), [[1 / 3, 0.0, 0.25]], "a box that overlaps one box, misses one and lies in one",
           {"boxes that miss each other share nothing: cut negative sides to 0": [[1 / 3, 0.01 / 0.4, 0.25]],
            "the union counts what is shared once: area + area - intersection": [[0.25, 0.0, 0.2]],
            "that is the share of the first box; divide by the union": [[0.5, 0.0, 1.0]],
            "that is the intersection; divide it by the union": [[0.125, 0.0, 0.25]]})
    for seed in range(3):
        corners = [torch.rand(n, 2, 2, generator=_seed(seed + n)).sort(1).values.reshape(n, 4) for n in (5, 8)]
        expect(answer, corners, overlap(*(part.numpy() for part in corners))[0], "5 and 8 random boxes")
    right(answer)


def check_nearest_regions(answer: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """``answer(features (N, D), owners (N,), k)``: the k nearest regions of other pictures by cosine, nearest first, (N, k)."""
    def nearest(features: Tensor, owners: Tensor, k: int, cosine: bool = True, others: bool = True, flip: bool = False) -> Tensor:
        unit = l2norm(features, 1) if cosine else features
        scores = unit @ unit.T
        if others:
            scores = scores.masked_fill(owners[:, None] == owners[None, :], torch.inf if flip else -torch.inf)
        return scores.topk(k, dim=1, largest=not flip).indices

    features = torch.tensor([[1.0, 0.1], [1.0, 0.0], [0.9, 0.2], [4.0, 4.0], [0.0, 1.0]])
    owners = torch.tensor([0, 0, 1, 2, 2])
    mistakes = {
        "a region's own picture does not count: look for regions with another owner": nearest(features, owners, 1, others=False),
        "compare directions: divide each vector by its length first": nearest(features, owners, 1, cosine=False),
        "those are the farthest; a large cosine is near": nearest(features, owners, 1, flip=True)}
    expect(answer, (features, owners, 1), nearest(features, owners, 1), "five regions of three pictures, k = 1", mistakes)
    for seed, k in ((0, 1), (1, 3), (2, 5)):
        random, owners = torch.randn(24, 6, generator=_seed(seed)), torch.arange(24) // 4
        expect(answer, (random, owners, k), nearest(random, owners, k), f"24 random regions of six pictures, k = {k}",
               {"compare directions: divide each vector by its length first": nearest(random, owners, k, cosine=False),
                "a region's own picture does not count": nearest(random, owners, k, others=False),
                "those are the farthest; a large cosine is near": nearest(random, owners, k, flip=True)})
    right(answer)


def check_interpolation_weights(answer: Callable[[Tensor, int], Tensor]) -> None:
    """``answer(places (n,), size)``: (n, size), a row a place: how much each of ``size`` cells counts at that place.

    Places run from 0, the left edge of the first cell, to ``size``, the right edge of the last; cell i has its centre at
    i + 0.5. Between two centres the two cells share the weight linearly; beyond the outermost centres the outermost cell has all.
    """
    def weights(places: Tensor, size: int, half: float = 0.5, clamped: bool = True, nearest: bool = False) -> Tensor:
        at = places - half
        at = at.clamp(0, size - 1) if clamped else at
        distance = (at[:, None] - torch.arange(size)).abs()
        return torch.nn.functional.one_hot(distance.argmin(1), size).float() if nearest else (1 - distance).clamp(min=0)

    def mistakes(places: Tensor, size: int) -> dict[str, Tensor]:
        return {"the centre of cell i is at i + 0.5, so half a cell is to be taken off first": weights(places, size, half=0.0),
                "beyond the outermost centres the outermost cell has all the weight: every row sums to 1": weights(places, size, clamped=False),
                "that is the nearest cell alone; two neighbours share the weight by distance": weights(places, size, nearest=True),
                "a row a place and a column a cell, not the other way round": weights(places, size).T}

    for places, size, case in (([1.25, 1.9, 2.75], 4, "the places 1.25, 1.9 and 2.75 of 4 cells"), ([0.1, 2.9], 3, "two places near the ends of 3 cells")):
        places = torch.tensor(places)
        expect(answer, (places, size), weights(places, size), case, mistakes(places, size))
    for seed, size in ((0, 2), (1, 5), (2, 9)):
        places = torch.rand(7, generator=_seed(seed)) * size
        expect(answer, (places, size), weights(places, size), f"7 random places of {size} cells", mistakes(places, size))
    right(answer)


def check_kept_boxes(answer: Callable[[Tensor, Tensor, float], Sequence[int]]) -> None:
    """``answer(boxes (n, 4), scores (n,), threshold)``: the numbers of the boxes that non-maximum suppression keeps, the surest first."""
    def kept(boxes: Tensor, scores: Tensor, threshold: float, greedy: bool = True, last: bool = False, sign: int = -1) -> list[int]:
        iou, order = overlap(boxes.numpy(), boxes.numpy())[0], np.argsort(sign * scores.numpy(), kind="stable").tolist()
        left: list[int] = []
        for place, row in enumerate(order):
            against = (left[-1:] if last else left) if greedy else order[:place]
            if all(iou[row, other] <= threshold for other in against):
                left.append(row)
        return left

    def mistakes(boxes: Tensor, scores: Tensor, threshold: float) -> dict[str, list[int]]:
        return {"a box that was thrown away throws away no other": kept(boxes, scores, threshold, greedy=False),
                "compare with every box kept so far, not with the last one alone": kept(boxes, scores, threshold, last=True),
                "begin with the surest box, not with the least sure": kept(boxes, scores, threshold, sign=1),
                "the kept boxes stand by falling score, the surest first": sorted(kept(boxes, scores, threshold)),
                "those are all the boxes: throw away what overlaps a surer, kept box by more than the threshold":
                    scores.argsort(descending=True).tolist()}

    def try_case(boxes: Tensor, scores: Tensor, threshold: float, case: str) -> None:
        def padded(rows: Any) -> Any:  # answers of different lengths can be compared: -1 fills the end
            return rows if rows is None or rows is Ellipsis else [*map(int, rows), *[-1] * (len(boxes) - len(rows))]

        wanted = {why: padded(rows) for why, rows in mistakes(boxes, scores, threshold).items()}
        expect(wraps(answer)(lambda *arguments: padded(answer(*arguments))), (boxes, scores, threshold), padded(kept(boxes, scores, threshold)),
               f"{case} (-1 stands for no box)", wanted)

    row = torch.tensor([[0.2, 0.0, 0.6, 1.0], [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0], [0.35, 0.0, 0.75, 1.0]])
    try_case(row, torch.tensor([0.7, 0.9, 0.5, 0.6]), 0.3, "four boxes in a row, threshold 0.3")
    try_case(row, torch.tensor([0.9, 0.8, 0.95, 0.1]), 0.3, "the same boxes with other scores")
    for seed, threshold in ((0, 0.2), (1, 0.4), (2, 0.6)):
        corners = torch.rand(14, 2, 2, generator=_seed(seed)).sort(1).values.reshape(14, 4)
        try_case(corners, torch.rand(14, generator=_seed(seed + 10)), threshold, f"14 random boxes, threshold {threshold}")
    right(answer)


# ---- 02 SCAN ------------------------------------------------------------------------------------------------------------

def check_normalise_raw(answer: Callable[[Tensor], Tensor]) -> None:
    """``answer(raw (R, W))``: LeakyReLU(0.1), then each region's row divided by its length over the words."""
    squash = lambda values: torch.nn.functional.leaky_relu(values, 0.1)
    raw = torch.tensor([[3.0, 4.0, 0.0], [-10.0, 0.0, 0.0]])
    expect(answer, (raw,), [[0.6, 0.8, 0.0], [-1.0, 0.0, 0.0]], "two regions and three words",
           {"the sum of squares runs over the words, that is along each region's row": l2norm(squash(raw), 0),
            "squash before you normalise, and keep a tenth of what is negative": [[0.6, 0.8, 0.0], [-0.1, 0.0, 0.0]],
            "LeakyReLU keeps a tenth of what is negative": [[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]],
            "the row is squashed but not normalised": [[3.0, 4.0, 0.0], [-1.0, 0.0, 0.0]]})
    expect(answer, (torch.zeros(2, 2),), torch.zeros(2, 2), "a region that matches nothing (a row of zeros)")
    for seed in range(3):
        random = torch.randn(12, 7, generator=_seed(seed))
        expect(answer, (random,), l2norm(squash(random), 1), "a random 12 × 7 matrix",
               {"the sum of squares runs over the words, that is along each region's row": l2norm(squash(random), 0),
                "LeakyReLU comes first: a tenth of what is negative": l2norm(random, 1)})
    right(answer)


def check_attended_cosine(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(attention (R, W), raw (R, W), gram (R, R))``: the cosine (W,) of each unit-length word with its Σ_s β_st c_s."""
    attention, raw = torch.tensor([[1.0, 0.5], [0.0, 0.5]]), torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    expect(answer, (attention, raw, torch.eye(2)), [0.8, 0.7 / 0.5**0.5], "two regions at right angles and two words",
           {"that is q · a alone: divide by the length of a": [0.8, 0.7],
            "βᵀGβ is the length squared: take its root": [0.8, 1.4],
            "sum over the regions: each word has attention of its own": [0.6, 0.8]})
    for seed in range(3):
        context = torch.nn.functional.normalize(torch.randn(9, 5, generator=_seed(seed)), dim=1)
        query = torch.nn.functional.normalize(torch.randn(4, 5, generator=_seed(seed + 10)), dim=1)
        raw, gram = context @ query.T, context @ context.T
        attention = (9 * raw).softmax(0)
        dots, squared = (attention * raw).sum(0), (attention * (gram @ attention)).sum(0)
        expect(answer, (attention, raw, gram), torch.cosine_similarity(query, attention.T @ context, dim=1),
               "9 random regions and 4 random words",
               {"the regions are not at right angles: the Gram matrix belongs between the two β": dots / attention.norm(dim=0),
                "that is q · a alone: divide by the length of a": dots,
                "βᵀGβ is the length squared: take its root": dots / squared})
    right(answer)


def check_lse_pooling(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """``answer(relevance (C, W), mask (C, W) bool, lambda_lse)``: (1/λ) log Σ exp(λ r) over the real words, (C,)."""
    lse = lambda values, real, k: torch.logsumexp((k * values).masked_fill(~real, -torch.inf), 1) / k
    everything = torch.ones(2, 3, dtype=torch.bool)
    relevance = torch.tensor([[0.5, 0.1, 0.0], [0.5, 0.1, 0.9]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    pooled = lse(relevance, mask, 2.0)
    expect(answer, (relevance, mask, 2.0), pooled, "captions of two and of three words, λ = 2",
           {"the padded word counts: exp(0) is 1, not 0": lse(relevance, everything, 2.0),
            "divide by λ at the end": 2 * pooled,
            "λ belongs inside the exponential, too": lse(relevance, mask, 1.0),
            "that is the mean of the words, AVG": (relevance * mask).sum(1) / mask.sum(1),
            "LSE is a sum of exponentials, not divided by the number of words": pooled - mask.sum(1).log() / 2})
    expect(answer, (torch.ones(1, 1), torch.tensor([[True]]), 500.0), [1.0], "one word of relevance 1, λ = 500",
           {"exp(500) does not fit into float32: use torch.logsumexp": [float("inf")]})
    for seed in range(3):
        random, lengths = torch.randn(6, 8, generator=_seed(seed)), torch.randint(1, 9, (6,), generator=_seed(seed + 10))
        real = torch.arange(8) < lengths[:, None]
        expect(answer, (random, real, 6.0), lse(random, real, 6.0), "6 random captions, λ = 6",
               {"the padded words count": lse(random, torch.ones_like(real), 6.0)})
    right(answer)


def check_sum_max(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(regions (I, R, d), words (C, W, d), mask (C, W) bool)``: t-i Sum-Max (I, C), Σ over words of max over regions."""
    regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.6, 0.8]]])
    words = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [5.0, 5.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    expect(answer, (regions, words, mask), [[2.0, 0.0], [1.8, -0.6]], "two pictures and two captions, the last word is padding",
           {"the padded word counts": [[2.0, 5.0], [1.8, 6.4]],
            "that is the other direction: each word takes its best region, then add up the words": [[2.0, -1.0], [1.8, -1.6]],
            "add up the words, do not average them": [[1.0, 0.0], [0.9, -0.6]]})
    for seed in range(3):
        regions = torch.nn.functional.normalize(torch.randn(3, 5, 4, generator=_seed(seed)), dim=-1)
        words = torch.nn.functional.normalize(torch.randn(6, 7, 4, generator=_seed(seed + 10)), dim=-1)
        mask = torch.arange(7) < torch.randint(1, 8, (6,), generator=_seed(seed + 20))[:, None]
        config = {"region_dim": 4, "vocab_size": 4, "embed_dim": 4, "attention": "none", "aggregation": "sum"}
        sides = Encoding(regions, torch.ones(3, 5, dtype=torch.bool)), Encoding(words, mask)
        scores = {way: SCAN(SCANConfig(direction=way, **config)).similarity(*sides) for way in ("t2i", "i2t")}
        expect(answer, (regions, words, mask), scores["t2i"], "3 random pictures and 6 random captions",
               {"that is the other direction: each word takes its best region, then add up the words": scores["i2t"]})
    right(answer)


# ---- 03 CAMP ------------------------------------------------------------------------------------------------------------

def check_region_messages(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(regions (R, d), words (W, d), mask (W,) bool)``: each region's message, softmax(v · t / √d) over the real words."""
    def messages(regions: Tensor, words: Tensor, mask: Tensor, scale: bool = True, axis: int = 1) -> Tensor:
        logits = regions @ words.T / (regions.shape[1] ** 0.5 if scale else 1)
        return logits.masked_fill(~mask, -torch.inf).softmax(axis).nan_to_num() @ words

    def zeros_for_padding(regions: Tensor, words: Tensor, mask: Tensor) -> Tensor:
        return (regions @ words.T / regions.shape[1] ** 0.5 * mask).softmax(1) @ words

    def mistakes(regions: Tensor, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        every = torch.ones_like(mask)
        return {"the padded word takes part": messages(regions, words, every),
                "a padded word needs a logit of -inf: exp(0) is 1, not 0": zeros_for_padding(regions, words, mask),
                "the softmax runs over the words, one a region": messages(regions, words, mask, axis=0),
                "divide the products by √d": messages(regions, words, mask, scale=False),
                "that is the mean of the words: their weights come from the products with the region":
                (words * mask[:, None]).sum(0).expand_as(regions) / mask.sum()}

    regions = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    words, mask = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]), torch.tensor([True, True, False])
    alone = words[:2], mask[:2]
    expect(answer, (regions, *alone), messages(regions, *alone), "three regions and two words", mistakes(regions, *alone))
    expect(answer, (regions, words, mask), messages(regions, words, mask), "the same with a third word, which is padding",
           mistakes(regions, words, mask))
    for seed in range(3):
        regions, words = torch.randn(5, 4, generator=_seed(seed)), torch.randn(7, 4, generator=_seed(seed + 10))
        mask = torch.arange(7) < 3 + seed
        expect(answer, (regions, words, mask), messages(regions, words, mask), "5 random regions and 7 words, some of them padding",
               mistakes(regions, words, mask))
    right(answer)


def check_gates(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``answer(coefficients (R, W), products (R, W))``: the scalar gates σ(v · m) (R,) of the messages m = coefficients @ words,
    whose products v · t are given."""
    def gates(coefficients: Tensor, products: Tensor, axis: int = 1) -> Tensor:
        return (coefficients * products).sum(axis).sigmoid()

    def mistakes(coefficients: Tensor, products: Tensor) -> dict[str, Tensor]:
        logits = coefficients * products
        return {"that is v · m: a gate is σ of it, between 0 and 1": logits.sum(1),
                "there is one gate a region: add up over the words": gates(coefficients, products, axis=0),
                "the logit of a gate is the sum over the words, not their mean": logits.mean(1).sigmoid(),
                "σ comes last, after the sum over the words": logits.sigmoid().sum(1),
                "that leaves out how much of each word is in the message": products.sum(1).sigmoid(),
                "a gate is no softmax: each region has its own σ": logits.sum(1).softmax(0)}

    coefficients, products = torch.tensor([[0.75, 0.25], [0.5, 0.5]]), torch.tensor([[4.0, -2.0], [-6.0, 1.0]])
    expect(answer, (coefficients, products), [torch.tensor(2.5).sigmoid(), torch.tensor(-2.5).sigmoid()],
           "two regions and two words", mistakes(coefficients, products))
    for seed in range(3):
        coefficients = torch.randn(4, 6, generator=_seed(seed)).softmax(1)
        regions, words = torch.randn(4, 8, generator=_seed(seed + 10)), torch.randn(6, 8, generator=_seed(seed + 20))
        wanted = (regions * (coefficients @ words)).sum(1).sigmoid()
        expect(answer, (coefficients, regions @ words.T), wanted, "4 random regions and 6 words", mistakes(coefficients, regions @ words.T))
    right(answer)


def check_gated_fusion(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(regions (R, d), messages (R, d), weight (d, 2d))``: ReLU(F g [v; m]) + v with g = σ(v · m), (R, d)."""
    def fused(v: Tensor, m: Tensor, weight: Tensor, gated: str = "both", residual: bool = True, late: bool = False) -> Tensor:
        gate = (v * m).sum(1, keepdim=True).sigmoid()
        own, message = v * (gate if gated == "both" else 1), m * (1 if gated == "none" else gate)
        mapped = torch.cat([own, message], 1) @ weight.T
        if late:
            return (mapped + v).relu()
        return mapped.relu() + (v if residual else 0)

    def mistakes(v: Tensor, m: Tensor, weight: Tensor) -> dict[str, Tensor]:
        gate = (v * m).sum(1, keepdim=True).sigmoid()
        return {"the residual is missing: add the region itself": fused(v, m, weight, residual=False),
                "the gate is missing": fused(v, m, weight, gated="none"),
                "the gate belongs to both halves of [v; m]": fused(v, m, weight, gated="message"),
                "the residual comes after ReLU, so that it keeps its negative numbers": fused(v, m, weight, late=True),
                "the residual is not gated: a closed gate leaves the region as it is":
                gate * (fused(v, m, weight, gated="none", residual=False) + v),
                "ReLU is missing": torch.cat([v, m], 1) * gate @ weight.T + v,
                "first the region, then its message": fused(m, v, weight, residual=False) + v}

    weight = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])          # F [v; m] = v + m
    regions, messages = torch.tensor([[2.0, -1.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.5], [-2.0, 1.0]])
    expect(answer, (regions, messages, weight), fused(regions, messages, weight), "two regions, with F [v; m] = v + m",
           mistakes(regions, messages, weight))
    closed = torch.tensor([[20.0, 20.0]])
    expect(answer, (closed, -closed, weight), closed, "a region whose message says the opposite", mistakes(closed, -closed, weight))
    for seed in range(3):
        regions, messages = (0.7 * torch.randn(5, 4, generator=_seed(seed + offset)) for offset in (0, 10))
        weight = torch.randn(4, 8, generator=_seed(seed + 20))
        expect(answer, (regions, messages, weight), fused(regions, messages, weight), "5 random regions and messages",
               mistakes(regions, messages, weight))
    right(answer)


def check_hardest_bce(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """``answer(scores (B, B) in [0, 1], positive_mask (B, B) bool, eps)``: mean over pairs, the diagonal, of
    -(2 log s_ii + log(1 - hardest of the row) + log(1 - hardest of the column)), scores clamped to [eps, 1 - eps]."""
    def bce(scores: Tensor, mask: Tensor, eps: float, twice: float = 2, both: bool = True, pick: str = "amax",
            pool: Callable[[Tensor], Tensor] = torch.mean) -> Tensor:
        scores = scores.clamp(eps, 1 - eps)
        foreign = -torch.log1p(-scores)
        lowest = 0.0 if pick == "amax" else torch.inf
        terms = [getattr(foreign.masked_fill(mask, lowest), pick)(axis) for axis in ((1, 0) if both else (1,))]
        return twice * pool(-scores.diagonal().log()) + sum(map(pool, terms))

    def mistakes(scores: Tensor, mask: Tensor, eps: float) -> dict[str, Tensor]:
        own = torch.eye(len(scores), dtype=torch.bool)
        return {"the positive term counts twice, as there are two negatives": bce(scores, mask, eps, twice=1),
                "that is the easiest negative: the hardest has the largest score, and so the largest cost": bce(scores, mask, eps, pick="amin"),
                "the hardest picture of each caption, in the columns, is missing": bce(scores, mask, eps, both=False),
                "the loss is the mean over the pairs, not their sum": bce(scores, mask, eps, pool=torch.sum),
                "use positive_mask: a caption of the same picture is no negative": bce(scores, own, eps),
                "without the clamp log(0) is -infinity": torch.tensor(torch.inf),
                "mask the positives before you take the hardest": bce(scores, torch.zeros_like(mask), eps)}

    scores, alone = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.5, 0.6], [0.3, 0.7, 0.8]]), torch.eye(3, dtype=torch.bool)
    expect(answer, (scores, alone, 1e-6), bce(scores, alone, 1e-6), "three pairs", mistakes(scores, alone, 1e-6))
    expect(answer, (torch.full((4, 4), 0.5), torch.eye(4, dtype=torch.bool), 1e-6), 4 * np.log(2), "a collapsed model, every score 0.5",
           mistakes(torch.full((4, 4), 0.5), torch.eye(4, dtype=torch.bool), 1e-6))
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    expect(answer, (sure, torch.eye(2, dtype=torch.bool), 1e-3), bce(sure, torch.eye(2, dtype=torch.bool), 1e-3),
           "scores of exactly 0 and 1, eps = 0.001", mistakes(sure, torch.eye(2, dtype=torch.bool), 1e-3))
    for seed in range(3):
        random, ids = torch.rand(8, 8, generator=_seed(seed)), torch.randint(0, 5, (8,), generator=_seed(seed + 10))
        mask, diagonal = ids[:, None] == ids[None, :], torch.arange(8)
        expect(answer, (random, mask, 1e-6), bce_loss(random, (diagonal, diagonal), mask)["loss"],
               "a random 8 × 8 matrix with repeated pictures", mistakes(random, mask, 1e-6))
    right(answer)


# ---- 04 HREM ------------------------------------------------------------------------------------------------------------

def check_closeness(answer: Callable[[Tensor, float], Tensor]) -> None:
    """``answer(embeddings (N, d), sigma)``: the intra-modal relevance exp(-‖v_i - v_j‖ / σ), (N, N), exactly 1 on the diagonal."""
    def mistakes(x: Tensor, sigma: float) -> dict[str, Tensor]:
        distances = torch.linalg.vector_norm(x[:, None] - x[None], dim=2)
        rounded = torch.cdist(x, x, compute_mode="use_mm_for_euclid_dist")
        return {"the distance is not squared": (-(distances**2) / sigma).exp(),
                "divide the distance by σ": (-distances).exp(),
                "the sign is missing: what is near has 1, what is far nearly 0": (distances / sigma).exp(),
                "that is the distance; the relevance is exp(-distance / σ)": distances,
                "those are dot products; distances are asked for": x @ x.T,
                "the diagonal must be exactly 1: torch.cdist takes ‖x‖² + ‖y‖² - 2 x·y from 26 rows on, which rounds": (-rounded / sigma).exp()}

    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    expect(answer, (points, 4.0), closeness(points, points, 4.0), "three points, two of them equal, σ = 4", mistakes(points, 4.0))
    for seed, sigma in ((0, 1.0), (1, 0.5)):
        random = torch.nn.functional.normalize(torch.randn(6, 8, generator=_seed(seed)), dim=1)
        expect(answer, (random, sigma), closeness(random, random, sigma), f"6 random embeddings, σ = {sigma:g}", mistakes(random, sigma))
    many = 20 * torch.nn.functional.normalize(torch.randn(60, 64, generator=_seed(2)), dim=1)
    expect(answer, (many, 1.0), closeness(many, many, 1.0), "60 embeddings of length 20 in float32", mistakes(many, 1.0))
    right(answer)


def check_match_vector(answer: Callable[[Tensor, int], Tensor]) -> None:
    """``answer(cosines (R, W), topk)``: q (topk,) of t2i for one pair: LeakyReLU(0.1), each region's row divided by its length over
    the words, the best region of each word, the topk largest of these, falling, and 0 where there are fewer words."""
    def vector(cosines: Tensor, topk: int, over: int = 1, best: int = 0, squash: bool = True, norm: bool = True, falling: bool = True) -> Tensor:
        values = torch.nn.functional.leaky_relu(cosines, 0.1) if squash else cosines
        values = values / torch.linalg.vector_norm(values, dim=over, keepdim=True).clamp(min=1e-12) if norm else values
        found = values.amax(best)
        found = (found.sort(descending=True).values if falling else found)[:topk]
        return torch.nn.functional.pad(found, (0, topk - len(found)))

    def mistakes(cosines: Tensor, topk: int) -> dict[str, Tensor]:
        wanted, words = vector(cosines, topk), min(topk, cosines.shape[1])
        return {"the length of a region's row runs over the words": vector(cosines, topk, over=0),
                "in t2i every word takes its best region; that is every region's best word": vector(cosines, topk, best=1),
                "each region's row must be divided by its length": vector(cosines, topk, norm=False),
                "LeakyReLU comes first: a tenth of what is negative": vector(cosines, topk, squash=False),
                "sort them, the largest first": vector(cosines, topk, falling=False),
                "the largest comes first": wanted[:words].flip(0),
                "where there are fewer words than K the missing entries are 0": wanted[:words]}

    cosines = torch.tensor([[0.6, 0.8, 0.0], [0.0, -0.5, 0.9]])
    for topk in (2, 5):
        try:
            expect(answer, (cosines, topk), vector(cosines, topk), f"two regions and three words, K = {topk}", mistakes(cosines, topk))
        except NotRight as problem:
            if topk > 3 and "returns an array" in str(problem):
                raise NotRight(f"{problem}: where there are fewer words than K the missing entries are 0") from None
            raise
    for seed, topk in ((0, 3), (1, 10)):
        regions, words = (torch.nn.functional.normalize(torch.randn(number, 8, generator=_seed(seed + number)), dim=1) for number in (6, 5))
        full = [torch.ones(1, len(part), dtype=torch.bool) for part in (regions, words)]
        wanted = match_fragments(regions[None], full[0], words[None], full[1], full[1], topk)[1].vector[0, 0]
        expect(answer, (regions @ words.T, topk), wanted, f"6 random regions and 5 words, K = {topk}", mistakes(regions @ words.T, topk))
    right(answer)


def check_graph_step(answer: Callable[[Tensor, Tensor, Tensor, float], Tensor]) -> None:
    """``answer(nodes (N, d), connection (N, N) bool, relevance (N, N), weight)``: softmax(X Xᵀ / √d + λ S) X over the connected nodes."""
    def step(x: Tensor, connection: Tensor, relevance: Tensor, weight: float, scale: bool = True, axis: int = 1) -> Tensor:
        logits = x @ x.T / (x.shape[1] ** 0.5 if scale else 1)
        return (logits + graph_bias(connection, relevance, weight)).softmax(axis).nan_to_num() @ x

    def mistakes(x: Tensor, connection: Tensor, relevance: Tensor, weight: float) -> dict[str, Tensor]:
        every, logits = torch.ones_like(connection), x @ x.T / x.shape[1] ** 0.5
        given = x, connection, relevance, weight
        return {"a node hears those alone that A connects: the others need -inf": step(x, every, relevance, weight),
                "-inf where A does not connect: exp(0) is 1, not 0": ((logits + weight * relevance) * connection).softmax(1) @ x,
                "mask before the softmax, so that the weights of a row still add up to 1":
                (logits + weight * relevance).softmax(1) * connection @ x,
                "S is missing": step(x, connection, torch.zeros_like(relevance), weight),
                "S counts λ times": step(x, connection, relevance, 1.0),
                "divide the products by √d": step(*given, scale=False),
                "the softmax runs over the columns, those that speak": step(*given, axis=0),
                "S is added to the products, before the softmax": (logits * weight * relevance).masked_fill(~connection, -torch.inf).softmax(1) @ x}

    nodes, connection = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), torch.tensor([[1, 1, 0], [0, 1, 1], [1, 0, 1]]).bool()
    relevance = torch.tensor([[1.0, 0.5, 3.0], [2.0, 1.0, 0.2], [0.1, 3.0, 1.0]])
    given = nodes, connection, relevance, 2.0
    expect(answer, given, step(*given), "three nodes, each connected to two, λ = 2", mistakes(*given))
    for seed in range(3):
        random, relevance = torch.randn(6, 4, generator=_seed(seed)), torch.rand(6, 6, generator=_seed(seed + 10))
        connection = (torch.rand(6, 6, generator=_seed(seed + 20)) < 0.5) | torch.eye(6, dtype=torch.bool)
        given = random, connection, relevance, 1.5
        expect(answer, given, step(*given), "6 random nodes, λ = 1.5", mistakes(*given))
    right(answer)


def check_distance_weights(answer: Callable[[Tensor, Tensor, float, int], Tensor]) -> None:
    """``answer(distances (N,), positives (N,) bool, cutoff, dim)``: the chances (N,) of one anchor's candidates, by
    1 / (D^(dim-2) (1 - D²/4)^((dim-3)/2)); 0 for positives and from the cutoff on, adding up to 1."""
    def chances(distances: Tensor, positives: Tensor, cutoff: float, dim: int, sign: int = -1) -> Tensor:
        x = distances.double()
        logs = sign * ((dim - 2) * x.log() + (dim - 3) / 2 * (1 - x**2 / 4).log())
        return logs.masked_fill(positives | (x >= cutoff), -torch.inf).softmax(0)

    def mistakes(distances: Tensor, positives: Tensor, cutoff: float, dim: int) -> dict[str, Tensor]:
        wanted, allowed = chances(distances, positives, cutoff, dim), ~positives & (distances < cutoff)
        return {"1 / q: what is rare on the sphere is drawn more often, not less": chances(distances, positives, cutoff, dim, sign=1),
                "the match itself is no negative": chances(distances, torch.zeros_like(positives), cutoff, dim),
                "beyond the cutoff nothing is drawn": chances(distances, positives, 3.0, dim),
                "the chances must add up to 1": wanted / wanted.max(),
                "the exponents are dim - 2 and (dim - 3) / 2": chances(distances, positives, cutoff, 512),
                "every candidate below the cutoff would be as likely: weigh them by their distance": allowed / allowed.sum()}

    distances, positives = torch.tensor([0.3, 0.8, 1.0, 1.2, 1.9]), torch.tensor([True, False, False, False, False])
    expect(answer, (distances, positives, 1.7, 8), chances(distances, positives, 1.7, 8), "a match, three candidates and one beyond the cutoff, dim = 8",
           mistakes(distances, positives, 1.7, 8))
    close = torch.tensor([0.6, 0.9, 1.1, 1.3])
    none = torch.zeros(4, dtype=torch.bool)
    expect(answer, (close, none, 1.7, 512), chances(close, none, 1.7, 512), "four candidates, dim = 512, where 1 / q does not fit into a float: "
           "work with logarithms and subtract the largest", mistakes(close, none, 1.7, 512))
    for seed, dim in ((0, 4), (1, 16), (2, 64)):
        random, own = 0.5 + 1.4 * torch.rand(20, generator=_seed(seed)), torch.rand(20, generator=_seed(seed + 10)) < 0.2
        wanted = distance_weights(1 - random[None].double() ** 2 / 2, own[None], 1.7, dim=dim)[0]
        expect(answer, (random, own, 1.7, dim), wanted, f"20 random candidates, dim = {dim}",
               mistakes(random, own, 1.7, dim), tolerance=1e-4)
    right(answer)


# ---- 05 DivE ------------------------------------------------------------------------------------------------------------

def check_circular_variance(answer: Callable[[Tensor], Tensor]) -> None:
    """``answer(sets (n, K, d) of unit vectors)``: 1 - ‖mean of a set's elements‖, (n,)."""
    def mistakes(sets: Tensor) -> dict[str, Tensor]:
        length = torch.linalg.vector_norm(sets.mean(1), dim=-1)
        return {"that is the length of the mean, which is 1 for a collapsed set: take it from 1": length,
                "first the mean of the vectors, then its length; each element alone has length 1": torch.zeros(len(sets)),
                "that is 1 minus the mean cosine of all pairs, which is the squared length of the mean": 1 - length**2,
                "that is the variance of each number; the length of the mean is asked for": sets.var(1, unbiased=False).sum(-1),
                "divide the sum of the elements by K": 1 - torch.linalg.vector_norm(sets.sum(1), dim=-1)}

    right_angle = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.6, 0.8], [0.6, 0.8]], [[1.0, 0.0], [-1.0, 0.0]]])
    expect(answer, (right_angle,), [1 - 0.5**0.5, 0.0, 1.0], "a set at a right angle, a collapsed set and a set of opposites",
           mistakes(right_angle))
    for seed in range(3):
        random = torch.nn.functional.normalize(torch.randn(5, 2 + seed, 6, generator=_seed(seed)), dim=2)
        expect(answer, (random,), circular_variance(random), f"5 random sets of {2 + seed} elements",
               {"the mean runs over the elements of a set, not over the sets": 1 - torch.linalg.vector_norm(random.mean(0), dim=-1), **mistakes(random)})
    right(answer)


def check_smooth_chamfer(answer: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """``answer(x (K, d), y (K', d), alpha)``: ½ mean_x (1/α) log Σ_y exp(α c) + ½ mean_y (1/α) log Σ_x exp(α c), unit vectors."""
    def wanted(x: Tensor, y: Tensor, alpha: float, kind: str = "smooth_chamfer") -> Tensor:
        return set_similarity(x[:, None], y[:, None], kind, alpha)[0, 0]

    def mistakes(x: Tensor, y: Tensor, alpha: float) -> dict[str, Any]:
        rows, columns = ((alpha * x @ y.T).logsumexp(axis) for axis in (1, 0))
        whole = wanted(x, y, alpha)
        return {"half of each of the two means": 2 * whole, "divide the logarithm by α": alpha * whole,
                "only the elements of x look for theirs: those of y must, too": rows.mean() / alpha,
                "only the elements of y look for theirs: those of x must, too": columns.mean() / alpha,
                "the second half is missing: the elements of y look for theirs, too": rows.mean() / (2 * alpha),
                "inside the logarithm is a sum, not a mean": whole - (np.log(len(x)) + np.log(len(y))) / (2 * alpha),
                "outside the logarithm is a mean over the elements, not a sum": (rows.sum() + columns.sum()) / (2 * alpha),
                "that is Chamfer, the limit of large α": wanted(x, y, alpha, "chamfer"),
                "that is the best pair alone, MIL": wanted(x, y, alpha, "mil")}

    x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]])
    for alpha in (1.0, 4.0):
        expect(answer, (x, y, alpha), wanted(x, y, alpha), f"a set of 2 and a set of 3, α = {alpha:g}", mistakes(x, y, alpha))
    expect(answer, (x, y, 1000.0), wanted(x, y, 1000.0), "α = 1000, where exp overflows: torch.logsumexp does not", mistakes(x, y, 1000.0))
    for seed in range(3):
        pair = [torch.nn.functional.normalize(torch.randn(number, 8, generator=_seed(seed + number)), dim=1) for number in (4, 2 + seed)]
        expect(answer, (*pair, 16.0), wanted(*pair, 16.0), f"random sets of 4 and {2 + seed}, α = 16", mistakes(*pair, 16.0))
    right(answer)


def check_slot_shares(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``answer(logits (K, F), mask (F,) bool)``: softmax over the slots, 0 for padding, then each slot's shares, (K, F)."""
    def mistakes(logits: Tensor, mask: Tensor) -> dict[str, Tensor]:
        claims = logits.softmax(0)
        masked = claims * mask
        minus = torch.full_like(logits, torch.finfo(logits.dtype).min)
        leaked = torch.where(mask, logits, minus).softmax(0)
        return {"that is an ordinary softmax over the fragments: here the slots compete for each fragment":
                logits.masked_fill(~mask, -torch.inf).softmax(1),
                "that is what the slots claim; now divide each slot's row by its sum": masked,
                "the padded fragment takes part": claims / claims.sum(1, keepdim=True),
                "a mask before the softmax over slots does nothing: a padded fragment has 1/K in every slot": leaked / leaked.sum(1, keepdim=True),
                "divide by the sum over the fragments, along a row": masked / masked.sum(0, keepdim=True).clamp(min=1e-7),
                "the shares must add up again after the mask": claims / claims.sum(1, keepdim=True) * mask}

    logits, every = torch.tensor([[3.0, 1.0, 0.0], [2.5, 2.0, 1.0]]), torch.tensor([True, True, True])
    for mask, case in ((every, "two slots and three fragments"), (every.logical_and(torch.arange(3) < 2), "the same, the third fragment is padding")):
        expect(answer, (logits, mask), compete(logits[None, None], mask[None])[0, 0], case, mistakes(logits, mask))
    for seed in range(3):
        random, mask = 2 * torch.randn(4, 7, generator=_seed(seed)), torch.arange(7) < 4 + seed
        expect(answer, (random, mask), compete(random[None, None], mask[None])[0, 0], "4 random slots and 7 fragments, some of them padding",
               mistakes(random, mask))
    right(answer)


def check_choice(answer: Callable[[Callable[[float, int], float], Sequence[float], Sequence[int]], tuple[float, bool]]) -> None:
    """``answer(fit, candidates, seeds)``: the candidate with the best mean of ``fit(candidate, seed)`` over the seeds, and whether it is
    ahead of every other candidate with every seed; each pair is fitted once."""
    seeds = [0, 1, 2]

    def judge(table: Mapping[float, Sequence[float]], case: str, further: Mapping[str, Any]) -> None:
        fitted: list[tuple[float, int]] = []

        def fit(candidate: float, seed: int) -> float:
            fitted.append((candidate, seed))
            return table[candidate][seed]

        means = {candidate: float(np.mean(values)) for candidate, values in table.items()}
        best = max(means, key=means.__getitem__)
        clear = all(mine > theirs for other, values in table.items() if other != best for mine, theirs in zip(table[best], values))
        expect(answer, (fit, list(table), seeds), [best, clear], case, {
            **further,
            "the choice is right; it is clear only if it is ahead with every seed, seed by seed": [best, not clear],
            "that is the worst candidate: a higher rsum is better": [min(means, key=means.__getitem__), False]}, tolerance=1e-9)
        name = getattr(answer, "__name__", "the answer")
        if len(fitted) != len(set(fitted)):
            raise NotRight(f"{name} trains {len(fitted)} times for {len(set(fitted))} candidates and seeds: keep what fit returns")
        if set(fitted) != {(candidate, seed) for candidate in table for seed in seeds}:
            raise NotRight(f"{name} leaves out a candidate or a seed on {case}")

    judge({1.0: [400.0, 410.0, 405.0], 16.0: [420.0, 425.0, 431.0], 64.0: [415.0, 424.0, 419.0]}, "three values of α, one ahead with every seed",
          {"that is the last candidate, the best is asked for": [64.0, False]})
    lucky = "one lucky seed does not make a candidate the best: compare the means"
    judge({1.0: [430.0, 380.0, 390.0], 16.0: [410.0, 412.0, 408.0]}, "two values of α, one with a lucky seed",
          {lucky: [1.0, False], "ahead on average is not clear: with one seed it is behind": [16.0, True]})
    judge({4.0: [414.0, 409.0, 420.0], 1.0: [404.0, 400.0, 410.0]}, "two values of α; the seeds differ more than they do",
          {"compare seed by seed: that the ranges overlap does not matter, the same seed has the same luck": [4.0, False]})
    right(answer)


# ---- 06 Reproduction ----------------------------------------------------------------------------------------------------

def _t2i_r1(scores: Tensor, owners: Tensor, ties_against: bool = True) -> Tensor:
    """t2i R@1 in percent of ``scores`` (I, C)."""
    matched = scores[owners, torch.arange(scores.shape[1])]
    ahead = (scores >= matched).sum(0) == 1 if ties_against else (scores > matched).sum(0) == 0
    return 100 * ahead.double().mean()


def check_fivefold_t2i_r1(answer: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """``answer(scores (I, C), caption_to_image (C,), folds)``: t2i R@1 within each fold of pictures, averaged, in percent."""
    def folded(scores: Tensor, owners: Tensor, folds: int, interleaved: bool = False) -> Tensor:
        place = torch.arange(len(scores)) * folds // len(scores) if not interleaved else torch.arange(len(scores)) % folds
        recalls = []
        for fold in range(folds):
            rows, columns = (place == fold).nonzero()[:, 0], (place[owners] == fold).nonzero()[:, 0]
            own = torch.zeros(len(scores), dtype=torch.int64).scatter(0, rows, torch.arange(len(rows)))[owners[columns]]
            recalls.append(_t2i_r1(scores[rows][:, columns], own))
        return torch.stack(recalls).mean()

    def mistakes(scores: Tensor, owners: Tensor, folds: int) -> dict[str, Any]:
        size, right_value = len(scores) // folds, folded(scores, owners, folds)
        first = owners < size
        return {"that is the whole matrix, 5K: a query meets the pictures of its own fold alone": _t2i_r1(scores, owners),
                "that is the first fold alone: average over all of them": _t2i_r1(scores[:size][:, first], owners[first]),
                "a fold is a block of consecutive pictures": folded(scores, owners, folds, interleaved=True),
                "that is the sum over the folds: take their mean": folds * right_value,
                "that is a share, recall is in percent": right_value / 100}

    scores = torch.tensor([[0.9, 0.3, 0.2, 0.8], [0.1, 0.8, 0.6, 0.3], [0.2, 0.9, 0.7, 0.9], [0.3, 0.4, 0.5, 0.6]])
    owners = torch.tensor([0, 1, 2, 3])
    expect(answer, (scores, owners, 2), 75.0, "4 pictures, 4 captions and 2 folds", mistakes(scores, owners, 2))
    tied = torch.tensor([[0.5, 0.5], [0.5, 0.9]])
    expect(answer, (tied, torch.tensor([0, 1]), 1), 50.0, "a tie, in one fold",
           {"ties count against the query: a wrong picture with the same score stands before the right one": 100.0})
    for seed, folds in ((0, 5), (1, 2), (2, 5)):
        random, owners = torch.rand(20, 60, generator=_seed(seed)), torch.arange(60) // 3
        random[owners, torch.arange(60)] += 0.4
        owners = owners if seed < 2 else owners[torch.randperm(60, generator=_seed(seed))]
        expect(answer, (random, owners, folds), folded(random, owners, folds), f"a random 20 × 60 matrix and {folds} folds",
               mistakes(random, owners, folds))
    right(answer)


def check_recall_interval(answer: Callable[[Tensor, Tensor], Tensor]) -> None:
    """``answer(answered (n,), drawn (B, n))``: the 2.5 % and 97.5 % quantiles of the draws' recalls, in percent, (2,)."""
    def wanted(answered: Tensor, drawn: Tensor, tails: float = 0.025) -> Tensor:
        recalls = 100 * answered[drawn].double().mean(1)
        return torch.quantile(recalls, torch.tensor([tails, 1 - tails], dtype=recalls.dtype))

    def mistakes(answered: Tensor, drawn: Tensor) -> dict[str, Any]:
        recalls = 100 * answered[drawn].double().mean(1)
        spread = recalls.std() * torch.tensor([-1.96, 1.96])
        return {"that is a share, recall is in percent": wanted(answered, drawn) / 100,
                "5 % are outside, half of them on each side: 2.5 % and 97.5 %": wanted(answered, drawn, 0.05),
                "average over the queries of a draw, not over the draws of a place": torch.quantile(
                    100 * answered[drawn].double().mean(0), torch.tensor([0.025, 0.975], dtype=torch.float64)),
                "that is mean ± 1.96 sd; take the quantiles of the draws": recalls.mean() + spread,
                "those are the smallest and the largest draw": torch.stack([recalls.min(), recalls.max()])}

    answered = torch.tensor([1.0, 0.0, 1.0, 1.0])
    drawn = torch.tensor([[0, 1, 2, 3], [1, 1, 1, 0], [2, 2, 3, 3], [0, 0, 1, 1], [3, 2, 1, 1]])
    expect(answer, (answered, drawn), wanted(answered, drawn), "four queries and five draws", mistakes(answered, drawn))
    for seed in range(3):
        hits = (torch.rand(40, generator=_seed(seed)) < 0.3 + 0.2 * seed).float()
        drawn = torch.randint(0, 40, (400, 40), generator=_seed(seed + 10))
        expect(answer, (hits, drawn), wanted(hits, drawn), "40 random queries and 400 draws", mistakes(hits, drawn))
    right(answer)


def check_ensemble_t2i_r1(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(first (I, C), second (I, C), caption_to_image (C,))``: t2i R@1 of the mean of the scores, in percent."""
    def mistakes(first: Tensor, second: Tensor, owners: Tensor) -> dict[str, Any]:
        both = _t2i_r1(first, owners), _t2i_r1(second, owners)
        mean = (first + second) / 2
        return {"average the scores and rank once; that is the mean of two recalls": (both[0] + both[1]) / 2,
                "that is the better of the two alone": max(both), "the larger of the two scores is no ensemble: take their mean": _t2i_r1(torch.maximum(first, second), owners),
                "that is the first model alone": both[0], "that is the second model alone": both[1],
                "that is a share, recall is in percent": _t2i_r1(mean, owners) / 100,
                "ties count against the query": _t2i_r1(mean, owners, ties_against=False),
                "that is i2t: in t2i every caption, a column, is a query": 100 * (mean.argmax(1)[owners] == torch.arange(len(owners))).double().sum() / len(first)}

    first = torch.tensor([[0.9, 0.6, 0.1], [0.5, 0.5, 0.0], [0.2, 0.1, 0.3]])
    second = torch.tensor([[0.4, 0.2, 0.6], [0.5, 0.7, 0.1], [0.1, 0.3, 0.2]])
    owners = torch.arange(3)
    expect(answer, (first, second, owners), 200 / 3, "3 pictures and 3 captions", mistakes(first, second, owners))
    expect(answer, (torch.zeros(2, 4), torch.zeros(2, 4), torch.arange(4) // 2), 0.0, "two constant scorers",
           {"ties count against the query, so constant scorers find nothing": 100.0})
    for seed in range(3):
        random, owners = torch.rand(2, 12, 36, generator=_seed(seed)), torch.arange(36) // 3
        random[:, owners, torch.arange(36)] += 0.5
        expect(answer, (*random, owners), _t2i_r1(random.mean(0), owners), "two random 12 × 36 matrices", mistakes(*random, owners))
    right(answer)


def check_chance_of_luck(answer: Callable[[Sequence[float], Sequence[float]], float]) -> None:
    """``answer(better, worse)``: two-sided sign-flip test of paired values: the share of all sign patterns whose mean is as far from 0."""
    def flips(better: Sequence[float], worse: Sequence[float]) -> tuple[np.ndarray, float]:
        differences = np.subtract(better, worse)
        signs = 1 - 2 * ((np.arange(2 ** len(differences))[:, None] >> np.arange(len(differences))) & 1)
        return (signs * differences).mean(1), float(differences.mean())

    def judge(better: Sequence[float], worse: Sequence[float], case: str) -> None:
        means, found = flips(better, worse)
        wanted = float((np.abs(means) >= abs(found) - 1e-9).mean())
        expect(answer, (list(better), list(worse)), wanted, case, {
            "both signs count: compare absolute means": float((means >= found - 1e-9).mean()),
            "as far as the measured one counts too, so it is never 0: compare with >=, and allow for rounding": float((np.abs(means) > abs(found) + 1e-9).mean()),
            "that is the chance that it is no luck": 1 - wanted,
            "that is a number of ways: divide by 2 to the power of n": wanted * len(means),
            "that is the mean difference; asked is the chance of one as large": found}, tolerance=1e-6)

    judge([12.0, 9.0, 11.0], [10.0, 8.0, 6.0], "three seeds, each ahead")
    judge([10.0, 14.0, 9.0, 12.0], [9.0, 11.0, 11.0, 8.0], "four seeds, one behind")
    judge([5.0, 7.0], [6.0, 6.0], "two seeds that cancel")
    for seed in range(3):
        random = 10 * torch.randn(2, 6, generator=_seed(seed)).double() + torch.tensor([[4.0], [0.0]])
        judge(*random.tolist(), "six random pairs")
    right(answer)


# ---- 07 Training on GPUs --------------------------------------------------------------------------------------------------

def check_run_length(answer: Callable[[int, int, int, int, float, int], tuple[int, float]]) -> None:
    """``answer(captions, per_gpu, gpus, epochs, lr, tuned_for)``: steps of the run, and lr scaled with the global batch."""
    def judge(captions: int, per_gpu: int, gpus: int, epochs: int, lr: float, tuned_for: int, case: str) -> None:
        batch = per_gpu * gpus
        steps, rate = epochs * -(-captions // batch), lr * batch / tuned_for
        expect(answer, (captions, per_gpu, gpus, epochs, lr, tuned_for), [steps, rate], case, {
            "a step takes the captions of all GPUs": [epochs * -(-captions // per_gpu), rate],
            "those are the steps of one epoch": [-(-captions // batch), rate],
            "the last batch of an epoch is smaller, and a step all the same: round up, epoch by epoch": [epochs * (captions // batch), rate],
            "each epoch has a last batch of its own: round up before you multiply": [-(-captions * epochs // batch), rate],
            "the steps are right; lr grows with the batch of all GPUs": [steps, lr * per_gpu / tuned_for],
            "the steps are right; lr was tuned for another batch: multiply it by batch / tuned_for": [steps, lr],
            "the steps are right; a larger batch takes a larger lr, not a smaller one": [steps, lr * tuned_for / batch]}, tolerance=1e-9)

    judge(1000, 32, 1, 10, 1e-3, 32, "1000 captions on one GPU")
    judge(1000, 32, 4, 10, 2e-4, 64, "1000 captions on 4 GPUs, lr tuned for a batch of 64")
    judge(145000, 128, 8, 30, 2e-4, 128, "Flickr30K on 8 GPUs")
    judge(977, 24, 3, 7, 5e-4, 96, "977 captions on 3 GPUs")
    right(answer)


def check_negatives(answer: Callable[[int, int, int, bool], int]) -> None:
    """``answer(per_gpu, gpus, accumulate, gathered)``: the negative captions that a picture meets before one update."""
    for per_gpu, gpus, accumulate, gathered in ((32, 1, 1, False), (32, 1, 4, False), (32, 4, 1, False), (32, 4, 1, True), (16, 2, 8, True), (7, 3, 2, False)):
        whole = per_gpu * gpus
        wanted = (whole if gathered else per_gpu) - 1
        how = f"{per_gpu} pairs on each of {gpus} GPUs, {accumulate} batches accumulated, {'gathered' if gathered else 'not gathered'}"
        expect(answer, (per_gpu, gpus, accumulate, gathered), wanted, how, {
            "its own caption is no negative": wanted + 1,
            "batches that are accumulated do not meet: each has negatives of its own": (whole if gathered else per_gpu) * accumulate - 1,
            "encodings that are not gathered stay on their GPU": whole * accumulate - 1 if accumulate > 1 else whole - 1,
            "with gathered encodings the negatives of all GPUs count": per_gpu - 1}, tolerance=1e-9)
    right(answer)


def check_gather_backward(answer: Callable[[Tensor, Sequence[int], int], Tensor]) -> None:
    """``answer(gradients (P, N, d), sizes, rank)``: what the backward of a gather returns on process ``rank``, (sizes[rank], d)."""
    def judge(gradients: Tensor, sizes: list[int], rank: int, case: str) -> None:
        first = sum(sizes[:rank])
        own = slice(first, first + sizes[rank])
        wanted = gradients.sum(0)[own]
        expect(answer, (gradients, sizes, rank), wanted, case, {
            "that is what this process alone asks for: add up what all processes ask": gradients[rank, own],
            "add up, do not average: DDP takes the mean afterwards": gradients.mean(0)[own],
            "only the rows that this process put in are its own": gradients.sum(0),
            "shares may be of different sizes: the own rows begin after those of all processes before":
                gradients.sum(0)[rank * sizes[rank] : (rank + 1) * sizes[rank]]})

    judge(torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]]), [1, 1], 1, "two processes with a row each")
    judge(torch.arange(12.0).reshape(2, 3, 2), [1, 2], 1, "two processes, the second with two rows of three")
    for seed in range(3):
        judge(torch.randn(3, 7, 4, generator=_seed(seed)), [2, 4, 1], seed, f"three processes with 2, 4 and 1 rows, on process {seed}")
    right(answer)


class ToyRun:
    """A training run so small that nothing of it is hidden: weights, momentum, an order of the samples, and noise like dropout's.

    ``weights`` (3,), ``momentum`` (3,), ``rng`` (NumPy's Generator: draws the order of each epoch and the noise), ``order`` (8,) of
    the epoch under way, ``position`` in it, ``step`` (the learning rate falls with it). ``train(steps)`` goes on by so many steps.
    ``restore(saved)`` puts a dictionary of these back by their names; what it lacks stays as it was at the start of a run.
    """

    NAMES = ("weights", "momentum", "rng", "order", "position", "step")

    def __init__(self, seed: int = 0):
        data = np.random.default_rng(7)
        self.inputs, self.targets = data.normal(size=(8, 3)), data.normal(size=8)
        self.weights, self.momentum = np.zeros(3), np.zeros(3)
        self.rng, self.order, self.position, self.step = np.random.default_rng(seed), np.arange(8), 0, 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            if self.position == 0:
                self.order = self.rng.permutation(8)
            rows = self.order[self.position : self.position + 2]
            kept = self.inputs[rows] * (self.rng.random((2, 3)) < 0.8)
            error = kept @ self.weights - self.targets[rows]
            self.momentum *= 0.9                        # in place, as optimizers do: a copy is needed to keep it
            self.momentum += kept.T @ error
            self.weights -= 0.1 / (1 + 0.1 * self.step) * self.momentum
            self.position, self.step = (self.position + 2) % 8, self.step + 1

    def restore(self, saved: Mapping[str, Any]) -> None:
        unknown = sorted(set(saved) - set(self.NAMES))
        if unknown:
            raise NotRight(f"a run has no {unknown[0]!r}: it has {', '.join(self.NAMES)}")
        for name, value in saved.items():
            setattr(self, name, copy.deepcopy(value))


_FORGOTTEN = {"weights": "the weights begin again", "momentum": "the optimizer has forgotten where it was going",
              "rng": "dropout and the next orders are drawn anew", "order": "the rest of the epoch has other samples",
              "position": "the epoch begins again, and some samples come twice", "step": "the learning rate begins again"}


def check_checkpoint(answer: Callable[[ToyRun], Mapping[str, Any]]) -> None:
    """``answer(run)``: a dictionary from which :meth:`ToyRun.restore` goes on to the very same weights, whenever the run is killed."""
    name = getattr(answer, "__name__", "the answer")
    whole = ToyRun()
    whole.train(20)
    for killed_at in (1, 4, 7, 10):
        run = ToyRun()
        run.train(killed_at)
        try:
            saved = answer(run)
        except NotImplementedError:
            raise NotRight(f"{name} is not written yet: put your lines in place of NotImplementedError") from None
        except Exception as error:
            raise NotRight(f"{name} stops with {type(error).__name__} ({error})") from error
        if not isinstance(saved, Mapping):
            raise NotRight(f"{name} returns a {type(saved).__name__}: return a dictionary of names and values")
        kept = ToyRun()
        kept.restore(saved)
        changed = [each for each in ToyRun.NAMES if each in saved and not _same_state(getattr(kept, each), getattr(run, each))]
        if changed:
            raise NotRight(f"{name} saves another {changed[0]} than the run has after step {killed_at}")
        run.train(3)                                    # it runs on before it is killed: what was saved must not move with it
        again = ToyRun()
        again.restore(saved)
        again.train(20 - killed_at)
        if np.array_equal(again.weights, whole.weights):
            continue
        missing = [each for each in ToyRun.NAMES if each not in saved]
        why = (f"{missing[0]} is not in it, so {_FORGOTTEN[missing[0]]}" if missing
               else "what it saves moved on with the run: save copies (copy.deepcopy)")
        raise NotRight(f"{name}: killed after step {killed_at} and started again, the run ends with other weights: {why}")
    right(answer)


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, np.random.Generator) and isinstance(other, np.random.Generator):
        return one.bit_generator.state == other.bit_generator.state
    return type(one) is type(other) and np.array_equal(one, other)


# ---- 08 Search ---------------------------------------------------------------------------------------------------------

def check_index_recall(answer: Callable[[Tensor, Tensor], float]) -> None:
    """``answer(found (Q, k), exact (Q, k))``: recall@k of an index in percent: how many of the exact first k it found, on average."""
    def recall(found: Tensor, exact: Tensor) -> Tensor:
        return 100 * (found[:, :, None] == exact[:, None, :]).any(2).float().mean()

    def mistakes(found: Tensor, exact: Tensor) -> dict[str, Any]:
        hits = (found[:, :, None] == exact[:, None, :]).any(2).float()
        return {"that is a share, recall is in percent": hits.mean(),
                "the order within the first k does not matter: a picture counts wherever it stands": 100 * (found == exact).float().mean(),
                "count all k of a query, not whether any of them was found": 100 * hits.amax(1).mean(),
                "that is the first place alone": 100 * hits[:, 0].mean(),
                "divide by all Q · k places": 100 * hits.sum() / len(found)}

    cases = [(torch.tensor([[3, 1, 7], [4, 5, 6]]), torch.tensor([[1, 3, 2], [4, 9, 8]]), "two queries with k = 3")]
    for seed, k in ((0, 1), (1, 5), (2, 10)):
        found, exact = (torch.rand(6, 16, generator=_seed(seed + shift)).argsort(1)[:, :k] for shift in (0, 10))
        cases.append((found, exact, f"6 random queries with k = {k}"))
    for found, exact, case in cases:
        expect(answer, (found, exact), recall(found, exact), case, mistakes(found, exact))
    right(answer)


def check_table_scores(answer: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """``answer(query (D,), codebooks (M, K, D/M), codes (N, M))``: the query's products with N coded vectors, (N,), the query not coded."""
    def scores(query: Tensor, codebooks: Tensor, codes: Tensor) -> Tensor:
        vectors = torch.cat([codebook[codes[:, part]] for part, codebook in enumerate(codebooks)], dim=1)
        return vectors @ query

    def mistakes(query: Tensor, codebooks: Tensor, codes: Tensor) -> dict[str, Tensor]:
        parts, width = len(codebooks), codebooks.shape[2]
        pieces = query.reshape(parts, width)
        nearest = torch.stack([codebook[torch.cdist(piece[None], codebook).argmin()] for piece, codebook in zip(pieces, codebooks)])
        vectors = torch.cat([codebook[codes[:, part]] for part, codebook in enumerate(codebooks)], dim=1)
        return {"only the stored vectors are coded: the query keeps its own numbers": scores(nearest.reshape(-1), codebooks, codes),
                "add up the parts: each gives one number from its own row of the table": vectors[:, :width] @ pieces[0],
                "every part has a codebook of its own": scores(query, codebooks[:1].expand_as(codebooks), codes),
                "those are squared distances; the product is asked for": ((vectors - query) ** 2).sum(1)}

    codebooks = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 1.0], [-1.0, 0.5]]])
    cases = [(torch.tensor([0.5, 2.0, 1.0, -1.0]), codebooks, torch.tensor([[0, 0], [1, 0], [1, 1]]), "three vectors coded in two parts of two words")]
    for seed, (parts, words, width) in enumerate(((2, 4, 3), (4, 16, 2), (3, 8, 5))):
        books = torch.randn(parts, words, width, generator=_seed(seed))
        codes = torch.randint(0, words, (20, parts), generator=_seed(seed + 10))
        cases.append((torch.randn(parts * width, generator=_seed(seed + 20)), books, codes, f"20 random vectors coded in {parts} parts of {words} words"))
    for *arguments, case in cases:
        expect(answer, arguments, scores(*arguments), case, mistakes(*arguments))
    right(answer)


def check_fused_scores(answer: Callable[[Tensor, float], Tensor]) -> None:
    """``answer(rankings (L, N), k)``: reciprocal rank fusion. A row lists the N pictures, the best first; the answer is a score a picture, (N,)."""
    def fused(rankings: Tensor, k: float, first: int = 1) -> Tensor:
        return (1 / (k + first + rankings.argsort(1))).sum(0)

    def mistakes(rankings: Tensor, k: float) -> dict[str, Tensor]:
        return {"the best picture has rank 1, not 0": fused(rankings, k, first=0),
                "a row lists pictures by rank: turn it round, to the rank of each picture, first": (1 / (k + 1 + rankings)).sum(0),
                "add up the lists, do not take the mean": fused(rankings, k) / len(rankings),
                "k belongs below the line, beside the rank": fused(rankings, 0.0),
                "that is the first list alone": fused(rankings[:1], k)}

    cases = [(torch.tensor([[2, 0, 1], [0, 1, 2]]), 2.0, "two lists of three pictures, k = 2")]
    cases += [(torch.rand(lists, 9, generator=_seed(lists)).argsort(1), k, f"{lists} random lists of nine pictures, k = {k:g}")
              for lists, k in ((2, 60.0), (3, 10.0), (4, 60.0))]
    for rankings, k, case in cases:
        expect(answer, (rankings, k), fused(rankings, k), case, mistakes(rankings, k), tolerance=1e-7)
    right(answer)


# ---- 09 Real photographs ------------------------------------------------------------------------------------------------

def check_verdict(answer: Callable[[Sequence[float], Sequence[float], float], int]) -> None:
    """``answer(better, worse, t)``: 1, -1 or 0 for an interval of the paired differences above 0, below 0, or with 0 in it."""
    def judge(better: Sequence[float], worse: Sequence[float], t: float, case: str) -> None:
        gains = np.subtract(better, worse)
        n, spread = len(gains), gains.std(ddof=1)
        apart = t * np.sqrt(np.var(better, ddof=1) / n + np.var(worse, ddof=1) / n)
        say = lambda half: int(gains.mean() - half > 0) - int(gains.mean() + half < 0)  # noqa: E731
        usual = {3: 4.303, 4: 3.182, 5: 2.776}[n]
        expect(answer, (list(better), list(worse), t), say(t * spread / np.sqrt(n)), case, {
            "use the t that is given": say(usual * spread / np.sqrt(n)),
            "divide the standard deviation by the root of the number of seeds": say(t * spread),
            "the differences of the same seed count, not the spread of each row": say(apart),
            "the standard deviation of a sample divides by n - 1": say(t * gains.std() / np.sqrt(n)),
            "the interval decides, not the sign of the mean, and it is t standard errors wide on either side": say(spread / np.sqrt(n))})

    judge([11.5, 13.5, 11.5, 13.5], [10.0, 10.0, 10.0, 10.0], 3.182, "four seeds, 1.5 or 3.5 points ahead each")
    judge([250.0, 247.0, 258.0], [249.0, 240.0, 246.0], 4.303, "three seeds, 1, 7 and 12 points ahead")
    judge([240.0, 260.0, 250.0, 230.0], [244.0, 263.0, 255.0, 234.0], 3.182, "four seeds, 3 to 5 points behind, and 10 apart from each other")
    judge([20.0, 24.0, 19.0, 25.0, 22.0], [18.0, 23.0, 20.0, 22.0, 21.5], 2.776, "five seeds, one of them behind")
    judge([1.0, 2.1, 3.0], [0.5, 0.4, 1.0], 2.92, "three seeds, a little ahead, t of a 90 % interval")
    judge([11.25, 13.25, 15.25], [10.0, 11.0, 12.0], 4.303, "three seeds whose interval just has 0 in it")
    for seed in range(12):
        rng = np.random.default_rng(seed)
        shared, gain = rng.normal(0, 5, 5), rng.uniform(-3, 3)
        judge(*[(shared + rng.normal(mean, 1.5, 5)).tolist() for mean in (gain, 0.0)], 2.776, "five random seeds")
    right(answer)


def check_crowd_auc(answer: Callable[[Tensor, Tensor], float]) -> None:
    """``answer(scores (n,), yes (n,) bool)``: area under the ROC curve in percent, equal scores half."""
    from sklearn.metrics import roc_auc_score

    scores, yes = torch.tensor([0.9, 0.2, 0.4, 0.1]).double(), torch.tensor([True, False, True, True])
    expect(answer, (scores, yes), 200 / 3, "three pairs with yes and one with no",
           {"that is a share, asked is percent": 2 / 3, "that is how often a yes is lower": 100 / 3,
            "compare every pair with yes with every pair with no, not each with its neighbour": 50.0})
    tied, yes = torch.tensor([0.5, 0.5, 0.9, 0.1]).double(), torch.tensor([True, False, False, True])
    expect(answer, (tied, yes), 12.5, "a yes and a no with equal scores",
           {"equal scores count half: they count nothing here": 0.0, "equal scores count half: they count whole here": 25.0})
    expect(answer, (torch.zeros(6).double(), torch.arange(6) < 2), 50.0, "a scorer that gives every pair the same score",
           {"equal scores count half, so a constant scorer has 50": 0.0})
    for seed in range(3):
        random = torch.randint(0, 12, (40,), generator=_seed(seed)).double()
        said = torch.rand(40, generator=_seed(seed + 10)) < 0.3
        expect(answer, (random, said), 100 * roc_auc_score(said.numpy(), random.numpy()), "40 random pairs with ties")
    right(answer)


def check_wrong_but_right(answer: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[int, int, int]]) -> None:
    """``answer(scores (I, C), caption_to_image (C,), judged (I, C), right (I, C))``: of the captions' first pictures the wrong ones, those
    of them that were judged, and those that were called right."""
    def judge(scores: Tensor, owners: Tensor, judged: Tensor, called: Tensor, case: str) -> None:
        first, columns = scores.argmax(0), torch.arange(scores.shape[1])
        seen, good, wrong = judged[first, columns], called[first, columns], first != owners
        every = [int(wrong.sum()), int((wrong & seen).sum()), int((wrong & seen & good).sum())]
        rows, best = torch.arange(len(scores)), scores.argmax(1)
        turned = owners[best] != rows, judged[rows, best], called[rows, best]
        expect(answer, (scores, owners, judged, called), every, case, {
            "answers that recall counts as right are not asked about": [every[0], int(seen.sum()), int((seen & good).sum())],
            "count the judged pairs among the wrong first answers, not in the whole matrix": [every[0], int(judged.sum()), int((judged & called).sum())],
            "a pair that nobody judged cannot be called right": [every[0], every[1], int((wrong & good).sum())],
            "the queries are the captions: take the first picture of each column": [
                int(turned[0].sum()), int((turned[0] & turned[1]).sum()), int((turned[0] & turned[1] & turned[2]).sum())],
        })

    scores = torch.tensor([[0.9, 0.8, 0.1], [0.2, 0.7, 0.6], [0.3, 0.1, 0.2]])
    judged = torch.tensor([[True, True, False], [False, True, True], [False, False, True]])
    called = torch.tensor([[True, True, False], [False, True, False], [False, False, True]])
    judge(scores, torch.arange(3), judged, called, "three captions, two of them answered with another's picture")
    for seed in range(4):
        random, owners = torch.rand(10, 30, generator=_seed(seed)), torch.arange(30) // 3
        seen = torch.rand(10, 30, generator=_seed(seed + 20)) < 0.5
        called = torch.rand(10, 30, generator=_seed(seed + 30)) < 0.5
        judge(random, owners, seen, called & seen if seed else called, "a random 10 × 30 matrix")
    right(answer)


def _seed(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)
