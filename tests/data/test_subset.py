"""A part of a dataset: the pictures that a file lists, with the same regions, captions and judgments."""

from __future__ import annotations

import made_flickr8k as made
import pytest
import torch

from itm_lib.data.flickr8k import prepare_flickr8k
from itm_lib.data.judgments import read_judgments
from itm_lib.data.subset import make_subset
from itm_lib.evaluation import open_split
from itm_lib.files import InputError, project_root, read_json, read_jsonl, write_json
from itm_lib.training.recipe import DataSection


@pytest.fixture
def whole(tmp_path, monkeypatch):
    made.small_sizes(monkeypatch)
    raw, pictures = made.write_text_archive(tmp_path / "raw"), made.write_photographs(tmp_path / "pictures")
    return prepare_flickr8k(raw, tmp_path / "data" / "flickr8k", made.write_regions(tmp_path / "regions.h5"), pictures, progress=False)


@pytest.fixture
def ids(tmp_path, whole):
    splits = read_json(whole / "splits.json")
    write_json(tmp_path / "flickr8k_few_ids.json", {"train": splits["train"][:6], "val": splits["val"][:2], "test": splits["test"][1:3]})
    return tmp_path / "flickr8k_few_ids.json"


def test_a_part_has_the_same_regions_and_captions(whole, ids, tmp_path):
    part = make_subset(whole, ids, tmp_path / "part")
    for split, count in (("train", 6), ("val", 2), ("test", 2)):
        some, every = open_split(part, split), open_split(whole, split)
        assert (some.num_images, some.num_captions) == (count, 5 * count) and list(some.regions.image_ids) == read_json(ids)[split]
        row = every.regions.row(some.regions.image_ids[0])
        assert torch.equal(some.image_tensors([0])[0], every.image_tensors([row])[0])
    assert read_judgments(part) == read_judgments(whole) and (part / "images").is_dir()
    meta = read_json(part / "meta.json")
    assert meta["options"]["min_count"] == 4 and meta["language"] == "en" and "protocols" not in meta
    assert len(open_split(part, "train").vocabulary) < len(open_split(whole, "train").vocabulary)  # its own training captions


def test_a_part_is_made_once_and_again_where_the_list_changed(whole, ids, tmp_path):
    part = make_subset(whole, ids, tmp_path / "part")
    before = (part / "meta.json").stat().st_mtime_ns
    make_subset(whole, ids, part)
    assert (part / "meta.json").stat().st_mtime_ns == before
    content = read_json(ids)
    write_json(ids, {**content, "train": content["train"][:4]})
    make_subset(whole, ids, part)
    assert open_split(part, "train").num_images == 4


def test_what_does_not_fit_is_one_line(whole, ids, tmp_path):
    content = read_json(ids)
    for change, line in (({"train": ["nobody"]}, "lists 1 pictures of train that .* does not have there, nobody among them"),
                         ({"val": content["train"][:1]}, "lists a picture twice"), ({"test": []}, "is no list of a part")):
        write_json(ids, {**content, **change})
        with pytest.raises(InputError, match=line):
            make_subset(whole, ids, tmp_path / "part")
    assert not (tmp_path / "part" / "splits.json").exists()


def test_a_recipe_names_a_part_by_its_list(whole, ids, tmp_path, monkeypatch):
    monkeypatch.setenv("ITM_DATA", str(tmp_path / "data"))
    section = DataSection(folder="flickr8k", subset=str(ids))
    assert section.prepare() == whole.with_name("flickr8k_few") and (section.label, section.part) == ("flickr8k", "few")
    with pytest.raises(InputError, match="no file nowhere.json with the ids of data.subset"):
        DataSection(folder="flickr8k", subset="nowhere.json").prepare()
    with pytest.raises(ValueError, match="subset is a part of data.folder"):
        DataSection(name="openmoji_scenes", subset="few")


def test_the_committed_list_is_of_1500_500_and_500_photographs():
    content = read_json(project_root() / "data" / "sweeps" / "flickr8k_small_ids.json")
    official = read_json(project_root() / "itm_lib" / "assets" / "flickr8k_splits.json")
    number = lambda image_id: int(image_id.partition("_")[0])  # noqa: E731
    assert [len(set(content[split])) for split in ("train", "val", "test")] == [1500, 500, 500]
    for split in ("val", "test"):
        assert {number(image_id) for image_id in content[split]} <= set(official[split])
    assert not {number(image_id) for image_id in content["train"]} & set(official["val"] + official["test"] + official["none"])


def test_captions_of_the_whole_are_not_changed(whole, ids, tmp_path):
    before = read_jsonl(whole / "captions.jsonl")
    make_subset(whole, ids, tmp_path / "part")
    assert read_jsonl(whole / "captions.jsonl") == before
