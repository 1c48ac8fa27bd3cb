"""Checkpoints of the authors' own code, turned into our models in official compat.

The authors save ``{"model": [state of the image encoder, state of the text encoder, ...], "opt": their options, ...}``.
Sizes are read from the tensors' shapes, settings that shapes cannot tell from ``opt`` where the file has it, and ``config``
overrides both. ``config`` may use our names (``direction``) or the authors' (``cross_attn``).
"""

from __future__ import annotations

import argparse
import difflib
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itm_lib.files import InputError
from itm_lib.models.base import MatchingModel
from itm_lib.models.saving import checked_config
from itm_lib.models.scan import SCAN, SCANConfig

State = dict[str, Tensor]
PARTS = ("img_enc", "txt_enc", "sim", "criterion")  # the order in which the authors' lists hold them
WEIGHT_NORM = {"fc.weight_g": "fc.parametrizations.weight.original0", "fc.weight_v": "fc.parametrizations.weight.original1"}
AGGREGATIONS = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}

# the authors' option -> our field and the value's translation
SCAN_OPTIONS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "img_dim": ("region_dim", int), "embed_size": ("embed_dim", int), "word_dim": ("word_dim", int),
    "vocab_size": ("vocab_size", int), "num_layers": ("gru_layers", int), "bi_gru": ("bidirectional", bool),
    "precomp_enc_type": ("image_projection", lambda value: "weight_norm" if value == "weight_norm" else "linear"),
    "no_imgnorm": ("image_norm", lambda value: not value), "no_txtnorm": ("text_norm", lambda value: not value),
    "cross_attn": ("direction", str), "agg_func": ("aggregation", lambda value: AGGREGATIONS.get(value, value)),
    "raw_feature_norm": ("raw_feature_norm", str), "lambda_softmax": ("lambda_softmax", float),
    "lambda_lse": ("lambda_lse", float), "margin": ("margin", float),
    "max_violation": ("negatives", lambda value: "hardest" if value else "all"),
}


def load_official(path_or_state: Any, method: str, config: Mapping[str, Any] | None = None) -> MatchingModel:
    """The authors' checkpoint as our model, in evaluation mode, in the dtype of its tensors.

    ``path_or_state``: a file saved by the authors' code, or what it holds: a dict with ``"model"``, a list of the parts'
    state dicts, or one dict whose keys start with the part (``img_enc/fc.weight``). ``method``: ``"scan"``.
    Raises :class:`InputError` for another method, a damaged file, or a state that is not of this method.
    """
    if method not in LOADERS:
        raise InputError(f"no loader for official checkpoints of {method!r}: supported are {', '.join(LOADERS)}")
    where = str(path_or_state) if isinstance(path_or_state, (str, Path)) else "the given state"
    content = read_torch_file(Path(path_or_state)) if isinstance(path_or_state, (str, Path)) else path_or_state
    options = content.get("opt") if isinstance(content, Mapping) else None
    options = vars(options) if isinstance(options, argparse.Namespace) else dict(options or {})
    return LOADERS[method](split_parts(content, where), options, dict(config or {}), where)


def read_torch_file(path: Path) -> Any:
    """What a torch file holds, on the CPU. Only tensors, plain containers and argparse's Namespace are read from it."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: check the path")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        why = " ".join(str(error).split())[:160]
        what = "it is damaged, cut short or holds code"
        raise InputError(f"{path} cannot be read as a torch checkpoint ({why}): {what}") from None


def split_parts(content: Any, where: str) -> dict[str, State]:
    """The states of a checkpoint by part (``img_enc``, ``txt_enc``, ...), without DataParallel's ``module.`` prefix."""
    content = content.get("model", content) if isinstance(content, Mapping) else content
    if isinstance(content, Sequence) and content and all(isinstance(part, Mapping) for part in content):
        parts = dict(zip(PARTS, content))
    elif isinstance(content, Mapping) and content:
        parts = {}
        for key, value in content.items():
            head, separator, rest = str(key).removeprefix("module.").replace("/", ".", 1).partition(".")
            if head not in PARTS or not separator:
                raise InputError(f"{where}: key {key!r} belongs to no part; keys start with one of {', '.join(PARTS)}")
            parts.setdefault(head, {})[rest] = value
    else:
        raise InputError(f"{where} holds no model: expected a list of state dicts, or a dict with 'model'")
    return {part: {str(key).removeprefix("module."): torch.as_tensor(value) for key, value in state.items()}
            for part, state in parts.items()}


