"""DivE: sets and similarities against the literal loops, padding, losses, dropping, learning, and lines for bad input."""

import pytest
import torch
from fragment_checks import LargestTensor, check_padding_and_company, train_on
from fragment_checks import batch as ragged_batch
from fragment_checks import encode_batch as encode
from fragment_checks import widened_batch as widened
from literal_dive import literal_diversity, literal_mmd, literal_position, literal_set, literal_similarity, literal_triplet

from itm_lib.data.dataset import Batch
from itm_lib.evaluation import circular_variance
from itm_lib.files import InputError
from itm_lib.losses import semi_hard_loss
from itm_lib.models import DivE, DiveConfig, Encoding, build_model, load_model
from itm_lib.models.dive import (
    Attention,
    closeness_of_pairs,
    gram_diversity,
    mmd,
    position_code,
    set_similarity,
)
from itm_lib.models.saving import checked_config

SETS = {
    "default": {}, "one": {"num_slots": 1, "iterations": 1}, "sizes": {"num_slots": 5, "caption_slots": 3, "iterations": 2},
    "own-weights": {"share_weights": False, "iterations": 3}, "post": {"norm_position": "post", "activation": "relu"},
    "post-own": {"norm_position": "post", "share_weights": False, "iterations": 2},
    "states": {"text_local": "states", "text_global": "max"},
    "plain": {"position_code": False, "global_norm": False},
    "odd": {"word_dim": 7, "gru_layers": 2, "bidirectional": False},
    "pie": {"aggregation": "pie_net"}, "transformer": {"aggregation": "transformer", "iterations": 2},
    "transformer-own": {"aggregation": "transformer", "share_weights": False, "iterations": 2, "norm_position": "post"},
    "official": {"compat": "official"},
}
KINDS = ("smooth_chamfer", "euclidean_smooth_chamfer", "chamfer", "mil", "match_probability")
each_set = pytest.mark.parametrize("setting", SETS.values(), ids=SETS)
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(dtype=torch.float64, **setting):
    torch.manual_seed(0)
    config = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8, "num_heads": 2, "head_dim": 5, "dropout": 0.0,
              "region_dropping": 0.0, "word_dropping": 0.0, **setting}
    model = DivE(checked_config(DiveConfig, config, "test")).to(dtype)
    with torch.no_grad():  # attention far from uniform, LayerNorms that differ
        for name, value in model.named_parameters():
            value.mul_(3 if "query" in name or "key" in name else 1)
            if "norm" in name:
                value.add_(0.3 * torch.randn(value.shape, dtype=dtype))
    return model.eval()


def make_batch(images=4, dtype=torch.float64, seed=1, **shape):
    """A Batch in the set layout: the images have 1, 2, 3, 1, 2, 3, ... captions."""
    owners = [image for image in range(images) for _ in range(image % 3 + 1)]
    regions, region_mask, tokens, token_mask = ragged_batch(images, len(owners), dtype=dtype, seed=seed, **shape)
    return Batch(regions, region_mask, tokens, token_mask, torch.arange(images), torch.tensor(owners), torch.arange(len(owners)))


def close(found, expected, atol=1e-12, name=None):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=name and (lambda text: f"{name}: {text}"))


