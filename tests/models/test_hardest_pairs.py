"""Scores of single pairs, and the loss over hardest negatives that is computed from them, against the whole matrix."""

import pytest
import torch
from fragment_checks import LargestTensor, batch, encode
from test_camp import SETTINGS as CAMP_SETTINGS
from test_camp import make as make_camp

from itm_lib.data.dataset import Batch
from itm_lib.losses import HardestScores, bce_loss, hardest_bce, hardest_hinge, hinge_loss, matched_pairs, positive_mask
from itm_lib.models import SCAN, SCANConfig, hinge

SCAN_SETTINGS = {
    "t2i-mean": {}, "t2i-lse": {"aggregation": "lse"}, "i2t-mean": {"direction": "i2t"}, "i2t-lse": {"direction": "i2t", "aggregation": "lse"},
    "i2t-max": {"direction": "i2t", "aggregation": "max"}, "t2i-sum-max": {"attention": "none", "aggregation": "sum"},
    "i2t-sum-max": {"direction": "i2t", "attention": "none", "aggregation": "sum"}, "softmax": {"raw_feature_norm": "softmax"},
    "i2t-softmax": {"direction": "i2t", "raw_feature_norm": "softmax"}, "not-normalised": {"image_norm": False, "text_norm": False},
}


def make_scan(**setting):
    torch.manual_seed(0)
    config = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8, **setting}
    return SCAN(SCANConfig(**config)).double()


MODELS = {**{f"scan-{name}": (make_scan, setting) for name, setting in SCAN_SETTINGS.items()},
          **{f"camp-{name}": (make_camp, setting) for name, setting in CAMP_SETTINGS.items()}}
each_model = pytest.mark.parametrize("make, setting", MODELS.values(), ids=MODELS)


@each_model
def test_scores_of_pairs_are_entries_of_the_matrix(make, setting):
    model = make(**setting)
    images, captions = encode(model, batch(images=5, captions=7))
    rows, columns = torch.tensor([0, 4, 4, 2, 3, 0]), torch.tensor([6, 0, 0, 3, 5, 1])
    every = model.similarity(images, captions)
    torch.testing.assert_close(model.similarity_of_pairs(images, captions, rows, columns), every[rows, columns], rtol=0, atol=1e-12)


def loss_and_gradients(model, sides, image_ids, caption_image_ids):
    model.zero_grad()
    data = Batch(*sides, torch.tensor(image_ids), torch.tensor(caption_image_ids), torch.arange(len(caption_image_ids)))
    terms = model(data)
    terms["loss"].backward()
    return terms, {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@each_model
@pytest.mark.parametrize("ids", [(range(24), range(24)), ([*range(20), 3, 3, 7, 0], [*range(20), 3, 3, 7, 0]), (range(12), [n // 2 for n in range(24)])],
                         ids=["diagonal", "repeated-images", "two-captions"])
def test_loss_and_gradient_are_those_of_the_whole_matrix(monkeypatch, make, setting, ids):
    model = make(**setting)
    sides = batch(images=len(ids[0]), captions=len(ids[1]))
    for row, image in enumerate(ids[0]):  # what is the same image has the same regions
        first = list(ids[0]).index(image)
        sides[0][row], sides[1][row] = sides[0][first], sides[1][first]
    monkeypatch.setattr(hinge, "SPARSE", 10**9)
    terms, gradients = loss_and_gradients(model, sides, list(ids[0]), list(ids[1]))
    monkeypatch.setattr(hinge, "SPARSE", 1)
    calls = []
    monkeypatch.setattr(model, "similarity_of_pairs", lambda *args: calls.append(1) or type(model).similarity_of_pairs(model, *args))
    sparse_terms, sparse_gradients = loss_and_gradients(model, sides, list(ids[0]), list(ids[1]))
    assert calls == [1]
    assert set(terms) == set(sparse_terms) and set(gradients) == set(sparse_gradients)
    assert any(value.abs().sum() > 0 for value in gradients.values())
    for name, value in terms.items():
        torch.testing.assert_close(sparse_terms[name], value, rtol=1e-10, atol=1e-12)
    for name, value in gradients.items():
        torch.testing.assert_close(sparse_gradients[name], value, rtol=1e-8, atol=1e-11, msg=name)


def test_small_batches_all_negatives_and_evaluation_keep_the_matrix(monkeypatch):
    for make, setting, size in ((make_scan, {}, 8), (make_scan, {"negatives": "all"}, 24), (make_camp, {"negatives": "all"}, 24)):
        model = make(**setting)
        monkeypatch.setattr(model, "similarity_of_pairs", None)
        assert loss_and_gradients(model, batch(size, size), range(size), range(size))[0]["loss"] > 0
    model = make_scan()
    monkeypatch.setattr(model, "similarity_of_pairs", None)
    with torch.no_grad():
        images, captions = encode(model, batch(24, 24))
        assert model.loss(images, captions, torch.arange(24), torch.arange(24))["loss"] > 0


def test_a_batch_without_negatives_has_no_loss():
    model = make_scan()
    terms, gradients = loss_and_gradients(model, batch(24, 24), [0] * 24, [0] * 24)
    assert terms["loss"] == 0 and all(value.abs().sum() == 0 for value in gradients.values())
    model = make_camp()
    terms, _ = loss_and_gradients(model, batch(24, 24), [0] * 24, [0] * 24)
    assert terms["i2t"] == terms["t2i"] == 0 and terms["loss"] == terms["positive"] > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_hardest_scores_are_those_of_the_matrix(reduction):
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(6, 9, generator=generator, dtype=torch.float64)
    image_ids, caption_image_ids = torch.arange(6), torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5])
    pairs, positives = matched_pairs(image_ids, caption_image_ids), positive_mask(image_ids, caption_image_ids)
    hardest = HardestScores.of_matrix(scores, pairs, positives)
    assert hardest.matched.shape == hardest.caption.shape == hardest.image.shape == (9,)
    for pair, (row, column) in enumerate(zip(*pairs)):  # by a loop over all entries
        assert hardest.caption[pair] == max(scores[row, c] for c in range(9) if not positives[row, c])
        assert hardest.image[pair] == max(scores[r, column] for r in range(6) if not positives[r, column])
    assert hardest_hinge(hardest, 0.2, reduction) == hinge_loss(scores, pairs, positives, reduction=reduction)
    assert hardest_bce(hardest, reduction) == bce_loss(scores, pairs, positives, reduction=reduction)


def test_training_keeps_no_tensor_of_all_pairs_for_the_gradient():
    """The graph of 64 x 64 pairs would hold many tensors of their size; the pairs with a gradient are 3 in 64."""
    model = make_camp()
    sides = batch(64, 64, ragged=False)
    model.block_bytes = 2**18
    with LargestTensor() as largest:
        terms, _ = loss_and_gradients(model, sides, range(64), range(64))
    assert terms["loss"] > 0 and largest.size < 64 * 64 * 6 * 12
