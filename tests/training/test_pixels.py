"""A model of pixels from the recipe to the report: trained, stopped and gone on with, saved, measured with foils."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from made_for_training import same_weights, write_backbone, write_dataset, write_pictures
from PIL import Image

from itm_lib.data import open_split, scenes
from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.evaluation import encode_dataset, evaluate, pointing_accuracy
from itm_lib.files import InputError, read_jsonl, write_jsonl
from itm_lib.models import DivE, build_model, load_model
from itm_lib.training import TrainConfig, Trainer, run_recipe
from itm_lib.training.neighbours import cluster_images
from itm_lib.training.recipe import DataSection, Recipe

MODEL = {"method": "dive", "image_encoder": "grid", "image_size": 32, "flip": False, "embed_dim": 16, "word_dim": 8, "num_heads": 2, "head_dim": 8,
         "iterations": 2, "image_lr_scale": 1.0, "text_set_lr_scale": 1.0, "backbone_lr_scale": 1.0}
TRAIN = {"epochs": 2, "batch_size": 5, "lr": 3e-3, "optimizer": "adamw", "log_every": 1, "save_every": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """Pictures and no regions, with foils of both sides for the test split."""
    folder = write_pictures(write_dataset(tmp_path_factory.mktemp("pictures"), {"train": 20, "val": 10, "test": 10}, seed=1))
    shutil.rmtree(folder / "regions")
    own = [row for row in read_jsonl(folder / "captions.jsonl") if row["split"] == "test"][::2]
    foils = []
    for number, row in enumerate(own):
        shared = {"kind": "object", "image_id": row["image_id"], "caption": row["text"]}
        foils.append({"foil_id": f"c{number}", "side": "caption", "foil_caption": "A fish and a dog.", **shared})
        foils.append({"foil_id": f"p{number}", "side": "picture", "foil_image_id": f"{row['image_id']}-object", **shared})
        Image.new("RGB", (32, 32), "white").save(folder / "images" / f"{row['image_id']}-object.png")
    write_jsonl(folder / "foils" / "test.jsonl", foils)
    return folder


def recipe_of(data: Path, backbone: Path | str, train: dict | None = None, **model) -> Recipe:
    return Recipe.parse({"data": {"folder": str(data)}, "model": {**MODEL, "backbone": str(backbone), **model}, "train": {**TRAIN, **(train or {})}})


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_backbone_learns_is_saved_and_measured_without_its_folder(kind, small, tmp_path):
    backbone = write_backbone(tmp_path / kind, kind)
    run = run_recipe(recipe_of(small, backbone, {"epochs": 3}), tmp_path / "run", progress=False)
    assert run.history.epochs[-1]["loss"] < run.history.epochs[0]["loss"]
    shutil.rmtree(backbone)
    model, words = load_model(tmp_path / "run" / "model")
    assert model.image_input == "pixels" and same_weights(model, run.model)
    assert run.metrics == evaluate(model, small, split="val")
    got = evaluate(model, small)
    assert got == evaluate(run.model, small) and {"foil_object_caption", "foil_object_picture", "image_circular_variance"} <= set(got)
    assert "pointing" not in got and pointing_accuracy(model, small) == {}


def test_a_stopped_run_goes_on_to_the_same_weights(small, tmp_path, monkeypatch):
    """In the middle of an epoch: pictures are cut and mirrored as in a run that never stopped."""
    backbone = write_backbone(tmp_path / "resnet")
    recipe = recipe_of(small, backbone, {"epochs": 2}, flip=True)
    whole = run_recipe(recipe, tmp_path / "whole", progress=False)
    forward, count = DivE.forward, 0

    def counting(self, batch, gather=None):
        nonlocal count
        count += 1
        if count == 8:
            raise KeyboardInterrupt
        return forward(self, batch, gather)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(DivE, "forward", counting)
        run_recipe(recipe, tmp_path / "stopped", progress=False)
    again = run_recipe(recipe, tmp_path / "stopped", resume=True, progress=False)
    assert same_weights(again.model, whole.model) and again.metrics == whole.metrics


def test_training_pictures_change_from_epoch_to_epoch_and_a_frozen_backbone_stays(small, tmp_path, monkeypatch):
    seen, tensors = [], ImageCaptionDataset.image_tensors
    monkeypatch.setattr(ImageCaptionDataset, "image_tensors",
                        lambda self, images, augment=None: seen.append((self.split, augment)) or tensors(self, images, augment))
    backbone = write_backbone(tmp_path / "resnet")
    recipe = recipe_of(small, backbone, {"freeze": ["backbone"], "seed": 4})
    run = run_recipe(recipe, tmp_path / "run", progress=False)
    assert set(seen) == {("train", (4, 0)), ("train", (4, 1)), ("val", None)}
    before = recipe.build(None, len(run.model.vocabulary)).backbone.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in run.model.backbone.state_dict().items())


def test_embeddings_and_clusters_do_not_depend_on_the_batch(small, tmp_path):
    recipe = recipe_of(small, write_backbone(tmp_path / "resnet"))
    train = open_split(small, "train", pixels=recipe.plan[0].config.pixels)
    model = recipe.build(None, len(train.vocabulary))
    first, second = (encode_dataset(model, train, batch_size=size)[0].embedding for size in (3, 100))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-5)
    assert len(cluster_images(model, train, 3)) == 20


def test_what_does_not_fit_is_one_line(small, folder, tmp_path):
    backbone = write_backbone(tmp_path / "resnet")
    recipe = recipe_of(small, backbone)
    pixels = recipe.plan[0].config.pixels
    pictured, val, regions = open_split(small, "train", pixels=pixels), open_split(small, "val", pixels=pixels), open_split(folder, "val")
    model, plain = recipe.build(None, len(pictured.vocabulary)), build_model("vse", {"embed_dim": 8}, 16, len(pictured.vocabulary))
    regions.vocabulary = pictured.vocabulary
    for wanting, splits, line in ((model, (pictured, regions), "the val split's images are not read as the model 'dive' reads them: open it with pixels="),
                                  (plain, (pictured, val), "the train split's images are not read as the model 'vse' reads them: open it without")):
        with pytest.raises(InputError, match=line):
            Trainer(wanting, *splits, TrainConfig(**TRAIN), tmp_path / "run")
    stages = [{"name": "first"}, {"name": "last", "model": {"flip": True}}]
    with pytest.raises(InputError, match="stage last: it reads pictures otherwise than stage 'first': all stages share image_encoder, image_size"):
        Recipe.parse({"model": recipe.model, "data": {"folder": str(small)}, "train": TRAIN, "stages": stages})
    (small / "images" / "val0.png").rename(tmp_path / "val0.png")
    with pytest.raises(InputError, match="images lacks 1 of 10 pictures, val0.png or .jpg among them: put them there"):
        run_recipe(recipe, tmp_path / "run", progress=False)
    (tmp_path / "val0.png").rename(small / "images" / "val0.png")


def test_the_embedded_dataset_gets_no_regions_for_a_model_of_pixels(monkeypatch):
    made = []
    monkeypatch.setattr(scenes, "build", lambda *_, **__: made.append("pictures") or Path("built"))
    monkeypatch.setattr(scenes, "prepare", lambda *_, **__: made.append("regions") or Path("prepared"))
    section = DataSection(name="openmoji_scenes", size="smoke")
    assert section.prepare(regions=False) == Path("built") and section.prepare() == Path("prepared")
    assert made == ["pictures", "regions"]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_one_line_whoever_reads_it(workers, small, tmp_path):
    data = shutil.copytree(small, tmp_path / "data")
    broken = next((data / "images").glob("train*"))
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InputError, match=f"{broken.name} .*it is damaged or cut short") as error:
        run_recipe(recipe_of(data, write_backbone(tmp_path / "resnet", "resnet"), {"num_workers": workers}), tmp_path / "run", progress=False)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
