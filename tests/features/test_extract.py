"""A folder of pictures to a region file: what goes in and comes out, broken pictures, and everything that can be wrong around it."""

import errno
import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_for_extraction import Deadly, Stopping, Toy, write_pictures
from made_pictures import as_nobody, bomb, cut_short, noise, oriented, ramp, turned_at_its_end
from PIL import Image
from tiny_backbones import make_backbone

from itm_lib.data import RegionStore, regions
from itm_lib.data.pictures import read_picture
from itm_lib.features import extract as module
from itm_lib.features.backbones import open_backbone, reopen_backbone
from itm_lib.features.extract import extract, extract_picture, plan_batches
from itm_lib.files import InputError, held

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_extract import make_pictures, measure  # noqa: E402

TOLD = ["odd/p05.jpg: the file is empty", "even/p06.jpg: the backbone finds nothing in it", "odd/p03.jpg: image file is truncated"]


def run(images, out, backbone=None, **options):
    return extract(images, backbone or Toy(), out, **{"batch_size": 3, "progress": False, **options})


def line(make):
    """The one line that a user sees."""
    with pytest.raises(InputError) as error:
        make()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def images(tmp_path):
    return write_pictures(tmp_path / "pictures")


@pytest.fixture
def good(tmp_path):
    return write_pictures(tmp_path / "good", 7, broken=False)


# --- what comes out -------------------------------------------------------------------------------------------------------


def test_every_picture_has_the_regions_of_its_own(good, tmp_path):
    backbone = Toy()
    made = run(good, tmp_path / "new" / "store.h5", backbone)
    store = RegionStore(made.path)
    assert store.image_ids == ["even/p00", "even/p02", "even/p04", "even/p06", "odd/p01", "odd/p03", "odd/p05"] and store.verify() == 7
    for row, image_id in enumerate(store.image_ids):
        alone = extract_picture(backbone, good / f"{image_id}.jpg")
        count = len(alone.features)
        assert store.num_regions[row] == count
        together = store.features([row])[0, :count]
        assert np.allclose(together[:, [0, 1, 2, 3, 5]], alone.features[:, [0, 1, 2, 3, 5]], atol=1e-3)
        assert (store.boxes([row])[0, :count] == alone.boxes).all()
    assert {**store.attrs, "source": ""} == {"extractor": "toy", **backbone.settings, "source": "", "images": str(good.resolve())}
    assert (made.images, made.regions, made.dim, made.skipped, made.kept) == (7, 8, 6, {}, False)
    assert made.seconds > 0 and np.isclose(made.pictures_per_second, 7 / made.seconds)
    assert made.summary() == (f"{made.path}: 7 pictures, 8 regions of 6 numbers, {made.path.stat().st_size / 2**20:,.1f} MiB; "
                              f"{made.seconds:,.1f} s, {made.pictures_per_second:,.1f} pictures/s")


def test_batches_are_of_one_input_size_and_known_from_sizes_alone():
    sizes = [(32, 48), (16, 16), (32, 48), (32, 48), (16, 16), (48, 32)]
    assert plan_batches(sizes, 2) == [[0, 2], [1, 4], [3], [5]] and plan_batches(sizes, 8) == [[0, 2, 3], [1, 4], [5]]
    assert plan_batches([], 4) == []


def test_batches_in_fact(good, tmp_path):
    backbone = Toy()
    run(good, tmp_path / "store.h5", backbone, batch_size=2)
    assert sorted(backbone.batches) == [(1, 3, 32, 48), (2, 3, 32, 48), (2, 3, 64, 32), (2, 3, 64, 64)]


def test_any_number_of_workers_makes_the_same_file(images, tmp_path, capsys):
    told = []
    for workers in (0, 1, 2):
        run(images, tmp_path / f"{workers}.h5", workers=workers)
        told.append(capsys.readouterr().err)
    first = (tmp_path / "0.h5").read_bytes()
    assert first == (tmp_path / "1.h5").read_bytes() == (tmp_path / "2.h5").read_bytes() and told[0] == told[1] == told[2]


