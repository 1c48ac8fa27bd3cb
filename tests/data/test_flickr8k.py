"""Flickr8k from its raw files: three forms give one dataset, known defects are left out, anything else wrong is one line."""

from __future__ import annotations

import json
from pathlib import Path

import made_flickr8k as made
import pytest
from made_flickr8k import GHOSTS, SIZES, UNSPLIT

from itm_lib.cli import main
from itm_lib.data import flickr8k, open_split
from itm_lib.data.flickr8k import LISTS, official_splits, prepare_flickr8k, read_flickr8k
from itm_lib.data.importers import instructions, prepare
from itm_lib.evaluation import describe
from itm_lib.evaluation import open_split as open_any
from itm_lib.files import InputError, read_json, read_jsonl

WRITERS = {"text archive": made.write_text_archive, "kaggle": made.write_kaggle, "karpathy": made.write_karpathy}
each_form = pytest.mark.parametrize("form", WRITERS)


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Splits of the photographs that are made here, in place of Flickr8k's."""
    made.small_sizes(monkeypatch)
    numbers = {split: [int(name.partition("_")[0]) for name in own] for split, own in made.names().items()}
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"val": numbers["val"], "test": numbers["test"], "none": [int(UNSPLIT.partition("_")[0])]}))
    monkeypatch.setattr(flickr8k, "SPLITS_FILE", path)


@pytest.fixture
def regions(tmp_path):
    return made.write_regions(tmp_path / "regions.h5")


