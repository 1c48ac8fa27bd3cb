"""SCAN: stacked cross attention between regions and words.

Lee, Chen, Hua, Hu, He: Stacked Cross Attention for Image-Text Matching, ECCV 2018.

Shapes: I images of R regions, C captions of W words, joint dimension d. Symbols of the paper and their names here:

====================  =============================  =====================================================
v_k, e_j              regions (I,R,d), words (C,W,d)  encoded fragments, unit length
s_ij = v_i · e_j      raw (C,W,I,R)                   affinity of every word with every region
s̄                     normalise_raw                   activation, then a norm over the query axis
α (λ₁)                attention_weights               softmax over the context, lambda_softmax
a                     never formed                    attended vector Σ α · context
R(q, a)               relevance                       cosine of a query with what it attends to
S(I, T) (λ₂)          aggregate                       LSE, mean, max or sum over the queries, lambda_lse
====================  =============================  =====================================================

``direction="t2i"``: words are the queries, regions the context; ``"i2t"``: the other way round. ``attention="none"`` leaves
the attention out: a query's relevance is its largest affinity. With ``aggregation="sum"`` that is the paper's Sum-Max.

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

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from itm_lib.models.base import Encoding
from itm_lib.models.encoders import Projection, RegionProjection, WordGRU
from itm_lib.models.hinge import HingeConfig, HingeModel
from itm_lib.models.layers import full_mask, l2norm, score_dtype

Direction = Literal["t2i", "i2t"]
RawNorm = Literal["clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "softmax", "clipped", "no_norm"]
Aggregation = Literal["lse", "mean", "max", "sum"]
LAMBDAS = {"t2i": (9.0, 6.0), "i2t": (4.0, 5.0)}  # lambda_softmax and lambda_lse of the paper's Flickr30K models
WORD, REGION = 1, 3                               # axes of an affinity block (C, W, I, R)
COPIES = 6     # tensors of the affinities' size alive at once, measured: see tests/benchmarks/bench_scan.py
TINY = 1e-30   # ‖a‖² is clamped here: its root keeps a finite gradient


class SCANConfig(HingeConfig):
    """Settings of SCAN. The lambdas default to the paper's Flickr30K values of the direction."""

    official: ClassVar[dict[str, Any]] = {"reduction": "sum", "same_image_negatives": True, "raw_activation": "leaky_relu"}

    word_dim: PositiveInt = 300
    gru_layers: PositiveInt = 1
    bidirectional: bool = True
    image_projection: Projection = "linear"
    image_norm: bool = True
    text_norm: bool = True
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


def normalise_raw(raw: Tensor, axis: int, kind: RawNorm, activation: str, valid: Tensor | None) -> Tensor:
    """Raw affinities normalised over the query ``axis`` for each context fragment.

    ``valid`` broadcasts to ``raw``, False on padded queries: they count as 0 in a norm and as -inf in a softmax.
    """
    if kind.startswith("clipped"):
        raw = torch.relu(raw) if activation == "relu" else torch.nn.functional.leaky_relu(raw, 0.1)
    if kind == "softmax":
        return (raw if valid is None else raw.masked_fill(~valid, -torch.inf)).softmax(axis)
    if kind.endswith("norm") and kind != "no_norm":
        raw = raw if valid is None else raw.masked_fill(~valid, 0)
        return raw / (torch.linalg.vector_norm(raw, 1 if "l1" in kind else 2, axis, keepdim=True) + 1e-8)
    return raw


def attention_weights(normalised: Tensor, axis: int, lambda_softmax: float, valid: Tensor | None) -> Tensor:
    """Softmax of λ₁ times the normalised affinities over the context ``axis``; padded context gets exactly 0."""
    logits = normalised * lambda_softmax
    return (logits if valid is None else logits.masked_fill(~valid, -torch.inf)).softmax(axis)


