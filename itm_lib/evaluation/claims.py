"""Claims of the papers, and whether they hold where something else was measured: a difference, its interval over seeds, and a verdict.

A claim says that one row of a table is better than another. Measured again, both rows have a value a seed, and what counts is the
*paired* difference of the same seed, which gives both runs the same order of the data where they use the same batches. Its 95 % confidence interval is Student's,

    mean(d) ± t(0.975, n - 1) · sd(d) / √n

and the verdict follows from it alone. If two rows are equally good, "holds" is said by luck one time in forty.

========  =====================================================
verdict   the interval of the difference, better less worse
========  =====================================================
holds     lies above 0
reversed  lies below 0
open      has 0 in it
one seed  cannot be computed: there are fewer than two common seeds
========  =====================================================

The interval is about seeds alone. Other test pictures would move a difference, too.

The claims themselves stand in data/claims.yaml, with the labels of the rows that data/results has and the papers' variants.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from itm_lib.evaluation.report import PaperRow, Result, read_paper_results, read_results
from itm_lib.files import InputError, committed, nearest, validation_line

if TYPE_CHECKING:
    import pandas as pd

CLAIMS_FILE = "claims.yaml"
DRAWINGS, PHOTOGRAPHS = ("openmoji_scenes", "default-quick"), ("flickr8k", "small")  # dataset and variant of the results
CONFIDENCE = 0.95
PAPER_PROTOCOL = "f30k_1k"  # where the papers make their ablations
Verdict = Literal["holds", "reversed", "open", "one seed"]


class Claim(BaseModel):
    """One claim: the row ``better`` is above the row ``worse``. Rows are labels of data/results.

    ``method``: whose claim it is; ``chapter``: the notebook that teaches it. ``paper``: the variants of the two rows in data/paper_results.yaml, as
    "method: variant" where the method is another one; none where the paper prints no such numbers. ``on_drawings``: labels there, where they are others.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    method: str
    better: str
    worse: str
    paper: tuple[str, str] | None = None
    on_drawings: tuple[str, str] | None = None


@dataclass(frozen=True)
class Difference:
    """The paired differences of two rows over their common ``seeds``: ``values`` (n,), their mean, and the interval's ``low`` and ``high``."""

    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        if len(self.seeds) < 2:
            return "one seed"
        return "holds" if self.low > 0 else "reversed" if self.high < 0 else "open"

    def __str__(self) -> str:
        """``+12.3 [+8.1, +16.5]``; without an interval of one seed."""
        if len(self.seeds) < 2:
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def paired_difference(better: Result, worse: Result, metric: str = "rsum", confidence: float = CONFIDENCE) -> Difference:
    """``metric`` of ``better`` less that of ``worse`` over the seeds that both have. :class:`InputError` if they have none in common."""
    from scipy import stats

    for result in (better, worse):
        if metric not in result.metrics:
            raise InputError(f"the result {result.model!r} has no {metric}; {nearest(metric, result.metrics)}")
    place = [{seed: number for number, seed in enumerate(result.seeds)} for result in (better, worse)]
    seeds = tuple(seed for seed in better.seeds if seed in place[1])
    if not seeds:
        raise InputError(f"{better.model!r} and {worse.model!r} have no seed in common: run both with the same seeds")
    first, second = ([result.metrics[metric].values[where[seed]] for seed in seeds] for result, where in zip((better, worse), place))
    values = np.subtract(first, second)
    mean = float(values.mean())
    if len(seeds) < 2:
        return Difference(seeds, tuple(values.tolist()), mean, -np.inf, np.inf)
    half = float(stats.t.ppf((1 + confidence) / 2, len(seeds) - 1) * values.std(ddof=1) / np.sqrt(len(seeds)))
    return Difference(seeds, tuple(values.tolist()), mean, mean - half, mean + half)


@cache
def read_claims(path: str | Path | None = None) -> tuple[Claim, ...]:
    """The claims in ``path``, by default data/claims.yaml."""
    path = Path(path) if path is not None else committed(CLAIMS_FILE)
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
        return tuple(Claim(**row) for row in rows)
    except FileNotFoundError:
        raise InputError(f"no file {path}: the papers' claims come with the checkout") from None
    except ValidationError as error:
        raise InputError(f"{path}: {validation_line(error, Claim.model_fields)}") from None


