"""A notebook of the course runs under plain papermill from any folder, with other parameters, to other numbers."""

import json
import os
import subprocess
import sys

import nbformat
import pytest
from conftest import NOTEBOOKS

from itm_lib import runner
from itm_lib.files import InputError


@pytest.mark.timeout(900)
@pytest.mark.parametrize("notebook", [NOTEBOOKS[0], NOTEBOOKS[-1]], ids=lambda path: path.stem)
def test_other_parameters_give_other_numbers(notebook, tmp_path, smoke_run):
    out_dir, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    papermill = [sys.executable, "-m", "papermill", "--no-progress-bar", str(notebook), "executed.ipynb"]
    done = subprocess.run([*papermill, "-p", "profile", "smoke", "-p", "seed", "1", "-p", "out_dir", str(out_dir)],
                          cwd=elsewhere, capture_output=True, text=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    assert runner.problem_of(nbformat.read(elsewhere / "executed.ipynb", as_version=4)) is None
    assert sorted(path.name for path in elsewhere.iterdir()) == ["executed.ipynb"]  # it writes into out_dir alone
    default, other = (_metrics(folder) for folder in (smoke_run(notebook).out_dir, out_dir))
    assert [row["model"] for row in other] == [row["model"] for row in default]
    assert other[0]["seeds"] == [1] and default[0]["seeds"] == [0]
    assert [row["metrics"] for row in other] != [row["metrics"] for row in default]


def _metrics(folder):
    content = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content if isinstance(content, list) else [content]


def test_every_notebook_refuses_an_unknown_parameter(course_notebook):
    with pytest.raises(InputError, match=f"^{course_notebook.stem} has no parameter 'sed': did you mean 'seed'\\?$"):
        runner.plan([course_notebook], "smoke", {"sed": 1})
