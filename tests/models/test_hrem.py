"""HREM: the batched graph against the literal loop, both mechanisms, every relation switch, padding, losses, dropping, BERT."""

import itertools

import pytest
import torch
from fragment_checks import batch as ragged_batch
from fragment_checks import encode_batch as encode
from fragment_checks import train_on
from fragment_checks import widened_batch as widened
from literal_hrem import literal_graph, literal_mechanism

from itm_lib.data.dataset import Batch
from itm_lib.files import InputError
from itm_lib.losses import distance_weights, draw_negatives, sampled_triplet_loss
from itm_lib.models import HREM, Encoding, HremConfig, build_model, hrem, load_model
from itm_lib.models.dropping import drop_regions, drop_words
from itm_lib.models.hrem import closeness, graph_bias, match_fragments, nearest, top_mean
from itm_lib.models.saving import checked_config

SWITCHES = {
    "all": {}, "intra": {"relations": "intra"}, "inter": {"relations": "inter"}, "A": {"relevance": False},
    "S": {"connection": False}, "neither": {"connection": False, "relevance": False}, "lambda": {"relation_weight": 2.5},
}
DETAILS = {
    "few": {"topk": 3, "threshold": 0.3}, "many": {"topk": 12, "threshold": 1.0, "sigma": 0.5},
    "no-norm": {"match_norm": False}, "no-residual": {"relevance_residual": False},
    "official": {"compat": "official", "topk": 4}, "padded": {"mask_adjacency": False, "topk": 8},
}
MECHANISMS = {"fusion": {"mechanism": "fusion"}, "standalone": {"mechanism": "standalone"}, "layers": {
    "mechanism": "standalone", "num_layers": 2}, "fusion-layers": {"mechanism": "fusion", "num_layers": 2}}
each_switch = pytest.mark.parametrize("switch", SWITCHES)
each_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS)


def make(dtype=torch.float64, **setting):
    torch.manual_seed(0)
    config = {"region_dim": 10, "vocab_size": 30, "embed_dim": 12, "word_dim": 8, "num_heads": 3, "dropout": 0.0,
              "region_dropping": 0.0, "word_dropping": 0.0, "topk": 5, **setting}
    model = HREM(checked_config(HremConfig, config, "test")).to(dtype)
    with torch.no_grad():  # words that differ, and attention far from uniform
        for name, value in model.named_parameters():
            value.mul_(5 if name.startswith("text.embed") else 3 if "in_proj" in name else 1)
    return model


def make_batch(size=6, ids=(0, 1, 1, 2, 3, 4), dtype=torch.float64, seed=1, **shape):
    """A Batch of pairs; images of the same id are the same."""
    regions, region_mask, tokens, token_mask = ragged_batch(size, size, dtype=dtype, seed=seed, **shape)
    tokens, token_mask = (torch.cat([side[:-1], side[:1]]) for side in (tokens, token_mask))
    ids = torch.tensor(ids)
    first = (ids[:, None] == ids).int().argmax(1)
    return Batch(regions[first], region_mask[first], tokens, token_mask, ids, ids, torch.arange(size))


def fixed_draws(weights):
    """Draws that need no generator: the candidate of the largest weight."""
    return weights.argmax(1)


def literally(model, images, captions):
    """A and S from the literal loop, less what is switched off."""
    c = model.config
    blank = torch.nn.Sequential(torch.nn.Linear(c.topk, 1)).double()
    mlps = [model.relevance[way] if c.learns_relevance else blank for way in ("i2t", "t2i")]
    connection, relevance = literal_graph(
        images.embedding, captions.embedding, images.fragments, images.mask.sum(1).tolist(), captions.fragments,
        captions.mask.sum(1).tolist(), *mlps, threshold=c.threshold, topk=c.topk, sigma=c.sigma, padded=not c.mask_adjacency,
        match_norm=c.match_norm, residual=c.relevance_residual)
    image = torch.arange(len(connection)) < len(images)
    same = image[:, None] == image
    on = {"all": torch.ones_like(same), "intra": same, "inter": ~same}[c.relations]
    connection = connection if c.connection else torch.ones_like(connection)
    return connection & on, relevance * on if c.relevance else torch.zeros_like(relevance)


