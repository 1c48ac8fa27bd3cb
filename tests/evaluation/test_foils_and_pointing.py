"""Foils and pointing on folders small enough to know the answer."""

import numpy as np
import pytest
import torch
from made_for_evaluation import DIM, WORDS, ConstantModel, WordRegionModel, make_folder, word_pieces, write_regions

from itm_lib.data.captions import Vocabulary
from itm_lib.data.dataset import pad_tokens
from itm_lib.data.scene_pictures import Scene, SceneObject
from itm_lib.evaluation import evaluate, foil_accuracy, open_split, pointing_accuracy
from itm_lib.files import InputError, read_jsonl, write_json, write_jsonl

SIZE = len(Vocabulary.build(WORDS))


def add_foils(folder, split="test", count=60):
    """``count`` foils over all kinds; relations have no picture side, and some captions are of their own."""
    rng = np.random.default_rng(5)
    dataset = open_split(folder, split)
    pictures = [f"foil{number}" for number in range(9)]
    write_regions(folder / "regions" / f"foils_{split}.h5", pictures,
                  [rng.normal(size=(rng.integers(2, 7), DIM)).astype(np.float32) for _ in pictures])
    rows = []
    for number in range(count):
        kind = ("object", "attribute", "relation")[number % 3]
        side = "picture" if kind != "relation" and rng.random() < 0.5 else "caption"
        caption = int(rng.integers(len(dataset)))
        row = {"foil_id": str(number), "kind": kind, "side": side, "caption_id": dataset.caption_ids[caption],
               "image_id": dataset.regions.image_ids[dataset.caption_to_image[caption]], "caption": dataset.texts[caption]}
        if side == "caption":
            row["foil_caption"] = " ".join(rng.choice(WORDS, 3))
        else:
            row["foil_image_id"] = str(rng.choice(pictures))
        if number % 7 == 0:
            row.update(caption_id=None, caption="red dog tree")
        rows.append(row)
    write_jsonl(folder / "foils" / f"{split}.jsonl", rows)
    return rows


def score_of(model, dataset, store, image_id, text):
    """S of one picture and one text, from the model's own functions."""
    row = store.row(image_id)
    regions = torch.from_numpy(store.features([row])[:, : store.num_regions[row]])
    tokens, mask = pad_tokens([dataset.vocabulary.encode(text)])
    images = model.encode_images(regions, torch.ones(regions.shape[:2], dtype=torch.bool))
    return float(model.similarity(images, model.encode_captions(tokens, mask))[0, 0])


def test_foil_accuracy_is_the_share_of_true_pairs_that_win(folder):
    from itm_lib.data.regions import RegionStore
    rows, model, dataset = add_foils(folder), WordRegionModel(SIZE, seed=1).eval(), open_split(folder, "test")
    foils = RegionStore(folder / "regions" / "foils_test.h5")
    right = {}
    with torch.no_grad():
        for row in rows:
            true = score_of(model, dataset, dataset.regions, row["image_id"], row["caption"])
            false = (score_of(model, dataset, dataset.regions, row["image_id"], row["foil_caption"])
                     if row["side"] == "caption" else score_of(model, dataset, foils, row["foil_image_id"], row["caption"]))
            right.setdefault((row["kind"], row["side"]), []).append(true > false)
    got = foil_accuracy(model, folder, "test")
    sides = {key: 100 * np.mean(values) for key, values in right.items()}
    assert {f"foil_{kind}_{side}": value for (kind, side), value in sides.items()} == pytest.approx(
        {key: got[key] for key in got if key.count("_") == 2})
    assert got["foil_object"] == pytest.approx((sides["object", "caption"] + sides["object", "picture"]) / 2)
    assert got["foil_relation"] == got["foil_relation_caption"] and "foil_relation_picture" not in got
    assert got["foil_mean"] == pytest.approx((got["foil_object"] + got["foil_attribute"] + got["foil_relation"]) / 3)
    assert 0 < got["foil_mean"] < 100


def test_ties_are_wrong(folder):
    add_foils(folder)
    assert set(foil_accuracy(ConstantModel(SIZE), folder).values()) == {0.0}


def test_foils_of_captions_alone_need_no_pictures(folder):
    rows = [row for row in add_foils(folder) if row["side"] == "caption"]
    write_jsonl(folder / "foils" / "test.jsonl", rows)
    (folder / "regions" / "foils_test.h5").unlink()
    assert {"foil_object_caption", "foil_attribute", "foil_relation"} <= set(foil_accuracy(WordRegionModel(SIZE), folder))


