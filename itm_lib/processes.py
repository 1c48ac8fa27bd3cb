"""Several processes that train one model: who this one is, how they agree, and what they exchange.

torchrun, ``accelerate launch`` and :func:`itm_lib.training.distributed.launch` start them; with one process everything here is
the identity. Plain numbers and tensors of the CPU go through a gloo group of their own, whatever the devices are: it waits a day
for a process that prepares data or writes, and holds up no GPU. What has a gradient goes through the group that
accelerate made (NCCL, or gloo).

Gradients. After a gather every process computes the same loss L, and DistributedDataParallel takes the mean over the
W processes. So what is minimised is (L₁ + ... + L_W) / W = L, and :func:`gather_rows` and :func:`all_sum` give its exact gradient:
backward they add up what all processes ask for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from itm_lib import threads
from itm_lib.files import InputError

PATIENCE = timedelta(days=1)  # for one another, outside of what has a gradient
_plain: dict[str, Any] = {}   # the default group, and the gloo group made beside it


# --- who this process is ------------------------------------------------------------------------------------------------


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if _joined() else 0


def is_main() -> bool:
    """Whether this process is the one that writes, locks and prints."""
    return rank() == 0


def usable_cpus() -> int:
    """CPUs that this process may use: more processes that read data than that slow it down."""
    return len(threads.usable_cpus())


def _joined() -> bool:
    """Whether there are several processes; the first call meets the others, which takes all of them."""
    if not dist.is_available():
        return False
    if not dist.is_initialized():
        if "LOCAL_RANK" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) < 2:
            return False
        from accelerate import PartialState

        PartialState(cpu=on_cpu())
    return dist.get_world_size() > 1


def on_cpu() -> bool:
    """Whether several processes compute on the CPU: there is nothing else, or ``ACCELERATE_USE_CPU`` says so."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y", "on"):
        return True
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator is None or accelerator.type == "mps"  # several processes cannot share Apple's


def _group() -> dist.ProcessGroup:
    """The gloo group; made by all processes at the first exchange."""
    if _plain.get("of") is not dist.group.WORLD:
        _plain.update(of=dist.group.WORLD, group=dist.new_group(backend="gloo", timeout=PATIENCE))
    return _plain["group"]


# --- agreeing -------------------------------------------------------------------------------------------------------------


def barrier() -> None:
    """Wait until all processes are here."""
    if _joined():
        dist.barrier(_group())


def from_one(value: Any, source: int) -> Any:
    """The ``value`` of process ``source``, on all."""
    if not _joined():
        return value
    box = [value]
    dist.broadcast_object_list(box, source, _group())
    return box[0]


def from_main(value: Any) -> Any:
    """The main process's ``value``, on all."""
    return from_one(value, 0)


def from_all(value: Any) -> list[Any]:
    """The values of all processes, in order, on all."""
    if not _joined():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, _group())
    return values


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """What is done inside works on every process; or the first :class:`InputError` of any is raised on all, and none waits for it.

    Nothing inside may wait for another process.
    """
    if not _joined():
        yield
        return
    problem: InputError | None = None
    try:
        yield
    except InputError as error:
        problem = error
    flag = torch.tensor([int(problem is not None)])
    dist.all_reduce(flag, dist.ReduceOp.MAX, _group())
    if int(flag):
        told = [line for line in from_all(None if problem is None else str(problem)) if line is not None]
        raise InputError(told[0]) from None


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main process does what is inside, and then the others: they find what it prepared.

    An :class:`InputError` of the main process is raised on all, and the others do nothing.
    """
    if not _joined():
        yield
        return
    if is_main():
        with all_or_none():
            yield
    else:
        with all_or_none():
            pass  # the main process's turn
        yield


def on_main(manager: contextlib.AbstractContextManager[Any]) -> contextlib.AbstractContextManager[Any]:
    """``manager`` entered by the main process alone; what it refuses is raised on all."""
    if not _joined():
        return manager
    return _on_main(manager)


@contextlib.contextmanager
def _on_main(manager: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        with all_or_none():
            if is_main():
                stack.enter_context(manager)
        yield


# --- exchanging tensors ---------------------------------------------------------------------------------------------------


class _AllSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone().contiguous()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllSum.forward(ctx, gradient)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        return _concatenated(x.detach(), counts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        first = sum(ctx.counts[: rank()])
        return _AllSum.forward(ctx, gradient)[first : first + ctx.counts[rank()]], None


def _concatenated(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows of all processes; ``counts``: how many each has. What has fewer is padded on the way."""
    sent = x.to(torch.uint8) if x.dtype == torch.bool else x  # gloo has no bool
    sent = torch.cat([sent, sent.new_zeros(max(counts) - len(sent), *sent.shape[1:])]).contiguous()
    parts = [torch.empty_like(sent) for _ in counts]
    dist.all_gather(parts, sent)
    return torch.cat([part[:count] for part, count in zip(parts, counts)]).to(x.dtype)


def all_sum(x: Tensor) -> Tensor:
    """The sum of the processes' ``x``, on all, with its gradient."""
    return _AllSum.apply(x) if _joined() else x


def gather_rows(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows (n, ...) of all processes one after the other, on all, with their gradient; ``counts``: each one's n."""
    if not _joined():
        return x
    if not x.is_floating_point():
        return _concatenated(x, counts)
    return _GatherRows.apply(x, tuple(counts))


def add_up(x: Tensor) -> Tensor:
    """The sum of the processes' ``x``, a tensor on the CPU; in place."""
    if _joined():
        dist.all_reduce(x, group=_group())
    return x


# --- a share of a batch -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Share:
    """This process's share of a batch while it is encoded.

    ``counted`` False: there were fewer samples than processes; this one computes something all the same, for the others wait
    for it, but it is no part of the batch. ``seed``: of the random numbers that all processes draw alike.
    """

    counted: bool
    seed: int


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextlib.contextmanager
def sharing(share: Share) -> Iterator[None]:
    """While inside, what is encoded is a share of a batch: see :func:`share`."""
    token = _share.set(share)
    try:
        yield
    finally:
        _share.reset(token)


def share() -> Share | None:
    """The share that is being encoded; None where what is encoded is all there is."""
    return _share.get()


def widest(width: int) -> int:
    """The largest ``width`` of all shares of the batch; ``width`` itself where there is one."""
    own = share()
    if own is None:
        return width
    largest = torch.tensor([width if own.counted else 0])
    dist.all_reduce(largest, dist.ReduceOp.MAX, _group())
    return max(width, int(largest))


def share_of(units: int, process: int, processes: int) -> slice:
    """Which of a batch's ``units`` a process takes; shares differ by one at most.

    >>> [share_of(5, process, 2) for process in (0, 1)]
    [slice(0, 2, None), slice(2, 5, None)]
    """
    return slice(units * process // processes, units * (process + 1) // processes)


def share_sizes(units: int) -> list[int]:
    """How many of ``units`` each process takes."""
    shares = [share_of(units, process, world_size()) for process in range(world_size())]
    return [part.stop - part.start for part in shares]


@contextlib.contextmanager
def same_random() -> Iterator[None]:
    """Where a batch is shared, all processes draw the same random numbers inside; afterwards each goes on with its own."""
    own = share()
    if own is None:
        yield
        return
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
    with torch.random.fork_rng([] if device is None else [device]):
        torch.manual_seed(own.seed)
        yield
