"""Sweeps: every run once, stopped and changed ones made up, results with a value a seed."""

from __future__ import annotations

from concurrent.futures import Executor, Future

import pytest
import torch
import yaml

from itm_lib.evaluation import encode_dataset, evaluate_scores, open_split, similarity_matrix
from itm_lib.evaluation.report import read_results, results_table
from itm_lib.files import InputError, read_json, write_json
from itm_lib.models import load_model
from itm_lib.training import History, load_sweep, run_sweep
from itm_lib.training import sweep as sweep_module
from itm_lib.training.recipe import Recipe, run_recipe
from itm_lib.training.state import sole_use
from itm_lib.training.trainer import Trainer

PROJECT_SWEEP, CAMP_SWEEP = "data/sweeps/spine.yaml", "data/sweeps/camp.yaml"


def content(folder) -> dict:
    return {
        "name": "tiny", "data": {"folder": str(folder)}, "seeds": [3, 4],
        "base": {"model": {"embed_dim": 8, "word_dim": 8}, "train": {"epochs": 2, "batch_size": 20, "lr": 5e-3, "save_every": 2}},
        "variants": {"vse": {"model": {"method": "vse"}}, "scan": {"model": {"method": "scan"}, "train": {"lr": 1e-2}}},
        "ensembles": {"both": ["vse", "scan"]}, "labels": {"vse": "VSE++"},
    }


def written(path, value) -> str:
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return str(path)


class Here(Executor):
    """Does the work here and now, where a test can reach into it; ``names`` are the jobs that it was given."""

    def __init__(self):
        self.names = []

    def submit(self, work, job):
        self.names.append(job.name)
        future = Future()
        try:
            future.set_result(work(job))
        except Exception as error:
            future.set_exception(error)
        return future


def in_this_process(monkeypatch) -> list[str]:
    """Run the jobs here instead of in processes of their own; returns the list that their names go to."""
    here = Here()
    monkeypatch.setattr(sweep_module, "_workers", lambda jobs: here)
    return here.names


@pytest.fixture(scope="module")
def swept(folder, tmp_path_factory):
    """(runs, result files) of the tiny sweep, run in two processes."""
    home = tmp_path_factory.mktemp("sweep")
    files = run_sweep(written(home / "tiny.yaml", content(folder)), jobs=2, out=home / "results", runs=home / "runs", progress=False)
    return home / "runs" / "tiny", files


def test_results_hold_a_value_a_seed_of_val_and_test(swept, folder):
    runs, files = swept
    assert [file.name for file in files] == ["tiny__vse.json", "tiny__scan.json", "tiny__both.json"]
    results = [result for file in files for result in read_results(file)]
    assert [(result.model, result.split) for result in results] == [
        (model, split) for model in ("VSE++", "scan", "both") for split in ("val", "test")]
    for result in results:
        assert result.seeds == [3, 4] and result.command == "itm sweep tiny.yaml" and result.commit and result.seconds > 0
        assert result.dataset == folder.name and len(result.metrics["rsum"].values) == 2
    vse = results[0]
    assert vse.config["model"]["embed_dim"] == 8 and vse.config["train"]["lr"] == 5e-3 and "seed" not in vse.config["train"]
    assert vse.config["parameters"] == sum(p.numel() for p in load_model(runs / "vse" / "seed3" / "model")[0].parameters())
    assert [len(run["curve"]) for run in vse.config["runs"]] == [2, 2]
    assert results_table(results).shape[0] == 3


def test_each_seed_is_a_run_of_its_own_and_the_saved_model_has_its_numbers(swept, folder):
    runs, _ = swept
    first, second = (read_json(runs / "scan" / f"seed{seed}" / "metrics.json") for seed in (3, 4))
    assert first["test"] != second["test"]
    model, _ = load_model(runs / "scan" / "seed4" / "model")
    dataset = open_split(folder, "test")
    measured = evaluate_scores(similarity_matrix(model, *encode_dataset(model, dataset)), dataset)
    assert measured["rsum"] == pytest.approx(second["test"]["rsum"], abs=1e-6)


def test_an_ensemble_is_the_mean_of_its_members_scores(swept, folder):
    runs, _ = swept
    dataset = open_split(folder, "test")
    models = [load_model(runs / name / "seed3" / "model")[0] for name in ("vse", "scan")]
    scores = torch.stack([similarity_matrix(model, *encode_dataset(model, dataset)) for model in models]).mean(0)
    metrics = read_json(runs / "both" / "seed3" / "metrics.json")
    assert metrics["test"]["rsum"] == pytest.approx(evaluate_scores(scores, dataset)["rsum"], abs=1e-6)
    assert set(metrics["recipe"]["ensemble"]) == {"vse", "scan"}