def random_sets(count, size, dim=6, seed=0):
    values = torch.randn(count, size, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(values, dim=-1).requires_grad_()


# --- sets ---


def literal_sets(model, data):
    """Sets and slots of both sides, sample by sample."""
    found, padded = [], not model.config.mask_before_slot_softmax
    for prediction, features, tokens, mask in ((model.image_set, model.image, data.regions, data.region_mask),
                                               (model.text_set, model.text, data.tokens, data.token_mask)):
        local, whole = features(tokens, mask)[:2]
        rows = []
        for x, g, count in zip(local, whole, mask.sum(1).tolist()):
            x, position = x if padded else x[:count], None
            if prediction is model.text_set and model.config.position_code:
                length = mask.shape[1] if model.config.position_over == "padded" else count
                position = position_code(torch.tensor([length]), len(x), x.shape[1])[0].double()
            rows.append(literal_set(prediction, x, g, position, count if padded else None))
        found += [torch.stack(part) for part in zip(*rows)]
    return found


@each_set
def test_sets_and_their_gradients_are_those_of_the_literal_loop(setting):
    model, data, found = make(**setting), make_batch(), []
    for way in ("ours", "literal"):
        model.zero_grad()
        if way == "ours":
            sides = [part for side in encode(model, data) for part in (side.embedding, side.extra["slots"])]
        else:
            sides = literal_sets(model, data)
        generator = torch.Generator().manual_seed(3)
        sum((side * torch.randn(side.shape, generator=generator, dtype=side.dtype)).sum() for side in sides).backward()
        found.append((sides, {name: value.grad for name, value in model.named_parameters()}))
    (ours, gradients), (theirs, expected) = found
    for one, other in zip(ours, theirs):
        close(one, other)
    for name, value in gradients.items():
        chooses = model.config.num_slots > 1 or not any(part in name for part in ("query", "key", "norms.0.attention"))
        assert (value.abs().sum() > 0) == chooses, name  # a lone slot takes everything
        close(value, expected[name], 1e-10, name)


def test_slots_differ_and_k_and_t_are_free():
    for setting in ({}, {"num_slots": 6, "iterations": 6}, {"num_slots": 2, "caption_slots": 7, "iterations": 1}):
        model = make(**setting)
        images, captions = encode(model, make_batch())
        assert (images.embedding.shape[1], captions.embedding.shape[1]) == model.config.slots
        for side in (images, captions):
            close(side.embedding.norm(dim=-1), torch.ones(side.embedding.shape[:2], dtype=torch.float64))
            assert circular_variance(side.embedding).min() > 1e-3


@pytest.mark.parametrize(("setting", "reads"), [({}, 2), ({"share_weights": False}, 8)])
def test_with_shared_weights_keys_and_values_are_computed_once(setting, reads, monkeypatch):
    seen, original = [], Attention.read
    monkeypatch.setattr(Attention, "read", lambda *args: seen.append(1) or original(*args))
    encode(make(**setting), make_batch())
    assert len(seen) == reads


def test_the_position_code_runs_once_round_over_a_captions_own_length():
    code = position_code(torch.tensor([5, 3]), 5, 4)
    turn = torch.arange(1, 6) / 5 * 2 * torch.pi
    close(code[0, :, 0], turn.sin(), 1e-5)
    close(code[0, :, 1], turn.cos(), 1e-5)
    close(code[0, :, 2], (turn / 100).sin(), 1e-6)
    close(code[1, :3], position_code(torch.tensor([3]), 3, 4)[0], 0)
    for length, dim in ((4, 7), (9, 8)):
        literal = torch.stack([literal_position(place, length, dim) for place in range(1, length + 1)])
        close(position_code(torch.tensor([length]), length, dim)[0].double(), literal, 2e-6)


PADDED = {name: setting for name, setting in SETS.items() if name != "official"}


@pytest.mark.parametrize("setting", [*PADDED.values(), {"similarity": "mil"}], ids=[*PADDED, "mil"])
def test_a_set_depends_neither_on_padding_nor_on_the_batch(setting):
    model, data = make(**setting), make_batch()
    model.train()(data)  # running statistics that differ from their start
    model.eval()
    with torch.no_grad():
        together = [side.embedding for side in encode(model, data)]
        for one, both in zip(encode(model, widened(data)), together):
            close(one.embedding, both)
        for row in range(len(data.regions)):
            count, length = int(data.region_mask[row].sum()), int(data.token_mask[row].sum())
            close(model.encode_images(data.regions[row, None, :count], None).embedding[0], together[0][row])
            tokens = data.tokens[row, None, :length]
            close(model.encode_captions(tokens, torch.ones_like(tokens, dtype=torch.bool)).embedding[0], together[1][row])
        check_padding_and_company(model)


BERTS = [{"text_global": "max"}, {"text_global": "first"}]


@pytest.mark.parametrize("setting", BERTS, ids=["max", "first"])
def test_with_a_bert_sets_are_those_of_the_literal_loop_and_depend_on_the_caption_alone(setting, bert_folder):
    model, data = make(text_encoder="bert", bert=str(bert_folder), **setting), make_batch()
    assert model.config.text_local == "states" and model.config.text_global == setting["text_global"]
    with torch.no_grad():
        together = [side.embedding for side in encode(model, data)]
        for ours, literal in zip(together, literal_sets(model, data)[::2]):
            close(ours, literal)
        check_padding_and_company(model)
        close(encode(model, widened(data))[1].embedding, together[1])
        for row, mask in enumerate(data.token_mask):
            tokens = data.tokens[row, None, :int(mask.sum())]
            close(model.encode_captions(tokens, torch.ones_like(tokens, dtype=torch.bool)).embedding[0], together[1][row])
        states, whole, _ = model.text(data.tokens, data.token_mask)
        first = setting["text_global"] == "first"
        close(whole, states[:, 0] if first else torch.stack([row[mask].amax(0) for row, mask in zip(states, data.token_mask)]))


@pytest.mark.parametrize("switch", [{"compat": "official"}, {"mask_before_slot_softmax": False}, {"position_over": "padded"}])
def test_with_the_released_switches_padding_does_change_a_set(switch):
    model, data = make(**switch), make_batch()
    captions, wide = (encode(model, each)[1].embedding for each in (data, widened(data)))
    assert (captions - wide).abs().amax((1, 2)).min() > 1e-6
    whole = make(**switch, masked_batch_norm=False)
    images, wide = (encode(whole, each)[0].embedding for each in (data, widened(data)))
    assert ((images - wide).abs().max() > 1e-6) == (not whole.config.mask_before_slot_softmax)


def test_batch_norm_sees_true_regions_alone_unless_it_is_told_otherwise():
    for setting, same in (({}, True), ({"masked_batch_norm": False}, False)):
        losses, statistics = [], []
        for data in (make_batch(), widened(make_batch())):
            model = make(**setting).train()
            losses.append(model(data))
            statistics.append(model.image.norm.running_mean.clone())
        assert torch.allclose(*statistics, rtol=0, atol=1e-12) == same
        for name in losses[0] if same else ("loss",):
            assert torch.allclose(losses[0][name], losses[1][name], rtol=0, atol=1e-12) == same


# --- similarity ---


def by_elements(images, captions, kind):
    return set_similarity(images.embedding.transpose(0, 1), captions.embedding.transpose(0, 1), kind)


@each_kind
@pytest.mark.parametrize("alpha", [16.0, 90.0])
@pytest.mark.parametrize("sizes", [(4, 4), (3, 2), (1, 1)])
def test_similarity_and_its_gradient_are_those_of_the_literal_loop(kind, alpha, sizes):
    sides = random_sets(3, sizes[0]), random_sets(4, sizes[1], seed=1)
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = []
    for way in ("ours", "literal"):
        if way == "ours":
            scores = set_similarity(*(side.transpose(0, 1) for side in sides), kind, alpha, (1.5, -0.2))
        else:
            scores = torch.stack([torch.stack([literal_similarity(x, y, kind, alpha, (1.5, -0.2)) for y in sides[1]])
                                  for x in sides[0]])
        found.append((scores, torch.autograd.grad((scores * weights).sum(), sides)))
    close(found[0][0], found[1][0])
    for ours, theirs in zip(found[0][1], found[1][1]):
        close(ours, theirs, 1e-10)


def test_smooth_chamfer_tends_to_chamfer_and_sharp_alphas_stay_finite():
    x, y = (side.detach().transpose(0, 1).float() for side in (random_sets(5, 4), random_sets(6, 4, seed=1)))
    chamfer = set_similarity(x, y, "chamfer")
    for alpha in (1e3, 1e5):
        smooth = set_similarity(x, y, "smooth_chamfer", alpha)
        assert ((smooth - chamfer).abs() <= 1.4 / alpha + 1e-5).all()
    assert set_similarity(x, x, "smooth_chamfer", 2.0).diagonal().max() > 1  # the log-sum is not divided by K


@each_kind
def test_neither_blocks_nor_recomputation_change_scores_or_gradients(kind):
    found = []
    for block_bytes, graph_bytes in ((None, 2**30), (1, 2**30), (4000, 2**30), (4000, 0)):
        model = make(similarity=kind)
        model.block_bytes, model.graph_bytes = block_bytes, graph_bytes
        scores = model.similarity(*encode(model, make_batch(7)))
        scores.square().sum().backward()
        found.append((scores.detach(), {name: value.grad for name, value in model.named_parameters()}))
    for scores, gradients in found[1:]:
        close(scores, found[0][0])
        for name, value in gradients.items():
            close(value, found[0][1][name], 1e-10, name)


def test_memory_stays_within_the_block():
    model = make(torch.float32)
    sides = [Encoding(embedding=random_sets(count, 4, 12).detach().float()) for count in (60, 150)]
    for block_bytes in (20_000, 200_000):
        model.block_bytes = block_bytes
        with torch.no_grad(), LargestTensor() as largest:
            model.similarity(*sides)
        assert largest.size * 4 <= max(block_bytes, 60 * 150 * 4) < 60 * 150 * 16 * 4
    assert model.pair_bytes(*sides) == 3 * 16 * 4


def test_scores_keep_their_precision_under_autocast():
    model, data = make(torch.float32), make_batch(dtype=torch.float32)
    images, captions = encode(model, data)
    expected = model.similarity(images, captions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.similarity(images, captions), expected)
        assert encode(model, data)[0].embedding.dtype == torch.float32
        terms = model.train()(data)
        assert terms["loss"].dtype == torch.float32 and terms["loss"].isfinite()
        terms["loss"].backward()


def test_a_and_b_of_the_match_probability_are_learned_unless_official():
    model = make(similarity="match_probability")
    images, captions = encode(model, make_batch())
    close(model.similarity(images, captions), by_elements(images, captions, "match_probability"))
    model.similarity(images, captions).sum().backward()
    assert (model.match.grad != 0).all()
    fixed = make(similarity="match_probability", compat="official")
    assert not hasattr(fixed, "match")
    sides = encode(fixed, make_batch())
    close(fixed.similarity(*sides), by_elements(*sides, "match_probability"))
    assert not hasattr(make(), "match")


# --- losses ---


def test_the_loss_is_the_literal_one():
    model, data = make(mmd_weight=0.3, diversity_weight=0.7, gram_weight=0.2, query_weight=0.1), make_batch()
    images, captions = encode(model, data)
    terms = model.loss(images, captions, data.image_ids, data.caption_image_ids)
    scores = torch.stack([torch.stack([literal_similarity(x, y, "smooth_chamfer", 16.0) for y in captions.embedding])
                          for x in images.embedding])
    i2t, t2i = literal_triplet(scores, data.caption_image_ids.tolist(), 0.2)
    expected = {"i2t": i2t, "t2i": t2i, "mmd": literal_mmd(images.embedding.flatten(0, 1), captions.embedding.flatten(0, 1)),
                "diversity": sum(torch.stack([literal_diversity(x) for x in side.extra["slots"]]).mean()
                                 for side in (images, captions))}
    for name, value in expected.items():
        close(terms[name], value, 1e-9, name)  # torch.cdist is off by 1e-8 where points are the same
    assert set(terms) == {"loss", "gram", "query", *expected} and terms["i2t"] > 0 and terms["t2i"] > 0
    total = i2t + t2i + 0.3 * terms["mmd"] + 0.7 * terms["diversity"] + 0.2 * terms["gram"] + 0.1 * terms["query"]
    close(terms["loss"], total, 1e-9)


def test_every_caption_of_an_image_is_a_positive_and_none_of_them_a_negative():
    model = make(diversity_weight=0, mmd_weight=0, similarity="chamfer")
    one = torch.eye(3, dtype=torch.float64)[:, None]                      # three images, each its own direction
    images, captions = Encoding(embedding=one), Encoding(embedding=one[[0, 0, 0, 1, 2]])
    owners = torch.tensor([0, 0, 0, 1, 2])
    assert model.loss(images, captions, torch.arange(3), owners)["loss"] == 0
    swapped = Encoding(embedding=one[[0, 0, 1, 1, 2]])                    # one caption of image 0 looks like image 1
    terms = model.loss(images, swapped, torch.arange(3), owners)
    assert terms["i2t"].item() == pytest.approx((0.2 + 0.2) / 5)          # that pair; and image 1 with its own caption
    assert terms["t2i"].item() == pytest.approx(1.2 / 5)


def test_mmd_is_0_for_equal_points_and_grows_with_the_gap():
    x = random_sets(1, 30, 4)[0].detach()
    assert mmd(x, x).abs() < 1e-12
    gaps = [float(mmd(x, x + shift)) for shift in (0.1, 0.5, 2.0)]
    assert 0 < gaps[0] < gaps[1] < gaps[2]


def test_measures_of_a_collapsed_set():
    equal, apart = torch.ones(2, 4, 4) / 2, torch.eye(4)[None].repeat(2, 1, 1)
    assert circular_variance(equal).tolist() == [0, 0] and circular_variance(apart).tolist() == [0.5, 0.5]
    assert closeness_of_pairs(equal) == 1 and closeness_of_pairs(apart).item() == pytest.approx(2.718281828**-4)
    assert gram_diversity(equal).item() == pytest.approx(12**0.5 / 16) and gram_diversity(apart) == 0
    assert closeness_of_pairs(equal[:, :1]) == 0


@pytest.mark.parametrize("setting", [{}, {"negatives": "all"}, {"negatives": "semi_hard"}, {"warmup_epochs": 1}, {"reduction": "sum"}],
                         ids=["hardest", "all", "semi-hard", "warm-up", "sum"])
def test_the_collapsed_loss_is_that_of_equal_sets(setting):
    model = make(mmd_weight=0, diversity_weight=0, **setting)
    side = Encoding(embedding=torch.full((6, 4, 12), 12**-0.5, dtype=torch.float64))
    assert model.loss(side, side, torch.arange(6), torch.arange(6))["loss"].item() == pytest.approx(model.collapsed_loss(6, 6))


def test_semi_hard_terms_stop_at_the_margin():
    scores = torch.tensor([[0.5, 0.9, 0.4], [0.1, 0.6, 0.0], [0.0, 0.2, 0.7]], dtype=torch.float64, requires_grad=True)
    pairs = torch.arange(3), torch.arange(3)
    terms = semi_hard_loss(scores, pairs, torch.eye(3, dtype=torch.bool), 0.2)
    assert terms["i2t"].item() == pytest.approx((0.2 + 0.1) / 2) and terms["t2i"].item() == pytest.approx(0.2)
    terms["loss"].backward()
    assert scores.grad[0, 1] == 0 and scores.grad[0, 2] == 0.5
    assert semi_hard_loss(torch.eye(3), pairs, torch.eye(3, dtype=torch.bool))["loss"] == 0


def test_the_regulariser_needs_slots_and_they_are_kept_only_where_gradients_are_on():
    model, data = make(), make_batch()
    with torch.no_grad():
        lean = encode(model, data)
    assert all(not side.extra for side in lean)
    close(model.similarity(*lean), model.similarity(*encode(model, data)))
    with pytest.raises(InputError, match="encode with gradients on"):
        model.loss(*lean, data.image_ids, data.caption_image_ids)
    assert "loss" in make(diversity_weight=0).loss(*lean, data.image_ids, data.caption_image_ids)


@each_kind
def test_gradients_are_finite_for_one_pair_and_for_equal_samples(kind):
    model = make(torch.float32, similarity=kind)
    data = make_batch(dtype=torch.float32)
    equal = [side[[0, 0, 0]] for side in (data.regions, data.region_mask, data.tokens, data.token_mask)]
    with torch.no_grad():
        model.image_set.aggregation.slots.copy_(model.image_set.aggregation.slots[:1].clone())  # equal slots, too
    for size in (1, 3):
        model.zero_grad()
        some = [side[:size] for side in equal]
        sides = model.encode_images(*some[:2]), model.encode_captions(*some[2:])
        loss = model.loss(*sides, torch.arange(size), torch.arange(size))["loss"]
        loss.backward()
        assert loss.isfinite() and all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


# --- what there is to look at ---


@pytest.mark.parametrize("setting", [{}, {"aggregation": "pie_net"}, {"aggregation": "transformer"}], ids=["slot", "pie", "transformer"])
def test_slots_attention_maps(setting):
    model, data = make(**setting), make_batch()
    with torch.no_grad():
        images, captions = encode(model, data)
        seen = model.explain(images, captions)
    for name, mask in (("image_attention", data.region_mask), ("caption_attention", data.token_mask)):
        maps = seen[name]
        assert maps.shape == (len(mask), 4, mask.shape[1]) and (maps.masked_select(~mask[:, None]) == 0).all()
        assert 0.99 < maps.sum(-1).min() and maps.sum(-1).max() < 1 + 1e-9  # 1e-7 is added to what the shares are of
        assert (maps[0] - maps[0, :1]).abs().max() > 1e-3
    close(seen["elements"].flatten(2).amax(-1), by_elements(images, captions, "mil"))


# --- training ---


def test_learning_rates_by_part():
    model = make(image_lr_scale=0.2, text_set_lr_scale=0.3, similarity="match_probability")
    named = {id(value): name for name, value in model.named_parameters()}
    scales = {named[id(value)]: each["lr_scale"] for each in model.parameter_groups() for value in each["params"]}
    assert len(scales) == len(named)
    assert all(scale == {"image": 0.2, "image_set": 0.2, "text": 1.0, "text_set": 0.3, "match": 1.0}[name.split(".")[0]]
               for name, scale in scales.items())


def test_dropping_follows_torchs_generator_and_stops_at_test():
    model, data = make(region_dropping=0.4, word_dropping=0.4, dropout=0.1).train(), make_batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(model(data)["loss"].detach()))
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(0)
    dropped = model.drop(data)
    assert dropped.region_mask.sum() < data.region_mask.sum() and dropped.token_mask.sum() < data.token_mask.sum()
    assert dropped.region_mask.any(1).all() and (dropped.tokens[dropped.token_mask] == 3).any()
    assert (make(word_dropping=0.6, mask_id=29).drop(data).tokens == 29).sum() > (data.tokens == 29).sum()
    model.eval()
    assert torch.equal(model(data)["loss"], model(data)["loss"])


