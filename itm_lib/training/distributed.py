"""Training in several processes: each takes a share of every batch, and all of them see the loss of the whole.

``batch_size`` is that of all processes together. The sampler's order does not depend on their number; a share is a run of
units (captions with their images, or in the "set" layout images with their captions), uneven where they do not divide, and empty
where there are fewer units than processes. Shares are padded to the width of the whole batch. Encodings are gathered with their
gradient, so that negatives come from the whole batch; scores and loss are then computed on every process.

Start them with ``torchrun --nproc_per_node 2 -m itm_lib.cli train ...``, with ``accelerate launch``, or from a notebook with
:func:`launch`. All processes read and write in the same folders.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from itm_lib.data.dataset import Batch, ImageCaptionDataset, collate
from itm_lib.files import InputError
from itm_lib.models.base import Encoding
from itm_lib.processes import (
    all_or_none,
    barrier,
    from_all,
    from_main,
    gather_rows,
    is_main,
    main_first,
    on_cpu,
    on_main,
    rank,
    share,
    share_of,
    world_size,
)

_TOO_LATE = "and a process that did so cannot be split: restart the kernel and launch first"
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT") if hasattr(signal, name)]

__all__ = ["Part", "all_or_none", "barrier", "from_all", "from_main", "gather_encoding", "is_main", "launch", "main_first",
           "on_main", "part_of", "rank", "seed_of", "share_of", "world_size"]


def seed_of(seed: int, process: int, *more: int) -> int:
    """The seed of one process: ``seed`` itself for the main process and nothing ``more``, else one that is spread over 32 bits."""
    if not process and not more:
        return seed
    return int(np.random.SeedSequence([seed, process, *more]).generate_state(1)[0])


# --- shares of a batch --------------------------------------------------------------------------------------------------


def batch_units(dataset: ImageCaptionDataset, captions: Sequence[int], layout: str) -> list[list[int]]:
    """The caption rows of a batch, unit by unit: one caption, or in the "set" layout all those of one image."""
    if layout != "set":
        return [[caption] for caption in captions]
    units: dict[int, list[int]] = {}
    for caption, image in zip(captions, dataset.caption_to_image[list(captions)].tolist()):
        units.setdefault(image, []).append(caption)
    return list(units.values())


@dataclass
class Part:
    """A process's share of one batch, and what it has to know of the whole: its caption rows, and how many images it has."""

    batch: Batch
    captions: list[int]
    images: int
    counted: bool = True


def part_of(dataset: ImageCaptionDataset, captions: Sequence[int], layout: str, augment: tuple[int, int] | None = None,
            process: int = 0, processes: int = 1) -> Part:
    """A process's share of the batch of caption rows ``captions``, as wide as the whole batch.

    Where there are fewer units than processes, an empty share is the first unit, which does not count: every process takes
    part in every exchange.
    """
    captions = list(captions)
    if processes == 1:
        batch = collate(dataset, captions, layout, augment)
        return Part(batch, captions, len(batch.image_ids))
    units = batch_units(dataset, captions, layout)
    own = units[share_of(len(units), process, processes)]
    batch = collate(dataset, [caption for unit in own or units[:1] for caption in unit], layout, augment)
    words = max(len(dataset.tokens[caption]) for caption in captions)
    batch.tokens, batch.token_mask = wider(batch.tokens, words), wider(batch.token_mask, words)
    if batch.region_mask is not None:
        images = np.unique(dataset.caption_to_image[captions].numpy())
        regions = int(dataset.regions.num_regions[images].max())
        batch.regions, batch.region_mask = wider(batch.regions, regions), wider(batch.region_mask, regions)
    return Part(batch, captions, len(units), bool(own))


def wider(x: Tensor, width: int) -> Tensor:
    """(n, F, ...) with zeros up to F = ``width``."""
    return nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.shape[1])) if width > x.shape[1] else x


def gather_encoding(encoding: Encoding) -> Encoding:
    """The Encodings of all processes one after the other, on all of them, with their gradient; fragments padded to the widest.

    A share that does not count is left out.
    """
    if world_size() == 1:
        return encoding
    own = share()
    if own is not None and not own.counted:
        encoding = encoding.map(lambda value: value[:0])
    sizes = from_all((len(encoding), 0 if encoding.fragments is None else encoding.fragments.shape[1]))
    counts, width = [count for count, _ in sizes], max(width for count, width in sizes if count)

    def gathered(value: Tensor | None) -> Tensor | None:
        return None if value is None else gather_rows(value, counts)

    fragments, mask = (None if part is None else wider(part, width)[:, :width] for part in (encoding.fragments, encoding.mask))
    return Encoding(gathered(fragments), gathered(mask), gathered(encoding.embedding),
                    {name: gathered(value) for name, value in encoding.extra.items()})