def test_what_is_done_is_kept_and_what_changed_is_made_again(swept, folder, tmp_path, monkeypatch):
    runs, _ = swept
    names = in_this_process(monkeypatch)
    sweep = content(folder)
    again = lambda: run_sweep(written(tmp_path / "tiny.yaml", sweep), out=tmp_path, runs=runs.parent, progress=False)
    before = read_json(runs / "scan" / "seed3" / "metrics.json")
    again()
    assert names == []
    sweep["variants"]["vse"] = {"model": {"method": "vse", "margin": 0.3}}
    again()
    assert names == ["vse seed 3", "both seed 3", "vse seed 4", "both seed 4"]
    assert read_json(runs / "scan" / "seed3" / "metrics.json") == before
    assert read_results(tmp_path / "tiny__vse.json")[0].config["model"]["margin"] == 0.3


def test_a_sweep_that_was_stopped_goes_on_from_its_checkpoints(swept, folder, tmp_path, monkeypatch):
    done, _ = swept
    names = in_this_process(monkeypatch)
    sweep = {**content(folder), "variants": {"scan": content(folder)["variants"]["scan"]}, "ensembles": {}, "labels": {}, "seeds": [3]}
    path = written(tmp_path / "tiny.yaml", sweep)
    epochs = []

    def stop(history):
        epochs.append(len(history.epochs))
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep_module, "run_recipe", lambda *args, **kwargs: run_recipe(*args, **kwargs, on_epoch=stop))
    with pytest.raises(KeyboardInterrupt):
        run_sweep(path, out=tmp_path / "results", runs=tmp_path, progress=False)
    assert not (tmp_path / "results").exists()
    count = lambda history: epochs.append(len(history.epochs))
    monkeypatch.setattr(sweep_module, "run_recipe", lambda *args, **kwargs: run_recipe(*args, **kwargs, on_epoch=count))
    run_sweep(path, out=tmp_path / "results", runs=tmp_path, progress=False)
    assert names == ["scan seed 3"] * 2 and epochs == [1, 2]  # the first epoch was not made again
    metrics = [read_json(home / "scan" / "seed3" / "metrics.json") for home in (tmp_path / "tiny", done)]
    assert metrics[0]["test"] == metrics[1]["test"] and metrics[0]["curve"] == metrics[1]["curve"]


STAGES = [{"name": "warm", "model": {"negatives": "all"}, "train": {"epochs": 1}}, {"name": "rest", "train": {"freeze": ["image"]}}]


def test_a_variant_may_have_stages_and_its_result_covers_them(folder, tmp_path, monkeypatch):
    names = in_this_process(monkeypatch)
    variant = {"model": {"method": "vse"}, "stages": STAGES}
    sweep = {**content(folder), "variants": {"staged": variant}, "ensembles": {}, "labels": {}, "seeds": [3, 4]}
    run = lambda: run_sweep(written(tmp_path / "tiny.yaml", sweep), out=tmp_path / "results", runs=tmp_path, progress=False)
    result = read_results(run()[0])[0]
    home = tmp_path / "tiny" / "staged" / "seed4"
    metrics, rows = read_json(home / "metrics.json"), [History.load(place / "history.jsonl").epochs for place in (home / "warm", home)]
    assert [(row["stage"], row["epoch"]) for row in metrics["curve"]] == [("warm", 1), ("rest", 1), ("rest", 2)]
    assert [row["rsum"] for row in metrics["curve"]] == pytest.approx([row["rsum"] for each in rows for row in each], abs=1e-4)
    assert metrics["train_seconds"] == pytest.approx(sum(each[-1]["seconds"] for each in rows), abs=1e-3)
    assert metrics["best_epoch"] == next(row["epoch"] for row in reversed(rows[1]) if row["best"])
    model, _ = load_model(home / "model")
    assert metrics["parameters"] == sum(p.numel() for p in model.parameters()) and metrics["recipe"]["stages"][1]["train"]["seed"] == 4
    assert [stage["name"] for stage in result.config["stages"]] == ["warm", "rest"]
    assert all("seed" not in stage["train"] for stage in result.config["stages"])
    run()
    assert names == ["staged seed 3", "staged seed 4"]
    variant["stages"] = [STAGES[0], {"name": "rest"}]
    run()
    assert names == ["staged seed 3", "staged seed 4"] * 2


