"""Backbones by name: grids of every family, the region encoder's windows, opening again, and what a user sees of mistakes."""

import pickle
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import GRIDS, make_backbone

from itm_lib.data import scenes
from itm_lib.features.backbones import open_backbone, reopen_backbone
from itm_lib.features.grids import cell_boxes
from itm_lib.features.region_encoder import load_region_encoder, overlap, region_features
from itm_lib.features.roi_align import roi_align
from itm_lib.features.windows import scales, window_boxes
from itm_lib.files import InputError, write_json


def picture(seed, width=100, height=70):
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_backbone(kind, tmp_path_factory.mktemp(kind)) for kind in GRIDS}


def error(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        open_backbone(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# grids

@pytest.mark.parametrize("kind", GRIDS)
def test_cells_of_a_grid_whatever_the_batch(kind, folders):
    _, _, side, dim = GRIDS[kind]
    backbone = open_backbone(folders[kind], device="cpu")
    assert (backbone.max_regions, backbone.dim) == (side**2, dim)
    pixels = torch.stack([backbone.prepare(picture(seed)) for seed in range(5)])
    assert pixels.shape[2:] == backbone.input_size((100, 70)) == (32, 32)
    found = backbone(pixels)
    for regions in found:
        assert regions.features.shape == (side**2, dim) and {part.dtype for part in regions[:3]} == {np.dtype(np.float32)}
        np.testing.assert_array_equal(regions.boxes, cell_boxes(side, side))
        assert regions.labels == ("",) * side**2 and (regions.scores == 1).all()
    assert np.abs(found[0].features - found[1].features).max() > 0.01
    for size in (1, 2):
        parts = [regions for part in pixels.split(size) for regions in backbone(part)]
        for one, other in zip(parts, found, strict=True):
            np.testing.assert_allclose(one.features, other.features, rtol=0, atol=1e-5 * max(1, np.abs(other.features).max()))


@pytest.mark.parametrize("kind", GRIDS)
def test_cells_are_the_last_states_without_class_and_register_tokens(kind, folders):
    backbone = open_backbone(folders[kind], device="cpu")
    pixels = backbone.prepare(picture(1))[None]
    with torch.inference_mode():
        states = backbone.network(pixel_values=pixels).last_hidden_state[0]
    extra = {"vit": 1, "dinov2": 1, "dinov2-registers": 4, "clip": 1, "clip-vision": 1}.get(kind, 0)
    if states.dim() == 2:
        assert len(states) == 16 + extra
    expected = states.flatten(1).T if states.dim() == 3 else states[extra:]
    np.testing.assert_allclose(backbone(pixels)[0].features, expected.numpy(), rtol=0, atol=1e-6)


def test_a_cell_sees_its_own_box(folders):
    """Where the picture changes, the cells of a network that sees little around them change, and those are the cells whose boxes
    lie there."""
    backbone = open_backbone(folders["convnext"], size=64, device="cpu")
    one, other = picture(1, 64, 64), picture(1, 64, 64)
    other.paste((255, 0, 0), (40, 8, 56, 24))
    before, after = (backbone(backbone.prepare(part)[None])[0] for part in (one, other))
    changed = np.abs(after.features - before.features).max(1)
    box = before.boxes[changed.argmax()] * 64
    assert 32 <= box[0] < box[2] <= 64 and 0 <= box[1] < box[3] <= 32


def test_cells_cover_the_picture_and_fewer_are_averages(folders):
    for cells, side in ((4, 4), (4, 2), (5, 2), (7, 3), (6, 1)):
        boxes = cell_boxes(cells, side)
        assert len(boxes) == side**2 and boxes.min() == 0 and boxes.max() == 1 and (boxes[:, 2:] > boxes[:, :2]).all()
        points = np.stack(np.meshgrid(*[(np.arange(cells) + 0.5) / cells] * 2), -1).reshape(-1, 2)
        inside = ((points[None] > boxes[:, None, :2]) & (points[None] < boxes[:, None, 2:])).all(2)
        assert inside.any(0).all() and (inside.sum() == cells**2 or cells % side)
    np.testing.assert_allclose(cell_boxes(5, 2)[1], [0.4, 0, 1, 0.6], atol=1e-7)  # columns 2 to 4, rows 0 to 2
    whole, fewer = (open_backbone(folders["vit"], regions, device="cpu") for regions in (None, 4))
    pixels = whole.prepare(picture(2))[None]
    cells = whole(pixels)[0].features.reshape(2, 2, 2, 2, 16)
    np.testing.assert_allclose(fewer(pixels)[0].features, cells.mean((1, 3)).reshape(4, 16), rtol=0, atol=1e-5)
    assert fewer.max_regions == 4 and fewer.settings["regions"] == 4


@pytest.mark.parametrize("kind", ["resnet", "vit", "dinov2-registers", "siglip"])
def test_a_larger_size_has_more_cells(kind, folders):
    backbone = open_backbone(folders[kind], size=64, device="cpu")
    found = backbone(backbone.prepare(picture(0, 1, 1))[None])[0]
    assert found.features.shape == (64, 16) and np.isfinite(found.features).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_comes_back_as_float32(precision, folders):
    for kind in ("resnet", "vit", "clip"):
        exact, half = (open_backbone(folders[kind], device="cpu", precision=name) for name in ("no", precision))
        pixels = exact.prepare(picture(0))[None]
        found, expected = half(pixels)[0].features, exact(pixels)[0].features
        assert found.dtype == np.float32 and 0 < np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_pixels_are_those_of_transformers_processor_where_it_squeezes_too(folders):
    from transformers import ViTImageProcessorPil

    processor = ViTImageProcessorPil.from_pretrained(folders["vit"])
    ours = open_backbone(folders["vit"], device="cpu").prepare(picture(3))
    torch.testing.assert_close(ours, processor(picture(3), return_tensors="pt").pixel_values[0], rtol=0, atol=1e-5)


def test_what_processors_files_say(tmp_path):
    folder = make_backbone("clip", tmp_path)
    (folder / "preprocessor_config.json").unlink()
    usual = open_backbone(folder, device="cpu").preparation
    assert usual.mean[0] == pytest.approx(0.4815, abs=1e-4) and usual.height == 32 and usual.resample == 3
    cut = {"size": {"shortest_edge": 48}, "crop_size": {"height": 40, "width": 40}, "do_center_crop": True, "image_mean": [0.1, 0.2, 0.3]}
    write_json(folder / "processor_config.json", {"image_processor": cut})  # where a processor of pictures and text writes it
    said = open_backbone(folder, device="cpu").preparation
    assert said.height == said.width == 40 and said.mean == (0.1, 0.2, 0.3)
    write_json(folder / "preprocessor_config.json", {"size": 33})  # no multiple of 8: the rest is dropped, as by the network
    assert open_backbone(folder, device="cpu").input_size((7, 5)) == (32, 32)
    write_json(folder / "preprocessor_config.json", {"size": {"side": 33}})
    assert "names no sides in pixels: mend the file, or give the size" in error(folder)
    write_json(folder / "preprocessor_config.json", {"image_mean": [0.5]})
    assert "image_mean and image_std must be three numbers each" in error(folder)


def test_nothing_touches_the_network_for_a_folder(folders, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(AssertionError, match="the network was used"):  # the guard works
        socket.create_connection(("127.0.0.1", 9))
    for name in (folders["vit"], folders["clip"], folders["resnet"], "region-encoder"):
        backbone = open_backbone(name, device="cpu")
        assert reopen_backbone(backbone.settings, device="cpu").settings == backbone.settings


# region-encoder

@pytest.fixture(scope="module")
def sliding():
    return open_backbone("region-encoder", device="cpu")


def test_windows_are_crops_of_the_resized_picture_and_cover_it():
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    points = torch.cartesian_prod(*[(torch.arange(16) + 0.5) / 16] * 2)
    for resized in scales(image):
        boxes = window_boxes(resized)
        crops = resized.unfold(1, 32, 8).unfold(2, 32, 8).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert len(boxes) == len(crops) and boxes.min() == 0 and boxes.max() == 1
        some = torch.arange(0, len(boxes), 37)
        torch.testing.assert_close(crops[some], roi_align(image, boxes[some], 32), rtol=0, atol=1e-4)
        assert ((points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])).all(2).any(1).all()
    counts = [sum(len(window_boxes(resized)) for resized in scales(torch.zeros(3, *size))) for size in ((224, 224), (224, 448), (32, 448))]
    assert counts[0] < counts[1] < 7_000 and counts[2] < counts[1]  # a strip has no more


def test_it_finds_the_objects_of_a_scene(sliding):
    import random

    found, objects, right = 0, 0, 0
    for number in range(2):
        scene = scenes.sample_scene(random.Random(f"sliding {number}"), "p")
        regions = sliding(sliding.prepare(Image.fromarray(scenes.render(scene)))[None])[0]
        iou = overlap([item.box for item in scene.objects], regions.boxes)[0]
        hit = iou.max(1) >= 0.5
        found, objects = found + hit.sum(), objects + len(hit)
        right += sum(regions.labels[row] == item.noun for row, item, seen in zip(iou.argmax(1), scene.objects, hit) if seen)
    assert found >= 0.75 * objects and right >= 0.9 * found


def test_features_are_the_encoders_of_those_boxes_whatever_the_batch(sliding):
    import random

    shown = scenes.render(scenes.sample_scene(random.Random(3), "p"))
    pixels = torch.stack([sliding.prepare(Image.fromarray(shown)), sliding.prepare(Image.fromarray(shown[:, ::-1].copy()))])
    found = sliding(pixels)
    assert [part.features.shape for part in found] == [(12, 134)] * 2 and sliding.dim == 134
    np.testing.assert_allclose(found[0].features, region_features(load_region_encoder(), shown, found[0].boxes), rtol=0, atol=2e-4)
    alone = sliding(pixels[1:])[0]
    np.testing.assert_allclose(alone.features, found[1].features, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(alone.boxes, found[1].boxes)
    again = sliding(pixels[:1])[0]
    np.testing.assert_array_equal(again.features, sliding(pixels[:1])[0].features)
    assert (found[0].boxes[:, 2:] > found[0].boxes[:, :2]).all() and found[0].boxes.min() >= 0 and found[0].boxes.max() <= 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_windows_in_half_precision_lie_nearly_where_they_were(precision):
    exact, half = (open_backbone("region-encoder", regions=2, size=64, device="cpu", precision=name) for name in ("no", precision))
    pixels = exact.prepare(picture(0, 64, 64))[None]
    found, expected = half(pixels)[0], exact(pixels)[0]
    assert found.features.dtype == np.float32 and np.isfinite(found.features).all()
    assert found.scores[0] == pytest.approx(expected.scores[0], abs=0.1)


def test_windows_of_any_shape_of_picture():
    small = open_backbone("region-encoder", regions=3, size=64, device="cpu")
    assert small.max_regions == 3 and small.input_size((300, 100)) == (32, 128) and small.input_size((1, 1)) == (64, 64)
    for size in ((300, 100), (1, 1), (40, 60)):
        found = small(small.prepare(picture(0, *size))[None])[0]
        assert 1 <= len(found.boxes) <= 3 and np.isfinite(found.features).all() and (found.boxes[:, 2:] > found.boxes[:, :2]).all()


# names, settings, opening again

def test_workers_get_the_preparation_without_the_model(folders):
    backbone = open_backbone(folders["vit"], device="cpu")
    sent = pickle.dumps((backbone.prepare, backbone.input_size))
    assert len(sent) < 2_000
    prepare, input_size = pickle.loads(sent)
    torch.testing.assert_close(prepare(picture(5)), backbone.prepare(picture(5)), rtol=0, atol=0)
    assert input_size((9, 4)) == (32, 32)


def test_opening_again_makes_the_same_and_refuses_another(folders, tmp_path):
    backbone = open_backbone(folders["vit"], regions=4, size=64, device="cpu", precision="bf16")
    attrs = {"extractor": backbone.name, **{key: np.array(value)[()] if not isinstance(value, str) else value
                                            for key, value in backbone.settings.items()}}  # as a file gives them back
    again = reopen_backbone(attrs, device="cpu")
    assert again.settings == backbone.settings
    pixels = backbone.prepare(picture(0))[None]
    np.testing.assert_array_equal(again(pixels)[0].features, backbone(pixels)[0].features)
    moved = Path(shutil.copytree(folders["vit"], tmp_path / "moved"))
    assert reopen_backbone(attrs, name=moved, device="cpu").settings["weights"] == backbone.settings["weights"]
    with pytest.raises(InputError, match="has weights .*, and the regions were made with .*: give the one that made them"):
        reopen_backbone(attrs, name=make_backbone("vit", tmp_path / "other", seed=1), device="cpu")
    write_json(moved / "preprocessor_config.json", {"size": 32, "image_mean": [0.1, 0.1, 0.1]})
    with pytest.raises(InputError, match="has pictures .*, and the regions were made with"):
        reopen_backbone(attrs, name=moved, device="cpu")
    with pytest.raises(InputError, match="made by 'bottom-up', not by a backbone that can be opened again"):
        reopen_backbone({"extractor": "bottom-up"})


def test_bad_names_and_settings_are_one_line(folders, tmp_path):
    from transformers import BertConfig, BertModel

    line = error("no-such folder")
    assert line.startswith("backbone 'no-such folder' is no folder here") and "region-encoder" in line
    assert "has no config.json" in error(tmp_path)
    BertModel(BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).save_pretrained(tmp_path)
    assert "is a 'bert', which does not read pictures: give an image model" in error(tmp_path)
    lost = Path(shutil.copytree(folders["vit"], tmp_path / "lost"))
    (lost / "model.safetensors").unlink()
    assert "cannot be read (" in error(lost)
    (lost / "model.safetensors").write_bytes(b"short")
    assert "cannot be read (" in error(lost)
    (lost / "config.json").write_text('{"model_type": 3}')
    assert "names no model_type" in error(lost)
    (lost / "config.json").write_text('{"model_type": "vitt"}')
    assert "cannot be read (" in error(lost)
    assert "has no features 'queries', a 'vit' is no detector" in error(folders["vit"], features="queries")
    assert "has no features 'queries', it has no decoder" in error("region-encoder", features="queries")
    assert "regions 0: a picture needs at least 1" in error(folders["vit"], regions=0)
    assert "4 × 4 cells" in (line := error(folders["vit"], regions=5)) and line.endswith("give 4, or a larger size")
    assert error(folders["vit"], regions=25).endswith("give 16, or a larger size")
    assert error(folders["vit"], size=36).endswith("no multiple of the 8 pixels of a patch of backbone "
                                                   f"'{folders['vit']}': give 32")
    assert "no multiple of the 8 pixels of a cell" in error(folders["resnet"], size=36)
    assert "size 0: a picture needs at least 1 pixel" in error(folders["vit"], size=0)
    backbone = open_backbone(folders["vit"], device="cpu")
    with pytest.raises(InputError, match=r"pictures of shape \(3, 32, 32\) were given"):
        backbone(torch.zeros(3, 32, 32))


def test_a_name_that_is_nearly_region_encoder_is_not_looked_for_elsewhere(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert error("region_encoder") == "unknown backbone 'region_encoder': did you mean 'region-encoder'?"
