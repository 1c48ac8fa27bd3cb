"""Ensembles of models and files of scores, and which published protocols a split is measured under."""

import numpy as np
import pytest
import torch
from made_for_evaluation import WORDS, WordRegionModel, make_folder

from itm_lib.data.captions import Vocabulary
from itm_lib.evaluation import (
    RetrievalMetrics,
    encode_dataset,
    evaluate,
    evaluate_ensemble,
    evaluate_scores,
    open_split,
    protocol_metrics,
    protocols,
    read_scores,
    save_scores,
    similarity_matrix,
)
from itm_lib.files import InputError, write_json


@pytest.fixture
def second():
    """A model with a vocabulary of its own: other ids, and two words unknown."""
    vocabulary = Vocabulary.build([*reversed(WORDS[2:]), "more", "words"])
    model = WordRegionModel(len(vocabulary), seed=5)
    model.vocabulary = vocabulary
    return model


def scores_of(model, folder):
    dataset = open_split(folder, "test", vocabulary=model.vocabulary)
    return similarity_matrix(model, *encode_dataset(model, dataset))


def test_scores_are_averaged_each_model_with_its_own_words(folder, model, second, tmp_path):
    metrics = evaluate_ensemble([model, second], folder, scores_file=tmp_path / "both.npy")
    file, dataset = read_scores(tmp_path / "both.npy"), open_split(folder, "test")
    mean = (scores_of(model, folder) + scores_of(second, folder)) / 2
    assert np.array_equal(file.scores, mean)
    assert (file.image_ids, file.caption_ids) == (list(dataset.regions.image_ids), dataset.caption_ids)
    assert metrics == evaluate_scores(mean, dataset)
    assert not np.allclose(mean, scores_of(model, folder)) and evaluate_ensemble([model], folder) == evaluate_scores(scores_of(model, folder), dataset)


@pytest.mark.parametrize("kind", [".npy", ".safetensors"])
def test_saved_scores_are_members_in_whatever_order(folder, model, second, tmp_path, kind):
    dataset, rng = open_split(folder, "test"), np.random.default_rng(0)
    rows, columns = rng.permutation(dataset.num_images), rng.permutation(dataset.num_captions)
    save_scores(tmp_path / f"shuffled{kind}", scores_of(model, folder)[rows][:, columns],
                [dataset.regions.image_ids[row] for row in rows], [dataset.caption_ids[column] for column in columns])
    evaluate(second, folder, scores_file=tmp_path / f"second{kind}")
    files = [tmp_path / f"shuffled{kind}", str(tmp_path / f"second{kind}")]
    wanted = evaluate_ensemble([model, second], folder)
    assert evaluate_ensemble(files, folder) == evaluate_ensemble([files[0], second], folder) == wanted


def test_what_cannot_be_averaged_is_one_line(folder, model, tmp_path):
    dataset = open_split(folder, "test")
    ids, scores = [list(dataset.regions.image_ids), list(dataset.caption_ids)], scores_of(model, folder)
    for name, values, given in (("images", scores, [["x", *ids[0][1:]], ids[1]]), ("fewer", scores[:, 1:], [ids[0], ids[1][1:]]),
                                ("twice", scores, [ids[0], [*ids[1][1:], ids[1][1]]])):
        save_scores(tmp_path / f"{name}.npy", values, *given)
    np.save(tmp_path / "nameless.npy", scores.numpy())
    for members, line in ((["images.npy"], "has 7 image ids and the test split of made 7, of which 1 are not among them, for example 'test0'"),
                          (["fewer.npy"], "has 12 caption ids and the test split of made 13, of which 1 are not"),
                          (["twice.npy"], "has 13 caption ids .* of which 1 are not"),
                          (["nameless.npy"], "names no ids, .* put nameless.ids.json beside it"),
                          (["nowhere.npy"], "no file .*nowhere.npy"), (["nowhere"], "no model folder"), ([], "needs at least one model")):
        with pytest.raises(InputError, match=line) as error:
            evaluate_ensemble([tmp_path / member for member in members], folder)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"ends in \.npy or \.safetensors"):
        evaluate_ensemble([model], folder, scores_file=tmp_path / "scores.txt")


@pytest.fixture
def small_protocols(monkeypatch):
    monkeypatch.setattr(protocols, "FLICKR_IMAGES", 10)
    monkeypatch.setattr(protocols, "COCO_IMAGES", 25)


