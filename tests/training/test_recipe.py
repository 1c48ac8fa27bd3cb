"""Recipes: what is right is run, what is wrong is one line that names the key and the nearest one."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from itm_lib.files import InputError, read_json
from itm_lib.models import load_model
from itm_lib.training import load_recipe, recipe_names, run_recipe, run_seeds
from itm_lib.training import recipe as recipe_module
from itm_lib.training.recipe import Recipe
from itm_lib.training.sweep import load_sweep

TINY = {"model": {"method": "vse", "embed_dim": 8, "word_dim": 8}, "train": {"epochs": 2, "batch_size": 20, "lr": 5e-3}}


EMBEDDED = [name for name in recipe_names() if name.startswith("embedded/")]


def written(path, content) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


@pytest.mark.parametrize("name", EMBEDDED)
def test_the_recipes_that_come_along_are_right(name):
    recipe = load_recipe(name)
    assert load_recipe(name.removeprefix("embedded/")) == recipe  # the short name means it, though other folders have it, too
    assert recipe.paper is None and recipe.data.name == "openmoji_scenes" and recipe.build(134, 500).config.embed_dim == 64
    assert Recipe.parse(recipe.resolved()).resolved() == recipe.resolved()


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_recipe_and_the_same_row_of_its_sweep_agree(name):
    sweeps = [load_sweep(path) for path in sorted((Path(__file__).parents[2] / "data" / "sweeps").glob("*.yaml"))]
    variant = {"vse": "vse_max", "camp": "full"}.get(name.removeprefix("embedded/"), name.removeprefix("embedded/"))
    rows = [sweep.recipe(variant, 0) for sweep in sweeps if variant in sweep.variants]
    assert rows and load_recipe(name).resolved() in [row.resolved() for row in rows]


def test_overrides_are_laid_over_the_file():
    recipe = load_recipe("scan_ti_avg", ["train.lr=1e-3", "model.embed_dim=32", "train.decay_at=[0.3, 0.9]", "train.clip=null"])
    assert (recipe.train.lr, recipe.model["embed_dim"], recipe.train.decay_at, recipe.train.clip) == (1e-3, 32, (0.3, 0.9), None)


def test_precision_no_is_a_word_though_yaml_takes_it_for_false(tmp_path):
    assert load_recipe("coco/dive_region_bigru", ["train.precision=no"]).train.precision == "no"
    assert load_recipe(written(tmp_path / "r.yaml", "{data: {folder: x}, model: {method: vse}, train: {precision: no}}")).train.precision == "no"


@pytest.mark.parametrize(("override", "line"), [
    ("train.lrr=1", "recipe vse: unknown key 'train.lrr'; did you mean 'lr'?"),
    ("train.epochs=many", "recipe vse: train.epochs = 'many': input should be a valid integer"),
    ("train.select=rsum", "did you mean 'select_by'?"),
    ("model.imagepooling=max", "unknown key 'model.imagepooling'; did you mean 'image_pooling'?"),
    ("model.embed_dim=wide", "model.embed_dim = 'wide': input should be a valid integer"),
    ("model.image_pooling=median", "model.image_pooling = 'median': input should be 'max' or 'mean'"),
    ("model.region_dim=134", "'model.region_dim' comes from the data: leave it out"),
    ("model.method=vsee", "model.method: no model is called 'vsee'; did you mean 'vse'?"),
    ("data.size=large", "data.size = 'large': input should be 'smoke', 'quick' or 'full'"),
    ("data.sise=quick", "unknown key 'data.sise'; did you mean 'size'?"),
    ("data.folder=somewhere", "give either data.name or data.folder"),
    ("trian.lr=1", "unknown key 'trian'; did you mean 'train'?"),
    ("lr=1", "cannot read the override 'lr=1': write it as section.key=value"),
    ("train.lr", "cannot read the override 'train.lr'"),
    ("stages.last.train.lr=1", "cannot set 'stages.last.train.lr': the recipe has no stages"),
    ("paper.variant=x", "recipe vse: 'paper.dataset' is missing; give it a value"),
    ("train.freze=[image]", "unknown key 'train.freze'; did you mean 'freeze'?"),
    ("train.tensorboard=maybe", "train.tensorboard = 'maybe': input should be a valid boolean"),
    ("train.lr=[1", "cannot read the value of the override 'train.lr=[1'"),
])
def test_a_wrong_key_or_value_is_one_line(override, line):
    with pytest.raises(InputError) as error:
        load_recipe("vse", [override])
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "line"), [
    ({"data": {"folder": "x"}, "model": {"method": "vse"}}, "'train' is missing"),
    ({"data": {"folder": "x"}, "model": {"embed_dim": 8}, "train": {}}, "'model.method' is missing"),
    ({"data": {}, "model": {"method": "vse"}, "train": {}}, "give either data.name or data.folder"),
    ({"data": {"folder": "x", "size": "quick"}, "model": {"method": "vse"}, "train": {}}, "belong to data.name, not to data.folder"),
    ({"data": {"folder": "x"}, "model": "vse", "train": {}}, "section 'model' must be a mapping of names to values, not 'vse'"),
    ({"paper": "SCAN", "data": {"folder": "x"}, "model": {"method": "vse"}, "train": {}}, "section 'paper' must be a mapping"),
    ({"paper": {"datset": "coco", "variant": None, "settings": "published"}, "data": {"folder": "x"}, "model": {"method": "vse"}, "train": {}},
     "unknown key 'paper.datset'; did you mean 'dataset'?"),
    ({"paper": {"dataset": "coco", "settings": "published"}, "data": {"folder": "x"}, "model": {"method": "vse"}, "train": {}},
     "'paper.variant' is missing; give it a value"),
    ({"paper": {"dataset": "coco", "variant": None, "settings": "ours"}, "data": {"folder": "x"}, "model": {"method": "vse"}, "train": {}},
     "paper.settings = 'ours': input should be 'published' or 'ours, chosen on val'"),
    ({"papper": {}, "data": {"folder": "x"}, "model": {"method": "vse"}, "train": {}}, "unknown key 'papper'; did you mean 'paper'?"),
    ({"data": {"folder": ["x"]}, "model": {"method": "vse"}, "train": {}}, "data.folder = ['x']: input should be a valid string"),
    ("just words", "the recipe must be a mapping"),
    ("data: {name: [", "recipe.yaml line 1 is not valid YAML"),
    ("\x00", "is not valid YAML"),
])
def test_a_wrong_file_is_one_line(content, line, tmp_path):
    with pytest.raises(InputError) as error:
        load_recipe(written(tmp_path / "recipe.yaml", content))
    assert line in str(error.value) and "recipe.yaml" in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="no recipe is called 'scan_ti_awg'; did you mean 'embedded/scan_ti_avg'"):
        load_recipe("scan_ti_awg")
    with pytest.raises(InputError, match="no file .*absent.yaml: check the path"):
        load_recipe(tmp_path / "absent.yaml")


def test_a_recipe_runs_and_its_model_is_saved(folder, tmp_path):
    recipe = load_recipe(written(tmp_path / "tiny.yaml", {"data": {"folder": str(folder)}, **TINY}))
    run = run_recipe(recipe, tmp_path / "run", progress=False)
    assert run.metrics["rsum"] == pytest.approx(run.history.best["rsum"])
    assert load_recipe(tmp_path / "run" / "recipe.yaml").resolved() == recipe.resolved()
    model, vocabulary = load_model(tmp_path / "run" / "model")
    assert vocabulary is not None and all((a == b).all() for a, b in zip(model.parameters(), run.model.parameters()))
    assert read_json(tmp_path / "run" / "model" / "config.json")["metadata"]["recipe"] == recipe.resolved()
    again = run_recipe(recipe, tmp_path / "again", progress=False)
    assert again.metrics == run.metrics


def test_a_recipe_without_its_data_is_one_line(tmp_path):
    recipe = load_recipe(written(tmp_path / "tiny.yaml", {"data": {"folder": str(tmp_path / "absent")}, **TINY}))
    with pytest.raises(InputError, match="no dataset folder .*absent: make it first"):
        run_recipe(recipe, tmp_path / "run", progress=False)


def test_the_data_can_come_from_the_command_line(folder, tmp_path, monkeypatch):
    recipe = load_recipe("flickr30k/vse", ["train.epochs=1", "train.freeze_epochs=null"], data=folder)
    assert recipe.data.folder == str(folder) and recipe.data.prepare() == folder and recipe.data.label == folder.name
    with pytest.raises(InputError, match="variant, size and seed belong to data.name, not to data.folder"):
        load_recipe("vse", ["data.size=smoke"], data=folder)
    recipe = load_recipe("flickr30k/vse")
    monkeypatch.setenv("ITM_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        run_recipe(recipe, tmp_path / "run", progress=False)
    assert str(error.value) == "no dataset folder flickr30k: make it first, with 'itm data prepare', or say where it is with --data"
    (tmp_path / "flickr30k").mkdir()
    monkeypatch.chdir("/")
    assert recipe.data.prepare() == tmp_path / "flickr30k"


def test_seeds_have_folders_of_their_own_and_go_on_where_they_were(folder, tmp_path, monkeypatch):
    content = {"data": {"folder": str(folder)}, **TINY, "stages": [{"name": "one"}, {"name": "two", "train": {"lr": 1e-3}}]}
    recipe = load_recipe(written(tmp_path / "tiny.yaml", content))
    first = run_seeds(recipe, [1], tmp_path / "out", progress=False)[0]
    assert first.folder == tmp_path / "out" / "seed1"
    alone = run_recipe(load_recipe(tmp_path / "tiny.yaml", ["train.seed=1"]), tmp_path / "alone", progress=False)
    assert alone.metrics == first.metrics
    trained = []
    monkeypatch.setattr(recipe_module, "run_recipe", lambda own, out, *more, **named: trained.append(out.name) or run_recipe(own, out, *more, **named))
    runs = run_seeds(load_recipe(tmp_path / "tiny.yaml", ["train.num_workers=0", "train.save_every=7"]), [2, 1], tmp_path / "out", progress=False)
    assert trained == ["seed2"] and [run.folder.name for run in runs] == ["seed2", "seed1"]
    again = runs[1]
    assert again.metrics == first.metrics and again.history == first.history and list(again.stages) == ["one", "two"]
    assert all((a == b).all() for a, b in zip(again.model.parameters(), first.model.parameters()))
    assert runs[0].metrics != first.metrics
    with pytest.raises(InputError, match="seed1 holds a run of another recipe: stages.two.train.lr is 0.001 there and 0.002 here; give another"):
        run_seeds(load_recipe(tmp_path / "tiny.yaml", ["stages.two.train.lr=2e-3"]), [1], tmp_path / "out", progress=False)
    run_seeds(recipe, [1], tmp_path / "out", resume=False, progress=False)
    assert trained == ["seed2", "seed1"]
    for seeds in ([], [1, 1]):
        with pytest.raises(InputError, match="give at least one, each once"):
            run_seeds(recipe, seeds, tmp_path / "out")


def test_a_stopped_run_of_a_seed_is_not_taken_for_a_finished_one(folder, tmp_path):
    recipe = load_recipe(written(tmp_path / "tiny.yaml", {"data": {"folder": str(folder)}, **TINY}))
    whole = run_seeds(recipe, [3], tmp_path / "out", progress=False)[0]

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe.seeded(3), tmp_path / "out" / "seed3", progress=False, on_epoch=stop)  # anew, over the finished one
    again = run_seeds(recipe, [3], tmp_path / "out", progress=False)[0]
    assert again.metrics == whole.metrics and len(again.history.epochs) == 2
