"""Detectors of transformers: what their own processors find, boxes in the picture, both kinds of features, any batch size."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_backbones import DETECTORS, make_backbone

from itm_lib.features import detectors
from itm_lib.features.backbones import open_backbone
from itm_lib.features.roi_align import pairwise_iou, pool_boxes
from itm_lib.files import InputError, read_json, write_json

WIDTH, HEIGHT = 100, 70


def picture(seed, width=WIDTH, height=HEIGHT):
    """Coloured patches, so that places of it differ."""
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make_backbone(kind, tmp_path_factory.mktemp(kind)) for kind in DETECTORS}


def same(found, expected, scale=1e-5):
    assert found.labels == expected.labels
    np.testing.assert_allclose(found.boxes, expected.boxes, rtol=0, atol=scale)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=scale)
    np.testing.assert_allclose(found.features, expected.features, rtol=0, atol=scale * max(1, np.abs(expected.features).max()))


@pytest.mark.parametrize("features", ["pooled", "queries"])
@pytest.mark.parametrize("kind", DETECTORS)
def test_regions_of_a_detector_whatever_the_batch(kind, features, folders):
    backbone = open_backbone(folders[kind], regions=10, features=features, device="cpu")
    assert backbone.name == DETECTORS[kind][0] and backbone.max_regions == 10
    assert backbone.dim == DETECTORS[kind][2 if features == "pooled" else 3]
    pixels = torch.stack([backbone.prepare(picture(seed)) for seed in range(5)])
    assert pixels.shape[2:] == backbone.input_size((WIDTH, HEIGHT)) == ((64, 64) if "rt" in kind else (64, 96))
    found = backbone(pixels)
    for regions in found:
        count = len(regions.boxes)
        assert 1 <= count <= 10 and regions.features.shape == (count, backbone.dim) and regions.boxes.shape == (count, 4)
        assert {part.dtype for part in regions[:3]} == {np.dtype(np.float32)} and len(regions.labels) == len(regions.scores) == count
        assert regions.boxes.min() >= 0 and regions.boxes.max() <= 1 and (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()
        assert (np.diff(regions.scores) <= 0).all() and regions.scores.min() > 0 and set(regions.labels) <= {f"LABEL_{n}" for n in range(5)}
        overlaps = pairwise_iou(*[torch.from_numpy(regions.boxes)] * 2).fill_diagonal_(0)
        assert overlaps.max() <= 0.7 + 1e-6
    assert np.abs(found[0].features[0] - found[1].features[0]).max() > 0.01  # pictures matter
    for size in (1, 2):
        parts = [regions for part in pixels.split(size) for regions in backbone(part)]
        for one, other in zip(parts, found, strict=True):
            same(one, other)


@pytest.mark.parametrize("kind", DETECTORS)
def test_scores_and_labels_are_those_of_transformers_processor(kind, folders):
    from transformers import DeformableDetrImageProcessorPil, DetrImageProcessorPil, RTDetrImageProcessorPil

    processor = {"detr": DetrImageProcessorPil, "rt": RTDetrImageProcessorPil}.get(kind.split("-")[0], DeformableDetrImageProcessorPil)()
    backbone = open_backbone(folders[kind], regions=20, nms=1.0, device="cpu")
    pixels = backbone.prepare(picture(3))[None]
    with torch.inference_mode():
        theirs = processor.post_process_object_detection(backbone.network(pixel_values=pixels), threshold=0)[0]
    ours, order = backbone(pixels)[0], theirs["scores"].argsort(descending=True)
    assert ours.scores[0] == pytest.approx(theirs["scores"][order[0]].item(), abs=1e-6)
    their_boxes = theirs["boxes"].clamp(0, 1)
    listed = ours.scores > theirs["scores"].min().item() + 1e-4  # theirs is a list of pairs of query and class, cut off somewhere
    assert listed.sum() >= 4
    for box, score, label in zip(torch.from_numpy(ours.boxes[listed]), torch.from_numpy(ours.scores[listed]), ours.labels):
        match = ((their_boxes - box).abs().max(1).values < 1e-5) & ((theirs["scores"] - score).abs() < 1e-5)
        assert label in {f"LABEL_{number}" for number in theirs["labels"][match].tolist()}


@pytest.mark.parametrize("kind", ["detr", "deformable-detr", "rt-detr"])
def test_pooled_features_are_the_backbones_last_map_over_the_box(kind, folders):
    backbone = open_backbone(folders[kind], regions=6, device="cpu")
    pixels = backbone.prepare(picture(4))[None]
    found = backbone(pixels)[0]
    with torch.inference_mode():
        convolutions = backbone.network.model.backbone.model(pixels).feature_maps[-1]
    expected = pool_boxes(convolutions, torch.from_numpy(found.boxes)).numpy()
    np.testing.assert_allclose(found.features, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert not backbone._maps  # nothing of a picture stays


def test_queries_are_the_decoders_states_of_the_kept_boxes(folders):
    backbone = open_backbone(folders["detr"], regions=6, features="queries", device="cpu")
    pixels = backbone.prepare(picture(4))[None]
    found = backbone(pixels)[0]
    with torch.inference_mode():
        raw = backbone.network(pixel_values=pixels)
    boxes = detectors.to_corners(raw.pred_boxes[0])
    for box, state in zip(torch.from_numpy(found.boxes), torch.from_numpy(found.features)):
        torch.testing.assert_close(raw.last_hidden_state[0, (boxes - box).abs().sum(1).argmin()], state, rtol=0, atol=1e-5)


def test_sizes_depend_on_the_picture_alone(folders):
    backbone = open_backbone(folders["detr"], regions=4, device="cpu")  # shorter side 64, longer at most 128
    sizes = {(100, 100): (64, 64), (1, 1): (64, 64), (640, 480): (64, 96), (480, 640): (96, 64), (1000, 100): (32, 128), (5000, 1): (32, 128)}
    assert {size: backbone.input_size(size) for size in sizes} == sizes
    assert open_backbone(folders["detr"], regions=4, size=96, device="cpu").input_size((1000, 100)) == (32, 192)
    squares = open_backbone(folders["rt-detr"], regions=4, size=96, device="cpu")
    assert squares.input_size((640, 480)) == (96, 96) and len(squares(squares.prepare(picture(1))[None])[0].boxes) >= 1
    for size in ((1, 1), (300, 2)):
        found = backbone(backbone.prepare(picture(0, *size))[None])[0]
        assert np.isfinite(found.features).all() and len(found.boxes) >= 1


def test_pixels_are_those_of_transformers_processor(folders):
    from transformers import DetrImageProcessorPil

    processor = DetrImageProcessorPil.from_pretrained(folders["detr"])
    for size in ((128, 64), (64, 64)):
        ours = open_backbone(folders["detr"], regions=4, device="cpu").prepare(picture(2, *size))
        theirs = processor(picture(2, *size), return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    larger = open_backbone(folders["rt-detr"], regions=4, device="cpu").prepare(picture(2))
    assert larger.shape == (3, 64, 64) and larger.min() >= 0 and 0.5 < larger.max() <= 1  # not normalised, as its file says


@pytest.mark.parametrize(("kind", "size", "normal"), [("detr", 800, True), ("rt-detr", 640, False), ("rt-detr-v2", 640, False)])
def test_without_a_processors_file_a_detector_has_what_is_usual(kind, size, normal, tmp_path):
    backbone = open_backbone(make_backbone(kind, tmp_path, processor=False), regions=4, device="cpu")
    assert backbone.input_size((1000, 1000)) == (size, size)
    assert (backbone.preparation.mean[0] == 0.485) == normal


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["detr", "conditional-detr", "deformable-detr", "rt-detr"])
def test_half_precision_gives_float32_and_nearly_the_same_scores(kind, precision, folders):
    exact = open_backbone(folders[kind], regions=5, device="cpu")
    backbone = open_backbone(folders[kind], regions=5, device="cpu", precision=precision)
    pixels = torch.stack([backbone.prepare(picture(seed)) for seed in range(2)])
    for half, full in zip(backbone(pixels), exact(pixels)):
        assert half.features.dtype == np.float32 and np.isfinite(half.features).all()
        assert (half.boxes[:, 2:] > half.boxes[:, :2]).all()
        assert half.scores[0] == pytest.approx(full.scores[0], abs=0.1)


# boxes that show nothing

def test_boxes_that_show_nothing_are_left_out_and_one_region_always_stays():
    boxes = detectors.to_corners(torch.tensor([[0.5, 0.5, 0.2, 0.2], [1.2, 0.5, 0.1, 0.5], [0.5, 0.5, 0.0, 0.3], [0.95, 0.1, 0.4, 0.4]]))
    assert boxes[3].tolist() == pytest.approx([0.75, 0, 1, 0.3])
    scores = torch.tensor([0.1, 0.9, 0.8, 0.3])
    assert detectors.best(boxes, scores, 0.7, 4).tolist() == [3, 0]
    assert detectors.best(boxes[1:3], scores[1:3], 0.7, 4).tolist() == [0]
    wide = detectors.widened(boxes[[1, 2]])
    assert (wide[:, 2:] > wide[:, :2]).all() and wide.min() >= 0 and wide.max() <= 1
    torch.testing.assert_close(detectors.widened(boxes[[0, 3]]), boxes[[0, 3]], rtol=0, atol=0)


# what a user sees

def error(*args, **kwargs):
    with pytest.raises(InputError) as caught:
        open_backbone(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_settings_are_one_line(folders):
    assert error(folders["detr"], regions=21).endswith("has 20 queries: give at most so many")
    assert "unknown features 'pool': did you mean 'pooled'?" in error(folders["detr"], features="pool")
    assert "unknown precision 'bf61': did you mean 'bf16'?" in error(folders["detr"], regions=4, precision="bf61")
    assert "reads multiples of 32 pixels: give 96" in error(folders["rt-detr"], regions=4, size=100)
    assert "nms 0: an IoU above 0 and up to 1" in error(folders["detr"], nms=0)


def test_a_model_of_a_fixed_size_reads_no_other(folders, tmp_path):
    folder = make_backbone("rt-detr", tmp_path)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "anchor_image_size": [64, 64]})
    assert "reads pictures of [64, 64] pixels alone: leave the size out" in error(folder, regions=4, size=96)
    write_json(folder / "config.json", {**read_json(folder / "config.json"), "num_queries": "many"})
    assert "cannot be read (" in error(folder)


def test_a_detector_that_needs_timm_says_so(folders, tmp_path):
    content = read_json(folders["detr"] / "config.json")
    content["backbone_config"] = {"model_type": "timm_backbone", "backbone": "resnet18", "out_indices": [4]}
    folder = Path(shutil.copytree(folders["detr"], tmp_path / "timm"))
    write_json(folder / "config.json", content)
    assert "cannot be read (" in (line := error(folder)) and "timm" in line


def test_features_that_are_not_finite_are_one_line(folders):
    backbone = open_backbone(folders["detr"], regions=4, device="cpu")
    with torch.no_grad():
        next(backbone.network.model.backbone.parameters()).mul_(float("nan"))
    with pytest.raises(InputError, match="makes features that are NaN or infinite: its weights are broken"):
        backbone(backbone.prepare(picture(0))[None])
