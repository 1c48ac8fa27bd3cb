import pickle

import h5py
import numpy as np
import pytest
from made_for_data import write_regions

from itm_lib.data import RegionStore
from itm_lib.data.regions import RegionWriter
from itm_lib.files import InputError


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
