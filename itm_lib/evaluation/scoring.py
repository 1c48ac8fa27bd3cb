"""From a model and a dataset folder to the matrix of all scores, in bounded memory.

``open_split`` is the one door to the test split: itm_lib.data's own refuses it, and nothing that trains calls this one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.dataset import ImageCaptionDataset, load_split, pad_tokens
from itm_lib.data.pictures import Pixels
from itm_lib.data.regions import find_regions
from itm_lib.files import InputError, read_json
from itm_lib.models.base import Encoding, MatchingModel, check_token_kind, vocabulary_for
from itm_lib.processes import add_up, all_or_none, from_main, from_one, rank, world_size

PICTURES = 32     # of pixels that a backbone reads at once, at most
_PAIR_BLOCK = 16  # pairs of one image and one caption scored together: the block's diagonal is kept, the rest is waste


def open_split(folder: str | Path, split: str, in_memory: bool | None = None, vocabulary: Vocabulary | WordPieces | None = None,
               pixels: Pixels | None = None) -> ImageCaptionDataset:
    """Any split of a dataset folder, ``"test"`` included. Use test once, after every choice is made on val."""
    return load_split(folder, split, in_memory, vocabulary, pixels)


def describe(folder: str | Path, checksums: bool = False, progress: bool = False) -> Iterator[str]:
    """A line a split of a dataset folder: images, captions, regions or pictures. All captions are read, and with ``checksums``
    all regions; what does not fit together, or is not what was written, raises :class:`InputError`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no dataset folder {folder}: make it first, for example with 'itm data scenes'")
    for split in read_json(folder / "splits.json"):
        only_pictures = (folder / "images").is_dir() and not find_regions(folder, split).is_file()
        dataset = open_split(folder, split, in_memory=False, pixels=Pixels() if only_pictures else None)
        what = "pictures, no regions"
        if not only_pictures:
            store, counts = dataset.regions, dataset.regions.num_regions
            what = f"{counts.min()} to {counts.max()} regions of {store.dim} numbers{'' if store.has_boxes else ', no boxes'}"
            if checksums:
                store.verify(progress)
        yield f"{split}: {dataset.num_images} images, {dataset.num_captions} captions, {what}"


def open_for(model: MatchingModel, folder: str | Path, split: str) -> ImageCaptionDataset:
    """A split as ``model`` reads it: its captions in the words that the model was trained with, if it carries them, or in the
    word pieces of its text encoder; its images as regions or as pixels.

    Raises :class:`InputError` if the model takes regions of another size, or another number of words.
    """
    config, vocabulary = getattr(model, "config", None), getattr(model, "vocabulary", None)
    if vocabulary is None and config is not None:
        vocabulary = vocabulary_for(config)
    dataset = open_split(folder, split, vocabulary=vocabulary, pixels=model.pixels)
    check_token_kind(model, dataset.vocabulary)
    for setting, what, found in (("region_dim", "regions of {} numbers", dataset.regions.dim),
                                 ("vocab_size", "a vocabulary of {} words", len(dataset.vocabulary))):
        wanted = getattr(config, setting, found)
        if wanted != found and found is not None:
            raise InputError(f"this model was made for {what.format(wanted)}, {folder} has {what.format(found)}: "
                             "evaluate it on the kind of data it was trained on")
    return dataset


@contextlib.contextmanager
def evaluating(model: MatchingModel, device: torch.device | str | None = None) -> Iterator[torch.device]:
    """The model in eval mode without gradients; each module's own mode is restored at the end.

    Yields the device: that of the parameters, or ``device``, to which the model is then moved (and stays there).
    """
    if device is not None:
        model.to(device)
    modes = {module: module.training for module in model.modules()}
    first = next(model.parameters(), None)
    model.eval()
    try:
        with torch.inference_mode():
            yield first.device if first is not None else torch.device(device or "cpu")
    finally:
        for module, mode in modes.items():
            module.training = mode


_together: ContextVar[bool] = ContextVar("together", default=False)


@contextlib.contextmanager
def over_all_processes() -> Iterator[None]:
    """Inside, encoding and scoring are shared out, batch by batch and block by block, and every process gets all of it.

    All processes must make the same calls, with the same model. The numbers are those of one process.
    """
    token = _together.set(world_size() > 1)
    try:
        yield
    finally:
        _together.reset(token)


