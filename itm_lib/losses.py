"""Losses as functions of a score matrix and of which pairs match.

Scores S are (I, C): rows are images, columns captions, higher is better. A *pair* (i, c) is one listed match; the positive
mask (I, C) marks every entry that must not act as a negative. Hinge loss of VSE++ and its followers, margin δ::

    i2t of a pair:  [δ + S_ij - S_ic]₊   over the negative captions j of image i
    t2i of a pair:  [δ + S_kc - S_ic]₊   over the negative images k of caption c

``negatives="hardest"`` keeps the largest term, ``"all"`` keeps all. ``reduction="sum"`` adds up over pairs (and negatives);
``"mean"`` is the mean over pairs, with all negatives the mean over (pair, negative) terms. A model that gives every pair
the same score therefore has a mean loss of 2δ either way: see :func:`collapsed_hinge`.

Binary cross entropy of CAMP, scores in (0, 1)::

    hardest negatives, of a pair:   -( 2 log S_ic + min_j log(1 - S_ij) + min_k log(1 - S_kc) )
    all negatives:                  -( mean over pairs of log S_ic + mean over all I·C entries of log(1 - S_ij), 0 on positives )
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Negatives = Literal["hardest", "all"]
Reduction = Literal["mean", "sum"]


def matched_pairs(image_ids: Tensor, caption_image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns (P,) of the listed matches.

    The diagonal where images and captions come in pairs (``image_ids`` equals ``caption_image_ids``, images may repeat);
    otherwise every caption with every row that holds its image.
    """
    if image_ids.shape == caption_image_ids.shape and torch.equal(image_ids, caption_image_ids):
        diagonal = torch.arange(len(image_ids), device=image_ids.device)
        return diagonal, diagonal
    rows, columns = torch.nonzero(image_ids[:, None] == caption_image_ids[None, :], as_tuple=True)
    return rows, columns


def positive_mask(image_ids: Tensor, caption_image_ids: Tensor, same_image_negatives: bool = False) -> Tensor:
    """(I, C) bool, True where a caption is no negative of an image.

    By default every caption of the same image; with ``same_image_negatives`` the listed pairs alone, as in SCAN's code.
    """
    if not same_image_negatives:
        return image_ids[:, None] == caption_image_ids[None, :]
    mask = torch.zeros(len(image_ids), len(caption_image_ids), dtype=torch.bool, device=image_ids.device)
    mask[matched_pairs(image_ids, caption_image_ids)] = True
    return mask


@dataclass
class HardestScores:
    """The scores that a loss over hardest negatives depends on, for P pairs of an image and a caption, each (P,).

    ``matched``: of the pairs themselves; ``caption``: of each pair's image with its hardest negative caption; ``image``: of each pair's
    caption with its hardest negative image. -inf where there is no negative.
    """

    matched: Tensor
    caption: Tensor
    image: Tensor

    @classmethod
    def of_matrix(cls, scores: Tensor, pairs: tuple[Tensor, Tensor], positives: Tensor) -> HardestScores:
        """Those in a matrix of all scores (I, C); arguments as in :func:`hinge_loss`."""
        rows, columns = pairs
        negatives = scores.masked_fill(positives, -torch.inf)
        return cls(scores[rows, columns], negatives.amax(1)[rows], negatives.amax(0)[columns])


def hinge_loss(scores: Tensor, pairs: tuple[Tensor, Tensor], positives: Tensor, margin: float = 0.2,
               negatives: Negatives = "hardest", reduction: Reduction = "mean") -> dict[str, Tensor]:
    """Hinge loss of ``scores`` (I, C): ``{"loss", "i2t", "t2i"}``, scalars, loss = i2t + t2i.

    ``pairs``: rows and columns (P,) of the listed matches; ``positives`` (I, C) bool: entries that are never negatives.
    A pair without a negative adds 0.
    """
    if negatives == "hardest":
        return hardest_hinge(HardestScores.of_matrix(scores, pairs, positives), margin, reduction)
    rows, columns = pairs
    matched = scores[rows, columns]
    terms = {}
    for name, lines, mask in (("i2t", scores, positives), ("t2i", scores.T, positives.T)):
        line = rows if name == "i2t" else columns
        costs = (margin + lines[line] - matched[:, None]).clamp(min=0).masked_fill(mask[line], 0)
        terms[name] = costs.sum() / (~mask[line]).sum().clamp(min=1) if reduction == "mean" else costs.sum()
    return {"loss": terms["i2t"] + terms["t2i"], **terms}


