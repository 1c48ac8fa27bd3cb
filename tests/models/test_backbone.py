"""Backbones: cells of any image model of transformers, their normalisation, BatchNorm, and DivE over a grid of them."""

from __future__ import annotations

import json

import pytest
import torch

from itm_lib.files import InputError, write_json
from itm_lib.models import DivE, DiveConfig, Ensemble, build_model, load_model
from itm_lib.models.pretrained import Backbone
from itm_lib.models.saving import checked_config

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
KINDS = {  # cells of a picture of 32 pixels
    "resnet": (RESNET, 16), "convnext": ({"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 16),
    "vit": ({"model_type": "vit", **SMALL}, 16), "clip": ({"model_type": "clip_vision_model", **SMALL}, 16),
    "dinov2": ({"model_type": "dinov2_with_registers", **SMALL, "num_register_tokens": 3}, 16),
    "siglip": ({"model_type": "siglip_vision_model", **SMALL}, 16),
    "swin": ({"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}, 16),
}


def saved(architecture, folder):
    from transformers import AutoConfig, AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(**architecture)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return saved(RESNET, tmp_path_factory.mktemp("resnet"))


def make(**setting):
    torch.manual_seed(1)
    config = {"vocab_size": 30, "embed_dim": 12, "word_dim": 8, "num_heads": 2, "head_dim": 5, "dropout": 0.0, "region_dropping": 0.0,
              "word_dropping": 0.0, "image_encoder": "grid", "image_size": 32, **setting}
    return DivE(checked_config(DiveConfig, config, "test")).eval()


def pictures(count=4, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(("architecture", "cells"), KINDS.values(), ids=KINDS)
def test_the_cells_of_a_backbone(architecture, cells, tmp_path):
    backbone = Backbone(saved(architecture, tmp_path), None, 32).eval()
    found = backbone(pictures())
    assert found.shape == (4, cells, 16) and backbone.dim == 16
    torch.testing.assert_close(backbone(pictures()[1:2]), found[1:2], rtol=0, atol=1e-5)
    assert backbone(pictures(1, 64)).shape[1] == 4 * cells  # larger pictures have more
    states = backbone.model(pixel_values=(pictures() - backbone.mean) / backbone.std).last_hidden_state
    expected = states.flatten(2).transpose(1, 2) if states.dim() == 4 else states[:, -cells:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    found.square().sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in backbone.parameters())  # no weight waits for a gradient
    again = Backbone(None, json.loads(json.dumps(backbone.architecture)), 32).eval()
    again.load_state_dict(backbone.state_dict())
    assert torch.equal(again(pictures()), found)


def test_a_model_of_pictures_and_text_gives_its_half_for_pictures(tmp_path):
    text = {**SMALL, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    folder = saved({"model_type": "clip", "vision_config": SMALL, "text_config": text}, tmp_path)
    backbone = Backbone(folder, None, 32)
    assert backbone.architecture["model_type"] == "clip_vision_model" and backbone.eval()(pictures()).shape == (4, 16, 16)


def test_pictures_are_normalised_as_the_backbone_was_trained(resnet, tmp_path):
    folder = saved(RESNET, tmp_path)
    assert Backbone(folder, None, 32).mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    write_json(tmp_path / "preprocessor_config.json", {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.25]})
    own = Backbone(folder, None, 32).eval()
    plain = Backbone(resnet, None, 32).eval()
    bytes_ = (pictures() * 255).to(torch.uint8)
    same = (bytes_ / 255 - own.mean) / own.std * plain.std + plain.mean  # what the other one normalises to the same
    torch.testing.assert_close(own(bytes_), plain(same), rtol=0, atol=1e-4)
    write_json(tmp_path / "preprocessor_config.json", {"do_normalize": False})
    assert Backbone(folder, None, 32).std.flatten().tolist() == [1, 1, 1]
    write_json(tmp_path / "preprocessor_config.json", {"image_mean": 0.5})
    with pytest.raises(InputError, match="preprocessor_config.json: image_mean and image_std must be three numbers each: mend the file"):
        Backbone(folder, None, 32)


@pytest.mark.parametrize("moves", [False, True])
def test_batch_norm_keeps_its_statistics_unless_it_is_told_otherwise(moves, resnet):
    backbone = Backbone(resnet, None, 32, batch_norm=moves).eval().train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    alone, among = backbone(pictures()[:1]), backbone(pictures())[:1]
    assert torch.allclose(alone, among, rtol=0, atol=1e-5) != moves
    assert any(not torch.equal(value, before[name]) for name, value in backbone.named_buffers()) == moves


def test_dive_over_a_grid_trains_and_is_saved_without_its_backbone(resnet, tmp_path):
    model = make(backbone=resnet, backbone_lr_scale=0.5, region_dropping=0.3)
    assert model.image_input == "pixels" and model.config.region_dim == 16 and model.pixels.size == 32
    named = {id(value): name for name, value in model.named_parameters()}
    scales = {named[id(value)]: each["lr_scale"] for each in model.parameter_groups() for value in each["params"]}
    assert {name for name, scale in scales.items() if scale == 0.5} == {name for name in scales if name.startswith("backbone.")}
    with torch.no_grad():
        whole = model.encode_images(pictures(), None)
        assert whole.embedding.shape == (4, 4, 12) and whole.fragments.shape == (4, 16, 4)
        for row in range(4):
            alone = model.encode_images(pictures()[row, None], None).embedding[0]
            torch.testing.assert_close(alone, whole.embedding[row], rtol=0, atol=1e-5)
    torch.manual_seed(0)
    dropped = model.train().encode_images(pictures(), None)
    assert dropped.mask.sum() < 4 * 16 and dropped.mask.any(1).all()
    captions = model.encode_captions(torch.tensor([[1, 5, 2], [1, 6, 2], [1, 7, 2], [1, 8, 2]]), torch.ones(4, 3, dtype=torch.bool))
    model.loss(dropped, captions, torch.arange(4), torch.arange(4))["loss"].backward()
    assert all(value.grad is not None for value in model.parameters() if value.requires_grad)
    assert model.backbone.model.encoder.stages[0].layers[0].layer[0].convolution.weight.grad.abs().max() > 0
    model.eval().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace(resnet, "gone"))
    found = load_model(tmp_path)[0]
    assert found.config.backbone == "gone" and found.config.backbone_config == model.config.backbone_config
    with torch.no_grad():
        assert torch.equal(found.encode_images(pictures(), None).embedding, model.encode_images(pictures(), None).embedding)


def test_an_architecture_alone_trains_from_nothing():
    model = make(backbone_config=RESNET, backbone_batch_norm=True)
    assert model.config.backbone is None and model.encode_images(pictures(), None).embedding.shape == (4, 4, 12)


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


@pytest.mark.parametrize(("setting", "expected"), [
    ({}, "image_encoder 'grid' needs backbone, a folder or a name like microsoft/resnet-152"),
    ({"backbone": "nowhere"}, "backbone 'nowhere' is no folder here"), ({"crop": 0}, "crop"), ({"image_size": 0}, "image_size"),
    ({"backbone_config": {"model_type": "resnot"}}, "backbone_config describes no model ("),
    ({"backbone_config": {"model_type": "bert", "hidden_size": 8, "num_attention_heads": 2}}, "the backbone, a 'bert', makes no cells"),
    ({"backbone_config": {"model_type": "vit", **SMALL, "patch_size": 64}}, "the backbone, a 'vit', makes no cells of a picture of 32"),
])
def test_what_is_no_backbone_is_one_line(setting, expected, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(InputError) as error:
        build_model("dive", {"image_encoder": "grid", "image_size": 32, **setting}, None, 30)
    assert expected in line_of(error)


def test_a_damaged_backbone_and_regions_for_pixels_are_one_line(resnet, tmp_path):
    folder = saved(RESNET, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(InputError, match="^backbone '.*' cannot be read \\(.*\\): give a folder that holds one, or its name on the Hub$") as error:
        make(backbone=folder)
    line_of(error)
    model = make(backbone=resnet)
    with pytest.raises(InputError, match=r"images of shape \(2, 3, 7\) were given to a model of pixels, which takes \(images, 3, height"):
        model.encode_images(torch.zeros(2, 3, 7), None)
    regions = build_model("dive", {"embed_dim": 12, "num_heads": 2, "head_dim": 5}, 16, 30)
    with pytest.raises(InputError, match=r"^regions of shape \(2, 3, 32, 32\) were given to a model built for"):
        regions.encode_images(pictures(2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(InputError, match="or some take pixels and some regions: they cannot share a batch"):
        Ensemble([model, regions])
    assert Ensemble([model, model]).pixels == model.pixels
