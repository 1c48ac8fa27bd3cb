"""CAMP: the fast rewrite against the literal loop, padding, batches and blocks, memory, gradients, explain, settings."""

import itertools
import math

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
from literal_camp import literal_camp

from itm_lib.files import InputError
from itm_lib.models import CAMP, CampConfig, Encoding, build_model, load_model
from itm_lib.models.camp import ABLATIONS
from itm_lib.models.layers import l2norm
from itm_lib.models.saving import checked_config

PAPER = {"gate": "elementwise", "fusion": "sum", "second_attention": False, "message_norm": False}
PRETRAINING = {"fusion": "none", "message_norm": False, "aggregation": "mean", "score": "cosine", "objective": "ranking"}
SETTINGS = {
    "released": {},
    "paper": PAPER,
    "pretraining": PRETRAINING,
    "pretraining-pad-to": {**PRETRAINING, "mean_over": "pad_to", "pad_to": 14},
    "pretraining-attention": {**PRETRAINING, "aggregation": "attention"},
    "pretraining-one-affinity": {**PRETRAINING, "second_attention": False, "mean_over": "pad_to", "pad_to": 14},
    "messages-mlp": {"fusion": "none"},
    "base": {"messages": "none", "score": "cosine"},
    "base-mlp": {"messages": "none", "aggregation": "mean"},
    "average": {"messages": "average"},
    "sum": {"fusion": "sum"},
    "product": {"fusion": "product"},
    "elementwise-concat": {"gate": "elementwise", "message_norm": False},
    "elementwise-product": {"gate": "elementwise", "fusion": "product", "second_attention": False},
    "no-gates": {"gate": "none", "residual": False},
    "no-gates-product": {"gate": "none", "fusion": "product", "aggregation": "mean"},
    "mean": {"aggregation": "mean", "message_norm": False, "image_norm": True, "text_norm": True},
    "one-head-cosine": {"num_heads": 1, "score": "cosine", "second_attention": False},
}
each_setting = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def make(dtype=torch.float64, **setting):
    torch.manual_seed(0)
    config = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8, **setting}
    model = CAMP(checked_config(CampConfig, config, "test")).to(dtype)
    with torch.no_grad():  # attention, gates and scores far from uniform
        for name, value in model.named_parameters():
            value.mul_(3 if name.startswith(("attention", "head", "summary", "text.embed")) else 1)
    return model


def literally(model, images, captions, seen=None):
    return literal_camp(dict(model.named_parameters()), model.config, images.fragments, images.mask, captions.fragments,
                        captions.mask, seen)


def combinations(messages, fusion):
    """Every setting of the other switches that makes a difference."""
    gates, residuals, norms = ("scalar", "elementwise", "none"), (True, False), (True, False)
    over = [{}]
    if messages == "none" or fusion == "none":
        gates, residuals = ("scalar",), (True,)
    if messages == "none":
        norms = (True,)
    elif fusion == "none":
        over = [{}, {"mean_over": "pad_to", "pad_to": 9}, {"mean_over": "pad_to", "pad_to": 20}]
    for gate, residual, norm, aggregation, score, mean in itertools.product(
            gates, residuals, norms, ("attention", "mean"), ("mlp", "cosine"), over):
        yield {"gate": gate, "residual": residual, "message_norm": norm, "aggregation": aggregation, "score": score, **mean}


@pytest.mark.parametrize("fusion", ["concat", "sum", "product", "none"])
@pytest.mark.parametrize("messages", ["attention", "one affinity", "average", "none"])
def test_scores_are_those_of_the_literal_loop_for_all_switches(messages, fusion):
    first = {"messages": "attention", "second_attention": False} if messages == "one affinity" else {"messages": messages}
    sides, blocks = batch(images=3), itertools.cycle((1, 2**15, 2**25))
    with torch.no_grad():
        for other in combinations(messages, fusion):
            model = make(**first, fusion=fusion, **other)
            model.block_bytes = next(blocks)
            images, captions = encode(model, sides)
            scores = model.similarity(images, captions)
            assert scores.shape == (3, 7) and scores.std() > 1e-5
            torch.testing.assert_close(scores, literally(model, images, captions), rtol=0, atol=1e-10, msg=f"{other}")


