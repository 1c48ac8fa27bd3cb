"""Committed notebooks keep the rules; and the lint finds what breaks one."""

import copy
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from notebook_lint import problems
from papermill import inspect_notebook

HERE = Path(__file__).parent
MUST_FAIL = sorted((HERE.parent / "must_fail").glob("*.ipynb"))
SMALL = nbformat.read(HERE / "small.ipynb", as_version=4)


def test_course_notebook_keeps_the_rules(course_notebook):
    notebook = nbformat.read(course_notebook, as_version=4)
    assert problems(notebook, course_notebook.name, course_notebook.parent) == []


def test_plain_papermill_knows_the_parameters(course_notebook):
    known = inspect_notebook(course_notebook)
    assert {"profile", "seed", "out_dir"} <= known.keys()
    assert all(parameter["help"] and parameter["inferred_type_name"] != "None" for parameter in known.values())


def test_course_notebook_is_spelled_right(course_notebook):
    sources = "\n".join(cell.source for cell in nbformat.read(course_notebook, as_version=4).cells)
    found = subprocess.run([sys.executable, "-m", "codespell_lib", "-"], input=sources, capture_output=True, text=True, encoding="utf-8")
    assert found.stdout + found.stderr == ""


def test_a_good_notebook_has_no_problems():
    assert problems(SMALL, "small.ipynb", HERE) == []


@pytest.mark.parametrize("name, problem", [
    ("never_executed", "not executed in sequence"), ("nothing_compared", "no cell is tagged nbval-check-output"),
])
def test_must_fail_notebook_is_refused(name, problem):
    notebook = nbformat.read(HERE.parent / "must_fail" / f"{name}.ipynb", as_version=4)
    assert any(problem in line for line in problems(notebook, name))


def _set(cell, name, value):
    cell[name] = value


BREAKS = {
    "the kernelspec's name is not python3": lambda nb: nb.metadata.kernelspec.update(name="itm"),
    "no language in the metadata": lambda nb: nb.metadata.pop("language_info"),
    "has 0 cells tagged 'parameters'": lambda nb: nb.cells[1].metadata.pop("tags"),
    "has 2 cells tagged 'parameters'": lambda nb: nb.cells[2].metadata.update(tags=["parameters"]),
    "must hold lines 'name: type = literal' only": lambda nb: _set(nb.cells[1], "source", "seed: int = int(3)  # no literal"),
    "parameter profile must be there with the default 'course'":
        lambda nb: _set(nb.cells[1], "source", nb.cells[1].source.replace('"course"', '"smoke"')),
    "parameters line 'epochs = 0'": lambda nb: _set(nb.cells[1], "source", nb.cells[1].source + "\nepochs = 0"),
    "holds injected parameters": lambda nb: nb.cells[2].metadata.update(tags=["injected-parameters"]),
    "does not start with a title": lambda nb: nb.cells.insert(0, new_markdown_cell("text")),
    "does not say the minutes": lambda nb: _set(nb.cells[0], "source", "# Title"),
    "no section 'Exercises'": lambda nb: nb.cells.pop(7),
    "sections are not in the order": lambda nb: nb.cells.insert(1, new_markdown_cell("## What we learned")),
    "code installs packages: '!pip'": lambda nb: _set(nb.cells[2], "source", "!pip install torch"),
    "code leaves the notebook": lambda nb: _set(nb.cells[2], "source", "sys.exit(0)"),
    "code uses the network": lambda nb: _set(nb.cells[2], "source", "url = 'https://example.org'"),
    "cell 3 holds a path of one machine": lambda nb: _set(nb.cells[2], "source", "open('/home/me/x')"),
    "cell 5 holds a path of one machine: 'C:\\\\Users": lambda nb: nb.cells[4].outputs.append(new_output("stream", text="C:\\Users\\me")),
    "the notebook's metadata holds a path": lambda nb: nb.metadata.update(papermill={"output_path": "/tmp/out.ipynb"}),
    "not executed in sequence": lambda nb: _set(nb.cells[4], "execution_count", 7),
    "an error is stored: ValueError": lambda nb: nb.cells[4].outputs.append(new_output("error", ename="ValueError", evalue="", traceback=[])),
    "output on stderr is stored: 'a warning'": lambda nb: nb.cells[4].outputs.append(new_output("stream", name="stderr", text="a warning")),
    "no figure is stored": lambda nb: _set(nb.cells[5], "outputs", []),
    "widget state is stored": lambda nb: nb.metadata.update(widgets={}),
    "a cell tagged nbval-check-output has no stored output": lambda nb: _set(nb.cells[4], "outputs", []),
    "no exercise": lambda nb: nb.cells.pop(8),
    "lacks its BEGIN SOLUTION or END SOLUTION line":
        lambda nb: _set(nb.cells[8], "source", nb.cells[8].source.replace("### END SOLUTION", "")),
    "no checker follows exercise": lambda nb: nb.cells.insert(9, new_code_cell("1 + 1", execution_count=9)),
    "no picture missing.png": lambda nb: nb.cells.append(new_markdown_cell("![a figure](missing.png)")),
    "larger than 3 MB": lambda nb: nb.cells.append(new_markdown_cell("long " * 700_000)),
    "not a valid notebook": lambda nb: nb.cells[4].metadata.update(tags="text"),
}


@pytest.mark.parametrize("problem", BREAKS)
def test_broken_rule_is_found(problem):
    notebook = copy.deepcopy(SMALL)
    BREAKS[problem](notebook)
    assert any(problem in line for line in problems(notebook, "broken.ipynb", HERE)), problems(notebook, "broken.ipynb", HERE)


def test_every_must_fail_notebook_has_a_test():
    tests = (HERE / "test_lint.py").read_text(encoding="utf-8") + (HERE / "test_nbval.py").read_text(encoding="utf-8")
    assert MUST_FAIL and all(f'"{path.stem}"' in tests for path in MUST_FAIL)
