"""Regions and words dropped at random in training, as HREM and DivE do it, and the other models if they are told to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from itm_lib.data.dataset import Batch
from itm_lib.models.layers import full_mask
from itm_lib.processes import widest

UNKNOWN_WORD = 3             # of itm_lib.data.captions.Vocabulary: what a masked word becomes where there is no other mask
MASKED, REPLACED = 0.5, 0.1  # of the dropped words; the rest is deleted


def pack(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept of each row (n,F,...), in its order and from the start, 0 after it; and the mask (n,F'), F' the longest.

    Of a share of a batch, F' is the longest of the whole batch.
    """
    width = widest(int(keep.sum(1).max()))
    order = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    rows = torch.arange(len(values), device=values.device)[:, None]
    mask = keep[rows, order]
    return values[rows, order].masked_fill(~mask.view(*mask.shape, *[1] * (values.dim() - 2)), 0), mask


def drop_regions(regions: Tensor, mask: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """Leave out each true region with probability ``rate``; an image that would lose all keeps all."""
    keep = mask & (torch.rand(mask.shape, device=mask.device) >= rate)
    return pack(regions, torch.where(keep.any(1, keepdim=True), keep, mask))


def drop_words(tokens: Tensor, mask: Tensor, rate: float, mask_id: int, vocab_size: int,
               continues: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Each word with probability ``rate``: half of them masked, a tenth replaced by random tokens, the rest deleted.

    The first and the last token of a caption stay, and a caption that would lose all words loses none. ``continues``
    (vocab_size,): tokens that belong to the word before, and share its fate.
    """
    last = mask.sum(1, keepdim=True) - 1
    place = torch.arange(tokens.shape[1], device=tokens.device)
    inner = (place > 0) & (place < last)
    word = place.expand_as(tokens)
    if continues is not None:  # the place where the word starts
        word = torch.where(inner & continues[tokens], 0, place).cummax(1).values
    fate = torch.rand(tokens.shape, device=tokens.device).gather(1, word) / rate
    fate = torch.where(inner, fate, 1.0)
    keep = mask & ((fate < MASKED + REPLACED) | (fate >= 1))
    keep = torch.where((keep & inner).any(1, keepdim=True), keep, mask)
    random = torch.randint(min(UNKNOWN_WORD + 1, vocab_size - 1), vocab_size, tokens.shape, device=tokens.device)
    changed = torch.where(fate < MASKED, mask_id, torch.where(fate < MASKED + REPLACED, random, tokens))
    return pack(changed, keep)


def drop_fragments(batch: Batch, config: Any, continues: Tensor | None = None) -> Batch:
    """``batch`` with regions and words dropped as ``config`` says: ``region_dropping``, ``word_dropping``, ``mask_id``, ``vocab_size``.

    Pictures stay whole: what a backbone makes of them is dropped behind it. So do captions of a frozen BERT: see :func:`drop_states`.
    """
    values = dict(vars(batch))
    if config.region_dropping and batch.regions.dim() == 3:
        mask = full_mask(batch.regions, batch.region_mask)
        values["regions"], values["region_mask"] = drop_regions(batch.regions, mask, config.region_dropping)
    if config.word_dropping and not getattr(config, "bert_frozen", False):
        mask_id = UNKNOWN_WORD if config.mask_id is None else config.mask_id
        values["tokens"], values["token_mask"] = drop_words(
            batch.tokens, batch.token_mask, config.word_dropping, mask_id, config.vocab_size, continues)
    return Batch(**values)


def drop_states(states: Tensor, mask: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Of a frozen BERT's states (C,W,d) with mask (C,W) each is left out with probability ``word_dropping``, but the first and the last of a
    caption; without a frozen BERT nothing changes."""
    if not (config.bert_frozen and config.word_dropping):
        return states, mask
    place = torch.arange(mask.shape[1], device=mask.device)
    ends = (place == 0) | (place == mask.sum(1, keepdim=True) - 1)
    return pack(states, mask & (ends | (torch.rand(mask.shape, device=mask.device) >= config.word_dropping)))