# --- from a notebook ------------------------------------------------------------------------------------------------------


def launch(function: Callable[..., Any], *args: Any, num_processes: int = 2, cpu: bool = False) -> None:
    """Run ``function(*args)`` in ``num_processes`` processes of this machine, one a GPU, or on the CPU; with 1, right here.

    ``cpu``: on the CPU, even where there are GPUs. On a CPU each process computes in one thread.

    ``function`` may be one that a notebook's cell defines. What it returns is lost: it writes what is to be kept. An
    :class:`InputError` of any process is raised here. On a machine with GPUs launch comes first: neither a GPU in use nor torch's
    threads for gradients survive a fork. On one without, anything may have happened before.
    """
    if num_processes < 1:
        raise InputError(f"num_processes is {num_processes}: at least 1 is needed")
    gpus = torch.cuda.is_available()  # asked before _as_if_fresh hides them: the first answer holds for this process
    if num_processes == 1:
        with _as_if_fresh(cpu) if cpu else contextlib.nullcontext():
            function(*args)
        return
    if world_size() > 1:
        raise InputError("this is one of several processes already: call the function itself")
    if gpus and torch.cuda.is_initialized():
        raise InputError(f"the GPU was used in this notebook before, {_TOO_LATE}")
    if gpus and not cpu:
        if torch.cuda.device_count() < num_processes:
            raise InputError(f"{num_processes} processes and {torch.cuda.device_count()} GPUs: give each process one of its own")
    elif not hasattr(os, "fork"):
        raise InputError("a notebook cannot be split into processes on this system: use torchrun on the command line")
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder)
        with _as_if_fresh(cpu):
            problem = _launched(function, args, num_processes, told)
        lines = [path.read_text(encoding="utf-8") for path in sorted(told.iterdir())]
    if lines:
        raise InputError(lines[0])
    if problem is not None:
        raise problem


def _launched(function: Callable[..., Any], args: tuple[Any, ...], num_processes: int, told: Path) -> Exception | None:
    from accelerate import launchers
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    noise = {name: logging.getLogger(name) for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn")}
    levels = {name: logger.level for name, logger in noise.items()}
    launchers.print = lambda *_: None  # it says "2 CUDAs" whatever there is
    for logger in noise.values():      # of a process that ended with an error, which is raised here
        logger.setLevel(logging.CRITICAL)
    gc.collect()
    gc.freeze()  # a new process must not collect what is left of an earlier launch: its store would wait for a thread of this one
    try:
        launchers.notebook_launcher(_worker, (function, args, num_processes, str(told)), num_processes, use_port=str(_free_port()))
    except ChildFailedError as error:
        return error
    finally:
        gc.unfreeze()
        for name, level in levels.items():
            noise[name].setLevel(level)
        del launchers.print
    return None


def _worker(function: Callable[..., Any], args: tuple[Any, ...], num_processes: int, told: str) -> None:
    """In a new process: ``function``, its InputError as a line in the folder ``told``."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the notebook's handler would wait for the others as long as this process does
    if on_cpu():
        torch.set_num_threads(1)  # OpenMP's threads of before the fork are gone, and it would wait for them
    try:
        function(*args)
        barrier()
    except (InputError, RuntimeError) as error:
        if not isinstance(error, InputError) and "Autograd-and-Fork" not in str(error):
            raise
        line = str(error) if isinstance(error, InputError) else f"gradients were computed in this notebook where there is a GPU, {_TOO_LATE}"
        (Path(told) / f"{os.environ['RANK']}.txt").write_text(line, encoding="utf-8")
        sys.stdout.flush()
        raise SystemExit(2) from None


@contextlib.contextmanager
def _as_if_fresh(cpu: bool = False) -> Iterator[None]:
    """accelerate as if it had not been used before in this process, few threads and the loopback for its children, and with ``cpu``
    no GPU; afterwards all is as it was, the handlers of signals too, which torch takes over."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [(kind, dict(kind._shared_state)) for kind in (AcceleratorState, GradientState, PartialState)]
    added = {"OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        added["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name may lead nowhere
    added = {name: value for name, value in added.items() if name not in os.environ}
    if cpu:
        added |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    found = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    for kind, _ in states:
        kind._shared_state.clear()
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in _SIGNALS if here}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for kind, values in states:
            kind._shared_state.clear()
            kind._shared_state.update(values)
        for name, value in found.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
