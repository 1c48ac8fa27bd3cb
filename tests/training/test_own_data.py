"""Captions and pictures of one's own, from the folder that is made of them to a trained model of every kind and its card."""

from __future__ import annotations

import pytest
from made_for_training import write_backbone, write_bert, write_dataset, write_pictures

from itm_lib.data import RegionStore
from itm_lib.data.own import OwnCaption, make_dataset
from itm_lib.data.regions import RegionWriter
from itm_lib.evaluation import describe, evaluate, evaluate_runs, record_results
from itm_lib.files import read_json, read_jsonl
from itm_lib.models import load_model
from itm_lib.training import History, Recipe, run_recipe, run_seeds

SMALL = {"embed_dim": 16, "word_dim": 8}
BERT = {"embed_dim": 16, "num_heads": 2, "text_encoder": "bert"}
FAMILIES = {
    "vse": SMALL, "scan": SMALL, "camp": {**SMALL, "num_heads": 2}, "hrem": {**SMALL, "num_heads": 2, "matching_loss": "hinge"},
    "dive": {**SMALL, "num_heads": 2, "head_dim": 8}, "hrem with a BERT": {**BERT, "matching_loss": "hinge"},
    "dive of pixels": {**SMALL, "num_heads": 2, "head_dim": 8, "image_encoder": "grid", "image_size": 32, "flip": False},
}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The small world as one store, a folder of pictures and a list of captions, and the dataset folder made of them."""
    world = write_pictures(write_dataset(tmp_path_factory.mktemp("world"), {"train": 24, "val": 10, "test": 10}))
    ids = [image_id for split in read_json(world / "splits.json").values() for image_id in split]
    place = tmp_path_factory.mktemp("mine")
    with RegionWriter(place / "store.h5", ids, 3, 16, "region-encoder", threshold=0.5, images=str(world / "images")) as writer:
        for split in ("train", "val", "test"):
            store = RegionStore(world / "regions" / f"{split}.h5")
            for row, image_id in enumerate(store.image_ids):
                count = store.num_regions[row]
                writer.write(ids.index(image_id), store.features([row])[0, :count], store.boxes([row])[0, :count])
    found = [OwnCaption(f"{row['image_id']}.png", row["text"]) for row in read_jsonl(world / "captions.jsonl")]
    return make_dataset(found, place / "folder", place / "store.h5", world / "images", name="mine", val=8, test=8)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_on_a_folder_of_ones_own(family, own, tmp_path, monkeypatch):
    model = {"method": family.partition(" ")[0], **FAMILIES[family]}
    if "BERT" in family:
        model["bert"] = str(write_bert(tmp_path / "bert", [row["text"] for row in read_jsonl(own / "captions.jsonl")]))
    if "pixels" in family:
        model["backbone"] = str(write_backbone(tmp_path / "resnet"))
    of_test = set(read_json(own / "splits.json")["test"])
    read, values = set(), RegionStore._values
    monkeypatch.setattr(RegionStore, "_values", lambda store, rows, *more: read.update(store.image_ids[row] for row in rows) or values(store, rows, *more))
    recipe = Recipe.parse({"data": {"folder": str(own)}, "model": model, "train": {"epochs": 1, "batch_size": 14, "lr": 2e-3}})
    run = run_recipe(recipe, tmp_path / "run", progress=False)
    assert not read & of_test and (read or "pixels" in family), "training reads no row of the test split"
    found, _ = load_model(tmp_path / "run" / "model")
    assert evaluate(found, own, split="val") == run.metrics
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "Epoch 1 of 1 was the best on val" in card and "trained on folder" in card and str(tmp_path) not in card and str(own) not in card
    assert "- train: 28 pictures, 56 captions" in card and f"{sum(each.numel() for each in found.parameters()):,} weights" in card
    assert ("pixels, 32 × 32" if "pixels" in family else "extractor: region-encoder\nthreshold: 0.5\n```") in card


def test_the_folder_is_checked_and_what_test_says_gets_onto_the_cards(own, tmp_path):
    assert list(describe(own, checksums=True)) == [f"{split}: {count} images, {2 * count} captions, 2 to 3 regions of 16 numbers"
                                                   for split, count in (("train", 28), ("val", 8), ("test", 8))]
    recipe = Recipe.parse({"data": {"folder": str(own)}, "model": {"method": "vse", **SMALL},
                           "train": {"epochs": 2, "batch_size": 14, "lr": 2e-3},
                           "stages": [{"name": "first"}, {"name": "second", "train": {"lr": 1e-3}}]})
    run_seeds(recipe, [0, 1], tmp_path / "run", progress=False)
    result = evaluate_runs([tmp_path / "run"], own, command="itm evaluate run --data folder --split test")
    cards = record_results([tmp_path / "run"], result)
    assert cards == [tmp_path / "run" / f"seed{seed}" / "model" / "README.md" for seed in (0, 1)]
    for seed, card in enumerate(cards):
        text, metadata = card.read_text(), load_model(card.parent)[0].metadata
        assert metadata["results"][0]["metrics"]["rsum"] == result.metrics["rsum"].values[seed]
        assert f"| test | {result.metrics['i2t_r1'].values[seed]:.1f} |" in text and "Stages: first, best epoch" in text
        assert metadata["training"]["steps"] == 16 and metadata["training"]["seed"] == seed
        rows = History.load(card.parent.parent / "history.jsonl")
        assert metadata["val"]["rsum"] == rows.best["rsum"] and metadata["training"]["best_epoch"] == rows.best["epoch"]
    assert record_results(["hf://owner/name"], result) == []
