"""The evaluator with the library's own models, from a folder to numbers."""

import numpy as np
import pytest
import torch
from made_for_evaluation import DIM, WORDS, write_regions
from test_foils_and_pointing import add_foils, scene_folder

from itm_lib.data import scenes
from itm_lib.data.captions import Vocabulary
from itm_lib.evaluation import encode_dataset, evaluate, open_split, pointing_accuracy, similarity_matrix
from itm_lib.files import InputError, read_jsonl
from itm_lib.models import Ensemble, build_model, load_model

SIZES = {"embed_dim": 6, "word_dim": 5}
CASES = {
    "vse": ("vse", {}),
    "vse last": ("vse", {"text_pooling": "last", "image_pooling": "mean"}),
    "scan t-i AVG": ("scan", {"direction": "t2i", "aggregation": "mean"}),
    "scan t-i LSE": ("scan", {"direction": "t2i", "aggregation": "lse"}),
    "scan i-t AVG": ("scan", {"direction": "i2t", "aggregation": "mean"}),
}


def made(case, vocabulary=None):
    torch.manual_seed(0)
    name, config = CASES[case]
    return build_model(name, {**SIZES, **config}, DIM, len(vocabulary or Vocabulary.build(WORDS)))


@pytest.mark.parametrize("case", [*CASES, "ensemble"])
def test_scores_depend_neither_on_blocks_nor_on_batches(folder, case):
    model = Ensemble([made("scan t-i AVG"), made("scan i-t AVG")]) if case == "ensemble" else made(case)
    dataset = open_split(folder, "test")
    whole = similarity_matrix(model, *encode_dataset(model, dataset))
    assert whole.std() > 1e-4
    for batch_size, block_bytes in ((1, 1), (3, 3000), (5, 40000)):
        parts = encode_dataset(model, dataset, batch_size)
        torch.testing.assert_close(similarity_matrix(model, *parts, block_bytes), whole, rtol=1e-5, atol=1e-6)


def test_everything_of_a_trained_and_saved_model(folder, tmp_path):
    """VSE learns the seven test pictures by heart; saved, loaded and evaluated it finds them all."""
    add_foils(folder)
    dataset, model = open_split(folder, "test"), made("vse")
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    before = evaluate(model, folder)
    for _ in range(60):
        optimizer.zero_grad()
        model(dataset.batch(range(len(dataset)), range(dataset.num_images)))["loss"].backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "model", dataset.vocabulary)
    got = evaluate(load_model(tmp_path / "model")[0], folder)
    assert got == pytest.approx(evaluate(model, folder))
    assert before["rsum"] + 50 < got["rsum"] and got["t2i_r1"] > 80
    assert {"i2t_map_at_r", "ceiling_rsum", "foil_mean", "foil_object_picture"} <= set(got) and "pointing" not in got


@pytest.mark.parametrize("case", ["scan t-i AVG", "scan i-t AVG"])
def test_scan_points_somewhere(tmp_path, case):
    folder = scene_folder(tmp_path / "scenes")
    got = pointing_accuracy(made(case, Vocabulary.load(folder / "vocabulary.json")), folder)
    assert got["pointing"] in (0.0, pytest.approx(100 / 3), pytest.approx(200 / 3), 100.0) and 40 < got["pointing_chance"] < 50


def test_a_model_of_other_data_is_refused_in_one_line(folder, tmp_path):
    model = made("vse")
    other = build_model("vse", SIZES, DIM + 1, len(Vocabulary.build(WORDS)))
    with pytest.raises(InputError, match=f"^this model was made for regions of {DIM + 1} numbers, .* has regions of {DIM} numbers: "):
        evaluate(other, folder)
    Vocabulary.build(WORDS[:3]).save(folder / "vocabulary.json")
    with pytest.raises(InputError, match="^this model was made for a vocabulary of 10 words, .* has a vocabulary of 7 words: "):
        evaluate(model, folder)


def test_a_model_with_its_own_vocabulary_reads_the_captions_with_it(folder, tmp_path):
    model = made("vse")
    expected = evaluate(model, folder)
    model.save_pretrained(tmp_path / "model", Vocabulary.build(WORDS))
    Vocabulary.build(["zebra", *reversed(WORDS)]).save(folder / "vocabulary.json")  # other ids for the same words
    assert evaluate(load_model(tmp_path / "model")[0], folder) == expected


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """An embedded dataset of 30 test pictures; a region's features are its box and noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scenes.SIZES_OF_DATASET, "smoke", (20, 5, 30))
        folder = scenes.build("default", "smoke", seed=0, root=tmp_path_factory.mktemp("scenes"), progress=False)
    rows, rng = read_jsonl(folder / "scenes.jsonl"), np.random.default_rng(0)
    for split in ("test", "foils_test"):
        own = [row for row in rows if row["split"] == split]
        boxes = [np.array([each["box"] for each in row["objects"]] + [[0, 0, 1, 1]], dtype=np.float32) for row in own]
        features = [np.concatenate([each, rng.normal(size=(len(each), DIM - 4))], 1).astype(np.float32) for each in boxes]
        write_regions(folder / "regions" / f"{split}.h5", [row["image_id"] for row in own], features, boxes)
    return folder


def test_the_embedded_dataset_is_read_whole(embedded):
    got = evaluate(made("scan t-i AVG", Vocabulary.load(embedded / "vocabulary.json")), embedded)
    sides = [f"foil_{kind}_{side}" for kind in ("object", "attribute", "relation") for side in ("caption", "picture")]
    assert {*sides, "foil_mean", "pointing", "pointing_chance", "ceiling_rsum", "i2t_map_at_r"} <= set(got)
    assert all(20 < got[side] < 80 for side in sides)        # an untrained model is near chance, 50
    assert 10 < got["pointing_chance"] < 35 and got["pointing"] < 60  # one or two of 4 to 7 regions
    assert 80 < got["ceiling_t2i_r1"] < 100 and got["t2i_r1"] < 20
