"""What torch's memory and threads do on this machine: when threads may spin, who decides, and that no number depends on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from itm_lib import threads
from itm_lib.threads import CpuWatch, cpu_share, in_new_thread, usable_cpus

SPIN = "while True: pass"


def python(code: str, **environment: str) -> str:
    """What ``code`` prints in a new process, with these environment variables in place of ours."""
    names = (*threads.WAIT_SETTINGS, "OMP_NUM_THREADS", "ITM_THREADS", "GLIBC_TUNABLES")
    kept = {name: value for name, value in os.environ.items() if name not in names and not name.startswith("MALLOC_")}
    return subprocess.run([sys.executable, "-c", code], env={**kept, **environment}, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


class Machine:
    """A stat file of four CPUs, as Linux writes it, and a clock."""

    def __init__(self, path: Path, monkeypatch, cpus: int = 4):
        self.path, self.cpus, self.busy, self.clock, self.own = path, cpus, [0] * cpus, 100.0, 5.0
        monkeypatch.setattr(threads, "usable_cpus", lambda: frozenset(range(cpus)))
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.clock)
        monkeypatch.setattr(threads.time, "process_time", lambda: self.own)
        self.write()

    def write(self) -> None:
        rows = [f"cpu  {sum(self.busy)} 0 0 1 2 0 0 0 0 0", *(f"cpu{number} {ticks} 0 0 77 88 0 0 0 0 0" for number, ticks in enumerate(self.busy)),
                "cpu9 999999 0 0 1 2 0 0 0 0 0", "intr 1 2 3"]
        self.path.write_text("\n".join(rows) + "\n")

    def second(self, others: float, own: float) -> None:
        """One second passes, in which others used so many CPUs, and this process so many."""
        self.clock += 1
        self.own += own
        self.busy[0] += round((others + own) * os.sysconf("SC_CLK_TCK"))
        self.write()


@pytest.fixture
def watch(tmp_path, monkeypatch):
    """(machine, watch) of four CPUs and a torch of three threads."""
    machine = Machine(tmp_path / "stat", monkeypatch)
    watch = CpuWatch(tmp_path / "stat")
    monkeypatch.setattr(threads, "in_new_thread", lambda function: 3)
    yield machine, watch
    watch.stop()


def test_threads_sleep_while_others_want_the_cpus(watch):
    machine, watch = watch
    seen = []
    for others, own in ((0, 3), (1.0, 3), (1.2, 2.8), (2.0, 2), (1.25, 2.7), (1.0, 3), (0, 3)):  # three threads leave one CPU free
        machine.second(others, own)
        watch.look()
        seen.append(watch.crowded)
    assert seen == [False, False, False, True, True, False, False]


def test_a_team_is_opened_for_so_long_and_ends(watch):
    machine, watch = watch
    machine.second(3, 1)
    watch.look()
    teams = watch.teams
    assert [team.is_alive() for team in teams] == [True]  # 3 + 2 threads are more than 4 CPUs
    machine.second(0, 3)
    watch.look()
    assert watch.teams == [] and not teams[0].is_alive()


def test_one_thread_waits_for_nobody(watch, monkeypatch):
    machine, watch = watch
    monkeypatch.setattr(threads, "in_new_thread", lambda function: 1)
    machine.second(4, 0)
    watch.look()
    assert not watch.crowded


def test_a_torch_that_is_half_imported_is_left_alone(watch, monkeypatch):
    machine, watch = watch
    monkeypatch.setattr(torch.__spec__, "_initializing", True, raising=False)
    machine.second(4, 0)
    watch.look()
    assert not watch.crowded
    monkeypatch.setattr(torch.__spec__, "_initializing", False, raising=False)
    machine.second(4, 0)
    watch.look()
    assert watch.crowded


def test_the_watch_does_no_harm_while_torch_is_imported():
    """On a crowded machine, with a look every other moment instead of every half second."""
    code = ("import itm_lib.threads as t\n"
            "t.INTERVAL, t.CROWDED, t.CALM = 0.001, -9, -9\n"
            "import torch\n"
            "print(float(torch.ones(2**22).add(1).mean()))\n")
    assert [python(code) for _ in range(5)] == ["2.0"] * 5


def test_a_torch_thread_is_told_the_number_that_is_set_now():
    count = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert in_new_thread(torch.get_num_threads) == 1
        torch.set_num_threads(2)
        assert in_new_thread(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(count)


def test_the_watch_sees_real_programs():
    """Beside as many programs that compute as there are CPUs, the watch of a new process sees them, and sees that they ended."""
    code = ("import itm_lib, torch, subprocess, sys, time\n"
            "from itm_lib.threads import _watch, usable_cpus\n"
            "torch.set_num_threads(2)\n"
            "def wait(value):\n"
            "    end = time.time() + 30\n"
            "    while _watch.crowded != value and time.time() < end: time.sleep(0.05)\n"
            "    return _watch.crowded\n"
            f"others = [subprocess.Popen([sys.executable, '-c', {SPIN!r}]) for _ in usable_cpus()]\n"
            "busy = wait(True)\n"
            "for each in others: each.kill(); each.wait()\n"
            "print(_watch.is_alive(), busy)\n")
    assert python(code) == ("True True" if Path("/proc/stat").is_file() else "False False")


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, "True"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "False"), ({"GOMP_SPINCOUNT": "0"}, "False"), ({"ITM_THREADS": "plain"}, "None")])
def test_a_users_own_waiting_wins(environment, expected):
    code = "import itm_lib.threads as t, os; print(t._watch and t._watch.is_alive(), os.environ.get('OMP_WAIT_POLICY', ''))"
    assert python(code, **environment).split() == [expected, *([environment["OMP_WAIT_POLICY"]] if "OMP_WAIT_POLICY" in environment else [])]


@pytest.mark.parametrize("environment", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}])
def test_a_users_own_memory_settings_win(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads.keep_freed_memory() is False


KEPT = ("import {what}, torch\n"
        "size = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20\n"
        "torch.ones(1000).sum(); before = size()\n"
        "torch.ones(50_000_000); print(size() - before)\n")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc is Linux's")
def test_freed_memory_is_kept_for_the_next_tensor():
    """Of 190 MiB that were freed all are still the process's, where they would be the system's again."""
    ours, plain = (int(python(KEPT.format(what=what))) for what in ("itm_lib", "os"))
    assert ours > 180 and plain < 50


def test_a_containers_quota_limits_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "usable_cpus", lambda: frozenset(range(8)))
    for content, share in (("max 100000", 8.0), ("200000 100000", 2.0), ("50000 100000", 0.5), ("1600000 100000", 8.0), ("garbage", 8.0)):
        (tmp_path / "cpu.max").write_text(content + "\n")
        assert cpu_share(tmp_path) == share
    (tmp_path / "cpu.max").unlink()
    assert cpu_share(tmp_path) == 8.0
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cpu_share(tmp_path) == 1.5
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert cpu_share(tmp_path) == 8.0


def test_every_way_in_has_it():
    """The command line, a notebook's kernel, tests and sweeps' workers all import itm_lib before they compute."""
    assert threads._watch is not None or any(name in os.environ for name in (*threads.WAIT_SETTINGS, "ITM_THREADS"))
    assert python("import itm_lib.cli, itm_lib.threads as t; print(t._watch is not None)") == "True"
    assert python("import itm_lib.training.sweep as s, itm_lib.threads as t; s._start_worker.__name__; print(t._watch is not None)") == "True"
    for notebook in sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        code = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert code.index("itm_lib") < code.index("\ntrain") if "\ntrain" in code else "itm_lib" in code, notebook.name


def test_numbers_do_not_depend_on_how_threads_wait():
    code = ("import itm_lib, torch, itm_lib.threads as t, hashlib\n"
            "torch.manual_seed(0); torch.set_num_threads(2)\n"
            "if CROWDED: t._watch._open_teams(2)\n"
            "layer = torch.nn.GRU(64, 256, batch_first=True); x = torch.randn(64, 12, 64)\n"
            "loss = (layer(x)[0] @ torch.randn(256, 300)).relu().square().mean(); loss.backward()\n"
            "print(hashlib.sha256(layer.weight_hh_l0.grad.numpy().tobytes()).hexdigest())\n")
    assert python(code.replace("CROWDED", "False")) == python(code.replace("CROWDED", "True"))
    assert len(usable_cpus()) >= 1
