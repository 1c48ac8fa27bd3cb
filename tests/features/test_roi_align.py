"""RoIAlign by matrix products against loops over bins, samples and neighbours; suppression against a loop over pairs."""

import math

import pytest
import torch

from itm_lib.features.region_encoder import crop_regions
from itm_lib.features.roi_align import axis_weights, nms, pairwise_iou, pool_boxes, roi_align
from itm_lib.files import InputError

EDGES = [[0, 0, 1, 1], [0, 0, 0.001, 0.001], [0.999, 0.2, 1, 0.9], [0, 0.98, 0.5, 1], [0.31, 0.42, 0.33, 0.9]]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_boxes(count, seed=0):
    """``count`` random boxes, then the EDGES."""
    corners = torch.rand(count, 2, 2, generator=generator(seed), dtype=torch.float64).sort(1).values
    return torch.cat([corners.flatten(1), torch.tensor(EDGES, dtype=torch.float64)])


def read(row, y, x):
    """Bilinear interpolation at (y, x), in cells: four neighbours and their weights; beyond the outermost cells, the nearest."""
    height, width = row.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = min(math.floor(y), height - 1), min(math.floor(x), width - 1)
    total = 0.0
    for i, wy in ((top, 1 - (y - top)), (min(top + 1, height - 1), y - top)):
        for j, wx in ((left, 1 - (x - left)), (min(left + 1, width - 1), x - left)):
            total += wy * wx * float(row[i, j])
    return total


def slow_roi_align(picture, boxes, bins, samples):
    """As the paper says it: every bin, every sample, every neighbour."""
    channels, height, width = picture.shape
    out = torch.zeros(len(boxes), channels, bins, bins, dtype=torch.float64)
    for r, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        for p in range(bins):
            for q in range(bins):
                for i in range(samples):
                    for j in range(samples):
                        y = (y0 + (p + (i + 0.5) / samples) * (y1 - y0) / bins) * height - 0.5
                        x = (x0 + (q + (j + 0.5) / samples) * (x1 - x0) / bins) * width - 0.5
                        for c in range(channels):
                            out[r, c, p, q] += read(picture[c], y, x) / samples**2
    return out


@pytest.mark.parametrize(("size", "bins", "samples"), [((5, 8), 4, 2), ((3, 4), 7, 2), ((9, 4), 3, 3), ((1, 1), 2, 2), ((1, 6), 1, 1)])
def test_the_product_is_the_loop(size, bins, samples):
    picture, boxes = torch.randn(2, *size, generator=generator(1), dtype=torch.float64), random_boxes(2, seed=2)
    expected = slow_roi_align(picture, boxes, bins, samples)
    torch.testing.assert_close(roi_align(picture, boxes, bins, samples), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(pool_boxes(picture, boxes, bins, samples), expected.mean((2, 3)), rtol=0, atol=1e-12)
    torch.testing.assert_close(roi_align(picture.float(), boxes.float(), bins, samples), expected.float(), rtol=0, atol=1e-5)


def test_by_hand():
    picture = torch.tensor([[[0.0, 1, 2, 3]]])  # a ramp: at x of the picture's width it is 4x - 1/2, between the outermost cells' centres
    whole, half = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.25, 0, 0.75, 1]])
    assert pool_boxes(picture, half).item() == pytest.approx(1.5)
    assert roi_align(picture, half, bins=2, samples=1).flatten().tolist() == pytest.approx([1.0, 2.0, 1.0, 2.0])
    assert roi_align(picture, whole, bins=4, samples=1)[0, 0, 0].tolist() == pytest.approx([0, 1, 2, 3])  # a cell a bin: the cells
    assert roi_align(picture, whole, bins=8, samples=1)[0, 0, 0].tolist() == pytest.approx([0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


def test_weights_sum_to_one_and_a_constant_stays():
    boxes = random_boxes(6)
    for weights in axis_weights(boxes, (5, 9), 7, 2, torch.float64):
        assert weights.min() >= 0
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(boxes), 7, dtype=torch.float64))
    torch.testing.assert_close(roi_align(torch.full((1, 5, 9), 3.0), boxes.float()), torch.full((len(boxes), 1, 7, 7), 3.0))


