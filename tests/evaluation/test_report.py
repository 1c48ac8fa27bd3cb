"""Results: written whole, read back, refused when damaged, and tables that never mix sources."""

import json

import pandas as pd
import pytest
from pydantic import ValidationError

from itm_lib.evaluation import report
from itm_lib.evaluation.report import (
    Metric,
    Result,
    markdown,
    published_table,
    read_results,
    results_table,
    styled,
    write_result,
)
from itm_lib.files import InputError


def result(model="SCAN t-i AVG", runs=({"rsum": 500.0, "i2t_r1": 70.0}, {"rsum": 510.0, "i2t_r1": 72.0}), **about):
    about = {"dataset": "OpenMoji Scenes", "variant": "default", "split": "test", "profile": "course", "config": {"margin": 0.2},
             "commit": "abc", "command": "itm train scan", "seconds": 12.5, **about}
    return Result.from_runs(runs, seeds=list(range(len(runs))), model=model, **about)


def test_mean_and_sd_over_seeds():
    made = result()
    assert made.metrics["rsum"] == Metric(values=[500.0, 510.0], mean=505.0, sd=50**0.5)
    assert str(made.metrics["rsum"]) == "505.0 ± 7.1"
    single = result(runs=[{"rsum": 500.04}])
    assert single.metrics["rsum"].sd is None and str(single.metrics["rsum"]) == "500.0"


