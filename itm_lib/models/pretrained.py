"""Encoders that come trained, from the transformers library: a BERT that reads captions, a backbone that reads pictures.

What is read from a folder, or from the Hugging Face Hub, is written into the model's config, so that a saved model is read back
without it.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn
from tqdm import tqdm

from itm_lib.data.captions import BERT_FILES, WordPieces
from itm_lib.features.pretrained import BACKBONE_FILES, IMAGENET, read_normalisation, read_pretrained
from itm_lib.files import InputError, one_line
from itm_lib.models.hinge import GruConfig
from itm_lib.models.layers import BatchNorm2d

KEPT_TOGETHER = 64  # captions of one length whose states are computed at once


class WordsConfig(GruConfig):
    """Settings of a text encoder that is a GRU over word embeddings, or a BERT.

    ``text_encoder="bert"`` takes ``bert``, a folder or a name on the Hugging Face Hub; captions are then cut into BERT's own word
    pieces. ``bert_config``: that model's architecture, filled in when it is made, so that a saved model needs no ``bert``.
    ``word_dropping``: the share of words that are masked, replaced or left out in training; a word's pieces share its fate.
    ``bert_frozen``: BERT does not train, so its states of the training captions are computed once; then words are left out behind it.
    """

    text_encoder: Literal["gru", "bert"] = "gru"
    bert: str | None = None
    bert_config: dict[str, Any] | None = None
    bert_lr_scale: PositiveFloat = 0.1
    bert_frozen: bool = False
    word_dropping: float = Field(0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _has_its_encoder(self) -> WordsConfig:
        if self.text_encoder == "bert" and self.bert is None and self.bert_config is None:
            raise ValueError("text_encoder 'bert' needs bert, a folder or a name like bert-base-uncased")
        if self.text_encoder == "bert" and self.word_vectors is not None:
            raise ValueError("word_vectors are of the GRU's words: a BERT brings its own")
        return self

    @property
    def token_kind(self) -> str:
        return "pieces" if self.text_encoder == "bert" else "words"

    @property
    def tokenizer(self) -> str | None:
        return self.bert if self.text_encoder == "bert" else None


class BertWords(nn.Module):
    """x = W b + b' of BERT's last hidden states b: tokens (C,W) with mask (C,W) -> (C,W,d), computed on padding too.

    ``continues`` (vocab_size,) bool: tokens that go on with the word before, "##ing". Reads ``config.bert`` where there is no
    ``config.bert_config``, and then ``filled`` is the config with the architecture and the mask's id.

    With ``config.bert_frozen`` its states are rounded to float16 and those of the captions that :meth:`keep_states` was given are kept.
    """

    continues: Tensor
    kept: dict[bytes, Tensor]

    def __init__(self, config: WordsConfig):
        super().__init__()
        from transformers import AutoConfig, AutoModel  # only here: it takes seconds to import

        continues = torch.zeros(config.vocab_size, dtype=torch.bool)
        if config.bert_config is None:
            self.bert, mask_id = read_pretrained(config.bert, "bert", BERT_FILES), config.mask_id
            check_vocabulary(config.vocab_size, self.bert.config.vocab_size)
            if config.word_dropping:
                pieces = WordPieces.from_pretrained(config.bert)
                check_vocabulary(config.vocab_size, len(pieces))
                continues[pieces.continues] = True
                if mask_id is None and pieces.mask is None:
                    raise InputError(f"the tokenizer of bert {config.bert!r} has no mask: set mask_id, or word_dropping to 0")
                mask_id = pieces.id(pieces.mask) if mask_id is None else mask_id
            architecture = json.loads(self.bert.config.to_json_string(use_diff=True))
            config = config.model_copy(update={"bert_config": architecture, "mask_id": mask_id})
        else:
            values = {"model_type": "bert", **config.bert_config}
            self.bert = AutoModel.from_config(AutoConfig.for_model(**values)).float()
            check_vocabulary(config.vocab_size, self.bert.config.vocab_size)
        if hasattr(self.bert, "pooler"):
            self.bert.pooler = None  # never used: its weights would get no gradient
        self.frozen, self.kept = config.bert_frozen, {}
        if self.frozen:
            self.bert.requires_grad_(False)
        self.filled = config
        self.linear = nn.Linear(self.bert.config.hidden_size, config.embed_dim)
        self.register_buffer("continues", continues)

    def forward(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        longest = getattr(self.bert.config, "max_position_embeddings", tokens.shape[1])
        if tokens.shape[1] > longest:
            raise InputError(f"a caption has {tokens.shape[1]} tokens and this BERT reads {longest} at most: shorten it")
        if tokens.device.type == "cpu" and int(tokens.max()) >= len(self.continues):
            raise InputError(f"token id {int(tokens.max())} is outside BERT's vocabulary of {len(self.continues)}: "
                             "use its own tokens")
        return self.linear(self._frozen_states(tokens, token_mask) if self.frozen else self._states(tokens, token_mask))

    def train(self, mode: bool = True) -> BertWords:
        super().train(mode)
        if self.frozen:
            self.bert.eval()
        return self

    def keep_states(self, captions: Sequence[Sequence[int]], progress: bool = False) -> None:
        """Compute the states of ``captions``, token ids, and keep them (about 12 kB a caption). Where BERT trains, nothing is kept.

        Captions of one length are computed together, in an order that depends on the captions alone, and a run that goes on computes the same.
        """
        if not self.frozen:
            return
        device = self.linear.weight.device
        by_length: dict[int, list[tuple[int, ...]]] = {}
        for caption in sorted(set(map(tuple, captions))):
            by_length.setdefault(len(caption), []).append(caption)
        self.kept = {}
        with torch.no_grad(), tqdm(total=sum(map(len, by_length.values())), desc="states of captions", unit="caption", disable=not progress) as bar:
            for same in by_length.values():
                for first in range(0, len(same), KEPT_TOGETHER):
                    part = torch.tensor(same[first : first + KEPT_TOGETHER])
                    states = self._states(part.to(device), torch.ones_like(part, dtype=torch.bool, device=device)).half().cpu()
                    self.kept.update({_key(tokens): state for tokens, state in zip(part, states.clone())})
                    bar.update(len(part))

    def _states(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        return self.bert(input_ids=tokens, attention_mask=token_mask.long()).last_hidden_state

    @torch.no_grad()
    def _frozen_states(self, tokens: Tensor, token_mask: Tensor) -> Tensor:
        """States (C,W,h), 0 on padding; those that are kept are not computed again."""
        lengths = token_mask.sum(1).tolist()
        found = [self.kept.get(_key(row[:length])) for row, length in zip(tokens.cpu(), lengths)]
        states = torch.zeros(*tokens.shape, self.bert.config.hidden_size, dtype=self.linear.weight.dtype, device=tokens.device)
        missing = [row for row, state in enumerate(found) if state is None]
        if missing:
            computed = self._states(tokens[missing], token_mask[missing]).half().to(states.dtype)
            states[missing] = computed * token_mask[missing, :, None]
        for row, (state, length) in enumerate(zip(found, lengths)):
            if state is not None:
                states[row, :length] = state.to(states)
        return states


def _key(tokens: Tensor) -> bytes:
    """What a caption's states are kept under."""
    return tokens.numpy().astype("<i4").tobytes()


