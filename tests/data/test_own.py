"""Captions of one's own: every source becomes the same dataset folder, and what does not fit together is one line."""

import json
import os

import numpy as np
import pytest
from made_for_data import write_regions
from PIL import Image

from itm_lib.data import open_split
from itm_lib.data.own import OwnCaption, check_captions, draw_splits, make_dataset, read_captions
from itm_lib.data.pictures import Pixels
from itm_lib.data.regions import RegionStore, RegionWriter
from itm_lib.evaluation import describe
from itm_lib.evaluation import open_split as open_any
from itm_lib.files import InputError, read_json, read_jsonl, write_json, write_jsonl

IDS = [*(f"cats/{number:03d}" for number in range(6)), *(f"dogs/{number:03d}" for number in range(6))]
TEXTS = {image_id: [f"A {image_id[:3]} on a mat, number {number}.", "It sleeps; \"so sweet\", they say."][: 1 + number % 2]
         for number, image_id in enumerate(IDS)}
ROWS = [(image_id, text) for image_id, texts in TEXTS.items() for text in texts]


@pytest.fixture
def store(tmp_path):
    return write_regions(tmp_path / "mine.h5", IDS, [2 + number % 3 for number in range(len(IDS))])


@pytest.fixture
def pictures(tmp_path):
    for number, image_id in enumerate(IDS):
        path = tmp_path / "pictures" / f"{image_id}{('.jpg', '.PNG')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 10, 3), 20 * number, np.uint8)).save(path)
    return tmp_path / "pictures"


def line_of(call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    return str(error.value)


def quoted(text):
    return '"' + text.replace('"', '""') + '"'


def folder_of_text(place):
    for image_id, texts in TEXTS.items():
        (place / image_id).parent.mkdir(parents=True, exist_ok=True)
        (place / f"{image_id}.txt").write_text("\n".join(texts) + "\n\n")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "no.txt").write_text("not this")
    return place


def csv_file(place):
    path = place / "captions.csv"
    path.write_text("image,caption\n" + "".join(f"{image_id}.jpg,{quoted(text)}\n" for image_id, text in ROWS))
    return path


def excel_file(place):
    path = place / "excel.csv"
    lines = ["File Name;Nr;Text", *(f"{image_id}.png;7;{quoted(text)}" for image_id, text in ROWS), ";;"]
    path.write_bytes(("\ufeff" + "\r\n".join(lines) + "\r\n").encode())
    return path


def tsv_file(place):
    path = place / "captions.tsv"
    path.write_text("filepath\tsentence\n" + "".join(f"./{image_id}\t  {text if number % 2 else quoted(text)} \n"
                                                    for number, (image_id, text) in enumerate(ROWS)))
    return path


def flickr_table(place):
    path = place / "results.csv"
    path.write_text("image_name| comment_number| comment\n" + "".join(f"{image_id}.jpg| 0| {text}\n" for image_id, text in ROWS))
    return path


def wide_table(place):
    path = place / "wide.csv"
    path.write_text("caption1,caption2,image\n" + "".join(
        f"{','.join(map(quoted, (*texts, '')[:2]))},{image_id}\n" for image_id, texts in TEXTS.items()))
    return path


def tokens(place):
    path = place / "results.token"
    path.write_text("".join(f"{image_id}.jpg#{number}\t{text}\n" for image_id, texts in TEXTS.items() for number, text in enumerate(texts)))
    return path


def json_lines(place):
    path = place / "captions.jsonl"
    write_jsonl(path, [{"file_name": f"{image_id}.jpg", "captions": texts} if number % 2 else {"file_name": image_id, "captions": texts[0]}
                       for number, (image_id, texts) in enumerate(TEXTS.items())])
    return path


def json_list(place):
    path = place / "captions.json"
    write_json(path, [{"image": image_id.replace("/", "\\"), "text": text, "split": None} for image_id, text in ROWS])
    return path


def coco(place):
    path = place / "captions_val2014.json"
    write_json(path, {"info": {}, "images": [{"id": 100 + number, "file_name": f"{image_id}.jpg"} for number, image_id in enumerate(IDS)],
                      "annotations": [{"id": 7 * number, "image_id": 100 + IDS.index(image_id), "caption": f"{text}\n"}
                                      for number, (image_id, text) in enumerate(ROWS)]})
    return path


