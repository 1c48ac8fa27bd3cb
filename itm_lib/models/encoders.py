"""Encoders that several models share: a linear map of region features, and a GRU over words."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from itm_lib.files import InputError

Projection = Literal["linear", "weight_norm"]


class RegionProjection(nn.Module):
    """v = W f + b for every region: (I, R, D) -> (I, R, d).

    W starts uniform in ±√6/√(D + d), b at 0. ``kind="weight_norm"`` writes W = g V / ‖V‖_F with one scalar g for the
    whole matrix and learns g and V.
    """

    def __init__(self, region_dim: int, embed_dim: int, kind: Projection = "linear"):
        super().__init__()
        self.fc = nn.Linear(region_dim, embed_dim)
        bound = math.sqrt(6 / (region_dim + embed_dim))
        nn.init.uniform_(self.fc.weight, -bound, bound)
        nn.init.zeros_(self.fc.bias)
        if kind == "weight_norm":
            weight_norm(self.fc, dim=None)

    def forward(self, regions: Tensor) -> Tensor:
        if regions.dim() != 3 or regions.shape[-1] != self.fc.in_features:
            raise InputError(f"regions of shape {tuple(regions.shape)} were given to a model built for (images, regions, "
                             f"{self.fc.in_features}): use the features it was trained on, or set region_dim")
        return self.fc(regions.to(self.fc.bias.dtype))


class WordGRU(nn.Module):
    """Word embeddings (uniform in ±0.1) and a GRU over the true words alone.

    Where it is bidirectional each direction has ``embed_dim`` units and the two states are averaged. Token masks are True
    for the first words of a row and False after them.
    """

    def __init__(self, vocab_size: int, word_dim: int, embed_dim: int, layers: int = 1, bidirectional: bool = True):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, word_dim)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        self.rnn = nn.GRU(word_dim, embed_dim, layers, batch_first=True, bidirectional=bidirectional)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (C, W) and mask (C, W) -> states (C, W, d), zero on padding, and the final state (C, d)."""
        return self.run(self.look_up(tokens), token_mask)

    def look_up(self, tokens: Tensor) -> Tensor:
        """Tokens (C, W) -> their word embeddings (C, W, word_dim)."""
        if tokens.device.type == "cpu" and int(tokens.max()) >= self.embed.num_embeddings:
            raise InputError(f"token id {int(tokens.max())} is outside the model's vocabulary of "
                             f"{self.embed.num_embeddings} words: use the vocabulary the model was trained with")
        return self.embed(tokens)

    def run(self, words: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Word embeddings (C, W, word_dim) and mask (C, W) -> states (C, W, d) and the final state (C, d)."""
        packed = pack_padded_sequence(words, token_mask.sum(1).cpu(), batch_first=True, enforce_sorted=False)
        outputs, final = self.rnn(packed)
        states, _ = pad_packed_sequence(outputs, batch_first=True, total_length=words.shape[1])
        if not self.rnn.bidirectional:
            return states, final[-1]
        forwards, backwards = states.chunk(2, dim=-1)
        return (forwards + backwards) / 2, (final[-2] + final[-1]) / 2