@each_setting
@pytest.mark.parametrize("block_bytes", [1, 2**16])
def test_scores_do_not_depend_on_the_blocks(setting, block_bytes):
    model = make(**setting)
    images, captions = encode(model, batch(ragged=False))
    model.block_bytes = block_bytes
    torch.testing.assert_close(model.similarity(images, captions), literally(model, images, captions), rtol=0, atol=1e-10)


@each_setting
@pytest.mark.parametrize("graph_bytes", [0, 2**30], ids=["recomputed", "kept"])
def test_gradients_are_those_of_the_literal_loop(setting, graph_bytes):
    model, weights = make(**setting), torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    model.block_bytes, model.graph_bytes = 2**16, graph_bytes
    gradients = []
    for scorer in (model.similarity, lambda images, captions: literally(model, images, captions)):
        model.zero_grad()
        (scorer(*encode(model, batch())) * weights).sum().backward()
        gradients.append({name: value.grad.clone() for name, value in model.named_parameters()})
    for name, value in gradients[0].items():
        assert value.abs().sum() > 0 or "summary" in name and "2.bias" in name, name  # a softmax does not see it
        torch.testing.assert_close(value, gradients[1][name], rtol=1e-9, atol=1e-10, msg=name)


@each_setting
def test_more_padding_other_company_and_order_change_nothing(setting):
    check_padding_and_company(make(**setting))


@each_setting
def test_padding_that_is_not_zero_changes_nothing(setting):
    model = make(**setting)
    images, captions = encode(model, batch())
    scores = model.similarity(images, captions)
    filled = [Encoding(side.fragments.masked_fill(~side.mask[..., None], 7.0), side.mask) for side in (images, captions)]
    torch.testing.assert_close(model.similarity(*filled), scores, rtol=0, atol=1e-12)


@each_setting
def test_one_image_and_one_word(setting):
    check_one_image_and_one_word(make(**setting), literally)


@each_setting
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_gradients_are_finite_where_all_vectors_are_equal_or_zero(setting, value):
    check_finite_gradients(make(torch.float32, **setting), value)


@each_setting
def test_scores_keep_their_precision_under_autocast(setting):
    model = make(torch.float32, **setting)
    images, captions = encode(model, batch(dtype=torch.float32))
    expected = model.similarity(images, captions)
    with torch.autocast("cpu", torch.bfloat16):
        found = model.similarity(images, captions)
        halves = model.similarity(*(Encoding(side.fragments.bfloat16(), side.mask) for side in (images, captions)))
    assert found.dtype == halves.dtype == (torch.float64 if model.config.score == "mlp" else torch.float32)
    assert torch.equal(found, expected)
    torch.testing.assert_close(halves, expected, rtol=0, atol=0.05)


def test_captions_of_large_logits_do_not_tie():
    model = make(torch.float32)
    with torch.no_grad():
        model.head[2].bias.fill_(25.0)
        scores = model.similarity(*encode(model, batch(dtype=torch.float32)))
    assert (scores.float() == 1).all() and (scores < 1).all()
    assert len(scores.unique()) > 30  # of 35; logits near 25 are themselves 2e-6 apart in float32


@pytest.mark.parametrize("mean_over", ["true_words", "pad_to"])
def test_pretraining_makes_no_tensor_of_pairs_times_fragments_times_dimension(mean_over):
    model = make(torch.float32, **PRETRAINING, mean_over=mean_over, embed_dim=64)
    images = Encoding(torch.randn(8, 6, 64, requires_grad=True), torch.ones(8, 6, dtype=torch.bool))
    captions = Encoding(torch.randn(8, 9, 64, requires_grad=True), torch.ones(8, 9, dtype=torch.bool))
    with LargestTensor() as largest:
        model.similarity(images, captions).sum().backward()
    assert 0 < largest.size <= 8 * 8 * 10 * 10  # coefficients of words over words, one padded position included


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_the_scalar_gate_makes_nothing_larger_than_the_fused_fragments(fusion):
    model = make(torch.float32, fusion=fusion, embed_dim=64)
    images = Encoding(torch.randn(8, 6, 64, requires_grad=True), torch.ones(8, 6, dtype=torch.bool))
    captions = Encoding(torch.randn(8, 9, 64, requires_grad=True), torch.ones(8, 9, dtype=torch.bool))
    with LargestTensor() as largest:
        model.similarity(images, captions).sum().backward()
    assert 0 < largest.size <= 8 * 8 * 9 * 64


