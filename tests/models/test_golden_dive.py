"""DivE against tensors that the authors' released code computed: through load_official, in float64 and float32.

Every dropout is 0. One case is in training mode, the others in evaluation mode, as they were there.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from test_golden_hrem import Golden, close, group, read

from itm_lib.models import DivE, DiveConfig, Encoding, dive
from itm_lib.models.dive import SetDecoder, closeness_of_pairs, gram_diversity, position_code, set_similarity, unit
from itm_lib.models.official import dive_name, load_official

FOLDER = Path(__file__).parent.parent / "golden" / "dive"
SHARED = FOLDER / "vse_butd_bigru_6x6_eval.safetensors"  # what other cases have in common with this one is not in their files
CASES = sorted(FOLDER.glob("vse_*"))
BLOCKS = sorted(FOLDER.glob("aggregation_block_*"))
HEADS = {"num_heads": 4, "head_dim": 4}


def metadata(path):
    with safe_open(path, "pt") as file:
        return {key: json.loads(value) for key, value in file.metadata().items()}


def read_case(path):
    """The case's tensors, and from the shared file what it has in common: keys that start as its list says."""
    common = tuple(metadata(path).get("common", ()))
    return {**{key: value for key, value in read(SHARED).items() if key.startswith(common)}, **read(path)}


class Case(Golden):
    """A golden file, our model of it, and its batch."""

    def __init__(self, path, dtype=torch.float64):
        super().__init__(read_case(path), dtype)
        self.hyper = metadata(path)["hyper"]
        self.model = load_official(group(self.golden, "state/"), "dive", config=self.hyper).to(dtype)
        self.model.train(self.hyper["mode"].startswith("train"))
        self.recovery = self.golden["in/recovery"]  # captions came sorted by length, and were put in the images' order for the loss
        self.ids = torch.arange(len(self.regions))
        self.caption_ids = self.ids.repeat_interleave(self.hyper["txt_per_img"])

    def encode(self):
        captions = self.model.encode_captions(self.tokens, self.mask)
        return self.model.encode_images(self.regions, self.region_mask), captions.map(lambda value: value[self.recovery])

    def loss(self):
        return self.model.loss(*self.encode(), self.ids, self.caption_ids)


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def path(request):
    return request.param


def with_tensor(name):
    """The cases whose file has a tensor."""
    return pytest.mark.parametrize("path", [path for path in CASES if name in read_case(path)], ids=lambda path: path.stem)


def test_every_released_setting_has_a_case():
    settings = [metadata(path)["hyper"] for path in CASES]
    assert len(settings) == 7
    for switch, values in {"loss": {"smooth_chamfer", "chamfer", "max"}, "max_violation": {True, False}, "txt_per_img": {1, 5},
                           "spm_weight_sharing": {True, False}, "spm_post_norm": {True, False}, "spm_activation": {"gelu", "relu"},
                           "spm_residual_norm": {True, False}, "spm_depth": {2, 4}, "txt_attention_input": {"wemb", "rnn"},
                           "txt_pooling": {"rnn", "max"}}.items():
        assert {case[switch] for case in settings} == values
    config = Case(SHARED).model.config
    assert (config.compat, config.masked_batch_norm, config.mask_before_slot_softmax, config.position_over) == (
        "official", False, False, "padded")
    assert (config.norm_momentum, config.learned_match, config.reduction, config.same_image_negatives) == (0.19, False, "mean", False)


def test_features_slots_and_sets(path):
    case = Case(path)
    model, config = case.model, case.model.config
    local, whole = model.image(case.regions, case.region_mask)
    case.equal(local[:, :, None], "img_local")
    case.equal(whole, "img_global")
    local, whole, _ = model.text(case.tokens, case.mask)
    for row, count in enumerate(case.mask.sum(1)):
        if "out/txt_local" in case.golden:
            close(local[row, :count], case.golden["out/txt_local"][row, :count], "txt_local")
    case.equal(whole, "txt_global")
    images, captions = case.encode()
    assert case.equal(images.embedding, "img_set") and case.equal(captions.embedding, "txt_set")
    assert case.equal(images.extra["slots"], "img_residual") and case.equal(captions.extra["slots"], "txt_residual")
    assert (len(model.image_set.aggregation.steps) == 1) == config.share_weights


