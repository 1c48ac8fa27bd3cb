import json
import multiprocessing
import pickle
from types import SimpleNamespace

import h5py
import numpy as np
import psutil
import pytest
from made_for_data import write_regions

from itm_lib.data import RegionStore
from itm_lib.data.regions import RegionWriter, find_regions
from itm_lib.files import InputError, read_json, write_json


@pytest.fixture
def store_path(tmp_path):
    return write_regions(tmp_path / "r.h5", ["x", "y", "z"], [2, 3, 1])


@pytest.mark.parametrize("in_memory", [False, True])
def test_rows_come_in_the_order_asked_with_repeats(store_path, in_memory):
    store = RegionStore(store_path, in_memory=in_memory)
    features = store.features([2, 0, 2])
    assert features.shape == (3, 3, 4) and features.dtype == np.float32
    assert (features[0] == features[2]).all() and not (features[0] == features[1]).all()
    assert (features[0, 1:] == 0).all(), "rows past num_regions are zero"
    boxes = store.boxes([1, 1])
    assert boxes.shape == (2, 3, 4) and (boxes[..., 2:] > boxes[..., :2]).all()
    assert store.row("z") == 2 and store.attrs["extractor"] == "made up" and store.attrs["note"] == "for tests"


def test_a_pickled_store_reads_in_another_process(store_path):
    store = RegionStore(store_path)
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.features([0, 1]) == store.features([0, 1])).all()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError) as error:
        RegionStore(tmp_path / "none.h5")
    assert str(error.value) == f"no region file {tmp_path / 'none.h5'}: extract the features first (itm data or itm extract)"


def test_a_truncated_file_is_named(store_path):
    content = store_path.read_bytes()
    store_path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"r.h5 cannot be read as HDF5, perhaps cut short \(.*\); extract again") as error:
        RegionStore(store_path)
    assert "\n" not in str(error.value)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["features"] = np.zeros((1, 2, 3))
    with pytest.raises(InputError, match="other.h5 is no RegionStore, it lacks num_regions, image_ids; extract again"):
        RegionStore(tmp_path / "other.h5")


@pytest.mark.parametrize("in_memory", [False, True])
def test_nan_features_name_the_picture(store_path, in_memory):
    with h5py.File(store_path, "r+") as file:
        file["features"][1, 0, 0] = np.nan
    with pytest.raises(InputError, match="r.h5: features of image y are NaN or infinite; extract that picture again"):
        RegionStore(store_path, in_memory=in_memory).features([0, 1])


def test_an_unknown_picture_is_named(store_path):
    with pytest.raises(InputError, match="r.h5 has no image q: captions and regions are of different datasets"):
        RegionStore(store_path).row("q")


def test_counts_out_of_range_are_refused(store_path):
    with h5py.File(store_path, "r+") as file:
        file["num_regions"][0] = 9
    with pytest.raises(InputError, match="num_regions must lie in 1..3; extract again"):
        RegionStore(store_path)


def writer(path, ids=("x",)):
    return RegionWriter(path, list(ids), 2, 3, "made up")


@pytest.mark.parametrize(
    "features, boxes, message",
    [
        (np.full((1, 3), np.nan), np.zeros((1, 4)), "NaN or too large for float16"),
        (np.full((1, 3), 1e6), np.zeros((1, 4)), "NaN or too large for float16"),
        (np.zeros((3, 3)), np.zeros((3, 4)), "3 features, 3 boxes; need 1 to R of both"),
        (np.zeros((2, 3)), np.zeros((1, 4)), "2 features, 1 boxes; need 1 to R of both"),
        (np.zeros((0, 3)), np.zeros((0, 4)), "0 features, 0 boxes; need 1 to R of both"),
    ],
)
def test_the_writer_refuses_bad_rows_and_leaves_nothing(tmp_path, features, boxes, message):
    with pytest.raises(InputError, match=message), writer(tmp_path / "r.h5") as open_writer:
        open_writer.write(0, features, boxes)
    assert list(tmp_path.iterdir()) == []


def test_a_forgotten_picture_and_a_double_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="1 pictures were given no regions"), writer(tmp_path / "r.h5", "xy") as open_writer:
        open_writer.write(0, np.zeros((1, 3)), np.zeros((1, 4)))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="an image id is listed twice"):
        writer(tmp_path / "r.h5", "xx")


