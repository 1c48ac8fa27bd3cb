"""What a committed notebook must be, rule by rule. ``problems(notebook)`` names every rule that it breaks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from itm_lib.files import InputError, project_root
from itm_lib.runner import declared_parameters

MAX_BYTES = 3_000_000
FIRST_PARAMETERS = {"profile": "course", "seed": 0, "out_dir": ""}
SECTIONS = ("Exercises", "What we learned")  # in this order, as headings
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/<~-])/(?:home|root|Users|tmp|mnt|media|opt|usr|var|srv|content|private)/\w|\b[A-Z]:\\\\?\w|~/\w")
NOT_IN_CODE = {
    "installs packages": re.compile(r"^\s*[!%]\s*(?:pip|conda|mamba|uv)\b", re.M),
    "leaves the notebook": re.compile(r"\b(?:sys\.exit|os\._exit|quit|exit)\("),
    "uses the network": re.compile(r"https?://|\b(?:requests|urllib|httpx)\b|[!%]\s*(?:wget|curl)\b"),
}


def problems(notebook: NotebookNode, name: str, folder: Path | None = None) -> list[str]:
    """Every broken rule of ``notebook`` as a line; empty for a good one. ``folder`` holds the pictures that it links."""
    found = []
    for rule in RULES:
        found += [f"{name}: {line}" for line in rule(notebook)]
    return found + [f"{name}: {line}" for line in missing_pictures(notebook, folder)] if folder else found


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def output_texts(cell: NotebookNode) -> Iterator[str]:
    """The texts among a cell's outputs: streams, plain text, HTML, errors."""
    for output in cell.get("outputs", []):
        yield "".join(output.get("text", ""))
        yield "\n".join(output.get("traceback", []))
        for kind, value in output.get("data", {}).items():
            if kind.startswith("text/") or kind == "image/svg+xml":
                yield "".join(value)


def valid_format(notebook: NotebookNode) -> Iterator[str]:
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {str(error).splitlines()[0]}"
        return
    if len(nbformat.writes(notebook)) > MAX_BYTES:
        yield f"larger than {MAX_BYTES / 1e6:.0f} MB"


def kernel(notebook: NotebookNode) -> Iterator[str]:
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernelspec's name is not python3"
    if notebook.metadata.get("language_info", {}).get("name") != "python":
        yield "no language in the metadata: papermill needs it"


def parameters_cell(notebook: NotebookNode) -> Iterator[str]:
    try:
        declared = declared_parameters(notebook, "this notebook")
    except InputError as error:
        yield str(error)
        return
    for name, value in FIRST_PARAMETERS.items():
        if declared.get(name) != value:
            yield f"parameter {name} must be there with the default {value!r}"
    for line in tagged(notebook, "parameters")[0].source.splitlines():
        if line.strip() and not re.fullmatch(r"\w+: [^=]+ = .*\S  # \S.*", line):
            yield f"parameters line {line!r} is not 'name: type = literal  # what it is'"
    if tagged(notebook, "injected-parameters"):
        yield "holds injected parameters: commit a run with the defaults"


def title_card(notebook: NotebookNode) -> Iterator[str]:
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "does not start with a title"
    elif "minutes" not in first.source:
        yield "the title card does not say the minutes it takes"


def sections(notebook: NotebookNode) -> Iterator[str]:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    headings = re.findall(r"^##+ (.+)$", text, re.M)
    places = [next((i for i, heading in enumerate(headings) if section.lower() in heading.lower()), None) for section in SECTIONS]
    for section, place in zip(SECTIONS, places):
        if place is None:
            yield f"no section {section!r}"
    if None not in places and places != sorted(places):
        yield f"sections are not in the order {', '.join(SECTIONS)}"


def code(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        for what, pattern in NOT_IN_CODE.items():
            if pattern.search(cell.source):
                yield f"code {what}: {pattern.search(cell.source)[0].strip()!r}"


def paths(notebook: NotebookNode) -> Iterator[str]:
    here = [re.escape(str(path)) for path in (project_root(), Path.home()) if len(path.parts) > 1]
    pattern = re.compile("|".join([ABSOLUTE_PATH.pattern, *here]))
    for number, cell in enumerate(notebook.cells, 1):
        for text in (cell.source, *output_texts(cell)):
            match = pattern.search(text)
            if match:
                yield f"cell {number} holds a path of one machine: {text[match.start():match.start() + 60].splitlines()[0]!r}"
    if pattern.search(str(notebook.metadata)):
        yield "the notebook's metadata holds a path of one machine"


def executed(notebook: NotebookNode) -> Iterator[str]:
    counts = [cell.execution_count for cell in code_cells(notebook)]
    if counts != list(range(1, len(counts) + 1)):
        yield "not executed in sequence from a fresh kernel"
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    if not outputs:
        yield "no outputs are stored"
    for output in outputs:
        if output.output_type == "error":
            yield f"an error is stored: {output.ename}"
        if output.get("name") == "stderr":
            yield f"output on stderr is stored: {output.text.strip()[:60]!r}"


def figures(notebook: NotebookNode) -> Iterator[str]:
    if not any("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs):
        yield "no figure is stored"


def widgets(notebook: NotebookNode) -> Iterator[str]:
    shown = any("application/vnd.jupyter.widget-view+json" in output.get("data", {})
                for cell in code_cells(notebook) for output in cell.outputs)
    if "widgets" in notebook.metadata or shown:
        yield "widget state is stored"


def compared(notebook: NotebookNode) -> Iterator[str]:
    cells = tagged(notebook, "nbval-check-output")
    if not cells:
        yield "no cell is tagged nbval-check-output"
    for cell in cells:
        if not cell.get("outputs"):
            yield f"a cell tagged nbval-check-output has no stored output: {cell.source.splitlines()[0]!r}"


def exercises(notebook: NotebookNode) -> Iterator[str]:
    cells = code_cells(notebook)
    places = [i for i, cell in enumerate(cells) if "### BEGIN SOLUTION" in cell.source or cell.metadata.get("nbgrader", {}).get("solution")]
    if not places:
        yield "no exercise"
    for place in places:
        first = cells[place].source.strip().splitlines()[0]
        if cells[place].source.count("### BEGIN SOLUTION") != 1 or cells[place].source.count("### END SOLUTION") != 1:
            yield f"exercise {first!r} lacks its BEGIN SOLUTION or END SOLUTION line"
        if place + 1 == len(cells) or not re.search(r"\bcheck_\w+\(", cells[place + 1].source):
            yield f"no checker follows exercise {first!r}"


def missing_pictures(notebook: NotebookNode, folder: Path) -> Iterator[str]:
    for cell in notebook.cells:
        if cell.cell_type != "markdown":
            continue
        for link in re.findall(r"!\[[^\]]*\]\(([^)\s]+)|<img[^>]+src=\"([^\"]+)\"", cell.source):
            target = next(filter(None, link))
            if target.startswith("attachment:"):
                if target.removeprefix("attachment:") not in cell.get("attachments", {}):
                    yield f"no picture {target}"
            elif target.startswith("http") or not (folder / target).is_file():
                yield f"no picture {target} in the repository"


RULES: tuple[Callable[[NotebookNode], Iterator[str]], ...] = (
    valid_format, kernel, parameters_cell, title_card, sections, code, paths, executed, figures, widgets, compared, exercises,
)
