"""Checkpoints of the authors' own code, turned into our models in official compat.

The authors save ``{"epoch": ..., "model": [state of the image encoder, state of the text encoder, ...], "best_rsum": ..., "opt": their
options, "Eiters": ...}``; DivE ``{"args": their options, "model": one dict, ...}``. Nothing but tensors, plain containers and the
options' class is read from such a file. :func:`load_official` makes a model of one, :func:`convert_official` a model folder.

Sizes are read from the tensors' shapes, settings that shapes cannot tell from ``opt`` where the file has it, and ``config``
overrides both. ``config`` may use our names (``direction``) or the authors' (``cross_attn``).

SCAN: two parts, ``img_enc`` and ``txt_enc``. CAMP: ``sim`` besides, with both its measures: ``gate_fusion_new`` where the
part has ``fc_1``, otherwise ``cross_attention_new``, pooled by attention where it has ``reduce_layer_1``. The loss comes from
``loss_func``, BCE where nothing says otherwise: the released code always takes BCE.

HREM: ``img_enc`` and ``txt_enc`` with a BERT. Checkpoints hold no relation modules; where a state has them (``criterion``) they are
taken, otherwise they are new. The number of BERT's heads, and of the other layers', is in no shape: ``bert_config`` and ``nhead`` say
it, 64 dimensions a head and 16 heads otherwise.

DivE: ``img_enc`` and ``txt_enc`` of regions and a GRU, each with ``spm``, its set prediction by slot attention. The number of
heads is in no shape: ``heads`` says it, 4 otherwise. Nor is the number of iterations where the file lists the shared layer
once: ``spm_depth``, 4 otherwise.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import math
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from itm_lib.data.authors_text import read_authors_vocabulary, read_plain_pickle
from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.files import InputError, one_line, read_json
from itm_lib.models.base import MatchingModel, ModelConfig
from itm_lib.models.camp import CAMP, CampConfig
from itm_lib.models.dive import DivE, DiveConfig
from itm_lib.models.hrem import HREM, HremConfig
from itm_lib.models.saving import checked_config
from itm_lib.models.scan import SCAN, SCANConfig

State = dict[str, Tensor]
PARTS = ("img_enc", "txt_enc", "sim", "criterion")  # the order in which the authors' lists hold them
WEIGHT_NORM = {"fc.weight_g": "fc.parametrizations.weight.original0", "fc.weight_v": "fc.parametrizations.weight.original1"}
AGGREGATIONS = {"LogSumExp": "lse", "Mean": "mean", "Max": "max", "Sum": "sum"}

# modules of CAMP's part ``sim`` -> ours
CAMP_MODULES = {
    "img_key_fc": "attention.image_key", "txt_key_fc": "attention.text_key",
    "img_query_fc": "attention.image_query", "txt_query_fc": "attention.text_query",
    "weighted_img_key_fc": "attention.image_message_key", "weighted_txt_key_fc": "attention.text_message_key",
    "weighted_img_query_fc": "attention.image_message_query", "weighted_txt_query_fc": "attention.text_message_query",
    "fc_1.0": "fusion.regions", "fc_2.0": "fusion.words", "fc_out.0": "head.0", "fc_out.3": "head.2",
    **{f"{name}_{number}.linear.{layer}": f"summary.{side}.{layer}" for name in ("final_reduce", "reduce_layer")
       for number, side in ((1, "regions"), (2, "words")) for layer in (0, 2)},
}

# the authors' option -> our field and the value's translation; None: known, but the tensors say it
Options = Mapping[str, tuple[str, Callable[[Any], Any]] | None]
COMMON_OPTIONS: Options = {
    "img_dim": ("region_dim", int), "embed_size": ("embed_dim", int), "word_dim": ("word_dim", int),
    "vocab_size": ("vocab_size", int), "num_layers": ("gru_layers", int), "bi_gru": ("bidirectional", bool),
    "no_imgnorm": ("image_norm", lambda value: not value), "no_txtnorm": ("text_norm", lambda value: not value),
    "margin": ("margin", float), "max_violation": ("negatives", lambda value: "hardest" if value else "all"),
}
SCAN_OPTIONS: Options = {
    **COMMON_OPTIONS,
    "precomp_enc_type": ("image_projection", lambda value: "weight_norm" if value == "weight_norm" else "linear"),
    "cross_attn": ("direction", str), "agg_func": ("aggregation", lambda value: AGGREGATIONS.get(value, value)),
    "raw_feature_norm": ("raw_feature_norm", str), "lambda_softmax": ("lambda_softmax", float),
    "lambda_lse": ("lambda_lse", float),
}
CAMP_OPTIONS: Options = {
    **COMMON_OPTIONS,
    "loss_func": ("objective", lambda value: "bce" if value == "BCE" else "ranking"), "num_attn": ("num_heads", int),
    "max_length": ("pad_to", lambda value: int(value) + 3),  # they pad three places past the longest caption they keep
    "measure": None, "fusion_func": None, "self_attention": None,
}
HREM_OPTIONS: Options = {
    **{key: value for key, value in COMMON_OPTIONS.items() if key not in ("word_dim", "num_layers", "bi_gru")},
    "bert_config": None, "nhead": ("num_heads", int),
    "dropout": ("dropout", float), "residual_weight": ("beta", float), "num_layers_enc": ("num_layers", int),
    "mask_weight": ("relation_weight", float), "threshold": ("threshold", float), "topk": ("topk", int),
    "reg_loss_weight": ("reg_weight", float), "norm_input": ("normalise_nodes", bool), "cross_loss": ("cross_loss", bool),
    "warmup": ("relation_warmup", int), "graph_lr_factor": ("graph_lr_scale", float),
    "mask_repeat": ("same_image_negatives", lambda value: not value),
    "base_loss": ("matching_loss", lambda value: {"trip": "distance_weighted", "vse": "hinge"}.get(value, value)), "gnn_loss": None,
    "dataset": ("distance_cutoff", lambda value: 1.9 if "coco" in str(value) else 1.7),
}

DIVE_SIMILARITIES = {"max": "mil", "mp": "match_probability", "smooth_chamfer_euclidean": "euclidean_smooth_chamfer"}
DIVE_OPTIONS: Options = {
    **{key: COMMON_OPTIONS[key] for key in ("embed_size", "word_dim", "vocab_size", "margin", "max_violation")},
    "butd_dim": ("region_dim", int), "img_num_embeds": ("num_slots", int), "txt_num_embeds": ("caption_slots", int),
    "heads": ("num_heads", int), "dim_head": ("head_dim", int), "dropout": ("dropout", float),
    "spm_depth": ("iterations", int), "spm_weight_sharing": ("share_weights", bool), "spm_activation": ("activation", str),
    "spm_post_norm": ("norm_position", lambda value: "post" if value else "pre"), "spm_pre_norm": None,
    "spm_residual_norm": ("global_norm", bool), "spm_ff_mult": ("feed_factor", int),
    "spm_txt_pos_enc_type": ("position_code", lambda value: {"sine": True, "none": False}.get(value, value)),
    "txt_attention_input": ("text_local", lambda value: {"wemb": "words", "rnn": "states"}.get(value, value)),
    "txt_pooling": ("text_global", lambda value: "last" if value == "rnn" else value),
    "loss": ("similarity", lambda value: DIVE_SIMILARITIES.get(value, value)), "eval_similarity": None, "temperature": ("alpha", float),
    "semi_hard_triplet": None, "mmd_weight": ("mmd_weight", float), "unif_weight": ("diversity_weight", float),
    "div_weight": ("gram_weight", float), "unif_residual": ("diversity_of", lambda value: "slots" if value else "embeddings"),
    "caption_drop_prob": ("word_dropping", float), "butd_drop_prob": ("region_dropping", float),
    "img_pie_lr_scale": ("image_lr_scale", float), "txt_pie_lr_scale": ("text_set_lr_scale", float),
    **dict.fromkeys(("txt_lr_scale", "img_1x1_dropout", "spm_1x1", "spm_input_dim", "spm_query_dim", "spm_last_ln")),
}
DIVE_FIXED = {"arch": "slot", "spm_residual": True, "query_slot": False, "spm_img_pos_enc_type": "none", "img_res_pool": "max",
              "denominator": 2.0}  # options that have no counterpart here

# modules of DivE's set prediction -> ours, with LayerNorm before and after the steps; then of everything else
DIVE_STEP = {
    "0.fn.to_q": "attention.query", "0.fn.to_k": "attention.key", "0.fn.to_v": "attention.value", "0.fn.to_out.0": "attention.out",
    "0.to_q": "attention.query", "0.to_k": "attention.key", "0.to_v": "attention.value", "0.to_out.0": "attention.out",
    "0.norm_context": "input_norm", "2.fn.net.0": "first", "2.fn.net.3": "second", "2.net.0": "first", "2.net.3": "second",
}
DIVE_NORMS = {"0.norm": "attention", "2.norm": "feed", "1.norm": "attention", "3.norm": "feed"}
DIVE_MODULES = {
    "img_enc.fc": "image.linear.fc", "img_enc.mlp.fc1": "image.hidden", "img_enc.mlp.bn.bn": "image.norm", "img_enc.mlp.fc2": "image.out",
    "txt_enc.embed": "text.embed", "txt_enc.rnn": "text.rnn",
    **{f"{part}_enc.spm.{theirs}": f"{ours}_set.{name}" for part, ours in (("img", "image"), ("txt", "text")) for theirs, name in (
        ("residual_norm", "global_norm"), ("agg_block.last_layer.0", "aggregation.last_norm"))},
}
DIVE_SIZES = ("img_enc.fc.weight", "img_enc.mlp.fc1.weight", "txt_enc.embed.weight", "txt_enc.rnn.weight_ih_l0",
              "img_enc.spm.agg_block.latents", "txt_enc.spm.agg_block.latents")  # tensors that every such checkpoint has

# modules of one of HREM's transformer layers -> ours; then of everything else
HREM_LAYER = {"self_attn": "attend.attention", "norm1": "attend.norm", "linear1": "feed.first", "linear2": "feed.second",
              "norm2": "feed.norm"}
HREM_MODULES = {
    "img_enc.fc.fc": "image.linear.fc", "img_enc.fc.mlp.layers.0": "image.hidden", "img_enc.fc.mlp.layers.1": "image.out",
    "img_enc.fc.mlp.bns.0": "image.norm", "txt_enc.bert": "text.bert", "txt_enc.linear": "text.linear",
    "img_enc.aggr.layers.0": "image_relations", "txt_enc.aggr.layers.0": "text_relations", "criterion.gnn.layers": "graph",
    **{f"criterion.adj_model.adj_learning.mlp_{way}.{theirs}": f"relevance.{way}.{ours}"
       for way in ("i2t", "t2i") for theirs, ours in ((0, 0), (3, 2))},
}
HREM_UNUSED = ("img_enc.fc.mlp.bns.1.", "txt_enc.bert.pooler.", "txt_enc.bert.embeddings.position_ids")
HREM_SIZES = ("img_enc.fc.fc.weight", "img_enc.fc.mlp.layers.0.weight",
              *(f"txt_enc.bert.embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")),
              "txt_enc.bert.encoder.layer.0.intermediate.dense.weight")  # tensors whose shapes tell the sizes
BERT_MASK = 103  # the id of [MASK] in the vocabulary of bert-base-uncased


OPTION_KEYS = ("opt", "args")  # where a checkpoint has the authors' options
BERT = "bert-base-uncased"     # whose word pieces HREM reads
TORCH_MAGIC = torch.serialization.MAGIC_NUMBER.to_bytes(10, "little")  # at the start of files of torch before 1.6


def load_official(path_or_state: Any, method: str, config: Mapping[str, Any] | None = None,
                  options: str | Path | Mapping[str, Any] | None = None) -> MatchingModel:
    """The authors' checkpoint as our model, in evaluation mode, in the dtype of its tensors.

    ``path_or_state``: a file saved by the authors' code, or what it holds: a dict with ``"model"``, a list of the parts'
    state dicts, or one dict whose keys start with the part (``img_enc/fc.weight``). ``method``: ``"scan"``, ``"camp"``, ``"hrem"`` or
    ``"dive"``. ``options``: the authors' options where the checkpoint has none, or others than its own: see :func:`read_options`.
    Raises :class:`InputError` for another method, a damaged file, or a state that is not of this method.
    """
    known_method(method)
    where = str(path_or_state) if isinstance(path_or_state, (str, Path)) else "the given state"
    content = read_torch_file(Path(path_or_state)) if isinstance(path_or_state, (str, Path)) else path_or_state
    return _model_of(content, method, config, options, where)


def _model_of(content: Any, method: str, config: Mapping[str, Any] | None, options: str | Path | Mapping[str, Any] | None,
              where: str) -> MatchingModel:
    given = {**own_options(content, where), **read_options(options)}
    return LOADERS[method](split_parts(content, where), given, dict(config or {}), where)


def convert_official(checkpoint: str | Path, method: str, out: str | Path, vocabulary: str | Path | None = None,
                     options: str | Path | Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None,
                     paper: Mapping[str, Any] | None = None) -> Path:
    """Write the authors' ``checkpoint`` as the model folder ``out``, which ``load_model`` and ``itm evaluate`` take; returns ``out``.

    ``vocabulary``: the file of the words that it was trained with, :func:`itm_lib.data.authors_text.read_authors_vocabulary`; of
    HREM, a folder or a name on the Hub with the BERT's tokenizer (default: bert-base-uncased). ``options``, ``config``: as in
    :func:`load_official`. ``paper``: the row of a paper's table that it belongs to, as recipes have it. The same files give the
    same folder: HREM's relation modules, which its checkpoints lack and evaluation does not use, are drawn with a fixed seed.
    """
    checkpoint = Path(checkpoint)
    known_method(method)
    content = read_torch_file(checkpoint)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model_of(content, method, config, options, str(checkpoint))
    words = _official_words(model, method, vocabulary)
    about = content if isinstance(content, Mapping) else {}
    told = {key: about[key] for key in ("epoch", "best_rsum", "best_score", "Eiters")
            if isinstance(about.get(key), (int, float)) and math.isfinite(about[key])}
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    recipe: dict[str, Any] = {"official": {"method": method, "file": checkpoint.name, "sha256": digest, **told}}  # where results look
    if paper is not None:
        recipe["paper"] = dict(paper)
    model.float().save_pretrained(out, words, {"recipe": recipe})
    return Path(out)


def known_method(method: str) -> None:
    """Raise :class:`InputError` for a method whose checkpoints are not known."""
    if method not in LOADERS:
        raise InputError(f"no loader for official checkpoints of {method!r}: supported are {', '.join(LOADERS)}")


def _official_words(model: MatchingModel, method: str, vocabulary: str | Path | None) -> Vocabulary | WordPieces:
    """What turns captions into the ids that ``model`` was trained with."""
    size = model.config.vocab_size
    if method != "hrem":
        if vocabulary is None:
            raise InputError(f"a checkpoint of {method} does not hold its {size} words: give the authors' vocabulary, a .json or "
                             ".pkl file of their folder vocab/")
        return read_authors_vocabulary(vocabulary, method, size)
    source = BERT if vocabulary is None else vocabulary
    if Path(source).is_file():
        raise InputError(f"{source} is a file: HREM reads the word pieces of a BERT; give the folder that holds its tokenizer")
    words = WordPieces.from_pretrained(source)
    if len(words) != size:
        raise InputError(f"{source} has {len(words)} word pieces and the checkpoint was made for {size}: give the BERT that it was "
                         "trained with")
    return words


def own_options(content: Any, where: str) -> dict[str, Any]:
    """The authors' options in a checkpoint, where it has them."""
    found = next((content[key] for key in OPTION_KEYS if content.get(key) is not None), None) if isinstance(content, Mapping) else None
    return {} if found is None else _as_options(found, where)


