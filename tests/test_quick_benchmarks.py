"""The benchmarks of steps at a tiny size: they run to the end, and the ways that they compare agree."""

from __future__ import annotations

import sys

import pytest

from itm_lib.files import project_root

sys.path.insert(0, str(project_root() / "tests" / "benchmarks"))
import bench_photographs  # noqa: E402
import bench_threads  # noqa: E402


def test_three_ways_to_the_gradient_agree(capsys):
    assert bench_photographs.main(["--quick", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("times), literal") == 3


def test_a_step_is_measured_in_a_process_of_its_own(capsys):
    assert bench_threads.main(["--quick", "--models", "vse", "--threads", "1", "--busy", "0"]) == 0
    said = capsys.readouterr().out
    assert [line.split()[3] for line in said.splitlines()[2:]] == ["plain", "sleeping", "itm"] and "(1.00)" in said


@pytest.mark.parametrize(("itm", "busy", "wrong"), [(104.0, 149.0, 0), (106.0, 149.0, 1), (104.0, 151.0, 1)])
def test_a_loss_on_an_idle_machine_or_beside_others_is_told(itm, busy, wrong, capsys):
    rows = [{"model": "vse", "busy": 0, "threads": 2, "way": way, "ms": ms} for way, ms in (("plain", 100.0), ("itm", itm))]
    rows += [{"model": "vse", "busy": 1, "threads": threads, "way": "itm", "ms": ms} for threads, ms in ((1, 100.0), (2, busy))]
    assert bench_threads.check(rows) == wrong and ("MISSED" in capsys.readouterr().out) == bool(wrong)