SOURCES = [folder_of_text, csv_file, excel_file, tsv_file, flickr_table, wide_table, tokens, json_lines, json_list, coco]


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_captions(source, tmp_path, store):
    place = source(tmp_path / "in" if source is folder_of_text else tmp_path)
    found = read_captions(place)
    assert [caption.text for caption in found] == [text for _, text in ROWS]
    out = make_dataset(place, tmp_path / "out", store)
    kept = {split: open_any(out, split) for split in ("train", "val", "test")}
    texts = {split.regions.image_ids[row]: [split.texts[caption] for caption in captions]
             for split in kept.values() for row, captions in enumerate(split.captions_of_image)}
    assert texts == TEXTS
    number = {tokens: f"{IDS[0]}.jpg#0", coco: "0"}.get(source, f"{IDS[0]}#0")
    assert number in {row["caption_id"] for row in read_jsonl(out / "captions.jsonl")}


def test_a_split_has_its_own_rows_of_the_one_store(tmp_path, store):
    out = make_dataset(csv_file(tmp_path), tmp_path / "out", store, val=2, test=3)
    whole, splits = RegionStore(store), read_json(out / "splits.json")
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 7, "val": 2, "test": 3}
    train = open_split(out, "train", in_memory=True)
    assert train.regions.image_ids == splits["train"] and not {*splits["val"], *splits["test"]} & set(train.regions.image_ids)
    assert train.regions._memory.shape[0] == 7, "no row of test is in memory"
    for row, image_id in enumerate(splits["train"]):
        assert (train.regions.features([row]) == whole.features([whole.row(image_id)])).all()
    assert {word for text in train.texts for word in text.lower().split()} and "<unk>" in train.vocabulary
    assert list(describe(out, checksums=True)) == [
        f"{split}: {len(ids)} images, {sum(len(TEXTS[image_id]) for image_id in ids)} captions, "
        f"{min(counts)} to {max(counts)} regions of 4 numbers"
        for split, ids in splits.items() for counts in [[2 + IDS.index(image_id) % 3 for image_id in ids]]]
    with pytest.raises(InputError, match="the test split is for the final evaluation"):
        open_split(out, "test")


def test_pictures_alone_make_a_folder_for_models_of_pixels(tmp_path, pictures):
    out = make_dataset(csv_file(tmp_path), tmp_path / "out", images=pictures)
    assert (out / "images").is_symlink() and not (out / "regions").exists()
    train = open_split(out, "train", pixels=Pixels(size=6))
    assert train.image_tensors([0])[0].shape == (1, 3, 6, 6) and read_json(out / "meta.json")["regions"] == {}
    assert all("pictures, no regions" in line for line in describe(out))


def bytes_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_again_gives_the_same_bytes_and_a_cut_off_run_is_mended(tmp_path, store, pictures, monkeypatch):
    source, out = csv_file(tmp_path), tmp_path / "out"
    make_dataset(source, out, store, images=pictures)
    first = bytes_of(out)
    assert make_dataset(source, out, store, images=pictures) == out and bytes_of(out) == first
    meta = read_json(out / "meta.json")
    assert meta["made_from"] == "captions.csv" and meta["kind"] == "own" and meta["name"] == "out"
    assert meta["options"] == {"min_count": 1, "val": 0.1, "test": 0.1, "seed": 0, "skip_empty": False, "partial": False}
    assert meta["regions"] == {"extractor": "made up", "note": "for tests", "max_regions": 4, "dim": 4, "boxes": True}
    replace = os.replace

    def stop(part, path):
        if os.path.basename(path) == "vocabulary.json":
            raise KeyboardInterrupt
        replace(part, path)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        make_dataset(source, out, store, seed=3)
    assert not (out / "meta.json").exists(), "an incomplete folder does not say that all is there"
    monkeypatch.undo()
    make_dataset(source, out, store, images=pictures)
    assert bytes_of(out) == first