def read_options(source: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """The authors' options: a mapping, or a file of their own: JSON, the YAML of CAMP's experiments, or an argparse Namespace or a
    dict, pickled or saved by torch. None gives none."""
    if source is None or isinstance(source, (Mapping, argparse.Namespace)):
        return {} if source is None else _as_options(source, "the given options")
    path = Path(source)
    if not path.is_file():
        raise InputError(f"no options {path}: check the path")
    if path.suffix == ".json":
        found = read_json(path)
    elif path.suffix in (".yaml", ".yml"):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid YAML ({one_line(error)}): mend it") from None
        found = found.get("common", found) if isinstance(found, dict) else found  # CAMP's files have all of them in there
    else:
        with open(path, "rb") as file:
            start = file.read(32)
        if start.startswith(b"PK") or TORCH_MAGIC in start:
            found = read_torch_file(path)
        else:
            plain = (dict, list, tuple, str, int, float, bool, type(None))
            found = read_plain_pickle(path, ("argparse.Namespace",), "a file of options", plain)
        found = next((found[key] for key in OPTION_KEYS if key in found), found) if isinstance(found, Mapping) else found
    return _as_options(found, str(path))


def _as_options(found: Any, where: str) -> dict[str, Any]:
    found = vars(found) if isinstance(found, argparse.Namespace) else found
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        raise InputError(f"{where}: the authors' options must be a mapping of names to values, not {type(found).__name__}")
    return dict(found)


def read_torch_file(path: Path) -> Any:
    """What a torch file holds, on the CPU. Only tensors, plain containers and option lists are read from it: argparse's
    Namespace, and easydict's EasyDict as a plain dict."""
    if not path.is_file():
        raise InputError(f"no checkpoint {path}: check the path")
    try:
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "easydict.EasyDict")]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's reader meets a broken pickle with whatever its parts raise
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise InputError(f"{path} holds {refused[1]}, which is not read, because a class in a file can run code: a checkpoint may hold "
                             "tensors, plain containers and its options; save it again without the rest") from None
        what = "it is damaged, cut short or holds code"
        raise InputError(f"{path} cannot be read as a torch checkpoint ({one_line(error, 160)}): {what}") from None


