"""The stand-in is read by what reads Flickr8k, from the raw files to human judgments, and says that it is none."""

from __future__ import annotations

import shutil

import made_flickr8k as made
import numpy as np
import pytest
from PIL import Image

from itm_lib.data import scenes
from itm_lib.data.dataset import read_meta
from itm_lib.data.flickr8k import TOKENS, prepare_flickr8k
from itm_lib.data.flickr8k_standin import write_standin, write_standin_regions
from itm_lib.data.judgments import read_judgments
from itm_lib.evaluation import open_split
from itm_lib.evaluation.human import expert_ceiling, judged_pairs
from itm_lib.files import InputError, read_json


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    return write_standin(tmp_path_factory.mktemp("standin") / "flickr8k", progress=False)


def test_it_has_flickr8ks_files_and_its_importer_reads_them(standin, tmp_path):
    images = sorted(path.stem for path in (standin / "images").iterdir())
    assert len(images) == 300 and all(image_id.partition("_")[0].isdecimal() for image_id in images)
    with Image.open(standin / "images" / f"{images[0]}.jpg") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
    out = prepare_flickr8k(standin, tmp_path / "out", made.write_regions(tmp_path / "regions.h5", images), standin / "images", partial=True, progress=False)
    sizes = {split: len(ids) for split, ids in read_json(out / "splits.json").items()}
    assert sizes == dict(zip(scenes.SPLITS, scenes.SIZES_OF_DATASET["smoke"]))
    assert open_split(out, "test").num_captions == 250
    judgments = read_judgments(out)
    assert len(judgments.experts) == 50 * 6 and len(judgments.crowd) == 50 * 12
    assert all(judgment.caption_id.endswith(".jpg#2") for judgment in judgments.experts)


def test_judges_follow_the_truth_and_differ(standin, tmp_path):
    images = sorted(path.stem for path in (standin / "images").iterdir())
    out = prepare_flickr8k(standin, tmp_path / "out", made.write_regions(tmp_path / "regions.h5", images), partial=True, progress=False)
    dataset, judgments = open_split(out, "test"), read_judgments(out)
    pairs, marked = judged_pairs(judgments.experts, dataset)
    assert pairs.values[pairs.own].min() >= 3 and (pairs.values[~pairs.own] >= 3).sum() > 20  # false negatives, as in the photographs
    assert 0.4 < expert_ceiling(np.array([each.marks for each in marked])) < 0.99


def test_the_same_files_every_time_and_nothing_of_others_is_touched(standin, tmp_path):
    again = write_standin(tmp_path / "again", progress=False)
    for path in standin.iterdir():
        if path.is_file() and path.name != ".lock":
            assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    before = (again / TOKENS).stat().st_mtime_ns
    write_standin(again, progress=False)
    assert (again / TOKENS).stat().st_mtime_ns == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / TOKENS).write_text("my own captions")
    with pytest.raises(InputError, match="holds other files: give another folder for the stand-in"):
        write_standin(tmp_path / "mine", progress=False)
    assert (tmp_path / "mine" / TOKENS).read_text() == "my own captions"
    assert "simulated" in read_json(standin / "standin.json")["judgments"]


def test_it_declares_no_published_protocol_and_has_regions_of_its_own(standin, tmp_path):
    standin = shutil.copytree(standin, tmp_path / "standin")
    store = write_standin_regions(standin, progress=False)
    written = store.stat().st_mtime_ns
    assert write_standin_regions(standin, progress=False).stat().st_mtime_ns == written  # kept
    out = prepare_flickr8k(standin, tmp_path / "out", store, standin / "images", partial=True, progress=False)
    assert read_meta(out)["protocols"] == []
    split = open_split(out, "val")
    scene_folder = scenes.prepare("many_to_many", "smoke", 0, progress=False)
    original = open_split(scene_folder, "val")
    assert split.texts == original.texts
    assert (split.regions.features([3]) == original.regions.features([3])).all() and (split.regions.boxes([3]) == original.regions.boxes([3])).all()
    with pytest.raises(InputError, match="is no stand-in"):
        write_standin_regions(tmp_path)


def test_an_interrupted_stand_in_is_finished_and_another_size_starts_anew(tmp_path, monkeypatch):
    out = tmp_path / "flickr8k"
    with monkeypatch.context() as patch:
        patch.setattr("itm_lib.data.flickr8k_standin.write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_standin(out, progress=False)
    with pytest.raises(InputError, match="an unfinished one"):
        write_standin_regions(out)
    write_standin(out, progress=False)
    assert (out / TOKENS).is_file() and read_json(out / "standin.json")["size"] == "smoke"
    first = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    write_standin(out, seed=1, progress=False)
    second = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert read_json(out / "standin.json")["seed"] == 1 and len(second) == 300
    assert sum(second.get(name) == content for name, content in first.items()) < 30