def test_another_dataset_in_the_folder_is_refused(tmp_path, store):
    source = csv_file(tmp_path)
    out = make_dataset(source, tmp_path / "out", store, name="first")
    assert "holds another dataset already (first): give another --out, or remove it" in line_of(make_dataset, source, out, store, name="second")
    write_json(out / "meta.json", {**read_json(out / "meta.json"), "kind": "published"})
    assert "holds another dataset already (first)" in line_of(make_dataset, source, out, store, name="first")
    other = tmp_path / "other"
    write_regions(other / "regions" / "all.h5", IDS)
    assert "regions of its own already, all.h5" in line_of(make_dataset, source, other, store)
    make_dataset(source, other)
    assert not (other / "regions" / "all.h5").is_symlink() and open_split(other, "train").regions.dim == 4
    write_regions(other / "regions" / "val.h5", IDS)
    assert "has val.h5, regions of one split" in line_of(make_dataset, source, other)
    (tmp_path / "third" / "images").mkdir(parents=True)
    (tmp_path / "a.png").write_bytes(b"")
    assert "neither regions nor pictures are given" in line_of(make_dataset, source, tmp_path / "third")
    (tmp_path / "file").write_text("")
    assert "file cannot be made (File exists)" in line_of(make_dataset, source, tmp_path / "file", store)


def test_arrays_are_linked_with_what_lies_beside_them(tmp_path, store):
    np.save(tmp_path / "mine.npy", np.ones((len(IDS), 3, 5), np.float32))
    write_json(tmp_path / "mine.json", {"image_ids": IDS})
    out = make_dataset(csv_file(tmp_path), tmp_path / "out", store)
    make_dataset(csv_file(tmp_path), out, tmp_path / "mine.npy")
    assert open_split(out, "val").regions.dim == 5 and not (out / "regions" / "all.h5").is_symlink()


# --- splits ---------------------------------------------------------------------------------------------------------------


def test_pictures_that_are_added_move_no_others():
    ids = [f"picture {number}" for number in range(2000)]
    drawn = draw_splits(ids, 0.1, 0.2, seed=5)
    sizes = {split: sum(value == split for value in drawn.values()) for split in ("train", "val", "test")}
    assert sizes["test"] == pytest.approx(400, abs=60) and sizes["val"] == pytest.approx(200, abs=45)
    more = draw_splits([*ids, *(f"new {number}" for number in range(500))], 0.1, 0.2, seed=5)
    assert {image_id: more[image_id] for image_id in ids} == drawn != draw_splits(ids, 0.1, 0.2, seed=6)
    assert draw_splits(ids[::-1], 0.1, 0.2, seed=5) == drawn


@pytest.mark.parametrize("val", [0.01, 0.45, 1])
@pytest.mark.parametrize("test", [0.01, 0.5, 1])
def test_every_split_has_pictures_however_few_there_are(val, test):
    for seed in range(20):
        for count in (4, 5, 9):
            drawn = list(draw_splits([f"{number}" for number in range(count)], val, test, seed).values())
            assert drawn.count("train") >= 2 and drawn.count("val") >= 1 and drawn.count("test") >= 1


def test_numbers_of_pictures_are_kept_to():
    drawn = list(draw_splits([f"{number}" for number in range(50)], 7, 0.2, 1).values())
    assert drawn.count("val") == 7 and 3 <= drawn.count("test") <= 18
    drawn = list(draw_splits([f"{number}" for number in range(50)], 20, 28, 1).values())
    assert (drawn.count("val"), drawn.count("test"), drawn.count("train")) == (20, 28, 2)


@pytest.mark.parametrize(("count", "val", "test", "expected"), [
    (3, 0.1, 0.1, "only 3 pictures with captions: at least 4 are needed, 2 of train, 1 of val, 1 of test"),
    (30, 0, 0.1, "val is 0: give a share of the pictures below 1, or a number of pictures"), (30, 0.1, 2.5, "test is 2.5: give a share"),
    (30, 0.5, 0.5, "val 0.5 and test 0.5 of 30 pictures leave too few for train"), (30, 20, 9, "leave too few for train"),
])
def test_what_is_wrong_with_the_sizes_of_splits_is_one_line(count, val, test, expected):
    assert expected in line_of(draw_splits, [f"{number}" for number in range(count)], val, test)


def with_splits(place, splits):
    path = place / "split.csv"
    path.write_text("image,caption,split\n" + "".join(f"{image_id},{quoted(text)},{splits(image_id)}\n" for image_id, text in ROWS))
    return path