@pytest.mark.parametrize("name", ["released", "paper", "pretraining", "elementwise-concat"])
def test_working_memory_stays_within_the_blocks(name):
    model = make(torch.float32, **SETTINGS[name])
    images, captions = encode(model, batch(images=20, captions=20, ragged=False, dtype=torch.float32))
    model.block_bytes = 2**17
    with torch.no_grad(), LargestTensor() as largest:
        model.similarity(images, captions)
    assert largest.size * 4 <= 2**17
    assert 4 * 6 * 9 <= model.pair_bytes(images, captions) <= 4 * 12 * (6 + 9) * 12


def stacked(rows, real):
    """The literal loop's tensors, one an image (C, ...), as one tensor (I, C, ...) like ``real``, and 0 where that is False."""
    whole = torch.zeros(*real.shape[:3], *rows[0].shape[2:] if real.shape[-1] == 1 else real.shape[3:], dtype=torch.float64)
    for place, row in zip(whole, rows):
        row = row[tuple(slice(0, size) for size in place.shape)]
        place[tuple(slice(0, size) for size in row.shape)] = row
    return whole * real


@each_setting
def test_explain_shows_what_the_literal_loop_computes(setting):
    model, seen = make(**setting), {}
    images, captions = encode(model, batch())
    with torch.no_grad():
        shown = model.explain(images, captions)
        literally(model, images, captions, seen)
    if model.config.messages == "none":
        assert shown == {}
        return
    region, word = images.mask[:, None].expand(5, 7, 6), captions.mask[None].expand(5, 7, 9)
    kinds = {"region_attention": region[..., None] & word[:, :, None], "attention": word[..., None] & region[:, :, None],
             "region_weights": region, "word_weights": word}
    kinds |= {"region_messages": kinds["region_attention"], "word_messages": kinds["attention"]}
    if model.config.fusion != "none" and model.config.gate != "none":
        kinds |= {"region_gates": region, "word_gates": word}
    assert {name: value.shape for name, value in shown.items()} == {name: real.shape for name, real in kinds.items()}
    compared = 0
    for name in seen.keys() & {"attention", "region_attention", "region_messages", "word_messages"}:
        found, expected = shown[name], stacked(seen[name], kinds[name])
        if "messages" in name:  # coefficients here, vectors there
            found = found @ (captions.fragments[None] if "region" in name else images.fragments[:, None])
            expected = stacked(seen[name], kinds[name].any(-1, keepdim=True))
            expected = l2norm(expected) if model.config.message_norm else expected
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, msg=name)
        compared += 1
    for name, theirs, axis in (("region_gates", "regions_gate", -1), ("word_gates", "words_gate", -1),
                               ("region_weights", "regions_summary", 1), ("word_weights", "words_summary", 1)):
        if theirs in seen:
            expected = stacked([row.mean(axis) for row in seen[theirs]], kinds[name])
            torch.testing.assert_close(shown[name], expected, rtol=0, atol=1e-10, msg=name)
            compared += 1
    assert compared >= 2


@each_setting
def test_explain_is_zero_on_padding_and_sums_to_one(setting):
    model = make(**setting)
    images, captions = encode(model, batch())
    shown = model.explain(images, captions)
    for kind, value in shown.items():
        own, other = (images.mask[:, None], captions.mask) if "region" in kind else (captions.mask[None], images.mask[:, None])
        real = (own if value.dim() == 3 else own[..., None] & other[..., None, :]).expand_as(value)
        assert (value[~real] == 0).all() and (value[real] >= 0).all(), kind
        if "gates" in kind:
            assert ((value[real] > 0) & (value[real] < 1)).all()
        elif not ("messages" in kind and model.config.message_norm) and not (kind == "word_weights" and "pad_to" in setting):
            sums = value.sum(-1)
            expected = own.expand_as(sums) if value.dim() == 4 else torch.ones_like(sums)
            torch.testing.assert_close(sums, expected.double(), rtol=0, atol=1e-12, msg=kind)