def squared_norms(weights: Tensor, gram: Tensor, direction: Direction) -> Tensor:
    """‖a‖² = αᵀ G α for every query: weights (C,W,I,R) with gram (I,R,R) -> (C,W,I), or with (C,W,W) -> (C,I,R)."""
    captions, words, images, regions = weights.shape
    if direction == "t2i":
        by_image = weights.reshape(captions * words, images, regions).transpose(0, 1)       # (I, C·W, R)
        norms = ((by_image @ gram) * by_image).sum(-1)                                      # (I, C·W)
        return norms.T.reshape(captions, words, images)
    flat = weights.reshape(captions, words, images * regions)
    return ((gram @ flat) * flat).sum(1).reshape(captions, images, regions)


def aggregate(relevance: Tensor, axis: int, valid: Tensor | None, kind: Aggregation, lambda_lse: float) -> Tensor:
    """Pool relevances over the query ``axis``. ``valid`` broadcasts, False on padded queries.

    >>> aggregate(torch.tensor([0.5, 0.1]), 0, torch.tensor([True, False]), "sum", 6.0)
    tensor(0.5000)
    """
    if kind in ("lse", "max"):
        relevance = relevance if valid is None else relevance.masked_fill(~valid, -torch.inf)
        return relevance.amax(axis) if kind == "max" else torch.logsumexp(lambda_lse * relevance, axis) / lambda_lse
    total = (relevance if valid is None else relevance.masked_fill(~valid, 0)).sum(axis)
    if kind == "sum":
        return total
    return total / (relevance.shape[axis] if valid is None else valid.sum(axis))


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