def among_different(connection, data):
    """Connection (N, N) with the columns of equal images, and of equal captions, joined. They tie exactly, and where one stands at the border of
    what is near, rounding decides whether the other is in."""
    ids = [f"image {number}" for number in data.image_ids.tolist()] + [f"caption {row[mask].tolist()}" for row, mask in zip(data.tokens, data.token_mask)]
    return torch.stack([connection[:, [place for place, other in enumerate(ids) if other == name]].any(1) for name in dict.fromkeys(ids)], 1)


# --- the graph ---


@pytest.mark.parametrize("setting", [*SWITCHES.values(), *DETAILS.values()], ids=[*SWITCHES, *DETAILS])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_graph_and_its_gradients_are_those_of_the_literal_loop(setting, ragged):
    model = make(**setting)
    data = make_batch(ragged=ragged)
    found = []
    for relate in (lambda *sides: vars(model.relate(*sides)), lambda *sides: dict(zip(("connection", "relevance"), literally(model, *sides)))):
        model.zero_grad()
        images, captions = encode(model, data)
        graph = relate(images, captions)
        bias = graph_bias((found[0][0] if found else graph)["connection"], graph["relevance"], model.config.relation_weight)
        weights = torch.randn(bias.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        (bias.masked_fill(bias.isinf(), 0) * weights).sum().backward() if bias.requires_grad else None
        found.append((graph, {name: value.grad for name, value in model.named_parameters() if value.grad is not None}))
    (ours, gradients), (theirs, expected) = found
    assert torch.equal(among_different(ours["connection"], data), among_different(theirs["connection"], data))
    torch.testing.assert_close(ours["relevance"], theirs["relevance"], rtol=0, atol=1e-12)
    learned = model.config.learns_relevance
    assert any(value.abs().sum() > 0 for value in gradients.values()) == model.config.relevance
    assert any(name.startswith("relevance") for name in gradients) == learned
    for name, value in gradients.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-10, msg=name)


def test_inter_modal_relations_give_the_encoders_no_gradient():
    model = make(relations="inter")
    graph = model.relate(*encode(model, make_batch()))
    graph.relevance.sum().backward()
    assert {name.split(".")[0] for name, value in model.named_parameters() if value.grad is not None} == {"relevance"}


