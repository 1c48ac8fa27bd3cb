"""SCAN against tensors that the authors' released code computed: through load_official, in float64 and float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from itm_lib.models.official import load_official

CASES = sorted((Path(__file__).parent.parent / "golden" / "scan").glob("*.npz"))


def group(golden, prefix):
    return {key.removeprefix(prefix): torch.from_numpy(golden[key]) for key in golden if key.startswith(prefix)}


class Case:
    """A golden file, our model of it, and its batch."""

    method = "scan"

    def __init__(self, path, dtype=torch.float64):
        self.golden = dict(np.load(path))
        self.hyper = json.loads(str(self.golden["hyper"]))
        self.model = load_official(group(self.golden, "state/"), self.method, config=self.hyper).to(dtype)
        self.ids = torch.from_numpy(self.golden["in/img_ids"])
        self.regions = torch.from_numpy(self.golden["in/images"]).to(dtype)
        self.tokens = torch.from_numpy(self.golden["in/captions"])
        self.mask = torch.arange(self.tokens.shape[1]) < torch.from_numpy(self.golden["in/lengths"])[:, None]

    def encode(self):
        return self.model.encode_images(self.regions, None), self.model.encode_captions(self.tokens, self.mask)

    def loss(self):
        return self.model.loss(*self.encode(), self.ids, self.ids)["loss"]


class ScanCase(Case):
    def named(self, values):
        """Our parameters' values under the authors' names."""
        ours = {"image.fc.parametrizations.weight.original0": "img_enc/fc.weight_g",
                "image.fc.parametrizations.weight.original1": "img_enc/fc.weight_v"}
        return {ours.get(name, name.replace("image.", "img_enc/").replace("text.", "txt_enc/")): value
                for name, value in values}


@pytest.fixture(params=CASES, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_every_released_setting_has_a_case():
    settings = [json.loads(str(np.load(path)["hyper"])) for path in CASES]
    assert len(settings) == 20
    assert {case["cross_attn"] for case in settings} == {"t2i", "i2t"}
    assert {case["agg_func"] for case in settings} == {"LogSumExp", "Mean", "Max", "Sum"}
    assert {case["raw_feature_norm"] for case in settings} == {"clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"}
    for switch in ("max_violation", "bi_gru", "no_imgnorm", "precomp_enc_type", "num_layers"):
        assert len({case[switch] for case in settings}) == 2


def test_scores_loss_and_gradients_in_float64(path):
    case = ScanCase(path)
    images, captions = case.encode()
    scores = case.model.similarity(images, captions).detach()
    np.testing.assert_allclose(scores, case.golden["out/scores"], rtol=0, atol=1e-9)
    for name, found in (("img_emb", images.fragments), ("cap_emb", captions.fragments)):
        if f"out/{name}" in case.golden:
            np.testing.assert_allclose(found.detach(), case.golden[f"out/{name}"], rtol=0, atol=1e-9)
    loss = case.loss()
    assert abs(loss.item() - case.golden["out/loss"]) < 1e-9
    loss.backward()
    gradients = case.named((name, value.grad) for name, value in case.model.named_parameters())
    expected = group(case.golden, "grad/")
    assert {"txt_enc/embed.weight", "img_enc/fc.bias"} <= set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(gradients[name], value, rtol=0, atol=1e-9, err_msg=name)


def test_three_steps_of_the_optimizer(path):
    case = ScanCase(path)
    optimizer = torch.optim.Adam(case.model.parameters(), lr=case.hyper["learning_rate"])
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = case.loss()
        losses.append(loss.item())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(case.model.parameters(), case.hyper["grad_clip"])
        optimizer.step()
    np.testing.assert_allclose([*losses, case.loss().item()], case.golden["out/loss_steps"], rtol=0, atol=1e-8)
    parameters = case.named(case.model.named_parameters())
    for name, value in group(case.golden, "after3/").items():
        np.testing.assert_allclose(parameters[name].detach(), value, rtol=0, atol=1e-8, err_msg=name)


def test_scores_and_loss_in_float32(path):
    case = ScanCase(path, torch.float32)
    scores = case.model.similarity(*case.encode())
    assert scores.dtype == torch.float32
    np.testing.assert_allclose(scores.detach(), case.golden["out32/scores"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(case.loss().item(), case.golden["out32/loss"], rtol=1e-6, atol=1e-6)


def test_attention_is_the_authors():
    compared = 0
    for path in CASES:
        case = ScanCase(path)
        if "out/attn" not in case.golden:
            continue
        found = case.model.explain(*case.encode())["attention"].detach()
        theirs = torch.from_numpy(case.golden["out/attn"]).transpose(0, 1)  # captions come first in the file
        theirs = theirs.transpose(2, 3) if case.hyper["cross_attn"] == "t2i" else theirs
        np.testing.assert_allclose(found, theirs * case.mask[None, :, :, None], rtol=0, atol=1e-9)
        compared += 1
    assert compared >= 4
