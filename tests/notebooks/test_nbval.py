"""Every notebook runs in the smoke profile, and prints the facts that its stored outputs tell."""

from pathlib import Path

import pytest
from conftest import NOTEBOOKS
from smoke import num_compared, run_smoke

MUST_FAIL = Path(__file__).parents[1] / "must_fail"


def test_there_is_a_course():
    assert len(NOTEBOOKS) >= 3


@pytest.mark.timeout(900)
def test_smoke_run_tells_the_stored_facts(course_notebook, smoke_run):
    run = smoke_run(course_notebook)
    assert run.passed, run.report[-6000:]
    assert run.compared > 0
    assert (run.out_dir / "metrics.json").is_file()


def test_a_good_notebook_passes(tmp_path):
    run = run_smoke(Path(__file__).parent / "small.ipynb", tmp_path)
    assert run.ok, run.report
    assert run.compared == 2


@pytest.mark.parametrize("name, why", [("wrong_output", "cosine 0.97"), ("fails_in_smoke", "only the course profile works")])
def test_a_bad_notebook_fails(name, why, tmp_path):
    run = run_smoke(MUST_FAIL / f"{name}.ipynb", tmp_path)
    assert not run.ok
    assert why in run.report


@pytest.mark.parametrize("name", ["nothing_compared", "never_executed"])
def test_a_notebook_that_nbval_would_wave_through_counts_as_not_compared(name):
    assert num_compared(MUST_FAIL / f"{name}.ipynb") == 0
