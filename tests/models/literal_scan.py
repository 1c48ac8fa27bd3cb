"""SCAN's similarity written out from its equations: a loop over captions that forms every attended vector.

Slow on purpose. The tests hold the fast rewrite against it, and the benchmark compares their speed.
"""

import torch
from torch import Tensor


def literal_scan(regions: Tensor, num_regions: list[int], words: Tensor, num_words: list[int], *, direction: str = "t2i",
                 aggregation: str = "mean", raw_feature_norm: str = "clipped_l2norm", raw_activation: str = "leaky_relu",
                 lambda_softmax: float = 9.0, lambda_lse: float = 6.0, attention: str = "stacked") -> Tensor:
    """Scores (I, C) of regions (I, R, d) and words (C, W, d); images of fewer regions are scored apart, without padding."""
    columns = []
    options = (direction, aggregation, raw_feature_norm, raw_activation, lambda_softmax, lambda_lse, attention)
    for caption, length in zip(words, num_words):
        true_words = caption[:length].expand(len(regions), -1, -1)                        # (I, w, d)
        if min(num_regions) == regions.shape[1]:
            columns.append(_score(regions, true_words, *options))
        else:
            each = [_score(image[None, :count], true_words[:1], *options) for image, count in zip(regions, num_regions)]
            columns.append(torch.cat(each))
    return torch.stack(columns, dim=1)


def _score(regions: Tensor, words: Tensor, direction: str, aggregation: str, raw_feature_norm: str, raw_activation: str,
           lambda_softmax: float, lambda_lse: float, attention: str) -> Tensor:
    """Scores (I,) of regions (I, r, d) against one caption's words (I, w, d)."""
    queries, context = (words, regions) if direction == "t2i" else (regions, words)
    affinity = context @ queries.transpose(1, 2)                                          # (I, s, t)
    if attention == "none":
        relevance = affinity.max(dim=1).values                                            # (I, t)
    else:
        normalised = _normalised(affinity, raw_feature_norm, raw_activation)
        weights = torch.exp(lambda_softmax * normalised)
        weights = weights / weights.sum(dim=1, keepdim=True)                              # over the context s
        attended = weights.transpose(1, 2) @ context                                      # (I, t, d)
        lengths = torch.linalg.vector_norm(queries, dim=2) * torch.linalg.vector_norm(attended, dim=2)
        relevance = (queries * attended).sum(dim=2) / lengths.clamp(min=1e-8)
    if aggregation == "lse":
        return torch.log(torch.exp(lambda_lse * relevance).sum(dim=1)) / lambda_lse
    if aggregation == "max":
        return relevance.max(dim=1).values
    return relevance.sum(dim=1) if aggregation == "sum" else relevance.mean(dim=1)


def _normalised(affinity: Tensor, kind: str, activation: str) -> Tensor:
    """Over the queries t (last axis) for each context fragment s."""
    if kind.startswith("clipped"):
        affinity = torch.where(affinity > 0, affinity, affinity * (0.1 if activation == "leaky_relu" else 0.0))
    if kind == "softmax":
        return torch.softmax(affinity, dim=2)
    if kind.endswith("l2norm"):
        return affinity / (torch.linalg.vector_norm(affinity, dim=2, keepdim=True) + 1e-8)
    if kind.endswith("l1norm"):
        return affinity / (affinity.abs().sum(dim=2, keepdim=True) + 1e-8)
    return affinity
