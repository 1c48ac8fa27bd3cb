"""What models trained with the hinge loss on a score matrix share: its settings, the loss itself and the warm-up."""

from __future__ import annotations

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor

from itm_lib.losses import Negatives, Reduction, collapsed_hinge, hinge_loss, matched_pairs, positive_mask
from itm_lib.models.base import Encoding, MatchingModel, ModelConfig


class HingeConfig(ModelConfig):
    """Sizes every model has, and the hinge loss. ``warmup_epochs``: epochs with the mean over all negatives at the start."""

    region_dim: PositiveInt = 2048
    vocab_size: int = Field(ge=4)
    embed_dim: PositiveInt = 1024
    margin: NonNegativeFloat = 0.2
    negatives: Negatives = "hardest"
    reduction: Reduction = "mean"
    warmup_epochs: NonNegativeInt = 0
    same_image_negatives: bool = False


class HingeModel(MatchingModel):
    """A model whose loss is the hinge loss of its similarity matrix."""

    config: HingeConfig
    epoch: int = 0

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def hinge_settings(self) -> dict[str, object]:
        """Margin, negatives and reduction of the current epoch."""
        if self.epoch < self.config.warmup_epochs:
            return {"margin": self.config.margin, "negatives": "all", "reduction": "mean"}
        return {name: getattr(self.config, name) for name in ("margin", "negatives", "reduction")}

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        scores = self.similarity(images, captions)
        positives = positive_mask(image_ids, caption_image_ids, self.config.same_image_negatives)
        return hinge_loss(scores, matched_pairs(image_ids, caption_image_ids), positives, **self.hinge_settings)

    def collapsed_loss(self, num_images: int, num_captions: int) -> float:
        return collapsed_hinge(num_images, num_captions, **self.hinge_settings)
