"""SCAN: the fast rewrite against the literal loop, padding, batches and blocks, masks, gradients, explain."""

import itertools

import pytest
import torch
from fragment_checks import (
    LargestTensor,
    batch,
    check_finite_gradients,
    check_one_image_and_one_word,
    check_padding_and_company,
    encode,
)
from literal_scan import literal_scan

from itm_lib.files import InputError
from itm_lib.models import SCAN, Encoding, SCANConfig, build_model
from itm_lib.models.saving import checked_config

NORMS = ("clipped_l2norm", "l2norm", "clipped_l1norm", "l1norm", "softmax", "clipped", "no_norm")
SETTINGS = [
    *({"direction": way, "raw_feature_norm": norm} for way, norm in itertools.product(("t2i", "i2t"), NORMS)),
    *({"direction": way, "aggregation": kind} for way, kind in itertools.product(("t2i", "i2t"), ("lse", "max", "sum"))),
    *({"direction": way, "raw_activation": "relu"} for way in ("t2i", "i2t")),
    *({"direction": way, "attention": "none", "aggregation": "sum"} for way in ("t2i", "i2t")),
    {"direction": "t2i", "attention": "none", "aggregation": "lse"},
    {"direction": "i2t", "image_norm": False, "text_norm": False},
]
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: "-".join(map(str, setting.values())))


def make(dtype=torch.float64, **setting):
    torch.manual_seed(0)
    config = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8, **setting}
    return SCAN(checked_config(SCANConfig, config, "test")).to(dtype)


def literally(model, images, captions):
    c = model.config
    return literal_scan(images.fragments, images.mask.sum(1).tolist(), captions.fragments, captions.mask.sum(1).tolist(),
                        direction=c.direction, aggregation=c.aggregation, raw_feature_norm=c.raw_feature_norm,
                        raw_activation=c.raw_activation, lambda_softmax=c.lambda_softmax, lambda_lse=c.lambda_lse,
                        attention=c.attention)


@each_setting
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("block_bytes", [1, 2**25])
def test_scores_are_those_of_the_literal_loop(setting, ragged, block_bytes):
    model = make(**setting)
    model.block_bytes = block_bytes
    images, captions = encode(model, batch(ragged=ragged))
    scores = model.similarity(images, captions)
    assert scores.shape == (5, 7)
    torch.testing.assert_close(scores, literally(model, images, captions), rtol=0, atol=1e-10)


@each_setting
@pytest.mark.parametrize("graph_bytes", [0, 2**30])
def test_gradients_are_those_of_the_literal_loop(setting, graph_bytes):
    model, weights = make(**setting), torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model.block_bytes, model.graph_bytes = 2**13, graph_bytes
    gradients = []
    for scorer in (model.similarity, lambda images, captions: literally(model, images, captions)):
        model.zero_grad()
        (scorer(*encode(model, batch())) * weights).sum().backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, value in gradients[0].items():
        assert value.abs().sum() > 0, name
        torch.testing.assert_close(value, gradients[1][name], rtol=0, atol=1e-10, msg=name)


@each_setting
def test_more_padding_other_company_and_order_change_nothing(setting):
    check_padding_and_company(make(**setting))


@each_setting
def test_one_image_and_one_word(setting):
    check_one_image_and_one_word(make(**setting), literally)


@each_setting
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_where_all_vectors_are_equal_or_zero(setting, value):
    check_finite_gradients(make(torch.float32, **setting), value)