def test_write_and_read_back(tmp_path):
    one, two = result(), result(model="VSE++")
    write_result(tmp_path / "runs" / "a" / "metrics.json", one)
    write_result(tmp_path / "runs" / "b" / "metrics.json", [two, one])
    content = json.loads((tmp_path / "runs" / "a" / "metrics.json").read_text(encoding="utf-8"))
    assert list(content) == ["schema", "model", "dataset", "variant", "split", "seeds", "profile", "config", "commit", "command",
                             "seconds", "metrics"]
    assert content["schema"] == 1 and content["metrics"]["i2t_r1"]["values"] == [70.0, 72.0]
    (tmp_path / "runs" / "a" / "config.json").write_text("{}")  # runs hold other files too
    assert read_results(tmp_path / "runs") == [one, two, one]
    write_result(tmp_path / "results" / "scan__default.json", one)
    assert read_results(tmp_path / "results") == [one]
    assert read_results(tmp_path / "runs" / "b" / "metrics.json") == [two, one]
    assert read_results(tmp_path / "runs" / "*" / "metrics.json") == [one, two, one]
    assert not list(tmp_path.rglob("*.part"))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = write_result(tmp_path / "metrics.json", result())
    broken = result().model_copy(update={"seconds": float("nan")})
    with pytest.raises(ValueError):
        write_result(path, broken)
    assert read_results(path) == [result()] and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("damage, line", [
    (lambda text: text[: len(text) // 2], "is not valid JSON"),
    (lambda text: text.replace('"schema": 1', '"schema": 7'), "is not a result of schema 1: schema: Input should be 1; make it again"),
    (lambda text: text.replace('"model"', '"mdl"'), "is not a result of schema 1: model: Field required; make it again"),
    (lambda text: text.replace('"seeds": [0, ', '"seeds": ['), "metric rsum has 2 values for 1 seeds; make it again"),
    (lambda text: "[3]", "is not a result of schema 1: the whole: "),
])
def test_a_damaged_result_is_one_line(tmp_path, damage, line):
    path = write_result(tmp_path / "metrics.json", result())
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(InputError) as error:
        read_results(path)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("where", ["", "nothing.json", "*/metrics.json"])
def test_nothing_to_read_is_one_line(tmp_path, where):
    with pytest.raises(InputError, match="^no results at .*: run what makes them first"):
        read_results(tmp_path / where)


def test_runs_that_differ_are_refused():
    with pytest.raises(InputError, match=r"^the run of seed 1 has other metrics than the first: \['i2t_r1', 'rsum'\]$"):
        result(runs=[{"rsum": 1.0}, {"i2t_r1": 1.0}])
    with pytest.raises(InputError, match="^0 runs for 0 seeds: one run a seed is needed$"):
        result(runs=[])
    with pytest.raises(ValidationError):
        result(runs=[{"rsum": float("nan")}])


def test_table_of_means_and_spreads():
    table = results_table([result(), result(model="VSE++", runs=[{"rsum": 440.0}])], ["i2t_r1", "rsum"])
    place = "OpenMoji Scenes, default, test"
    assert list(table.columns) == [(place, "i2t R@1"), (place, "rSum"), (place, "seeds")]
    assert table.loc["SCAN t-i AVG"].tolist() == ["71.0 ± 1.4", "505.0 ± 7.1", "2"]
    assert table.loc["VSE++"].tolist() == ["", "440.0", "1"]
    assert markdown(table).splitlines() == [
        f"{place}:", "", "| model | i2t R@1 | rSum | seeds |", "| --- | ---: | ---: | ---: |",
        "| SCAN t-i AVG | 71.0 ± 1.4 | 505.0 ± 7.1 | 2 |", "| VSE++ |  | 440.0 | 1 |"]


@pytest.mark.parametrize("values, text", [
    ([0.971, 0.967], "0.969 ± 0.003"), ([0.25], "0.250"), ([2.7e-9, 2.9e-9, 0.1e-9], "1.9e-09 ± 2e-09"), ([4e-4], "4.0e-04"),
    ([0.0, 0.0], "0.0e+00 ± 0e+00"), ([1.0, 1.0], "1.000 ± 0.000"),
])
def test_fractions_are_shown_however_small(values, text):
    made = result(runs=[{"gate_negative": value, "rsum": 500.0} for value in values])
    assert results_table([made], ["gate_negative"]).iloc[0, 0] == text
    assert report.Metric.of(values).shown_as("foil_object") == str(report.Metric.of(values))  # in percent, as ever


def test_one_sweep_of_several(tmp_path):
    for sweep, model in (("spine", "VSE++"), ("spine", "SCAN"), ("spine_long", "VSE++")):
        write_result(tmp_path / f"{sweep}__{model}.json", result(model=model))
    assert [each.model for each in report.read_sweep("spine", tmp_path)] == ["SCAN", "VSE++"]
    with pytest.raises(InputError, match="no results of a sweep 'spin' in .*; did you mean 'spine'?"):
        report.read_sweep("spin", tmp_path)
    with pytest.raises(InputError, match="no sweep's results in .*: run one first"):
        report.read_sweep("spine", tmp_path / "absent")


def test_datasets_never_share_a_column():
    measured = [result(), result(variant="many_to_many"), result(dataset="Flickr30K", variant="", split="test")]
    table = results_table(measured, ["rsum"])
    assert table.shape == (1, 6)  # three places, a number and its seeds each
    papers = published_table("f30k_1k", ["scan"])
    both = pd.concat([table, papers], axis=1).fillna("")
    assert len(set(both.columns)) == len(both.columns) == 6 + papers.shape[1]
    assert all(place.endswith("papers") for place in papers.columns.get_level_values(0))
    assert "Flickr30K, test: rSum" in markdown(both).splitlines()[0] and "Flickr30K, f30k_1k, papers: rSum" in markdown(both)


def coco_metrics():
    """A number of its own for each key of eccv_caption_metrics."""
    names = [name for truth in report.COCO_TRUTHS.values() for name in truth.values()]
    return {name: float(number) for number, name in enumerate(names)}


def test_ground_truths_stand_beside_each_other_and_never_in_one_column():
    run = {"i2t_r1": 70.0, "rsum": 500.0, "i2t_exact_r1": 80.0, "i2t_map_at_r": 60.0, "t2i_r_precision": 50.0}
    table = report.ground_truth_table(coco_metrics(), [result(runs=[run, run])])
    place, names = "SCAN t-i AVG, OpenMoji Scenes, default, test", ["COCO 1K", "COCO 5K", "CxC", "ECCV Caption"]
    assert list(table.columns) == [*(("COCO, test", name) for name in names), (place, "listed pairs"), (place, "exact truth")]
    assert table.loc["i2t R@1"].tolist() == ["0.0", "7.0", "14.0", "16.0", "70.0 ± 0.0", "80.0 ± 0.0"]
    assert table.loc["i2t mAP@R"].tolist() == ["", "", "", "17.0", "", "60.0 ± 0.0"]
    assert table.loc["t2i R-Precision"].tolist() == ["", "", "", "21.0", "", "50.0 ± 0.0"]
    assert table.loc["rSum"].tolist() == ["6.0", "13.0", "", "", "500.0 ± 0.0", ""]
    assert table.loc["t2i R@5"].tolist() == ["4.0", "11.0", "", "", "not run", ""]
    shown = [cell for cell in table["COCO, test"].to_numpy().ravel() if cell]
    assert sorted(map(float, shown)) == sorted(coco_metrics().values())  # each number once, and none left out


def test_ground_truths_say_what_was_not_run():
    table = report.ground_truth_table()
    assert set(table.to_numpy().ravel()) == {"", "not run"}
    assert list(table.columns.get_level_values(0).unique()) == ["COCO, test", "embedded dataset"]
    one = report.ground_truth_table(None, {"rsum": 411.04, "t2i_exact_r1": 12.0})["embedded dataset"]
    assert (one.loc["rSum", "listed pairs"], one.loc["t2i R@1", "exact truth"], one.loc["t2i R@1", "listed pairs"]) == (
        "411.0", "12.0", "not run")
    with pytest.raises(InputError, match="^two results of SCAN t-i AVG, OpenMoji Scenes, default, test: give each model a name"):
        report.ground_truth_table(None, [result(), result()])


def test_two_results_of_one_name_are_refused():
    with pytest.raises(InputError, match="^two results of 'SCAN t-i AVG' on OpenMoji Scenes, default, test: give each a name"):
        results_table([result(), result()])
    with pytest.raises(InputError, match="^no results to put in a table$"):
        results_table([])


def test_paper_table_shows_what_the_file_says():
    table = published_table("f30k_1k", ["scan"])["Flickr30K, f30k_1k, papers"]
    assert table.loc["SCAN t-i AVG", ["i2t R@1", "t2i R@10", "rSum", "status"]].tolist() == ["61.8", "83.0", "446.2", "paper"]
    assert "ECCV 2018" in table.loc["SCAN t-i AVG", "source"]
    with pytest.raises(InputError, match="^no paper's numbers for f30k_1k nobody; there are: .*scan coco_5k"):
        published_table("f30k_1k", ["nobody"])


@pytest.mark.parametrize("text, line", [
    ("- {method: scan", "is not valid YAML"),
    ("method: scan", "must be a list of rows"),
    ("- {method: scan, dataset: coco, protocol: coco_5k, i2t: [1, 2], t2i: [1, 2, 3], source: s}", "row 1: i2t: "),
])
def test_a_damaged_paper_file_is_one_line(tmp_path, text, line):
    path = tmp_path / "paper.yaml"
    with pytest.raises(InputError, match="no file .*paper.yaml"):
        published_table("coco_5k", path=path)
    path.write_text(text)
    with pytest.raises(InputError) as error:
        published_table("coco_5k", path=path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_styled_keeps_the_values_and_adds_a_caption():
    table = results_table([result()], ["rsum"])
    assert "<caption" not in styled(table).to_html()
    html = styled(table, "Test of 200 pictures").to_html()
    assert "505.0 ± 7.1" in html and "<caption>Test of 200 pictures</caption>" in html


@pytest.mark.parametrize("name, label", [
    ("i2t_r1", "i2t R@1"), ("t2i_map_at_r", "t2i mAP@R"), ("i2t_exact_r1", "i2t exact R@1"), ("ceiling_t2i_r10", "ceiling t2i R@10"), ("ceiling_rsum", "ceiling rSum"),
    ("foil_object_caption", "foil object caption"), ("pointing", "pointing"), ("i2t_median_rank", "i2t median rank"),
])
def test_metric_labels(name, label):
    assert report.metric_label(name) == label


def test_commit_is_unknown_outside_git(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert report.commit_id() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert report.commit_id() == "unknown"
    assert result(commit=report.commit_id()).commit == "unknown"


def test_commit_names_the_checkout_and_its_changes(tmp_path, monkeypatch):
    import subprocess
    git = lambda *words: subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *words], cwd=tmp_path, check=True,
                                        capture_output=True, text=True).stdout.strip()
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-qm", "first")
    monkeypatch.setattr(report, "project_root", lambda: tmp_path)
    assert report.commit_id() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert report.commit_id() == git("rev-parse", "HEAD") + "-dirty"