def test_a_variant_takes_the_stages_of_the_base_or_its_own(folder, tmp_path):
    sweep = {**content(folder), "ensembles": {}, "labels": {}}
    sweep["base"]["stages"] = STAGES
    sweep["variants"] = {"vse": {"model": {"method": "vse", "margin": 0.3}}, "plain": {"model": {"method": "vse"}, "stages": []}}
    sweep = load_sweep(written(tmp_path / "tiny.yaml", sweep))
    assert [stage.model["margin"] for stage in sweep.recipe("vse", 3).stages] == [0.3, 0.3]
    assert sweep.recipe("plain", 3).stages == () and "stages" not in sweep.recipe("plain", 3).resolved()


def test_a_failed_run_stops_no_other_and_is_named(folder, tmp_path, monkeypatch):
    names = in_this_process(monkeypatch)
    sweep = content(folder)
    sweep["variants"]["vse"]["train"] = {"select_by": "map_at_r"}  # this world has no exact truth
    with pytest.raises(InputError) as error:
        run_sweep(written(tmp_path / "tiny.yaml", sweep), out=tmp_path / "results", runs=tmp_path, progress=False)
    line = str(error.value)
    assert line.startswith("sweep tiny: vse seed 3 failed: select_by map_at_r needs") and "and 1 more" in line and "\n" not in line
    assert names == ["vse seed 3", "scan seed 3", "vse seed 4", "scan seed 4"]  # no ensemble of what is not there
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["tiny__scan.json"]


def test_the_test_split_stays_shut_while_settings_are_chosen(folder, tmp_path, monkeypatch):
    names = in_this_process(monkeypatch)
    sweep = {**content(folder), "seeds": [0], "test": False}
    splits = []
    evaluate = sweep_module.evaluate
    monkeypatch.setattr(sweep_module, "evaluate", lambda model, data, split: splits.append(split) or evaluate(model, data, split=split))
    run = lambda: run_sweep(written(tmp_path / "tiny.yaml", sweep), out=tmp_path / "results", runs=tmp_path, progress=False)
    assert [result.split for file in run() for result in read_results(file)] == ["val"] * 3
    assert splits == ["val"]  # the ensemble's; run_recipe measures the others on val
    sweep["test"] = True
    assert [result.split for file in run() for result in read_results(file)] == ["val", "test"] * 3
    assert names == ["vse seed 0", "scan seed 0", "both seed 0"] * 2


def test_new_data_makes_every_run_again(swept, folder, tmp_path):
    runs, _ = swept
    sweep = load_sweep(written(tmp_path / "tiny.yaml", content(folder)))
    before = sweep_module.plan(sweep, runs, folder)
    copy = tmp_path / "copy"
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        (copy / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(folder)).write_bytes(path.read_bytes())
    same = sweep_module.plan(sweep, runs, copy)
    write_json(copy / "truth" / "test.json", {})
    changed = sweep_module.plan(sweep, runs, copy)
    assert [job.digest for job in same] == [job.digest for job in before]
    assert not {job.digest for job in changed} & {job.digest for job in before}


def test_a_sweep_goes_on_in_a_fresh_checkout_where_its_results_end(swept, folder, tmp_path, monkeypatch):
    """The runs' folders are gone, the result files are there, as after a clone."""
    names = in_this_process(monkeypatch)
    path, out = written(tmp_path / "tiny.yaml", content(folder)), tmp_path / "results"
    run = lambda home, **chosen: run_sweep(path, out=out, runs=tmp_path / home, progress=False, **chosen)
    files = run("first", only=["vse", "scan"], seeds=[3])
    assert names == ["vse seed 3", "scan seed 3"] and [read_results(file)[0].seeds for file in files] == [[3], [3]]
    first = read_results(out / "tiny__vse.json")
    names.clear()
    run("second", only=["vse"])
    assert names == ["vse seed 4"]
    both = read_results(out / "tiny__vse.json")
    assert [result.seeds for result in both] == [[3, 4]] * 2
    assert [result.metrics["rsum"].values[0] for result in both] == [result.metrics["rsum"].values[0] for result in first]
    assert both[1].config["runs"][0] == first[1].config["runs"][0]
    names.clear()
    run("third")  # the ensemble needs its members' models, so they are trained again; what is done besides is not
    assert names == ["vse seed 3", "scan seed 3", "both seed 3", "vse seed 4", "scan seed 4", "both seed 4"]
    again = {file.name: [result.metrics for result in read_results(file)] for file in out.iterdir()}
    assert again == {file.name: [result.metrics for result in read_results(file)] for file in swept[1]}
    names.clear()
    run("fourth")
    assert names == []
    run("fourth", only=["vse"], seeds=[4], fresh=True)  # of the same file, the other seed stays
    assert names == ["vse seed 4"]
    assert [result.metrics for result in read_results(out / "tiny__vse.json")] == again["tiny__vse.json"]
    names.clear()
    run("fourth", only=["both"], seeds=[3], fresh=True)
    assert names == ["vse seed 3", "scan seed 3", "both seed 3"] and read_results(out / "tiny__both.json")[0].seeds == [3, 4]


