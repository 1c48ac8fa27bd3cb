"""HREM against tensors that the authors' released code computed: through load_official, in float64 and float32.

BatchNorm is in training mode, as it was there, and every dropout is 0.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from itm_lib.losses import distance_weights, hinge_loss, matched_pairs, positive_mask, sampled_triplet_loss
from itm_lib.models.hrem import closeness, cross_relevance, graph_bias, match_fragments, regulariser, top_mean
from itm_lib.models.layers import masked_mean
from itm_lib.models.official import HREM_UNUSED, hrem_name, load_official

FOLDER = Path(__file__).parent.parent / "golden" / "hrem"
SHARED = FOLDER / "shared.safetensors"  # what is the same in all cases
CASES = sorted([*FOLDER.glob("trip_*"), *FOLDER.glob("vse_*")])


def read(path):
    """The tensors of a golden file; those that float32 holds exactly are stored as such."""
    return {key: value.double() if value.is_floating_point() and not key.startswith("out32/") else value
            for key, value in load_file(path).items()}


def hyper(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["hyper"])


def group(golden, prefix):
    return {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}


def close(found, expected, name, atol=1e-9):
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=atol, err_msg=name)


class Stored:
    """Stands in for the draws: gives the indices that the authors' code drew, and keeps the weights it was given."""

    def __init__(self, indices):
        self.indices, self.weights = iter(indices), []

    def __call__(self, weights):
        self.weights.append(weights)
        return next(self.indices)


class Golden:
    """A golden file and the batch in it."""

    def __init__(self, golden, dtype):
        self.golden = golden
        self.regions, self.tokens = golden["in/images"].to(dtype), golden["in/captions"]
        self.region_mask = torch.arange(self.regions.shape[1]) < golden["in/img_lengths"][:, None]
        self.mask = torch.arange(self.tokens.shape[1]) < golden["in/lengths"][:, None]

    def equal(self, found, name):
        """``found`` is the golden tensor, if the file has it; says whether it has."""
        if f"out/{name}" in self.golden:
            close(found, self.golden[f"out/{name}"], name)
        return f"out/{name}" in self.golden


class Case(Golden):
    """A golden file, our model of it, and its batch."""

    def __init__(self, path, dtype=torch.float64):
        super().__init__({**read(SHARED), **read(path)}, dtype)
        self.hyper = hyper(path)
        self.model = load_official(group(self.golden, "state/"), "hrem", config=self.hyper).to(dtype).train()
        self.ids = self.golden["in/img_ids"]
        drawn = [self.golden[f"out/multinomial_idx_{n}"].flatten() for n in range(8) if f"out/multinomial_idx_{n}" in self.golden]
        self.model.draw = Stored(drawn)

    def encode(self):
        return self.model.encode_images(self.regions, self.region_mask), self.model.encode_captions(self.tokens, self.mask)

    def loss(self):
        return self.model.loss(*self.encode(), self.ids, self.ids)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def path(request):
    return request.param


def with_tensor(name):
    """The cases whose file has a tensor."""
    return pytest.mark.parametrize("path", [path for path in CASES if name in load_file(path)], ids=lambda path: path.stem)


def test_every_released_setting_has_a_case():
    settings = [hyper(path) for path in CASES]
    assert len(settings) == 5
    for switch, values in {"base_loss": {"trip", "vse"}, "max_violation": {True, False}, "mask_repeat": {0, 1},
                           "cross_loss": {0, 1}, "warmup": {0, 10**9}}.items():
        assert {case[switch] for case in settings} == values
    config = Case(CASES[0]).model.config
    assert (config.compat, config.masked_batch_norm, config.mask_adjacency, config.reduction) == ("official", False, False, "sum")
    assert (config.mechanism, config.relations, config.connection, config.relevance) == ("fusion", "all", True, True)


def test_fragment_level(path):
    case = Case(path)
    images, captions = case.encode()
    for side, kind, relations in ((images, "img", case.model.image_relations), (captions, "txt", case.model.text_relations)):
        case.equal(side.fragments, f"{kind}_local")
        related = relations.feed(relations.attend(side.fragments, side.fragments, padding=~side.mask))
        for row, count in enumerate(side.mask.sum(1)):
            if f"out/{kind}_transformer" in case.golden:
                close(related[row, :count], case.golden[f"out/{kind}_transformer"][row, :count], kind)
        assert case.equal(top_mean(side.fragments, side.mask, 2), f"{kind}_initial")
        assert case.equal(masked_mean(related, side.mask), f"{kind}_enhanced")
    for side, kind in ((images, "img"), (captions, "cap")):
        assert case.equal(side.embedding, f"{kind}_emb") and case.equal(side.extra["pooled"], f"{kind}_emb_notnorm")
    assert case.equal(case.model.similarity(images, captions), "scores")