class Backbone(nn.Module):
    """Pictures (I,3,H,W), values from 0 to 1 or bytes, to cells (I,F,c): any image model of transformers whose last hidden state
    is a map (I,c,h,w), then F = h w row by row, or tokens, then those of the picture without class and register tokens.

    Reads ``name``, a folder or a name on the Hub, where there is no ``architecture``; ``architecture`` and ``dim``, c, are then
    what a saved model keeps. Pictures are normalised by the mean and deviation of its preprocessor_config.json, or else ImageNet's.
    BatchNorm keeps the statistics that it came with, in training too, as in VSE∞, unless ``batch_norm``. What has no part in the
    cells, like a pooling layer, does not train. ``size``: pictures of so many pixels are tried at once.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str | None, architecture: dict[str, Any] | None, size: int, batch_norm: bool = False):
        super().__init__()
        self.batch_norm, normal = batch_norm, IMAGENET
        if architecture is None:
            self.model, normal = read_pretrained(name, "backbone", BACKBONE_FILES), read_normalisation(name)
            architecture = json.loads(self.model.config.to_json_string(use_diff=True))
        else:
            self.model = build_backbone(architecture)
        self.architecture = architecture
        for buffer, values in zip(("mean", "std"), normal):
            self.register_buffer(buffer, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))
        if batch_norm:
            for module in self.model.modules():
                if type(module) is nn.BatchNorm2d:
                    module.__class__ = BatchNorm2d  # the same numbers; over all processes where there are several
        self.resizes = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        self._try(size)

    def _try(self, size: int) -> None:
        """One picture of zeros: the number of channels, where the picture's tokens begin, and which weights have no part in them."""
        kind = self.architecture.get("model_type")
        self.eval()
        try:
            with torch.inference_mode(False), torch.enable_grad():
                states = self._states(torch.zeros(1, 3, size, size))
                used = torch.autograd.grad(states.sum(), tuple(self.model.parameters()), allow_unused=True)
        except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
            why = one_line(error)
            raise InputError(f"the backbone, a {kind!r}, makes no cells of a picture of {size} pixels ({why}): give an image model of "
                             "transformers, and set image_size to what it reads") from None
        patch = getattr(self.model.config, "patch_size", None)
        patch = patch[0] if isinstance(patch, Sequence) else patch
        self.dim = states.shape[1 if states.dim() == 4 else 2]
        self.first = max(0, states.shape[1] - (size // patch) ** 2) if states.dim() == 3 and patch else 0
        for parameter, gradient in zip(self.model.parameters(), used):
            parameter.requires_grad_(gradient is not None)
        self.train()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        if not self.batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def forward(self, pictures: Tensor) -> Tensor:
        if pictures.dim() != 4 or pictures.shape[1] != 3:
            raise InputError(f"images of shape {tuple(pictures.shape)} were given to a model of pixels, which takes (images, 3, height, "
                             "width): open the splits with pixels=model.pixels")
        if pictures.dtype == torch.uint8:
            pictures = pictures / 255
        states = self._states((pictures.to(self.mean.dtype) - self.mean) / self.std)
        return states.flatten(2).mT if states.dim() == 4 else states[:, self.first:]

    def _states(self, pictures: Tensor) -> Tensor:
        options = {"interpolate_pos_encoding": True} if self.resizes else {}
        return self.model(pixel_values=pictures, **options).last_hidden_state


def build_backbone(architecture: dict[str, Any]) -> nn.Module:
    """An image model of this architecture, with random weights."""
    from transformers import AutoConfig, AutoModel

    try:
        return AutoModel.from_config(AutoConfig.for_model(**architecture)).float()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        why = one_line(error)
        raise InputError(f"backbone_config describes no model ({why}): give model_type, like resnet, and its settings") from None


def check_vocabulary(ours: int, theirs: int) -> None:
    if ours > theirs:
        raise InputError(f"the captions have a vocabulary of {ours} and this BERT one of {theirs}: "
                         "give captions in BERT's own tokens")
