"""The published protocols, and ``evaluate``: everything that is measured of one model on one split.

===================  =============================================  ==========================================
protocol             gallery                                        who uses it
===================  =============================================  ==========================================
``flickr8k_1k``      Flickr8k test: 1000 images, 5000 captions      the papers before 2016
``f30k_1k``          Flickr30K test: 1000 images, 5000 captions     all papers
``coco_1k_fivefold`` COCO test in 5 folds of 1000 images, averaged  all papers
``coco_5k``          COCO test whole: 5000 images, 25000 captions   all papers
===================  =============================================  ==========================================

Which of them a dataset's results are called by is declared in its own meta.json, by the importer that made the folder. It is never guessed
from a size or a name: a thousand pictures of somebody's own are not Flickr30K.

ECCV Caption and CxC re-label COCO's test pairs by what is true, not by what was written for what; their ground truth
and metrics come from the package eccv_caption.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.data.judgments import read_judgments
from itm_lib.evaluation.gates import gate_statistics
from itm_lib.evaluation.human import human_metrics
from itm_lib.evaluation.mistakes import mistake_metrics
from itm_lib.evaluation.ranking import KS, RetrievalMetrics, ceiling, checked_caption_to_image, map_at_r, score_array
from itm_lib.evaluation.scenes import foil_accuracy, pointing_accuracy
from itm_lib.evaluation.score_files import KINDS, ScoreFile, read_scores, save_scores, scores_path
from itm_lib.evaluation.scoring import encode_dataset, open_for, open_split, similarity_matrix
from itm_lib.evaluation.sets import set_statistics
from itm_lib.files import InputError, nearest
from itm_lib.losses import positive_mask
from itm_lib.models import load_model
from itm_lib.models.base import MatchingModel

FLICKR_IMAGES, COCO_IMAGES = 1000, 5000  # of the published test splits
CAPTIONS_AN_IMAGE = 5  # of Flickr30K's and COCO's published test files; only these protocols know it
_LIST_LENGTH = {"cxc": 1, "eccv": 50}  # CxC's R@1 needs the first; an ECCV Caption query has at most 48 positives


def flickr8k_1k(scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> RetrievalMetrics:
    """Flickr8k: all 1000 test images against all 5000 captions."""
    _check_size("flickr8k_1k", scores, FLICKR_IMAGES)
    return RetrievalMetrics.from_scores(scores, caption_to_image)


def f30k_1k(scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> RetrievalMetrics:
    """Flickr30K: all 1000 test images against all 5000 captions."""
    _check_size("f30k_1k", scores, FLICKR_IMAGES)
    return RetrievalMetrics.from_scores(scores, caption_to_image)


def coco_5k(scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray) -> RetrievalMetrics:
    """COCO: all 5000 test images against all 25000 captions."""
    _check_size("coco_5k", scores, COCO_IMAGES)
    return RetrievalMetrics.from_scores(scores, caption_to_image)


def coco_1k_fivefold(scores: Tensor | np.ndarray, caption_to_image: Tensor | np.ndarray,
                     fold_images: int = 1000) -> RetrievalMetrics:
    """COCO 1K: fold f is image rows 1000f … 1000f+999 with their own captions; each field is the mean over 5 folds."""
    _check_size("coco_1k_fivefold", scores, 5 * fold_images)
    images = checked_caption_to_image(caption_to_image, scores.shape)
    parts = []
    for first in range(0, 5 * fold_images, fold_images):
        columns = np.flatnonzero((images >= first) & (images < first + fold_images))
        if not len(columns):
            raise InputError(f"coco_1k_fivefold: no caption belongs to image rows {first}..{first + fold_images - 1}")
        rows = scores[first : first + fold_images]
        parts.append(RetrievalMetrics.from_scores(rows[:, columns], images[columns] - first))
    return RetrievalMetrics.mean(parts)


PREFIXES = {"flickr8k_1k": "flickr8k_1k", "f30k_1k": "f30k_1k", "coco_1k_fivefold": "coco_1k", "coco_5k": "coco_5k"}  # of the metrics' names

PROTOCOLS: dict[str, Callable[..., RetrievalMetrics]] = {
    "flickr8k_1k": flickr8k_1k, "f30k_1k": f30k_1k, "coco_1k_fivefold": coco_1k_fivefold, "coco_5k": coco_5k,
}


def _check_size(protocol: str, scores: Tensor | np.ndarray, images: int) -> None:
    expected = (images, images * CAPTIONS_AN_IMAGE)
    if tuple(scores.shape) != expected:
        raise InputError(f"{protocol} is defined on {expected[0]} images and {expected[1]} captions; "
                         f"these scores are {' x '.join(map(str, scores.shape))}")


# --- ECCV Caption and CxC ---------------------------------------------------------------------------------------------

@lru_cache(maxsize=1)
def _eccv_caption() -> Any:
    """The package's ground truth: about a second to read, 40 MB; read once."""
    from eccv_caption import Metrics
    return Metrics()