@with_tensor("out/img_attn_slot_softmax")
def test_attention_of_every_iteration(path, monkeypatch):
    case, seen = Case(path), []
    monkeypatch.setattr(dive, "compete", lambda *args: seen.append(original(*args)) or seen[-1])
    for kind, encode, sides in (("img", case.model.encode_images, (case.regions, case.region_mask)),
                                ("txt", case.model.encode_captions, (case.tokens, case.mask))):
        seen.clear()
        encoding = encode(*sides)
        expected = case.golden[f"out/{kind}_attn_slot_softmax"]
        expected = expected / (expected.sum(-1, keepdim=True) + 1e-7)
        chosen = case.golden.get("out/attn_iterations", torch.arange(len(seen))).tolist()
        assert len(expected) == len(chosen) and len(seen) == case.hyper["spm_depth"]
        for number, value in zip(chosen, expected):
            close(seen[number].flatten(0, 1), value, kind)
        close(encoding.fragments.mT, seen[-1].mean(1).detach(), kind)


original = dive.compete


def test_scores_losses_and_gradients_in_float64(path):
    case = Case(path)
    images, captions = case.encode()
    assert case.equal(case.model.similarity(images, captions), "scores")
    terms = case.loss()
    for name, theirs in (("t2i", "t2i_loss"), ("i2t", "i2t_loss"), ("mmd", "mmd_loss"), ("diversity", "unif_loss")):
        assert case.equal(terms[name], f"term_{theirs}")
    assert case.equal(terms["loss"], "loss") and set(terms) == {"loss", "i2t", "t2i", "mmd", "diversity"}
    terms["loss"].backward()
    ours = {name: value.grad for name, value in case.model.named_parameters()}
    close(torch.linalg.vector_norm(torch.stack([value.norm() for value in ours.values()])), case.golden["out/grad_norm"], "grad_norm")
    expected = group(case.golden, "grad/")
    assert len(expected) >= 6
    for name, value in expected.items():
        close(ours[our_name(case, name)], value, name)


def our_name(case, name):
    config = case.model.config
    return dive_name(name.replace("/", ".", 1), config.norm_position == "post", config.share_weights)


@with_tensor("out/loss_steps")
def test_three_steps_of_the_optimizer(path):
    case, lr = Case(path), 1e-3
    groups = [{"params": each["params"], "lr": lr * each["lr_scale"]} for each in case.model.parameter_groups()]
    assert sorted(each["lr"] / lr for each in groups) == pytest.approx([0.1, 1])
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.hyper["T_max"])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.loss()["loss"]
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), case.hyper["grad_clip"])
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(losses, case.golden["out/loss_steps"], rtol=0, atol=1e-8)
    ours, expected = case.model.state_dict(), group(case.golden, "after3/")
    assert len(expected) >= 20 and "img_enc/mlp.bn.bn.running_var" in expected
    for name, value in expected.items():
        if not name.endswith("num_batches_tracked"):  # there, they moved twice a step: see norm_momentum
            close(ours[our_name(case, name)], value, name, atol=1e-8)


