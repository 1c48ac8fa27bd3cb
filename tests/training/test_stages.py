"""Recipes in stages: what a stage takes over from the one before, going on after a stop, and what is refused."""

from __future__ import annotations

from copy import deepcopy

import pytest
import yaml

from itm_lib.data import open_split
from itm_lib.files import InputError, read_json
from itm_lib.models import SCAN, CampConfig, build_model, load_model
from itm_lib.training import History, TrainConfig, Trainer, load_recipe, run_recipe, seed_everything
from itm_lib.training.recipe import Recipe
from itm_lib.training.state import TIMINGS, sole_use

SIZES = {"embed_dim": 8, "word_dim": 8}
TRAIN = {"epochs": 2, "batch_size": 20, "lr": 5e-3, "save_every": 4, "seed": 3}
WARM, HALF, FINE = {"negatives": "all", "bidirectional": False}, {"freeze": ["image", "text.embed"], "optimizer": "sgd"}, {"lr": 1e-3}
STAGED = {
    "model": {"method": "scan", **SIZES}, "train": TRAIN,
    "stages": [{"name": "warm", "model": WARM}, {"name": "half", "train": HALF}, {"name": "fine_tune", "train": FINE}],
}
STEPS = 12  # of each stage: two epochs of 120 captions in batches of 20


def staged(folder, **changes) -> Recipe:
    return Recipe.parse({"data": {"folder": str(folder)}, **STAGED, **changes})


def without_time(history) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


def same(first, second) -> bool:
    other = second.state_dict()
    return all((value == other[name]).all() for name, value in first.state_dict().items())


