"""Several trained models as one: their score matrices are averaged before ranking, as the papers' ensembles are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.pictures import Pixels
from itm_lib.files import InputError, write_json, write_text
from itm_lib.models.base import Encoding, MatchingModel
from itm_lib.models.card import CARD, CONFIG
from itm_lib.models.layers import score_dtype


class Ensemble(MatchingModel):
    """Scores are the mean of the members' scores. The members are trained one by one; this is for evaluation.

    An Encoding carries one Encoding a member. Saved as a folder with one folder a member.
    """

    name = "ensemble"

    def __init__(self, models: Sequence[MatchingModel]):
        super().__init__()
        if not models:
            raise InputError("an ensemble needs at least one model")
        words = [model.vocabulary for model in models if model.vocabulary is not None]
        if any(vocabulary != words[0] for vocabulary in words):
            raise InputError("the models of an ensemble have different vocabularies, so they cannot share a batch: "
                             "average their scores instead, itm_lib.evaluation.evaluate_ensemble")
        if len({model.pixels and model.pixels.size for model in models}) > 1:
            raise InputError("the models of this ensemble take pictures of different sizes, or some take pixels and some regions: they "
                             "cannot share a batch")
        self.models = nn.ModuleList(models)
        self.vocabulary = words[0] if words else None

    @property
    def pixels(self) -> Pixels | None:
        return self.models[0].pixels

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        return Encoding(members=tuple(model.encode_images(regions, region_mask) for model in self.models))

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        return Encoding(members=tuple(model.encode_captions(tokens, token_mask) for model in self.models))

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Mean of the members' scores (I, C)."""
        scores = [model.similarity(*sides) for model, *sides in zip(self.models, images.members, captions.members)]
        return torch.stack([score.to(score_dtype(self)) for score in scores]).mean(0)

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        raise InputError("an ensemble is not trained as one: train its models one by one, then average them")

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        sides = zip(self.models, images.members, captions.members)
        return max(model.pair_bytes(*pair) for model, *pair in sides) + 8 * len(self.models)

    def save_pretrained(self, folder: str | Path, vocabulary: Vocabulary | WordPieces | None = None,
                        metadata: dict[str, Any] | None = None, model_card_kwargs: dict[str, Any] | None = None, **hub_options: Any) -> None:
        """One folder a member, numbered from 0, and config.json with their number. ``push_to_hub`` gives the options."""
        folder = Path(folder)
        self.metadata = metadata if metadata is not None else self.metadata
        for number, model in enumerate(self.models):
            model.save_pretrained(folder / str(number), vocabulary if vocabulary is not None else self.vocabulary)
        write_text(folder / CARD, str(self.generate_model_card(**(model_card_kwargs or {}))))
        write_json(folder / CONFIG, self.content())

    def content(self) -> dict[str, Any]:
        """What config.json holds."""
        extra = {"metadata": self.metadata} if self.metadata else {}
        return {"method": self.name, "config": {"members": len(self.models), "methods": [model.name for model in self.models]}, **extra}

    @classmethod
    def from_pretrained(cls, folder: str | Path, revision: str | None = None, token: str | None = None) -> Ensemble:
        raise InputError(f"{folder}: an ensemble's members can be of any method; load it with models.load_model")
