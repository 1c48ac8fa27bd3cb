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
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from itm_lib.files import InputError, committed, json_lines, nearest, project_root, read_json, write_text

if TYPE_CHECKING:
    import pandas as pd
    from pandas.io.formats.style import Styler

SCHEMA = 1
RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
_LABELS = {"rsum": "rSum", "median_rank": "median rank", "mean_rank": "mean rank", "map_at_r": "mAP@R",
           "r_precision": "R-Precision", "exact_r1": "exact R@1", "r1": "R@1", "r5": "R@5", "r10": "R@10"}
_NAMES = {"flickr8k": "Flickr8k", "flickr30k": "Flickr30K", "coco": "COCO", "vse": "VSE++", "scan": "SCAN", "camp": "CAMP", "hrem": "HREM",
          "dive": "DivE", "sco": "SCO", "vse_infinity": "VSE∞", "devise": "DeViSE", "sdt_rnn": "SDT-RNN", "defrag": "DeFrag", "dvsa": "DVSA",
          "m_rnn": "m-RNN", "mnlm": "MNLM", "nic": "NIC", "dcca": "DCCA", "m_cnn": "m-CNN", "fisher": "Fisher vectors", "two_way_net": "2WayNet",
          "imram": "IMRAM"}


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
    content = result.to_json() if isinstance(result, Result) else [each.to_json() for each in result]
    write_text(path, json_lines(content) + "\n")
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
    path = Path(path) if path is not None else committed("paper_results.yaml")
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
    """The papers' numbers under one protocol (flickr8k_1k, f30k_1k, coco_1k_fivefold, coco_5k): recalls, rsum, source, status.

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


# --- the papers' tables, beside what was measured here ----------------------------------------------------------------

PROTOCOLS_OF = {"flickr30k": ("f30k_1k",), "coco": ("coco_1k_fivefold", "coco_5k")}
_METRICS_OF = {"f30k_1k": "f30k_1k", "coco_1k_fivefold": "coco_1k", "coco_5k": "coco_5k"}  # what evaluate calls them
PROTOCOL_TITLES = {"f30k_1k": "Flickr30K, 1000 test pictures", "coco_1k_fivefold": "COCO, five folds of 1000 test pictures",
                   "coco_5k": "COCO, 5000 test pictures"}
EMBEDDED = "openmoji_scenes", "default"  # a result's dataset, and how its variant starts
CLOSE = 0.99  # of a paper's number: from there on it is reproduced
NO_NUMBER = "no published number found"
_READ_IN = {"paper": "the paper", "authors": "the authors' repository", "later_paper": "a later paper", "notes": "somebody's notes"}
_ROW_WORDS = {"bigru": "BiGRU", "bert": "BERT", "region": "regions"}
_NOT_COMPARED = {"seed", "num_workers", "save_every", "log_every", "tensorboard", "region_dim", "vocab_size", "word_vectors_found"}

# (method, a published variant, or the name of a recipe without one) -> the model of data/results that comes nearest to it. What is not
# here has no counterpart on the embedded dataset: BERT and grids of pictures among it.
EMBEDDED_OF: dict[tuple[str, str], str] = {
    ("vse", "BUTD regions + BiGRU, re-implemented"): "VSE++, mean pooling",
    **{("scan", name): f"SCAN {name}" for name in ("t-i LSE", "t-i AVG", "i-t LSE", "i-t AVG", "i-t SUM", "i-t MAX",
                                                   "i-t AVG, one-directional GRU")},
    ("scan", "ensemble t-i AVG + i-t LSE"): "SCAN t-i AVG + i-t LSE",
    ("scan", "Sum-Max t-i"): "Sum-Max t-i", ("scan", "Sum-Max i-t"): "Sum-Max i-t",
    ("scan", "i-t AVG, no hard negatives"): "SCAN i-t AVG, all negatives",
    ("scan", "i-t AVG, image embedding not normalised"): "SCAN i-t AVG, image not normalised",
    ("camp", "full model"): "CAMP", ("camp", "base model"): "CAMP, no interaction",
    ("camp", "no cross-attention"): "CAMP, no cross-attention", ("camp", "fusion without gates"): "CAMP, no gates",
    ("camp", "fusion without residual"): "CAMP, no residual", ("camp", "no attention-based aggregation"): "CAMP, average pooling",
    ("camp", "MLP + ranking loss"): "CAMP, ranking loss", ("camp", "BCE without hardest negatives"): "CAMP, BCE over all negatives",
    ("hrem", "hrem_bigru"): "HREM, fusion", ("hrem", "hrem_standalone_bigru"): "HREM, standalone",
    **{("dive", f"K = {slots}"): f"DivE, K = {slots}" for slots in (1, 2, 4, 6)}, ("dive", "dive_region_bigru"): "DivE, K = 4",
}


@dataclass
class _Line:
    """What one line of :func:`paper_table` is about: a recipe, a published variant, or runs that belong to either."""

    method: str
    dataset: str
    variant: str | None
    recipe: str = ""
    settings: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    runs: list[Result] = field(default_factory=list)

    @property
    def key(self) -> str:
        """What EMBEDDED_OF calls it."""
        return self.variant or self.recipe.rpartition("/")[2]

    @property
    def label(self) -> str:
        words = self.key.removeprefix(f"{self.method}_").split("_") if self.variant is None else [self.variant]
        name = " ".join([_NAMES.get(self.method, self.method), *(_ROW_WORDS.get(word, word) for word in words)]).strip()
        return f"{name} ({self.note})" if self.note else name


def paper_table(results: Sequence[Result], paper: str | Path | None = None,
                recipes: Mapping[str, Mapping[str, Any]] | None = None) -> pd.DataFrame:
    """The papers' tables beside what was measured here: a row a recipe and protocol, and a row a published row without a recipe.

    ``results``: whatever there is. Those of a test split whose ``config`` names a ``paper`` row are runs of it, if their split had
    the size of its protocol; runs of the same settings are seeds of one row. Runs with settings that are not the recipe's, and the
    authors' own weights, have rows of their own. Those of the embedded dataset have a column of their own, by :data:`EMBEDDED_OF`.
    ``recipes``: name -> settings of the papers' recipes, as ``itm_lib.training.recipe.paper_recipes()`` gives them.

    The rows are named by (protocol, model). "status" is "reproduced" where the mean rSum is at most 1 % below the paper's (of a row
    without rSum: the sum of the recalls that it has), "below", "embedded only", "not run", or says that there is no published number.
    """
    import pandas as pd

    published = {(row.method, row.variant, row.protocol): row for row in read_paper_results(paper)}
    lines = _lines(results, published.values(), recipes or {})
    embedded = [result for result in results if _paper_of(result) is None and result.split == "test"
                and result.dataset == EMBEDDED[0] and result.variant.startswith(EMBEDDED[1])]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for protocol in _METRICS_OF:
        for line in lines:
            row = published.get((line.method, line.variant or "", protocol))
            wanted = not line.note and (row is not None or line.recipe) or _measured(line, protocol)
            if protocol in PROTOCOLS_OF[line.dataset] and wanted:
                name, number = line.label, 1
                while (protocol, name) in rows:
                    number += 1
                    name = f"{line.label}, {number}"
                rows[protocol, name] = _cells(line, row, protocol, embedded)
    index = pd.MultiIndex.from_tuples(rows, names=["protocol", "model"])
    return pd.DataFrame(list(rows.values()), index=index)


def _lines(results: Sequence[Result], published: Iterable[PaperRow], recipes: Mapping[str, Mapping[str, Any]]) -> list[_Line]:
    """All lines of the table, in the order of methods, with their runs."""
    order = list(_NAMES)
    with_paper = [(name, content, content["paper"]) for name, content in recipes.items() if content.get("paper")]
    lines = [_Line(content["model"]["method"], about["dataset"], about["variant"], name, about["settings"], content)
             for name, content, about in with_paper]
    for row in published:
        if row.dataset not in PROTOCOLS_OF:  # Flickr8k: no row of the five papers
            continue
        if not any((line.method, line.dataset, line.variant) == (row.method, row.dataset, row.variant) for line in lines):
            lines.append(_Line(row.method, row.dataset, row.variant))
    for result in results:
        about = _paper_of(result)
        if about is not None and result.split == "test":
            _place(result, about, lines)
    method = lambda line: order.index(line.method) if line.method in order else len(order)  # noqa: E731
    return sorted(lines, key=lambda line: (method(line), "ensemble" in line.label, not line.recipe))


def _place(result: Result, about: Mapping[str, Any], lines: list[_Line]) -> None:
    """Put ``result`` to the runs of the line that it belongs to, a new one if its settings are nobody's."""
    method, wanted = _method_of(result.config), (about["dataset"], about["variant"])
    own = [line for line in lines if line.method == method and (line.dataset, line.variant) == wanted and not line.note]
    official = "official" in result.config
    best = min(own, key=lambda line: len(_changed(line.content, result.config)), default=None)
    if best is None:
        best = _Line(method, about["dataset"], about["variant"], settings=about.get("settings", ""))
        lines.append(best)
    if not best.content and not official:  # no recipe says what its settings are: the first run does
        best.content, best.settings = result.config, about.get("settings", "")
    changed = [] if official or "ensemble" in result.config else _changed(best.content, result.config)
    note = "the authors' weights" if official else ""
    if changed:
        note = f"with other {', '.join([*changed[:3], *(['...'] if len(changed) > 3 else [])])}"
    if note:
        noted = [line for line in lines if (line.method, line.dataset, line.variant, line.recipe, line.note) == (
            best.method, best.dataset, best.variant, best.recipe, note)
            and not _changed(line.runs[0].config, result.config)]
        if not noted:
            settings = "the authors' weights" if official else "changed"
            noted = [_Line(best.method, best.dataset, best.variant, best.recipe, settings, best.content, note)]
            lines.insert(lines.index(best) + 1, noted[0])
        best = noted[0]
    if not any(run.seeds == result.seeds and run.metrics == result.metrics for run in best.runs):  # a file found twice counts once
        best.runs.append(result)


