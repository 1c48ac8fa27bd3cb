"""Encoders that come trained, from the transformers library: a BERT that reads captions.

What is read from a folder, or from the Hugging Face Hub, is written into the model's config, so that a saved model is read back
without it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from itm_lib.data.captions import WordPieces, pretrained_folder
from itm_lib.files import InputError
from itm_lib.models.hinge import HingeConfig


class WordsConfig(HingeConfig):
    """Settings of a text encoder that is a GRU over word embeddings, or a BERT.

    ``text_encoder="bert"`` takes ``bert``, a folder or a name on the Hugging Face Hub; captions are then cut into BERT's own word
    pieces. ``bert_config``: that model's architecture, filled in when it is made, so that a saved model needs no ``bert``.
    ``word_dropping``: the share of words that are masked, replaced or left out in training; a word's pieces share its fate.
    """

    text_encoder: Literal["gru", "bert"] = "gru"
    word_dim: PositiveInt = 300
    gru_layers: PositiveInt = 1
    bidirectional: bool = True
    bert: str | None = None
    bert_config: dict[str, Any] | None = None
    bert_lr_scale: PositiveFloat = 0.1
    word_dropping: float = Field(0.2, ge=0, lt=1)
    mask_id: NonNegativeInt | None = None    # of a masked word; None: <unk> for the GRU, the tokenizer's for BERT

    @model_validator(mode="after")
    def _has_its_encoder(self) -> WordsConfig:
        if self.text_encoder == "bert" and self.bert is None and self.bert_config is None:
            raise ValueError("text_encoder 'bert' needs bert, a folder or a name like bert-base-uncased")
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
    """

    continues: Tensor

    def __init__(self, config: WordsConfig):
        super().__init__()
        from transformers import AutoConfig, AutoModel  # only here: it takes seconds to import

        continues = torch.zeros(config.vocab_size, dtype=torch.bool)
        if config.bert_config is None:
            self.bert, mask_id = read_bert(config.bert), config.mask_id
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
        states = self.bert(input_ids=tokens, attention_mask=token_mask.long()).last_hidden_state
        return self.linear(states)


def read_bert(name: str) -> nn.Module:
    """The BERT in the folder ``name``, or of that name on the Hub, in float32."""
    from transformers import AutoModel

    folder, problem = pretrained_folder(name), None
    try:
        with quiet_transformers():
            bert, report = AutoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        problem = " ".join(str(error).split())[:120]
    else:
        lacking = [key for key in sorted(report["missing_keys"]) if not key.startswith("pooler.")]
        if lacking:
            problem = f"its weights lack {lacking[0]}"
    if problem:
        raise InputError(f"bert {name!r} cannot be read ({problem}): give a folder that holds one, or its name on the Hub")
    return bert


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without its bar and its report on weights, in which nothing is wrong that is not told here."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def check_vocabulary(ours: int, theirs: int) -> None:
    if ours > theirs:
        raise InputError(f"the captions have a vocabulary of {ours} and this BERT one of {theirs}: "
                         "give captions in BERT's own tokens")