def line_of(function, *args, **options) -> str:
    with pytest.raises(InputError) as error:
        function(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@each_form
def test_every_form_gives_the_same_dataset(form, tmp_path, regions, capsys):
    out = prepare_flickr8k(WRITERS[form](tmp_path / "raw"), tmp_path / "out", regions)
    assert {split: len(ids) for split, ids in read_json(out / "splits.json").items()} == SIZES
    rows = {row["caption_id"]: row for row in read_jsonl(out / "captions.jsonl")}
    expected = {f"{name}#{number}": " ".join(text.split()) for split in SIZES for name in made.names()[split]
                for number, text in enumerate(made.captions()[name])}
    assert {key: row["text"] for key, row in rows.items()} == expected
    assert {row["split"] for key, row in rows.items() if key.startswith(made.names()["val"][0])} == {"val"}
    assert read_json(out / "splits.json")["test"] == [name.removesuffix(".jpg") for name in made.names()["test"]]
    train, val, test = (open_any(out, split) for split in SIZES)
    assert (train.num_captions, val.num_captions, test.num_captions) == (40, 15, 20) and train.protocols == ("flickr8k_1k",) and train.language == "en"
    assert "dog" in train.vocabulary and "dogs" not in train.vocabulary  # min-count 4
    assert [*describe(out)][0] == "train: 8 images, 40 captions, 4 to 4 regions of 6 numbers"
    meta = read_json(out / "meta.json")
    assert meta["options"]["min_count"] == 4 and meta["protocols"] == ["flickr8k_1k"] and len(meta["sources"][0]["sha256"]) == 64
    said = capsys.readouterr().err
    assert "train 8 photographs, val 3 photographs, test 4 photographs" in said
    assert ("left out: 1 photograph in no split" in said) == (form != "karpathy")
    ghosts = f"left out: 5 captions of {GHOSTS[0]} and {GHOSTS[1]}, a photograph that no copy has (a known defect)"
    assert said.count(ghosts) == (1 if form == "text archive" else 0)
    assert meta["left_out"].get("captions without a photograph", 0) == (5 if form == "text archive" else 0)
    assert (f"human judgments: {16} of experts and {16} of crowd" in said) == (form == "text archive")


def test_the_official_splits_are_those_of_the_lists():
    """Of the real ones: 1,000 val and test each, 91 in none, no photograph twice."""
    content = read_json(Path(flickr8k.__file__).parent.parent / "assets" / "flickr8k_splits.json")
    assert (len(content["val"]), len(content["test"]), len(content["none"])) == (1000, 1000, 91)
    every = [number for part in ("val", "test", "none") for number in content[part]]
    assert len(set(every)) == len(every) and content["val"][0] == 2090545563 and content["test"][0] == 3385593926
    assert official_splits(made.captions())["val"] == made.names()["val"]


def test_an_archive_without_lists_has_the_official_splits_and_half_of_them_is_an_error(tmp_path, regions):
    raw = made.write_text_archive(tmp_path / "raw", lists=False)
    out = prepare_flickr8k(raw, tmp_path / "out", regions, progress=False)
    assert {split: len(ids) for split, ids in read_json(out / "splits.json").items()} == SIZES
    (raw / LISTS["val"]).write_text("\n".join(made.names()["val"]))
    assert line_of(read_flickr8k, raw) == (f"{raw} lacks {LISTS['train']}, {LISTS['test']} and has the other lists of the splits: get all three, or none to "
                                           "use the official splits")


def test_the_file_itself_and_folders_above_it_are_found(tmp_path, regions):
    made.write_text_archive(tmp_path / "archive" / "Flickr8k_text")
    for captions in (tmp_path / "archive", tmp_path / "archive" / "Flickr8k_text", tmp_path / "archive" / "Flickr8k_text" / flickr8k.TOKENS):
        assert len(read_flickr8k(captions).splits["train"]) == 8
    made.write_text_archive(tmp_path / "archive" / "copy")
    assert "has Flickr8k.token.txt 2 times: give the path of one" in line_of(read_flickr8k, tmp_path / "archive")
    (tmp_path / "empty").mkdir()
    assert "holds no captions of Flickr8k, which are Flickr8k.token.txt, captions.txt or dataset_flickr8k.json" in line_of(read_flickr8k, tmp_path / "empty")
    assert "no folder or file" in line_of(read_flickr8k, tmp_path / "none")


def test_photographs_may_lie_in_any_folder_and_give_a_dataset_for_pixels(tmp_path):
    made.write_photographs(tmp_path / "pictures" / "Flicker8k_Dataset")
    (tmp_path / "pictures" / "__MACOSX").mkdir()
    (tmp_path / "pictures" / "__MACOSX" / f"._{UNSPLIT}").write_bytes(b"\0\5\26\7")  # what macOS leaves in archives
    out = prepare(flickr8k.NAME, None, tmp_path / "out", made.write_kaggle(tmp_path / "raw"), tmp_path / "pictures", progress=False)
    assert read_json(out / "splits.json")["val"][0] == f"Flicker8k_Dataset/{made.names()['val'][0].removesuffix('.jpg')}"
    store = made.write_regions(tmp_path / "store.h5", [f"Flicker8k_Dataset/{name.removesuffix('.jpg')}" for name in sorted(made.captions())])
    out = prepare(flickr8k.NAME, store, tmp_path / "both", made.write_text_archive(tmp_path / "text"), tmp_path / "pictures", progress=False)
    assert open_split(out, "val").num_images == 3 and (out / "images" / "Flicker8k_Dataset" / made.names()["val"][0]).is_file()


def test_regions_that_lie_in_the_folder_already_are_taken(tmp_path):
    made.write_regions(tmp_path / "out" / "regions" / "all.h5")
    out = prepare(flickr8k.NAME, None, tmp_path / "out", made.write_kaggle(tmp_path / "raw"), progress=False)
    assert open_split(out, "train").num_images == 8
    again = (out / "captions.jsonl").read_bytes()
    prepare(flickr8k.NAME, None, tmp_path / "out", made.write_kaggle(tmp_path / "raw"), progress=False)
    assert (out / "captions.jsonl").read_bytes() == again


def changed(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(("change", "line"), [
    (lambda text: text.replace("#4\t", "#3\t", 1), "Flickr8k.token.txt line 5: caption {first}#3 is there twice, first in Flickr8k.token.txt line 4"),
    (lambda text: text.replace("\t", " ", 3).replace(" ", "\t", 1), "line 2 is not as the first one"),
    (lambda text: "\n".join(text.split("\n")[:-8]), "has no captions of"),
    (lambda text: text.replace("A dog is running .", "...", 1), "has no word in it"),
    (lambda text: text.replace("\n", "\nunknown_1.jpg#0\tA dog .\n", 1), None),
])
def test_a_broken_token_file_is_one_line(tmp_path, change, line):
    raw = made.write_text_archive(tmp_path / "raw", ghosts=False)
    rows = (raw / flickr8k.TOKENS).read_text().split("\n")
    unsplit = [row for row in rows if row.startswith(UNSPLIT)]
    (raw / flickr8k.TOKENS).write_text("\n".join([*unsplit, *(row for row in rows if row not in unsplit)]))
    changed(raw / flickr8k.TOKENS, change)
    if line is None:  # captions of a photograph that is in no split do no harm
        assert len(read_flickr8k(raw).in_no_split) == 2
    else:
        assert line.format(first=UNSPLIT) in line_of(read_flickr8k, raw)


def test_lists_that_do_not_fit_are_one_line(tmp_path):
    raw = made.write_text_archive(tmp_path / "raw")
    val = raw / LISTS["val"]
    changed(val, lambda text: text + made.names()["train"][0] + "\n")
    assert f"line 4: {made.names()['train'][0]} is in {LISTS['train']} already" in line_of(read_flickr8k, raw)
    val.write_text("\r\n".join(made.names()["val"][:2]) + "\r\n")  # saved on Windows, and one short
    assert "the splits have not their sizes, val 2 of 3 photographs" in line_of(read_flickr8k, raw)
    assert len(read_flickr8k(raw, partial=True).splits["val"]) == 2
    val.write_text("\n".join([*made.names()["val"], "nowhere_1.jpg"]))
    assert "has no captions of 1 photograph of val, nowhere_1.jpg" in line_of(read_flickr8k, raw)


def test_a_cut_csv_is_one_line(tmp_path):
    raw = made.write_kaggle(tmp_path / "raw")
    rows = (raw / flickr8k.KAGGLE).read_text().split("\n")
    (raw / flickr8k.KAGGLE).write_text("\n".join(rows[:-9]))  # a photograph has two captions left
    assert "has 2 captions of" in line_of(read_flickr8k, raw)
    (raw / flickr8k.KAGGLE).write_text("\n".join([*rows[:3], rows[3].replace(",", ";"), *rows[4:]]))
    assert "captions.txt line 4 has 1 columns and the header has 2" in line_of(read_flickr8k, raw)
    (raw / flickr8k.KAGGLE).write_text("\n".join([rows[0], *(row.replace("100000", "x00000") for row in rows[1:])]))
    assert "is no name of a photograph of Flickr8k" in line_of(read_flickr8k, raw)


def test_photographs_and_regions_that_lack_some_are_one_line(tmp_path, regions):
    raw = made.write_text_archive(tmp_path / "raw")
    ids = sorted(name.removesuffix(".jpg") for name in made.captions())[2:]
    few = made.write_regions(tmp_path / "few.h5", ids)
    line = line_of(prepare_flickr8k, raw, tmp_path / "out", few)
    assert f"{few} lacks 2 of the 15 photographs of the splits" in line and "--partial" in line
    out = prepare_flickr8k(raw, tmp_path / "partial", few, partial=True, progress=False)
    assert sum(len(own) for own in read_json(out / "splits.json").values()) == 13
    assert "neither regions nor photographs are given" in line_of(prepare_flickr8k, raw, tmp_path / "none")
    pictures = made.write_photographs(tmp_path / "pictures")
    (pictures / made.names()["test"][0]).unlink()
    assert "lacks 1 of the photographs that" in line_of(prepare_flickr8k, raw, tmp_path / "other", regions, pictures)
    assert "no captions to prepare flickr8k from: give --captions" in line_of(prepare, flickr8k.NAME, regions, tmp_path / "other")
    assert "link" in line_of(prepare, flickr8k.NAME, regions, tmp_path / "other", raw, link=True)


@pytest.mark.parametrize(("name", "change", "line"), [
    ("ExpertAnnotations.txt", lambda text: text.replace("\t4\n", "\t5\n", 1), "line 1: marks 4 3 5 are not three whole numbers from 1 to 4"),
    ("ExpertAnnotations.txt", lambda text: text.split("\n")[0] + "\n" + text, "line 2 judges"),
    ("ExpertAnnotations.txt", lambda text: text.replace("\t", " ", 1), "line 1 is not a photograph, a caption's id and three marks"),
    ("CrowdFlowerAnnotations.txt", lambda text: text.replace("0.333333", "0.9", 1), "the share 0.9 is not that of 1 yes and 2 no"),
    ("CrowdFlowerAnnotations.txt", lambda text: text.replace("\t3\t0", "\t0\t0", 1), "0 yes and 0 no are not numbers of people"),
])
def test_broken_judgments_are_one_line(tmp_path, regions, name, change, line):
    raw = made.write_text_archive(tmp_path / "raw")
    changed(raw / name, change)
    assert line in line_of(prepare_flickr8k, raw, tmp_path / "out", regions)


def test_judgments_beside_another_form_must_mean_the_same_captions(tmp_path, regions):
    raw = made.write_text_archive(tmp_path / "raw")
    made.write_kaggle(raw)
    kaggle = raw / flickr8k.KAGGLE
    out = prepare_flickr8k(kaggle, tmp_path / "out", regions, progress=False)
    assert read_json(out / "meta.json")["judgments"] == {"experts": 16, "crowd": 16}
    rows = kaggle.read_text().split("\n")
    (raw / flickr8k.KAGGLE).write_text("\n".join([rows[0], rows[2], rows[1], *rows[3:]]))
    assert "so the human judgments would be of other captions" in line_of(prepare_flickr8k, kaggle, tmp_path / "other", regions)


def test_the_commands_say_what_to_get_and_lead_to_each_other(tmp_path, capsys):
    main_of = lambda *arguments: pytest.raises(SystemExit, main, list(arguments)).value.code  # noqa: E731
    assert main_of("data", "prepare", "flickr8k") == 0
    said = capsys.readouterr().out
    for part in ("Flickr8k_text.zip (2.3 MB)", "1.1 GB", "forms.illinois.edu", "kaggle.com/datasets/adityajn105/flickr8k", "non-commercial", "itm extract",
                 "itm backbone mobilenet-v2", "itm data prepare flickr8k --captions", "train 8", "human judgments"):
        assert part in said, part
    raw = made.write_karpathy(tmp_path / "raw")
    pictures = made.write_photographs(tmp_path / "pictures")
    assert main_of("data", "captions", str(raw / flickr8k.KARPATHY), "--images", str(pictures), "--out", str(tmp_path / "own")) == 2
    assert "itm data prepare flickr8k" in capsys.readouterr().err
    assert max(map(len, instructions("flickr8k").splitlines())) <= 170