def _paper_of(result: Result) -> Mapping[str, Any] | None:
    """The published row that a result is a run of; that of an ensemble follows from those of its members."""
    own = result.config.get("paper")
    if "ensemble" not in result.config:
        return {"variant": None, **own} if isinstance(own, Mapping) and own.get("dataset") in PROTOCOLS_OF else None
    found = [member.get("paper") or {} for member in _members(result.config)]
    names, places = [each.get("variant") for each in found], {each.get("dataset") for each in found}
    if len(found) < 2 or None in names or len(places) > 1 or not places <= set(PROTOCOLS_OF) or not _method_of(result.config):
        return None
    if len(set(names)) == 1:  # two models of one recipe
        variant = f"{names[0].removesuffix(', single')}, ensemble"
    else:
        variant = "ensemble " + " + ".join(sorted(names, reverse=True))  # "t-i ..." comes first in the papers
    return {"dataset": found[0]["dataset"], "variant": variant, "settings": found[0].get("settings", "")}


def _members(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The settings of an ensemble's models."""
    members = config["ensemble"]
    return list(members.values() if isinstance(members, Mapping) else members)


def _method_of(config: Mapping[str, Any]) -> str:
    """The method of a result; empty for an ensemble of several."""
    if "ensemble" in config:
        methods = {_method_of(member) for member in _members(config)}
        return methods.pop() if len(methods) == 1 else ""
    return (config.get("model") or config.get("official") or {}).get("method", "")


def _changed(content: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """The settings of ``config`` that are not those of ``content``, less what changes no number; none if ``content`` is empty."""
    if not content:
        return []
    parts = [_flat({section: each.get(section) for section in ("model", "train", "stages")}) for each in (content, config)]
    return [name for name in dict.fromkeys([*parts[0], *parts[1]]) if parts[0].get(name) != parts[1].get(name)]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested settings as {"train.lr": 0.1}."""
    if isinstance(value, Mapping):
        items = [(str(key), each) for key, each in value.items() if key not in _NOT_COMPARED]
    elif isinstance(value, (list, tuple)) and any(isinstance(each, Mapping) for each in value):
        items = [(str(each.get("name", number)), each) for number, each in enumerate(value)]
    else:
        return {name: list(value) if isinstance(value, tuple) else value}
    return {key: each for part, inner in items for key, each in _flat(inner, f"{name}.{part}" if name else part).items()}


def _measured(line: _Line, protocol: str) -> dict[str, Metric]:
    """The metrics of a line's runs under ``protocol``, all seeds together."""
    prefix = _METRICS_OF[protocol]
    runs = [run.metrics for run in line.runs if f"{prefix}_rsum" in run.metrics]
    values = lambda name: [value for metrics in runs for value in metrics[f"{prefix}_{name}"].values]  # noqa: E731
    return {name: Metric.of(values(name)) for name in RECALLS} if runs else {}


def _cells(line: _Line, row: PaperRow | None, protocol: str, embedded: Sequence[Result]) -> dict[str, str]:
    """One row of :func:`paper_table`."""
    here = _measured(line, protocol)
    near = [each for each in embedded if "rsum" in each.metrics and each.model == EMBEDDED_OF.get((line.method, line.key))]
    near.sort(key=lambda each: -len(each.seeds))
    show = lambda value: "" if value is None else f"{value:.1f}"  # noqa: E731
    paper = [row.i2t[0], row.t2i[0], row.rsum] if row is not None else [None] * 3
    ensemble = "ensemble" in line.label or any("ensemble" in run.config for run in line.runs)
    shown = ("i2t_r1", "t2i_r1", "rsum")
    return {
        "recipe": line.recipe, "settings": line.settings, "models": "ensemble" if ensemble else "single",
        **{f"paper {metric_label(name)}": show(value) for name, value in zip(shown, paper)},
        "source": NO_NUMBER if row is None else ", ".join(filter(None, [row.source, row.table])),
        "read in": "" if row is None else _READ_IN.get(row.status, row.status),
        **{f"here {metric_label(name)}": str(here[name]) if here else "" for name in shown},
        "seeds": str(len(here["rsum"].values)) if here else "",
        "status": _status(row, here, bool(near)), "embedded rSum": str(near[0].metrics["rsum"]) if near else "",
    }


def _status(row: PaperRow | None, here: Mapping[str, Metric], embedded: bool) -> str:
    if not here:
        return "embedded only" if embedded else NOT_RUN
    if row is None:
        return NO_NUMBER
    known = {"rsum": row.rsum} if row.rsum is not None else dict(zip(RECALLS, [*row.i2t, *row.t2i]))
    known = {name: value for name, value in known.items() if value is not None}
    return "reproduced" if sum(here[name].mean for name in known) >= CLOSE * sum(known.values()) else "below"


def paper_markdown(table: pd.DataFrame) -> str:
    """:func:`paper_table` as GitHub markdown, short: a table a protocol, R@1 of both ways and rSum, and below what the words mean."""
    parts = []
    for protocol, part in table.groupby(level="protocol", sort=False):
        lines = ["| model | what | paper: R@1 i2t / t2i, rSum | from | here: R@1 i2t / t2i, rSum | status | embedded rSum |",
                 "|---|---|---|---|---|---|---:|"]
        for (_, name), row in part.iterrows():
            paper = _three(row, "paper") or NO_NUMBER
            source = f"{row['source']} ({row['read in']})" if row["read in"] else ""
            here = f"{_three(row, 'here')} ({row['seeds']} seed{'s' if row['seeds'] != '1' else ''})" if row["seeds"] else ""
            kind = ", ".join(filter(None, [row["models"], row["recipe"], row["settings"]]))
            cells = (name, kind, paper, source, here, row["status"], row["embedded rSum"])
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append(f"{PROTOCOL_TITLES[protocol]}:\n\n" + "\n".join(lines))
    return "\n\n".join([*parts, PAPER_NOTES])


PAPER_NOTES = ("reproduced: the mean rSum here is at most 1 % below the paper's; below: it is lower. embedded only: a model of this kind was "
               "measured on the embedded dataset alone, whose numbers say nothing about the paper's. ± is the standard deviation over seeds. "
               "\"ours, chosen on val\": the authors published no settings for this row.")


def _three(row: Mapping[str, str], whose: str) -> str:
    first, second, total = (row[f"{whose} {metric_label(name)}"] or "-" for name in ("i2t_r1", "t2i_r1", "rsum"))
    return "" if first == second == total == "-" else f"{first} / {second}, {total}"


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