def _is_ours(number: int) -> bool:
    """Whether this process computes batch or block ``number``."""
    return not _together.get() or number % world_size() == rank()


def _agreeing() -> contextlib.AbstractContextManager[None]:
    """Where work is shared out, an InputError of one process is raised on all."""
    return all_or_none() if _together.get() else contextlib.nullcontext()


def _all_parts(parts: list[Encoding | None]) -> Encoding:
    """The Encoding of all batches; those of other processes are None."""
    if _together.get():
        parts = [from_one(part, number % world_size()) for number, part in enumerate(parts)]
    return Encoding.cat(parts)  # outside inference mode: ordinary tensors, which a notebook may differentiate through


def encode_images(model: MatchingModel, dataset: ImageCaptionDataset, batch_size: int = 256,
                  device: torch.device | str | None = None, progress: bool = False, rows: Sequence[int] | None = None) -> Encoding:
    """The Encoding of the images ``rows`` of ``dataset`` (default: all, each once), in their order, on the CPU."""
    parts, batch_size = [], min(batch_size, PICTURES) if dataset.pixels else batch_size
    with evaluating(model, device) as where, _agreeing():
        for batch in _batches(list(range(dataset.num_images) if rows is None else rows), batch_size, "images", progress):
            if not _is_ours(len(parts)):
                parts.append(None)
                continue
            regions, mask = dataset.image_tensors(batch)
            parts.append(model.encode_images(regions.to(where), None if mask is None else mask.to(where)).to("cpu"))
    return _all_parts(parts)


def encode_tokens(model: MatchingModel, tokens: list[list[int]], batch_size: int = 256,
                  device: torch.device | str | None = None, progress: bool = False) -> Encoding:
    """The Encoding of captions given as token ids, in their order, on the CPU. Encoded longest first: little padding."""
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens[row]))
    parts = []
    with evaluating(model, device) as where, _agreeing():
        for rows in _batches(order, batch_size, "captions", progress):
            if not _is_ours(len(parts)):
                parts.append(None)
                continue
            ids, mask = pad_tokens([tokens[row] for row in rows])
            parts.append(model.encode_captions(ids.to(where), mask.to(where)).to("cpu"))
    back = torch.empty(len(order), dtype=torch.int64)
    back[torch.tensor(order)] = torch.arange(len(order))
    return _all_parts(parts).map(lambda value: value[back])


def encode_dataset(model: MatchingModel, dataset: ImageCaptionDataset, batch_size: int = 256,
                   device: torch.device | str | None = None, progress: bool = False) -> tuple[Encoding, Encoding]:
    """(images, captions): the Encodings of a split, in dataset order, on the CPU.

    The model is in eval mode meanwhile and gets its modes back. ``device``: where to compute (default: where the
    model is).
    """
    return (encode_images(model, dataset, batch_size, device, progress),
            encode_tokens(model, dataset.tokens, batch_size, device, progress))


def _batches(rows: list[int], batch_size: int, what: str, progress: bool) -> Iterator[list[int]]:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: at least 1 is needed")
    with tqdm(total=len(rows), desc=f"encode {what}", disable=not progress) as bar:
        for first in range(0, len(rows), batch_size):
            yield rows[first : first + batch_size]
            bar.update(min(batch_size, len(rows) - first))


