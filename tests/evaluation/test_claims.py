"""Verdicts follow Student's interval of paired differences, and every committed claim names rows that exist."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from itm_lib.evaluation.claims import (
    Claim,
    by_label,
    claims_table,
    count_verdicts,
    measured,
    paired_difference,
    paper_difference,
    read_claims,
)
from itm_lib.evaluation.report import Result, read_results
from itm_lib.files import InputError, project_root


def result(model: str, values: list[float], seeds: list[int] | None = None, split: str = "test", **metrics) -> Result:
    seeds = seeds or list(range(len(values)))
    runs = [{"rsum": value, **{name: others[place] for name, others in metrics.items()}} for place, value in enumerate(values)]
    return Result.from_runs(runs, seeds=seeds, model=model, dataset="flickr8k", split=split, profile="course", commit="x", command="x", seconds=1.0)


def test_the_interval_is_students_of_paired_seeds():
    better, worse = result("a", [10.0, 12.0, 15.0, 11.0, 14.0]), result("b", [9.0, 9.5, 13.0, 10.5, 11.0])
    found = paired_difference(better, worse)
    gains = np.array([1.0, 2.5, 2.0, 0.5, 3.0])
    expected = stats.t.interval(0.95, 4, gains.mean(), stats.sem(gains))
    assert found.mean == pytest.approx(1.8) and (found.low, found.high) == pytest.approx(expected) and found.verdict == "holds"
    turned = paired_difference(worse, better)
    assert turned.verdict == "reversed" and (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert str(found) == f"+1.8 [{expected[0]:+.1f}, {expected[1]:+.1f}]"


def test_agreement_of_three_seeds_alone_is_no_verdict():
    """All three differences are above 0, which luck does one time in eight, in either direction one in four."""
    found = paired_difference(result("a", [11.0, 15.0, 10.5]), result("b", [10.0, 10.0, 10.0]))
    assert min(found.values) > 0 and found.low < 0 and found.verdict == "open"


def test_equal_rows_hold_one_time_in_forty():
    rng = np.random.default_rng(0)
    verdicts = [paired_difference(result("a", list(rng.normal(size=5))), result("b", list(rng.normal(size=5)))).verdict for _ in range(600)]
    assert 0.01 < verdicts.count("holds") / 600 < 0.045 and 0.01 < verdicts.count("reversed") / 600 < 0.045


def test_common_seeds_count_and_one_is_no_verdict():
    better, worse = result("a", [3.0, 1.0, 2.0], [2, 0, 1]), result("b", [0.0, 0.5], [2, 5])
    found = paired_difference(better, worse)
    assert found.seeds == (2,) and found.values == (3.0,) and found.verdict == "one seed" and str(found) == "+3.0"
    with pytest.raises(InputError, match="'a' and 'b' have no seed in common"):
        paired_difference(better, result("b", [1.0], [7]))
    with pytest.raises(InputError, match="the result 'a' has no rsumm; did you mean 'rsum'"):
        paired_difference(better, worse, "rsumm")


CLAIM = Claim(name="attention", method="scan", better="SCAN t-i AVG", worse="Sum-Max t-i", paper=("t-i AVG", "Sum-Max t-i"), on_drawings=("SCAN", "Sum-Max"))


def test_the_papers_difference_and_ours_stand_side_by_side():
    assert paper_difference(CLAIM) == pytest.approx(446.2 - 430.8)
    photographs = by_label([result("SCAN t-i AVG", [5.0, 6.0, 7.0]), result("Sum-Max t-i", [1.0, 2.1, 2.9]), result("SCAN t-i AVG", [0.0, 0.0, 0.0], split="val")])
    drawings = by_label([result("SCAN", [1.0, 2.0]), result("Sum-Max", [4.0, 5.2])])
    places = {"drawings": (drawings, True), "photographs": (photographs, False)}
    other = CLAIM.model_copy(update={"name": "not run", "better": "nobody", "on_drawings": None})
    table = claims_table([CLAIM, other], places)
    assert list(table.index) == [("SCAN", "attention")]  # what nobody has run is left out
    assert table.iloc[0].tolist() == ["+15.4", str(measured(CLAIM, drawings, True)), "reversed", str(measured(CLAIM, photographs)), "holds"]
    assert count_verdicts([CLAIM, other], places) == {"drawings": {"holds": 0, "open": 0, "reversed": 1}, "photographs": {"holds": 1, "open": 0, "reversed": 0}}
    assert claims_table([CLAIM], {"photographs": (photographs, False), "drawings": ({}, True)}).iloc[0].tolist()[-1] == "not run"
    with pytest.raises(InputError, match="no rsum of scan, 'none'"):
        paper_difference(CLAIM.model_copy(update={"paper": ("none", "t-i AVG")}))


def test_the_row_with_more_seeds_is_taken():
    assert by_label([result("a", [1.0]), result("a", [2.0, 3.0]), result("a", [4.0])])["a"].seeds == [0, 1]


def test_committed_claims_name_rows_of_the_drawings_and_of_the_papers():
    claims = read_claims(project_root() / "data" / "claims.yaml")
    assert len(claims) > 40 and len({(claim.method, claim.name) for claim in claims}) == len(claims)
    assert {claim.method for claim in claims} == {"scan", "camp", "hrem", "dive"}
    drawings = by_label(row for row in read_results(project_root() / "data" / "results") if row.dataset == "openmoji_scenes" and row.variant == "default-quick")
    for claim in claims:
        assert claim.paper is None or paper_difference(claim) is not None, claim.name
        labels = claim.on_drawings or (claim.better, claim.worse)
        assert all(label in drawings for label in labels) or "MiniLM" in claim.better, claim.name
    with pytest.raises(InputError, match="no file .*nowhere.yaml"):
        read_claims("nowhere.yaml")