# --- without boxes, with checksums, as .npy -------------------------------------------------------------------------------


def test_features_without_boxes_have_none(tmp_path):
    with RegionWriter(tmp_path / "r.h5", ["x"], 2, 3, "made up", boxes=False) as open_writer:
        open_writer.write(0, np.ones((1, 3)))
        with pytest.raises(InputError, match=r"r.h5 row 0 \(image x\): this file has no boxes, none can be given"):
            open_writer.write(0, np.ones((1, 3)), np.zeros((1, 4)))
    store = RegionStore(tmp_path / "r.h5")
    assert not store.has_boxes and store.features([0]).shape == (1, 2, 3) and store.verify() == 1
    with pytest.raises(InputError, match="r.h5 has no boxes: where its regions lie in the picture is not known"):
        store.boxes([0])
    with pytest.raises(InputError, match="this file has boxes, give them"), writer(tmp_path / "b.h5") as open_writer:
        open_writer.write(0, np.ones((1, 3)))


def test_boxes_that_are_nan_are_refused(tmp_path):
    with pytest.raises(InputError, match="boxes are NaN or infinite; check the extractor"), writer(tmp_path / "r.h5") as open_writer:
        open_writer.write(0, np.ones((1, 3)), np.full((1, 4), np.nan))


@pytest.mark.parametrize("name, place", [("features", (1, 2, 0)), ("boxes", (1, 0, 1)), ("num_regions", (2,))])
def test_verify_sees_what_is_not_as_it_was_written(store_path, name, place):
    assert RegionStore(store_path).verify() == 3
    with h5py.File(store_path, "r+") as file:
        file[name][place] += 1
    with pytest.raises(InputError, match=rf"r.h5: the regions of image {'xyz'[place[0]]} are not what was written; write the file again"):
        RegionStore(store_path).verify()


def test_the_first_regions_alone_can_be_read(store_path):
    for in_memory in (False, True):
        store = RegionStore(store_path, in_memory)
        assert (store.features([1, 0, 1], 2) == store.features([1, 0, 1])[:, :2]).all()
        assert store.stored([1]).dtype == np.float16 and (store.stored([1]).astype(np.float32) == store.features([1])).all()
    with pytest.raises(IndexError, match="row 3 of 3"):
        store.features([0, 3])


def test_memory_is_taken_up_to_a_size(store_path, monkeypatch):
    assert RegionStore(store_path, None)._memory is not None
    monkeypatch.setattr("itm_lib.data.regions.IN_MEMORY", 3 * 3 * 4 * 2 - 1)
    assert RegionStore(store_path, None)._memory is None and RegionStore(store_path, True)._memory is not None


def test_chunked_and_compressed_files_of_others_are_read(store_path, tmp_path):
    with h5py.File(store_path) as own, h5py.File(tmp_path / "other.h5", "w") as other:
        for name in ("features", "boxes", "num_regions"):
            other.create_dataset(name, data=own[name][:], chunks=True, compression="gzip")
        other["image_ids"] = own["image_ids"][:]
    ours, theirs = RegionStore(store_path), RegionStore(tmp_path / "other.h5")
    for rows in ([2, 0, 2], [1]):
        assert (ours.features(rows, 2) == theirs.features(rows, 2)).all() and (ours.boxes(rows) == theirs.boxes(rows)).all()
    assert theirs.verify() == 3, "no checksums: values are finite"
    assert (pickle.loads(pickle.dumps(theirs)).features([1]) == ours.features([1])).all()


def test_a_fork_reads_its_own_rows(store_path):
    """Two processes with one store do not move each other's place in the file."""
    store = RegionStore(store_path)
    expected = store.features([0, 1, 2])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for rows, found in zip([[0], [1], [2]] * 50, pool.imap(store.features, [[0], [1], [2]] * 50)):
            assert (found == expected[rows]).all() and (store.features(rows) == expected[rows]).all()


@pytest.fixture
def npy_path(tmp_path):
    """Pictures x, y, z of 3 regions; the array has each twice, and float32."""
    values = np.random.default_rng(0).normal(size=(3, 3, 4)).astype(np.float32)
    np.save(tmp_path / "val.npy", values.repeat(2, 0))
    np.save(tmp_path / "val.boxes.npy", np.full((6, 3, 4), 0.5, np.float32))
    write_json(tmp_path / "val.json", {"image_ids": ["x", "y", "z"], "row_of_image": [0, 2, 4], "num_regions": [3, 2, 1], "extractor": "e"})
    return tmp_path / "val.npy", values