def test_given_splits_win(tmp_path, store):
    names = {"000": "dev", "001": "Validation", "002": "test"}
    out = make_dataset(with_splits(tmp_path, lambda image_id: names.get(image_id[-3:], "train")), tmp_path / "out", store, val=0.5, seed=9)
    splits = read_json(out / "splits.json")
    assert splits["val"] == ["cats/000", "cats/001", "dogs/000", "dogs/001"] and splits["test"] == ["cats/002", "dogs/002"]
    assert "seed" not in read_json(out / "meta.json")["options"] and read_json(out / "meta.json")["splits_given"]


@pytest.mark.parametrize(("splits", "expected"), [
    (lambda image_id: "train" if image_id != "dogs/003" else "tset", "split.csv line 15 has the split 'tset': train, val and test are known"),
    (lambda image_id: "train" if image_id != "cats/002" else "", "split.csv line 5: this caption has no split and others have one"),
    (lambda image_id: "train", "split.csv gives val 0 pictures: at least 2 of train, 1 of val, 1 of test are needed"),
])
def test_what_is_wrong_with_given_splits_is_one_line(splits, expected, tmp_path, store):
    assert expected in line_of(make_dataset, with_splits(tmp_path, splits), tmp_path / "out", store)


def test_a_picture_in_two_splits_is_one_line(tmp_path, store):
    found = [OwnCaption(image_id, text, split="train" if number else "test", where=f"line {number}")
             for image_id in IDS for number, text in enumerate(["one cat", "two cats"])]
    assert "line 1: picture cats/000 is in test by one caption and in train by another" in line_of(make_dataset, found, tmp_path / "out", store)


# --- captions and pictures that do not fit ---------------------------------------------------------------------------------


def test_names_match_with_or_without_suffix_and_the_nearest_is_named(tmp_path, store, capsys):
    found = [OwnCaption(f"{image_id}.webp", text) for image_id, text in ROWS]
    make_dataset(found, tmp_path / "a", store)
    wrong = [*found, OwnCaption("Cats/003.jpg", "a cat", where="x line 9"), OwnCaption("horse", "a horse"), OwnCaption("horse", "the horse")]
    told = line_of(make_dataset, wrong, tmp_path / "b", store)
    assert told.startswith("captions has 3 captions of 2 pictures that are not in ") and "--partial" in told
    assert "'Cats/003.jpg' in x line 9 (did you mean 'cats/003'?), 'horse'; correct the names" in told
    make_dataset(wrong, tmp_path / "b", store, partial=True)
    assert "left out: 3 captions without a picture" in capsys.readouterr().err
    assert (tmp_path / "b" / "captions.jsonl").read_bytes() == (tmp_path / "a" / "captions.jsonl").read_bytes()
    assert read_json(tmp_path / "b" / "meta.json")["left_out"] == {"captions without a picture": 3}


@pytest.mark.parametrize("named", ["{folder}/{id}.jpg", "pictures/{id}.jpg", "pictures/{id}"])
def test_the_pictures_folder_may_stand_before_a_name(named, tmp_path, pictures, monkeypatch):
    found = [OwnCaption(named.format(folder=pictures, id=image_id), text) for image_id, text in ROWS]
    check_captions(found, pictures)
    monkeypatch.chdir(tmp_path)
    make_dataset(found, "out", images="pictures")
    assert open_split("out", "train", pixels=Pixels(size=4)).num_images >= 2
    assert "'pictures/pictures/cats/000'" in line_of(check_captions, [OwnCaption("pictures/pictures/cats/000", "a cat")], pictures)


def test_accents_are_one_however_they_are_written(tmp_path):
    ids = [f"cafe\u0301 {number}" for number in range(4)]
    out = make_dataset([OwnCaption(f"caf\u00e9 {number}.jpg", "un cafe\u0301") for number in range(4)], tmp_path / "out",
                       write_regions(tmp_path / "s.h5", ids))
    assert sorted(sum(read_json(out / "splits.json").values(), [])) == ids and "caf\u00e9" in open_split(out, "train").vocabulary


