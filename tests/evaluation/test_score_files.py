"""Scores as files: written whole with their ids, read back, refused when damaged, and COCO's protocols on them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from itm_lib.evaluation import (
    coco_file_metrics,
    coco_test_ids,
    encode_dataset,
    evaluate,
    open_split,
    protocols,
    read_scores,
    save_scores,
    similarity_matrix,
)
from itm_lib.files import InputError, write_json

IDS = {"image_ids": [7, 9], "caption_ids": ["a", "b", "c"]}
both_kinds = pytest.mark.parametrize("kind", [".npy", ".safetensors"])


@pytest.fixture
def scores():
    return np.arange(6, dtype=np.float32).reshape(2, 3)


def line_of(work, *arguments):
    with pytest.raises(InputError) as error:
        work(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@both_kinds
def test_scores_and_ids_come_back(tmp_path, scores, kind):
    for values in (scores, torch.from_numpy(scores).T.contiguous().T):
        found = read_scores(save_scores(tmp_path / f"dive{kind}", values, **IDS))
        assert np.array_equal(found.scores, scores)
        assert {"image_ids": found.image_ids, "caption_ids": found.caption_ids} == IDS
    assert len(list(tmp_path.iterdir())) == (2 if kind == ".npy" else 1)  # nothing half-written is left


@both_kinds
def test_ids_from_another_file(tmp_path, scores, kind):
    path = tmp_path / f"plain{kind}"
    np.save(path, scores) if kind == ".npy" else save_file({"scores": torch.from_numpy(scores)}, path)
    assert read_scores(path).image_ids is read_scores(path).caption_ids is None
    write_json(tmp_path / "ids.json", IDS)
    assert read_scores(path, tmp_path / "ids.json").caption_ids == ["a", "b", "c"]
    write_json(tmp_path / "ids.json", {**IDS, "image_ids": [1]})
    assert line_of(read_scores, path, tmp_path / "ids.json").endswith(
        "ids.json: 1 image and 3 caption ids for scores of the shape (2, 3)")
    write_json(tmp_path / "ids.json", [1, 2])
    assert "ids.json does not name the rows and columns: {" in line_of(read_scores, path, tmp_path / "ids.json")


@both_kinds
def test_a_cut_file_is_one_line(tmp_path, scores, kind):
    path = save_scores(tmp_path / f"dive{kind}", scores, **IDS)
    for size in (0, 20, len(path.read_bytes()) - 4):
        path.write_bytes(path.read_bytes()[:size])
        assert f"dive{kind} is not a whole {kind} file of" in line_of(read_scores, path)


def test_what_holds_no_scores_is_one_line(tmp_path, scores):
    assert line_of(save_scores, tmp_path / "a.csv", scores, [1, 2], [1, 2, 3]).endswith(
        "a.csv: a file of scores ends in .npy or .safetensors")
    assert "no file" in line_of(read_scores, tmp_path / "none.npy")
    assert line_of(save_scores, tmp_path / "a.npy", scores, [1], [1, 2, 3]).endswith(
        "a.npy: 1 image and 3 caption ids for scores of the shape (2, 3)")
    assert not list(tmp_path.iterdir())
    np.savez(tmp_path / "two.npz", a=scores, b=scores)
    (tmp_path / "two.npz").rename(tmp_path / "two.npy")
    assert "two.npy holds several arrays: " in line_of(read_scores, tmp_path / "two.npy")
    np.save(tmp_path / "object.npy", np.array([None]))
    assert "object.npy is not a whole .npy file of numbers (" in line_of(read_scores, tmp_path / "object.npy")
    save_file({"logits": torch.zeros(2, 3)}, tmp_path / "other.safetensors")
    assert "holds the tensors logits: one named 'scores' is needed" in line_of(read_scores, tmp_path / "other.safetensors")


@both_kinds
def test_evaluate_keeps_its_scores(folder, model, tmp_path, kind):
    path = tmp_path / "kept" / f"test{kind}"
    metrics, dataset = evaluate(model, folder, scores_file=path), open_split(folder, "test")
    assert metrics == evaluate(model, folder)
    found = read_scores(path)
    assert (found.image_ids, found.caption_ids) == (dataset.regions.image_ids, dataset.caption_ids)
    assert np.array_equal(found.scores, similarity_matrix(model, *encode_dataset(model, dataset)))
    assert "a file of scores ends in" in line_of(lambda: evaluate(None, folder, scores_file="test.txt"))


def test_cocos_protocols_get_what_is_in_the_file(tmp_path, monkeypatch):
    """Without ids, in COCO's own order; the protocols themselves are tested on arrays. The file is a hole: it takes no disk."""
    given, path = [], tmp_path / "coco.npy"
    np.lib.format.open_memmap(path, "w+", np.float16, (5000, 25000)).flush()
    monkeypatch.setattr(protocols, "eccv_caption_metrics", lambda *arguments: given.append(arguments) or {"cxc_i2t_r1": 3.0})
    assert coco_file_metrics(path) == {"cxc_i2t_r1": 3.0}
    assert given[0][0].shape == (5000, 25000) and given[0][1:] == coco_test_ids()
    images, captions = (each[::-1] for each in coco_test_ids())
    (tmp_path / "ids.json").write_text(json.dumps({"image_ids": images, "caption_ids": captions}))
    coco_file_metrics(path, tmp_path / "ids.json")
    assert given[1][1:] == (images, captions)


def test_scores_that_are_not_cocos_are_one_line(tmp_path, scores):
    np.save(tmp_path / "small.npy", scores)
    assert line_of(coco_file_metrics, tmp_path / "small.npy").endswith(
        "small.npy names no ids and its scores have the shape (2, 3): COCO's test split is 5000 x 25000")
    save_scores(tmp_path / "numbers.npy", scores, [1, 2], [1, 2, 3])
    assert line_of(coco_file_metrics, tmp_path / "numbers.npy").startswith("these are not the 5000 image ids of COCO's test split: 2 ")
    save_scores(tmp_path / "scenes.npy", scores, ["test0", "test1"], ["a", "b", "c"])
    assert line_of(coco_file_metrics, tmp_path / "scenes.npy") == (
        "COCO's image ids are whole numbers, these are not; the first is 'test0'")
