"""What a trained model's folder keeps of its run, for its card: see :mod:`itm_lib.models.card`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from itm_lib.data.captions import SPECIAL, Vocabulary
from itm_lib.data.dataset import ImageCaptionDataset, about_images
from itm_lib.evaluation.report import commit_id
from itm_lib.processes import world_size
from itm_lib.training.state import TIMINGS
from itm_lib.training.trainer import Trainer

if TYPE_CHECKING:
    from itm_lib.training.recipe import DataSection

_NO_METRICS = ("kind", "stage", "epoch", "step", "loss", "collapsed_loss", "best", *TIMINGS)


def about_data(section: DataSection, train: ImageCaptionDataset, val: ImageCaptionDataset) -> dict[str, Any]:
    """What a model was trained and chosen on."""
    own = section.model_dump(include={"variant", "size", "seed"}) if section.name is not None else {}
    vocabulary = train.vocabulary
    count = len(vocabulary) - (len(SPECIAL) if vocabulary.kind == Vocabulary.kind else 0)
    return {"name": section.label, **own, "tokens": {"kind": vocabulary.kind, "count": count},
            "splits": {split.split: {"images": split.num_images, "captions": split.num_captions} for split in (train, val)},
            "images": about_images(train.regions)}


def about_training(trainers: Sequence[Trainer]) -> dict[str, Any]:
    """How the model of the last of ``trainers`` came to be, the stages before it counted in, and its metrics on val."""
    last = trainers[-1]
    best = last.history.best or {}
    return {"training": {"epochs": last.state.epoch, "best_epoch": round(best["epoch"]) if best else None, "steps": sum(each.state.step for each in trainers),
                         "seed": last.config.seed, "seconds": round(sum(each.state.seconds for each in trainers), 3),
                         "device": _device(last), "parameters": sum(each.numel() for each in last.model.parameters()), "commit": commit_id()},
            "val": {name: value for name, value in best.items() if name not in _NO_METRICS}}


def _device(trainer: Trainer) -> str:
    where = next(trainer.model.parameters()).device
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else {"cpu": "CPU"}.get(where.type, where.type)
    return f"{world_size()} × {name}" if world_size() > 1 else name
