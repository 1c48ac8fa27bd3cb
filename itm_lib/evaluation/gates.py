"""How far a model's gates are open on pairs that match and on pairs that do not: the paper's check of what gates are for."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from itm_lib.evaluation.scoring import block_grid, evaluating
from itm_lib.files import InputError
from itm_lib.models.base import Encoding, MatchingModel


def gate_statistics(model: MatchingModel, images: Encoding, captions: Encoding, positives: Tensor, block_bytes: int = 2**24,
                    device: torch.device | str | None = None) -> dict[str, float]:
    """Mean gate of the pairs where ``positives`` (I, C) bool is True, and of all others, as fractions from 0 to 1.

    ``gate_positive`` and ``gate_negative``: the mean over a pair's true regions and words, then over the pairs;
    ``gate_regions_positive``, ``gate_words_positive`` and so on: over the fragments of one side. The gates are those of
    ``model.explain``; a model without gates has ``{}``, and where there is no pair of a kind its keys are left out. Pairs
    go in blocks as in ``similarity_matrix``, whose working memory stays within ``block_bytes``.
    """
    if positives.shape != (len(images), len(captions)):
        raise InputError(f"positives are {' x '.join(map(str, positives.shape))} for {len(images)} images and "
                         f"{len(captions)} captions")
    positives, sums = positives.bool().cpu(), {}
    rows, columns = block_grid(model, images, captions, block_bytes)
    with evaluating(model, device) as where:
        for row, column in product(rows, columns):
            block = images.select(row).to(where), captions.select(column).to(where)
            means = _pair_means(model.explain(*block), *(side.to("cpu") for side in block))
            if not means:
                return {}
            true = positives[row][:, column]
            for side, values in means.items():
                for kind, chosen in (("positive", true), ("negative", ~true)):
                    sums[side, kind] = sums.get((side, kind), 0.0) + float(values[chosen].sum())
    counts = {"positive": int(positives.sum()), "negative": int((~positives).sum())}
    return {"_".join(filter(None, ["gate", side, kind])): total / counts[kind]
            for (side, kind), total in sums.items() if counts[kind]}


def _pair_means(seen: dict[str, Tensor], images: Encoding, captions: Encoding) -> dict[str, Tensor]:
    """Mean gate (I, C), float64 on the CPU, of the true fragments of each pair: of both sides together "", of "regions" and of "words"."""
    if "region_gates" not in seen or "word_gates" not in seen:
        return {}
    regions = seen["region_gates"].cpu().double() * images.mask[:, None, :]
    words = seen["word_gates"].cpu().double() * captions.mask[None, :, :]
    num_regions, num_words = images.mask.sum(1)[:, None], captions.mask.sum(1)[None, :]
    return {"": (regions.sum(-1) + words.sum(-1)) / (num_regions + num_words),
            "regions": regions.sum(-1) / num_regions, "words": words.sum(-1) / num_words}
