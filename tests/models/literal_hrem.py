"""HREM's graph and its two mechanisms written out from their equations: a loop over captions, over pairs of samples and over heads.

Slow on purpose. The tests hold the batched code against it, and the benchmark compares their speed.
"""

import math

import torch
from torch import Tensor, nn


def literal_graph(v: Tensor, u: Tensor, regions: Tensor, num_regions: list[int], words: Tensor, num_words: list[int],
                  mlp_i2t: nn.Module, mlp_t2i: nn.Module, *, threshold: float = 0.5, topk: int = 10, sigma: float = 1.0,
                  padded: bool = False, match_norm: bool = True, residual: bool = True) -> tuple[Tensor, Tensor]:
    """A (N, N) bool and S (N, N) of embeddings (I, d), (C, d) and fragments (I, R, d), (C, W, d), images before captions.

    ``padded``: all R regions take part, and short captions are filled up to ``topk`` words.
    """
    i2t, t2i = literal_matches(regions, num_regions, words, num_words, topk, padded, match_norm)
    relevance = []
    for (mean, vector), mlp in ((i2t, mlp_i2t), (t2i, mlp_t2i)):
        relevance.append(mlp(vector).squeeze(-1) + (mean if residual else 0))
    connection = [_nearest(scores, threshold) for scores in (v @ v.T, i2t[0], t2i[0], u @ u.T)]
    blocks = _closeness(v, sigma), relevance[0], relevance[1], _closeness(u, sigma)
    return _joined(*connection), _joined(*blocks)


def _joined(images: Tensor, i2t: Tensor, t2i: Tensor, captions: Tensor) -> Tensor:
    return torch.cat([torch.cat([images, i2t], dim=1), torch.cat([t2i, captions], dim=1)])


def _nearest(scores: Tensor, threshold: float) -> Tensor:
    rows = []
    for row in scores:
        border = row.sort(descending=True).values[max(1, math.floor(len(row) * threshold)) - 1]
        rows.append(row >= border)
    return torch.stack(rows)


def _closeness(x: Tensor, sigma: float) -> Tensor:
    return torch.stack([torch.exp(-torch.linalg.vector_norm(row - x, dim=1) / sigma) for row in x])


def literal_matches(regions: Tensor, num_regions: list[int], words: Tensor, num_words: list[int], topk: int = 10,
                    padded: bool = False, match_norm: bool = True) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(p, q) of i2t (I, C), (I, C, K) and of t2i (C, I), (C, I, K), caption by caption."""
    regions = regions.detach() / torch.linalg.vector_norm(regions.detach(), dim=-1, keepdim=True).clamp(min=1e-12)
    words = words.detach() / torch.linalg.vector_norm(words.detach(), dim=-1, keepdim=True).clamp(min=1e-12)
    columns = []
    for caption, length in zip(words, num_words):
        taken = caption[: max(length, topk) if padded else length]
        if padded or min(num_regions) == regions.shape[1]:
            columns.append(_match(regions, taken, length, topk, match_norm))
        else:
            each = [_match(image[None, :count], taken, length, topk, match_norm) for image, count in zip(regions, num_regions)]
            columns.append([torch.cat(part) for part in zip(*each)])
    i2t_mean, i2t_vector, t2i_mean, t2i_vector = (list(part) for part in zip(*columns))
    return ((torch.stack(i2t_mean, dim=1), torch.stack(i2t_vector, dim=1)), (torch.stack(t2i_mean), torch.stack(t2i_vector)))


def _match(regions: Tensor, words: Tensor, length: int, topk: int, match_norm: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p (I,) and q (I, K) both ways, of regions (I, r, d) and one caption's words (w, d), ``length`` of them true."""
    affinity = regions @ words.T                                                            # (I, r, w)
    by_region = by_word = affinity
    if match_norm:
        affinity = torch.where(affinity > 0, affinity, 0.1 * affinity)
        by_region = affinity / torch.sqrt((affinity**2).sum(dim=2, keepdim=True)).clamp(min=1e-12)
        by_word = affinity / torch.sqrt((affinity**2).sum(dim=1, keepdim=True)).clamp(min=1e-12)
    word_best = by_region.max(dim=1).values                                                 # (I, w)
    region_best = by_word[:, :, :length].max(dim=2).values                                  # (I, r)
    return (region_best.mean(dim=1), _largest(region_best, topk), word_best[:, :length].mean(dim=1), _largest(word_best, topk))


def _largest(values: Tensor, topk: int) -> Tensor:
    ordered = values.sort(dim=1, descending=True).values[:, :topk]
    return torch.cat([ordered, ordered.new_zeros(len(ordered), topk - ordered.shape[1])], dim=1)


def literal_mechanism(layers: nn.Module, images: Tensor, captions: Tensor, connection: Tensor, relevance: Tensor, weight: float,
                      mechanism: str, relations: str = "all") -> tuple[Tensor, Tensor]:
    """v~ (I, d) and u~ (C, d) of nodes (I, d) and (C, d), one node and one head at a time."""
    count = len(images)
    logits = torch.where(connection, weight * relevance, -torch.inf)
    for layer in layers:
        if mechanism == "fusion":
            nodes = torch.cat([images, captions])
            nodes = _feed(layer.feed, _attend(layer.attend, nodes, nodes, logits))
            images, captions = nodes[:count], nodes[count:]
            continue
        before = images, captions
        images, captions = (
            _branch(layer.images, *before, logits[:count, count:], logits[:count, :count], relations),
            _branch(layer.captions, *before[::-1], logits[count:, :count], logits[count:, count:], relations))
    return tuple(side / torch.linalg.vector_norm(side, dim=1, keepdim=True) for side in (images, captions))


def _branch(branch: nn.Module, nodes: Tensor, others: Tensor, cross: Tensor, own: Tensor, relations: str) -> Tensor:
    if relations != "intra":
        nodes = _attend(branch.cross, nodes, others, cross)
    if relations != "inter":
        nodes = _attend(branch.own, nodes, nodes, own)
    return _feed(branch.feed, nodes)


def _attend(layer: nn.Module, receivers: Tensor, senders: Tensor, logits: Tensor) -> Tensor:
    attention = layer.attention
    (wq, wk, wv), (bq, bk, bv) = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    queries, keys, values = receivers @ wq.T + bq, senders @ wk.T + bk, senders @ wv.T + bv
    size = queries.shape[1] // attention.num_heads
    rows = []
    for node, query in enumerate(queries):
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * size, (head + 1) * size)
            weights = torch.softmax(keys[:, part] @ query[part] / math.sqrt(size) + logits[node], dim=0)
            heads.append(weights @ values[:, part])
        rows.append(attention.out_proj.weight @ torch.cat(heads) + attention.out_proj.bias)
    return layer.norm(receivers + torch.stack(rows))


def _feed(layer: nn.Module, x: Tensor) -> Tensor:
    return layer.norm(x + layer.second(torch.relu(layer.first(x))))
