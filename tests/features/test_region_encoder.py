"""From pixels to regions: boxes, crops, the encoder and its file, and the region files of a dataset."""

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from itm_lib.data import scenes
from itm_lib.data.regions import RegionStore
from itm_lib.features import region_encoder as regions
from itm_lib.files import InputError, write_json, write_jsonl

NAMES = ("train", "val", "test", "foils_val", "foils_test")


@pytest.fixture(scope="module")
def shipped():
    return regions.load_region_encoder()


@pytest.fixture(scope="module")
def scene():
    return scenes.sample_scene(random.Random(7), "p7")


def untrained(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return regions.RegionEncoder(regions.object_labels(), regions.colour_labels()).eval()


def scene_folder(folder):
    """A folder as scenes.build writes it, of two pictures a split."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for name in NAMES:
        for number in range(2):
            scene = scenes.sample_scene(random.Random(f"{name}{number}"), f"{name}-{number}")
            Image.fromarray(scenes.render(scene)).save(folder / "images" / f"{scene.image_id}.png")
            rows.append(scene.to_json() | {"split": name})
    write_jsonl(folder / "scenes.jsonl", rows)
    write_json(folder / "meta.json", {})
    return folder


# boxes

def test_geometry_of_a_box_is_centre_sides_area_and_log_ratio():
    geometry = regions.box_geometry(np.array([[0.25, 0.5, 0.75, 0.75], [0, 0, 1, 1]]))
    assert geometry.dtype == np.float32
    np.testing.assert_array_equal(geometry[1], [0.5, 0.5, 1, 1, 1, 0])
    np.testing.assert_array_equal(geometry[0], np.float32([0.5, 0.625, 0.5, 0.25, 0.125, np.log(np.float32(2))]))


def test_overlap_by_hand():
    iou, cover = regions.overlap([[0, 0, 0.5, 0.5]], [[0.25, 0, 0.75, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]])
    np.testing.assert_allclose(iou, [[1 / 3, 0, 0.25]])
    np.testing.assert_allclose(cover, [[0.5, 0, 1]])


def test_proposals_find_every_object_and_some_background_and_stay_in_the_picture():
    plain = []
    for number in range(100):
        scene = scenes.sample_scene(random.Random(number), str(number))
        boxes = regions.propose_regions(scene, random.Random(number))
        assert boxes.shape == (12, 4) and boxes.dtype == np.float32
        assert boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()
        objects = [item.box for item in scene.objects]
        assert regions.overlap(objects, boxes)[0].max(1).min() > 0.6  # 10 % on every edge leaves at least 0.8²
        plain.append((regions.overlap(boxes, objects)[1].max(1) < 0.05).sum())
    assert np.mean(plain) > 2.5 and np.mean(np.array(plain) == 0) < 0.03  # a crowded picture may leave no room


def test_proposals_depend_on_the_random_stream_alone(scene):
    first, again, other = (regions.propose_regions(scene, random.Random(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert regions.propose_regions(scene, random.Random(1), 2).shape == (2, 4)


def test_labels_of_true_background_and_half_covered_boxes(scene):
    item = scene.objects[0]
    x0, y0, x1, y1 = item.box
    rng = random.Random(0)
    plain = next(box for box in iter(lambda: regions._background_box([o.box for o in scene.objects], rng), None)
                 if regions.overlap([box], [o.box for o in scene.objects])[1].max() == 0)
    sliver = (x0, y0, x0 + 0.2 * (x1 - x0), y1)
    objects, colours = regions.label_regions(scene, np.array([item.box, plain, sliver]))
    names, colour_names = regions.object_labels(), regions.colour_labels()
    assert names[objects[0]] == item.noun and colour_names[colours[0]] == (item.colour or "own")
    assert names[objects[1]] == f"{scene.background} (background)" and colours[1] == regions.IGNORE
    assert objects[2] == colours[2] == regions.IGNORE


# crops and features

def test_a_crop_shows_what_is_in_the_box():
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[:112, :112], picture[112:, 112:] = (255, 0, 0), (0, 0, 255)
    crops = regions.crop_regions(picture[None], np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 1, 1]]]))
    assert crops.shape == (1, 3, 3, 32, 32)
    red, blue = torch.tensor([1.0, 0, 0]), torch.tensor([0, 0, 1.0])
    assert torch.allclose(crops[0, 0, :, :30, :30], red[:, None, None].expand(3, 30, 30))
    assert torch.allclose(crops[0, 1, :, 2:, 2:], blue[:, None, None].expand(3, 30, 30))
    assert torch.allclose(crops[0, 2].mean((1, 2)), torch.tensor([0.25, 0, 0.25]), atol=0.01)


def test_crops_of_a_batch_are_those_of_each_picture():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)
    corners = np.sort(rng.random((3, 4, 2, 2)), axis=2)
    boxes = corners.reshape(3, 4, 4)
    together = regions.crop_regions(pictures, boxes)
    for row in range(3):
        torch.testing.assert_close(together[row], regions.crop_regions(pictures[row : row + 1], boxes[row : row + 1])[0])


def test_features_are_134_numbers_and_end_with_the_geometry(shipped, scene):
    picture, boxes = scenes.render(scene), regions.propose_regions(scene, random.Random(0))
    features = regions.region_features(shipped, picture, boxes)
    assert features.shape == (12, 134) and features.dtype == np.float32 and np.isfinite(features).all()
    np.testing.assert_array_equal(features[:, 128:], regions.box_geometry(boxes))
    np.testing.assert_allclose(features[:, :128].mean(1), 0, atol=0.2)


def test_features_do_not_depend_on_the_batch(shipped, scene):
    picture, boxes = scenes.render(scene), regions.propose_regions(scene, random.Random(0))
    whole = regions.region_features(shipped, picture, boxes)
    for size in (1, 5):
        parts = [regions.region_features(shipped, picture, boxes[at : at + size]) for at in range(0, 12, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-5)


@pytest.mark.parametrize("boxes, says", [
    (np.zeros((0, 4)), "at least one box"), (np.zeros(4), "need (R, 4)"), (np.array([[10, 20, 90, 80]]), "divide pixel positions"),
    (np.array([[0.5, 0.1, 0.4, 0.2]]), "x0 < x1"), (np.array([[0, 0, np.nan, 1]]), "within [0, 1]")])
def test_bad_boxes_get_one_line(boxes, says):
    with pytest.raises(InputError) as error:
        regions.region_features(untrained(), np.zeros((8, 8, 3), np.uint8), boxes)
    assert says in str(error.value) and "\n" not in str(error.value)


# training

def test_training_learns_and_repeats():
    runs = [regions.train_region_encoder(256, 2, seed=3, progress=False, settings=regions.EncoderTraining(held_out=64)) for _ in range(2)]
    assert runs[0][0].fingerprint() == runs[1][0].fingerprint()
    history = runs[0][1]
    assert [row["epoch"] for row in history] == [1, 2] and history[1]["loss"] < history[0]["loss"]
    assert {"object", "background", "colour", "seconds"} <= set(history[0])
    assert not runs[0][0].training


def test_another_seed_draws_other_crops_and_the_held_out_stream_is_its_own():
    first, again, other, held_out = (regions.draw_crops(40, *which) for which in ((0,), (0,), (1,), (0, "held-out")))
    assert torch.equal(first.crops, again.crops) and torch.equal(first.objects, again.objects)
    assert not torch.equal(first.crops, other.crops) and not torch.equal(first.crops, held_out.crops)


def test_training_leaves_the_global_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    regions.train_region_encoder(128, 1, progress=False, settings=regions.EncoderTraining(held_out=64))
    assert torch.equal(torch.rand(3), expected)


def test_too_few_crops_get_one_line():
    with pytest.raises(InputError, match="num_crops is 10, epochs is 1: need at least 128 crops"):
        regions.train_region_encoder(10, 1, progress=False)


# the file of weights

def test_shipped_weights_name_objects_and_colours_of_new_crops(shipped):
    accuracy = regions.measure_encoder(shipped, regions.draw_crops(600, 0, "test of the shipped weights"))
    assert accuracy["object"] > 95 and accuracy["colour"] > 95 and accuracy["background"] > 97
    assert regions.WEIGHTS.stat().st_size <= 2_000_000


def test_saved_weights_come_back(tmp_path):
    encoder = untrained()
    regions.save_region_encoder(encoder, tmp_path / "w.safetensors", settings={"epochs": 1})
    again = regions.load_region_encoder(tmp_path / "w.safetensors")
    assert again.fingerprint() == encoder.fingerprint() != untrained(1).fingerprint()
    assert not again.training and again.object_names == regions.object_labels()


def one_line(path):
    with pytest.raises(InputError) as error:
        regions.load_region_encoder(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_missing_truncated_and_foreign_files_get_one_line(tmp_path):
    path = tmp_path / "w.safetensors"
    assert "no region encoder" in one_line(path)
    whole = regions.WEIGHTS.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cut short" in one_line(path)
    save_file({"x": torch.zeros(2)}, path)
    assert "names no labels" in one_line(path)
    names = {"objects": json.dumps(regions.object_labels()), "colours": json.dumps(regions.colour_labels())}
    save_file({"x": torch.zeros(2)}, path, names)
    assert "another network" in one_line(path)


@pytest.mark.parametrize("change, says", [
    (lambda names: names[1:] + ["unicorn"], "+"), (lambda names: names[::-1], "another order"), (lambda names: names[:-1], "then")])
def test_weights_for_other_nouns_get_one_line(tmp_path, change, says):
    path = tmp_path / "w.safetensors"
    labels = {"objects": json.dumps(change(list(regions.object_labels()))), "colours": json.dumps(regions.colour_labels())}
    save_file(load_file(regions.WEIGHTS), path, labels)
    message = one_line(path)
    assert "trained on other objects than the table has now" in message and says in message


# region files

def test_every_split_and_foil_gets_its_regions(tmp_path):
    folder, encoder = scene_folder(tmp_path / "d"), untrained()
    regions.extract_scenes(folder, encoder, progress=False)
    reader = scenes.SceneFolder(folder)
    for name in NAMES:
        store = RegionStore(folder / "regions" / f"{name}.h5", in_memory=True)
        assert store.image_ids == reader.image_ids(name) and (store.max_regions, store.dim) == (12, 134)
        assert store.attrs["extractor"] == "region_encoder" and store.attrs["weights"] == encoder.fingerprint()
        features, boxes = store.features([1])[0], store.boxes([1])[0]
        expected = regions.region_features(encoder, np.asarray(reader.picture(store.image_ids[1])), boxes)
        np.testing.assert_allclose(features, expected, rtol=2**-11, atol=1e-6)  # float16 keeps 11 bits
        objects = [item.box for item in reader.scene(store.image_ids[1]).objects]
        assert regions.overlap(objects, boxes)[0].max(1).min() > 0.6


def test_regions_are_kept_while_the_encoder_is_the_same_and_made_again_when_it_changes(tmp_path):
    folder = scene_folder(tmp_path / "d")
    path = folder / "regions" / "test.h5"
    regions.extract_scenes(folder, untrained(), progress=False)
    before, written = path.read_bytes(), path.stat().st_mtime_ns
    regions.extract_scenes(folder, untrained(), progress=False)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(before[: len(before) // 2])
    regions.extract_scenes(folder, untrained(), progress=False)
    assert RegionStore(path, in_memory=True).dim == 134
    regions.extract_scenes(folder, untrained(1), progress=False)
    assert RegionStore(path).attrs["weights"] == untrained(1).fingerprint()


def test_another_extractor_takes_the_same_seam(tmp_path):
    class MeanColour:
        name, dim, settings = "mean_colour", 3, {"gamma": 1.0}

        def __call__(self, picture, boxes):
            return regions.crop_regions(picture[None], boxes[None])[0].mean((2, 3)).numpy()

    folder = scene_folder(tmp_path / "d")
    regions.extract_scenes(folder, MeanColour(), progress=False, num_regions=7)
    store = RegionStore(folder / "regions" / "val.h5")
    assert (store.max_regions, store.dim, store.attrs["extractor"], store.attrs["gamma"]) == (7, 3, "mean_colour", 1.0)