@pytest.mark.parametrize("in_memory", [False, True])
def test_an_npy_is_a_store_too(npy_path, in_memory):
    store = RegionStore(npy_path[0], in_memory)
    assert (store.features([2, 0, 2]) == npy_path[1][[2, 0, 2]]).all() and len(store) == 3 and store.dim == 4
    assert store.num_regions.tolist() == [3, 2, 1] and store.attrs == {"extractor": "e"} and store.row("y") == 1
    assert store.has_boxes and (store.boxes([1]) == 0.5).all() and store.verify() == 3
    assert (pickle.loads(pickle.dumps(store)).features([1]) == npy_path[1][[1]]).all()


def test_reading_rows_keeps_nothing_of_them(tmp_path):
    """A thousand rows of an array of 64 MiB leave the process as small as it was."""
    np.save(tmp_path / "val.npy", np.ones((1024, 32, 1024), np.float16))
    write_json(tmp_path / "val.json", {"image_ids": [str(row) for row in range(1024)]})
    store = RegionStore(tmp_path / "val.npy")
    store.features(range(8))
    resident = lambda: psutil.Process().memory_info().rss
    before = resident()
    for first in range(0, 1024, 8):
        store.features(range(first, first + 8))
    assert resident() - before < 16 * 2**20


@pytest.mark.parametrize("change, message", [
    ({"row_of_image": None}, "val.npy has 6 rows and val.json lists 3 pictures: list each, and row_of_image where they are not one to one"),
    ({"row_of_image": [0, 2, 6]}, r"val.json: row_of_image must lie in 0..5"),
    ({"row_of_image": [0, 2]}, "val.npy has 6 rows and val.json lists 3 pictures"),
    ({"num_regions": [3, 3, 4]}, "num_regions must lie in 1..3"),
    ({"image_ids": ["x", "x", "y"]}, "an image id is listed twice"),
    ({"image_ids": None}, "val.json must say which picture each row is"),
])
def test_a_wrong_list_of_pictures_is_one_line(npy_path, change, message):
    about = npy_path[0].with_suffix(".json")
    content = {**read_json(about), **change}
    write_json(about, {name: value for name, value in content.items() if value is not None})
    with pytest.raises(InputError, match=message):
        RegionStore(npy_path[0])


def test_a_wrong_npy_is_one_line(npy_path):
    path, values = npy_path
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="val.npy is cut short: 6 rows need 416 bytes, it has 415; get it again"):
        RegionStore(path)
    np.save(path, np.zeros((3, 4)))
    with pytest.raises(InputError, match=r"val.npy: features have the shape \(3, 4\), \(pictures, regions, numbers\) is needed"):
        RegionStore(path)
    np.save(path, values.repeat(2, 0))
    path.with_suffix(".boxes.npy").unlink()
    assert not RegionStore(path).has_boxes
    np.save(path.with_suffix(".boxes.npy"), np.zeros((6, 2, 4), np.float32))
    with pytest.raises(InputError, match=r"boxes have the shape \(6, 2, 4\), features \(6, 3, 4\)"):
        RegionStore(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match="no file .*val.json"):
        RegionStore(path)


def test_a_file_that_shrinks_while_it_is_read_is_told(npy_path):
    store = RegionStore(npy_path[0])
    npy_path[0].write_bytes(npy_path[0].read_bytes()[:200])
    with pytest.raises(InputError, match="val.npy was cut short while it was in use: get it again"):
        store.features([2])


def test_which_file_of_a_split_is_read(tmp_path):
    assert find_regions(tmp_path, "val") == tmp_path / "regions" / "val.h5"
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "val.npy").write_bytes(b"")
    assert find_regions(tmp_path, "val").suffix == ".npy"
    (tmp_path / "regions" / "val.h5").write_bytes(b"")
    with pytest.raises(InputError, match="regions has both val.h5 and val.npy: keep one of them"):
        find_regions(tmp_path, "val")


