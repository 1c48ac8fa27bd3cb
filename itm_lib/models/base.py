"""The contract between a model and everything that uses it: the trainer, the evaluator and the notebooks.

``encode_images`` and ``encode_captions`` see one side each. ``similarity`` sees two Encodings and returns every pair's
score. ``loss`` turns encodings into a training loss. The trainer calls ``forward`` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.dataset import Batch
from itm_lib.data.pictures import Pixels
from itm_lib.files import InputError
from itm_lib.models.saving import FolderModel
from itm_lib.processes import all_or_none, gather_rows, rank, same_random, share, share_sizes


@dataclass
class Encoding:
    """What one side of a model makes of n images or captions.

    ``fragments`` (n, F, E): one vector a region or word, with ``mask`` (n, F) bool, True = real; or None.
    ``embedding`` (n, E), or (n, K, E) for sets: one vector a sample; or None.
    ``extra``: named tensors of leading size n that this model's loss or similarity needs besides.
    ``members``: the Encodings of an ensemble's models, each of n samples.
    """

    fragments: Tensor | None = None
    mask: Tensor | None = None
    embedding: Tensor | None = None
    extra: dict[str, Tensor] = field(default_factory=dict)
    members: tuple[Encoding, ...] = ()

    def __len__(self) -> int:
        if self.members:
            return len(self.members[0])
        return len(self.fragments if self.fragments is not None else self.embedding)

    def map(self, function: Callable[[Tensor], Tensor]) -> Encoding:
        """The Encoding with ``function`` applied to every tensor."""
        each = lambda value: None if value is None else function(value)  # noqa: E731
        return Encoding(each(self.fragments), each(self.mask), each(self.embedding),
                        {name: function(value) for name, value in self.extra.items()},
                        tuple(member.map(function) for member in self.members))

    def to(self, device: torch.device | str) -> Encoding:
        return self.map(lambda value: value.to(device))

    def select(self, rows: Any) -> Encoding:
        """Samples ``rows`` (a slice or indices), with trailing fragments that are padding in all of them cut off."""
        if self.members:
            return Encoding(members=tuple(member.select(rows) for member in self.members))
        part = self.map(lambda value: value[rows])
        if part.mask is None or part.fragments is None or not len(part):
            return part
        width = max(1, int(part.mask.any(0).nonzero().max()) + 1) if part.mask.any() else 1
        return Encoding(part.fragments[:, :width], part.mask[:, :width], part.embedding, part.extra)

    @staticmethod
    def cat(parts: Sequence[Encoding]) -> Encoding:
        """One Encoding of all samples, fragments padded with zeros to the longest."""
        first = parts[0]
        if first.members:
            return Encoding(members=tuple(Encoding.cat(column) for column in zip(*(part.members for part in parts))))
        fragments = mask = None
        if first.fragments is not None:
            width = max(part.fragments.shape[1] for part in parts)
            grow = lambda value: nn.functional.pad(value, (0, 0) * (value.dim() - 2) + (0, width - value.shape[1]))  # noqa: E731
            fragments = torch.cat([grow(part.fragments) for part in parts])
            mask = torch.cat([grow(part.mask) for part in parts])
        embedding = None if first.embedding is None else torch.cat([part.embedding for part in parts])
        return Encoding(fragments, mask, embedding, {k: torch.cat([p.extra[k] for p in parts]) for k in first.extra})


class ModelConfig(BaseModel):
    """Base of the models' configs: frozen, and an unknown key is an error.

    ``compat="official"`` fills the fields that ``official`` lists, as the authors' released code has them; a field that is
    given keeps its value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    official: ClassVar[dict[str, Any]] = {}

    compat: Literal["default", "official"] = "default"

    @property
    def token_kind(self) -> str:
        """What the captions are cut into: "words", or the "pieces" of a pretrained text encoder."""
        return "words"

    @property
    def tokenizer(self) -> str | None:
        """The folder or the name on the Hub that the word pieces come from; None for words, and where it is not known."""
        return None

    @property
    def pixels(self) -> Pixels | None:
        """How pictures become tensors, for a model that reads pixels; None for one that reads regions."""
        return None

    @model_validator(mode="before")
    @classmethod
    def _fill_compat(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("compat") == "official":
            return {**cls.official, **values}
        return values


def vocabulary_for(config: ModelConfig) -> WordPieces | None:
    """The word pieces that a model of ``config`` reads; None if it reads words, which come from the training captions."""
    if config.token_kind == "words":
        return None
    if config.tokenizer is None:
        raise InputError("this model reads the word pieces of a BERT, and nothing says of which: set bert, or give the model its "
                         "vocabulary, model.vocabulary = WordPieces.from_pretrained(...)")
    return WordPieces.from_pretrained(config.tokenizer)


def check_token_kind(model: MatchingModel, vocabulary: Vocabulary | WordPieces) -> None:
    """Raise :class:`InputError` if ``model``, or a member of the ensemble, reads other tokens than ``vocabulary`` makes."""
    for member in getattr(model, "models", ()):
        check_token_kind(member, vocabulary)
    wanted = getattr(getattr(model, "config", None), "token_kind", vocabulary.kind)
    if wanted == vocabulary.kind:
        return
    if wanted == "words":
        raise InputError("the captions are in word pieces and the model reads words: open the splits without vocabulary=")
    source = model.config.tokenizer or "..."
    raise InputError(f"the captions are in words and the model reads the word pieces of its BERT: open the splits with "
                     f"vocabulary=WordPieces.from_pretrained({source!r})")


class MatchingModel(nn.Module, FolderModel):
    """Base of all models. Subclasses write the two encoders, ``similarity``, ``loss`` and ``collapsed_loss``."""

    name: ClassVar[str]                      # the registry's name: "vse", "scan", ...
    config_class: ClassVar[type[ModelConfig]]
    shares_scores: ClassVar[bool] = False    # whether scores cost so much that several processes share them
    scores_pairs: ClassVar[bool] = False     # whether similarity_of_pairs is there, for models whose scores cost much
    batch_layout: ClassVar[str] = "caption"  # how the trainer draws batches: see itm_lib.data.dataset.BatchSampler
    config: ModelConfig

    @property
    def pixels(self) -> Pixels | None:
        """How the model reads pictures, for ``open_split``; None where it reads regions."""
        return getattr(getattr(self, "config", None), "pixels", None)

    @property
    def image_input(self) -> Literal["regions", "pixels"]:
        """With "pixels", ``regions`` is (I, 3, H, W), values from 0 to 1, without a mask."""
        return "regions" if self.pixels is None else "pixels"

    def encode_images(self, regions: Tensor, region_mask: Tensor | None) -> Encoding:
        """Regions (I, R, D) with mask (I, R) to an Encoding of I images."""
        raise NotImplementedError

    def encode_captions(self, tokens: Tensor, token_mask: Tensor) -> Encoding:
        """Token ids (C, W) with mask (C, W) to an Encoding of C captions."""
        raise NotImplementedError

    def similarity(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) in the parameters' dtype, at least float32; higher is better."""
        raise NotImplementedError

    def similarity_of_pairs(self, images: Encoding, captions: Encoding, rows: Tensor, columns: Tensor) -> Tensor:
        """Scores (P,) of the pairs (image ``rows[p]``, caption ``columns[p]``) alone: entries of :meth:`similarity` up to rounding."""
        raise NotImplementedError

    def loss(self, images: Encoding, captions: Encoding, image_ids: Tensor, caption_image_ids: Tensor) -> dict[str, Tensor]:
        """``'loss'`` (a scalar) and its named terms, detached terms allowed."""
        raise NotImplementedError

    def batch_scores(self, images: Encoding, captions: Encoding) -> Tensor:
        """Scores (I, C) of a training batch, for the loss: :meth:`similarity`.

        Where several processes share the batch and ``shares_scores``, each computes the columns of its share of the captions, and
        all get all of them, with their gradient. Otherwise every process computes the whole.
        """
        if share() is None or not self.shares_scores:
            return self.similarity(images, captions)
        counts = share_sizes(len(captions))
        first, own = sum(counts[: rank()]), counts[rank()]
        with all_or_none():  # one that has no column computes one all the same, so that its parameters have a gradient, of 0
            scores = self.similarity(images, captions.select(slice(first, first + own) if own else slice(0, 1)))[:, :own]
        return gather_rows(scores.T, counts).T

    def explain(self, images: Encoding, captions: Encoding) -> dict[str, Tensor]:
        """What there is to look at, for all pairs: ``'attention'`` (I, C, W, R), gates, slots."""
        return {}

    def collapsed_loss(self, num_images: int, num_captions: int) -> float | None:
        """The loss if every pair had the same score: the line to draw on a loss curve and to watch for."""
        return None

    def pair_bytes(self, images: Encoding, captions: Encoding) -> int:
        """Working memory of ``similarity`` for one pair, in bytes: what the evaluator divides its budget by."""
        return 8

    def use_vocabulary(self, vocabulary: Vocabulary | WordPieces) -> str | None:
        """Called by the trainer before it trains: a new model may take from ``vocabulary`` what depends on the words themselves.

        Called again, or on a model that was saved and read, it changes nothing. Returns a line for the run's output, if any.
        """
        return None

    def prepare_captions(self, captions: Sequence[Sequence[int]], progress: bool = False) -> None:
        """Called by the trainer before the first step, with the token ids of the captions of train and val: a model may compute once what
        training does not change."""

    def start_epoch(self, epoch: int) -> None:
        """Called by the trainer before epoch ``epoch`` (from 0), on resume too: warm-up and stages live here."""

    @property
    def parameters_rest(self) -> bool:
        """Whether there are steps in which some parameters have no part in the loss, and get no gradient."""
        return False

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimizer gets: groups of ``params``; ``lr_scale`` multiplies the learning rate, other keys are torch's."""
        return [{"params": list(self.parameters())}]

    def forward(self, batch: Batch, gather: Callable[[Encoding], Encoding] | None = None) -> dict[str, Tensor]:
        """Encode the batch, gather the encodings of all ranks if ``gather`` is given, and return ``loss``'s terms."""
        images = self.encode_images(batch.regions, batch.region_mask)
        captions = self.encode_captions(batch.tokens, batch.token_mask)
        image_ids, caption_image_ids = batch.image_ids, batch.caption_image_ids
        if gather is not None:
            images, captions = gather(images), gather(captions)
            ids = gather(Encoding(embedding=image_ids)).embedding, gather(Encoding(embedding=caption_image_ids)).embedding
            image_ids, caption_image_ids = ids
        with same_random():  # from here on every process computes the same
            return self.loss(images, captions, image_ids, caption_image_ids)
