"""The hinge loss against a slow loop, on vectors placed by hand."""

import math

import pytest
import torch

from itm_lib.losses import collapsed_hinge, hinge_loss, matched_pairs, positive_mask


def at_angles(*degrees):
    """Unit vectors in the plane."""
    radians = torch.tensor([math.radians(angle) for angle in degrees], dtype=torch.float64)
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def looped(scores, pairs, positives, margin, negatives, reduction):
    """i2t and t2i, one entry at a time."""
    terms = {"i2t": [], "t2i": []}
    for row, column in pairs:
        foreign = [margin + scores[row][j] - scores[row][column] for j in range(len(scores[0])) if not positives[row][j]]
        others = [margin + scores[k][column] - scores[row][column] for k in range(len(scores)) if not positives[k][column]]
        for name, costs in (("i2t", foreign), ("t2i", others)):
            costs = [max(0.0, cost) for cost in costs]
            terms[name] += [max(costs, default=0.0)] if negatives == "hardest" else costs
    if reduction == "sum":
        return {name: sum(costs) for name, costs in terms.items()}
    return {name: sum(costs) / max(1, len(costs)) for name, costs in terms.items()}


IMAGES, CAPTIONS = at_angles(0, 20, 40, 200, 40), at_angles(5, 60, 45, 190, 30)
CASES = {
    "all different": ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4], IMAGES, CAPTIONS),
    "an image twice": ([0, 1, 2, 3, 2], [0, 1, 2, 3, 2], IMAGES, CAPTIONS),
    "an image with all its captions": ([0, 1], [0, 0, 1, 1, 0], IMAGES[:2], CAPTIONS),
    "nothing but one image": ([0, 0], [0, 0], IMAGES[:2], CAPTIONS[:2]),
}


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("negatives", ["hardest", "all"])
@pytest.mark.parametrize("same_image_negatives", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_hinge_loss_is_the_loop_over_entries(case, same_image_negatives, negatives, reduction):
    image_ids, caption_image_ids, images, captions = CASES[case]
    image_ids, caption_image_ids = torch.tensor(image_ids), torch.tensor(caption_image_ids)
    scores = images @ captions.T
    pairs = matched_pairs(image_ids, caption_image_ids)
    positives = positive_mask(image_ids, caption_image_ids, same_image_negatives)
    found = hinge_loss(scores, pairs, positives, 0.3, negatives, reduction)
    listed = list(zip(*(side.tolist() for side in pairs)))
    expected = looped(scores.tolist(), listed, positives.tolist(), 0.3, negatives, reduction)
    assert found["i2t"].item() == pytest.approx(expected["i2t"], abs=1e-12)
    assert found["t2i"].item() == pytest.approx(expected["t2i"], abs=1e-12)
    assert found["loss"].item() == pytest.approx(expected["i2t"] + expected["t2i"], abs=1e-12)


def test_the_hinge_loss_by_hand():
    scores = torch.tensor([[0.9, 0.8], [0.3, 0.5]])
    ids = torch.arange(2)
    found = hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids), 0.2, "hardest", "sum")
    assert found["i2t"].item() == pytest.approx(0.1 + 0.0, abs=1e-6)   # 0.2 + 0.8 - 0.9; 0.2 + 0.3 - 0.5
    assert found["t2i"].item() == pytest.approx(0.0 + 0.5, abs=1e-6)   # 0.2 + 0.3 - 0.9; 0.2 + 0.8 - 0.5


@pytest.mark.parametrize(("negatives", "reduction", "expected"), [
    ("hardest", "mean", 0.4), ("all", "mean", 0.4), ("hardest", "sum", 0.4 * 64), ("all", "sum", 0.4 * 64 * 63)])
def test_a_constant_scorer_has_the_collapsed_loss(negatives, reduction, expected):
    ids = torch.arange(64)
    scores = torch.full((64, 64), 0.37, dtype=torch.float64)
    found = hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids), 0.2, negatives, reduction)
    assert found["loss"].item() == pytest.approx(expected, abs=1e-9)
    assert collapsed_hinge(64, 64, 0.2, negatives, reduction) == pytest.approx(expected, abs=1e-9)


def test_captions_of_the_same_image_are_negatives_only_when_asked_for():
    ids = torch.tensor([7, 7, 9])
    scores = torch.tensor([[0.5, 0.9, 0.0], [0.9, 0.5, 0.0], [0.0, 0.0, 0.5]])
    pairs = matched_pairs(ids, ids)
    assert hinge_loss(scores, pairs, positive_mask(ids, ids, False), 0.2, reduction="sum")["loss"].item() == 0
    asked = hinge_loss(scores, pairs, positive_mask(ids, ids, True), 0.2, reduction="sum")["loss"].item()
    assert asked == pytest.approx(4 * (0.2 + 0.4), abs=1e-6)


def test_the_gradient_reaches_the_hardest_negative_and_is_finite_without_one():
    scores = torch.tensor([[0.5, 0.6, 0.1], [0.0, 0.5, 0.1], [0.0, 0.0, 0.9]], requires_grad=True)
    ids = torch.arange(3)
    hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids), 0.2, reduction="sum")["i2t"].backward()
    assert scores.grad.tolist() == [[-1, 1, 0], [0, 0, 0], [0, 0, 0]]
    alone = torch.zeros(2, 2, requires_grad=True)
    same = torch.zeros(2, dtype=torch.int64)
    hinge_loss(alone, matched_pairs(same, same), positive_mask(same, same))["loss"].backward()
    assert alone.grad.tolist() == [[0, 0], [0, 0]]