@pytest.mark.parametrize("setting", [{}, {"aggregation": "pie_net"}, {"aggregation": "transformer"},
                                     {"similarity": "match_probability"}], ids=["default", "pie", "transformer", "mp"])
def test_training_lowers_the_loss_with_everything_on(setting):
    model = make(torch.float32, dropout=0.1, region_dropping=0.1, word_dropping=0.1, **setting)
    losses = train_on(model, make_batch(6, torch.float32), torch.optim.AdamW(model.parameters(), lr=3e-3), 40)
    share = 0.9 if "similarity" in setting else 0.6  # the match probability lies in a narrow band
    assert sum(losses[-5:]) < share * sum(losses[:5])
    assert all(value.grad is not None for value in model.parameters())


def test_a_bert_trains_is_saved_and_reads_back_without_its_folder(bert_folder, tmp_path):
    model = make(torch.float32, text_encoder="bert", bert=str(bert_folder), word_dropping=0.2, bert_lr_scale=0.3)
    data = make_batch(6, torch.float32)
    named = {id(value): name for name, value in model.named_parameters()}
    scales = {named[id(value)]: each["lr_scale"] for each in model.parameter_groups() for value in each["params"]}
    assert len(scales) == len(named) and scales["text.linear.weight"] == 1 and model.config.mask_id == 4
    assert {name for name, scale in scales.items() if scale == 0.3} == {name for name in scales if name.startswith("text.bert.")}
    losses = train_on(model, data, torch.optim.AdamW(model.parameters(), lr=3e-3), 30)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5]) and all(value.grad is not None for value in model.parameters())
    model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace(str(bert_folder), "gone"))
    found = load_model(tmp_path)[0]
    assert torch.equal(found.text.continues, model.text.continues) and found.config.bert == "gone"
    with torch.no_grad():
        assert torch.equal(*(each.eval().similarity(*encode(each, data)) for each in (model, found)))