def test_connection_relevance_and_graph():
    case = Case(CASES[0])
    images, captions = case.encode()
    i2t, t2i = case.model._match(images, captions)
    for matches, way in ((i2t, "i2t"), (t2i, "t2i")):
        assert case.equal(matches.mean, f"{way}_mean")
        case.equal(matches.vector, f"{way}_topk")
    graph = case.model.relate(images, captions)
    size = len(case.ids)
    blocks = {"i2i": (0, 0), "i2t": (0, size), "t2i": (size, 0), "t2t": (size, size)}
    for name, (row, column) in blocks.items():
        place = slice(row, row + size), slice(column, column + size)
        assert torch.equal(graph.connection[place], case.golden[f"out/connect_{name}"])
        assert case.equal(graph.relevance[place], f"relation_{name}")
    bias = graph_bias(graph.connection, graph.relevance, case.model.config.relation_weight)
    assert torch.equal(bias.isinf(), ~graph.connection)
    case.equal(bias, "gnn_mask")
    unit = torch.nn.functional.normalize(case.golden["out/gnn_out"], dim=1)
    close(torch.cat(case.model.enhance(images, captions, graph)), unit, "gnn_out")
    assert case.equal(regulariser(graph.i2t, graph.t2i, closeness(images.embedding, captions.embedding, 1.0)), "reg_loss")


def test_losses_and_gradients_in_float64(path):
    case = Case(path)
    terms = case.loss()
    theirs = {0: "embedding", 1: "graph"} if not case.hyper["cross_loss"] else {
        0: "embedding", 1: "text_graph", 2: "image_graph", 3: "graph"}
    for number, name in theirs.items():
        if name in terms:
            assert case.equal(terms[name], f"loss_term_{number}")
    assert set(terms) - {"loss", "regulariser"} == set(theirs.values() if case.model.graph_is_on else ["embedding"])
    close(terms["loss"], case.golden["out/loss"], "loss")
    if case.model.draw.weights:
        assert len(case.model.draw.weights) == 8
        for number, weights in enumerate(case.model.draw.weights):
            assert case.equal(weights, f"multinomial_w_{number}")
    terms["loss"].backward()
    ours = {name: value.grad for name, value in case.model.named_parameters()}
    found = [value for value in ours.values() if value is not None]
    close(torch.linalg.vector_norm(torch.stack([value.norm() for value in found])), case.golden["out/grad_norm"], "grad_norm")
    expected = group(case.golden, "grad/")
    assert len(expected) >= 9
    for name, value in expected.items():
        close(ours[hrem_name(name.replace("/", ".", 1))], value, name)
    graph = [name for name in ours if name.startswith(("graph", "relevance"))]
    assert graph and all((ours[name] is None) == (not case.model.graph_is_on) for name in graph)


@with_tensor("after3/img_enc/fc.fc.bias")
def test_three_steps_of_the_optimizer(path):
    case = Case(path)
    if "out/step_multinomial_idx" in case.golden:
        case.model.draw = Stored(case.golden["out/step_multinomial_idx"])
    lr = case.hyper["learning_rate"]
    groups = [{"params": each["params"], "lr": lr * each["lr_scale"]} for each in case.model.parameter_groups()]
    assert sorted(each["lr"] / lr for each in groups) == pytest.approx([0.1, 1])
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.loss()["loss"]
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), case.hyper["grad_clip"])
        optimizer.step()
    np.testing.assert_allclose(losses, case.golden["out/loss_steps"], rtol=0, atol=1e-8)
    ours, expected = case.model.state_dict(), group(case.golden, "after3/")
    assert len(expected) >= 20
    for name, value in expected.items():
        flat = name.replace("/", ".", 1)
        if flat.startswith(HREM_UNUSED):  # they learn nothing there, and are not kept here
            assert torch.equal(value, case.golden[f"state/{name}"]) or "running" in name or "tracked" in name
        else:
            close(ours[hrem_name(flat)], value, name, atol=1e-8)