def test_a_sample_is_at_distance_0_from_itself_and_has_a_finite_gradient():
    x = torch.nn.functional.normalize(torch.randn(60, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    x[7] = x[3]
    x.requires_grad_()
    near = closeness(x, x, 1.0)
    assert (near.diagonal() == 1).all() and near[3, 7] == 1 and (near <= 1).all()
    near.sum().backward()
    assert x.grad.isfinite().all()
    expected = torch.exp(-torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist"))
    torch.testing.assert_close(near.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.float64, 1e-9)])
def test_distances_have_the_gradient_of_their_definition_near_and_far(dtype, tolerance):
    x = torch.nn.functional.normalize(torch.randn(12, 64, generator=torch.Generator().manual_seed(0), dtype=dtype), dim=1)
    x[1:4] = x[:1] + 1e-3 * x[1:4]
    weights = torch.randn(12, 12, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x, exact = x.requires_grad_(), x.detach().double().requires_grad_()
    near = closeness(x, x, 0.7)
    expected = torch.exp(-torch.linalg.vector_norm(exact[:, None] - exact, dim=2) / 0.7)
    torch.testing.assert_close(near, expected.to(dtype), rtol=0, atol=tolerance / 100)
    (near * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, exact.grad.to(dtype), rtol=0, atol=tolerance)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("images", [(1, 1), (4, 1), (5, 2), (2, 4)])
def test_blocks_change_no_match(images, norm, monkeypatch):
    """Blocks of so many images in the product and after it, of 6; with padding, and words that are used but not true."""
    generator = torch.Generator().manual_seed(0)
    regions, words = (torch.randn(6, count, 12, generator=generator, dtype=torch.float64) for count in (7, 9))
    region_mask = torch.arange(7) < torch.tensor([7, 3, 5, 1, 7, 6])[:, None]
    used = torch.arange(9) < torch.tensor([9, 4, 4, 4, 6, 5])[:, None]
    masks = region_mask, words, used & (torch.arange(9) < torch.tensor([9, 1, 2, 4, 6, 5])[:, None]), used
    expected = match_fragments(regions, *masks, 5, norm)
    monkeypatch.setattr(hrem, "CPU_BLOCKS", [count * 7 * 54 * 8 for count in images])
    for ours, whole in zip(match_fragments(regions, *masks, 5, norm), expected):
        torch.testing.assert_close(ours.mean, whole.mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(ours.vector, whole.vector, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("share", "counts"), [(0.5, 3), (0.1, 1), (1.0, 7)])
def test_the_nearest_are_a_share_of_the_row_and_one_at_least(share, counts):
    scores = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    near = nearest(scores, share)
    assert (near.sum(1) == counts).all()
    assert all(scores[row][near[row]].min() > scores[row][~near[row]].max() for row in range(4) if counts < 7)


def test_missing_entries_of_a_relation_vector_are_0():
    model = make(topk=20)
    i2t, t2i = model._match(*encode(model, make_batch()))
    words, regions = make_batch().token_mask.sum(1), make_batch().region_mask.sum(1)
    for row in range(6):
        assert (t2i.vector[row, :, words[row]:] == 0).all() and (t2i.vector[row, :, : words[row]] != 0).all()
        assert (i2t.vector[row, :, regions[row]:] == 0).all() and (i2t.vector[row, :, : regions[row]] != 0).all()


# --- the mechanisms ---


@each_switch
@each_mechanism
def test_the_mechanism_is_the_literal_one(mechanism, switch):
    model = make(**MECHANISMS[mechanism], **SWITCHES[switch])
    images, captions = encode(model, make_batch())
    graph = model.relate(images, captions)
    found = model.enhance(images, captions, graph)
    config = model.config
    expected = literal_mechanism(model.graph, images.embedding, captions.embedding, graph.connection, graph.relevance,
                                 config.relation_weight, config.mechanism, config.relations)
    for ours, theirs in zip(found, expected):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@each_mechanism
def test_what_a_node_depends_on(mechanism):
    """With intra-modal relations alone no caption reaches an image; with inter-modal ones alone, after one layer, no other image."""
    def reached(relations):
        model = make(**{**MECHANISMS[mechanism], "num_layers": 1, "relations": relations})
        images, captions = encode(model, make_batch())
        graph = model.relate(images, captions)
        sides = [Encoding(embedding=side.embedding.detach().requires_grad_()) for side in (images, captions)]
        (model.enhance(*sides, graph)[0][0] * torch.arange(12)).sum().backward()  # not the plain sum: LayerNorm keeps that at 0
        return [[bool((row.abs() > 1e-9).any()) for row in side.embedding.grad] if side.embedding.grad is not None else [False] * 6
                for side in sides], graph.connection[0].tolist()
    (own, other), connected = reached("intra")
    assert own == connected[:6] and 1 < sum(own) < 6 and not any(other)
    (own, other), connected = reached("inter")
    assert own == [True] + [False] * 5 and other == connected[6:] and 0 < sum(other) < 6


@each_mechanism
def test_switches_leave_embeddings_alone(mechanism):
    expected = None
    for switch in ({"mechanism": "none"}, *({**MECHANISMS[mechanism], **setting} for setting in SWITCHES.values())):
        model = make(**switch)
        images, captions = encode(model, make_batch())
        expected = expected or (images.embedding, captions.embedding)
        assert torch.equal(images.embedding, expected[0]) and torch.equal(captions.embedding, expected[1])


def test_switches_change_what_they_should_and_nothing_else():
    seen = {name: make(**setting).explain(*encode(make(**setting), make_batch())) for name, setting in SWITCHES.items()}
    whole, image = seen["all"], torch.arange(12) < 6
    same = image[:, None] == image
    assert torch.equal(seen["intra"]["connection"], whole["connection"] & same)
    assert torch.equal(seen["inter"]["connection"], whole["connection"] & ~same)
    assert torch.equal(seen["intra"]["relevance"], whole["relevance"] * same)
    assert torch.equal(seen["inter"]["relevance"], whole["relevance"] * ~same)
    assert torch.equal(seen["A"]["connection"], whole["connection"]) and not seen["A"]["relevance"].any()
    assert seen["S"]["connection"].all() and torch.equal(seen["S"]["relevance"], whole["relevance"])
    assert seen["neither"]["connection"].all() and not seen["neither"]["relevance"].any()
    assert torch.equal(seen["lambda"]["connection"], whole["connection"])
    assert torch.equal(seen["lambda"]["relevance"], whole["relevance"])
    scores = [value["graph_scores"] for value in seen.values()]
    assert all((a - b).abs().max() > 1e-4 for n, a in enumerate(scores) for b in scores[:n])
    weightless = make(relation_weight=0.0)
    assert torch.allclose(weightless.explain(*encode(weightless, make_batch()))["graph_scores"], seen["A"]["graph_scores"])


@each_switch
def test_only_what_is_switched_on_has_parameters_and_all_of_them_learn(switch):
    for mechanism in ("fusion", "standalone"):
        model = make(mechanism=mechanism, **SWITCHES[switch]).train()
        model.draw = fixed_draws
        data = make_batch()
        model(data)["loss"].backward()
        names = {name for name, value in model.named_parameters() if value.grad is None}
        assert not names
        assert hasattr(model, "relevance") == (switch not in ("intra", "A", "neither"))
    base = make(mechanism="none")
    assert not hasattr(base, "graph") and not hasattr(base, "relevance") and base.explain(*encode(base, make_batch())) == {}


# --- embeddings ---


@pytest.mark.parametrize("setting", [{}, {"mechanism": "standalone"}, {"compat": "official"}, {"pool_top": 1, "beta": 0.5}],
                         ids=["default", "standalone", "official", "maximum"])
def test_test_embeddings_depend_neither_on_padding_nor_on_the_batch(setting):
    model, data = make(**setting), make_batch()
    model.train()(data)  # running statistics that differ from their start
    model.eval()
    with torch.no_grad():
        together = [side.embedding for side in encode(model, data)]
        for mode in (data, widened(data)):
            for one, both in zip(encode(model, mode), together):
                torch.testing.assert_close(one.embedding, both, rtol=0, atol=1e-12)
        for row in range(6):
            part = slice(row, row + 1)
            count, length = int(data.region_mask[row].sum()), int(data.token_mask[row].sum())
            alone = (model.encode_images(data.regions[part, :count], None),
                     model.encode_captions(data.tokens[part, :length], data.token_mask[part, :length]))
            for one, both in zip(alone, together):
                torch.testing.assert_close(one.embedding, both[part], rtol=0, atol=1e-12)
    assert torch.allclose(torch.linalg.vector_norm(together[0], dim=1), torch.ones(6, dtype=torch.float64))


@each_mechanism
@pytest.mark.parametrize("matching_loss", ["distance_weighted", "hinge"])
def test_padding_changes_no_term_of_the_training_loss(mechanism, matching_loss):
    losses = []
    for data in (make_batch(), widened(make_batch())):
        model = make(**MECHANISMS[mechanism], matching_loss=matching_loss).train()
        model.draw = fixed_draws
        losses.append(model(data))
        statistics = model.image.norm.running_mean.clone()
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name], rtol=0, atol=1e-12, msg=name)
    model = make(**MECHANISMS[mechanism]).train()
    model(make_batch())
    torch.testing.assert_close(model.image.norm.running_mean, statistics, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("switch", "term"), [("masked_batch_norm", "embedding"), ("mask_adjacency", "regulariser")])
def test_in_official_compat_padding_does_change_the_loss(switch, term):
    losses = []
    for data in (make_batch(), widened(make_batch())):
        model = make(**{switch: False}).train()
        model.draw = fixed_draws
        losses.append(float(model(data)[term].detach()))
    assert abs(losses[0] - losses[1]) > 1e-6


def test_pooling_takes_the_largest_true_values_and_as_many_as_there_are():
    x = torch.tensor([[[1.0], [5.0], [3.0]], [[-2.0], [9.0], [9.0]], [[-4.0], [-6.0], [9.0]]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    assert top_mean(x, mask, 2).flatten().tolist() == [4, -2, -5]
    assert top_mean(x, mask, 1).flatten().tolist() == [5, -2, -4]
    assert top_mean(x, mask, 7).flatten().tolist() == [3, -2, -5]


def test_what_the_loss_needs_is_kept_only_where_gradients_are_on():
    model = make()
    images, captions = encode(model, make_batch())
    assert images.fragments.shape == (6, 6, 12) and set(captions.extra) == {"pooled"}
    with torch.no_grad():
        lean = encode(model, make_batch())
    assert all(side.fragments is None and not side.extra for side in lean)
    assert torch.allclose(model.similarity(*lean), model.similarity(images, captions))
    with pytest.raises(InputError, match="encode with gradients on"):
        model.relate(*lean)
    assert model.explain(*lean) == {} and set(model.explain(images, captions)) == {"connection", "relevance", "graph_scores"}


def test_scores_keep_their_precision_under_autocast():
    model = make(torch.float32).eval()
    images, captions = encode(model, make_batch(dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.similarity(images, captions), model.similarity(images, captions).float())
        terms = model.train()(make_batch(dtype=torch.float32))
        assert terms["loss"].dtype == torch.float32 and terms["loss"].isfinite()
        terms["loss"].backward()


@each_switch
def test_gradients_are_finite_for_one_pair_and_for_equal_samples(switch):
    model = make(torch.float32, **SWITCHES[switch]).eval()
    data = make_batch(dtype=torch.float32)
    equal = [side[[0, 0, 0]] for side in (data.regions, data.region_mask, data.tokens, data.token_mask)]
    for size in (1, 3):
        model.zero_grad()
        images, captions = model.encode_images(*(side[:size] for side in equal[:2])), model.encode_captions(*(side[:size] for side in equal[2:]))
        loss = model.loss(images, captions, torch.arange(size), torch.arange(size))["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(value.grad.isfinite().all() for value in model.parameters() if value.grad is not None)


# --- losses ---


def test_the_loss_is_the_sum_of_its_terms():
    for reduction, share in (("sum", 1), ("mean", 6)):
        model = make(reduction=reduction, reg_weight=7.0)
        model.draw = fixed_draws
        data = make_batch()
        terms = model.loss(*encode(model, data), data.image_ids, data.image_ids)
        assert set(terms) == {"loss", "embedding", "text_graph", "image_graph", "graph", "regulariser"}
        matching = sum(terms[name] for name in ("embedding", "text_graph", "image_graph", "graph"))
        torch.testing.assert_close(terms["loss"], matching + 7 / share * terms["regulariser"])
    model = make(cross_loss=False)
    assert set(model.loss(*encode(model, data), data.image_ids, data.image_ids)) == {"loss", "embedding", "graph", "regulariser"}


def test_negatives_are_drawn_by_distance_and_never_from_the_same_image():
    generator = torch.Generator().manual_seed(0)
    v, u = (torch.nn.functional.normalize(torch.randn(40, 3, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    ids = torch.arange(40) // 2
    positives, scores = ids[:, None] == ids, v @ u.T
    weights = distance_weights(scores, positives, cutoff=1.7, dim=3)
    distances = (2 - 2 * scores).sqrt()
    assert (weights[positives] == 0).all() and (weights[distances >= 1.7] == 0).all()
    assert torch.allclose(weights.sum(1), torch.ones(40, dtype=torch.float64))
    row, inside = weights[0], ~positives[0] & (distances[0] < 1.7)
    expected = 1 / distances[0].clamp(min=0.5)  # dim 3: q(D) ~ D
    torch.testing.assert_close(row[inside], expected[inside] / expected[inside].sum())
    torch.manual_seed(0)
    drawn = draw_negatives(weights[:1].expand(20000, -1))
    torch.testing.assert_close(drawn.bincount(minlength=40) / 20000, row.float(), rtol=0, atol=0.02)


def test_the_triplet_loss_by_hand():
    scores = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.4], [0.2, 0.6, 0.7]], dtype=torch.float64)
    draws = iter([torch.tensor([1, 2, 1]), torch.tensor([2, 0, 0])])
    found = sampled_triplet_loss(scores, torch.eye(3, dtype=torch.bool), 0.3, reduction="sum", draw=lambda _: next(draws))
    assert found["i2t"].item() == pytest.approx(0.2 + 0.2 + 0.2) and found["t2i"].item() == pytest.approx(0 + 0.6 + 0)
    everything = sampled_triplet_loss(scores, torch.ones(3, 3, dtype=torch.bool))
    assert everything["loss"].item() == 0


def test_a_pair_without_a_candidate_adds_nothing_and_the_others_go_on():
    scores = torch.tensor([[0.9, -0.9], [0.8, 0.7]], dtype=torch.float64, requires_grad=True)  # caption 1 is too far from image 0
    found = sampled_triplet_loss(scores, torch.eye(2, dtype=torch.bool), 0.2, cutoff=1.7, reduction="mean")
    assert found["i2t"].item() == pytest.approx((0 + 0.3) / 2) and found["t2i"].item() == pytest.approx((0.1 + 0) / 2)
    found["loss"].backward()
    assert scores.grad.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("setting", [{"matching_loss": "hinge"}, {"matching_loss": "hinge", "negatives": "all"}, {},
                                     {"cross_loss": False}, {"mechanism": "none"}, {"relation_warmup": 5}],
                         ids=["hinge", "all", "sampled", "two", "base", "warm-up"])
def test_the_collapsed_loss_is_that_of_equal_embeddings(setting, reduction):
    model = make(reduction=reduction, reg_weight=0.0, **setting)
    ids = torch.arange(6)
    images, captions = encode(model, make_batch())
    equal = torch.full((6, 12), 12**-0.5, dtype=torch.float64)
    sides = [Encoding(side.fragments, side.mask, equal, {"pooled": equal}) for side in (images, captions)]
    assert model.loss(*sides, ids, ids)["loss"].item() == pytest.approx(model.collapsed_loss(6, 6))


def test_the_instance_level_waits_for_its_warm_up(tmp_path):
    model, data = make(relation_warmup=2).train(), make_batch()
    seen = [set(model(data)) for _ in range(3)]
    assert seen[0] == seen[1] == {"loss", "embedding"} and len(seen[2]) == 6 and int(model.step) == 3
    model.eval()(data)
    assert int(model.step) == 3
    model.save_pretrained(tmp_path)
    assert int(load_model(tmp_path)[0].step) == 3


# --- dropping ---


def test_regions_are_dropped_at_the_rate_and_in_order():
    torch.manual_seed(0)
    regions = torch.arange(1.0, 51)[None, :, None].expand(200, -1, 2)
    mask = torch.arange(50) < torch.randint(1, 51, (200, 1))
    found, kept = drop_regions(regions, mask, 0.2)
    assert abs(kept.sum() / mask.sum() - 0.8) < 0.02 and kept.any(1).all() and kept[:, -1].any()
    assert (found[~kept] == 0).all()
    for row, keep, before in zip(found, kept, mask):
        values = row[keep][:, 0]
        assert (values.diff() > 0).all() and values[-1] <= before.sum() and keep.int().diff().max() <= 0
    all_kept, _ = drop_regions(regions[:, :1], mask[:, :1], 0.9)
    assert (all_kept == 1).all()


def test_words_are_masked_replaced_and_deleted_and_ends_stay():
    torch.manual_seed(0)
    tokens = torch.full((400, 30), 20)
    mask = torch.arange(30) < torch.randint(3, 31, (400, 1))
    tokens[:, 0] = 1
    tokens[torch.arange(400), mask.sum(1) - 1] = 2
    found, kept = drop_words(tokens * mask, mask, 0.2, 3, 1000)
    before, after = int(mask.sum()) - 800, int(kept.sum()) - 800
    assert (found[:, 0] == 1).all() and (found[torch.arange(400), kept.sum(1) - 1] == 2).all() and (found[~kept] == 0).all()
    assert abs(1 - after / before - 0.08) < 0.01 and (kept.sum(1) >= 3).all()
    inner = found[kept]
    assert abs(int((inner == 3).sum()) / before - 0.1) < 0.01
    assert abs(int(((inner > 3) & (inner != 20)).sum()) / before - 0.02) < 0.01


def test_pieces_of_a_word_share_its_fate():
    """Words of three, two and one pieces: after masking and deleting, only whole words are left, masked or gone."""
    torch.manual_seed(0)
    tokens = torch.tensor([[1, 10, 11, 12, 13, 14, 15, 2]]).expand(500, -1)
    continues = torch.zeros(1000, dtype=torch.bool)
    continues[[11, 12, 14]] = True
    found, kept = drop_words(tokens, torch.ones_like(tokens, dtype=torch.bool), 0.5, 3, 1000, continues)
    whole = [([10, 11, 12], [3, 3, 3]), ([13, 14], [3, 3]), ([15], [3])]
    expected = {(1, *(piece for word in words for piece in word), 2) for words in itertools.product(*((*word, []) for word in whole))}
    seen = {tuple(row[keep].tolist()) for row, keep in zip(found, kept)}
    seen = {row for row in seen if not any(piece not in (1, 2, 3, *range(10, 16)) for piece in row)}  # none replaced
    assert seen == expected - {(1, 2)}


def test_dropping_follows_torchs_generator_and_stops_at_test():
    model, data = make(region_dropping=0.4, word_dropping=0.4).train(), make_batch()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(model(data)["embedding"].detach()))
    assert losses[0] == losses[1] != losses[2]
    model.eval()
    model.draw = fixed_draws
    assert torch.equal(model(data)["loss"], model(data)["loss"])


# --- learning, saving, BERT ---


def learns(model, data, steps=25):
    optimizer = torch.optim.AdamW([{"params": each["params"], "lr": 3e-3 * each["lr_scale"]} for each in model.parameter_groups()])
    losses = train_on(model, data, optimizer, steps)
    return losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("mechanism", ["fusion", "standalone", "none"])
def test_training_lowers_the_loss_with_everything_on(mechanism):
    model = make(torch.float32, mechanism=mechanism, dropout=0.1, matching_loss="hinge", reg_weight=1.0)
    assert learns(model, make_batch(dtype=torch.float32))


def test_a_bert_trains_is_saved_and_reads_back_without_its_folder(bert_folder, tmp_path):
    model = make(torch.float32, text_encoder="bert", bert=str(bert_folder), word_dropping=0.2, matching_loss="hinge")
    assert model.config.mask_id == 4 and model.text.continues.tolist() == [False] * 25 + [True] * 5
    scales = {each["lr_scale"]: len(each["params"]) for each in model.parameter_groups()}
    assert scales[0.1] == len(list(model.text.bert.parameters())) and set(scales) == {0.1, 1.0}
    before = model.text.bert.encoder.layer[0].output.dense.weight.clone()
    data = make_batch(dtype=torch.float32)
    assert learns(model, data)
    assert not torch.equal(model.text.bert.encoder.layer[0].output.dense.weight, before)
    assert all(value.grad is not None for value in model.parameters())
    model.save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text().replace(str(bert_folder), "gone")
    (tmp_path / "config.json").write_text(config)
    found = load_model(tmp_path)[0]
    assert torch.equal(found.text.continues, model.text.continues) and found.config.mask_id == 4
    sides = [encode(each.eval(), data)[1].embedding for each in (model, found)]
    assert torch.equal(*sides)
    wide = encode(model, widened(make_batch(words=8, dtype=torch.float32)))[1].embedding
    torch.testing.assert_close(wide, encode(model, make_batch(words=8, dtype=torch.float32))[1].embedding, rtol=0, atol=1e-6)


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 400
    return text


def test_what_does_not_fit_a_bert_is_one_line(bert_folder, tmp_path):
    def failing(**setting):
        with pytest.raises(InputError) as error:
            make(text_encoder="bert", **setting)
        return line_of(error)
    assert "the captions have a vocabulary of 31 and this BERT one of 30" in failing(bert=str(bert_folder), vocab_size=31)
    assert "nowhere' is no folder here: give a folder that holds one" in failing(bert=str(tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((bert_folder / name).read_bytes())
    assert "has no tokenizer: put its tokenizer.json or vocab.txt there" in failing(bert=str(bare), word_dropping=0.2)
    assert make(text_encoder="bert", bert=str(bert_folder), word_dropping=0.2, mask_id=1).config.mask_id == 1
    model = make(text_encoder="bert", bert=str(bare))
    with pytest.raises(InputError, match="17 tokens and this BERT reads 16 at most"):
        model.encode_captions(torch.ones(1, 17, dtype=torch.int64), torch.ones(1, 17, dtype=torch.bool))
    with pytest.raises(InputError, match="token id 30 is outside BERT's vocabulary of 30"):
        model.encode_captions(torch.full((1, 3), 30), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("setting", [{}, {"mechanism": "standalone", "relations": "inter"}, {"mechanism": "none"}])
def test_a_saved_model_reads_back_the_same(setting, tmp_path):
    model = make(torch.float32, **setting).eval()
    model.save_pretrained(tmp_path)
    found = load_model(tmp_path)[0]
    assert isinstance(found, HREM) and found.config == model.config
    data = make_batch(dtype=torch.float32)
    assert torch.equal(found.similarity(*encode(found, data)), model.similarity(*encode(model, data)))


def test_compat_fills_the_switches_and_a_given_one_stays():
    config = HremConfig(vocab_size=9, compat="official", masked_batch_norm=True)
    assert (config.reduction, config.mask_adjacency, config.masked_batch_norm, config.same_image_negatives) == ("sum", False, True, False)
    config = HremConfig(vocab_size=9)
    assert (config.reduction, config.mask_adjacency, config.masked_batch_norm, config.matching_loss) == (
        "mean", True, True, "distance_weighted")


@pytest.mark.parametrize(("setting", "expected"), [
    ({"mechanism": "fussion"}, "mechanism"), ({"relation": "intra"}, "no setting 'relation'; did you mean 'relations'"),
    ({"embed_dim": 10}, "embed_dim 10 is no multiple of num_heads 3"), ({"text_encoder": "bert"}, "needs bert, a folder or a name"),
    ({"threshold": 0}, "threshold"), ({"topk": 0}, "topk"), ({"beta": 1.5}, "beta"), ({"word_dropping": 1.0}, "word_dropping"),
    ({"matching_loss": "trip"}, "matching_loss"), ({"sigma": 0}, "sigma"), ({"sampling_dim": 3}, "sampling_dim"),
])
def test_a_wrong_setting_is_one_line(setting, expected):
    with pytest.raises(InputError, match=expected) as error:
        build_model("hrem", {"embed_dim": 12, "num_heads": 3, **setting}, 10, 30)
    line_of(error)


def test_regions_of_another_size_are_one_line():
    with pytest.raises(InputError, match="were given to a model built for"):
        make().encode_images(torch.zeros(2, 3, 7), None)