def translate_options(options: Mapping[str, Any], table: Mapping[str, tuple[str, Callable[[Any], Any]]],
                      fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings in our names. Options of training alone are left out; what looks like a misspelt name is an error."""
    values = {}
    for key, value in options.items():
        if key in table:  # before our own names: word_dim and others are both
            our, convert = table[key]
            values[our] = convert(value)
        elif key in fields:
            values[key] = value
        else:
            close = difflib.get_close_matches(key, [*fields, *table], 1, 0.8)
            if close:
                raise InputError(f"{where}: unknown setting {key!r}; did you mean {close[0]}?")
    return values


def load_scan(parts: dict[str, State], options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> SCAN:
    """SCAN from ``img_enc`` and ``txt_enc``."""
    image, text = parts.get("img_enc", {}), parts.get("txt_enc", {})
    complete = {"fc.weight", "fc.weight_v"} & set(image) and {"embed.weight", "rnn.weight_ih_l0"} <= set(text)
    if set(parts) != {"img_enc", "txt_enc"} or not complete:
        found = ", ".join(f"{part}: {', '.join(list(state)[:3])}" for part, state in parts.items())
        line = f"{where} is not a SCAN checkpoint, which has img_enc fc and txt_enc embed, rnn; found {found}"
        raise InputError(line[:300])
    layers = sum(key.startswith("rnn.weight_ih_l") and not key.endswith("_reverse") for key in text)
    matrix = image.get("fc.weight", image.get("fc.weight_v"))
    shapes = {
        "region_dim": matrix.shape[1], "embed_dim": matrix.shape[0], "vocab_size": text["embed.weight"].shape[0],
        "word_dim": text["embed.weight"].shape[1], "gru_layers": layers,
        "bidirectional": "rnn.weight_ih_l0_reverse" in text,
        "image_projection": "weight_norm" if "fc.weight_v" in image else "linear",
    }
    named = {key: value for key, value in options.items() if key in SCAN_OPTIONS}  # options of the file hold much else
    values = {**translate_options(named, SCAN_OPTIONS, SCANConfig.model_fields, where), **shapes,
              **translate_options(config, SCAN_OPTIONS, SCANConfig.model_fields, where)}
    model = SCAN(checked_config(SCANConfig, {"compat": "official", **values}, where))
    if image.get("fc.weight_g", torch.empty(0)).numel() == 1:
        image = {**image, "fc.weight_g": image["fc.weight_g"].reshape(())}  # older torch kept it as a vector of one
    state = {f"image.{WEIGHT_NORM.get(key, key)}": value for key, value in image.items()}
    return filled(model, {**state, **{f"text.{key}": value for key, value in text.items()}}, where)


def filled(model: MatchingModel, state: State, where: str) -> MatchingModel:
    """``model`` with the weights ``state``, in their dtype and in evaluation mode; every tensor must fit."""
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    model = model.to(torch.float64 if torch.float64 in dtypes else torch.float32)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = " ".join(str(error).split(":", 1)[-1].split())[:200]
        raise InputError(f"{where} does not fit the settings: {why}") from None
    return model.eval()


Loader = Callable[[dict[str, State], Mapping[str, Any], Mapping[str, Any], str], MatchingModel]
LOADERS: dict[str, Loader] = {"scan": load_scan}