@pytest.mark.parametrize("change, line", [
    (lambda row: row.pop("caption"), "line 1 lacks caption; build the dataset again"),
    (lambda row: row.update(foil_caption="", side="caption"), "line 1 lacks foil_caption; build the dataset again"),
    (lambda row: row.update(kind="colour"), "line 1 has the kind 'colour' and the side 'caption'; build the dataset again"),
    (lambda row: row.update(side="both", foil_image_id="x"), "line 1 has the kind 'object' and the side 'both'; build the dataset again"),
    (lambda row: row.update(image_id="nowhere"), "has no image nowhere: captions and regions are of different datasets"),
    (lambda row: row.update(side="picture", foil_image_id="gone"), "has no image gone: captions and regions are of different datasets"),
])
def test_bad_foils_are_one_line(folder, change, line):
    rows = add_foils(folder)
    rows[0].update(side="caption", foil_caption="blue cat")
    rows[0].pop("foil_image_id", None)
    change(rows[0])
    write_jsonl(folder / "foils" / "test.jsonl", rows)
    with pytest.raises(InputError) as error:
        foil_accuracy(WordRegionModel(SIZE), folder)
    assert str(error.value).endswith(line) and "\n" not in str(error.value)


def test_no_foils_and_nan_scores_are_one_line(folder, monkeypatch):
    with pytest.raises(InputError, match="no file .*test.jsonl: check the path"):
        foil_accuracy(WordRegionModel(SIZE), folder)
    add_foils(folder)
    monkeypatch.setattr(WordRegionModel, "similarity", lambda self, i, c: torch.full((len(i), len(c)), torch.nan))
    with pytest.raises(InputError, match="^120 scores of foils are NaN or infinite: look into the model$"):
        foil_accuracy(WordRegionModel(SIZE), folder)
    (folder / "foils" / "test.jsonl").write_text("\n")
    with pytest.raises(InputError, match="lists no foils; build the dataset again$"):
        foil_accuracy(WordRegionModel(SIZE), folder)


# --- pointing ---------------------------------------------------------------------------------------------------------

LEFT, RIGHT, WHOLE, NEAR_LEFT = (0, 0, 0.4, 1), (0.6, 0, 1, 1), (0, 0, 1, 1), (0, 0, 0.5, 1)


def scene_folder(folder):
    """Two pictures. In "a" a hot dog is left and a cat right; in "b" two dogs. Each region is [left, right, whole, ...]."""
    ids = ["a", "b"]
    boxes = [np.array([LEFT, RIGHT, WHOLE]), np.array([NEAR_LEFT, RIGHT, WHOLE, LEFT])]
    write_regions(folder / "regions" / "test.h5", ids, [np.eye(len(each), DIM, dtype=np.float32) for each in boxes], boxes)
    captions = [
        ("a", "A cat, next to a hot dog!", [("cat", [1]), ("hot dog", [0])]),
        ("b", "two dogs", [("dogs", [0, 1])]),
        ("b", "a red ball", []),
    ]
    write_jsonl(folder / "captions.jsonl", [
        {"caption_id": f"{image}{number}", "image_id": image, "text": text, "split": "test",
         "mentions": [{"start": text.index(noun), "end": text.index(noun) + len(noun), "objects": which} for noun, which in nouns]}
        for number, (image, text, nouns) in enumerate(captions)])
    objects = (SceneObject("dog", None, "large", LEFT), SceneObject("cat", None, "large", RIGHT))
    write_jsonl(folder / "scenes.jsonl", [Scene(image, "beach", objects).to_json() for image in ids])
    write_json(folder / "splits.json", {"test": ids})
    Vocabulary.build(["a cat next to hot dog two dogs red ball"]).save(folder / "vocabulary.json")
    return folder


class Pointer(WordRegionModel):
    """Looks at region ``target[word]``, or at all alike: the attention is given, not learned."""

    def __init__(self, vocabulary, target):
        super().__init__(len(vocabulary))
        self.target = {vocabulary.id(word): regions for word, regions in target.items()}

    def encode_captions(self, tokens, token_mask):
        encoding = super().encode_captions(tokens, token_mask)
        encoding.extra["tokens"] = torch.nn.functional.pad(tokens, (0, 20 - tokens.shape[1]))
        return encoding

    def explain(self, images, captions):
        attention = torch.full((len(images), len(captions), captions.mask.shape[1], images.mask.shape[1]), 0.1)
        for c, row in enumerate(captions.extra["tokens"].tolist()):
            for w, word in enumerate(row[: captions.mask.shape[1]]):
                attention[:, c, w, self.target.get(word, [])] = 0.9
        return {"attention": attention}