def split_parts(content: Any, where: str) -> dict[str, State]:
    """The states of a checkpoint by part (``img_enc``, ``txt_enc``, ...), without DataParallel's ``module.`` prefix."""
    content = content.get("model", content) if isinstance(content, Mapping) else content
    if isinstance(content, Sequence) and content and all(isinstance(part, Mapping) for part in content):
        parts = dict(zip(PARTS, content))
    elif isinstance(content, Mapping) and content:
        parts = {}
        for key, value in content.items():
            head, separator, rest = bare(key).replace("/", ".", 1).partition(".")
            if head not in PARTS or not separator:
                raise InputError(f"{where}: key {key!r} belongs to no part; keys start with one of {', '.join(PARTS)}")
            parts.setdefault(head, {})[rest] = value
    else:
        raise InputError(f"{where} holds no model: expected a list of state dicts, or a dict with 'model'")
    return {part: {bare(key): torch.as_tensor(value) for key, value in state.items()} for part, state in parts.items()}


def bare(key: Any) -> str:
    """A tensor's name without the ``module.`` of DataParallel before it, once for each time it was wrapped."""
    name = str(key)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def translate_options(options: Mapping[str, Any], table: Options, fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings in our names. Options of training alone are left out; what looks like a misspelt name is an error."""
    values = {}
    for key, value in options.items():
        if key in table:  # before our own names: word_dim and others are both
            if table[key] is not None:
                our, convert = table[key]
                values[our] = convert(value)
        elif key in fields:
            values[key] = value
        else:
            close = difflib.get_close_matches(key, [*fields, *table], 1, 0.8)
            if close:
                raise InputError(f"{where}: unknown setting {key!r}; did you mean {close[0]}?")
    return values


def check_parts(parts: dict[str, State], names: Sequence[str], complete: bool, what: str, where: str) -> None:
    """An error that says what was found, unless the parts are ``names`` and ``complete``."""
    image, text = parts.get("img_enc", {}), parts.get("txt_enc", {})
    encoders = {"fc.weight", "fc.weight_v"} & set(image) and {"embed.weight", "rnn.weight_ih_l0"} <= set(text)
    if set(parts) != set(names) or not encoders or not complete:
        found = ", ".join(f"{part}: {', '.join(list(state)[:3])}" for part, state in parts.items())
        raise InputError(f"{where} is not {what}; found {found}"[:400])


def encoder_sizes(parts: dict[str, State]) -> dict[str, Any]:
    """The settings of both encoders that their tensors' shapes tell."""
    image, text = parts["img_enc"], parts["txt_enc"]
    matrix = image.get("fc.weight", image.get("fc.weight_v"))
    return {
        "region_dim": matrix.shape[1], "embed_dim": matrix.shape[0], "vocab_size": text["embed.weight"].shape[0],
        "word_dim": text["embed.weight"].shape[1], "bidirectional": "rnn.weight_ih_l0_reverse" in text,
        "gru_layers": sum(key.startswith("rnn.weight_ih_l") and not key.endswith("_reverse") for key in text),
        "image_projection": "weight_norm" if "fc.weight_v" in image else "linear",
    }


def encoder_state(parts: dict[str, State]) -> State:
    """The weights of both encoders under our names."""
    image = parts["img_enc"]
    if image.get("fc.weight_g", torch.empty(0)).numel() == 1:
        image = {**image, "fc.weight_g": image["fc.weight_g"].reshape(())}  # older torch kept it as a vector of one
    return {**{f"image.{WEIGHT_NORM.get(key, key)}": value for key, value in image.items()},
            **{f"text.{key}": value for key, value in parts["txt_enc"].items()}}


def official_config(config_class: type[ModelConfig], table: Options, options: Mapping[str, Any], shapes: Mapping[str, Any],
                    config: Mapping[str, Any], where: str) -> ModelConfig:
    """Settings in official compat: the file's ``options``, over them what ``shapes`` tell, over them ``config``."""
    fields = config_class.model_fields
    named = {key: value for key, value in options.items() if key in table}  # options of the file hold much else
    values = {**translate_options(named, table, fields, where), **shapes, **translate_options(config, table, fields, where)}
    return checked_config(config_class, {"compat": "official", **values}, where)


def load_scan(parts: dict[str, State], options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> SCAN:
    """SCAN from ``img_enc`` and ``txt_enc``."""
    check_parts(parts, ("img_enc", "txt_enc"), True, "a SCAN checkpoint, which has img_enc fc and txt_enc embed, rnn", where)
    model = SCAN(official_config(SCANConfig, SCAN_OPTIONS, options, encoder_sizes(parts), config, where))
    return filled(model, encoder_state(parts), where)


def load_camp(parts: dict[str, State], options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> CAMP:
    """CAMP from ``img_enc``, ``txt_enc`` and ``sim``, of the measure gate_fusion_new or cross_attention_new."""
    sim = parts.get("sim", {})
    what = "a CAMP checkpoint of measure gate_fusion_new or cross_attention_new, which has img_enc, txt_enc and sim with"
    needed = {"img_key_fc.weight", "weighted_img_key_fc.weight"}
    check_parts(parts, ("img_enc", "txt_enc", "sim"), needed <= set(sim), f"{what} img_key_fc, weighted_img_key_fc", where)
    shapes = {**encoder_sizes(parts), **camp_settings(sim)}
    state = encoder_state(parts)
    for key, value in sim.items():
        module, _, name = key.rpartition(".")
        state[f"{CAMP_MODULES.get(module, f'sim.{module}')}.{name}"] = value
    return filled(CAMP(official_config(CampConfig, CAMP_OPTIONS, options, shapes, config, where)), state, where)


def camp_settings(sim: State) -> dict[str, Any]:
    """What the names and shapes of ``sim`` tell: the measure, its fusion, its pooling and the number of heads."""
    summary = next((sim[key] for key in ("final_reduce_1.linear.2.weight", "reduce_layer_1.linear.2.weight") if key in sim), None)
    heads = {} if summary is None else {"num_heads": summary.shape[0]}
    if "fc_1.0.weight" in sim:
        shape = sim["fc_1.0.weight"].shape
        return {"fusion": "concat" if shape[-1] == 2 * shape[0] else "sum", **heads}
    aggregation = "mean" if summary is None else "attention"
    return {"fusion": "none", "message_norm": False, "score": "cosine", "aggregation": aggregation, **heads}


def load_hrem(parts: dict[str, State], options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> HREM:
    """HREM from ``img_enc`` and ``txt_enc``, and from ``criterion`` where it is there."""
    flat = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    if set(parts) - {"criterion"} != {"img_enc", "txt_enc"} or not set(HREM_SIZES) <= set(flat):
        found = ", ".join(f"{part}: {', '.join(list(state)[:3])}" for part, state in parts.items())
        raise InputError(f"{where} is not an HREM checkpoint, which has img_enc fc.fc, fc.mlp and txt_enc bert; found {found}"[:400])
    given = {**options, **config}
    if given.get("base_loss", "trip") != given.get("gnn_loss", given.get("base_loss", "trip")):
        raise InputError(f"{where}: base_loss and gnn_loss differ ({given.get('base_loss')}, {given['gnn_loss']}): give one loss")
    shapes = hrem_sizes(flat)
    shapes["bert_config"] = {**shapes["bert_config"], **(given.get("bert_config") or {})}
    model = HREM(official_config(HremConfig, HREM_OPTIONS, options, shapes, config, where))
    state = {name: value for name, value in model.state_dict().items()
             if name in ("step", "text.continues") or ("criterion" not in parts and name.startswith(("graph.", "relevance.")))}
    for key, value in flat.items():
        if not key.startswith(HREM_UNUSED):
            state[hrem_name(key)] = value
    return filled(model, state, where)


def hrem_sizes(flat: State) -> dict[str, Any]:
    """The settings that the shapes of HREM's tensors tell, BERT's among them."""
    matrix, _, words, places, types, inner = (flat[name].shape for name in HREM_SIZES)
    count = lambda prefix: len({key.removeprefix(prefix).split(".")[0] for key in flat if key.startswith(prefix)})  # noqa: E731
    bert = {"vocab_size": words[0], "hidden_size": words[1], "max_position_embeddings": places[0], "type_vocab_size": types[0],
            "num_hidden_layers": count("txt_enc.bert.encoder.layer."), "num_attention_heads": max(1, words[1] // 64),
            "intermediate_size": inner[0]}
    sizes = {"region_dim": matrix[1], "embed_dim": matrix[0], "vocab_size": words[0], "text_encoder": "bert", "bert_config": bert,
             **({"mask_id": BERT_MASK} if words[0] > BERT_MASK else {"word_dropping": 0.0})}
    vector = flat.get("criterion.adj_model.adj_learning.mlp_i2t.0.weight")
    if vector is not None:
        sizes |= {"topk": vector.shape[1], "num_layers": count("criterion.gnn.layers.")}
    return sizes


def hrem_name(key: str) -> str:
    """Our name of a tensor of HREM's code."""
    start = next((prefix for prefix in HREM_MODULES if key.startswith(f"{prefix}.")), None)
    if start is None:
        return key
    rest = key.removeprefix(f"{start}.")
    if start.endswith(("aggr.layers.0", "gnn.layers")):
        rest = ".".join(HREM_LAYER.get(part, part) for part in rest.split("."))
    return f"{HREM_MODULES[start]}.{rest}"


def load_dive(parts: dict[str, State], options: Mapping[str, Any], config: Mapping[str, Any], where: str) -> DivE:
    """DivE from ``img_enc`` and ``txt_enc``."""
    flat = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
    if set(parts) != {"img_enc", "txt_enc"} or not set(DIVE_SIZES) <= set(flat):
        found = ", ".join(f"{part}: {', '.join(list(state)[:3])}" for part, state in parts.items())
        what = "a DivE checkpoint of regions and a GRU, which has img_enc fc, mlp, spm and txt_enc embed, rnn, spm"
        raise InputError(f"{where} is not {what}; found {found}"[:400])
    given = {**options, **config}
    for key, only in DIVE_FIXED.items():
        if given.get(key, only) != only:
            raise InputError(f"{where}: {key} is {given[key]!r}; only {only!r} is there")
    shapes = dive_sizes(flat, given)
    if given.get("semi_hard_triplet"):
        shapes["negatives"] = "semi_hard"
    ours = {key: value for key, value in config.items() if key not in DIVE_FIXED}
    model = DivE(official_config(DiveConfig, DIVE_OPTIONS, options, shapes, ours, where))
    state = {}
    for key, value in flat.items():
        name = dive_name(key, model.config.norm_position == "post", model.config.share_weights)
        if name is not None:
            state[name] = value
    return filled(model, state, where)


def dive_sizes(flat: State, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that names and shapes of DivE's tensors tell."""
    matrix, _, words, _, image_slots, text_slots = (flat[name].shape for name in DIVE_SIZES)
    block = "txt_enc.spm.agg_block.layers."
    layers = sorted({key.removeprefix(block).split(".")[0] for key in flat if key.startswith(block)})
    post = f"{block}0.1.norm.weight" in flat
    inner = flat.get(f"{block}0.0.{'' if post else 'fn.'}to_q.weight", matrix).shape[0]
    feed = flat.get(f"{block}0.2.{'' if post else 'fn.'}net.0.weight", matrix).shape[0]
    sizes = {"region_dim": matrix[1], "embed_dim": matrix[0], "vocab_size": words[0], "word_dim": words[1], "num_slots": image_slots[0],
             "caption_slots": text_slots[0], "head_dim": inner // int(given.get("heads", given.get("num_heads", 4))),
             "feed_factor": max(1, feed // matrix[0]), "norm_position": "post" if post else "pre",
             "global_norm": "txt_enc.spm.residual_norm.weight" in flat, "bidirectional": "txt_enc.rnn.weight_ih_l0_reverse" in flat,
             "gru_layers": sum(key.startswith("txt_enc.rnn.weight_ih_l") and not key.endswith("_reverse") for key in flat)}
    if len(layers) > 1:  # a checkpoint on disk lists a shared layer once an iteration
        name = f"0.0.{'' if post else 'fn.'}to_q.weight"
        first, second = (flat.get(f"{block}{layer}{name[1:]}") for layer in layers[:2])
        shared = first is not None and second is not None and torch.equal(first, second)
        sizes |= {"iterations": len(layers), "share_weights": shared}
    return sizes


def dive_name(key: str, post: bool, shared: bool) -> str | None:
    """Our name of a tensor of DivE's code; None for a layer that is another's copy."""
    start = next((prefix for prefix in DIVE_MODULES if key.startswith(f"{prefix}.")), None)
    if start is not None:
        return f"{DIVE_MODULES[start]}.{key.removeprefix(f'{start}.')}"
    for part, ours in (("img_enc", "image_set"), ("txt_enc", "text_set")):
        block = f"{part}.spm.agg_block."
        if key == f"{block}latents":
            return f"{ours}.aggregation.slots"
        if key.startswith(f"{block}layers."):
            number, rest = key.removeprefix(f"{block}layers.").split(".", 1)
            module, _, kind = rest.rpartition(".")
            copy = shared and number != "0"
            if module in DIVE_NORMS:
                return None if copy and not post else f"{ours}.aggregation.norms.{number}.{DIVE_NORMS[module]}.{kind}"
            return None if copy else f"{ours}.aggregation.steps.{number}.{DIVE_STEP.get(module, module)}.{kind}"
    return key


def filled(model: MatchingModel, state: State, where: str) -> MatchingModel:
    """``model`` with the weights ``state``, in their dtype and in evaluation mode; every tensor must fit."""
    dtypes = {value.dtype for value in state.values() if value.is_floating_point()}
    model = model.to(torch.float64 if torch.float64 in dtypes else torch.float32)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        why = one_line(str(error).split(":", 1)[-1], 200)
        raise InputError(f"{where} does not fit the settings: {why}") from None
    return model.eval()


Loader = Callable[[dict[str, State], Mapping[str, Any], Mapping[str, Any], str], MatchingModel]
LOADERS: dict[str, Loader] = {"scan": load_scan, "camp": load_camp, "hrem": load_hrem, "dive": load_dive}