@pytest.mark.parametrize("setting", [{"direction": "t2i"}, {"direction": "i2t", "aggregation": "lse"}], ids=["t2i", "i2t"])
def test_large_lambdas_do_not_overflow(setting):
    model = make(torch.float32, **setting, lambda_softmax=200.0, lambda_lse=200.0)
    assert model.similarity(*encode(model, batch(dtype=torch.float32))).isfinite().all()


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_scores_keep_their_precision_under_autocast(direction):
    model = make(torch.float32, direction=direction, aggregation="lse")
    images, captions = encode(model, batch(dtype=torch.float32))
    expected = model.similarity(images, captions)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.similarity(images, captions)
        halves = model.similarity(*(Encoding(side.fragments.bfloat16(), side.mask) for side in (images, captions)))
    assert found.dtype == torch.float32 and torch.equal(found, expected)
    assert halves.dtype == torch.float32
    torch.testing.assert_close(halves, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_no_tensor_of_pairs_times_words_times_dimension(direction):
    model = make(torch.float32, direction=direction)
    images = Encoding(torch.randn(8, 6, 64, requires_grad=True), torch.ones(8, 6, dtype=torch.bool))
    captions = Encoding(torch.randn(8, 9, 64, requires_grad=True), torch.ones(8, 9, dtype=torch.bool))
    with LargestTensor() as largest:
        model.similarity(images, captions).sum().backward()
    assert 0 < largest.size <= max(8 * 8 * 6 * 9, images.fragments.numel(), captions.fragments.numel())


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_working_memory_stays_within_the_blocks(direction):
    model = make(torch.float32, direction=direction)
    images, captions = encode(model, batch(images=40, captions=40, ragged=False, dtype=torch.float32))
    model.block_bytes = 2**16
    with torch.no_grad(), LargestTensor() as largest:
        model.similarity(images, captions)
    assert largest.size * 4 <= 2**16
    one = model.pair_bytes(images, captions)
    assert 4 * 6 * 9 <= one <= 4 * 6 * 9 * 12


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_explain_shows_the_attention_that_scores_use(direction):
    model = make(direction=direction, aggregation="mean")
    sides = batch()
    images, captions = encode(model, sides)
    seen = model.explain(images, captions)
    attention, relevance = seen["attention"], seen["relevance"]
    assert attention.shape == (5, 7, 9, 6)
    real = captions.mask[None, :, :, None] & images.mask[:, None, None, :]
    assert (attention[~real] == 0).all()
    sums, side = (attention.sum(3), captions.mask) if direction == "t2i" else (attention.sum(2).transpose(0, 1), images.mask)
    torch.testing.assert_close(sums, side.expand_as(sums).double(), rtol=0, atol=1e-12)
    by_hand = _cosines_from(attention, images, captions, direction)
    torch.testing.assert_close(relevance, by_hand, rtol=0, atol=1e-12)
    counts = captions.mask.sum(1)[None] if direction == "t2i" else images.mask.sum(1)[:, None]
    torch.testing.assert_close(relevance.sum(2) / counts, model.similarity(images, captions), rtol=0, atol=1e-12)


def _cosines_from(attention, images, captions, direction):
    if direction == "t2i":
        attended = torch.einsum("icwr,ird->icwd", attention, images.fragments)
        return torch.cosine_similarity(attended, captions.fragments[None], dim=-1) * captions.mask
    attended = torch.einsum("icwr,cwd->icrd", attention, captions.fragments)
    return torch.cosine_similarity(attended, images.fragments[:, None], dim=-1) * images.mask[:, None]


def test_sum_max_by_hand():
    regions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    words = torch.tensor([[[0.6, 0.8], [0.0, 1.0], [1.0, 0.0]]])
    sides = Encoding(regions, torch.ones(1, 2, dtype=torch.bool)), Encoding(words, torch.ones(1, 3, dtype=torch.bool))
    for direction, expected in (("t2i", 0.8 + 1.0 + 1.0), ("i2t", 1.0 + 1.0)):
        model = make(torch.float32, direction=direction, attention="none", aggregation="sum")
        assert model.similarity(*sides).item() == pytest.approx(expected)
    attention = model.explain(*sides)["attention"][0, 0]
    assert attention.tolist() == [[0, 0], [0, 1], [1, 0]]  # each region's best word


def test_official_compat_fills_its_switches_and_nothing_that_was_set():
    default = make().config
    assert (default.reduction, default.same_image_negatives, default.raw_activation) == ("mean", False, "leaky_relu")
    official = make(compat="official").config
    assert (official.reduction, official.same_image_negatives, official.raw_activation) == ("sum", True, "leaky_relu")
    mixed = make(compat="official", reduction="mean").config
    assert (mixed.reduction, mixed.same_image_negatives) == ("mean", True)
    assert SCANConfig(**official.model_dump()) == official


def test_the_lambdas_follow_the_direction_unless_given():
    assert (make().config.lambda_softmax, make().config.lambda_lse) == (9, 6)
    assert (make(direction="i2t").config.lambda_softmax, make(direction="i2t").config.lambda_lse) == (4, 5)
    assert make(direction="i2t", lambda_lse=20).config.lambda_lse == 20


def test_same_image_negatives_change_the_loss_as_the_switch_says():
    sides = batch(images=4, captions=4, ragged=False)
    ids = torch.tensor([3, 3, 5, 6])
    losses = []
    for official in (False, True):
        model = make(same_image_negatives=official, margin=1.0)
        images, captions = encode(model, sides)
        scores = model.similarity(images, captions).tolist()
        losses.append(model.loss(images, captions, ids, ids)["i2t"].item())
        foreign = [[j for j in range(4) if (j != i if official else ids[j] != ids[i])] for i in range(4)]
        by_hand = sum(max(0, *(1 + scores[i][j] - scores[i][i] for j in foreign[i])) for i in range(4)) / 4
        assert losses[-1] == pytest.approx(by_hand, abs=1e-12)
    assert losses[0] != losses[1]


def test_warm_up_uses_all_negatives_and_then_the_hardest():
    model = make(warmup_epochs=2, reduction="sum")
    ids = torch.arange(5)
    images, captions = encode(model, batch(images=5, captions=5))
    seen = []
    for epoch in range(4):
        model.start_epoch(epoch)
        seen.append((model.loss(images, captions, ids, ids)["loss"].item(), model.collapsed_loss(5, 5)))
    assert seen[0] == seen[1] and seen[2] == seen[3] and seen[0][0] < seen[2][0]
    assert [round(line, 9) for _, line in seen] == [0.4, 0.4, 2.0, 2.0]


def test_a_collapsed_model_sits_on_its_line():
    model = make()
    regions, words = torch.ones(6, 4, 12, dtype=torch.float64), torch.ones(6, 5, 12, dtype=torch.float64)
    sides = Encoding(regions, torch.ones(6, 4, dtype=torch.bool)), Encoding(words, torch.ones(6, 5, dtype=torch.bool))
    ids = torch.arange(6)
    assert model.loss(*sides, ids, ids)["loss"].item() == pytest.approx(model.collapsed_loss(6, 6), abs=1e-9)
    assert model.collapsed_loss(6, 6) == pytest.approx(0.4)


def test_wrong_settings_are_one_line_that_names_the_nearest_key():
    with pytest.raises(InputError, match="no setting 'lambda_sofmax'; did you mean 'lambda_softmax'") as error:
        build_model("scan", {"lambda_sofmax": 3}, 10, 30)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="'direction' .given: 'both'."):
        build_model("scan", {"direction": "both"}, 10, 30)


def test_wrong_inputs_are_named():
    model = make()
    with pytest.raises(InputError, match="regions of shape .2, 3, 7. were given to a model built for .images, regions, 10."):
        model.encode_images(torch.zeros(2, 3, 7), None)
    with pytest.raises(InputError, match="token id 99 is outside the model's vocabulary of 30 words"):
        model.encode_captions(torch.tensor([[1, 99]]), torch.ones(1, 2, dtype=torch.bool))
