"""How torch's memory and threads use this machine. ``import itm_lib`` calls :func:`prepare`, so that every way in has it.

Two things that have nothing to do with a model cost more time on a CPU than its equations, if they are left as they come:

* **Freed memory goes back to the system.** glibc returns each large tensor when it is freed, and the next one of its size is taken page by page
  anew. :func:`keep_freed_memory` keeps up to a gigabyte. Extraction takes half the time.
* **Waiting threads spin.** torch splits an operation among OpenMP's threads, and each that has finished spins until the last one has. On an idle
  machine that is the fastest way to wait. Beside another busy program it is the slowest: a thread that spins takes the CPU from the thread that
  it waits for. ``OMP_WAIT_POLICY=PASSIVE`` lets threads sleep instead, but then small models lose a third of their speed on an idle machine.
  :class:`CpuWatch` does both: every half second it looks whether other programs want the CPUs, and lets threads spin or sleep.

How threads are told: GNU's OpenMP (libgomp, which PyPI's torch for Linux carries) spins only briefly while it manages more threads than there are
CPUs. So while the machine is crowded, a thread of ours opens a second team of OpenMP threads, which sleeps, and ends it afterwards. With
another OpenMP nothing is changed. Neither setting changes a number: how long a thread spins, and where memory lies, are no part of a sum.

A user's own settings win: with ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` there is no watch, with ``MALLOC_*`` or ``GLIBC_TUNABLES`` memory stays as
it is, and ``OMP_NUM_THREADS`` is never replaced. ``ITM_THREADS=plain`` switches all of this off.
"""

from __future__ import annotations

import atexit
import ctypes
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h
KEPT = 2**30           # bytes of freed memory that the process keeps
INTERVAL = 0.5         # seconds from one look to the next
CROWDED, CALM = 0.3, 0.15  # CPUs that others use beyond those that torch's threads leave free: from here on, and until here
WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
PARALLEL = 2**20       # elements of an operation that torch splits among its threads

_watch: CpuWatch | None = None


def prepare() -> None:
    """Keep freed memory, take no more threads than the container's share of the CPUs, and start the watch. The second call does nothing."""
    global _watch
    if _watch is not None or os.environ.get("ITM_THREADS") == "plain":
        return
    keep_freed_memory()
    share = cpu_share()
    if share < len(usable_cpus()) and "torch" not in sys.modules:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, math.floor(share))))
    _watch = CpuWatch()
    if not any(name in os.environ for name in WAIT_SETTINGS) and Path("/proc/stat").is_file():
        _watch.start()
        atexit.register(_watch.stop)


def keep_freed_memory() -> bool:
    """Let glibc keep :data:`KEPT` bytes of what is freed, whatever the size of the pieces. False where there is another allocator, or the
    user has settings of his own."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # macOS, Windows, musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT) and mallopt(M_TRIM_THRESHOLD, KEPT))


def usable_cpus() -> frozenset[int]:
    """The numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_share(root: str | Path = "/sys/fs/cgroup") -> float:
    """How many CPUs' time this process may use: all of its CPUs, or less in a container with a quota (JupyterHub, Binder, Docker)."""
    root, cpus = Path(root), float(len(usable_cpus()))
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota, period = ((root / "cpu" / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
        return min(cpus, int(quota) / int(period)) if quota not in ("max", "-1") else cpus
    except (OSError, ValueError, ZeroDivisionError):  # no cgroups, or no quota
        return cpus


class CpuWatch(threading.Thread):
    """Looks every half second whether other programs want the CPUs, and meanwhile lets torch's waiting threads sleep: :attr:`crowded`."""

    def __init__(self, stat: str | Path = "/proc/stat"):
        super().__init__(name="itm_lib CPU watch", daemon=True)
        self.stat, self.teams = Path(stat), []
        self._release, self._end = threading.Event(), threading.Event()
        self._before = self._times()

    @property
    def crowded(self) -> bool:
        """Whether threads sleep while they wait."""
        return bool(self.teams)

    def run(self) -> None:
        while not self._end.wait(INTERVAL):
            self.look()

    def stop(self) -> None:
        """End the watch and its teams: nothing of torch may run while the interpreter ends."""
        self._end.set()
        if self.is_alive():
            self.join()
        self._close_teams()

    def look(self) -> None:
        """Compare the CPUs' times with those of the look before, and change over if that says so."""
        now = self._times()
        wall, busy, own = (new - old for new, old in zip(now, self._before))
        self._before = now
        if wall <= 0 or not torch_is_there():
            return
        others = max(0.0, busy - own) / wall
        if others < CALM and not self.crowded:
            return
        threads = in_new_thread(sys.modules["torch"].get_num_threads)
        beyond = others - max(0, len(usable_cpus()) - threads)
        if not self.crowded and beyond > CROWDED and threads > 1:
            self._open_teams(threads)
        elif self.crowded and beyond < CALM:
            self._close_teams()

    def _times(self) -> tuple[float, float, float]:
        """Seconds: on the clock, of all CPUs at work, and of this process at work."""
        busy, ticks = 0, os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        try:
            lines = self.stat.read_text().splitlines()
        except OSError:
            lines = []
        mine = {f"cpu{number}" for number in usable_cpus()}
        for line in lines:
            name, *values = line.split()
            if name in mine:
                user, nice, system, _, _, *rest = map(int, values[:8])  # between them: idle, and idle while a disk is waited for
                busy += user + nice + system + sum(rest)
        return time.monotonic(), busy / ticks, time.process_time()

    def _open_teams(self, threads: int) -> None:
        """Teams of OpenMP threads that sleep, so many that there are more threads than CPUs."""
        torch = sys.modules["torch"]
        released = self._release = threading.Event()

        def hold() -> None:
            torch.ones(PARALLEL).mul_(1)  # opens this thread's team
            released.wait()

        count = (len(usable_cpus()) - threads) // (threads - 1) + 1
        self.teams = [threading.Thread(target=hold, name="itm_lib sleeping team", daemon=True) for _ in range(count)]
        for team in self.teams:
            team.start()

    def _close_teams(self) -> None:
        self._release.set()
        for team in self.teams:
            team.join()
        self.teams = []


def torch_is_there() -> bool:
    """Whether torch is imported, to the end: one that is half imported must not be asked for anything."""
    torch = sys.modules.get("torch")
    return torch is not None and not getattr(torch.__spec__, "_initializing", False)


def in_new_thread(function: Callable[[], int]) -> int:
    """What ``function`` returns in a thread that starts now: torch tells a thread the number of threads that was set when it first asked."""
    found: list[int] = []
    asking = threading.Thread(target=lambda: found.append(function()))
    asking.start()
    asking.join()
    return found[0]


def _forget() -> None:
    """Of a forked child: the watch is not there."""
    global _watch
    _watch = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
