"""CAMP against tensors that the authors' released code computed: through load_official, in float64 and float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_golden_scan import Case, group

from itm_lib.losses import bce_loss, hinge_loss, matched_pairs, positive_mask
from itm_lib.models.layers import l2norm
from itm_lib.models.official import CAMP_MODULES

FOLDER = Path(__file__).parent.parent / "golden" / "camp"
CASES = sorted(path for path in FOLDER.glob("*_*_new_*.npz") if not path.stem.endswith("_messages"))


class CampCase(Case):
    method = "camp"

    def parameters(self):
        """Our parameters under the authors' names."""
        ours = dict(self.model.named_parameters())
        named = {}
        for key in group(self.golden, "state/"):
            part, _, rest = key.partition("/")
            module, _, name = rest.rpartition(".")
            found = {"img_enc": f"image.{rest}", "txt_enc": f"text.{rest}"}.get(part) or f"{CAMP_MODULES[module]}.{name}"
            named[key] = ours.pop(found)
        assert not ours
        return named

    def seen(self):
        """Regions, words and what explain shows of them."""
        with torch.no_grad():
            images, captions = self.encode()
            return images.fragments, captions.fragments, self.model.explain(images, captions)

    def equal(self, found, name, atol=1e-9):
        """``found`` is the golden tensor."""
        np.testing.assert_allclose(found.detach(), self.golden[f"out/{name}"], rtol=0, atol=atol, err_msg=name)

    def true_words(self, name, axes=(2,)):
        """The golden tensor with the word axes cut to the longest caption and 0 beyond each caption's end."""
        value = torch.from_numpy(self.golden[f"out/{name}"])
        for axis in axes:
            value = value.narrow(axis, 0, self.tokens.shape[1])
            mask = self.mask.view(1, len(self.mask), *(self.mask.shape[1] if at == axis else 1 for at in range(2, value.dim())))
            value = value * mask
        return value


def close(found, expected, name):
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=1e-9, err_msg=name)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def path(request):
    return request.param


def with_tensor(name):
    """The cases whose file has a tensor."""
    return pytest.mark.parametrize("path", [path for path in CASES if f"out/{name}" in np.load(path)], ids=lambda path: path.stem)


def test_every_released_setting_has_a_case():
    settings = [json.loads(str(np.load(path)["hyper"])) for path in CASES]
    assert len(settings) == 7
    for switch, values in {"measure": {"cross_attention_new", "gate_fusion_new"}, "loss_func": {"BCE", "ranking"},
                           "max_violation": {True, False}, "finetune_gate": {True, False}, "pad_to": {12, 50}}.items():
        assert {case[switch] for case in settings} == values
    assert {case["optimizer"]["type"] for case in settings} == {"Adam", "SGD"}
    configs = [CampCase(path).model.config for path in CASES]
    assert {config.fusion for config in configs} == {"none", "concat", "sum"}
    assert {(config.score, config.aggregation) for config in configs} == {
        ("mlp", "attention"), ("cosine", "attention"), ("cosine", "mean")}
    for name, least in {"img_emb": 2, "cap_emb": 3, "attn_word_to_region": 4, "reduce_attn_txt": 3, "gate_txt": 2,
                        "final_txt_vec": 5}.items():
        assert sum(f"out/{name}" in np.load(path) for path in CASES) >= least


def test_scores_encodings_loss_and_gradients_in_float64(path):
    case = CampCase(path)
    images, captions = case.encode()
    case.equal(case.model.similarity(images, captions), "scores")
    if "out/cap_emb" in case.golden:
        close(captions.fragments, case.golden["out/cap_emb"][:, : case.tokens.shape[1]], "words")
        assert (case.golden["out/cap_emb"][:, case.tokens.shape[1]:] == 0).all()
    if "out/img_emb" in case.golden:
        case.equal(images.fragments, "img_emb")
    loss = case.loss()
    assert abs(loss.item() - case.golden["out/loss"]) < 1e-9
    loss.backward()
    parameters = case.parameters()
    norm = torch.nn.utils.get_total_norm([parameters[name].grad for name in case.hyper["trained_params"]])
    assert abs(norm.item() - case.golden["out/grad_norm_trained"]) < 1e-9
    expected = group(case.golden, "grad/")
    assert set(expected) == (set(parameters) if "fixatt" not in path.stem else set())  # there they are finetune's
    for name, value in expected.items():
        close(parameters[name].grad, value, name)


