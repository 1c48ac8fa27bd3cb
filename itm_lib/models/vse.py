"""VSE++: one vector an image, one vector a caption, and their dot product. The baseline of every notebook.

Faghri, Fleet, Kiros, Fidler: VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, BMVC 2018.

Shapes: I images of R regions of D numbers, C captions of W words, joint dimension d (``embed_dim``)::

    v = l2(pool_k(W f_k + b))      pool: max or mean over the true regions      (I, d)
    t = l2(last or mean GRU state of the true words)                            (C, d)
    S = v · t                                                                   (I, C)

Trained with the hinge loss over hardest negatives, after ``warmup_epochs`` epochs with the mean over all negatives.
Built on the same region features and word GRU as the other models, so that it is their baseline without attention.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from itm_lib.models.base import Encoding
from itm_lib.models.encoders import Projection, RegionProjection, WordGRU
from itm_lib.models.hinge import GruConfig, HingeModel
from itm_lib.models.layers import full_mask, l2norm, masked_max, masked_mean, score_dtype


class VSEConfig(GruConfig):
    """Settings of VSE++. ``image_pooling`` over regions, ``text_pooling`` over the GRU's states.

    The means are the default: on the embedded dataset they learn in fewer epochs than the maximum and the last state.
    """

    official: ClassVar[dict] = {"reduction": "sum", "same_image_negatives": True}

    image_projection: Projection = "linear"
    image_pooling: Literal["max", "mean"] = "mean"
    text_pooling: Literal["last", "mean"] = "mean"
    warmup_epochs: NonNegativeInt = 1


class VSE(HingeModel):
    """VSE++ on region features."""

    name = "vse"
    config_class = VSEConfig
    config: VSEConfig

    def __init__(self, config: VSEConfig):
        super().__init__()
        self.config = config
        self.image = RegionProjection(config.region_dim, config.embed_dim, config.image_projection)
        self.text = WordGRU(config.vocab_size, config.word_dim, config.embed_dim, config.gru_layers, config.bidirectional)

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) -> ``embedding`` (I, d), unit length."""
        mask = full_mask(regions, region_mask)
        if self.config.image_pooling == "max":
            pooled = masked_max(self.image(regions), mask)
        else:  # the mean of W f_k + b is W (mean of f_k) + b: one product instead of R
            pooled = self.image(masked_mean(regions.to(score_dtype(self)), mask)[:, None])[:, 0]
        return Encoding(embedding=l2norm(pooled.to(score_dtype(self))))

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Tokens (C, W) -> ``embedding`` (C, d), unit length."""
        states, final = self.text(tokens, token_mask)
        pooled = final if self.config.text_pooling == "last" else masked_mean(states, token_mask)
        return Encoding(embedding=l2norm(pooled.to(score_dtype(self))))

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Cosines (I, C)."""
        dtype = score_dtype(self)
        with torch.autocast(images.embedding.device.type, enabled=False):
            return images.embedding.to(dtype) @ captions.embedding.to(dtype).T
