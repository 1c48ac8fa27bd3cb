"""Importers: every published format becomes the same dataset, a killed import goes on, and what is wrong is one line."""

import json
import os
import signal
from dataclasses import replace

import h5py
import numpy as np
import pytest
from made_formats import HEIGHT, WIDTH, make_pictures, tsv_line, write_arrays, write_karpathy, write_scan_archive, write_tsv
from PIL import Image

from itm_lib.data import RegionStore, importers, open_split
from itm_lib.data.importers import DATASETS, import_karpathy, import_scan_archive, instructions, prepare
from itm_lib.data.pictures import Pixels
from itm_lib.data.regions import RegionWriter
from itm_lib.evaluation import open_split as open_any
from itm_lib.files import InputError, read_json, read_jsonl

QUIET = {"progress": False, "min_count": 1}
SIZE = np.array([WIDTH, HEIGHT, WIDTH, HEIGHT], np.float32)


@pytest.fixture
def pictures():
    return make_pictures()


@pytest.fixture
def varied():
    return make_pictures(varied=True)


@pytest.fixture
def archive(tmp_path, pictures):
    return write_scan_archive(tmp_path / "f30k_precomp", pictures)


@pytest.fixture
def coco(tmp_path, varied):
    """Karpathy's file and the detector's .tsv."""
    return write_karpathy(tmp_path / "dataset_coco.json", varied), write_tsv(tmp_path / "features.tsv", varied)


def line_of(call, *arguments, **options):
    with pytest.raises(InputError) as error:
        call(*arguments, **{**QUIET, **options})
    assert "\n" not in str(error.value)
    return str(error.value)


def check_against(out, pictures, name=lambda split, number, picture: str(picture.number), boxes=True):
    """Every picture of ``out`` has its features, boxes and captions."""
    for split, expected in pictures.items():
        dataset = open_any(out, split, in_memory=False)
        assert dataset.regions.image_ids == [name(split, number, picture) for number, picture in enumerate(expected)]
        assert dataset.regions.has_boxes is boxes
        for row, picture in enumerate(expected):
            count = len(picture.features)
            assert dataset.regions.num_regions[row] == count
            assert (dataset.regions.features([row])[0, :count] == picture.features.astype(np.float16)).all()
            assert [dataset.texts[caption] for caption in dataset.captions_of_image[row]] == picture.captions
            if boxes:
                np.testing.assert_allclose(dataset.regions.boxes([row])[0, :count], picture.boxes / SIZE, rtol=1e-6)


# --- SCAN's archive -------------------------------------------------------------------------------------------------------


def by_place(split, number, picture):
    return f"{split}-{number:05d}"


@pytest.mark.parametrize("repeated", [("val", "test"), (), ("train", "val", "test")])
def test_the_archive_has_each_picture_once_however_often_it_stands_there(tmp_path, pictures, repeated):
    source = write_scan_archive(tmp_path / "in", pictures, repeated)
    out = import_scan_archive(source, tmp_path / "out", "small", **QUIET)
    check_against(out, pictures, by_place, boxes=False)
    store = RegionStore(out / "regions" / "val.h5")
    with pytest.raises(InputError, match="val.h5 has no boxes: where its regions lie in the picture is not known"):
        store.boxes([0])
    assert open_split(out, "val").caption_ids[:6] == [*(f"val-00000#{place}" for place in range(5)), "val-00001#0"]
    meta = read_json(out / "meta.json")
    assert {source["file"]: source["bytes"] for source in meta["sources"]} == {path.name: path.stat().st_size for path in source.iterdir()}
    assert meta["splits"] == {"train": {"images": 8, "captions": 40}, "val": {"images": 3, "captions": 15, "of_images": 3},
                              "test": {"images": 4, "captions": 20}}
    assert meta["regions"] == {"max_regions": 4, "dim": 6, "boxes": False}


