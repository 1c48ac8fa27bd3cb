"""Small pieces that several models share: normalisation, masked pooling, dtypes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itm_lib.processes import all_sum, share


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


class _OverAllProcesses:
    """BatchNorm whose statistics are of all rows of the batch, wherever they are; of one process's alone it is torch's own.

    torch's SyncBatchNorm does not run on a CPU. Processes may have different numbers of rows, or none that count.
    """

    def forward(self, x: Tensor) -> Tensor:
        own = share()
        if own is None or not self.training:
            return super().forward(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        axes, shape = [0, *range(2, x.dim())], (-1, *[1] * (x.dim() - 2))
        rows = wide if own.counted else wide[:0]
        parts = all_sum(torch.cat([rows.sum(axes), rows.new_full((1,), rows.numel() / x.shape[1])]))
        count = parts[-1].detach()
        mean = (parts[:-1] / count).view(shape)
        squares = all_sum((rows - mean).square().sum(axes))
        self._move(mean.detach().flatten(), squares.detach() / (count - 1).clamp(min=1))
        normed = (wide - mean) * (squares / count + self.eps).rsqrt().view(shape)
        if self.affine:
            normed = normed * self.weight.view(shape) + self.bias.view(shape)
        return normed.to(x.dtype)

    def _move(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics, as torch moves them."""
        if not self.track_running_stats:
            return
        self.num_batches_tracked.add_(1)
        step = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, value in ((self.running_mean, mean), (self.running_var, variance)):
            running.lerp_(value.to(running.dtype), step)


class BatchNorm1d(_OverAllProcesses, nn.BatchNorm1d):
    """Of rows (n, C)."""


class BatchNorm2d(_OverAllProcesses, nn.BatchNorm2d):
    """Of maps (n, C, H, W)."""
