"""Results on disk, and tables of them.

A result file is JSON: one Result, or a list of them, as a notebook's metrics.json and data/results/*.json hold. A table's
columns carry on their first level what was measured on what, so the numbers of the embedded dataset and those of
a paper never share a column, whatever tables are put side by side.
"""

from __future__ import annotations

import glob
import os
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from itm_lib.files import InputError, data_dir, nearest, project_root, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

SCHEMA = 1
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
_LABELS = {"rsum": "rSum", "median_rank": "median rank", "mean_rank": "mean rank", "map_at_r": "mAP@R",
           "r_precision": "R-Precision", "exact_r1": "exact R@1", "r1": "R@1", "r5": "R@5", "r10": "R@10"}
_NAMES = {"flickr30k": "Flickr30K", "coco": "COCO", "vse": "VSE++", "scan": "SCAN", "camp": "CAMP", "hrem": "HREM",
          "dive": "DivE", "sco": "SCO", "vse_infinity": "VSE∞"}


SMALL = 0.01  # fractions below it are written with an exponent


def is_fraction(name: str) -> bool:
    """Whether the metric ``name`` is a fraction from 0 to 1 and not in percent: gates are, and may be as small as 1e-9, and circular
    variances."""
    return name.startswith("gate_") or name in ("image_circular_variance", "caption_circular_variance")


def fraction(value: float) -> str:
    """``0.971``, or ``2.7e-09`` where three decimals would show nothing."""
    return f"{value:.3f}" if value >= SMALL else f"{value:.1e}"


class Metric(BaseModel):
    """One number over the seeds: each seed's value, their mean, and the standard deviation (n − 1; None for one seed)."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    values: list[float] = Field(min_length=1)
    mean: float
    sd: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Metric:
        values = [float(value) for value in values]
        return cls(values=values, mean=statistics.fmean(values), sd=statistics.stdev(values) if len(values) > 1 else None)

    def __str__(self) -> str:
        """``52.1 ± 0.8``, or ``52.1`` for one seed."""
        return f"{self.mean:.1f}" if self.sd is None else f"{self.mean:.1f} ± {self.sd:.1f}"

    def shown_as(self, name: str) -> str:
        """The number as a table shows it under the metric's ``name``: fractions as ``0.971 ± 0.004`` or ``2.7e-09 ± 1e-09``."""
        if not is_fraction(name):
            return str(self)
        spread = "" if self.sd is None else f" ± {self.sd:.3f}" if self.mean >= SMALL else f" ± {self.sd:.0e}"
        return fraction(self.mean) + spread


class Result(BaseModel):
    """What was run, on what, and what came out: the one schema of metrics.json and data/results/*.json.

    ``model`` names the row ("SCAN t-i AVG"); ``dataset`` and ``variant`` the data; ``seconds`` is the wall-clock time of all
    seeds together; ``commit`` and ``command`` say how to run it again; ``config`` holds every setting that matters.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, allow_inf_nan=False)

    schema_number: Literal[1] = Field(SCHEMA, alias="schema")
    model: str
    dataset: str
    variant: str = ""
    split: Literal["train", "val", "test"]
    seeds: list[int] = Field(min_length=1)
    profile: str
    config: dict[str, Any] = {}
    commit: str
    command: str
    seconds: float = Field(ge=0)
    metrics: dict[str, Metric]

    @model_validator(mode="after")
    def _one_value_a_seed(self) -> Result:
        for name, metric in self.metrics.items():
            if len(metric.values) != len(self.seeds):
                raise ValueError(f"metric {name} has {len(metric.values)} values for {len(self.seeds)} seeds")
        return self

    @classmethod
    def from_runs(cls, runs: Sequence[Mapping[str, float]], *, seeds: Sequence[int], **about: Any) -> Result:
        """A Result of one {metric: value} a seed, in the order of ``seeds``; ``about`` are the other fields.

        ``commit`` is looked up if it is not given. Runs with different metrics raise :class:`InputError`.
        """
        if not runs or len(runs) != len(seeds):
            raise InputError(f"{len(runs)} runs for {len(seeds)} seeds: one run a seed is needed")
        for seed, run in zip(seeds, runs):
            if set(run) != set(runs[0]):
                raise InputError(f"the run of seed {seed} has other metrics than the first: {sorted(set(run) ^ set(runs[0]))}")
        metrics = {name: Metric.of([run[name] for run in runs]) for name in runs[0]}
        about.setdefault("commit", commit_id())
        return cls(seeds=list(seeds), metrics=metrics, **about)

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(by_alias=True, mode="json")

    @property
    def measured_on(self) -> str:
        """The label of this result's columns: dataset, variant and split."""
        return ", ".join(part for part in (self.dataset, self.variant, self.split) if part)