def test_testall_is_taken_before_test_and_val_is_cut(tmp_path, pictures):
    source = write_scan_archive(tmp_path / "in", pictures, test="testall")
    np.save(source / "test_ims.npy", np.zeros((5, 4, 6), np.float32))
    (source / "test_caps.txt").write_text("a dog\n" * 5)
    out = import_scan_archive(source, tmp_path / "out", "small", val_images=2, **QUIET)
    check_against(out, {"test": pictures["test"], "val": pictures["val"][:2]}, by_place, boxes=False)
    assert read_json(out / "meta.json")["splits"]["val"] == {"images": 2, "captions": 10, "of_images": 3}


def test_arrays_can_be_used_where_they_are(tmp_path, archive, pictures):
    out = import_scan_archive(archive, tmp_path / "out", "small", link=True, **QUIET)
    assert (out / "regions" / "val.npy").is_symlink() and not list((out / "regions").glob("*.h5"))
    dataset = open_split(out, "val", in_memory=False)
    assert dataset.num_images == 3 and (dataset.regions.features([2, 0]) == np.stack([pictures["val"][k].features for k in (2, 0)])).all()
    import_scan_archive(archive, out, "small", **QUIET)  # and copied after all
    check_against(out, pictures, by_place, boxes=False)
    assert not list((out / "regions").glob("*.npy")) and not list((out / "regions").glob("*.json"))


def test_files_of_ids_name_the_pictures(tmp_path, archive, pictures):
    for split, found in {"train": pictures["train"], "dev": pictures["val"], "test": pictures["test"]}.items():
        repeat = 5 if split == "dev" else 1
        (archive / f"{split}_ids.txt").write_text("".join(f"{picture.number}\n" * repeat for picture in found))
    out = import_scan_archive(archive, tmp_path / "out", "small", **QUIET)
    check_against(out, pictures, boxes=False)
    assert open_split(out, "val").caption_ids[0] == f"{pictures['val'][0].number}#0"
    (archive / "dev_ids.txt").write_text("1\n2\n")
    assert "dev_ids.txt: 2 different ids for 3 pictures; remove the *_ids.txt files to number the pictures instead" in line_of(
        import_scan_archive, archive, tmp_path / "again", "small")
    (archive / "dev_ids.txt").write_text(f"1\n2\n{pictures['train'][0].number}\n")
    assert "is in train_ids.txt too" in line_of(import_scan_archive, archive, tmp_path / "again", "small")


def test_karpathys_file_names_the_archives_pictures(tmp_path, archive, pictures):
    path = write_karpathy(tmp_path / "dataset_coco.json", pictures, change=lambda rows: rows[::-1])
    for text in archive.glob("*_caps.txt"):
        text.write_text(text.read_text().lower().replace(".", " ."))
    out = import_scan_archive(archive, tmp_path / "out", "small", captions=path, **QUIET)
    val = open_split(out, "val")
    assert val.regions.image_ids == [str(picture.number) for picture in pictures["val"]] and set(map(int, val.caption_ids))
    sentid = {row["sentid"]: row["raw"] for image in read_json(path)["images"] for row in image["sentences"]}
    assert [sentid[int(caption_id)].lower().replace(".", " .") for caption_id in val.caption_ids] == val.texts
    other = write_karpathy(tmp_path / "dataset_other.json", make_pictures(seed=5))
    assert "lacks 8 of the 8 train pictures of the archive, by their captions; train-00000 among them" in line_of(
        import_scan_archive, archive, tmp_path / "again", "small", captions=other)


def damage_repeats(archive):
    rows = np.load(archive / "dev_ims.npy")
    rows[7, 0, 0] += 1
    np.save(archive / "dev_ims.npy", rows)


def damage_nan(archive):
    rows = np.load(archive / "train_ims.npy")
    rows[3, 0, 0] = np.nan
    np.save(archive / "train_ims.npy", rows)


def damage_large(archive):
    rows = np.load(archive / "train_ims.npy")
    rows[4, 1, 2] = 70000
    np.save(archive / "train_ims.npy", rows)


def shorten(name, share=0.9):
    def damage(archive):
        content = (archive / name).read_bytes()
        (archive / name).write_bytes(content[: int(len(content) * share)])
    return damage