def hardest_hinge(hardest: HardestScores, margin: float = 0.2, reduction: Reduction = "mean") -> dict[str, Tensor]:
    """:func:`hinge_loss` over hardest negatives, of the scores that it depends on."""
    pool = torch.mean if reduction == "mean" else torch.sum
    terms = {name: pool((margin + negative - hardest.matched).clamp(min=0))
             for name, negative in (("i2t", hardest.caption), ("t2i", hardest.image))}
    return {"loss": terms["i2t"] + terms["t2i"], **terms}


def collapsed_hinge(num_images: int, num_captions: int, margin: float = 0.2, negatives: Negatives = "hardest",
                    reduction: Reduction = "mean") -> float:
    """The hinge loss if all scores were equal and images were paired with captions one to one.

    2δ for a mean; 2δB for the sum over hardest negatives of B pairs, 2δB(B - 1) over all negatives.
    """
    if reduction == "mean":
        return 2 * margin
    pairs = max(num_images, num_captions)
    per_pair = 2 if negatives == "hardest" else (num_captions - 1) + (num_images - 1)
    return margin * pairs * per_pair


def semi_hard_loss(scores: Tensor, pairs: tuple[Tensor, Tensor], positives: Tensor, margin: float = 0.2) -> dict[str, Tensor]:
    """Hinge loss over all negatives, each term at most ``margin``: arguments and result as in :func:`hinge_loss`.

    A negative that beats its match by any amount costs ``margin`` and has no gradient. Each direction is the mean over the terms
    that are not 0; it is 0 where all are.
    """
    rows, columns = pairs
    matched = scores[rows, columns]
    terms = {}
    for name, lines, mask in (("i2t", scores, positives), ("t2i", scores.T, positives.T)):
        line = rows if name == "i2t" else columns
        costs = (margin + lines[line] - matched[:, None]).clamp(0, margin).masked_fill(mask[line], 0)
        terms[name] = costs.sum() / (costs > 0).sum().clamp(min=1)
    return {"loss": terms["i2t"] + terms["t2i"], **terms}


def bce_loss(scores: Tensor, pairs: tuple[Tensor, Tensor], positives: Tensor, negatives: Negatives = "hardest",
             reduction: Reduction = "mean", eps: float = 1e-6) -> dict[str, Tensor]:
    """Binary cross entropy of ``scores`` (I, C) in (0, 1), clamped to [eps, 1 - eps], where the gradient ends.

    Arguments as in :func:`hinge_loss`. With hardest negatives ``{"loss", "positive", "i2t", "t2i"}``: each pair counts its
    positive term twice and its hardest negative in the row and in the column; loss = positive + i2t + t2i. With all
    negatives ``{"loss", "positive", "negative"}``, both means whatever the reduction.
    """
    if negatives == "hardest":
        return hardest_bce(HardestScores.of_matrix(scores, pairs, positives), reduction, eps)
    rows, columns = pairs
    scores = scores.clamp(eps, 1 - eps)
    matched, foreign = -scores[rows, columns].log(), -torch.log1p(-scores).masked_fill(positives, 0)
    terms = {"positive": matched.mean(), "negative": foreign.mean()}
    return {"loss": sum(terms.values()), **terms}


def hardest_bce(hardest: HardestScores, reduction: Reduction = "mean", eps: float = 1e-6) -> dict[str, Tensor]:
    """:func:`bce_loss` over hardest negatives, of the scores that it depends on."""
    pool = torch.mean if reduction == "mean" else torch.sum
    terms = {"positive": 2 * pool(-hardest.matched.clamp(eps, 1 - eps).log())}
    for name, negative in (("i2t", hardest.caption), ("t2i", hardest.image)):
        terms[name] = pool(-torch.log1p(-negative.clamp(eps, 1 - eps)).masked_fill(negative == -torch.inf, 0))
    return {"loss": sum(terms.values()), **terms}