def test_results_are_written_after_each_run(folder, tmp_path, monkeypatch):
    seen = []
    in_this_process(monkeypatch)
    run_job = sweep_module.run_job
    monkeypatch.setattr(sweep_module, "run_job", lambda job: (seen.append(sorted(file.name for file in tmp_path.glob("results/*"))), run_job(job)))
    run_sweep(written(tmp_path / "tiny.yaml", {**content(folder), "ensembles": {}}), out=tmp_path / "results", runs=tmp_path, progress=False)
    assert seen == [[], ["tiny__vse.json"], ["tiny__scan.json", "tiny__vse.json"], ["tiny__scan.json", "tiny__vse.json"]]


@pytest.mark.parametrize(("chosen", "line"), [({"only": ["vsee"]}, "has no variant 'vsee'; did you mean 'vse'?"), ({"seeds": [5]}, "has no seed 5: its seeds are 3, 4")])
def test_what_is_chosen_must_be_there(folder, tmp_path, chosen, line):
    with pytest.raises(InputError) as error:
        run_sweep(written(tmp_path / "tiny.yaml", content(folder)), out=tmp_path / "results", runs=tmp_path, progress=False, **chosen)
    assert line in str(error.value)


def test_two_sweeps_of_one_name_do_not_run_at_once(folder, tmp_path):
    with sole_use(tmp_path / "tiny"), pytest.raises(InputError, match="in use by another run"):
        run_sweep(written(tmp_path / "tiny.yaml", content(folder)), runs=tmp_path, out=tmp_path, progress=False)


@pytest.mark.parametrize(("change", "line"), [
    ({"nmae": "x"}, "unknown key 'nmae'; did you mean 'name'?"),
    ({"name": "a/b"}, "name = 'a/b'"),
    ({"seeds": ["one"]}, "seeds.0 = 'one': input should be a valid integer"),
    ({"seeds": [1, 1]}, "a seed is listed twice"),
    ({"variants": {"vse": {"modle": {}}}}, "unknown key 'variants.vse.modle'; did you mean 'model'?"),
    ({"variants": {"vse": {"model": {"method": "vse", "margn": 1}}}}, "variant vse: unknown key 'model.margn'; did you mean 'margin'?"),
    ({"variants": {"vse": {"train": {"epochs": 1}}}}, "variant vse: 'model.method' is missing"),
    ({"variants": {"../up": {"model": {"method": "vse"}}}, "ensembles": {}, "labels": {}}, "'../up' cannot name a folder"),
    ({"base": {"data": {"folder": "x"}}}, "unknown key 'base.data'"),
    ({"base": {"model": 3}}, "'base.model' must be a mapping of names to values"),
    ({"base": {"stages": {"warm": {}}}}, "variant vse: 'stages' must be a list of stages"),
    ({"base": {"stages": [{"name": "warm", "train": {"seed": 1}}]}}, "train.seed comes from 'seeds': leave it out"),
    ({"base": {"stages": [{"name": "warm", "modle": {}}]}}, "variant vse: unknown key 'stages.warm.modle'; did you mean 'model'?"),
    ({"base": {"train": {"seed": 1}}}, "train.seed comes from 'seeds': leave it out"),
    ({"ensembles": {"both": ["vse", "scam"]}}, "ensemble 'both' has no variant 'scam'; did you mean 'scan'?"),
    ({"ensembles": {"vse": ["vse", "scan"]}}, "ensemble 'vse' needs a name of its own"),
    ({"labels": {"vsee": "x"}}, "unknown key 'labels.vsee'; did you mean 'vse'?"),
])
def test_a_wrong_sweep_is_one_line(change, line, folder, tmp_path):
    with pytest.raises(InputError) as error:
        load_sweep(written(tmp_path / "tiny.yaml", {**content(folder), **change}))
    assert line in str(error.value) and "tiny.yaml" in str(error.value) and "\n" not in str(error.value)