def edit_caption(archive, text):
    lines = (archive / "dev_caps.txt").read_text().split("\n")
    (archive / "dev_caps.txt").write_text("\n".join([*lines[:3], text, *lines[4:]]))


@pytest.mark.parametrize("damage, message", [
    (damage_repeats, "dev_ims.npy: rows 5 and 7 differ, but where there are as many rows as captions each picture stands 5 times"),
    (damage_nan, "train.h5 row 3 (image train-00003): features are NaN or too large for float16"),
    (damage_large, "train.h5 row 4 (image train-00004): features are NaN or too large for float16"),
    (shorten("train_ims.npy"), "train_ims.npy is cut short: 8 rows need 896 bytes, it has 806; get it again"),
    (shorten("train_ims.npy", 0.01), "train_ims.npy cannot be read as .npy"),
    (lambda archive: np.save(archive / "dev_ims.npy", np.asfortranarray(np.load(archive / "dev_ims.npy"))), "column by column"),
    (lambda archive: np.save(archive / "dev_ims.npy", np.zeros((15, 4), np.float32)), "dev_ims.npy has the shape (15, 4): (rows, regions"),
    (lambda archive: np.save(archive / "dev_ims.npy", np.zeros((15, 4, 2), int)), "holds int64 of shape (15, 4, 2)"),
    (shorten("dev_caps.txt", 0.5), "dev_ims.npy has 15 rows and dev_caps.txt 8 captions"),
    (lambda archive: edit_caption(archive, ""), "dev_caps.txt line 4: the caption '' has no word in it; write one, or leave such"),
    (lambda archive: edit_caption(archive, "?!"), "dev_caps.txt line 4: the caption '?!' has no word in it"),
    (lambda archive: (archive / "dev_caps.txt").write_bytes(b"a dog\xff\n" * 15), "dev_caps.txt is not UTF-8 text (invalid start byte at byte 5)"),
    (lambda archive: (archive / "dev_caps.txt").unlink(), "has dev_ims.npy and no dev_caps.txt: get the captions too"),
    (lambda archive: (archive / "test_ims.npy").unlink(), "has no testall_ims.npy or test_ims.npy"),
])
def test_a_damaged_archive_is_one_line(tmp_path, archive, damage, message):
    damage(archive)
    assert message in line_of(import_scan_archive, archive, tmp_path / "out", "small")
    assert not (tmp_path / "out" / "splits.json").exists()


def test_captions_without_a_word_are_left_out_if_asked(tmp_path, archive):
    edit_caption(archive, "...")
    out = import_scan_archive(archive, tmp_path / "out", "small", skip_empty=True, **QUIET)
    val = open_split(out, "val")
    assert val.num_captions == 14 and val.caption_ids[:5] == ["val-00000#0", "val-00000#1", "val-00000#2", "val-00000#4", "val-00001#0"]


# --- Karpathy's splits with features --------------------------------------------------------------------------------------


def test_tsv_with_any_number_of_regions(tmp_path, coco, varied):
    out = import_karpathy(*coco, tmp_path / "out", "small", **QUIET)
    check_against(out, varied)
    assert open_split(out, "train").regions.image_ids[-1] == str(varied["train"][-1].number), "restval is for training"
    assert open_split(out, "val").caption_ids[0] == str(1000 + 8 * 6), "sentids"
    meta = read_json(out / "meta.json")
    assert [source["file"] for source in meta["sources"]] == ["dataset_coco.json", "features.tsv"] and meta["regions"]["boxes"]


def test_restval_and_more_captions_are_options(tmp_path, coco, varied):
    out = import_karpathy(*coco, tmp_path / "out", "small", restval=False, captions_per_image=None, **QUIET)
    train = open_split(out, "train")
    assert train.num_images == 7 and train.num_captions == 42 and str(varied["train"][-1].number) not in train.regions.image_ids


