"""Tiny random models of every backbone family, saved to a folder as a user has them from transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from itm_lib.files import write_json

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "image_size": 32, "patch_size": 8}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50,
        "bos_token_id": 0, "eos_token_id": 1}
NORMAL = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
GRIDS = {  # model_type, settings, cells along a side of the size that its processor names, D
    "resnet": ("resnet", {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}, 4, 16),
    "convnext": ("convnext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}, 4, 16),
    "vit": ("vit", TOWER, 4, 16),
    "dinov2": ("dinov2", TOWER, 4, 16),
    "dinov2-registers": ("dinov2_with_registers", {**TOWER, "num_register_tokens": 3}, 4, 16),
    "clip": ("clip", {"vision_config": TOWER, "text_config": TEXT}, 4, 16),
    "clip-vision": ("clip_vision_model", TOWER, 4, 16),
    "siglip": ("siglip", {"vision_config": TOWER, "text_config": TEXT}, 4, 16),
    "siglip-vision": ("siglip_vision_model", TOWER, 4, 16),
}
_ATTENTION = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 2,
              "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 32, "num_labels": 5}
_LAST_STAGE = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
_RT = {**_ATTENTION, "encoder_hidden_dim": 32, "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [32, 32, 32], "num_queries": 20}
DETECTORS = {  # model_type, settings, channels of the last map, channels of the decoder
    "detr": ("detr", {**_ATTENTION, **_LAST_STAGE, "num_queries": 20}, 32, 32),
    "conditional-detr": ("conditional_detr", {**_ATTENTION, **_LAST_STAGE, "num_queries": 20}, 32, 32),
    "deformable-detr": ("deformable_detr", {**_ATTENTION, **_LAST_STAGE, "num_queries": 20}, 32, 32),
    "deformable-detr-two-stage": ("deformable_detr", {**_ATTENTION, **_LAST_STAGE, "num_queries": 20, "two_stage": True,
                                                      "with_box_refine": True, "two_stage_num_proposals": 20}, 32, 32),
    "rt-detr": ("rt_detr", _RT, 32, 32),
    "rt-detr-v2": ("rt_detr_v2", _RT, 32, 32),
}
PICTURES = {"shortest_edge": 64, "longest_edge": 128}  # of detectors that keep a picture's shape; RT-DETR's are squares of 64


def make_backbone(kind: str, folder: Path, seed: int = 0, processor: bool = True) -> Path:
    """Save a tiny random model of ``kind``, a key of GRIDS or DETECTORS, and what its processor would say; returns ``folder``.

    The weights are larger than those of a fresh model, and BatchNorm's statistics are not 0 and 1, so that pictures matter.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForObjectDetection

    detects = kind in DETECTORS
    model_type, settings = (DETECTORS if detects else GRIDS)[kind][:2]
    settings = {**settings, **_backbone_settings(model_type)} if detects else settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (AutoModelForObjectDetection if detects else AutoModel).from_config(AutoConfig.for_model(**{"model_type": model_type, **settings}))
        _spread(model)
        if detects:
            _settle(model)
    model.save_pretrained(folder)
    if processor:
        write_json(Path(folder) / "preprocessor_config.json", _processor(model_type, detects))
    return Path(folder)


def _backbone_settings(model_type: str) -> dict[str, Any]:
    from transformers import ResNetConfig, RTDetrResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    if model_type.startswith("rt_detr"):
        return {"backbone_config": RTDetrResNetConfig(**sizes, out_indices=[2, 3, 4])}
    stages = ["stage2", "stage3", "stage4"] if model_type == "deformable_detr" else ["stage4"]
    return {"backbone_config": ResNetConfig(**sizes, out_features=stages)}


def _spread(model: torch.nn.Module) -> None:
    for name, value in model.named_parameters():
        if "query_position" in name or "reference_points.weight" in name:
            torch.nn.init.normal_(value, std=2)  # queries that differ
        elif value.dim() > 1 and "position_embed" not in name:
            torch.nn.init.normal_(value, std=(1.4 if value.dim() == 4 else 1.0) / value[0].numel() ** 0.5)
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)


@torch.no_grad()
def _settle(model: torch.nn.Module) -> None:
    """Give BatchNorm layers the statistics of some random pictures: untrained ones wipe out what pictures differ in."""
    layers = [layer for layer in model.eval().modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    for layer in layers:
        layer.train().momentum = None  # statistics of all that it sees
    model(pixel_values=torch.rand(8, 3, 64, 64))
    for layer in layers:
        layer.eval().momentum = 0.1


def _processor(model_type: str, detects: bool) -> dict[str, Any]:
    if model_type.startswith("rt_detr"):
        return {"size": {"height": 64, "width": 64}, "do_normalize": False, "resample": 2}
    return {"size": PICTURES, "resample": 2, **NORMAL} if detects else {"size": {"height": 32, "width": 32}, "resample": 3, **NORMAL}
