"""Small pieces that several models share: normalisation, masked pooling, dtypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def l2norm(x: Tensor, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """x / (‖x‖₂ + eps) along ``dim``: the authors' embeddings. A zero vector stays zero and has a finite gradient."""
    return x / (torch.linalg.vector_norm(x, dim=dim, keepdim=True) + eps)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the true fragments: (n, F, E) and mask (n, F) -> (n, E)."""
    keep = mask[..., None].to(x.dtype)
    return (x * keep).sum(1) / keep.sum(1).clamp(min=1)


def masked_max(x: Tensor, mask: Tensor) -> Tensor:
    """Maximum over the true fragments: (n, F, E) and mask (n, F) -> (n, E)."""
    return x.masked_fill(~mask[..., None], -torch.inf).amax(1)


def full_mask(x: Tensor, mask: Tensor | None) -> Tensor:
    """``mask`` (n, F), or all True where it is None."""
    return mask if mask is not None else torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)


def score_dtype(module: nn.Module) -> torch.dtype:
    """The dtype scores are computed in: the parameters', at least float32, whatever autocast says."""
    return torch.promote_types(next(module.parameters()).dtype, torch.float32)


def softmax(logits: Tensor) -> Tensor:
    """Softmax over the last axis, the maximum subtracted. torch's own is several times slower on a CPU where that axis is
    shorter than a vector register, as words and regions of a small dataset are."""
    if logits.shape[-1] >= 32 or logits.device.type != "cpu":
        return logits.softmax(-1)
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)