@pytest.fixture
def passes(monkeypatch):
    """Counts SCAN's forward passes in training; the one of number ``stop_at`` is interrupted."""

    class Passes:
        count, stop_at = 0, None

    forward = SCAN.forward

    def counting(self, batch, gather=None):
        Passes.count += 1
        if Passes.count == Passes.stop_at:
            raise KeyboardInterrupt
        return forward(self, batch, gather)

    monkeypatch.setattr(SCAN, "forward", counting)
    return Passes


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The run of STAGED from start to end."""
    return run_recipe(staged(folder), tmp_path_factory.mktemp("staged"), progress=False)


def test_each_stage_begins_with_the_best_weights_of_the_one_before(whole, folder, tmp_path):
    """The same by hand, with nothing but the trainer."""
    train, val = open_split(folder, "train"), open_split(folder, "val")
    before = None
    assert list(whole.stages) == ["warm", "half", "fine_tune"] and whole.stages["fine_tune"] is whole.history
    for name, place, model, settings in (("warm", "warm", WARM, {}), ("half", "half", {}, HALF), ("fine_tune", ".", {}, FINE)):
        seed_everything(3)
        built = build_model("scan", {**SIZES, **model}, train.regions.dim, len(train.vocabulary))
        if before is not None:
            built.load_state_dict(before.state_dict(), strict=False)
        history = Trainer(built, train, val, TrainConfig(**{**TRAIN, **settings}), tmp_path / name, progress=False).fit()
        found = [row for row in whole.stages[name] if row["kind"] != "start"]
        assert without_time(found) == [{**row, "stage": name} for row in without_time(history)]
        assert same(load_model(whole.folder / place / "model")[0], built)
        assert History.load(whole.folder / place / "history.jsonl") == whole.stages[name]
        before = built
    assert same(whole.model, before) and whole.metrics["rsum"] == pytest.approx(whole.history.best["rsum"])


def test_what_is_frozen_in_a_stage_is_what_the_stage_before_made_of_it(whole):
    warm, half = (load_model(whole.folder / name / "model")[0].state_dict() for name in ("warm", "half"))
    kept = {name for name in warm if (warm[name] == half[name]).all()}
    assert kept == {"image.fc.weight", "image.fc.bias", "text.embed.weight"}
    assert not same(load_model(whole.folder / "half" / "model")[0], whole.model)


def test_a_stage_says_what_it_took(whole):
    rows = {name: history.of("start") for name, history in whole.stages.items()}
    assert rows["warm"] == []
    counts = [(row["stage"], row["after"], row["taken"], row["tensors"]) for name in ("half", "fine_tune") for row in rows[name]]
    assert counts == [("half", "warm", 7, 11), ("fine_tune", "half", 11, 11)]  # the GRU's second direction is new
    metadata = read_json(whole.folder / "model" / "config.json")["metadata"]
    assert [stage["stage"] for stage in metadata["stages"]] == list(whole.stages)
    assert [stage["best_epoch"] for stage in metadata["stages"]] == [history.best["epoch"] for history in whole.stages.values()]
    assert metadata["stages"][1]["taken"] == 7 and "taken" not in metadata["stages"][0]
    assert [stage["stage"] for stage in read_json(whole.folder / "half" / "model" / "config.json")["metadata"]["stages"]] == ["warm", "half"]


def test_a_staged_recipe_is_written_and_read_back(whole, folder):
    again = load_recipe(whole.folder / "recipe.yaml")
    settings = again.resolved()
    assert settings == staged(folder).resolved() and [stage["name"] for stage in settings["stages"]] == list(whole.stages)
    assert settings["stages"][1]["train"] == {**settings["train"], **HALF}
    assert settings["stages"][0]["model"] == {**settings["model"], **WARM} and again.build(4, 9).config.bidirectional
    official = staged(folder, model={"method": "scan", "compat": "official"}, stages=[{"name": "one", "model": {"compat": "default"}}])
    assert Recipe.parse(official.resolved()).resolved() == official.resolved()


@pytest.mark.parametrize("stop_at", [4, 9, STEPS + 6, 2 * STEPS + 1, 3 * STEPS])
def test_a_stopped_run_goes_on_in_its_stage_and_ends_the_same(stop_at, whole, folder, tmp_path, passes):
    passes.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        run_recipe(staged(folder), tmp_path, progress=False)
    passes.count, passes.stop_at = 0, None
    run = run_recipe(staged(folder), tmp_path, resume=True, progress=False)
    assert passes.count <= 3 * STEPS - stop_at + 1 + TRAIN["save_every"]  # at most the steps since the last checkpoint again
    assert same(run.model, whole.model) and run.metrics == whole.metrics
    assert {name: without_time(rows) for name, rows in run.stages.items()} == \
        {name: without_time(rows) for name, rows in whole.stages.items()}


def test_a_finished_run_trains_no_more_and_a_fresh_one_leaves_nothing_to_go_on_from(folder, tmp_path, passes):
    run = run_recipe(staged(folder), tmp_path, progress=False)
    passes.count = 0
    assert same(run_recipe(staged(folder), tmp_path, resume=True, progress=False).model, run.model) and passes.count == 0
    passes.stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_recipe(staged(folder), tmp_path, progress=False)
    assert not list(tmp_path.rglob("last.pt"))


def test_a_stage_does_not_go_on_after_another_start(folder, tmp_path):
    run_recipe(staged(folder), tmp_path, progress=False)
    (tmp_path / "warm" / "last.pt").unlink()
    other = deepcopy(STAGED["stages"])
    other[0]["train"] = {"lr": 4e-3}
    with pytest.raises(InputError, match="half/last.pt is of another run: start.weights is .* there and .* here; use the same"):
        run_recipe(staged(folder, stages=other), tmp_path, resume=True, progress=False)


def test_two_runs_in_one_folder_are_refused(folder, tmp_path):
    with sole_use(tmp_path, ".stages.lock"), pytest.raises(InputError, match="in use by another run"):
        run_recipe(staged(folder), tmp_path, progress=False)


def test_the_stage_is_shown(folder, tmp_path, capsys):
    run_recipe(staged(folder, train={**TRAIN, "epochs": 1}), tmp_path)
    shown = capsys.readouterr().err
    assert "stage 1 of 3: warm\n" in shown and "stage 2 of 3: half, 7 of 11 tensors from warm\n" in shown
    assert "fine_tune: epoch 1/1" in shown


def test_overrides_reach_a_stage_by_its_name(folder, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"folder": str(folder)}, **STAGED}))
    recipe = load_recipe(path, ["stages.fine_tune.train.lr=7e-4", "stages.half.model.margin=0.3", "train.epochs=5"])
    assert [stage.train.lr for stage in recipe.stages] == [5e-3, 5e-3, 7e-4]
    assert [stage.train.epochs for stage in recipe.stages] == [5, 5, 5] and recipe.stages[1].model["margin"] == 0.3


@pytest.mark.parametrize(("override", "line"), [
    ("stages.fine_tun.train.lr=1", "no stage is called 'fine_tun'; did you mean 'fine_tune'?"),
    ("stages.half.trian.lr=1", "unknown key 'stages.half.trian'; did you mean 'train'?"),
    ("stages.half.train.lrr=1", "stage half: unknown key 'train.lrr'; did you mean 'lr'?"),
    ("stages.half.model.margn=1", "stage half: unknown key 'model.margn'; did you mean 'margin'?"),
    ("stages.half.model.method=vse", "stage half: model.method is 'vse', the recipe's is 'scan': all stages train one method"),
    ("stages.half.lr=1", "write it as stages.name.section.key, for example stages.warm.train.lr=1e-3"),
    ("stages.half.name.x=1", "the recipe has no section 'name'"),
    ("train.lr.x=1", "the recipe has no section 'train.lr'"),
])
def test_a_wrong_override_is_one_line(override, line, folder, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"folder": str(folder)}, **STAGED}))
    with pytest.raises(InputError) as error:
        load_recipe(path, [override])
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("stages", "line"), [
    ({"warm": {}}, "'stages' must be a list of stages, each with a name"),
    (["warm"], "section 'stages, number 1' must be a mapping of names to values, not 'warm'"),
    ([{"train": {}}], "stage number 1 needs a name of letters, digits, '_' and '-', other than 'model', not None"),
    ([{"name": "a"}, {"name": "model"}], "stage number 2 needs a name of letters"),
    ([{"name": "../up"}], "stage number 1 needs a name of letters"),
    ([{"name": "a"}, {"name": "a"}], "two stages are called 'a'"),
    ([{"name": "a", "trian": {}}], "unknown key 'stages.a.trian'; did you mean 'train'?"),
    ([{"name": "a", "train": [1]}], "stage a: section 'train' must be a mapping"),
    ([{"name": "a", "train": {"epochs": 0}}], "stage a: train.epochs = 0: input should be greater than or equal to 1"),
])
def test_wrong_stages_are_one_line(stages, line, folder):
    with pytest.raises(InputError) as error:
        staged(folder, stages=stages)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("last", "line"), [
    ({"model": {"embed_dim": 9, "word_dim": 9}}, "stage 'last' has no tensor whose name and shape stage 'first' has too, so it cannot"),
    ({"train": {"freeze": ["imag"]}}, "train.freeze: the model 'scan' has no parameters 'imag'; did you mean 'image'?"),
    ({"train": {"select_by": "map_at_r"}}, "select_by map_at_r needs data with an exact ground truth"),
])
def test_what_does_not_fit_is_told_before_anything_is_trained(last, line, folder, tmp_path, passes):
    with pytest.raises(InputError) as error:
        run_recipe(staged(folder, stages=[{"name": "first"}, {"name": "last", **last}]), tmp_path, progress=False)
    assert line in str(error.value) and "\n" not in str(error.value) and passes.count == 0


def test_camp_is_pretrained_then_learns_to_fuse_then_is_tuned_whole(folder, tmp_path):
    sizes = {"embed_dim": 16, "word_dim": 16, "num_heads": 2}
    cosine = {name: value for name, value in CampConfig.pretraining(vocab_size=4).model_dump().items()
              if value != CampConfig(vocab_size=4).model_dump()[name]}
    recipe = staged(folder, model={"method": "camp", **sizes}, train={"epochs": 2, "batch_size": 12, "lr": 1e-2}, stages=[
        {"name": "pretraining", "model": cosine, "train": {"epochs": 8}},
        {"name": "fixed_attention", "model": {"negatives": "all"}, "train": {"freeze": ["image", "text", "attention"], "epochs": 3}},
        {"name": "fine_tune", "train": {"optimizer": "sgd", "nesterov": True, "weight_decay": 1e-4}},
    ])
    run = run_recipe(recipe, tmp_path, progress=False)
    counts = [(row["taken"], row["tensors"]) for history in run.stages.values() for row in history.of("start")]
    assert counts == [(19, 33), (33, 33)]  # fusion, summary and head are new after pretraining
    assert run.stages["pretraining"].best["rsum"] > 300
    first, second, third = (load_model(tmp_path / place / "model")[0] for place in ("pretraining", "fixed_attention", "."))
    assert (first.config.score, second.config.score, third.config.negatives) == ("cosine", "mlp", "hardest")
    before, after, last = (model.state_dict() for model in (first, second, third))
    kept = [name for name in after if name.split(".")[0] in ("image", "text", "attention")]
    assert len(kept) == 19 and all((before[name] == after[name]).all() for name in kept)
    seed_everything(recipe.train.seed)
    new = recipe.build(first.config.region_dim, first.config.vocab_size).state_dict()
    assert not any((after[name] == new[name]).all() for name in after if name not in kept)
    assert not any((after[name] == last[name]).all() for name in kept)
    assert 0 < run.metrics["gate_negative"] < 1 and "gate_positive" in run.metrics