def test_three_steps_of_the_optimizer(path):
    case = CampCase(path)
    parameters, settings = case.parameters(), case.hyper["optimizer"]
    trained = [parameters[name] for name in case.hyper["trained_params"]]
    frozen = {name: value.detach().clone() for name, value in parameters.items() if name not in case.hyper["trained_params"]}
    for name in frozen:
        parameters[name].requires_grad_(False)
    if settings["type"] == "Adam":
        optimizer = torch.optim.Adam(trained, lr=case.hyper["learning_rate"])
    else:
        optimizer = torch.optim.SGD(trained, lr=case.hyper["learning_rate"], momentum=settings["momentum"],
                                    weight_decay=settings["weight_decay"], nesterov=settings["nesterov"])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.loss()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, case.hyper["grad_clip"])
        optimizer.step()
    np.testing.assert_allclose([*losses, case.loss().item()], case.golden["out/loss_steps"], rtol=0, atol=1e-8)
    case.equal(case.model.similarity(*case.encode()), "scores_after3", atol=1e-8)
    expected = group(case.golden, "after3/")
    assert set(expected) == set(case.hyper["trained_params"])
    for name, value in expected.items():
        np.testing.assert_allclose(parameters[name].detach(), value, rtol=0, atol=1e-8, err_msg=name)
    for name, value in frozen.items():
        assert torch.equal(parameters[name], value)


def test_fixatt_freezes_the_encoders_and_the_attention():
    case = CampCase(FOLDER / "gate_fusion_new_concat_BCE_maxviol_fixatt.npz")
    trained = {id(case.parameters()[name]) for name in case.hyper["trained_params"]}
    free = {name for name, value in case.model.named_parameters() if id(value) in trained}
    assert free == {name for name, _ in case.model.named_parameters() if not name.startswith(("image", "text", "attention"))}