def test_scores_and_loss_in_float32(path):
    case = Case(path, torch.float32)
    scores = case.model.similarity(*case.encode())
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.detach(), case.golden["out32/scores"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(case.loss()["loss"].item(), case.golden["out32/loss"], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("variant", ["default", "img_len_use", "no_scan", "no_res"])
def test_variants_of_the_inter_modal_relations(variant):
    golden = read(FOLDER / "adjacency_learning_variants.safetensors")
    regions, words = golden["in/img_regions"], golden["in/cap_words"]
    place = torch.arange(words.shape[1])
    mask, used = (place < count[:, None] for count in (golden["in/cap_len"], golden["in/cap_len"].clamp(min=5)))
    region_mask = torch.arange(regions.shape[1]) < golden["in/img_len"][:, None]
    every = torch.ones_like(region_mask)
    matches = match_fragments(regions, region_mask if variant == "img_len_use" else every, words, mask, used, 5,
                              norm=variant != "no_scan", used_regions=every)
    learned = []
    for way, part in zip(("i2t", "t2i"), matches):
        layers = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)).double()
        layers.load_state_dict({f"{ours}.{kind}": golden[f"state/mlp_{way}.{theirs}.{kind}"]
                                for theirs, ours in ((0, 0), (3, 2)) for kind in ("weight", "bias")})
        learned.append(cross_relevance(part, layers, residual=variant != "no_res"))
        close(part.mean, golden[f"out/{variant}_{way}_mean"], way)
        close(learned[-1], golden[f"out/{variant}_{way}_relation"], way)
    unit = [torch.nn.functional.normalize(side.mean(1), dim=1) for side in (regions, words)]
    close(regulariser(*learned, closeness(*unit, 1.0)), golden[f"out/{variant}_reg"], "reg")


def given_embeddings():
    golden = read(FOLDER / "losses_standalone.safetensors")
    sides = [golden[f"in/{name}"].requires_grad_() for name in ("im", "s")]
    return golden, sides, golden["in/img_ids"]


@pytest.mark.parametrize(("name", "cutoff"), [("trip_f30k", 1.7), ("trip_coco", 1.9)])
def test_sampled_triplet_loss_of_given_embeddings(name, cutoff):
    golden, sides, ids = given_embeddings()
    draws = Stored([golden[f"out/{name}_idx{n}"].flatten() for n in (0, 1)])
    loss = sampled_triplet_loss(sides[0] @ sides[1].T, positive_mask(ids, ids), 0.2, cutoff, reduction="sum", draw=draws)["loss"]
    close(loss, golden[f"out/{name}"], name)
    for number, weights in enumerate(draws.weights):
        if f"out/{name}_w{number}" in golden:
            close(weights, golden[f"out/{name}_w{number}"], name)
    loss.backward()
    for side, suffix in zip(sides, ("gim", "gs")):
        if f"out/{name}_{suffix}" in golden:
            close(side.grad, golden[f"out/{name}_{suffix}"], suffix)


def test_sampled_triplet_loss_without_a_negative():
    golden, sides, ids = given_embeddings()
    scores = sides[0] @ sides[1].T
    everything = torch.ones_like(scores, dtype=torch.bool)
    loss = sampled_triplet_loss(scores, everything, reduction="sum")["loss"]
    assert loss.item() == golden["out/trip_empty"].item() == 0
    assert (distance_weights(scores, everything) == 0).all()


@pytest.mark.parametrize("negatives", ["hardest", "all"])
@pytest.mark.parametrize("repeated", [True, False])
def test_hinge_loss_of_given_embeddings(negatives, repeated):
    golden, sides, ids = given_embeddings()
    name = f"vse_{'max' if negatives == 'hardest' else 'sum'}_maskrepeat{0 if repeated else 1}"
    loss = hinge_loss(sides[0] @ sides[1].T, matched_pairs(ids, ids), positive_mask(ids, ids, repeated), 0.2, negatives, "sum")["loss"]
    close(loss, golden[f"out/{name}"], name)
    loss.backward()
    for side, suffix in zip(sides, ("gim", "gs")):
        if f"out/{name}_{suffix}" in golden:
            close(side.grad, golden[f"out/{name}_{suffix}"], suffix)