def similarity_matrix(model: MatchingModel, images: Encoding, captions: Encoding, block_bytes: int = 2**28,
                      device: torch.device | str | None = None, progress: bool = False) -> Tensor:
    """Scores (I, C) of all pairs, on the CPU: the one evaluator of all models.

    Pairs are scored in blocks whose working memory, ``model.pair_bytes`` a pair, stays within ``block_bytes`` (at
    least one pair). Captions are taken in order of length, so that a block of short ones is not padded to the longest.
    The scores do not depend on the block size, beyond the rounding of matrix products of other shapes.
    """
    if not len(images) or not len(captions):
        raise InputError(f"{len(images)} images and {len(captions)} captions: at least one of each is needed")
    rows, columns = block_grid(model, images, captions, block_bytes)
    scores: Tensor | None = None
    number = -1
    with evaluating(model, device) as where, tqdm(
        total=len(images) * len(captions), desc="score pairs", unit=" pairs", unit_scale=True, disable=not progress
    ) as bar:
        images, captions = _on_device_if_it_fits(images, captions, where)
        for row in rows:
            block_images = images.select(row).to(where)
            for column in columns:
                number += 1
                if not _is_ours(number):
                    continue
                block = model.similarity(block_images, captions.select(column).to(where))
                if block.shape != (len(block_images), len(column)):
                    raise InputError(f"{type(model).__name__}.similarity gave the shape {tuple(block.shape)} for "
                                     f"{len(block_images)} images and {len(column)} captions")
                if scores is None:
                    scores = _no_scores(images, captions, block.dtype)
                scores[row, column] = block.cpu()
                bar.update(block.numel())
    if _together.get():
        dtype = from_main(None if scores is None else scores.dtype)
        scores = add_up(_no_scores(images, captions, dtype) if scores is None else scores)
    return scores


def _no_scores(images: Encoding, captions: Encoding, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # an ordinary tensor: the caller may do with it what he likes
        return torch.zeros(len(images), len(captions), dtype=dtype)


def block_grid(model: MatchingModel, images: Encoding, captions: Encoding, block_bytes: int) -> tuple[list[slice], list[Tensor]]:
    """Rows of images and columns of captions, captions of like length together: each of their products is a block of pairs
    whose ``model.pair_bytes`` add up to ``block_bytes`` at most (at least one pair)."""
    order = _lengths(captions).argsort(stable=True)
    pairs = max(1, block_bytes // max(1, model.pair_bytes(images, captions)))
    height = max(min(len(images), math.isqrt(pairs)), min(len(images), pairs // len(captions)))
    width = min(len(captions), max(1, pairs // height))
    return [slice(top, top + height) for top in range(0, len(images), height)], list(order.split(width))


def pair_scores(model: MatchingModel, images: Encoding, captions: Encoding, image_rows: list[int], caption_rows: list[int],
                device: torch.device | str | None = None) -> Tensor:
    """Scores (n,) of the n pairs (image_rows[p], caption_rows[p]) alone, on the CPU.

    A model scores every image against every caption it is given, so the pairs go in small blocks and their diagonals
    are kept: 16 scores a wanted one, where the full matrix costs as many as there are captions.
    """
    blocks, diagonals = paired_blocks(captions, caption_rows), []
    with evaluating(model, device) as where:
        for rows in blocks:
            block_images = images.select([image_rows[row] for row in rows]).to(where)
            block_captions = captions.select([caption_rows[row] for row in rows]).to(where)
            diagonals.append(model.similarity(block_images, block_captions).diagonal().cpu())
    scores = torch.empty(len(image_rows), dtype=diagonals[0].dtype)
    scores[sum(blocks, [])] = torch.cat(diagonals)
    return scores


def paired_blocks(captions: Encoding, caption_rows: list[int], size: int = _PAIR_BLOCK) -> list[list[int]]:
    """Positions 0..n-1 of the pairs in blocks of ``size``, captions of like length together."""
    lengths = _lengths(captions).tolist()
    order = sorted(range(len(caption_rows)), key=lambda pair: lengths[caption_rows[pair]])
    return [order[first : first + size] for first in range(0, len(order), size)]


def _lengths(captions: Encoding) -> Tensor:
    """(n,) true words of each caption; zeros where the Encoding keeps no words."""
    if captions.members:
        return _lengths(captions.members[0])
    return torch.zeros(len(captions), dtype=torch.int64) if captions.mask is None else captions.mask.sum(1).cpu()


def _on_device_if_it_fits(images: Encoding, captions: Encoding, device: torch.device) -> tuple[Encoding, Encoding]:
    """Both Encodings on a GPU whose free memory holds them twice, so that no block is sent there again and again."""
    if device.type != "cuda":
        return images, captions
    needed = 0

    def count(value: Tensor) -> Tensor:
        nonlocal needed
        needed += value.numel() * value.element_size()
        return value

    images.map(count)
    captions.map(count)
    free, _ = torch.cuda.mem_get_info(device)
    return (images.to(device), captions.to(device)) if 2 * needed < free else (images, captions)