def by_label(results: Iterable[Result], split: str = "test") -> dict[str, Result]:
    """The results of ``split`` by their label; of two rows of one label the one with more seeds."""
    found: dict[str, Result] = {}
    for result in results:
        if result.split == split and (result.model not in found or len(result.seeds) > len(found[result.model].seeds)):
            found[result.model] = result
    return found


def measured_places(folder: str | Path | None = None) -> dict[str, tuple[dict[str, Result], bool]]:
    """Where the claims were tried, as :func:`claims_table` takes it: the drawings' default variant, and the fixed part of Flickr8k.

    ``folder``: of result files, by default data/results. A place without results has none; claims are "not run" there.
    """
    files = sorted(Path(folder if folder is not None else committed("results")).glob("*.json"))
    results = [result for file in files for result in read_results(file)]
    drawings = by_label(result for result in results if (result.dataset, result.variant) == DRAWINGS)
    part = by_label(result for result in results if (result.dataset, result.variant) == PHOTOGRAPHS)
    return {"drawings": (drawings, True), "photographs": (part, False)}


def paper_difference(claim: Claim, rows: Sequence[PaperRow] | None = None) -> float | None:
    """The paper's own difference in rsum; None where it prints no such numbers."""
    if claim.paper is None:
        return None
    known = {(row.method, row.variant): row.rsum for row in rows or read_paper_results() if row.protocol == PAPER_PROTOCOL}
    values = []
    for name in claim.paper:
        method, colon, variant = name.partition(": ")
        key = (method, variant) if colon else (claim.method, name)
        if known.get(key) is None:
            raise InputError(f"claim {claim.name!r}: data/paper_results.yaml has no rsum of {key[0]}, {key[1]!r}")
        values.append(known[key])
    return values[0] - values[1]


def measured(claim: Claim, results: Mapping[str, Result], drawings: bool = False, metric: str = "rsum") -> Difference | None:
    """The claim's difference among ``results`` by label; None where one of the rows was not run."""
    labels = (claim.on_drawings if drawings else None) or (claim.better, claim.worse)
    if not all(label in results for label in labels):
        return None
    return paired_difference(results[labels[0]], results[labels[1]], metric)


def claims_table(claims: Iterable[Claim], places: Mapping[str, tuple[Mapping[str, Result], bool]], metric: str = "rsum") -> pd.DataFrame:
    """Claims as rows: the paper's difference, and for each place (results by label, whether they are of drawings) ours, its interval, the verdict.

    A claim that no place has run is left out.
    """
    import pandas as pd

    rows, index = [], []
    for claim in claims:
        found = {place: measured(claim, results, drawings, metric) for place, (results, drawings) in places.items()}
        if not any(found.values()):
            continue
        paper = paper_difference(claim)
        cells = ["" if paper is None else f"{paper:+.1f}"]
        for difference in found.values():
            cells += [str(difference), difference.verdict] if difference else ["", "not run"]
        rows.append(cells)
        index.append((_NAMES.get(claim.method, claim.method), claim.name))
    columns = [("Flickr30K, paper", "difference"), *((place, what) for place in places for what in ("difference", "verdict"))]
    return pd.DataFrame(rows, index=pd.MultiIndex.from_tuples(index, names=["paper", "claim"]), columns=pd.MultiIndex.from_tuples(columns))


def count_verdicts(claims: Iterable[Claim], places: Mapping[str, tuple[Mapping[str, Result], bool]], metric: str = "rsum") -> dict[str, dict[str, int]]:
    """How many claims hold, are open and are reversed in each place, of those that all ``places`` have run with two common seeds or more."""
    claims = list(claims)
    verdicts = {place: [found.verdict if (found := measured(claim, results, drawings, metric)) else None for claim in claims]
                for place, (results, drawings) in places.items()}
    common = [all(own[number] not in (None, "one seed") for own in verdicts.values()) for number in range(len(claims))]
    return {place: {what: sum(verdict == what and shared for verdict, shared in zip(own, common)) for what in ("holds", "open", "reversed")}
            for place, own in verdicts.items()}


_NAMES = {"vse": "VSE++", "scan": "SCAN", "camp": "CAMP", "hrem": "HREM", "dive": "DivE"}