def test_pictures_without_captions_are_one_line(tmp_path, store, capsys):
    found = [OwnCaption(image_id, text) for image_id, text in ROWS if image_id not in IDS[:5]]
    told = line_of(make_dataset, found, tmp_path / "out", store)
    assert "captions has no captions of 5 of the 12 pictures in " in told and "cats/000, cats/001 and cats/002 among them: write some" in told
    out = make_dataset(found, tmp_path / "out", store, partial=True)
    assert sum(map(len, read_json(out / "splits.json").values())) == 7 and "left out: 5 pictures without captions" in capsys.readouterr().err
    assert "only 1 picture with captions: at least 4" in line_of(make_dataset, found[:1], tmp_path / "few", store, partial=True)


def test_broken_pictures_and_pictures_without_regions_are_named_as_such(tmp_path, pictures):
    store = tmp_path / "some.h5"
    with RegionWriter(store, IDS[:10], 1, 16, "made up", boxes=False, skipped={IDS[10]: "the file is empty"}) as writer:
        for row in range(9):
            writer.write(row, np.ones((1, 16)))
        writer.leave_out(9, "image file is truncated")
    told = line_of(make_dataset, csv_file(tmp_path), tmp_path / "out", store)
    assert "'dogs/005.jpg' in captions.csv line 18 (did you mean 'dogs/004'?); correct the names" in told and "dogs/003" not in told
    told = line_of(make_dataset, csv_file(tmp_path), tmp_path / "out", store, pictures)
    assert ("captions.csv has captions of 2 pictures that the extraction left out as broken: dogs/003 (image file is truncated), "
            "dogs/004 (the file is empty); mend them and extract again, or leave them out with --partial") in told
    found = [OwnCaption(image_id, text) for image_id, text in ROWS if image_id not in IDS[9:11]]
    told = line_of(make_dataset, found, tmp_path / "out", store, pictures)
    assert "captions has 2 captions of 1 picture that " in told and "has no regions of, dogs/005: extract again" in told
    out = make_dataset(csv_file(tmp_path), tmp_path / "out", store, pictures, partial=True, progress=False)
    assert sum(map(len, read_json(out / "splits.json").values())) == 9
    os.remove(pictures / "cats" / "002.jpg")
    assert "the pictures' folder lacks 1 of the 9 pictures" in line_of(make_dataset, found, tmp_path / "out", store, pictures, partial=True)


def test_captions_are_checked_before_the_extraction(tmp_path, pictures):
    check_captions(csv_file(tmp_path), pictures)
    (pictures / "one.bmp").write_bytes(b"not read here")
    assert "has no captions of 1 of the 13 pictures in " in line_of(check_captions, csv_file(tmp_path), pictures)
    check_captions(csv_file(tmp_path), pictures, partial=True)
    assert "leave too few for train" in line_of(check_captions, csv_file(tmp_path), pictures, val=6, test=6, partial=True)


def test_empty_captions_are_named_or_left_out(tmp_path, store, capsys):
    place = folder_of_text(tmp_path / "in")
    (place / "cats" / "001.txt").write_text("A cat.\n\n  ...  \nA mat.\n")
    assert "cats/001.txt line 2: the caption '' has no word in it; write one, or leave such captions out with --skip-empty" in line_of(
        make_dataset, place, tmp_path / "out", store)
    out = make_dataset(place, tmp_path / "out", store, skip_empty=True)
    assert [row["caption_id"] for row in read_jsonl(out / "captions.jsonl") if row["image_id"] == "cats/001"] == ["cats/001#0", "cats/001#3"]
    assert "left out: 2 captions without a word" in capsys.readouterr().err
    (place / "cats" / "001.txt").write_text("")
    assert "cats/001.txt line 1: the caption ''" in line_of(make_dataset, place, tmp_path / "out", store)
    assert "has no captions of 1 of the 12 pictures" in line_of(make_dataset, place, tmp_path / "out", store, skip_empty=True)