def test_pieces_of_a_word_are_dropped_together(bert_folder):
    model = make(text_encoder="bert", bert=str(bert_folder), word_dropping=0.5)
    tokens = torch.tensor([[2, *[9, 26, 27] * 3, 3]]).repeat(200, 1)       # a word of three pieces, three times
    ids = torch.arange(200)
    data = Batch(torch.zeros(200, 2, 10), None, tokens, torch.ones_like(tokens, dtype=torch.bool), ids, ids, ids)
    torch.manual_seed(0)
    found = model.drop(data)
    changed = found.token_mask.sum(1)
    assert found.regions is data.regions and (changed < 11).any() and ((changed - 2) % 3 == 0).all()
    assert (found.tokens == 4).any()


# --- saving, settings, bad input ---


@each_set
def test_a_saved_model_reads_back_the_same(setting, tmp_path):
    model = make(torch.float32, **setting)
    model.save_pretrained(tmp_path)
    found, data = load_model(tmp_path)[0], make_batch(dtype=torch.float32)
    assert isinstance(found, DivE) and found.config == model.config
    assert torch.equal(found.similarity(*encode(found, data)), model.similarity(*encode(model, data)))


def test_compat_fills_the_switches_and_a_given_one_stays():
    config = DiveConfig(vocab_size=9, compat="official", masked_batch_norm=True)
    assert (config.mask_before_slot_softmax, config.position_over, config.norm_momentum, config.learned_match) == (
        False, "padded", 0.19, False)
    assert config.masked_batch_norm and config.reduction == "mean" and not config.same_image_negatives
    config = DiveConfig(vocab_size=9)
    assert (config.mask_before_slot_softmax, config.position_over, config.masked_batch_norm, config.norm_momentum,
            config.learned_match) == (True, "true", True, 0.1, True)


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