def split_of(tmp_path, name, images, extra=0, image_ids=None, caption_ids=None, declared=()):
    """A test split as far as protocols look: five captions an image, the first ``extra`` have one more."""
    folder = make_folder(tmp_path / name, images=images)
    write_json(folder / "meta.json", {"protocols": list(declared)})
    dataset = open_split(folder, "test")
    dataset.caption_to_image = torch.tensor([*sorted([*range(images)] * 5), *range(extra)])
    dataset.caption_ids = caption_ids or [f"c{number}" for number in range(len(dataset.caption_to_image))]
    dataset.regions.image_ids = image_ids or list(dataset.regions.image_ids)
    scores = torch.rand(images, len(dataset.caption_ids), generator=torch.Generator().manual_seed(0))
    return dataset, scores


COCO = ("coco_1k_fivefold", "coco_5k")


@pytest.mark.parametrize("name", ["f30k_1k", "flickr8k_1k"])
def test_a_split_is_measured_by_the_protocol_that_it_declares(tmp_path, small_protocols, name):
    dataset, scores = split_of(tmp_path, "mine", 10, declared=[name])
    plain = RetrievalMetrics.from_scores(scores, dataset.caption_to_image)
    found = protocol_metrics(scores, dataset)
    assert list(found) == [f"{name}_{each}" for each in ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")]
    assert (found[f"{name}_rsum"], found[f"{name}_t2i_r5"]) == (plain.rsum, plain.t2i_r5)
    for folder, images, extra in (("fewer", 9, 0), ("more", 10, 1)):  # not the published test split
        assert protocol_metrics(*reversed(split_of(tmp_path, folder, images, extra, declared=[name]))) == {}


def test_neither_a_size_nor_a_name_makes_a_protocol(tmp_path, small_protocols):
    """A thousand pictures of somebody's own are not Flickr30K, whatever their folder is called."""
    for name, images in (("flickr30k", 10), ("f30k_1k", 10), ("coco", 25)):
        assert protocol_metrics(*reversed(split_of(tmp_path, name, images))) == {}


def test_an_unknown_protocol_and_a_broken_meta_are_one_line(tmp_path, small_protocols):
    with pytest.raises(InputError, match=r"^meta\.json of mine declares the protocol 'f30k'; did you mean 'f30k_1k'\?$"):
        protocol_metrics(*reversed(split_of(tmp_path, "mine", 10, declared=["f30k"])))
    for content, line in (({"protocols": "f30k_1k"}, '"protocols" must be a list of names'), ([1], "is no mapping of names to values")):
        write_json(tmp_path / "mine" / "meta.json", content)
        with pytest.raises(InputError, match=line):
            open_split(tmp_path / "mine", "test")


def test_cocos_5000_pictures_give_five_folds_and_the_whole(tmp_path, small_protocols):
    dataset, scores = split_of(tmp_path, "mine", 25, declared=COCO)
    found = protocol_metrics(scores, dataset)
    folds = protocols.coco_1k_fivefold(scores, dataset.caption_to_image, 5)
    assert {name.rpartition("_")[0] for name in found if name.endswith("rsum")} == {"coco_1k", "coco_5k"} and len(found) == 14
    assert found["coco_1k_rsum"] == folds.rsum
    assert found["coco_5k_i2t_r1"] == RetrievalMetrics.from_scores(scores, dataset.caption_to_image).i2t_r1
    assert protocol_metrics(*reversed(split_of(tmp_path, "more", 25, 2, declared=COCO))) == {}


def test_cocos_own_ids_give_cxc_and_eccv_too(tmp_path, small_protocols, monkeypatch):
    images, captions = list(range(100, 125)), list(range(1000, 1127))
    monkeypatch.setattr(protocols, "coco_test_ids", lambda: (images[::-1], captions[:125]))
    monkeypatch.setattr(protocols, "eccv_caption_metrics", lambda *given: given)
    dataset, scores = split_of(tmp_path, "coco", 25, 2, [str(each) for each in images], [str(each) for each in captions], COCO)
    kept, *ids = protocol_metrics(scores, dataset)
    assert torch.equal(kept, scores[:, :125]) and ids == [images, captions[:125]]
    dataset.caption_ids[3] = "999"
    assert protocol_metrics(scores, dataset) == {}


def test_evaluate_says_what_the_protocol_says(tmp_path, model, monkeypatch):
    monkeypatch.setattr(protocols, "FLICKR_IMAGES", 3)
    monkeypatch.setattr(protocols, "CAPTIONS_AN_IMAGE", 2)
    folder = make_folder(tmp_path / "made", images=3)
    write_json(folder / "meta.json", {"protocols": ["f30k_1k"]})
    found = evaluate(model, folder, "val")
    assert found["f30k_1k_rsum"] == found["rsum"] and list(found).index("f30k_1k_rsum") > list(found).index("rsum")
