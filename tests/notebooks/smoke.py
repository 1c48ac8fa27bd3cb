"""Runs a notebook in the smoke profile under nbval: its stored outputs stay, so what is tagged is compared."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from notebook_lint import tagged
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

SANITIZE = Path(__file__).parents[1] / "nbval_sanitize.cfg"
CELL_TIMEOUT = 300  # seconds; without it nbval waits 2000 s for a kernel that died


@dataclass
class SmokeRun:
    """One notebook's run: whether every cell passed, how many cells' outputs were compared, and nbval's own words."""

    passed: bool
    compared: int
    report: str
    out_dir: Path

    @property
    def ok(self) -> bool:
        return self.passed and self.compared > 0


def smoke_copy(notebook: Path, folder: Path, **parameters: Any) -> Path:
    """``notebook`` with parameters injected after its parameters cell and its stored outputs kept, written to ``folder``."""
    copy = parameterize_notebook(load_notebook_node(str(notebook)), parameters)
    folder.mkdir(parents=True, exist_ok=True)
    nbformat.write(copy, folder / notebook.name)
    return folder / notebook.name


def run_smoke(notebook: Path, folder: Path) -> SmokeRun:
    """Run ``notebook`` with profile="smoke" under nbval in ``folder``."""
    out_dir, junit = folder / "out", folder / "junit.xml"
    copy = smoke_copy(notebook, folder, profile="smoke", out_dir=str(out_dir))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout", str(CELL_TIMEOUT),
         "--nbval-sanitize-with", str(SANITIZE), "--rootdir", str(folder), "--junitxml", str(junit), "-q", "-rf",
         "-p", "no:cacheprovider", copy.name],
        cwd=folder, capture_output=True, text=True,
    )
    return SmokeRun(done.returncode == 0 and _all_ran(copy, junit), num_compared(copy), done.stdout + done.stderr, out_dir)


def num_compared(copy: Path) -> int:
    """nbval compares a tagged cell only if it has a stored output and was executed."""
    cells = tagged(nbformat.read(copy, as_version=4), "nbval-check-output")
    return sum(bool(cell.outputs) and cell.execution_count is not None for cell in cells)


def _all_ran(copy: Path, junit: Path) -> bool:
    """Whether nbval reports one passed test for each code cell."""
    cases = list(ElementTree.parse(junit).iter("testcase"))
    code = [cell for cell in nbformat.read(copy, as_version=4).cells if cell.cell_type == "code"]
    return len(cases) == len(code) and not any(len(case.findall(kind)) for case in cases for kind in ("failure", "error", "skipped"))