def test_gradients_of_maps_and_boxes():
    picture = torch.randn(2, 5, 6, generator=generator(3), dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0.13, 0.21, 0.71, 0.83], [0.4, 0.05, 0.93, 0.6]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda maps, corners: roi_align(maps, corners, 3, 2), (picture, boxes))
    assert torch.autograd.gradcheck(lambda maps, corners: pool_boxes(maps, corners, 3, 2), (picture, boxes))


def test_half_precision_around_it_changes_nothing():
    picture, boxes = torch.randn(2, 5, 6, generator=generator(6)), random_boxes(3).float()
    for function in (roi_align, pool_boxes):
        with torch.autocast("cpu", torch.bfloat16):
            inside = function(picture, boxes)
        assert inside.dtype == torch.float32 and torch.equal(inside, function(picture, boxes))


def test_a_batch_of_maps_is_each_map_by_itself():
    maps, boxes, rows = torch.randn(3, 2, 5, 6, generator=generator(4)), random_boxes(4).float(), torch.tensor([2, 0, 0, 2, 0, 2, 2, 0, 2])
    for function in (roi_align, pool_boxes):
        together = function(maps, boxes, rows=rows)
        for number in (0, 2):
            torch.testing.assert_close(together[rows == number], function(maps[number], boxes[rows == number]))
    assert roi_align(maps[:1], boxes[:0]).shape == (0, 2, 7, 7)
    with pytest.raises(InputError, match="there are 3 maps: rows must say which one each box lies in"):
        roi_align(maps, boxes)
    with pytest.raises(InputError, match=r"maps have the shape \(5, 6\)"):
        roi_align(maps[0, 0], boxes)


def test_a_crop_of_the_region_encoder_is_roi_align_of_the_picture():
    picture = torch.randint(0, 256, (40, 56, 3), generator=generator(5), dtype=torch.uint8)
    boxes = random_boxes(6).float()[:6]
    crops = crop_regions(picture.numpy()[None], boxes.numpy()[None], pixels=16)[0]
    torch.testing.assert_close(roi_align(picture.permute(2, 0, 1) / 255, boxes, 16, 2), crops, rtol=0, atol=1e-5)


# suppression

def iou_of(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    union = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared
    return shared / union if union else 0.0


def slow_nms(boxes, scores, iou):
    kept = []
    for number in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if all(iou_of(boxes[number], boxes[other]) <= iou for other in kept):
            kept.append(number)
    return kept


@pytest.mark.parametrize("iou", [0.05, 0.3, 0.7, 1.0])
def test_suppression_is_the_loop(iou):
    boxes, scores = random_boxes(60, seed=7), torch.randint(0, 12, (65,), generator=generator(8)) / 12.0  # many ties
    boxes = torch.cat([boxes, boxes[:10]])  # and boxes that are there twice
    scores = torch.cat([scores, scores[:10]])
    expected = slow_nms(boxes.tolist(), scores.tolist(), iou)
    assert nms(boxes, scores, iou).tolist() == expected
    assert nms(boxes, scores, iou, 5).tolist() == expected[:5]
    found = pairwise_iou(boxes, boxes)
    assert found[3, 8].item() == pytest.approx(iou_of(boxes[3].tolist(), boxes[8].tolist()))


def test_suppression_by_hand():
    boxes = torch.tensor([[0, 0, 0.5, 1], [0, 0, 0.4, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 1]])  # IoU of the first two: 0.8
    scores = torch.tensor([0.5, 0.9, 0.1, 0.5])
    assert nms(boxes, scores, 0.7).tolist() == [1, 2]
    assert nms(boxes, scores, 0.85).tolist() == [1, 0, 2]   # of the equal ones the first
    assert nms(boxes, scores, 1.0).tolist() == [1, 0, 3, 2]  # 1 keeps all
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
    assert nms(torch.zeros(2, 4), torch.ones(2), 0.5).tolist() == [0, 1]  # empty boxes overlap nothing
