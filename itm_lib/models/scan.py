"""SCAN: stacked cross attention between regions and words.

Lee, Chen, Hua, Hu, He: Stacked Cross Attention for Image-Text Matching, ECCV 2018.

Shapes: I images of R regions, C captions of W words, joint dimension d. Symbols of the paper and their names here:

====================  =============================  =========================================
v_k, e_j              regions (I,R,d), words (C,W,d) encoded fragments, unit length
s_ij = v_i · e_j      raw                            affinity of every word with every region
s̄                     normalise_raw                  activation, then a norm over the queries
α (λ₁)                weights                        softmax over the context, lambda_softmax
a                     never formed                   attended vector Σ α · context
R(q, a)               relevance                      cosine of a query with what it attends to
S(I, T) (λ₂)          aggregate                      LSE (lambda_lse), mean, max or sum over queries
====================  =============================  =========================================

``direction="t2i"``: words are the queries, regions the context; ``"i2t"``: the other way round. ``attention="none"`` leaves
the attention out: a query's relevance is its largest affinity. With ``aggregation="sum"`` that is the paper's Sum-Max.
Both directions run through the same functions: n context items of S fragments, m query items of T fragments.

The attended vector is not needed, only q·a = Σ_s α_s (q·c_s) and ‖a‖² = αᵀ G α with the Gram matrix G of the context. So
no tensor is larger than pairs × W × R. Captions are sorted by length and scored in blocks as wide as their longest caption.

Differences from the released code, each with its switch; ``compat="official"`` sets those marked *:

1. ``same_image_negatives``*: other captions of the same image are negatives there; here they are not (False).
2. ``reduction``*: the loss is a sum over the batch there; here the mean ("mean").
3. ``raw_activation``: LeakyReLU(0.1) in both; the paper's max(0, ·) is ``"relu"``.
4. ``raw_feature_norm="l1norm"`` and ``"clipped_l1norm"`` fail there with an undefined name; here they divide by Σ|·| + 1e-8.
5. One image, or one word, fails there (a squeeze drops the axis); here it is scored like any other.
6. LSE is computed with the maximum subtracted. It is not divided by the number of queries, as there.
7. Words come from training captions alone (itm_lib.data.captions); there from training and validation captions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from itm_lib.models.base import Encoding
from itm_lib.models.hinge import FragmentConfig, FragmentModel
from itm_lib.models.layers import score_dtype

Direction = Literal["t2i", "i2t"]
RawNorm = Literal["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "softmax", "clipped", "no_norm"]
Aggregation = Literal["lse", "mean", "max", "sum"]
LAMBDAS = {"t2i": (9.0, 6.0), "i2t": (4.0, 5.0)}  # lambda_softmax and lambda_lse of the paper's Flickr30K models
COPIES = 6     # tensors of the affinities' size alive at once, measured: see tests/benchmarks/bench_scan.py
WORDS = 512    # words a block aims at: narrow blocks of captions sorted by length hold little padding
TINY = 1e-30   # ‖a‖² is clamped here: its root keeps a finite gradient


class SCANConfig(FragmentConfig):
    """Settings of SCAN. The lambdas default to the paper's values of the direction on Flickr30K; COCO i2t has lambda_lse=20."""

    official: ClassVar[dict[str, Any]] = {"reduction": "sum", "same_image_negatives": True, "raw_activation": "leaky_relu"}

    direction: Direction = "t2i"
    attention: Literal["stacked", "none"] = "stacked"
    aggregation: Aggregation = "mean"
    raw_feature_norm: RawNorm = "clipped_l2norm"
    raw_activation: Literal["leaky_relu", "relu"] = "leaky_relu"
    lambda_softmax: PositiveFloat
    lambda_lse: PositiveFloat

    @model_validator(mode="before")
    @classmethod
    def _fill_lambdas(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        softmax, lse = LAMBDAS.get(values.get("direction", "t2i"), LAMBDAS["t2i"])
        return {"lambda_softmax": softmax, "lambda_lse": lse, **values}


def normalise_raw(raw: Tensor, kind: RawNorm, activation: str, query_mask: Tensor | None, scale: float = 1.0) -> Tensor:
    """``scale`` times the raw affinities (n,S,m,T), normalised over the queries T of each context fragment.

    Padded queries have affinity 0, so a norm does not see them; from a softmax ``query_mask`` (m, T) leaves them out.
    """
    if kind.startswith("clipped"):
        raw = torch.relu(raw) if activation == "relu" else torch.nn.functional.leaky_relu(raw, 0.1)
    if kind == "softmax":
        return scale * (raw if query_mask is None else raw.masked_fill(~query_mask, -torch.inf)).softmax(-1)
    if kind in ("clipped", "no_norm"):
        return scale * raw
    length = torch.linalg.vector_norm(raw, 1 if "l1" in kind else 2, -1, keepdim=True)
    return raw * (scale / (length + 1e-8))


def squared_norms(weights: Tensor, gram: Tensor) -> Tensor:
    """‖a‖² = αᵀ G α of what each query attends to: weights (n,S,m,T), gram (n,S,S) -> (n,m,T)."""
    flat = weights.flatten(2)
    return ((gram @ flat) * flat).sum(1).view(len(weights), *weights.shape[2:])


def relevances(context: Tensor, context_mask: Tensor | None, queries: Tensor, query_mask: Tensor | None,
               config: SCANConfig) -> tuple[Tensor, Tensor]:
    """Relevance (n,m,T) of every query and its attention (n,S,m,T), of context (n,S,d) and queries (m,T,d).

    A mask is None where nothing is padded. Padded queries are 0, and their entries mean nothing; padded context has attention 0.
    """
    raw = (context.flatten(0, 1) @ queries.flatten(0, 1).T).view(*context.shape[:2], *queries.shape[:2])
    return _stacked(raw, context, context_mask, queries, query_mask, config)


def paired_relevances(context: Tensor, context_mask: Tensor, queries: Tensor, query_mask: Tensor,
                      config: SCANConfig) -> tuple[Tensor, Tensor]:
    """Relevance (p,1,T) and attention (p,S,1,T) of p pairs alone: context (p,S,d) with mask (p,S), queries (p,T,d) with mask (p,T)."""
    raw = (context @ queries.mT)[:, :, None]
    return _stacked(raw, context, context_mask, queries[:, None], query_mask[:, None], config)


def _stacked(raw: Tensor, context: Tensor, context_mask: Tensor | None, queries: Tensor, query_mask: Tensor | None,
             config: SCANConfig) -> tuple[Tensor, Tensor]:
    """Relevance and attention, of the affinities ``raw`` (n,S,m,T); what belongs to queries is (m,T,...) or (n,1,T,...)."""
    hidden = None if context_mask is None else ~context_mask[:, :, None, None]
    if config.attention == "none":
        seen = raw if hidden is None else raw.masked_fill(hidden, -torch.inf)
        relevance, best = seen.max(1, keepdim=True)
        return relevance.squeeze(1), torch.zeros_like(raw).scatter(1, best, 1)
    true_queries = query_mask if query_mask is None or query_mask.dim() == 2 else query_mask[:, None]
    logits = normalise_raw(raw, config.raw_feature_norm, config.raw_activation, true_queries, config.lambda_softmax)
    weights = (logits if hidden is None else logits.masked_fill(hidden, -torch.inf)).softmax(1)
    attended = squared_norms(weights, context @ context.mT).clamp(min=TINY).sqrt()
    own = torch.linalg.vector_norm(queries, dim=-1)
    return (weights * raw).sum(1) / (own * attended).clamp(min=1e-8), weights


def aggregate(relevance: Tensor, query_mask: Tensor | None, kind: Aggregation, lambda_lse: float) -> Tensor:
    """Scores (n, m): the relevances (n,m,T) pooled over the true queries; ``query_mask`` (m, T) or None.

    >>> aggregate(torch.tensor([[[0.5, 0.1]]]), torch.tensor([[True, False]]), "sum", 6.0)
    tensor([[0.5000]])
    """
    if kind in ("lse", "max"):
        relevance = relevance if query_mask is None else relevance.masked_fill(~query_mask, -torch.inf)
        return relevance.amax(-1) if kind == "max" else torch.logsumexp(lambda_lse * relevance, -1) / lambda_lse
    total = (relevance if query_mask is None else relevance.masked_fill(~query_mask, 0)).sum(-1)
    if kind == "sum":
        return total
    return total / (relevance.shape[-1] if query_mask is None else query_mask.sum(-1))


def caption_blocks(lengths: list[int], area: int) -> Iterator[tuple[list[int], int]]:
    """Rows of captions and their width, in blocks of at most ``area`` words (at least one caption), shortest first."""
    block: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if block and (len(block) + 1) * lengths[row] > area:
            yield block, lengths[block[-1]]
            block = []
        block.append(row)
    if block:
        yield block, lengths[block[-1]]


class SCAN(FragmentModel):
    """Stacked cross attention.

    ``block_bytes`` bounds the working memory of ``similarity`` beyond its inputs and scores; None takes 32 MiB on a CPU,
    where blocks that fit its cache are fastest, and 512 MiB elsewhere. In training the blocks' tensors are kept for the
    backward pass up to ``graph_bytes``; above that each block is computed again there. Neither changes a number beyond
    rounding.
    """

    name = "scan"
    shares_scores = True
    scores_pairs = True
    config_class = SCANConfig
    config: SCANConfig
    block_bytes: int | None = None
    graph_bytes: int = 2**30

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) of all pairs, block by block."""
        dtype = score_dtype(self)
        with torch.autocast(images.fragments.device.type, enabled=False):
            return self._blocked_scores(images.fragments.to(dtype), images.mask, captions.fragments.to(dtype), captions.mask)

    def _blocked_scores(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        lengths = word_mask.sum(1).tolist()
        full = bool(region_mask.all())
        block_bytes = self.block_bytes or (2**25 if regions.device.type == "cpu" else 2**29)
        cells = max(1, block_bytes // (regions.element_size() * COPIES))
        regions = regions if full else regions.masked_fill(~region_mask[..., None], 0)
        height = max(1, min(len(regions), cells // (WORDS * regions.shape[1])))  # images a block
        area = max(1, cells // (height * regions.shape[1]))                      # words a block
        graph = regions.element_size() * COPIES * regions.shape[0] * regions.shape[1] * sum(lengths)
        recompute = torch.is_grad_enabled() and graph > self.graph_bytes
        order, columns = [], []
        for rows, longest in caption_blocks(lengths, area):
            part, part_mask = words[rows, :longest], None
            if lengths[rows[0]] < longest:
                part_mask = word_mask[rows, :longest]
                part = part.masked_fill(~part_mask[..., None], 0)
            scores = []
            for some, some_mask in zip(regions.split(height), region_mask.split(height)):
                block = (some, None if full else some_mask, part, part_mask)
                scores.append(checkpoint(self._score, *block, use_reentrant=False) if recompute else self._score(*block))
            order += rows
            columns.append(torch.cat(scores))
        back = torch.empty(len(order), dtype=torch.int64)
        back[order] = torch.arange(len(order))
        return torch.cat(columns, dim=1)[:, back.to(regions.device)]

    def _score(self, regions: Tensor, region_mask: Tensor | None, words: Tensor, word_mask: Tensor | None) -> Tensor:
        """Scores (I, C) of one block."""
        images, captions = (regions, region_mask), (words, word_mask)
        context, queries = (images, captions) if self.config.direction == "t2i" else (captions, images)
        relevance, _ = relevances(*context, *queries, self.config)
        scores = aggregate(relevance, queries[1], self.config.aggregation, self.config.lambda_lse)
        return scores if self.config.direction == "t2i" else scores.T

    def similarity_of_pairs(self, images: Encoding, captions: Encoding, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores (P,) of P pairs."""
        dtype = score_dtype(self)
        with torch.autocast(images.fragments.device.type, enabled=False):
            sides = [(side.fragments[picked].to(dtype).masked_fill(~side.mask[picked, :, None], 0), side.mask[picked])
                     for side, picked in ((images, rows), (captions, columns))]
            context, queries = sides if self.config.direction == "t2i" else sides[::-1]
            relevance, _ = paired_relevances(*context, *queries, self.config)
            return aggregate(relevance, queries[1][:, None], self.config.aggregation, self.config.lambda_lse).squeeze(1)

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """``attention`` (I, C, W, R): over regions for each word (t2i) or over words for each region (i2t), 0 on padding;
        ``relevance`` (I, C, W) of each word (t2i), or (I, C, R) of each region (i2t), 0 on padding."""
        t2i = self.config.direction == "t2i"
        context, queries = (images, captions) if t2i else (captions, images)
        dtype = score_dtype(self)
        with torch.autocast(context.fragments.device.type, enabled=False):
            visible = queries.fragments.to(dtype).masked_fill(~queries.mask[..., None], 0)
            relevance, weights = relevances(context.fragments.to(dtype), context.mask, visible, queries.mask, self.config)
        weights = (weights * queries.mask).permute(0, 2, 3, 1) if t2i else (weights * queries.mask).permute(2, 0, 1, 3)
        relevance = relevance.masked_fill(~queries.mask, 0)
        return {"attention": weights, "relevance": relevance if t2i else relevance.transpose(0, 1)}

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        """Bytes of the affinities of one pair and of what is derived from them."""
        return torch.finfo(score_dtype(self)).bits // 8 * COPIES * images.fragments.shape[1] * captions.fragments.shape[1]