def test_one_store_of_all_splits_is_found_where_a_split_has_none_of_its_own(tmp_path):
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "all.npy").write_bytes(b"")
    assert find_regions(tmp_path, "val") == tmp_path / "regions" / "all.npy"
    (tmp_path / "regions" / "val.h5").write_bytes(b"")
    assert find_regions(tmp_path, "val").name == "val.h5" and find_regions(tmp_path, "train").name == "all.npy"
    (tmp_path / "regions" / "all.h5").symlink_to(tmp_path / "moved.h5")
    with pytest.raises(InputError, match="regions has both all.h5 and all.npy: keep one of them"):
        find_regions(tmp_path, "train")
    (tmp_path / "regions" / "all.npy").unlink()
    with pytest.raises(InputError, match="all.h5 links to .*moved.h5, which is not there: put it back, or make the link again"):
        RegionStore(find_regions(tmp_path, "train"))


# --- some of the pictures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_store_of_some_of_the_pictures(store_path, in_memory):
    whole, some = RegionStore(store_path), RegionStore(store_path, in_memory, image_ids=["z", "x"])
    assert some.image_ids == ["z", "x"] and len(some) == 2 and some.row("x") == 1 and some.num_regions.tolist() == [1, 2]
    assert (some.features([0, 1, 0]) == whole.features([2, 0, 2])).all() and (some.boxes([1]) == whole.boxes([0])).all()
    assert some.verify() == 2 and (pickle.loads(pickle.dumps(some)).features([0]) == whole.features([2])).all()
    with pytest.raises(InputError, match="r.h5 has no image y: captions and regions are of different datasets"):
        some.row("y")
    with pytest.raises(IndexError, match="row 2 of 2"):
        some.features([2])


def test_some_pictures_of_an_array_with_repeats(npy_path):
    some = RegionStore(npy_path[0], image_ids=["z", "y"])
    assert (some.features([1, 0]) == npy_path[1][[1, 2]]).all() and some.num_regions.tolist() == [1, 2]


def test_verify_and_nan_name_the_picture_among_some(store_path):
    with h5py.File(store_path, "r+") as file:
        file["features"][2, 0, 0] += 1
        file["features"][1, 0, 0] = np.nan
    with pytest.raises(InputError, match="r.h5: the regions of image z are not what was written"):
        RegionStore(store_path, image_ids=["x", "z"]).verify()
    with pytest.raises(InputError, match="r.h5: features of image y are NaN or infinite"):
        RegionStore(store_path, image_ids=["z", "y"]).features([0, 1])


def test_pictures_that_a_store_lacks_are_named(store_path):
    with pytest.raises(InputError, match=r"r.h5 has no regions of 4 of 5 pictures, p0, p1, p2 among them: extract them too, or leave"):
        RegionStore(store_path, image_ids=["p0", "x", "p1", "p2", "p3"])
    with pytest.raises(InputError, match="r.h5: a picture is asked for twice: list each once"):
        RegionStore(store_path, image_ids=["x", "x"])


# --- a writer that is stopped ---------------------------------------------------------------------------------------------


def begin(path, rows, **settings):
    with pytest.raises(KeyboardInterrupt), RegionWriter(path, ["x", "y", "z"], 2, 3, "made up", resume=True, **settings) as open_writer:
        for row in rows:
            open_writer.write(row, np.full((2, 3), row), np.zeros((2, 4)))
        raise KeyboardInterrupt


def finish(path, **settings):
    with RegionWriter(path, ["x", "y", "z"], 2, 3, "made up", resume=True, **settings) as open_writer:
        kept = np.flatnonzero(open_writer.done).tolist()
        for row in np.flatnonzero(~open_writer.done):
            open_writer.write(row, np.full((2, 3), row), np.zeros((2, 4)))
    return kept