def coco_test_ids() -> tuple[list[int], list[int]]:
    """(5000 image ids, 25000 caption ids) of COCO's test split, in the order whose thousands are the folds of COCO 1K."""
    captions = [int(caption) for caption in _eccv_caption().coco_ids]
    image_of = _eccv_caption().coco_gts["t2i"]
    return list(dict.fromkeys(image_of[caption][0] for caption in captions)), captions


def eccv_caption_metrics(scores: Tensor | np.ndarray, image_ids: Sequence[int], caption_ids: Sequence[int]) -> dict[str, float]:
    """COCO, CxC and ECCV Caption metrics, in percent, of ``scores`` (5000, 25000) over COCO's test ids, in any order.

    Keys: coco_1k_* and coco_5k_* (i2t_r1 … t2i_r10, rsum), cxc_i2t_r1, cxc_t2i_r1, and of ECCV Caption
    eccv_{i2t,t2i}_{map_at_r,r_precision,r1}. The package eccv_caption computes CxC's and ECCV's from ranked lists that
    are made here, as long as they need and with ties against the query. Two ECCV positives lie outside the test captions, so
    a perfect matcher's i2t mAP@R is 99.9.
    """
    values = score_array(scores)
    images, captions = _whole_numbers(image_ids, "image"), _whole_numbers(caption_ids, "caption")
    if values.shape != (len(images), len(captions)):
        raise InputError(f"scores are {values.shape[0]} x {values.shape[1]} for {len(images)} image and {len(captions)} caption ids")
    test_images, test_captions = coco_test_ids()
    for what, given, wanted in (("image", images, test_images), ("caption", captions, test_captions)):
        if len(given) != len(wanted) or set(given.tolist()) != set(wanted):
            raise InputError(f"these are not the {len(wanted)} {what} ids of COCO's test split: {len(given)} given, "
                             f"{len(set(given.tolist()) & set(wanted))} of them in it; give every id once")
    result = _coco_recalls(values, images, captions)
    package = _eccv_caption()
    for prefix, truth in (("cxc", package.cxc_gts), ("eccv", package.eccv_gts)):
        lists = {"i2t": _ranked_ids(values, images, captions, truth["i2t"], _LIST_LENGTH[prefix]),
                 "t2i": _ranked_ids(values.T, captions, images, truth["t2i"], _LIST_LENGTH[prefix])}
        for name, ways in _package_metrics(package, prefix, lists).items():
            result.update({f"{prefix}_{way}_{name}": value for way, value in ways.items()})
    return result


def coco_file_metrics(path: str | Path, ids: str | Path | None = None) -> dict[str, float]:
    """:func:`eccv_caption_metrics` of a file of scores; see :mod:`itm_lib.evaluation.score_files`.

    ``ids``: a JSON file of the ids, if the file has none. Without either, rows and columns are in the order of
    :func:`coco_test_ids`.
    """
    file = read_scores(path, ids)
    if file.image_ids is not None:
        return eccv_caption_metrics(file.scores, file.image_ids, file.caption_ids)
    images, captions = coco_test_ids()
    if tuple(file.scores.shape) != (len(images), len(captions)):
        raise InputError(f"{path} names no ids and its scores have the shape {tuple(file.scores.shape)}: COCO's test split is "
                         f"{len(images)} x {len(captions)}")
    return eccv_caption_metrics(file.scores, images, captions)


def _whole_numbers(ids: Sequence[int], what: str) -> np.ndarray:
    try:
        return np.asarray(ids, dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"COCO's {what} ids are whole numbers, these are not; the first is {ids[0]!r}") from None


