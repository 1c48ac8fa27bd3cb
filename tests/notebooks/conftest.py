"""The course's notebooks, and their smoke runs: each notebook runs once, whichever tests look at the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from smoke import SmokeRun, run_smoke

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "course_notebook" in metafunc.fixturenames:
        metafunc.parametrize("course_notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory) -> Callable[[Path], SmokeRun]:
    """``smoke_run(notebook)`` is its run under nbval in the smoke profile, made once a session."""
    runs: dict[Path, SmokeRun] = {}

    def run(notebook: Path) -> SmokeRun:
        if notebook not in runs:
            runs[notebook] = run_smoke(notebook, tmp_path_factory.mktemp(notebook.stem))
        return runs[notebook]

    return run