@each_setting
def test_scores_follow_from_what_explain_shows(setting):
    """Messages from coefficients, fused by the gates, pooled by the weights. Vector gates are shown as means: no score follows."""
    model = make(**setting)
    config = model.config
    if config.messages == "none" or config.gate == "elementwise" or config.mean_over == "pad_to":
        assert set(setting) & {"messages", "gate", "mean_over"}
        return
    images, captions = encode(model, batch())
    shown, pooled = model.explain(images, captions), []
    for kind, own, senders in (("region", images.fragments[:, None], captions.fragments[None]),
                               ("word", captions.fragments[None], images.fragments[:, None])):
        fused = shown[f"{kind}_messages"] @ senders
        if config.fusion != "none":
            own = own.expand_as(fused)
            joined = {"concat": torch.cat([own, fused], -1), "sum": own + fused, "product": own * fused}[config.fusion]
            gates = shown[f"{kind}_gates"][..., None] if config.gate == "scalar" else 1
            fused = torch.relu(model.fusion[f"{kind}s"](gates * joined)) + (own if config.residual else 0)
        pooled.append(l2norm((shown[f"{kind}_weights"][..., None] * fused).sum(2)))
    if config.score == "cosine":
        scores = (pooled[0] * pooled[1]).sum(-1)
    else:
        joint = torch.cat(pooled, -1) if config.fusion in ("concat", "none") else pooled[0] + pooled[1]
        scores = model.head(joint).squeeze(-1).sigmoid()
    torch.testing.assert_close(scores, model.similarity(images, captions), rtol=0, atol=1e-10)


SIZES = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8}


def test_the_named_models():
    assert CampConfig.released(**SIZES) == CampConfig(**SIZES)
    paper = CampConfig.paper(**SIZES)
    assert {name: getattr(paper, name) for name in PAPER} == PAPER
    assert (paper.messages, paper.aggregation, paper.score, paper.objective, paper.residual) == (
        "attention", "attention", "mlp", "bce", True)
    pretraining = CampConfig.pretraining(**SIZES, objective="bce")
    assert {name: getattr(pretraining, name) for name in PRETRAINING} == {**PRETRAINING, "objective": "bce"}
    assert CampConfig.paper(**SIZES, gate="scalar", compat="official").mean_over == "pad_to"


def test_the_second_stage_takes_every_weight_of_the_first():
    names = [{name: value.shape for name, value in CAMP(config).state_dict().items()}
             for config in (CampConfig.pretraining(**SIZES), CampConfig.released(**SIZES))]
    assert names[0].items() <= names[1].items()
    assert {name.split(".")[0] for name in names[0]} == {"image", "text", "attention"}
    assert {name.split(".")[0] for name in set(names[1]) - set(names[0])} == {"fusion", "summary", "head"}


@pytest.mark.parametrize("row", ABLATIONS)
@pytest.mark.parametrize("named", [CampConfig.paper, CampConfig.released])
def test_every_row_of_the_ablations_is_a_model_that_learns(row, named):
    torch.manual_seed(0)
    model = CAMP(named(**{**SIZES, **ABLATIONS[row]})).double()
    images, captions = encode(model, batch(captions=5))
    torch.testing.assert_close(model.similarity(images, captions), literally(model, images, captions), rtol=0, atol=1e-10)
    terms = model.loss(images, captions, torch.arange(5), torch.arange(5))
    terms["loss"].backward()
    assert sum(value.grad.abs().sum() > 0 for value in model.parameters() if value.grad is not None) >= 8