def _coco_recalls(values: np.ndarray, images: np.ndarray, captions: np.ndarray) -> dict[str, float]:
    """Recalls of the whole test split and of its five folds, from ids in any order."""
    test_images, test_captions = coco_test_ids()
    row_of = {int(image): row for row, image in enumerate(images)}
    column_of = {int(caption): column for column, caption in enumerate(captions)}
    image_of = _eccv_caption().coco_gts["t2i"]
    whole = RetrievalMetrics.from_scores(values, np.array([row_of[image_of[int(caption)][0]] for caption in captions]))
    folds = []
    for fold in range(5):
        ids = test_images[1000 * fold : 1000 * fold + 1000]
        fold_row = {image: row for row, image in enumerate(ids)}
        own = test_captions[5000 * fold : 5000 * fold + 5000]
        part = values[np.ix_([row_of[image] for image in ids], [column_of[caption] for caption in own])]
        folds.append(RetrievalMetrics.from_scores(part, np.array([fold_row[image_of[caption][0]] for caption in own])))
    return _named({"coco_1k": RetrievalMetrics.mean(folds), "coco_5k": whole})


def _ranked_ids(values: np.ndarray, queries: np.ndarray, candidates: np.ndarray,
                truth: Mapping[int, Sequence[int]], length: int) -> dict[int, list[int]]:
    """The best ``length`` candidate ids of each query that ``truth`` lists, ties against the query.

    A true candidate is lowered by one step of float64, which puts it behind whatever had its score: float32 scores
    are much further apart than that.
    """
    position = {int(candidate): column for column, candidate in enumerate(candidates)}
    rows = [row for row, query in enumerate(queries) if int(query) in truth]
    ranked = {}
    for first in range(0, len(rows), 256):
        block = values[rows[first : first + 256]].astype(np.float64)
        for row, scores in zip(rows[first : first + 256], block):
            true = [position[item] for item in truth[int(queries[row])] if item in position]
            scores[true] = np.nextafter(scores[true], -np.inf)
        best = torch.from_numpy(block).topk(length, dim=1).indices.numpy()
        for row, columns in zip(rows[first : first + 256], best):
            ranked[int(queries[row])] = candidates[columns].tolist()
    return ranked


def _package_metrics(package: Any, benchmark: str, lists: dict[str, dict[int, list[int]]]) -> dict[str, dict[str, float]]:
    """{metric: {"i2t": percent, "t2i": percent}} as the package computes them from ranked lists."""
    if benchmark == "cxc":
        measured = {"r1": package.cxc_recalls(lists, "all", K=1)}
    else:
        with contextlib.redirect_stderr(io.StringIO()):  # it draws a progress bar that cannot be switched off
            measured = package.eccv_metrics(lists, "all")
        measured = {"map_at_r": measured["eccv_map_at_r"], "r_precision": measured["eccv_rprecision"], "r1": measured["eccv_r1"]}
    return {name: {way: 100.0 * float(value) for way, value in ways.items()} for name, ways in measured.items()}


# --- everything of one model ------------------------------------------------------------------------------------------

def evaluate_scores(scores: Tensor | np.ndarray, dataset: ImageCaptionDataset) -> dict[str, float]:
    """Recalls, rsum and ranks of ``scores`` (I, C) of a split and, where its exact truth is known, i2t/t2i_map_at_r,
    i2t/t2i_r_precision, i2t/t2i_exact_r1 (whichever true candidate is first) and the perfect matcher's recalls as ceiling_*.
    All in percent but the ranks.
    """
    expected = (dataset.num_images, dataset.num_captions)
    if tuple(scores.shape) != expected:
        raise InputError(f"scores are {' x '.join(map(str, scores.shape))}, but the {dataset.split} split has "
                         f"{expected[0]} images and {expected[1]} captions")
    result = RetrievalMetrics.from_scores(scores, dataset.caption_to_image).to_dict()
    if dataset.truth is not None:
        result.update(map_at_r(scores, dataset.truth))
        result.update({f"ceiling_{name}": value for name, value in ceiling(dataset.truth, dataset.caption_to_image).items()})
    return result