@pytest.mark.parametrize(("setting", "expected"), [
    ({"aggregation": "slots"}, "aggregation"), ({"num_slot": 3}, "no setting 'num_slot'; did you mean 'num_slots'"),
    ({"num_slots": 0}, "num_slots"), ({"iterations": 0}, "iterations"), ({"alpha": 0}, "alpha"),
    ({"similarity": "smooth"}, "similarity"), ({"negatives": "easy"}, "negatives"),
    ({"dropout": 1.0}, "dropout"), ({"position_over": "none"}, "position_over"), ({"mmd_weight": -1}, "mmd_weight"),
    ({"text_global": "first"}, "text_global 'first' is of a BERT: a GRU has 'last' or 'max'"),
    ({"text_encoder": "bert"}, "text_encoder 'bert' needs bert, a folder or a name"),
    ({"text_encoder": "bert", "bert": "x", "text_local": "words"}, "a BERT has 'states', and 'max' or 'first'"),
    ({"text_encoder": "bert", "bert": "x", "text_global": "last"}, "a BERT has 'states', and 'max' or 'first'"),
    ({"aggregation": "pie_net", "query_weight": 0.1}, "query_weight needs slots, which aggregation 'pie_net' has none of"),
])
def test_a_wrong_setting_is_one_line(setting, expected):
    with pytest.raises(InputError, match=expected) as error:
        build_model("dive", setting, 10, 30)
    line_of(error)


def test_what_does_not_fit_the_model_is_one_line(tmp_path):
    with pytest.raises(InputError, match="were given to a model built for") as error:
        make().encode_images(torch.zeros(2, 3, 7), None)
    line_of(error)
    with pytest.raises(InputError, match="token id 30 is outside the model's vocabulary of 30 words") as error:
        make().encode_captions(torch.full((1, 3), 30), torch.ones(1, 3, dtype=torch.bool))
    line_of(error)
    build_model("vse", {"embed_dim": 12}, 10, 30).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="holds a model of method 'vse', not 'dive'") as error:
        DivE.from_pretrained(tmp_path)
    line_of(error)