def test_several_tsv_files_and_foreign_pictures(tmp_path, coco, varied):
    (tmp_path / "parts").mkdir()
    lines = coco[1].read_bytes().splitlines(keepends=True)
    (tmp_path / "parts" / "a.tsv.0").write_bytes(b"".join(lines[:4]))
    (tmp_path / "parts" / "a.tsv.1").write_bytes(b"".join(lines[4:]) + tsv_line(replace(varied["test"][0], number=99999)))
    check_against(import_karpathy(coco[0], tmp_path / "parts", tmp_path / "out", "small", **QUIET), varied)


def test_lines_of_pictures_that_nobody_asks_for_may_be_damaged(tmp_path, coco, varied):
    """As in the published files of test2014: three pictures there have a second, broken line."""
    foreign = tsv_line(replace(varied["test"][0], number=99999))
    change_lines(lambda lines: [foreign, *lines, foreign, foreign[:-9]])(coco)
    check_against(import_karpathy(*coco, tmp_path / "out", "small", **QUIET), varied)


@pytest.mark.parametrize("suffix, boxes", [(".npz", True), (".npz", False), (".npy", False)])
def test_a_file_a_picture(tmp_path, coco, varied, suffix, boxes):
    source = write_arrays(tmp_path / "arrays", varied, suffix, boxes)
    check_against(import_karpathy(coco[0], source, tmp_path / "out", "small", **QUIET), varied, boxes=boxes)


def test_a_store_that_is_there(tmp_path, coco, varied):
    first = import_karpathy(*coco, tmp_path / "first", "small", **QUIET)
    check_against(import_karpathy(coco[0], first / "regions", tmp_path / "second", "small", **QUIET), varied)


def test_flickr_pictures_are_named_by_their_files(tmp_path, varied):
    path = write_karpathy(tmp_path / "dataset_flickr30k.json", varied, coco=False)
    out = import_karpathy(path, write_tsv(tmp_path / "f.tsv", varied), tmp_path / "out", "small", **QUIET)
    check_against(out, varied)


def test_pictures_alone_make_a_dataset_for_models_of_pixels(tmp_path, coco, varied):
    (tmp_path / "jpg" / "val2014").mkdir(parents=True)
    for picture in (picture for found in varied.values() for picture in found):
        Image.new("RGB", (8, 6)).save(tmp_path / "jpg" / "val2014" / picture.filename)
    out = import_karpathy(coco[0], None, tmp_path / "out", "small", images=tmp_path / "jpg", **QUIET)
    val = open_split(out, "val", pixels=Pixels(size=4))
    assert val.num_images == 3 and val[[0]].regions.shape == (1, 3, 4, 4)
    with pytest.raises(InputError, match="has pictures and no regions/val.h5: train a model of pixels on it, or extract its regions"):
        open_split(out, "val")
    (tmp_path / "jpg" / "val2014" / varied["test"][1].filename).unlink()
    assert f"has no picture val2014/{varied['test'][1].filename}" in line_of(import_karpathy, coco[0], None, tmp_path / "o2", "small",
                                                                             images=tmp_path / "jpg")


def change_lines(change):
    def damage(coco):
        lines = coco[1].read_bytes().splitlines(keepends=True)
        coco[1].write_bytes(b"".join(change(lines)))
    return damage


def in_line(number, change):
    return change_lines(lambda lines: [change(line) if place == number else line for place, line in enumerate(lines, 1)])


def in_field(number, column, change):
    def edit(line):
        fields = line.split(b"\t")
        fields[column] = change(fields[column])
        return b"\t".join(fields)
    return in_line(number, edit)


