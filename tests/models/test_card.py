"""Model cards: what is known is said, what is not has no section, and the Hub can read the front matter."""

import json

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from itm_lib.data.captions import SPECIAL, Vocabulary
from itm_lib.files import read_json, write_json
from itm_lib.models import MODELS, Ensemble, build_model, load_model
from itm_lib.models.card import PAPERS, model_card, write_card

VAL = {"i2t_r1": 31.25, "i2t_r5": 60.0, "i2t_r10": 71.0, "t2i_r1": 30.0, "t2i_r5": 55.5, "t2i_r10": 70.0, "rsum": 317.75, "i2t_median_rank": 3.0}
RECIPE = {"data": {"folder": "/home/somebody/data/mine"}, "model": {"method": "vse", "embed_dim": 8}, "train": {"epochs": 20, "lr": 2e-3}}
METADATA = {
    "recipe": RECIPE,
    "data": {"name": "mine", "tokens": {"kind": "words", "count": 120},
             "splits": {"train": {"images": 1000, "captions": 2500}, "val": {"images": 200, "captions": 500}},
             "images": {"extractor": "pooled", "backbone": "/home/somebody/models/detr", "nms": 0.7,
               "pictures": '{"mean": [0.5], "from": "/home/somebody/models/detr"}', "note": "{not JSON", "max_regions": 36, "dim": 2048, "boxes": True}},
    "training": {"epochs": 20, "best_epoch": 17, "steps": 1260, "seed": 3, "seconds": 3725.2, "device": "CPU", "parameters": 12345678,
                 "commit": "abc123"},
    "val": VAL,
}
TEST = {"dataset": "mine", "split": "test", "metrics": {**VAL, "i2t_r1": 29.5, "i2t_map_at_r": 40.04}, "commit": "def",
        "command": "itm evaluate mine --data mine --split test"}


def content(method="vse", metadata=None, **config):
    return {"method": method, "config": {"region_dim": 2048, "vocab_size": 124, **config}, **({"metadata": metadata} if metadata else {})}


def sections(text):
    parts = text.split("\n## ")
    return {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in parts[1:]}


def test_a_trained_models_card_says_how_it_came_to_be():
    card = model_card(content(metadata=METADATA), "hf://owner/name", license="mit")
    found = sections(card)
    assert list(found) == ["How to use it", "Results", "Data", "Training", "Limits", "Citation"] and all(found.values())
    assert 'load_model("hf://owner/name")' in found["How to use it"] and "itm search index hf://owner/name data/mine" in found["How to use it"]
    assert "| val, epoch 17 | 31.2 | 60.0 | 71.0 | 30.0 | 55.5 | 70.0 | 317.8 |" in found["Results"] and "test" not in found["Results"]
    assert "- train: 1,000 pictures, 2,500 captions" in found["Data"] and "- tokens: 120 words" in found["Data"]
    assert "at most 36 regions of 2,048 numbers, with boxes\n" in found["Data"]
    assert yaml.safe_load(found["Data"].partition("```yaml\n")[2].rpartition("```")[0]) == {
        "extractor": "pooled", "backbone": "detr", "nms": 0.7, "pictures": {"mean": [0.5], "from": "detr"}, "note": "{not JSON"}
    assert found["Training"].startswith("Epoch 17 of 20 was the best on val. 1,260 steps, seed 3, 1 h 2 min on CPU; 12,345,678 weights")
    recipe = yaml.safe_load(found["Training"].partition("```yaml\n")[2].rpartition("```")[0])
    assert recipe == {**RECIPE, "data": {"folder": "mine"}} and "somebody" not in card
    assert "not measured on a test split" in found["Limits"] and "@inproceedings{faghri2018vse" in found["Citation"]


def test_the_hub_reads_the_front_matter():
    data = ModelCard(model_card(content(metadata={**METADATA, "results": [TEST]}), license="mit")).data
    assert (data.library_name, data.license, data.datasets, data.model_name) == ("itm_lib", "mit", ["mine"], "VSE++, trained on mine")
    assert data.tags == ["image-text-matching", "image-text-retrieval", "vse"] and data.metrics == ["recall"] and data.pipeline_tag is None
    values = {(each.dataset_split, each.metric_type): each.metric_value for each in data.eval_results}
    assert values["val", "i2t_r1"] == 31.25 and values["test", "i2t_r1"] == 29.5 and values["test", "i2t_map_at_r"] == 40.04
    assert ("val", "i2t_median_rank") not in values and len(values) == 15
    names = {each.metric_type: each.metric_name for each in data.eval_results}
    assert names["t2i_r5"] == "text → picture R@5" and names["i2t_r1"] == "picture → text R@1"