@pytest.mark.parametrize("target, expected", [
    ({"cat": [1], "dog": [0], "hot": [2], "dogs": [3]}, 100.0),
    ({"cat": [1], "dog": [2], "hot": [0], "dogs": [3]}, 200 / 3),   # the last word of "hot dog" counts, not the first
    ({"next": [1], "a": [1], "dog": [0], "dogs": [0]}, 200 / 3),    # neighbours of "cat" do not help; IoU of 0.8 does
    ({"cat": [1, 2], "dog": [0], "dogs": [0, 1]}, 200 / 3),         # a shared top counts if all of it counts
    ({}, 0.0),                                                      # the same attention everywhere is no pointing
    ({"cat": [3], "dog": [0], "dogs": [2]}, 100 / 3),               # region 3 of picture "a" is padding, whole is too large
])
def test_pointing_by_hand(tmp_path, target, expected):
    folder = scene_folder(tmp_path / "scenes")
    got = pointing_accuracy(Pointer(Vocabulary.load(folder / "vocabulary.json"), target), folder)
    assert got["pointing"] == pytest.approx(expected)
    assert got["pointing_chance"] == pytest.approx(100 * (1 / 3 + 1 / 3 + 3 / 4) / 3)  # IoU of whole and left is 0.4


@pytest.mark.parametrize(("target", "expected"), [
    ({"##t": [1], "##g": [0], "##s": [3]}, 100.0),
    ({"c": [1], "h": [0], "d": [0, 3], ",": [1], "!": [0]}, 0.0),   # the last piece of the noun counts, not the first
])
def test_pointing_with_word_pieces(tmp_path, target, expected):
    folder = scene_folder(tmp_path / "scenes")
    pieces = word_pieces("a", "c", "##a", "##t", "h", "##o", "d", "##g", "##s", ",", "!")
    model = Pointer(pieces, target)
    model.vocabulary = pieces
    assert pieces.decode(pieces.encode("a hot dogs")) == ["[CLS]", "a", "h", "##o", "##t", "d", "##o", "##g", "##s", "[SEP]"]
    assert pointing_accuracy(model, folder)["pointing"] == pytest.approx(expected)


def test_foils_are_read_in_the_models_word_pieces(folder):
    """One piece a word, under other ids: the same answers as with words."""
    rows, words = add_foils(folder), Vocabulary.build(WORDS)
    pieces = word_pieces(*WORDS)
    ours, theirs = WordRegionModel(SIZE, seed=1), WordRegionModel(len(pieces), seed=1)
    ours.vocabulary, theirs.vocabulary = words, pieces
    with torch.no_grad():
        for mine, other in [*((word, word) for word in WORDS), ("<start>", "[CLS]"), ("<end>", "[SEP]")]:
            theirs.words[pieces.id(other)] = ours.words[words.id(mine)]
    assert len(rows) == 60 and foil_accuracy(theirs, folder) == foil_accuracy(ours, folder)
    assert evaluate(theirs, folder) == evaluate(ours, folder)


def test_a_model_without_attention_and_captions_without_mentions_give_nothing(tmp_path, monkeypatch):
    folder = scene_folder(tmp_path / "scenes")
    model = Pointer(Vocabulary.load(folder / "vocabulary.json"), {})
    monkeypatch.setattr(Pointer, "explain", lambda self, images, captions: {})
    assert pointing_accuracy(model, folder) == {}
    rows = read_jsonl(folder / "captions.jsonl")
    write_jsonl(folder / "captions.jsonl", [{**row, "mentions": []} for row in rows])
    monkeypatch.undo()
    assert pointing_accuracy(model, folder) == {}


def test_a_mention_outside_the_words_is_one_line(tmp_path):
    folder = scene_folder(tmp_path / "scenes")
    rows = read_jsonl(folder / "captions.jsonl")
    rows[1]["mentions"][0].update(start=50, end=60)
    write_jsonl(folder / "captions.jsonl", rows)
    with pytest.raises(InputError, match="^caption b1: no word at characters 50-60; build the dataset again$"):
        pointing_accuracy(WordRegionModel(14), folder)


def test_evaluate_adds_foils_and_pointing_where_the_folder_has_them(tmp_path):
    folder = make_folder(tmp_path / "made")
    assert not any(name.startswith(("foil", "pointing")) for name in evaluate(WordRegionModel(SIZE), folder))
    add_foils(folder)
    assert evaluate(WordRegionModel(SIZE), folder)["foil_mean"] == foil_accuracy(WordRegionModel(SIZE), folder)["foil_mean"]
    scenes = scene_folder(tmp_path / "scenes")
    got = evaluate(Pointer(Vocabulary.load(scenes / "vocabulary.json"), {"cat": [1], "dog": [0], "dogs": [0]}), scenes)
    assert got["pointing"] == 100.0 and "i2t_r1" in got and "foil_mean" not in got