def test_a_stopped_writer_keeps_its_rows(tmp_path):
    finish(tmp_path / "whole.h5")
    begin(tmp_path / "r.h5", [2, 0])
    assert not (tmp_path / "r.h5").exists()
    assert finish(tmp_path / "r.h5") == [0, 2]
    assert (tmp_path / "r.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"r.h5", "whole.h5"}


def test_rows_of_other_settings_are_not_kept(tmp_path):
    begin(tmp_path / "r.h5", [0, 1], source="one")
    assert finish(tmp_path / "r.h5", source="two") == []


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(InputError, match="r.h5 needs 3.8 GiB and 0.0 are free: make room"):
        RegionWriter(tmp_path / "r.h5", ["x"], 1000, 2048 * 1000, "made up")
    assert list(tmp_path.iterdir()) == []


# --- pictures that are left out -------------------------------------------------------------------------------------------


def leaving_out(path, rows, resume=False, **options):
    """Pictures a to e less those of ``rows``."""
    with RegionWriter(path, list("abcde"), 2, 3, "made up", resume=resume, source="s", **options) as open_writer:
        for row in range(5):
            if row in rows:
                open_writer.leave_out(row, f"broken {row}")
            else:
                open_writer.write(row, np.full((1 + row % 2, 3), row), np.full((1 + row % 2, 4), row))


@pytest.mark.parametrize("resume", [False, True])
def test_a_picture_that_is_left_out_has_no_row(tmp_path, resume):
    leaving_out(tmp_path / "r.h5", [1, 3], resume)
    assert [path.name for path in tmp_path.iterdir()] == ["r.h5"]
    store = RegionStore(tmp_path / "r.h5")
    assert store.image_ids == ["a", "c", "e"] and store.verify() == 3 and store.features([0, 1, 2])[:, 0, 0].tolist() == [0, 2, 4]
    assert json.loads(store.attrs["skipped"]) == {"b": "broken 1", "d": "broken 3"} and store.attrs["source"] == "s"
    assert store.num_regions.tolist() == [1, 1, 1]


def test_pictures_known_to_be_broken_and_those_found_make_one_list(tmp_path):
    leaving_out(tmp_path / "r.h5", [3], skipped={"z": "empty", "b2": "cut"})
    assert RegionStore(tmp_path / "r.h5").attrs["skipped"] == '{"b2": "cut", "d": "broken 3", "z": "empty"}'
    leaving_out(tmp_path / "r.h5", [], skipped={"z": "empty"})
    assert RegionStore(tmp_path / "r.h5").attrs["skipped"] == '{"z": "empty"}'
    leaving_out(tmp_path / "r.h5", [])
    assert "skipped" not in RegionStore(tmp_path / "r.h5").attrs


def test_a_stopped_writer_that_left_out_goes_on_to_the_same_bytes(tmp_path):
    leaving_out(tmp_path / "whole.h5", [1, 3], resume=True)
    with pytest.raises(KeyboardInterrupt), RegionWriter(tmp_path / "r.h5", list("abcde"), 2, 3, "made up", resume=True, source="s") as first:
        first.leave_out(1, "broken 1")
        first.write(2, np.full((1, 3), 2), np.full((1, 4), 2))
        raise KeyboardInterrupt
    with RegionWriter(tmp_path / "r.h5", list("abcde"), 2, 3, "made up", resume=True, source="s") as again:
        assert np.flatnonzero(again.done).tolist() == [1, 2]
        again.leave_out(4, "broken, as it seems")
        for row in (0, 4):
            again.write(row, np.full((1, 3), row), np.full((1, 4), row))
        again.leave_out(3, "broken 3")
    assert (tmp_path / "r.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"r.h5", "whole.h5"}


def test_a_writer_of_which_nothing_is_left(tmp_path):
    (tmp_path / "r.h5").write_text("old")
    with pytest.raises(InputError, match="r.h5: no picture is left of 5, a: broken 0$"):
        leaving_out(tmp_path / "r.h5", range(5))
    assert (tmp_path / "r.h5").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_reasons_are_kept_as_far_as_they_fit_and_those_half_written_do_not_count(tmp_path):
    def opened():
        return RegionWriter(tmp_path / "r.h5", ["a", "b", "c"], 2, 3, "made up", resume=True)

    first = opened()
    first.leave_out(0, "a reason longer than fits")
    first.leave_out(1, "é" * 9)
    first.leave_out(2, "cut")
    with h5py.File(first.part, "r+") as part:
        part["features"][2, 1, 2] = 1
    again = opened()
    assert again.done.tolist() == [True, True, False]
    again.leave_out(0, "é" * 9)
    again.write(2, np.ones((1, 3)), np.ones((1, 4)))
    with again:
        pass
    store = RegionStore(tmp_path / "r.h5")
    assert store.image_ids == ["c"] and json.loads(store.attrs["skipped"]) == {"a": "é" * 6, "b": "é" * 6}


def test_long_lists_of_broken_pictures_fit(tmp_path):
    skipped = {f"folder/picture {number}": "it is damaged in some way" for number in range(3000)}
    leaving_out(tmp_path / "r.h5", [1], skipped=skipped)
    assert len(json.loads(RegionStore(tmp_path / "r.h5").attrs["skipped"])) == 3001