def test_scores_and_loss_in_float32(path):
    case = CampCase(path, torch.float32)
    scores = case.model.similarity(*case.encode())
    np.testing.assert_allclose(scores.detach(), case.golden["out32/scores"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(case.loss().item(), case.golden["out32/loss"], rtol=1e-6, atol=1e-6)


@with_tensor("attn_word_to_region")
def test_attention_is_the_authors(path):
    case = CampCase(path)
    *_, seen = case.seen()
    close(seen["attention"], case.true_words("attn_word_to_region"), "attention")
    close(seen["region_attention"], case.true_words("attn_region_to_word", axes=(3,)), "region_attention")


@with_tensor("attn2_region")
def test_second_attention_is_the_authors(path):
    """The coefficients of the messages are the second attention times the first, at length 1 where messages have it."""
    case = CampCase(path)
    regions, words, seen = case.seen()
    for kind, first, among, senders in (
            ("region", seen["region_attention"], torch.from_numpy(case.golden["out/attn2_region"]), words[None, :]),
            ("word", seen["attention"], case.true_words("attn2_word", axes=(2, 3)), regions[:, None])):
        expected = among @ first
        if case.model.config.message_norm:
            expected = expected / (torch.linalg.vector_norm(expected @ senders, dim=-1, keepdim=True) + 1e-8)
        close(seen[f"{kind}_messages"], expected, kind)


def test_second_attention_goes_up_to_the_padding_of_50():
    case = CampCase(FOLDER / "cross_attention_new_mean_ranking_maxviol_pad50.npz")
    *_, seen = case.seen()
    among = torch.from_numpy(case.golden["out/attn2_word_img0_cap05"])[:, :9, :9]
    close(seen["word_messages"][0, [0, 5]], (among @ seen["attention"][0, [0, 5]]) * case.mask[[0, 5], :, None], "word_messages")


@pytest.mark.parametrize("path", [path for path in CASES if path.with_name(f"{path.stem}_aggregated_messages.npz").exists()],
                         ids=lambda path: path.stem)
def test_messages_are_the_authors(path):
    case = CampCase(path)
    case.golden |= dict(np.load(path.with_name(f"{path.stem}_aggregated_messages.npz")))
    regions, words, seen = case.seen()
    finish = l2norm if case.model.config.message_norm else lambda message: message
    close(seen["word_messages"] @ regions[:, None], finish(case.true_words("agg2_for_word")), "word_messages")
    close(seen["region_messages"] @ words[None], finish(torch.from_numpy(case.golden["out/agg2_for_region"])), "region_messages")
    if case.model.config.fusion != "none":  # the other files leave out the first attention's messages, to be small
        close(seen["attention"] @ regions[:, None], case.true_words("agg_region_for_word"), "first word_messages")
        case.equal(seen["region_attention"] @ words[None], "agg_word_for_region")


@with_tensor("gate_txt")
def test_gates_are_the_authors(path):
    case = CampCase(path)
    *_, seen = case.seen()
    close(seen["word_gates"], case.true_words("gate_txt"), "word_gates")
    case.equal(seen["region_gates"], "gate_img")


@with_tensor("reduce_attn_txt")
def test_summary_attention_is_the_authors_mean_over_heads(path):
    case = CampCase(path)
    *_, seen = case.seen()
    assert case.golden["out/reduce_attn_txt"].shape[2] == case.model.config.num_heads == 4
    close(seen["word_weights"], case.true_words("reduce_attn_txt", axes=(3,)).mean(2), "word_weights")
    close(seen["region_weights"], case.golden["out/reduce_attn_img"].mean(2), "region_weights")


@with_tensor("final_txt_vec")
def test_final_vectors_follow_from_what_explain_shows(path):
    """Messages from their coefficients, fused by the gates, pooled by the weights: the vectors that the score is made of."""
    case = CampCase(path)
    regions, words, seen = case.seen()
    for kind, own, senders, name in (("word", words[None], regions[:, None], "final_txt_vec"),
                                     ("region", regions[:, None], words[None], "final_img_vec")):
        pooled = seen[f"{kind}_messages"] @ senders
        if case.model.config.fusion != "none":
            own = own.expand_as(pooled)
            joined = torch.cat([own, pooled], -1) if case.model.config.fusion == "concat" else own + pooled
            pooled = torch.relu(case.model.fusion[f"{kind}s"](seen[f"{kind}_gates"][..., None] * joined)) + own
        pooled = (seen[f"{kind}_weights"][..., None] * pooled).sum(2)
        if kind == "word" and case.model.config.aggregation == "mean":
            pooled = pooled + padded_share(case, seen, regions)
        if f"out/{name}" in case.golden:
            case.equal(l2norm(pooled), name)


def padded_share(case, seen, regions):
    """What padded words add to the mean over ``pad_to`` positions: each has the message of a word that is 0."""
    layers, dim = case.model.attention, case.model.config.embed_dim
    first = seen["attention"] @ regions[:, None]                      # (I, C, W, d)
    uniform = regions.mean(1)[:, None, None]                          # (I, 1, 1, d)
    logits = layers.image_message_query(uniform) @ layers.image_message_key(first).mT / dim**0.5
    message = logits.masked_fill(~case.mask[:, None], -torch.inf).softmax(-1) @ first
    padding = case.hyper["pad_to"] - case.mask.sum(1)
    return message.squeeze(2) * padding[:, None] / case.hyper["pad_to"]


@pytest.mark.parametrize(("name", "loss", "settings"), [
    ("bce_max", bce_loss, {"negatives": "hardest", "reduction": "sum"}), ("bce_mean", bce_loss, {"negatives": "all"}),
    ("rank_max", hinge_loss, {"negatives": "hardest", "reduction": "sum", "margin": 0.2}),
    ("rank_sum", hinge_loss, {"negatives": "all", "reduction": "sum", "margin": 0.2})])
def test_losses_of_given_scores(name, loss, settings):
    golden = dict(np.load(FOLDER / "simloss_on_given_scores.npz"))
    scores = torch.from_numpy(golden["in/scores"]).requires_grad_()
    ids = torch.arange(len(scores))
    found = loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids), **settings)["loss"]
    assert found.item() == pytest.approx(golden[f"out/{name}"].item(), abs=1e-9)
    found.backward()
    np.testing.assert_allclose(scores.grad, golden[f"out/{name}_grad"], rtol=1e-12, atol=1e-9)