@pytest.mark.parametrize("objective", ["bce", "ranking"])
@pytest.mark.parametrize("negatives", ["hardest", "all"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("warmup", [0, 1])
def test_a_collapsed_model_sits_on_its_line(objective, negatives, reduction, warmup, monkeypatch):
    model = make(objective=objective, negatives=negatives, reduction=reduction, warmup_epochs=warmup, margin=0.3)
    monkeypatch.setattr(model, "similarity", lambda images, captions: torch.full((6, 6), 0.5))
    images, captions, ids = *encode(model, batch(6, 6)), torch.arange(6)
    for epoch in range(2):
        model.start_epoch(epoch)
        line = model.collapsed_loss(6, 6)
        assert model.loss(images, captions, ids, ids)["loss"].item() == pytest.approx(line, abs=1e-5)
        if objective == "bce":
            means = negatives == "all" or epoch < warmup
            assert line == pytest.approx(math.log(2) * ((2 - 1 / 6) if means else 4 * (6 if reduction == "sum" else 1)))


@pytest.mark.parametrize("official", [False, True])
def test_other_captions_of_an_image_are_no_negatives_unless_asked_for(official):
    model = make(same_image_negatives=official)
    images, captions = encode(model, batch(images=4, captions=4))
    ids = torch.tensor([3, 3, 5, 6])
    scores = model.similarity(images, captions).tolist()
    foreign = [[j for j in range(4) if (j != i if official else ids[j] != ids[i])] for i in range(4)]
    terms = model.loss(images, captions, ids, ids)
    assert terms["positive"].item() == pytest.approx(-2 * sum(math.log(scores[i][i]) for i in range(4)) / 4)
    for name, entry in (("i2t", lambda i, j: scores[i][j]), ("t2i", lambda i, j: scores[j][i])):
        by_hand = sum(max(-math.log(1 - entry(i, j)) for j in foreign[i]) for i in range(4)) / 4
        assert terms[name].item() == pytest.approx(by_hand)
    assert terms["loss"].item() == pytest.approx(sum(terms[name].item() for name in ("positive", "i2t", "t2i")))


def test_parameters_start_where_the_authors_have_them():
    torch.manual_seed(0)
    dim = 64
    state = CAMP(CampConfig(region_dim=10, vocab_size=30, embed_dim=dim, word_dim=8)).state_dict()
    wide, narrow = math.sqrt(6 / (2 * dim)), 1 / math.sqrt(dim)
    for name, bound in {"attention.image_key": wide, "attention.text_key": wide, "fusion.regions": wide, "fusion.words": wide,
                        "head.0": wide, "head.2": wide, "attention.image_query": narrow, "attention.text_message_key": narrow,
                        "summary.words.0": narrow, "summary.regions.2": narrow}.items():
        assert 0.9 * bound < state[f"{name}.weight"].abs().max() <= bound, name
    assert (state["head.0.bias"] == 0).all() and (state["head.2.bias"] == 0).all() and state["summary.words.0.bias"].abs().max() > 0
    assert not [name for name in state if name.startswith(("attention", "fusion")) and "bias" in name]


def test_official_compat_fills_its_switches_and_nothing_that_was_set():
    default, official = make().config, make(compat="official").config
    assert (default.reduction, default.mean_over) == ("mean", "true_words")
    assert (official.reduction, official.mean_over, official.pad_to) == ("sum", "pad_to", 50)
    assert make(compat="official", mean_over="true_words").config.mean_over == "true_words"
    assert CampConfig(**official.model_dump()) == official


def test_a_saved_model_gives_the_same_scores(tmp_path):
    model = make(torch.float32, **PAPER)
    model.save_pretrained(tmp_path / "camp")
    loaded, _ = load_model(tmp_path / "camp")
    assert isinstance(loaded, CAMP) and loaded.config == model.config and loaded.batch_layout == "image"
    sides = batch(dtype=torch.float32)
    assert torch.equal(loaded.similarity(*encode(loaded, sides)), model.similarity(*encode(model, sides)))


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 300
    return text


@pytest.mark.parametrize(("settings", "expected"), [
    ({"gaet": "scalar"}, "no setting 'gaet'; did you mean 'gate'"),
    ({"gate": "vector"}, "'gate' .given: 'vector'."),
    ({"fusion": "add"}, "'fusion' .given: 'add'."),
    ({"num_heads": 0}, "'num_heads' .given: 0."),
    ({"objective": "hinge"}, "'objective' .given: 'hinge'."),
    ({"pad_to": -1}, "'pad_to' .given: -1."),
    ({"mean_over": "all"}, "'mean_over' .given: 'all'."),
])
def test_wrong_settings_are_one_line(settings, expected):
    with pytest.raises(InputError, match=expected) as error:
        build_model("camp", settings, 10, 30)
    assert "camp" in line_of(error)


def test_a_caption_longer_than_pad_to_is_named():
    model = make(**PRETRAINING, mean_over="pad_to", pad_to=8)
    with pytest.raises(InputError, match="a caption has 9 words and pad_to is 8") as error:
        model.similarity(*encode(model, batch()))
    line_of(error)