@pytest.mark.parametrize("damage, message", [
    (change_lines(lambda lines: [*lines[:-1], lines[-1][:-9]]), "features.tsv line 15 (image"),
    (change_lines(lambda lines: [*lines[:-1], lines[-1][:30]]), "has 5 columns, not 6 (image_id, image_w,"),
    (change_lines(lambda lines: [*lines, lines[3]]), "has features twice, in features.tsv line 4 and features.tsv line 16: remove one"),
    (change_lines(lambda lines: lines[1:]), "features.tsv has no features of 1 of 15 pictures,"),
    (change_lines(lambda lines: [*lines, b"12"]), "features.tsv line 16 is no line of a .tsv of features (image_id, image_w,"),
    (in_field(2, 5, lambda value: value[: len(value) // 8 * 4] + b"\n"), "features.tsv line 2 (image"),
    (change_lines(lambda lines: [*lines[:2], *(b"\t".join([*line.split(b"\t")[:5], b"AAAA" * 3]) for line in lines[2:3]), *lines[3:]]), "line 3"),
    (change_lines(lambda lines: []), "features.tsv has no lines: it is empty"),
    (in_field(2, 3, lambda value: b"9"), "do not fit num_boxes 9: it is damaged or cut short"),
    (in_field(2, 1, lambda value: b"wide"), "has no numbers as image_w, image_h and num_boxes"),
    (in_field(2, 2, lambda value: b"0"), "boxes on a picture of 200 x 0, which cannot be"),
    (in_field(2, 5, lambda value: b"*" + value[1:]), "features.tsv line 2 (image"),
    (in_field(2, 5, lambda value: b"AADAfw==" + value[8:]), "features.tsv line 2 (image"),
    (in_field(2, 5, lambda value: b"AADAfwAA" + value[8:]), "features are NaN or too large for float16; check the extractor"),
])
def test_a_damaged_tsv_is_one_line(tmp_path, coco, damage, message):
    damage(coco)
    assert message in line_of(import_karpathy, *coco, tmp_path / "out", "small")
    assert not (tmp_path / "out" / "splits.json").exists()


def test_a_line_without_end_is_no_tsv(tmp_path, coco, monkeypatch):
    monkeypatch.setattr("itm_lib.data.feature_files.LONGEST_LINE", 100)
    assert "features.tsv line 1 is no line of a .tsv of features" in line_of(import_karpathy, *coco, tmp_path / "out", "small")


def test_pictures_without_features_are_left_out_if_asked(tmp_path, coco, varied):
    change_lines(lambda lines: lines[1:])(coco)  # the last training picture
    out = import_karpathy(*coco, tmp_path / "out", "small", partial=True, **QUIET)
    check_against(out, {**varied, "train": varied["train"][:-1]})


@pytest.mark.parametrize("change, message", [
    (lambda rows: rows + [rows[0]], "is there twice: remove one of them"),
    (lambda rows: [*rows[:-1], {**rows[-1], "sentences": rows[0]["sentences"]}], "sentid 1000 is there twice"),
    (lambda rows: [{**rows[0], "split": "dev"}, *rows[1:]], "has the split 'dev': train, val, test, restval are known"),
    (lambda rows: [{**rows[0], "sentences": []}, *rows[1:]], "image number 0 lacks sentences"),
    (lambda rows: [{**rows[0], "sentences": [{"raw": "a dog"}]}, *rows[1:]], "a sentence lacks sentid or raw"),
    (lambda rows: [{**rows[0], "sentences": [{"raw": " \n", "sentid": 3}]}, *rows[1:]], "sentid 3: the caption '' has no word in it"),
    (lambda rows: [row for row in rows if row["split"] != "test"], "has no test pictures: train, val and test are needed"),
    (lambda rows: {}, "is not one of Karpathy's files"),
])
def test_a_wrong_json_is_one_line(tmp_path, coco, varied, change, message):
    path = write_karpathy(coco[0], varied, change=change)
    assert message in line_of(import_karpathy, path, coco[1], tmp_path / "out", "small")


def test_wrong_files_of_single_pictures_are_one_line(tmp_path, coco, varied):
    source = write_arrays(tmp_path / "arrays", varied)
    first = sorted(source.iterdir())[0]
    whole, read = first.read_bytes(), lambda: line_of(import_karpathy, coco[0], source, tmp_path / "out", "small")
    first.write_bytes(whole[: len(whole) // 2])
    assert f"{first} cannot be read (" in read()
    np.savez(first, one=np.zeros((2, 6)), two=np.zeros(3))
    assert "has the arrays one, two: the features must be called features or feat or feats or x" in read()
    np.savez(first, x=np.zeros(6))
    assert "has the shape (6,): a picture's features are (regions, numbers)" in read()
    np.savez(first, x=np.zeros((2, 7)))
    assert "has 7 numbers a region and" in read() and "6: give files of one detector" in read()
    np.savez(first, x=np.zeros((2, 6)), bbox=np.full((2, 4), 30.0))
    assert "boxes are in pixels, and image_w and image_h are not there" in read()
    first.write_bytes(whole)
    (source / "extra.tsv").write_bytes(b"")
    assert "holds several kinds of features" in read()


# --- stopped and gone on with ---------------------------------------------------------------------------------------------


def killed(call, rows, place="features"):
    """Run ``call`` in a fork that is killed while it writes ``place`` of its row number ``rows``."""
    child = os.fork()
    if not child:
        try:
            put, seen = RegionWriter._put, []

            def stop(self, offset, value):
                put(self, offset, value)
                if offset >= self._places[place] and value.nbytes == (4 * 6 * 2 if place == "features" else 4):
                    seen.append(offset)
                    if len(seen) == rows:
                        os.kill(os.getpid(), signal.SIGKILL)

            RegionWriter._put = stop
            call()
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it ended before the kill"


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")}


@pytest.mark.parametrize("rows", [1, 6, 10, 13])
def test_a_killed_import_goes_on_and_ends_with_the_same_bytes(tmp_path, coco, varied, rows, monkeypatch):
    whole = content(import_karpathy(*coco, tmp_path / "whole", "small", **QUIET))
    killed(lambda: import_karpathy(*coco, tmp_path / "out", "small", **QUIET), rows)
    assert not (tmp_path / "out" / "splits.json").exists() and list((tmp_path / "out" / "regions").glob("*.part"))
    written, write = [], RegionWriter.write
    monkeypatch.setattr(RegionWriter, "write", lambda self, row, *values: written.append(row) or write(self, row, *values))
    monkeypatch.setattr("itm_lib.data.feature_files._index_tsv", None)  # nothing is gone through twice
    out = import_karpathy(*coco, tmp_path / "out", "small", **QUIET)
    assert len(written) == 15 - (rows - 1), "the row that the kill cut is written again, no other"
    assert content(out) == whole and not list(out.rglob("*.part"))


def test_a_second_run_only_checks(tmp_path, archive, monkeypatch):
    out = import_scan_archive(archive, tmp_path / "out", "small", **QUIET)
    before = content(out)
    monkeypatch.setattr(RegionWriter, "write", None)
    assert content(import_scan_archive(archive, out, "small", **QUIET)) == before


def test_a_kept_row_that_was_damaged_is_written_again(tmp_path, archive):
    whole = content(import_scan_archive(archive, tmp_path / "whole", "small", **QUIET))
    killed(lambda: import_scan_archive(archive, tmp_path / "out", "small", **QUIET), 6)
    part = tmp_path / "out" / "regions" / "train.h5.part"
    with h5py.File(part, "r+") as file:
        file["features"][2, 0, 0] += 1
    assert content(import_scan_archive(archive, tmp_path / "out", "small", **QUIET)) == whole


def test_what_is_left_of_another_source_is_not_gone_on_with(tmp_path, archive, pictures):
    killed(lambda: import_scan_archive(archive, tmp_path / "out", "small", **QUIET), 6)
    rows = np.load(archive / "train_ims.npy") + 1
    np.save(archive / "train_ims.npy", rows)
    out = import_scan_archive(archive, tmp_path / "out", "small", **QUIET)
    assert (open_split(out, "train").regions.features([0])[0] == rows[0].astype(np.float16)).all()


def test_an_unreadable_part_is_begun_anew(tmp_path, archive):
    whole = content(import_scan_archive(archive, tmp_path / "whole", "small", **QUIET))
    (tmp_path / "out" / "regions").mkdir(parents=True)
    (tmp_path / "out" / "regions" / "train.h5.part").write_bytes(b"\x89HDF\r\n")
    (tmp_path / "out" / ".sources.json").write_text('{"cut')
    assert content(import_scan_archive(archive, tmp_path / "out", "small", **QUIET)) == whole


def test_one_import_at_a_time_and_one_dataset_a_folder(tmp_path, archive):
    with importers._folder(tmp_path / "out", "small", False):
        assert "is being written by another import" in line_of(import_scan_archive, archive, tmp_path / "out", "small")
    import_scan_archive(archive, tmp_path / "out", "small", **QUIET)
    assert "holds another dataset already (small): give another --out, or remove it" in line_of(
        import_scan_archive, archive, tmp_path / "out", "other")


# --- prepare --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_coco(monkeypatch):
    """COCO as if it had the sizes of the pictures made here."""
    for name in DATASETS:
        monkeypatch.setitem(DATASETS[name].expected, "train", 8)
        monkeypatch.setitem(DATASETS[name].expected, "val", 3)
        monkeypatch.setitem(DATASETS[name].expected, "test", 4)


def test_prepare_finds_out_what_the_source_is(tmp_path, coco, archive, small_coco, monkeypatch):
    monkeypatch.setenv("ITM_DATA", str(tmp_path / "data"))
    assert prepare("flickr30k", tmp_path, **QUIET) == tmp_path / "data" / "flickr30k"
    assert open_split(tmp_path / "data" / "flickr30k", "val").num_captions == 15
    for source, captions in ((coco[1], None), (coco[1], coco[0])):
        out = prepare("coco", source, tmp_path / "out", captions, **QUIET)
        assert open_split(out, "train").num_captions == 40


def test_prepare_tells_what_is_missing(tmp_path, coco, archive, small_coco):
    call = lambda *arguments, **options: line_of(prepare, *arguments, out=tmp_path / "out", **options)
    assert call("flikr30k", archive) == "no published dataset is called 'flikr30k'; did you mean 'flickr30k'?"
    assert "nothing to prepare coco from: give --source, or --captions and --images" in call("coco")
    assert "no dataset_flickr30k.json in" in call("flickr30k", coco[1])
    assert "check the path" in call("flickr30k", tmp_path / "none")
    assert "--link takes SCAN's archive as it is" in call("coco", coco[1], link=True)
    assert "val_images is 0: give at least 1" in call("coco", coco[1], val_images=0)
    assert "no word stands 999 times in the training captions" in call("coco", coco[1], min_count=999)
    assert "of no known kind of features" in call("coco", coco[0], captions=coco[0])


def test_sizes_are_those_of_the_papers_or_partial_is_said(tmp_path, coco, archive):
    line = line_of(prepare, "flickr30k", archive, tmp_path / "out")
    assert line == "flickr30k has 29,000 train pictures and here are 8: get what is missing, or give --partial if this is meant"
    assert "coco has 113,287 train pictures and here are 8" in line_of(prepare, "coco", coco[1], tmp_path / "out")
    assert open_split(prepare("flickr30k", archive, tmp_path / "out", partial=True, **QUIET), "val").num_images == 3


def test_too_few_captions_are_told(tmp_path, varied, coco, small_coco):
    write_karpathy(coco[0], varied, change=lambda rows: [{**rows[0], "sentences": rows[0]["sentences"][:3]}, *rows[1:]])
    line = line_of(prepare, "coco", coco[1], tmp_path / "out")
    assert "coco has 40 train captions, five a picture, and here are 38: get what is missing" in line


@pytest.mark.parametrize("name", ["flickr30k", "coco"])
def test_instructions_name_terms_places_and_commands(name):
    text = instructions(name)
    for part in ("terms:", "captions:", "features:", "kaggle.com/datasets/kuanghueilee/scan-features", f"dataset_{name}.json",
                 f"itm data prepare {name} --source {DATASETS[name].archive}", f"train {DATASETS[name].expected['train']:,}"):
        assert part in text, part
    assert max(map(len, text.splitlines())) <= 150


def test_captions_are_written_as_they_are(tmp_path, coco, varied):
    rows = read_jsonl(import_karpathy(*coco, tmp_path / "out", "small", **QUIET) / "captions.jsonl")
    expected = [text for found in varied.values() for picture in found for text in picture.captions]
    assert [row["text"] for row in rows] == expected and json.loads((tmp_path / "out" / "splits.json").read_text())
