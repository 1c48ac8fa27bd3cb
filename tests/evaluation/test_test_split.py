"""The test split opens in itm_lib.evaluation alone: read from the source of everything that trains or chooses."""

import ast

import pytest

from itm_lib.data import open_split
from itm_lib.files import InputError, project_root

PACKAGES = ("data", "features", "models", "training")
OUTSIDE = {"load_split"}  # what opens any split


def violations(source: str, name: str) -> list[str]:
    """Lines of ``source`` that could open the test split."""
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"{name}:{getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.name for alias in node.names}
            if names & OUTSIDE or (node.module.startswith("itm_lib.evaluation") and names & {"open_split", "scoring", "*"}):
                found.append(f"{where} imports {', '.join(sorted(names))} from {node.module}")
        elif isinstance(node, ast.Attribute) and (node.attr in OUTSIDE or (
                node.attr == "open_split" and "evaluation" in ast.unparse(node.value))):
            found.append(f"{where} uses {ast.unparse(node)}")
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            values = [*node.args, *(keyword.value for keyword in node.keywords)]
            opens = called in {"open_split", "load_split"}
            if opens and any(isinstance(value, ast.Constant) and value.value == "test" for value in values):
                found.append(f"{where} calls {called} with 'test'")
    return found


def test_nothing_that_trains_or_chooses_can_open_the_test_split():
    root = project_root() / "itm_lib"
    files = [file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))]
    files += [root / "losses.py"]
    assert len(files) > 10
    own = root / "data" / "dataset.py"  # defines load_split, and open_split that refuses the test split
    assert [line for file in files for line in violations(file.read_text(encoding="utf-8"), file.name) if file != own] == []
    assert violations(own.read_text(encoding="utf-8"), own.name) == []


@pytest.mark.parametrize("source", [
    "from itm_lib.evaluation import open_split",
    "from itm_lib.evaluation.scoring import open_split as f",
    "from itm_lib.evaluation import *",
    "from itm_lib.evaluation import scoring",
    "from itm_lib.data.dataset import load_split",
    "import itm_lib.evaluation as evaluation\nevaluation.open_split(folder, split)",
    "import itm_lib.data.dataset as d\nd.load_split(folder, 'val')",
    "from itm_lib.data import open_split\nopen_split(folder, 'test')",
    "from itm_lib.data import open_split\nopen_split(folder, split='test')",
])
def test_the_check_sees_a_way_in(source):
    assert violations(source, "made.py")


def test_the_check_lets_val_through():
    assert violations("from itm_lib.data import open_split\nopen_split(folder, 'val')\nevaluation.RetrievalMetrics", "made.py") == []


def test_the_other_door_is_shut(folder):
    with pytest.raises(InputError) as error:
        open_split(folder, "test")
    assert str(error.value) == "the test split is for the final evaluation: open it with itm_lib.evaluation.open_split"
