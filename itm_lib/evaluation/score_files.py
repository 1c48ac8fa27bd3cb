"""Score matrices as files, from here or from elsewhere: what ``itm evaluate --save-scores`` writes and COCO's protocols read.

``NAME.safetensors``: one tensor ``scores`` (I, C), and in its metadata ``image_ids`` and ``caption_ids``, lists in JSON.
``NAME.npy``: the matrix (I, C), and beside it ``NAME.ids.json``: {"image_ids": [...], "caption_ids": [...]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from itm_lib.evaluation.ranking import score_array
from itm_lib.files import InputError, read_json, replace_atomically, write_json

KINDS = (".npy", ".safetensors")
_IDS = ("image_ids", "caption_ids")


@dataclass(frozen=True)
class ScoreFile:
    """``scores`` (I, C), and the ids of its rows and columns, or None where the file names none."""

    scores: Tensor | np.ndarray
    image_ids: list[Any] | None = None
    caption_ids: list[Any] | None = None


def scores_path(path: str | Path) -> Path:
    """``path``, which must end in .npy or .safetensors."""
    path = Path(path)
    if path.suffix not in KINDS:
        raise InputError(f"{path}: a file of scores ends in {' or '.join(KINDS)}")
    return path


def save_scores(path: str | Path, scores: Tensor | np.ndarray, image_ids: Sequence[Any], caption_ids: Sequence[Any]) -> Path:
    """Write ``scores`` (I, C) and the ids of its rows and columns, strings or whole numbers; returns the path."""
    path, values = scores_path(path), score_array(scores)
    ids = dict(zip(_IDS, (list(image_ids), list(caption_ids))))
    _check_counts(path, values.shape, *ids.values())
    with replace_atomically(path) as part:
        if path.suffix == ".npy":
            with open(part, "wb") as file:
                np.save(file, values, allow_pickle=False)
        else:
            tensor = torch.from_numpy(np.ascontiguousarray(values))
            save_file({"scores": tensor}, part, metadata={name: json.dumps(each) for name, each in ids.items()})
    if path.suffix == ".npy":
        write_json(_ids_beside(path), ids)
    return path


def read_scores(path: str | Path, ids: str | Path | None = None) -> ScoreFile:
    """The scores in ``path``; of a .npy file they stay on disk until they are used.

    ``ids``: a JSON file {"image_ids": [...], "caption_ids": [...]} that stands for the ids of ``path``'s own, if it has
    any. Raises :class:`InputError` if a file is missing, damaged or holds something else.
    """
    path = scores_path(path)
    if not path.is_file():
        raise InputError(f"no file {path}: check the path, or save scores with 'itm evaluate --save-scores'")
    scores, own = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    found = own if ids is None else _checked_ids(read_json(ids), ids)
    if found is not None:
        _check_counts(path if ids is None else ids, tuple(scores.shape), *found)
    return ScoreFile(scores, *found or (None, None))


def _read_npy(path: Path) -> tuple[np.ndarray, tuple[list[Any], list[Any]] | None]:
    try:
        scores = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} is not a whole .npy file of numbers ({error}): save the scores again") from None
    if not isinstance(scores, np.ndarray):
        raise InputError(f"{path} holds several arrays: save the matrix of scores alone, with numpy.save")
    beside = _ids_beside(path)
    return scores, _checked_ids(read_json(beside), beside) if beside.is_file() else None


def _read_safetensors(path: Path) -> tuple[Tensor, tuple[list[Any], list[Any]] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            if names != ["scores"]:
                raise InputError(f"{path} holds the tensors {', '.join(names) or '(none)'}: one named 'scores' is needed")
            scores = file.get_tensor("scores")
        ids = {name: json.loads(metadata[name]) for name in _IDS if name in metadata}
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not a whole .safetensors file of scores ({error}): save the scores again") from None
    return scores, _checked_ids(ids, path) if ids else None


def _ids_beside(path: Path) -> Path:
    return path.with_suffix(".ids.json")


def _checked_ids(content: Any, where: str | Path) -> tuple[list[Any], list[Any]]:
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in _IDS):
        raise InputError(f'{where} does not name the rows and columns: {{"image_ids": [...], "caption_ids": [...]}} is needed')
    return content[_IDS[0]], content[_IDS[1]]


def _check_counts(where: str | Path, shape: tuple[int, ...], image_ids: list[Any], caption_ids: list[Any]) -> None:
    if shape != (len(image_ids), len(caption_ids)):
        raise InputError(f"{where}: {len(image_ids)} image and {len(caption_ids)} caption ids for scores of the shape {shape}")
