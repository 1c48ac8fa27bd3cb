"""CAMP's similarity written out from its equations: a loop over images that forms every pair's messages.

Each image is repeated for all captions and every projection runs per pair, as in the released code. Slow, and simple. The
tests hold the fast rewrite against it, and the benchmark compares their speed. Symbols: v regions, t words, and for a pair
m the message that a fragment gets from the other side, v' and t' the fused fragments, x and y what they are pooled to.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

State = Mapping[str, Tensor]  # parameters by name: attention.*, fusion.*, summary.*, head.*
Seen = dict[str, list[Tensor]]


def literal_camp(state: State, config: Any, regions: Tensor, region_mask: Tensor | None, words: Tensor,
                 word_mask: Tensor | None, seen: Seen | None = None) -> Tensor:
    """Scores (I, C) of regions (I, R, d) and words (C, W, d).

    A mask, (I, R) or (C, W), is None where nothing is padded. An image is scored without its padding; padded words are
    hidden as the released code hides them. ``seen`` collects what is computed on the way: lists of one tensor an image.
    """
    if word_mask is not None:
        words = words.masked_fill(~word_mask[..., None], 0)
    if _over_padding(config):
        missing = config.pad_to - words.shape[1]
        word_mask = word_mask if word_mask is not None else torch.ones(words.shape[:2], dtype=torch.bool)
        words, word_mask = pad(words, (0, 0, 0, missing)), pad(word_mask, (0, missing))
    rows = []
    for number, image in enumerate(regions):
        image = image if region_mask is None else image[region_mask[number]]
        expanded = image.expand(len(words), -1, -1).contiguous()                      # (C, R, d)
        rows.append(_scores(state, config, expanded, words, word_mask, seen))
    return torch.stack(rows)


def _scores(state: State, config: Any, v: Tensor, t: Tensor, mask: Tensor | None, seen: Seen | None) -> Tensor:
    """Scores (C,) of one image, repeated (C, R, d), against captions (C, W, d)."""
    if config.messages == "none":
        fused_v, fused_t = v, t
    else:
        to_v, to_t = _messages(state, config, v, t, mask, seen)
        if config.message_norm:
            to_v, to_t = _unit(to_v), _unit(to_t)
        fused_v = _fused(state, config, "regions", v, to_v, seen)
        fused_t = _fused(state, config, "words", t, to_t, seen)
    x = _unit(_pooled(state, config, "regions", fused_v, None, seen))
    y = _unit(_pooled(state, config, "words", fused_t, None if _over_padding(config) else mask, seen))
    _keep(seen, final_regions=x, final_words=y)
    if config.score == "cosine":
        return (x * y).sum(-1)
    joint = torch.cat([x, y], -1) if config.fusion in ("concat", "none") else x + y
    hidden = torch.relu(linear(joint, state["head.0.weight"], state["head.0.bias"]))
    return torch.sigmoid(linear(hidden, state["head.2.weight"], state["head.2.bias"])).squeeze(-1)


def _over_padding(config: Any) -> bool:
    """Whether the messages' mean goes over ``pad_to`` positions: the cross-attention model alone has one."""
    return (config.mean_over, config.aggregation, config.fusion) == ("pad_to", "mean", "none") and config.messages != "none"


def _messages(state: State, config: Any, v: Tensor, t: Tensor, mask: Tensor | None, seen: Seen | None) -> tuple[Tensor, Tensor]:
    """The text message of each region (C, R, d) and the image message of each word (C, W, d)."""
    if config.messages == "average":
        to_v = _mean(t, mask)[:, None].expand_as(v)
        return to_v, v.mean(1, keepdim=True).expand_as(t)
    projected = lambda name, x: linear(x, state[f"attention.{name}.weight"])
    keys_v, keys_t = projected("image_key", v), projected("text_key", t)
    if not config.second_attention:
        to_t, word_to_region = _attend(keys_t, keys_v, v, None)
        to_v, region_to_word = _attend(keys_v, keys_t, t, mask)
        _keep(seen, attention=word_to_region, region_attention=region_to_word, region_messages=to_v, word_messages=to_t)
        return to_v, to_t
    first_t, word_to_region = _attend(projected("text_query", t), keys_v, v, None)
    first_v, region_to_word = _attend(projected("image_query", v), keys_t, t, mask)
    to_v, among_regions = _attend(projected("text_message_query", first_v), projected("text_message_key", first_v), first_v, None)
    to_t, among_words = _attend(projected("image_message_query", first_t), projected("image_message_key", first_t), first_t, mask)
    _keep(seen, attention=word_to_region, region_attention=region_to_word, first_word_messages=first_t,
          first_region_messages=first_v, among_regions=among_regions, among_words=among_words, region_messages=to_v,
          word_messages=to_t)
    return to_v, to_t


def _attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """softmax(q kᵀ / √d) values and the weights; keys where ``mask`` (C, K) is False are hidden."""
    logits = queries @ keys.transpose(1, 2) / math.sqrt(queries.shape[-1])
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, :], -1e9)
    weights = torch.softmax(logits, dim=-1)
    return weights @ values, weights


def _fused(state: State, config: Any, side: str, own: Tensor, message: Tensor, seen: Seen | None) -> Tensor:
    """ReLU(F(g · [own; message])) + own, (C, n, d); the message alone for ``fusion="none"``."""
    if config.fusion == "none":
        return message
    both = {"concat": lambda: torch.cat([own, message], -1), "sum": lambda: own + message, "product": lambda: own * message}
    both = both[config.fusion]()
    if config.gate != "none":
        product = own * message
        gate = torch.sigmoid(product if config.gate == "elementwise" else product.sum(-1, keepdim=True))
        _keep(seen, **{f"{side}_gate": gate})
        twice = config.gate == "elementwise" and config.fusion == "concat"
        both = (torch.cat([gate, gate], -1) if twice else gate) * both
    fused = torch.relu(linear(both, state[f"fusion.{side}.weight"]))
    return fused + own if config.residual else fused


def _pooled(state: State, config: Any, side: str, x: Tensor, mask: Tensor | None, seen: Seen | None) -> Tensor:
    """Fragments (C, n, d) to (C, d): their mean, or the mean over heads of attention-weighted sums."""
    if config.aggregation == "mean":
        return _mean(x, mask)
    hidden = torch.relu(linear(x, state[f"summary.{side}.0.weight"], state[f"summary.{side}.0.bias"]))
    logits = linear(hidden, state[f"summary.{side}.2.weight"], state[f"summary.{side}.2.bias"])     # (C, n, heads)
    if mask is not None:
        logits = logits.masked_fill(~mask[..., None], -1e9)
    weights = torch.softmax(logits, dim=1)
    _keep(seen, **{f"{side}_summary": weights.transpose(1, 2)})
    return (weights.transpose(1, 2) @ x).mean(1)


def _mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the true fragments: (C, n, d) -> (C, d)."""
    if mask is None:
        return x.mean(1)
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def _unit(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-8)


def _keep(seen: Seen | None, **tensors: Tensor) -> None:
    if seen is not None:
        for name, tensor in tensors.items():
            seen.setdefault(name, []).append(tensor)