def protocol_metrics(scores: Tensor | np.ndarray, dataset: ImageCaptionDataset) -> dict[str, float]:
    """What the published protocols that ``dataset`` declares say of ``scores`` (I, C): flickr8k_1k_*, f30k_1k_*, coco_1k_*, coco_5k_*
    (i2t_r1 … t2i_r10, rsum). Nothing where none is declared, and of a split that has another size than the published test split.

    Of COCO, where image and caption ids are COCO's own, cxc_* and eccv_* besides (:func:`eccv_caption_metrics`), of the 25000 captions that
    the protocols count. Without such ids, folds are runs of 1000 images in the order of the split, as in SCAN's files.
    """
    unknown = [name for name in dataset.protocols if name not in PROTOCOLS]
    if unknown:
        raise InputError(f"meta.json of {dataset.name} declares the protocol {unknown[0]!r}; {nearest(unknown[0], PROTOCOLS)}")
    if any(name.startswith("coco") for name in dataset.protocols):
        columns = _coco_columns(dataset)
        if columns is not None:
            ids = [int(image) for image in dataset.regions.image_ids], [int(dataset.caption_ids[column]) for column in columns]
            return eccv_caption_metrics(scores[:, columns], *ids)
    found = {}
    for name in dataset.protocols:
        images = COCO_IMAGES if name.startswith("coco") else FLICKR_IMAGES
        if tuple(scores.shape) == (images, images * CAPTIONS_AN_IMAGE):
            folds = (images // 5,) if name == "coco_1k_fivefold" else ()
            found[PREFIXES[name]] = PROTOCOLS[name](scores, dataset.caption_to_image, *folds)
    return _named(found)


def _named(parts: Mapping[str, RetrievalMetrics]) -> dict[str, float]:
    names = [f"{way}_r{k}" for way in ("i2t", "t2i") for k in KS] + ["rsum"]
    return {f"{prefix}_{name}": part.to_dict()[name] for prefix, part in parts.items() for name in names}


def _coco_columns(dataset: ImageCaptionDataset) -> list[int] | None:
    """The columns of the captions that COCO's protocols count, if the ids are those of COCO's test split."""
    if not all(str(each).isdecimal() for each in [*dataset.regions.image_ids, *dataset.caption_ids]):
        return None
    if dataset.num_images != COCO_IMAGES:
        return None
    images, captions = coco_test_ids()
    column_of = {int(caption): column for column, caption in enumerate(dataset.caption_ids)}
    if {int(image) for image in dataset.regions.image_ids} != set(images) or not set(captions) <= set(column_of):
        return None
    return sorted(column_of[caption] for caption in captions)


def evaluate(model: MatchingModel, folder: str | Path, split: str = "test", batch_size: int = 256, block_bytes: int = 2**28,
             device: torch.device | str | None = None, progress: bool = False,
             scores_file: str | Path | None = None) -> dict[str, float]:
    """Everything measured of ``model`` on one split of a dataset folder, as flat names and floats.

    ``evaluate_scores`` of the similarity matrix; ``protocol_metrics``, if the split has the size of a published one; with
    foils/<split>.jsonl the ``foil_accuracy``; with scenes.jsonl the ``pointing_accuracy``, if the model has an attention to look at; ``gate_statistics`` (fractions, not percent), if it
    has gates: positive are the pairs that are true, if the split has its exact truth, otherwise the listed ones; ``set_statistics``, if
    its embeddings are sets. Where captions are said to be English and there is no exact truth, the ``mistake_metrics``; with judgments/ the ``human_metrics``.
    ``scores_file`` (.npy or .safetensors): where to keep the similarity matrix, with its ids.
    """
    folder = Path(folder)
    if scores_file is not None:
        scores_path(scores_file)  # before minutes of work
    dataset = open_for(model, folder, split)
    images, captions = encode_dataset(model, dataset, batch_size, device, progress)
    scores = similarity_matrix(model, images, captions, block_bytes, device, progress)
    if scores_file is not None:
        save_scores(scores_file, scores, dataset.regions.image_ids, dataset.caption_ids)
    result = _metrics_of_scores(scores, dataset, folder)
    if (folder / "foils" / f"{split}.jsonl").is_file():
        result.update(foil_accuracy(model, folder, split, batch_size, device))
    if (folder / "scenes.jsonl").is_file():
        result.update(pointing_accuracy(model, folder, split, batch_size, device))
    result.update(set_statistics(images, captions, dataset))
    positives = dataset.truth
    if positives is None:
        positives = positive_mask(torch.arange(dataset.num_images), torch.as_tensor(dataset.caption_to_image))
    result.update(gate_statistics(model, images, captions, positives, min(block_bytes, 2**24), device))
    return result


def evaluate_ensemble(models: Sequence[str | Path | MatchingModel], folder: str | Path, split: str = "test", batch_size: int = 256,
                      block_bytes: int = 2**28, device: torch.device | str | None = None, progress: bool = False,
                      scores_file: str | Path | None = None) -> dict[str, float]:
    """What :func:`evaluate` says of scores alone, of the mean of several score matrices, as the papers' ensembles are.

    ``models``: model folders or models, each of which reads the split with its own vocabulary and tokens, and files of scores
    (.npy, .safetensors), whose ids must be the split's, in any order. One model is in memory at a time. ``scores_file``: where to
    keep the mean, with its ids.
    """
    if not models:
        raise InputError("an ensemble needs at least one model")
    if scores_file is not None:
        scores_path(scores_file)
    saved = {number: _scores_file(each) for number, each in enumerate(models) if _is_score_file(each)}  # before minutes of work
    dataset = _ensemble_split(models, folder, split)
    total: Tensor | None = None
    for number, each in enumerate(models):
        if number in saved:
            scores = _in_order_of(dataset, saved[number], each)
        else:
            model = each if isinstance(each, MatchingModel) else load_model(each)[0]
            images, captions = encode_dataset(model, open_for(model, folder, split), batch_size, device, progress)
            scores = similarity_matrix(model, images, captions, block_bytes, device, progress)
            del model, images, captions
        total = scores if total is None else total + scores
        del scores
    mean = total.div_(len(models))
    if scores_file is not None:
        save_scores(scores_file, mean, dataset.regions.image_ids, dataset.caption_ids)
    return _metrics_of_scores(mean, dataset, Path(folder))


def _metrics_of_scores(scores: Tensor, dataset: ImageCaptionDataset, folder: Path) -> dict[str, float]:
    """Everything that a score matrix alone says, whatever model it is of."""
    result = {**evaluate_scores(scores, dataset), **protocol_metrics(scores, dataset)}
    if dataset.language == "en" and dataset.truth is None:
        result.update(mistake_metrics(scores, dataset))
    judgments = read_judgments(folder)
    return {**result, **human_metrics(scores, dataset, judgments)} if judgments else result


def _is_score_file(each: str | Path | MatchingModel) -> bool:
    return not isinstance(each, MatchingModel) and Path(each).suffix in KINDS


def _scores_file(path: str | Path) -> ScoreFile:
    """The scores in ``path``, which must name its rows and columns: means of rows in different orders would look like scores."""
    file = read_scores(path)
    if file.image_ids is None:
        raise InputError(f"{path} names no ids, so nothing says which picture a row is: put {Path(path).stem}.ids.json beside it, "
                         '{"image_ids": [...], "caption_ids": [...]}')
    return file


def _ensemble_split(models: Sequence[str | Path | MatchingModel], folder: str | Path, split: str) -> ImageCaptionDataset:
    """The split, opened for the first model, or for none where all members are scores."""
    for each in models:
        if not _is_score_file(each):
            return open_for(each if isinstance(each, MatchingModel) else load_model(each)[0], folder, split)
    return open_split(folder, split)


def _in_order_of(dataset: ImageCaptionDataset, file: ScoreFile, where: str | Path) -> Tensor:
    """The scores with rows and columns in the order of ``dataset``."""
    places = []
    for what, given, wanted in (("image", file.image_ids, dataset.regions.image_ids), ("caption", file.caption_ids, dataset.caption_ids)):
        place_of = {str(each): place for place, each in enumerate(given)}
        lacking = [each for each in wanted if str(each) not in place_of]
        if lacking or len(place_of) != len(wanted) or len(given) != len(wanted):
            example = f", for example {lacking[0]!r}" if lacking else ""
            raise InputError(f"{where} has {len(given)} {what} ids and the {dataset.split} split of {dataset.name} {len(wanted)}, of which "
                             f"{len(lacking)} are not among them{example}: average scores of one split")
        places.append(np.array([place_of[str(each)] for each in wanted]))
    values = torch.from_numpy(np.asarray(file.scores)[np.ix_(*places)])
    return values.to(torch.promote_types(values.dtype, torch.float32))
