"""Runs the notebooks of the course: in order, with checked parameters, each in a folder of its own.

A run lives in runs/<profile>/<notebook and the parameters that were set>/ and holds the executed notebook, its HTML
page, what the notebook wrote (metrics.json among it) and run.json, which says how it ended. A run that is complete and
whose notebook, parameters and library are unchanged is kept, so a course that was stopped goes on where it was.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from itm_lib.course import PROFILES, hold, run_name, runs_dir
from itm_lib.files import InputError, nearest, one_line, project_root, read_json, replace_atomically, write_json

RESERVED = {"profile": "--profile", "out_dir": "--runs"}  # parameters that the runner itself sets
# The kernel's start-up line about TCP sockets says nothing to the reader of a run.
KERNEL_ARGUMENTS = ["--IPKernelApp.log_level=CRITICAL"]


@dataclass(frozen=True)
class NotebookRun:
    """One notebook with one set of parameters, and the folder it runs into."""

    notebook: Path
    profile: str
    parameters: Mapping[str, Any]
    folder: Path

    @property
    def executed(self) -> Path:
        return self.folder / self.notebook.name

    @property
    def record(self) -> Path:
        return self.folder / "run.json"


def find_notebooks(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """The numbered notebooks of ``folder`` in order; ``names`` picks some, by name or by number ("02")."""
    found = {path.stem: path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    if not found:
        raise InputError(f"no notebooks in {folder}: run this from the course's checkout")
    if not names:
        return list(found.values())
    chosen = []
    for name in names:
        stem = name.removesuffix(".ipynb").replace("\\", "/").rsplit("/", 1)[-1]
        matches = [found[stem]] if stem in found else [path for key, path in found.items() if key.split("_")[0] == stem]
        if len(matches) != 1:
            raise InputError(f"no notebook {name!r}: {nearest(stem, found)}")
        chosen += matches
    return sorted(set(chosen))


def read_notebook(path: Path) -> NotebookNode:
    """The notebook in ``path``. Raises :class:`InputError` if it is missing or damaged."""
    if not path.is_file():
        raise InputError(f"no notebook {path.name} in {path.parent}: check the path")
    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"{path.name} is not a notebook ({reason}): restore it from git") from None


def declared_parameters(notebook: NotebookNode, name: str) -> dict[str, Any]:
    """The names and default values in the cell tagged ``parameters``, which must hold literals only."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise InputError(f"{name} has {len(cells)} cells tagged 'parameters': it needs exactly one")
    try:
        return _literals(cells[0].source)
    except (SyntaxError, ValueError):
        raise InputError(f"{name}: the parameters cell must hold lines 'name: type = literal' only") from None


def _literals(source: str) -> dict[str, Any]:
    values = {}
    for line in ast.parse(source).body:
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
            target = line.target.id
        elif isinstance(line, ast.Assign) and len(line.targets) == 1 and isinstance(line.targets[0], ast.Name):
            target = line.targets[0].id
        else:
            raise ValueError("not an assignment")
        values[target] = ast.literal_eval(line.value)
    return values


def parse_parameters(pairs: Sequence[str]) -> dict[str, Any]:
    """``["epochs=5", "direction=i-t"]`` as a dictionary; a value that is no Python literal is a string.

    >>> parse_parameters(["epochs=5", "lr=2e-3", "fast=true", "direction=i-t"])
    {'epochs': 5, 'lr': 0.002, 'fast': True, 'direction': 'i-t'}
    """
    words = {"true": True, "false": False, "none": None}
    parameters: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise InputError(f"parameter {pair!r} is not name=value: write for example epochs=5")
        try:
            parameters[name] = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parameters[name] = text
    return parameters


def plan(notebooks: Sequence[Path], profile: str, parameters: Mapping[str, Any], runs: Path | None = None) -> list[NotebookRun]:
    """The runs of ``notebooks``, refused as a whole if one of them does not know a parameter."""
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}: {nearest(profile, PROFILES)}")
    for name in RESERVED.keys() & parameters.keys():
        raise InputError(f"parameter {name} is set by the runner: use {RESERVED[name]}")
    for notebook in notebooks:
        declared = declared_parameters(read_notebook(notebook), notebook.name)
        for name in parameters:
            if name not in declared:
                raise InputError(f"{notebook.stem} has no parameter {name!r}: {nearest(name, sorted(declared.keys() - RESERVED.keys()))}")
    runs = runs or runs_dir()
    return [NotebookRun(path, profile, dict(parameters), runs / profile / run_name(path.stem, parameters)) for path in notebooks]