def test_sets_scores_and_loss_in_float32(path):
    case = Case(path, torch.float32)
    images, captions = case.encode()
    scores = case.model.similarity(images, captions)
    assert scores.dtype == torch.float32
    for found, name in ((images.embedding, "img_set"), (captions.embedding, "txt_set"), (scores, "scores"), (case.loss()["loss"], "loss")):
        if f"out32/{name}" in case.golden:
            np.testing.assert_allclose(found.detach(), case.golden[f"out32/{name}"], rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("path", BLOCKS, ids=lambda path: path.stem)
def test_slot_attention_of_given_fragments(path, monkeypatch):
    golden, seen = read(path), []
    block = SetDecoder(DiveConfig(vocab_size=9, embed_dim=16, dropout=0, compat="official", **HEADS), 8, 4).double()
    prefix = "image_set.aggregation."
    name = lambda key: dive_name(f"img_enc.spm.agg_block.{key}", False, True).removeprefix(prefix)
    block.load_state_dict({name(key): value for key, value in group(golden, "state/agg/").items()})
    monkeypatch.setattr(dive, "compete", lambda *args: seen.append(original(*args)) or seen[-1])
    x, mask = golden["in/x"].requires_grad_(), ~golden["in/pad_mask"]
    position = None
    if golden["out/pos"].numel():
        position = position_code(torch.full((len(x),), x.shape[1]), x.shape[1], 8)
        assert torch.equal(position.double(), golden["out/pos"])
    found, _ = block(x, mask, position)
    close(found, golden["out/y"], "y")
    expected = golden["out/attn_slot_softmax"]
    expected = expected / (expected.sum(-1, keepdim=True) + 1e-7)
    assert len(seen) == 4
    for number, value in zip(golden.get("out/attn_iterations", torch.arange(4)).tolist(), expected):
        close(seen[number].flatten(0, 1), value, "attention")
    (found * golden["in/weight"]).sum().backward()
    close(x.grad, golden["out/grad_x"], "x")
    gradients = {key: value.grad for key, value in block.named_parameters()}
    for key, value in group(golden, "grad/agg/").items():
        close(gradients[name(key)], value, key)


@pytest.mark.parametrize(("theirs", "kind"), [
    ("smooth_chamfer", "smooth_chamfer"), ("smooth_chamfer_euclidean", "euclidean_smooth_chamfer"), ("chamfer", "chamfer"),
    ("max", "mil"), ("mp", "match_probability")])
def test_similarity_of_given_sets(theirs, kind):
    golden = read(FOLDER / "set_similarities.safetensors")
    images, captions = golden["in/img"].requires_grad_(), golden["in/txt"].requires_grad_()
    sign = -1 if "euclidean" in kind else 1  # there it is a distance
    scores = sign * set_similarity(images.transpose(0, 1), captions.transpose(0, 1), kind)
    close(scores, golden[f"out/{theirs}"], kind)
    (scores * golden["in/weight"]).sum().backward()
    close(images.grad, golden[f"out/{theirs}_gim"], "images")
    if f"out/{theirs}_gtx" in golden:
        close(captions.grad, golden[f"out/{theirs}_gtx"], "captions")
    if f"out/sets3x2_{theirs}" in golden:
        few = sign * set_similarity(images[:, :3].transpose(0, 1), captions[:, :2].transpose(0, 1), kind)
        close(few, golden[f"out/sets3x2_{theirs}"], kind)


LOSSES = {"released": {}, "sumhinge": {"negatives": "all"}, "semihard": {"negatives": "semi_hard"}, "div": {"gram_weight": 0.5},
          "unif_on_embedding": {"diversity_of": "embeddings"}, "rank_only": {"mmd_weight": 0, "diversity_weight": 0},
          "mmd_only": {"diversity_weight": 0}, "unif_only": {"mmd_weight": 0}}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_given_sets(name):
    golden = read(FOLDER / "losses_standalone.safetensors")
    keys = ("img", "txt", "img_residual", "txt_residual")
    given = [golden[f"in/{key}"].requires_grad_() for key in keys]
    config = {"vocab_size": 9, "embed_dim": 16, "region_dim": 3, "word_dim": 3, "compat": "official", **HEADS, **LOSSES[name]}
    model = DivE(DiveConfig(**config)).double()
    ids = torch.arange(5)
    terms = model.loss(*(Encoding(embedding=sets, extra={"slots": slots}) for sets, slots in zip(given[:2], given[2:])),
                       ids, ids.repeat_interleave(2))
    for ours, theirs in (("t2i", "t2i_loss"), ("i2t", "i2t_loss"), ("mmd", "mmd_loss"), ("diversity", "unif_loss"), ("gram", "div_loss")):
        assert (ours in terms) == (f"out/{name}_{theirs}" in golden)
        if ours in terms:
            close(terms[ours], golden[f"out/{name}_{theirs}"], ours)
    close(terms["loss"], golden[f"out/{name}"], "loss")
    terms["loss"].backward()
    for value, key in zip(given, ("gim", "gtx", "gimr", "gtxr")):
        if f"out/{name}_{key}" in golden:
            close(value.grad, golden[f"out/{name}_{key}"], key)


def test_regularisers_that_the_paper_does_not_use():
    golden = read(FOLDER / "losses_standalone.safetensors")
    close(gram_diversity(unit(golden["in/img_residual"])), golden["out/diversity_img"], "gram")
    assert closeness_of_pairs(golden["in/img"][:, :1]) == 0


def test_padding_changes_a_set_in_the_released_code():
    golden, model = read(FOLDER / "padding_quirk.safetensors"), Case(SHARED).model.eval()
    image, caption = golden["in/image"], golden["in/caption"]
    pad = torch.nn.functional.pad
    for width in (3, 6, 9):
        tokens = pad(caption, (0, width - 3))
        found = model.encode_captions(tokens, torch.arange(width)[None] < 3).embedding[0]
        close(found, golden[f"out/txt_set_padded_to_{width}"], f"padded to {width}")
    close(model.encode_images(image, None).embedding[0], golden["out/img_set"], "image")
    found = model.encode_images(pad(image, (0, 0, 0, 3)), torch.arange(10)[None] < 7).embedding[0]
    close(found, golden["out/img_set_padded_3"], "image padded")