def collapsed_bce(num_images: int, num_captions: int, negatives: Negatives = "hardest", reduction: Reduction = "mean") -> float:
    """The BCE if all scores were 0.5 and images were paired with captions one to one.

    4 ln 2 a pair with hardest negatives; ln 2 (2 - 1/B) over all negatives of B pairs.
    """
    pairs = max(num_images, num_captions)
    if negatives == "all":
        return math.log(2) * (2 - pairs / (num_images * num_captions))
    return 4 * math.log(2) * (pairs if reduction == "sum" else 1)


# --- HREM: a triplet loss whose negatives are drawn by their distance ---------------------------------------------------


@torch.no_grad()
def distance_weights(scores: Tensor, positives: Tensor, cutoff: float = 1.7, nearest: float = 0.5, dim: int = 512) -> Tensor:
    """How likely each candidate is drawn as the negative of an anchor: (A, N), rows add up to 1, or are 0 without a candidate.

    ``scores`` (A, N): cosines of anchors and candidates; ``positives`` (A, N) bool: never drawn. With the distance
    D = max(√(2 - 2S), nearest) the weight is 1 / q(D), where q(D) ~ D^(dim-2) (1 - D²/4)^((dim-3)/2) is how distances are spread
    on a sphere of ``dim`` dimensions: every distance below ``cutoff`` is then drawn about as often (Wu et al., Sampling
    Matters in Deep Embedding Learning, ICCV 2017).
    """
    distances = (2 - 2 * scores).clamp(min=0).sqrt().clamp(min=nearest)
    logs = (2 - dim) * distances.log() - (dim - 3) / 2 * torch.log(1 - distances**2 / 4)
    logs = logs.masked_fill(positives | ~logs.isfinite(), 0)
    weights = (logs - logs.amax(1, keepdim=True)).exp().masked_fill(positives | (distances >= cutoff), 0)
    return weights / (weights.sum(1, keepdim=True) + 1e-20)


def draw_negatives(weights: Tensor) -> Tensor:
    """One column (P,) a row of ``weights`` (P, N), by torch's generator."""
    return weights.multinomial(1).squeeze(1)


def sampled_triplet_loss(scores: Tensor, positives: Tensor, margin: float = 0.2, cutoff: float = 1.7, dim: int = 512,
                         reduction: Reduction = "mean", draw: Callable[[Tensor], Tensor] = draw_negatives) -> dict[str, Tensor]:
    """Triplet loss of cosines (I, C): ``{"loss", "i2t", "t2i"}``, scalars, loss = i2t + t2i.

    Every positive pair (a, p), in the order of rows and columns, has one negative n drawn by :func:`distance_weights` of its
    anchor a: [margin + S_an - S_ap]₊. Anchors are the images in i2t, the captions in t2i. A pair without a candidate adds 0.
    ``draw``: weights (P, N) to columns (P,); it is asked for i2t first.
    """
    terms = {}
    for name, lines, mask in (("i2t", scores, positives), ("t2i", scores.T, positives.T)):
        weights = distance_weights(lines, mask, cutoff, dim=dim)
        rows, columns = mask.nonzero(as_tuple=True)
        count = max(1, len(rows))
        found = weights.sum(1)[rows] > 0
        rows, columns = rows[found], columns[found]
        costs = lines[rows, columns]
        if len(rows):
            costs = (margin + lines[rows, draw(weights[rows])] - costs).clamp(min=0)
        costs = costs.sum()
        terms[name] = costs / count if reduction == "mean" else costs
    return {"loss": terms["i2t"] + terms["t2i"], **terms}


def collapsed_triplet(num_pairs: int, margin: float = 0.2, reduction: Reduction = "mean") -> float:
    """The sampled triplet loss if all scores were equal, at a distance below the cutoff: 2δ a positive pair."""
    return 2 * margin * (num_pairs if reduction == "sum" else 1)