class SCAN(HingeModel):
    """Stacked cross attention. ``block_bytes`` bounds the working memory of ``similarity``; ``graph_bytes`` what it keeps for
    the backward pass before it recomputes blocks instead. Neither changes a number beyond rounding."""

    name = "scan"
    config_class = SCANConfig
    config: SCANConfig
    block_bytes: int = 2**26
    graph_bytes: int = 2**30

    def __init__(self, config: SCANConfig):
        super().__init__()
        self.config = config
        self.image = RegionProjection(config.region_dim, config.embed_dim, config.image_projection)
        self.text = WordGRU(config.vocab_size, config.word_dim, config.embed_dim, config.gru_layers, config.bidirectional)

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) -> ``fragments`` (I, R, d), 0 on padding."""
        mask = full_mask(regions, region_mask)
        fragments = self.image(regions).to(score_dtype(self))
        fragments = l2norm(fragments) if self.config.image_norm else fragments
        return Encoding(fragments.masked_fill(~mask[..., None], 0), mask)

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Tokens (C, W) -> ``fragments`` (C, W, d), 0 on padding. ``<start>`` and ``<end>`` are words like others."""
        states = self.text(tokens, token_mask)[0].to(score_dtype(self))
        return Encoding(l2norm(states) if self.config.text_norm else states, token_mask)

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) of all pairs, block by block."""
        dtype = score_dtype(self)
        with torch.autocast(images.fragments.device.type, enabled=False):
            return self._blocked_scores(images.fragments.to(dtype), images.mask, captions.fragments.to(dtype), captions.mask)

    def _blocked_scores(self, regions: Tensor, region_mask: Tensor, words: Tensor, word_mask: Tensor) -> Tensor:
        lengths = word_mask.sum(1).tolist()
        ragged = not bool(region_mask.all())
        gram = regions @ regions.mT if self._needs_region_gram else None
        cells = max(1, self.block_bytes // (regions.element_size() * COPIES))
        width = max(1, min(len(regions), math.isqrt(cells) // regions.shape[1]))
        recompute = torch.is_grad_enabled() and self._graph_bytes(regions, lengths) > self.graph_bytes
        order, columns = [], []
        for rows, longest in caption_blocks(lengths, max(1, cells // (width * regions.shape[1]))):
            part, part_mask = words[rows, :longest], None
            if lengths[rows[0]] < longest:
                part_mask = word_mask[rows, :longest]
            scores = []
            for start in range(0, len(regions), width):
                piece = slice(start, start + width)
                block = (regions[piece], region_mask[piece] if ragged else None, part, part_mask,
                         None if gram is None else gram[piece])
                scores.append(checkpoint(self._score, *block, use_reentrant=False) if recompute else self._score(*block))
            order += rows
            columns.append(torch.cat(scores, dim=1))
        back = torch.empty(len(order), dtype=torch.int64)
        back[order] = torch.arange(len(order))
        return torch.cat(columns)[back.to(regions.device)].T

    @property
    def _needs_region_gram(self) -> bool:
        return self.config.attention == "stacked" and self.config.direction == "t2i"

    def _graph_bytes(self, regions: Tensor, lengths: list[int]) -> int:
        return regions.element_size() * COPIES * regions.shape[0] * regions.shape[1] * sum(lengths)

    def _score(self, regions: Tensor, region_mask: Tensor | None, words: Tensor, word_mask: Tensor | None,
               region_gram: Tensor | None) -> Tensor:
        """Scores (C, I) of one block."""
        relevance, _, valid, axis = self._relevance(regions, region_mask, words, word_mask, region_gram)
        return aggregate(relevance, axis, valid, self.config.aggregation, self.config.lambda_lse)

    def _relevance(self, regions: Tensor, region_mask: Tensor | None, words: Tensor, word_mask: Tensor | None,
                   region_gram: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, int]:
        """Relevance of every query, (C, W, I) or (C, I, R), the attention (C, W, I, R), the queries' mask and their axis."""
        config = self.config
        captions, length, dim = words.shape
        raw = (words.reshape(-1, dim) @ regions.reshape(-1, dim).T).view(captions, length, *regions.shape[:2])
        masks = {WORD: None if word_mask is None else word_mask[:, :, None, None], REGION: region_mask}
        query, context = (WORD, REGION) if config.direction == "t2i" else (REGION, WORD)
        valid = word_mask[:, :, None] if query == WORD and word_mask is not None else masks[query]
        axis = 1 if query == WORD else 2
        if config.attention == "none":
            seen = raw if masks[context] is None else raw.masked_fill(~masks[context], -torch.inf)
            relevance, best = seen.max(context, keepdim=True)
            return relevance.squeeze(context), torch.zeros_like(raw).scatter(context, best, 1), valid, axis
        normalised = normalise_raw(raw, query, config.raw_feature_norm, config.raw_activation, masks[query])
        weights = attention_weights(normalised, context, config.lambda_softmax, masks[context])
        dots = (weights * raw).sum(context)
        gram = region_gram if query == WORD else words @ words.mT
        attended = squared_norms(weights, gram, config.direction).clamp(min=TINY).sqrt()
        own = torch.linalg.vector_norm(words, dim=-1)[:, :, None] if query == WORD else torch.linalg.vector_norm(regions, dim=-1)
        return dots / (own * attended).clamp(min=1e-8), weights, valid, axis

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """``attention`` (I, C, W, R): over regions for each word (t2i) or over words for each region (i2t), 0 on padding;
        ``relevance`` (I, C, W) of each word (t2i), or (I, C, R) of each region (i2t), 0 on padding."""
        dtype = score_dtype(self)
        with torch.autocast(images.fragments.device.type, enabled=False):
            regions, words = images.fragments.to(dtype), captions.fragments.to(dtype)
            gram = regions @ regions.mT
            relevance, weights, valid, _ = self._relevance(regions, images.mask, words, captions.mask, gram)
        real = captions.mask[:, :, None, None] & images.mask[None, None]
        return {
            "attention": weights.masked_fill(~real, 0).permute(2, 0, 1, 3),
            "relevance": relevance.masked_fill(~valid, 0).permute(*((2, 0, 1) if self.config.direction == "t2i" else (1, 0, 2))),
        }

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        """Bytes of the affinities of one pair and of what is derived from them."""
        return torch.finfo(score_dtype(self)).bits // 8 * COPIES * images.fragments.shape[1] * captions.fragments.shape[1]