def commit_id() -> str:
    """The checkout's commit, with ``-dirty`` if tracked files are changed; ``"unknown"`` outside git."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"], cwd=project_root(),
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"}, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() if done.returncode == 0 and done.stdout.strip() else "unknown"


def write_result(path: str | Path, result: Result | Sequence[Result]) -> Path:
    """Write one Result, or a list of them, to ``path`` atomically; returns the path."""
    write_json(path, result.to_json() if isinstance(result, Result) else [each.to_json() for each in result])
    return Path(path)


def read_results(where: str | Path) -> list[Result]:
    """The Results of a file, of a folder, or of the files that a pattern like ``runs/*/metrics.json`` names.

    Of a folder: every metrics.json in or below it; if there is none, its *.json, as data/results has them. Files come in the order of their names. A damaged file, or one of another schema, raises :class:`InputError`.
    """
    path = Path(where)
    if path.is_dir():
        files = sorted(path.rglob("metrics.json")) or sorted(path.glob("*.json"))
    elif path.is_file():
        files = [path]
    else:
        files = sorted(Path(name) for name in glob.glob(str(where), recursive=True))
    if not files:
        raise InputError(f"no results at {where}: run what makes them first, or give a folder, a file or a pattern")
    results = []
    for file in files:
        content = read_json(file)
        for row in content if isinstance(content, list) else [content]:
            results.append(_parse(row, file))
    return results


def read_sweep(name: str, where: str | Path) -> list[Result]:
    """The Results of one sweep in the folder ``where``: those of <name>__<variant>.json, in the order of their names."""
    files = sorted(Path(where).glob("*__*.json"))
    if not files:
        raise InputError(f"no sweep's results in {where}: run one first, with 'itm sweep'")
    own = [file for file in files if file.name.partition("__")[0] == name]
    if not own:
        known = dict.fromkeys(file.name.partition("__")[0] for file in files)
        raise InputError(f"no results of a sweep {name!r} in {where}; {nearest(name, known)}")
    return [result for file in own for result in read_results(file)]


def _parse(row: Any, file: Path) -> Result:
    try:
        return Result.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise InputError(f"{file} is not a result of schema {SCHEMA}: {place}: {first['msg']}; make it again") from None


def metric_label(name: str) -> str:
    """``i2t_r1`` → ``i2t R@1``: a metric's name as tables show it."""
    way, _, rest = name.partition("_")
    if way in ("ceiling", "centre"):
        return f"{way} {metric_label(rest)}"
    if way in ("i2t", "t2i") and rest in _LABELS:
        return f"{way} {_LABELS[rest]}"
    return _LABELS.get(name, name.replace("_", " "))


def results_table(results: Iterable[Result], columns: Sequence[str] = RECALLS) -> pd.DataFrame:
    """Models × metrics with ``mean ± sd`` as text; the sign ± stands for the standard deviation over the seeds.

    Columns are (measured on, metric): results of several datasets or splits get columns of their own. Each block ends with
    the number of seeds. A metric that a result lacks is an empty cell. Two results of one model on
    one dataset raise :class:`InputError`: give them names that tell them apart.
    """
    import pandas as pd

    cells: dict[str, dict[tuple[str, str], str]] = {}
    places: dict[str, None] = {}
    for result in results:
        row = cells.setdefault(result.model, {})
        places.setdefault(result.measured_on)
        if (result.measured_on, "seeds") in row:
            raise InputError(f"two results of {result.model!r} on {result.measured_on}: give each a name of its own")
        for name in columns:
            row[result.measured_on, metric_label(name)] = result.metrics[name].shown_as(name) if name in result.metrics else ""
        row[result.measured_on, "seeds"] = str(len(result.seeds))
    if not cells:
        raise InputError("no results to put in a table")
    labels = [(place, label) for place in places for label in [*map(metric_label, columns), "seeds"]]
    index = pd.MultiIndex.from_tuples(labels, names=["measured on", "metric"])
    rows = [[row.get(label, "") for label in labels] for row in cells.values()]
    return pd.DataFrame(rows, index=pd.Index(list(cells), name="model"), columns=index)


_FOUND = ("r1", "map_at_r", "r_precision")  # what is measured where a query may have any number of true candidates
FIGURES = (*(f"{way}_{name}" for way in ("i2t", "t2i") for name in ("r1", "r5", "r10", *_FOUND[1:])), "rsum")
COCO_TRUTHS = {
    "COCO 1K": {name: f"coco_1k_{name}" for name in RECALLS},
    "COCO 5K": {name: f"coco_5k_{name}" for name in RECALLS},
    "CxC": {f"{way}_r1": f"cxc_{way}_r1" for way in ("i2t", "t2i")},
    "ECCV Caption": {f"{way}_{name}": f"eccv_{way}_{name}" for way in ("i2t", "t2i") for name in _FOUND},
}
EMBEDDED_TRUTHS = {
    "listed pairs": {name: name for name in RECALLS},
    "exact truth": {f"{way}_{name}": f"{way}_{name.replace('r1', 'exact_r1')}" for way in ("i2t", "t2i") for name in _FOUND},
}
NOT_RUN = "not run"


def ground_truth_table(coco: Mapping[str, float] | None = None,
                       embedded: Sequence[Result] | Mapping[str, float] | None = None) -> pd.DataFrame:
    """What one and the same ranking is worth under each ground truth: figures × (measured on, ground truth).

    ``coco``: what ``protocols.eccv_caption_metrics`` returns. COCO 1K and 5K count the pair that a caption was written for, CxC and
    ECCV Caption what people and models found to be true besides. ``embedded``: Results, or what ``evaluate`` returns of one
    model. Its listed pairs are as COCO's; its exact truth is what CxC and ECCV Caption come near to. What was not measured says
    so; a figure that a ground truth does not have is an empty cell.
    """
    import pandas as pd

    sources: list[tuple[str, Mapping[str, float] | Mapping[str, Metric], dict[str, dict[str, str]]]]
    sources = [("COCO, test", coco or {}, COCO_TRUTHS)]
    if embedded is None or isinstance(embedded, Mapping):
        sources.append(("embedded dataset", embedded or {}, EMBEDDED_TRUTHS))
    else:
        sources += [(f"{result.model}, {result.measured_on}", result.metrics, EMBEDDED_TRUTHS) for result in embedded]
    columns = {}
    for place, metrics, truths in sources:
        for truth, names in truths.items():
            if (place, truth) in columns:
                raise InputError(f"two results of {place}: give each model a name of its own")
            columns[place, truth] = ["" if figure not in names else _number(metrics.get(names[figure])) for figure in FIGURES]
    index = pd.Index([metric_label(figure) for figure in FIGURES], name="figure")
    heads = pd.MultiIndex.from_tuples(columns, names=["measured on", "ground truth"])
    return pd.DataFrame(list(zip(*columns.values())), index=index, columns=heads)


def _number(value: float | Metric | None) -> str:
    return NOT_RUN if value is None else str(value) if isinstance(value, Metric) else f"{value:.1f}"


class PaperRow(BaseModel):
    """One row of data/paper_results.yaml: what a paper reports, and where."""

    model_config = ConfigDict(extra="forbid")

    method: str
    variant: str = ""
    dataset: str
    protocol: str
    i2t: list[float | None] = Field(min_length=3, max_length=3)
    t2i: list[float | None] = Field(min_length=3, max_length=3)
    rsum: float | None = None
    source: str
    table: str = ""
    status: str = ""


def read_paper_results(path: str | Path | None = None) -> list[PaperRow]:
    """The rows of data/paper_results.yaml, checked."""
    path = Path(path) if path is not None else data_dir() / "paper_results.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}: the papers' numbers come with the checkout, in data/") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({str(error).splitlines()[0]}): mend it") from None
    if not isinstance(content, list):
        raise InputError(f"{path} must be a list of rows")
    rows = []
    for number, row in enumerate(content, 1):
        try:
            rows.append(PaperRow.model_validate(row))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{path} row {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return rows


def published_table(protocol: str, methods: Sequence[str] | None = None, path: str | Path | None = None) -> pd.DataFrame:
    """The papers' numbers under one protocol (f30k_1k, coco_1k_fivefold, coco_5k): recalls, rsum, source, status.

    The first level of the columns says whose they are ("Flickr30K, f30k_1k, papers"), which no measured result's does:
    joined with ``results_table`` they stay apart. ``methods`` ("scan", "camp", ...) keeps those alone.
    """
    import pandas as pd

    every = read_paper_results(path)
    rows = [row for row in every if row.protocol == protocol and (methods is None or row.method in methods)]
    if not rows:
        known = ", ".join(sorted({f"{row.method} {row.protocol}" for row in every}))
        raise InputError(f"no paper's numbers for {protocol} {', '.join(methods or [])}; there are: {known}")
    place = f"{_NAMES.get(rows[0].dataset, rows[0].dataset)}, {protocol}, papers"
    labels = [*map(metric_label, RECALLS), "source", "status"]
    show = lambda value: "" if value is None else f"{value:.1f}"
    cells = [[*map(show, [*row.i2t, *row.t2i, row.rsum]), ", ".join(filter(None, [row.source, row.table])), row.status]
             for row in rows]
    index = pd.Index([f"{_NAMES.get(row.method, row.method)} {row.variant}".strip() for row in rows], name="model")
    return pd.DataFrame(cells, index=index, columns=pd.MultiIndex.from_product([[place], labels], names=["measured on", "metric"]))


def markdown(table: pd.DataFrame) -> str:
    """The table as GitHub markdown. What was measured on what stands in the heads, or above if it is one for all."""
    heads = [str(column) for column in table.columns]
    above = ""
    if table.columns.nlevels == 2:
        places = list(dict.fromkeys(table.columns.get_level_values(0)))
        above = f"{places[0]}:\n\n" if len(places) == 1 else ""
        heads = [metric if above else f"{place}: {metric}" for place, metric in table.columns]
    lines = [[str(table.index.name or ""), *heads], ["---", *["---:"] * len(heads)]]
    lines += [[str(name), *map(str, row)] for name, row in zip(table.index, table.itertuples(index=False))]
    return above + "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def styled(table: pd.DataFrame, caption: str = "") -> Styler:
    """The table for a notebook: ruled heads, right-aligned numbers, a caption; values are untouched."""
    rules = [
        {"selector": "caption", "props": "caption-side: top; text-align: left; font-weight: 600; padding-bottom: 6px"},
        {"selector": "th.col_heading", "props": "text-align: right; border-bottom: 1px solid #8a8f98; font-weight: 600"},
        {"selector": "th.col_heading.level0", "props": "text-align: center"},
        {"selector": "th.row_heading", "props": "text-align: left; font-weight: 500"},
        {"selector": "td", "props": "text-align: right; padding: 3px 10px; font-variant-numeric: tabular-nums"},
        {"selector": "tbody tr:nth-child(even)", "props": "background-color: rgba(128, 128, 128, 0.08)"},
    ]
    look = table.style.set_table_styles(rules)
    return look.set_caption(caption) if caption else look
