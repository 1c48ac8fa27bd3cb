"""From every published format to recalls: files made here at small size are prepared, trained on for two epochs, and evaluated."""

import numpy as np
import pytest
from made_formats import make_pictures, write_arrays, write_karpathy, write_scan_archive, write_tsv

from itm_lib.data.importers import DATASETS, prepare
from itm_lib.evaluation import describe, evaluate
from itm_lib.models import load_model
from itm_lib.training.recipe import Recipe, run_recipe

COUNTS = {"train": 40, "val": 8, "test": 10}
TRAIN = {"epochs": 2, "batch_size": 20, "lr": 1e-2, "seed": 1}
MODELS = {"vse": {"method": "vse", "negatives": "all", "embed_dim": 16, "word_dim": 8},
          "scan": {"method": "scan", "negatives": "all", "direction": "t2i", "embed_dim": 16, "word_dim": 8}}


@pytest.fixture
def sizes(monkeypatch):
    """The published datasets as if they had the sizes of those made here."""
    for info in DATASETS.values():
        for split, count in COUNTS.items():
            monkeypatch.setitem(info.expected, split, count)


def scan_archive(folder, pictures):
    return {"source": write_scan_archive(folder / "f30k_precomp", pictures)}


def linked_archive(folder, pictures):
    return {**scan_archive(folder, pictures), "link": True}


def coco_archive(folder, pictures):
    captions = write_karpathy(folder / "dataset_coco.json", pictures)
    return {"source": write_scan_archive(folder / "coco_precomp", pictures, test="testall"), "captions": captions}


def tsv(folder, pictures):
    write_karpathy(folder / "dataset_coco.json", pictures)
    return {"source": write_tsv(folder / "trainval_36.tsv", pictures)}


def a_file_a_picture(folder, pictures):
    write_karpathy(folder / "dataset_flickr30k.json", pictures, coco=False)
    return {"source": write_arrays(folder / "features", pictures)}


@pytest.mark.parametrize("write, name, varied, model", [
    (scan_archive, "flickr30k", False, "scan"),
    (linked_archive, "flickr30k", False, "vse"),
    (coco_archive, "coco", False, "vse"),
    (tsv, "coco", True, "scan"),
    (a_file_a_picture, "flickr30k", True, "vse"),
])
def test_a_published_format_is_prepared_trained_on_and_evaluated(tmp_path, sizes, write, name, varied, model):
    pictures = make_pictures(COUNTS, varied=varied)
    out = prepare(name, out=tmp_path / "data", progress=False, **write(tmp_path, pictures))
    most = max(len(picture.features) for found in pictures.values() for picture in found)
    lines = list(describe(out, checksums=True))
    assert [line.split(",")[0] for line in lines] == ["train: 40 images", "val: 8 images", "test: 10 images"]
    assert all(f"to {most} regions of 6 numbers" in line for line in lines[:1]), lines
    recipe = Recipe.parse({"data": {"folder": str(out)}, "model": MODELS[model], "train": TRAIN})
    run = run_recipe(recipe, tmp_path / "run", progress=False)
    losses = [row["loss"] for row in run.history.epochs]
    assert len(losses) == 2 and losses[1] < losses[0]
    metrics = evaluate(load_model(tmp_path / "run" / "model")[0], out, split="test")
    assert metrics["t2i_r10"] == 100.0, "one of ten pictures is the right one"
    assert all(0 <= metrics[f"{way}_r{k}"] <= 100 for way in ("i2t", "t2i") for k in (1, 5, 10)) and metrics["rsum"] > 0


def test_the_same_pictures_give_the_same_model_from_either_file(tmp_path, sizes):
    """SCAN's archive read in place, copied to HDF5, and the detector's .tsv hold the same features: so do the trained weights."""
    pictures = make_pictures(COUNTS)
    for found in pictures.values():
        for picture in found:
            picture.features = picture.features.astype(np.float16).astype(np.float32)
    write_karpathy(tmp_path / "dataset_coco.json", pictures)
    archive = write_scan_archive(tmp_path / "coco_precomp", pictures, test="testall")
    options = {"link": dict(source=archive, captions=tmp_path / "dataset_coco.json", link=True),
               "copy": dict(source=archive, captions=tmp_path / "dataset_coco.json"),
               "tsv": dict(source=write_tsv(tmp_path / "features.tsv", pictures))}
    weights = {}
    for way, given in options.items():
        out = prepare("coco", out=tmp_path / way, progress=False, **given)
        run = run_recipe(Recipe.parse({"data": {"folder": str(out)}, "model": MODELS["vse"], "train": {**TRAIN, "epochs": 1}}),
                         tmp_path / "runs" / way, progress=False)
        weights[way] = {key: value.clone() for key, value in run.model.state_dict().items()}
    for way in ("copy", "tsv"):
        assert all((weights[way][key] == value).all() for key, value in weights["link"].items()), way