def test_the_project_sweep_has_the_papers_rows():
    from itm_lib.files import project_root

    sweep = load_sweep(project_root() / PROJECT_SWEEP)
    rows = {"vse_mean", "vse_max", "scan_ti_avg", "scan_ti_lse", "scan_it_avg", "scan_it_lse", "sum_max_ti", "sum_max_it"}
    assert len(sweep.seeds) >= 3 and rows <= set(sweep.variants)
    assert set(sweep.labels) == {*sweep.variants, *sweep.ensembles} and len(set(sweep.labels.values())) == len(sweep.labels)
    model = lambda name: sweep.recipe(name, 0).resolved()["model"]
    base = model("scan_it_avg")
    changed = {name: {key for key in base if model(name)[key] != base[key]} for name in sweep.variants if name.startswith("scan_it_")}
    assert changed == {"scan_it_avg": set(), "scan_it_lse": {"aggregation"}, "scan_it_avg_all_negatives": {"negatives"},
                       "scan_it_sum": {"aggregation"}, "scan_it_max": {"aggregation"}, "scan_it_uni_gru": {"bidirectional"},
                       "scan_it_no_imgnorm": {"image_norm"}}
    assert isinstance(sweep.recipe("vse_max", 1), Recipe) and sweep.recipe("vse_max", 1).train.seed == 1


def test_the_sweep_of_camp_changes_one_thing_a_row():
    from itm_lib.files import project_root

    sweep = load_sweep(project_root() / CAMP_SWEEP)
    assert len(sweep.seeds) >= 3 and set(sweep.labels) == set(sweep.variants)
    recipe = lambda name: sweep.recipe(name, 0).resolved()
    full = recipe("full")
    assert [stage["name"] for stage in full["stages"]] == ["pretrain", "fixed_attention", "fine_tune"]
    last = lambda name: {key: value for key, value in recipe(name)["model"].items() if full["model"][key] != value}
    assert {name: last(name) for name in sweep.variants} == {
        "full": {}, "no_gates": {"gate": "none"}, "no_residual": {"residual": False}, "no_cross_attention": {"messages": "average"},
        "average_pooling": {"aggregation": "mean"}, "ranking": {"objective": "ranking"}, "all_negatives": {"negatives": "all"},
        "base": {"messages": "none", "score": "cosine", "objective": "ranking", "warmup_epochs": 8}}
    epochs = lambda name: [stage["train"]["epochs"] for stage in recipe(name).get("stages", [recipe(name)])]
    assert {sum(epochs(name)) for name in sweep.variants} == {115}


def test_first_stages_that_runs_have_in_common_are_trained_once(folder, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    sweep = {**content(folder), "ensembles": {}, "labels": {}, "seeds": [3]}
    sweep["base"]["stages"] = [*STAGES[:1], {"name": "middle"}, {"name": "rest"}]
    sweep["variants"] = {"one": {"model": {"method": "vse"}}, "two": {"model": {"method": "vse"}},
                         "other": {"model": {"method": "vse", "margin": 0.3}}}
    sweep["variants"]["two"]["stages"] = [*STAGES[:1], {"name": "middle", "train": {"lr": 1e-3}}, {"name": "rest"}]
    trained = []
    monkeypatch.setattr(Trainer, "_run_epoch", lambda self, run=Trainer._run_epoch: (trained.append(self.out_dir), run(self))[1])
    run_sweep(written(tmp_path / "tiny.yaml", sweep), out=tmp_path / "results", runs=tmp_path / "shared", progress=False)
    places = {path.relative_to(tmp_path / "shared" / "tiny").as_posix() for path in trained}
    assert places == {"one/seed3/warm", "one/seed3/middle", "one/seed3", "two/seed3/middle", "two/seed3",
                      "other/seed3/warm", "other/seed3/middle", "other/seed3"}
    alone = {**sweep, "variants": {"two": sweep["variants"]["two"]}}
    run_sweep(written(tmp_path / "tiny.yaml", alone), out=tmp_path / "results_alone", runs=tmp_path / "alone", progress=False)
    metrics = [read_json(tmp_path / home / "tiny" / "two" / "seed3" / "metrics.json") for home in ("shared", "alone")]
    assert metrics[0]["test"] == metrics[1]["test"] and metrics[0]["curve"] == metrics[1]["curve"]