def test_repeated_captions_are_kept_and_told(tmp_path, store, capsys):
    found = [OwnCaption(image_id, text) for image_id, text in [*ROWS, (IDS[0], f" {ROWS[0][1]}  ")]]
    out = make_dataset(found, tmp_path / "out", store)
    told = capsys.readouterr().err
    assert "repeated, and kept: 1 caption like another one of the same picture" in told
    assert "train 10 pictures, val 1 picture, test 1 picture\n" in told and "val and test of fewer than 20 pictures: what is" in told
    assert len(read_jsonl(out / "captions.jsonl")) == len(ROWS) + 1


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("a.csv", "image,caption\na,A dog\xff\n".encode("latin-1"), "a.csv is not UTF-8 text (invalid start byte at byte 21): save it as UTF-8"),
    ("a.csv", b"a.jpg,A dog.\n", "its first line, 'a.jpg,A dog.', must name a column of pictures"),
    ("a.csv", b"image,caption\na,A dog, a cat.\n", "a.csv line 2 has 3 columns and the header has 2: put a caption that has commas in it into"),
    ("a.csv", b'image,caption\na,"A dog.\nb,A cat.\n', "a.csv line 3 cannot be read (unexpected end of data): check its quotation marks"),
    ("a.csv", b"image,caption\n,A dog.\n", "a.csv line 2 names no picture"), ("a.csv", b"image,caption\n", "a.csv has no captions"),
    ("a.csv", b"", "its first line, '', must name a column"), ("a.tsv", b"file\ttext\na\n", "a.tsv line 2 has 1 columns and the header has 2: mend"),
    ("a.csv", b"image_name| comment_number| comment\nb.jpg| 4   A dog\n", "a.csv line 2 has 2 columns and the header has 3"),
    ("a.token", b"a.jpg#0\tA dog.\nb.jpg A cat.\n", "a.token line 2 is not as the first one, name.jpg#0, a tab and the caption"),
    ("a.jsonl", b'{"image": "a", "caption": "A dog."}\n{"image": "b"\n', "a.jsonl line 2 is not valid JSON"),
    ("a.jsonl", b'{"image": "a", "title": "A dog."}\n', "a.jsonl line 1 must have a key of the picture and one of its captions"),
    ("a.jsonl", b'{"image": "a", "captions": ["A dog.", 3]}\n', "a.jsonl line 1: the picture's name and its captions must be text"),
    ("a.jsonl", b'{"image": "a", "captions": ["A", "B"], "caption_id": 3}\n', "a.jsonl line 1 has one caption id for 2 captions"),
    ("a.json", b'{"images": [', "a.json line 1 is not valid JSON"), ("a.json", b'{"a": "A dog."}', "a.json is not COCO's captions"),
    ("a.json", b'{"images": [{"filename": "a.jpg", "sentences": []}]}', "a.json looks like one of Karpathy's files"),
    ("a.json", b'{"images": [{"id": 3}], "annotations": []}', "a.json image number 1 lacks file_name: mend it"),
    ("a.json", b'{"images": [], "annotations": [{"image_id": 3, "caption": "A"}]}', 'is of image 3, which "images" does not list'),
    ("a.pdf", b"", "a.pdf is of no known kind of captions"),
])
def test_what_cannot_be_read_is_one_line(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert expected in line_of(read_captions, tmp_path / name)


def test_no_captions_and_ids_that_come_twice_are_one_line(tmp_path, store):
    assert "no captions" in line_of(read_captions, tmp_path / "absent.csv")
    (tmp_path / "in").mkdir()
    assert "has no .txt files" in line_of(read_captions, tmp_path / "in")
    path = tmp_path / "ids.csv"
    path.write_text("image,sentid,caption\n" + "".join(f"{image_id},{number % 4},{quoted(text)}\n" for number, (image_id, text) in enumerate(ROWS)))
    assert "ids.csv line 6: the caption id 0 is there twice, first in ids.csv line 2" in line_of(make_dataset, path, tmp_path / "out", store)


def test_only_what_is_quoted_as_a_whole_is_quoted_in_a_table_of_tabs(tmp_path):
    path = tmp_path / "signs.tsv"
    path.write_text('file\ttext\na\t"Stop" beside "Go"\nb\t"A sign ""Stop"""\nc\tA "sign\n')
    assert [caption.text for caption in read_captions(path)] == ['"Stop" beside "Go"', 'A sign "Stop"', 'A "sign']


def test_line_separators_of_the_web_are_white_space(tmp_path, store):
    text = "A cat\u2028on a\x85 mat."
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"image": image_id, "caption": text}, ensure_ascii=False) + "\n" for image_id in IDS))
    assert {row["text"] for row in read_jsonl(make_dataset(path, tmp_path / "out", store) / "captions.jsonl")} == {"A cat on a mat."}
