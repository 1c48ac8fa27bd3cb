"""What models trained with the hinge loss on a score matrix share: its settings, the loss itself and the warm-up; and, for those
that compare regions with words, the two encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.dataset import Batch
from itm_lib.data.word_vectors import read_word_vectors
from itm_lib.losses import (
    HardestScores,
    Negatives,
    Reduction,
    collapsed_hinge,
    hardest_hinge,
    hinge_loss,
    matched_pairs,
    positive_mask,
)
from itm_lib.models.base import Encoding, MatchingModel, ModelConfig
from itm_lib.models.dropping import drop_fragments
from itm_lib.models.encoders import Projection, RegionProjection, WordGRU
from itm_lib.models.layers import full_mask, l2norm, score_dtype

SPARSE = 4  # pairs with a gradient are scored again where all pairs are more than so many times as many


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


class GruConfig(HingeConfig):
    """Settings of a text encoder that is a GRU over word embeddings.

    ``word_vectors``: a file of GloVe's or word2vec's vectors, which the embeddings of the words that it has start as. A new model
    reads it when it meets its vocabulary, a saved one never. ``region_dropping``: the share of regions that are left out in training;
    ``word_dropping``: that of words which are masked, replaced or left out. Neither is in VSE++, SCAN or CAMP as published; few photographs are
    learned by heart without them.
    """

    region_dropping: float = Field(0.0, ge=0, lt=1)
    word_dropping: float = Field(0.0, ge=0, lt=1)
    mask_id: NonNegativeInt | None = None    # of a masked word; None: <unk> for the GRU, the tokenizer's for BERT
    word_dim: PositiveInt = 300
    gru_layers: PositiveInt = 1
    bidirectional: bool = True
    word_vectors: str | None = None
    word_vectors_found: NonNegativeInt | None = None  # filled in when they are read


class HingeModel(MatchingModel):
    """A model whose loss is the hinge loss of its similarity matrix.

    ``other_words``: deviation of the embeddings of words that a file of word vectors lacks; None leaves them as they start.
    """

    config: HingeConfig
    epoch: int = 0
    other_words: ClassVar[float | None] = None

    def use_vocabulary(self, vocabulary: Vocabulary | WordPieces) -> str | None:
        """Read ``word_vectors``, if there are any and they were not read before. Says how many words were found."""
        path = getattr(self.config, "word_vectors", None)
        if path is None or self.config.word_vectors_found is not None:
            return None
        vectors, found = read_word_vectors(path, vocabulary, self.config.word_dim)
        weight = self.text.embed.weight
        with torch.no_grad():
            if self.other_words is not None:
                nn.init.normal_(weight, std=self.other_words)
            weight[torch.from_numpy(found)] = torch.from_numpy(vectors[found]).to(weight)
        self.config = self.config.model_copy(update={"word_vectors_found": int(found.sum())})
        return f"word vectors: {found.sum()} of the {len(found)} words of the captions are in {path}"

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def forward(self, batch: Batch, gather: Callable[[Encoding], Encoding] | None = None) -> dict[str, Tensor]:
        """In training, drop regions and words; then as every model."""
        return super().forward(self.drop(batch) if self.training else batch, gather)

    def drop(self, batch: Batch) -> Batch:
        """``batch`` with regions and words dropped at random, as the config says."""
        return drop_fragments(batch, self.config, getattr(self.text, "continues", None))

    @property
    def hinge_settings(self) -> dict[str, object]:
        """Margin, negatives and reduction of the current epoch."""
        if self.epoch < self.config.warmup_epochs:
            return {"margin": self.config.margin, "negatives": "all", "reduction": "mean"}
        return {name: getattr(self.config, name) for name in ("margin", "negatives", "reduction")}

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        positives = positive_mask(image_ids, caption_image_ids, self.config.same_image_negatives)
        pairs, settings = matched_pairs(image_ids, caption_image_ids), self.hinge_settings
        if settings.pop("negatives") == "hardest":
            return hardest_hinge(self.hardest_scores(images, captions, pairs, positives), **settings)
        return hinge_loss(self.batch_scores(images, captions), pairs, positives, negatives="all", **settings)

    def hardest_scores(self, images: Encoding, captions: Encoding, pairs: tuple[Tensor, Tensor], positives: Tensor) -> HardestScores:
        """What a loss over hardest negatives depends on, of a batch: ``pairs`` (P,) and ``positives`` (I, C) as in ``hinge_loss``.

        All I·C scores are needed to find the hardest negatives, but only P + I + C of them have a gradient. So where scores cost much they
        are computed without one, and these few again with it: the same loss and gradient, for a third of the time and a fraction of the
        memory. Among equal scores the first is taken, where a maximum over the matrix would share the gradient out.
        """
        rows, columns = pairs
        count = len(rows) + len(images) + len(captions)
        if not (self.scores_pairs and torch.is_grad_enabled() and SPARSE * count < len(images) * len(captions)):
            return HardestScores.of_matrix(self.batch_scores(images, captions), pairs, positives)
        with torch.no_grad():
            negatives = self.batch_scores(images, captions).masked_fill(positives, -torch.inf)
            worst_caption, worst_image = negatives.argmax(1), negatives.argmax(0)
        every_image, every_caption = (torch.arange(size, device=rows.device) for size in positives.shape)
        scores = self.similarity_of_pairs(images, captions, torch.cat([rows, every_image, worst_image]),
                                          torch.cat([columns, worst_caption, every_caption]))
        matched, caption, image = scores.split([len(rows), *positives.shape])
        caption, image = (part.masked_fill(positives.all(axis), -torch.inf) for part, axis in ((caption, 1), (image, 0)))
        return HardestScores(matched, caption[rows], image[columns])

    def collapsed_loss(self, num_images: int, num_captions: int) -> float:
        return collapsed_hinge(num_images, num_captions, **self.hinge_settings)


class FragmentConfig(GruConfig):
    """Settings of the two encoders of a model that compares regions with words."""

    image_projection: Projection = "linear"
    image_norm: bool = True
    text_norm: bool = True


class FragmentModel(HingeModel):
    """A model of regions and words: a linear map of the regions, a GRU over the words, both of unit length if the config says so."""

    config: FragmentConfig

    def __init__(self, config: FragmentConfig):
        super().__init__()
        self.config = config
        self.image = RegionProjection(config.region_dim, config.embed_dim, config.image_projection)
        self.text = WordGRU(config.vocab_size, config.word_dim, config.embed_dim, config.gru_layers, config.bidirectional)

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) -> ``fragments`` (I, R, d), 0 on padding."""
        mask = full_mask(regions, region_mask)
        fragments = self.image(regions).to(score_dtype(self))
        fragments = l2norm(fragments) if self.config.image_norm else fragments
        return Encoding(fragments.masked_fill(~mask[..., None], 0), mask)

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Tokens (C, W) -> ``fragments`` (C, W, d), 0 on padding. ``<start>`` and ``<end>`` are words like others."""
        states = self.text(tokens, token_mask)[0].to(score_dtype(self))
        return Encoding(l2norm(states) if self.config.text_norm else states, token_mask)