def test_a_model_of_which_nothing_is_known_has_no_empty_sections():
    for method in MODELS:
        card = model_card(content(method))
        found = sections(card)
        assert list(found) == ["How to use it", "Limits", "Citation"] and all(found.values())
        assert "None" not in card and PAPERS[method].key in found["Citation"] and "trained on" not in card.partition("## Limits")[0]
        assert "not measured" not in found["Limits"] and ModelCard(card).data.eval_results is None
        assert "license" not in card.partition("\n---\n")[0]


def test_a_converted_checkpoint_and_a_published_row_are_named():
    official = {"recipe": {"official": {"method": "vse", "file": "model_best.pth.tar", "sha256": "0" * 64},
                           "paper": {"dataset": "coco", "variant": "t-i AVG", "settings": "published"}}}
    card = model_card(content(metadata=official))
    assert "converted from their checkpoint `model_best.pth.tar` (SHA-256 `000" in card and "Training" not in sections(card)
    assert 'is for the published row "t-i AVG" on coco; the settings are published' in card


def test_pixels_and_word_pieces_are_told_as_such():
    metadata = {"data": {**METADATA["data"], "tokens": {"kind": "pieces", "count": 30522}, "images": {"pixels": 224}, "seed": 0, "variant": "default"}}
    found = sections(model_card(content("dive", metadata)))
    assert "- images: pixels, 224 × 224" in found["Data"] and "30,522 word pieces" in found["Data"] and "mine (variant default, seed 0)" in found["Data"]
    assert "regions" not in found["Limits"] and "any other word" not in found["Limits"]


@pytest.mark.parametrize(("seconds", "expected"), [(0.2, "0 s on"), (59.6, "1 min on"), (200, "3 min 20 s on"), (7200, "2 h on"), (93784, "26 h 3 min on")])
def test_durations_are_written_for_people(seconds, expected):
    metadata = {"training": {**METADATA["training"], "seconds": seconds}}
    assert f"seed 3, {expected}" in model_card(content(metadata=metadata))


def saved(folder, method="vse", metadata=None):
    torch.manual_seed(0)
    vocabulary = Vocabulary((*SPECIAL, *(f"word{number}" for number in range(26))))
    model = build_model(method, {"embed_dim": 8, "word_dim": 8}, 10, len(vocabulary))
    model.save_pretrained(folder, vocabulary, metadata)
    return model


def test_what_was_measured_later_gets_onto_the_card_and_stays_with_the_model(tmp_path):
    saved(tmp_path, metadata=METADATA)
    before = (tmp_path / "README.md").read_text()
    assert write_card(tmp_path) == tmp_path / "README.md" and (tmp_path / "README.md").read_text() == before
    write_card(tmp_path, [TEST, {**TEST, "dataset": "other"}])
    write_card(tmp_path, [{**TEST, "metrics": {**TEST["metrics"], "rsum": 300.0}}])
    found = sections((tmp_path / "README.md").read_text())
    assert "| test | 29.5 | 60.0 | 71.0 | 30.0 | 55.5 | 70.0 | 300.0 | 40.0 |" in found["Results"] and found["Results"].count("test of other") == 1
    assert found["Results"].count("| test |") == 1 and "measured by `itm evaluate mine --data mine --split test`" in found["Results"]
    assert "not measured on a test split" not in found["Limits"]
    model, _ = load_model(tmp_path)
    assert [each["dataset"] for each in model.metadata["results"]] == ["mine", "other"] and model.metadata["recipe"] == RECIPE
    model.save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == (tmp_path / "README.md").read_bytes()


def test_an_ensembles_card_names_its_methods(tmp_path):
    ensemble = Ensemble([saved(tmp_path / "a"), saved(tmp_path / "b", "scan")])
    ensemble.save_pretrained(tmp_path / "both", metadata={"val": VAL})
    card = (tmp_path / "both" / "README.md").read_text()
    assert "# VSE++ + SCAN\n" in card and "An ensemble of 2 models" in card and "faghri2018vse" in card and "lee2018stacked" in card
    assert load_model(tmp_path / "both")[0].metadata == {"val": VAL}
    write_card(tmp_path / "both", [TEST])
    assert "test of mine" in (tmp_path / "both" / "README.md").read_text()


def test_what_another_program_wrote_into_the_metadata_does_no_harm(tmp_path):
    saved(tmp_path, metadata={"epoch": 3, "note": "{{ braces }} --- and \u2028 lines"})
    assert sections((tmp_path / "README.md").read_text())
    path = tmp_path / "config.json"
    write_json(path, {key: value for key, value in read_json(path).items() if key != "metadata"})
    write_card(tmp_path)
    assert "metadata" not in json.loads(path.read_text())