def test_progress_shows_pictures_a_second_and_the_time_left(good, tmp_path, capsys):
    run(good, tmp_path / "store.h5", progress=True)
    said = capsys.readouterr().err
    assert "regions by toy" in said and "7/7" in said and "picture/s]" in said and "check store.h5" in said and "<" in said
    assert "read headers" not in said  # it is quick


def test_a_finished_file_is_kept(images, tmp_path):
    first = run(images, tmp_path / "store.h5")
    content, backbone = first.path.read_bytes(), Toy()
    again = run(images, tmp_path / "store.h5", backbone, batch_size=5, workers=1)
    assert again.kept and backbone.batches == [] and first.path.read_bytes() == content
    assert (again.images, again.skipped, again.regions, again.dim) == (first.images, first.skipped, 8, 6)
    assert again.summary().endswith("store.h5: 10 pictures, 3 skipped, 8 regions of 6 numbers, 0.0 MiB; nothing to do")


def test_other_pictures_weights_or_damage_make_it_anew(good, tmp_path):
    run(good, tmp_path / "store.h5")
    assert not run(good, tmp_path / "store.h5", Toy("w1")).kept
    noise(20, 20, 99).save(good / "odd" / "p01.jpg")
    assert not run(good, tmp_path / "store.h5", Toy("w1")).kept
    noise(20, 20, 99).save(good / "new.png")
    assert run(good, tmp_path / "store.h5", Toy("w1")).images == 8
    whole = (tmp_path / "store.h5").read_bytes()
    (tmp_path / "store.h5").write_bytes(whole[:3000] + b"?" + whole[3001:])
    assert not run(good, tmp_path / "store.h5", Toy("w1")).kept and (tmp_path / "store.h5").read_bytes() == whole
    (tmp_path / "store.h5").write_text("not a region file")
    assert not run(good, tmp_path / "store.h5", Toy("w1")).kept and (tmp_path / "store.h5").read_bytes() == whole


def test_the_old_file_stays_until_the_new_one_is_whole(good, tmp_path):
    old = run(good, tmp_path / "store.h5").path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(good, tmp_path / "store.h5", Stopping(2, KeyboardInterrupt(), weights="w1"))
    assert (tmp_path / "store.h5").read_bytes() == old
    run(good, tmp_path / "store.h5", Toy("w1"))
    assert RegionStore(tmp_path / "store.h5").attrs["weights"] == "w1"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.h5.lock", "good", "store.h5"]


def test_what_was_written_is_read_before_it_takes_the_old_files_place(good, tmp_path, monkeypatch):
    old = run(good, tmp_path / "store.h5").path.read_bytes()
    put = regions.RegionWriter._put
    monkeypatch.setattr(regions.RegionWriter, "_put", lambda self, place, value: put(self, place, value * 2 if value.dtype == "<f2" else value))
    assert line(lambda: run(good, tmp_path / "store.h5", Toy("w1"))) == (
        f"{tmp_path / 'store.h5'}: the regions of image even/p00 are not what was written; write the file again")
    assert (tmp_path / "store.h5").read_bytes() == old
    monkeypatch.undo()
    backbone = Toy("w1")
    assert run(good, tmp_path / "store.h5", backbone).images == 7 and len(backbone.batches) == 3, "all of it is made again"


# --- broken and unusual pictures ------------------------------------------------------------------------------------------