def fingerprint(run: NotebookRun) -> str:
    """What the outcome of ``run`` depends on, as one hash: the notebook's cells, the parameters and the library."""
    cells = [[cell.cell_type, cell.source] for cell in read_notebook(run.notebook).cells]
    digest = hashlib.sha256(json.dumps([cells, run.profile, dict(run.parameters)], sort_keys=True).encode())
    package = Path(__file__).parent
    read_too = [*package.rglob("*"), *(project_root() / "data").glob("paper_results.yaml"),
                *(project_root() / "data" / "results").glob("*.json")]
    for path in sorted(read_too):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def is_complete(run: NotebookRun, wanted: str) -> bool:
    """Whether ``run`` ended well with the fingerprint ``wanted``, and its executed notebook is whole."""
    if not run.record.is_file() or not run.executed.is_file():
        return False
    try:
        record = read_json(run.record)
        return record["status"] == "ok" and record["fingerprint"] == wanted and problem_of(read_notebook(run.executed)) is None
    except (InputError, KeyError, TypeError):
        return False  # damaged: it is made again


def problem_of(executed: NotebookNode) -> str | None:
    """What is wrong with an executed notebook in one line, or None: an error output, or a code cell that did not run."""
    for number, cell in enumerate((cell for cell in executed.cells if cell.cell_type == "code"), 1):
        for output in cell.outputs:
            if output.output_type == "error":
                return f"cell [{cell.execution_count}] failed: {_one_line(output.ename, output.evalue)}"
        if cell.source.strip() and cell.execution_count is None:
            return f"code cell {number} did not run"
    return None


def _one_line(name: str, value: str) -> str:
    message = " ".join(value.split())
    return message[:300] if name == "InputError" else f"{name}: {message}"[:300]


def execute(run: NotebookRun, progress: bool = True) -> str | None:
    """Execute ``run`` into its folder and write its page and run.json. Returns what went wrong in one line, or None."""
    run.folder.mkdir(parents=True, exist_ok=True)
    hold(run.folder / ".runner.lock", "another 'itm course' is running this notebook: wait for it, or set other parameters")
    for stale in (run.record, run.folder / "metrics.json", run.executed, run.executed.with_suffix(".html")):
        stale.unlink(missing_ok=True)
    wanted, start = fingerprint(run), time.monotonic()
    problem = _run_papermill(run, progress)
    executed = _without_paths(run)
    problem = problem or problem_of(executed)
    if executed.cells:
        from itm_lib.pages import write_page

        write_page(executed, run.executed.with_suffix(".html"), pictures=run.notebook.parent)
    write_json(run.record, {
        "schema": 1, "notebook": run.notebook.stem, "profile": run.profile, "parameters": dict(run.parameters),
        "fingerprint": wanted, "status": "failed" if problem else "ok", "error": problem or "",
        "seconds": round(time.monotonic() - start, 1),
    })
    return problem


def _run_papermill(run: NotebookRun, progress: bool) -> str | None:
    """Papermill's part: parameters in, kernel through, notebook saved after every cell."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)  # what goes wrong is said once, by run_all
    root = project_root()
    out_dir = run.folder.resolve()
    if out_dir.is_relative_to(root):
        out_dir = out_dir.relative_to(root)  # no path of this machine in the executed notebook
    try:
        papermill.execute_notebook(
            run.notebook, run.executed, {**run.parameters, "profile": run.profile, "out_dir": out_dir.as_posix()},
            kernel_name="python3", cwd=root, start_timeout=120, extra_arguments=KERNEL_ARGUMENTS,
            progress_bar={"desc": run.folder.name, "file": sys.stderr} if progress else False,
        )
    except PapermillExecutionError:
        return None  # the executed notebook holds the error output; problem_of reads it with the cell's number
    except DeadKernelError:
        return "the kernel died, most often for lack of memory"
    except (CellTimeoutError, RuntimeError) as error:
        return one_line(error, 300)
    return None


def _without_paths(run: NotebookRun) -> NotebookNode:
    """The executed notebook, less the absolute paths that papermill notes in it; an empty one if there is none."""
    if not run.executed.is_file():
        return nbformat.v4.new_notebook()
    executed = read_notebook(run.executed)
    noted = executed.metadata.get("papermill", {})
    noted.pop("input_path", None)
    noted.pop("output_path", None)
    with replace_atomically(run.executed) as part:
        nbformat.write(executed, part)
    return executed


def run_all(runs: Sequence[NotebookRun], fresh: bool = False, progress: bool = True) -> dict[str, str]:
    """Run what is not complete yet, in order. A notebook that fails does not stop the others.

    Returns the notebooks that failed, {folder name: what went wrong}; says each outcome on stderr.
    """
    failed = {}
    for run in runs:
        if not fresh and is_complete(run, fingerprint(run)):
            print(f"{run.folder.name}: kept, nothing changed since it ran", file=sys.stderr)
            continue
        try:
            problem = execute(run, progress)
        except InputError as error:  # the folder is in use: say so, go on with the others
            problem = str(error)
        if problem:
            failed[run.folder.name] = problem
            print(f"{run.folder.name}: {problem}; see {shown(run.executed)}", file=sys.stderr)
    return failed


def shown(path: Path) -> str:
    """``path`` as the user would write it: relative to here if it lies below."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
