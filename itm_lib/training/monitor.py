"""What a run tells while it trains: pairs a second, peak memory, time left; and TensorBoard's curves.

Nothing here draws a random number or touches a tensor of the model, so a run's numbers are the same with it and without.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from itm_lib.files import InputError

WINDOW = 50        # steps of the moving window
REFRESH = 0.5      # seconds for which what the bar shows is kept
TENSORBOARD = "tensorboard"  # the folder of the curves, in a run's folder
SKIPPED = ("kind", "stage", "epoch", "step", "best", "message", "after", "weights")  # of a history row: no curves


def peak_memory() -> int:
    """The most memory held so far, in bytes: of this process's GPU since :func:`forget_peak`, or else of the process since its start."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> None:
    """Start to count the GPU's peak anew; a process's own peak cannot be forgotten."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


class Monitor:
    """Throughput, memory and time left of one run, or of one of its stages.

    ``steps`` and ``evaluations`` that are left to do; ``steps_ahead`` and ``evaluations_ahead``: those of later stages, which are
    taken to be as long as this one's. The clock stands still in :meth:`pause` for what is no step: evaluation, clustering, checkpoints.
    """

    def __init__(self, steps: int, evaluations: int, steps_ahead: int = 0, evaluations_ahead: int = 0):
        self.steps, self.evaluations = steps + steps_ahead, evaluations + evaluations_ahead
        self._recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)
        self._epoch_seconds, self._epoch_pairs = 0.0, 0
        self._evaluation: float | None = None  # seconds of the latest
        self._since = time.perf_counter()
        self._shown: tuple[float, dict[str, str]] = (-1.0, {})
        forget_peak()

    def step(self, pairs: int) -> None:
        """One step is done, of ``pairs`` captions with their images, over all processes."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._recent.append((seconds, pairs))
        self._epoch_seconds += seconds
        self._epoch_pairs += pairs
        self.steps -= 1

    @contextlib.contextmanager
    def pause(self, evaluation: bool = False) -> Iterator[None]:
        """What happens inside counts as no part of a step; with ``evaluation``, as one of the evaluations."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - begin
            self._since += took
            if evaluation:
                self._evaluation = took
                self.evaluations -= 1

    @property
    def last_pairs(self) -> int:
        """Pairs of the latest step."""
        return self._recent[-1][1]

    @property
    def pairs_per_second(self) -> float | None:
        """Over the last steps; None before the first."""
        seconds = sum(each for each, _ in self._recent)
        return sum(pairs for _, pairs in self._recent) / seconds if seconds else None

    @property
    def seconds_left(self) -> float | None:
        """Steps at the pace of the last ones, and evaluations at that of the last one; without these before the first."""
        if not self._recent:
            return None
        pace = sum(seconds for seconds, _ in self._recent) / len(self._recent)
        return max(0, self.steps) * pace + max(0, self.evaluations) * (self._evaluation or 0.0)

    def shown(self) -> dict[str, str]:
        """What the bar shows."""
        now = time.perf_counter()
        if now - self._shown[0] > REFRESH and self._recent:
            pairs, left = self.pairs_per_second, self.seconds_left
            more = ">" if self._evaluation is None and self.evaluations > 0 else ""  # evaluations come on top
            self._shown = now, {"pairs/s": f"{pairs:.3g}" if pairs < 100 else f"{pairs:.0f}", "MiB": f"{peak_memory() / 2**20:.0f}",
                                "left": f"{more}{timedelta(seconds=round(left))}"}
        return self._shown[1]

    def epoch(self) -> dict[str, float]:
        """``pairs_per_second`` and ``peak_memory_mib`` of the epoch that ends, for its row of the history."""
        pace = self._epoch_pairs / self._epoch_seconds if self._epoch_seconds else 0.0
        self._epoch_seconds, self._epoch_pairs = 0.0, 0
        return {"pairs_per_second": round(pace, 3), "peak_memory_mib": round(peak_memory() / 2**20, 1)}


class Curves:
    """The rows of a history as TensorBoard's curves, in ``folder``/tensorboard; one curve a number, its x axis the step.

    A run that goes on from step ``step`` goes on with its curves: what was logged after that step, before the run was stopped, is
    marked as withdrawn. If it had none so far they begin with ``rows``, its history. ``fresh`` removes those of an earlier run.
    """

    def __init__(self, folder: Path, step: int = 0, fresh: bool = True, rows: Iterable[dict[str, Any]] = ()):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError("train.tensorboard needs the package tensorboard: pip install tensorboard, or set it to false") from None
        folder = folder / TENSORBOARD
        events = list(folder.glob("events.out.tfevents.*"))
        if fresh:
            for path in events:
                path.unlink()
        self._writer = SummaryWriter(str(folder), purge_step=None if fresh else step + 1)
        if not fresh and not events:
            for row in rows:
                self.add(row)

    def add(self, row: dict[str, Any]) -> None:
        """The numbers of a row: those of steps as ``train/...``, of an epoch's validation and times as ``epoch/...``."""
        group = {"steps": "train", "epoch": "epoch"}.get(row["kind"])
        if group is None:
            return
        for name, value in row.items():
            if name not in SKIPPED and isinstance(value, (int, float)):
                self._writer.add_scalar(f"{group}/{name}", value, row["step"])

    def flush(self) -> None:
        """Put what was added on the disk; with a checkpoint, so that none of its steps is lost."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