def test_broken_pictures_are_told_and_left_out(images, tmp_path, capsys):
    made = run(images, tmp_path / "store.h5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and all(said.startswith(f"skipped {images / part}") for said, part in zip(lines, TOLD))
    store = RegionStore(made.path)
    assert made.images == len(store) == 10 and store.verify() == 10 and not {"odd/p03", "odd/p05", "even/p06"} & set(store.image_ids)
    assert json.loads(store.attrs["skipped"]) == made.skipped and list(made.skipped) == ["even/p06", "odd/p03", "odd/p05"]
    assert made.skipped["odd/p05"] == "the file is empty" and str(tmp_path) not in "".join(made.skipped.values())
    assert ": 10 pictures, 3 skipped, 8 regions" in made.summary()


def test_a_broken_picture_costs_the_others_nothing(images, tmp_path):
    """Headers tell of some, data of others; the rest have the regions that they have without them, but for the size of batches."""
    run(images, tmp_path / "store.h5")
    for name in ("odd/p03", "odd/p05", "even/p06"):
        (images / f"{name}.jpg").unlink()
    run(images, tmp_path / "clean.h5")
    some, clean = RegionStore(tmp_path / "store.h5"), RegionStore(tmp_path / "clean.h5")
    assert some.image_ids == clean.image_ids and (some.boxes(range(10)) == clean.boxes(range(10))).all()
    assert (some.features(range(10))[..., :4] == clean.features(range(10))[..., :4]).all()


def test_where_all_are_broken_nothing_is_written(tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(bomb())
    assert line(lambda: run(folder, tmp_path / "store.h5")) == (
        f"none of the 2 pictures in {folder} can be read, a: the file is empty: fetch them again")
    noise(40, 40).save(folder / "c.jpg")
    cut_short(folder / "c.jpg")
    assert line(lambda: run(folder, tmp_path / "store.h5")).startswith(
        f"{tmp_path / 'store.h5'}: no picture is left of 1, c: image file is truncated")
    assert not (tmp_path / "store.h5").exists()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 5 and told[1].startswith(f"skipped {folder / 'b.png'}: Image size (90000000000 pixels) exceeds limit")


def test_pictures_of_all_kinds(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (1, 1), "white").save(folder / "one.png")
    Image.new("CMYK", (20, 20), (0, 0, 60, 0)).save(folder / "cmyk.jpg")
    Image.fromarray(np.linspace(0, 65535, 400).reshape(20, 20).astype(np.uint16)).save(folder / "sixteen.png")
    Image.new("RGBA", (20, 20), (9, 9, 9, 0)).save(folder / "clear.webp", lossless=True)
    (folder / "text.jpg").write_text("no picture")
    made = run(folder, tmp_path / "store.h5")
    store = RegionStore(made.path)
    assert store.image_ids == ["clear", "cmyk", "one", "sixteen"] and made.skipped == {"text": "no kind of picture that is known"}
    clear, cmyk, one, sixteen = store.features(range(4))[:, 0, :3]
    assert (clear == 1).all() and (one == 1).all() and np.allclose(sixteen, 0.5, atol=0.01) and cmyk[0] > 0.9 > 0.85 > cmyk[2]


def test_boxes_are_those_of_the_upright_picture(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    stored = Image.new("RGB", (64, 32), (90, 90, 90))  # as the camera held it: white at the top left
    stored.paste((255, 255, 255), (0, 0, 16, 16))
    stored.save(folder / "turned.jpg", quality=100, exif=oriented(6))
    backbone = Toy()
    store = RegionStore(run(folder, tmp_path / "store.h5", backbone).path)
    assert backbone.batches == [(1, 3, 64, 32)] and store.boxes([0])[0, 0].tolist() == [0.5, 0, 1, 0.25]  # turned clockwise: top right
    assert (extract_picture(backbone, Image.open(folder / "turned.jpg")).boxes[0] == [0.5, 0, 1, 0.25]).all()


def test_a_picture_whose_header_says_another_size_than_its_data(good, tmp_path):
    """It is put into its batch by its header and computed by itself."""
    turned_at_its_end(good / "turned.png", ramp(40, 30))
    backbone = Toy()
    assert run(good, tmp_path / "store.h5", backbone, batch_size=8).images == 8 and (1, 3, 48, 32) in backbone.batches


def test_one_picture_by_itself(good):
    backbone = Toy()
    by_path = extract_picture(backbone, good / "odd" / "p01.jpg")
    opened = extract_picture(backbone, Image.open(good / "odd" / "p01.jpg").convert("RGBA"))
    assert (by_path.features == opened.features).all() and by_path.features.shape[1] == 6
    assert line(lambda: extract_picture(backbone, Image.new("L", (5, 5)))).startswith("this picture has no regions: the backbone finds nothing")


# --- where it is written --------------------------------------------------------------------------------------------------


def test_places_that_will_not_do_are_one_line(good, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "file").write_text("")
    assert line(lambda: run(good, tmp_path / "folder.h5")) == (
        f"{tmp_path / 'folder.h5'} is a folder: give the name of a file in it, {tmp_path / 'folder.h5' / 'store.h5'}")
    assert line(lambda: run(good, tmp_path / "store.npy")) == f"{tmp_path / 'store.npy'}: a region file ends in .h5, give {tmp_path / 'store.h5'}"
    assert line(lambda: run(good, tmp_path / "file" / "store.h5")).startswith(f"{tmp_path / 'file' / 'store.h5'} cannot be written (")
    assert line(lambda: run(good, tmp_path / "store.h5", batch_size=0)) == "batch_size is 0: a batch has at least 1 picture"
    assert line(lambda: run(good, tmp_path / "store.h5", workers=-1)) == "workers is -1: give 0 or more processes"
    assert line(lambda: run(tmp_path / "folder.h5", tmp_path / "store.h5")).startswith(f"{tmp_path / 'folder.h5'} has no pictures")
    assert line(lambda: run(tmp_path / "none", tmp_path / "store.h5")) == f"no folder of pictures {tmp_path / 'none'}: check the path"
    assert not (tmp_path / "store.h5").exists()


def test_a_folder_that_may_not_be_written_or_read_is_one_line():
    with tempfile.TemporaryDirectory() as temporary:
        folder = write_pictures(Path(temporary) / "pictures", 2, broken=False)
        os.chmod(temporary, 0o755)
        for out in (folder.parent / "store.h5", folder.parent / "new" / "store.h5"):
            said = as_nobody(lambda out=out: line(lambda: run(folder, out)))
            assert said.startswith(f"{out} cannot be written (") and said.endswith("): check the path and its permissions")
        os.chmod(folder, 0)
        assert as_nobody(lambda: line(lambda: run(folder, folder.parent / "store.h5"))) == (
            f"folder {folder} cannot be read (Permission denied): change its permissions")
        os.chmod(folder, 0o755)


def test_two_extractions_into_one_file_are_refused(good, tmp_path):
    with held(tmp_path / ".store.h5.lock", "held"):
        assert line(lambda: run(good, tmp_path / "store.h5")) == (
            f"{tmp_path / 'store.h5'} is being written by another extraction: wait for it, or give another --out")
    assert run(good, tmp_path / "store.h5").images == 7


def test_too_little_room_is_told_before_anything_is_written(good, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    assert line(lambda: run(good, tmp_path / "store.h5")) == f"{tmp_path / 'store.h5'} needs 0.0 GiB and 0.0 are free: make room"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".store.h5.lock"]


def test_a_file_size_limit_is_one_line_and_the_old_file_stays(images, tmp_path):
    """The system's own limit on files, in a process of its own, as a full disk would be."""
    old = run(images, tmp_path / "store.h5").path.read_bytes()
    write_pictures(images, 200)

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        return line(lambda: run(images, tmp_path / "store.h5"))

    said = as_itself(limited)
    assert said.startswith(f"{tmp_path / 'store.h5'} cannot be written (") and said.endswith("): make room, and start the same again")
    assert (tmp_path / "store.h5").read_bytes() == old and not list(tmp_path.glob("*.part"))
    assert run(images, tmp_path / "store.h5").images == 197


def as_itself(function):
    """What ``function`` returns in a process of its own."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(theirs, function().encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


class FullDisk:
    """A file on a disk that is full after ``writes`` more writes, and at half of one."""

    def __init__(self, file, writes):
        self.file, self.writes = file, writes

    def write(self, value):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(value[: len(value) // 2] if self.writes == 0 else value)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("writes, again", [(1, 5), (10, 5), (24, 3), (45, 1), (47, 0), (60, 0)])
def test_a_disk_that_fills_up_on_the_way_loses_nothing(images, tmp_path, monkeypatch, writes, again):
    """Nor while the broken pictures' rows are taken out, which comes last. ``again``: batches, of five, that had to be computed again."""
    expected = run(images, tmp_path / "whole.h5").path.read_bytes()
    left, made = [writes], []
    init = regions.RegionWriter.__init__

    def full(self, *args, **options):
        init(self, *args, **options)
        self._file = FullDisk(self._file, left[0] - sum(file.taken() for file in made))
        self._file.taken = lambda file=self._file, start=self._file.writes: start - file.writes
        made.append(self._file)

    monkeypatch.setattr(regions.RegionWriter, "__init__", full)
    assert line(lambda: run(images, tmp_path / "store.h5")) == (
        f"{tmp_path / 'store.h5'} cannot be written ([Errno 28] No space left on device): make room, and start the same again")
    monkeypatch.undo()
    assert not (tmp_path / "store.h5").exists()
    backbone = Toy()
    run(images, tmp_path / "store.h5", backbone)
    assert (tmp_path / "store.h5").read_bytes() == expected and len(backbone.batches) == again


# --- memory, processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")])
def test_memory_that_does_not_suffice_is_one_line_and_what_is_there_is_kept(good, tmp_path, error):
    assert line(lambda: run(good, tmp_path / "store.h5", Stopping(2, error))) == (
        f"{tmp_path / 'store.h5'}: no memory for batches of 3 pictures: what was extracted is kept, start the same again with a smaller "
        "--batch-size or fewer --workers")
    backbone = Toy()
    assert run(good, tmp_path / "store.h5", backbone, batch_size=1).images == 7 and len(backbone.batches) == 2


def test_other_errors_of_a_backbone_are_as_they_were(good, tmp_path):
    with pytest.raises(RuntimeError, match="^mat1 and mat2$"):
        run(good, tmp_path / "store.h5", Stopping(0, RuntimeError("mat1 and mat2")))


def test_a_worker_that_is_killed_is_one_line(good, tmp_path):
    said = line(lambda: run(good, tmp_path / "store.h5", Deadly(), workers=1))
    assert said.startswith(f"{tmp_path / 'store.h5'}: a process that reads pictures was ended (DataLoader worker (pid")
    assert said.endswith("): what was extracted is kept, start the same again with fewer --workers")
    assert run(good, tmp_path / "store.h5").images == 7


def test_no_more_workers_than_cpus(good, tmp_path, monkeypatch):
    asked, read = [], module._read_batches
    monkeypatch.setattr(module, "usable_cpus", lambda: 1)
    monkeypatch.setattr(module, "_read_batches", lambda reader, batches, workers, pin: asked.append(workers) or read(reader, batches, 0, pin))
    run(good, tmp_path / "store.h5", workers=8)
    assert asked == [1]


# --- real backbones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, regions_asked", [("detr", 5), ("vit", None)])
def test_backbones_of_transformers(kind, regions_asked, good, tmp_path):
    """Any batch size and number of workers; the file names the backbone, which then reads one more picture."""
    backbone = open_backbone(make_backbone(kind, tmp_path / "model"), regions_asked)
    run(good, tmp_path / "one.h5", backbone, batch_size=1)
    run(good, tmp_path / "four.h5", backbone, batch_size=4)
    run(good, tmp_path / "workers.h5", backbone, batch_size=4, workers=1)
    assert (tmp_path / "four.h5").read_bytes() == (tmp_path / "workers.h5").read_bytes()
    one, four = RegionStore(tmp_path / "one.h5"), RegionStore(tmp_path / "four.h5")
    assert len(one) == 7 and one.max_regions == backbone.max_regions and (one.num_regions == four.num_regions).all()
    assert np.allclose(one.features(range(7)), four.features(range(7)), rtol=2e-3, atol=2e-3)
    assert np.allclose(one.boxes(range(7)), four.boxes(range(7)), atol=1e-4)
    again = extract_picture(reopen_backbone(one.attrs), good / "odd" / "p01.jpg")
    row = one.row("odd/p01")
    assert np.allclose(again.features, one.features([row])[0, : one.num_regions[row]], rtol=2e-3, atol=2e-3)
    assert read_picture(good / "odd" / "p01.jpg").size == (20, 60)
    assert run(good, tmp_path / "one.h5", backbone).kept


def test_the_benchmark_measures(tmp_path):
    images, model = make_pictures(tmp_path / "pictures", 3, 64, 48), make_backbone("resnet", tmp_path / "model")
    found = [measure(str(images), str(model), None, 2, workers, str(tmp_path / f"{workers}.h5")) for workers in (0, 1)]
    assert found[0]["digest"] == found[1]["digest"] and all(row["pictures_s"] > 0 and row["peak_mib"] > 50 for row in found)
    assert found[0]["worker_mib"] == 0 < found[1]["worker_mib"]
