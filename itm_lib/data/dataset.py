"""ImageCaptionDataset and Batch: regions and captions of one split, and the samplers that make batches of them.

A dataset folder holds::

    captions.jsonl        {caption_id, image_id, text, split} a line
    splits.json           {"train": [image_id, ...], "val": [...], "test": [...]}
    vocabulary.json       words of the training captions; models with a pretrained text encoder bring their own
    regions/<split>.h5    a RegionStore a split; or <split>.npy and <split>.json, see itm_lib.data.regions;
                          or all.h5, one store of all splits, of which a split's rows alone are read
    images/<image_id>.*   the pictures, for models that read pixels; these need no regions
    meta.json             what the folder was made of; "protocols", the published evaluations of its test split, if it has any

``open_split`` opens train and val. The test split opens through ``itm_lib.evaluation.open_split`` alone, so that
nothing that trains or chooses can read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itm_lib.data.captions import Vocabulary, WordPieces, load_vocabulary
from itm_lib.data.pictures import PictureStore, Pixels
from itm_lib.data.regions import ALL, RegionStore, find_regions
from itm_lib.files import InputError, read_json, read_jsonl

LAYOUTS = ("caption", "image", "set")
META = "meta.json"


@dataclass
class Batch:
    """One batch. Masks are bool, True = real; ids are row numbers within the split.

    ``regions`` (I, R, D) float, ``region_mask`` (I, R), ``tokens`` (C, W) int64, ``token_mask`` (C, W),
    ``image_ids`` (I,), ``caption_image_ids`` (C,): the image of each caption, ``caption_ids`` (C,).
    For models of pixels, ``regions`` is (I, 3, H, W) and there is no ``region_mask``.
    """

    regions: Tensor
    region_mask: Tensor | None
    tokens: Tensor
    token_mask: Tensor
    image_ids: Tensor
    caption_image_ids: Tensor
    caption_ids: Tensor

    def to(self, device: torch.device | str) -> Batch:
        values = (getattr(self, field.name) for field in fields(self))
        return Batch(*(None if value is None else value.to(device) for value in values))


def pad_tokens(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids of several captions as (C, W) int64 with their bool mask; W is the longest."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    width = int(lengths.max())
    tokens = torch.zeros(len(sequences), width, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence)] = torch.tensor(sequence, dtype=torch.int64)
    return tokens, torch.arange(width)[None, :] < lengths[:, None]


class ImageCaptionDataset:
    """Images (rows of ``regions``, or of pictures), captions, and ``caption_to_image`` (C,) that points each caption at its image.

    ``dataset[[3, 7]]`` is the Batch of captions 3 and 7 with one image row a caption (images may repeat).
    ``truth`` (I, C) bool, where the data has it, says which caption is true of which image; it is for evaluation. ``protocols``: the
    published evaluations that the dataset declares for itself; see itm_lib.evaluation.protocols. ``language`` of its captions, "en", where
    meta.json says it.
    """

    def __init__(
        self,
        regions: RegionStore | PictureStore,
        texts: Sequence[str],
        caption_to_image: Sequence[int],
        vocabulary: Vocabulary | WordPieces,
        split: str,
        caption_ids: Sequence[str] | None = None,
        truth: Tensor | None = None,
        name: str = "",
        protocols: Sequence[str] = (),
        language: str = "",
    ):
        self.regions, self.texts, self.vocabulary, self.split, self.name = regions, list(texts), vocabulary, split, name
        self.protocols, self.language = tuple(protocols), language
        self.caption_to_image = torch.as_tensor(caption_to_image, dtype=torch.int64)
        self.caption_ids = list(caption_ids) if caption_ids is not None else [str(c) for c in range(len(self.texts))]
        self.truth = truth
        if not self.texts:
            raise InputError(f"the {split} split of {name or 'this dataset'} has no captions")
        if len(self.caption_to_image) != len(self.texts) or len(self.caption_ids) != len(self.texts):
            raise InputError(f"{len(self.texts)} captions but {len(self.caption_to_image)} image references; they must match")
        if int(self.caption_to_image.min()) < 0 or int(self.caption_to_image.max()) >= len(regions):
            raise InputError(f"a caption of {split} points at image row {int(self.caption_to_image.max())} of {len(regions)}")
        self.tokens = []
        for caption_id, text in zip(self.caption_ids, self.texts):
            try:
                self.tokens.append(vocabulary.encode(text))
            except InputError as error:
                raise InputError(f"caption {caption_id} of split {split}: {error}") from None
        self.captions_of_image: list[list[int]] = [[] for _ in range(len(regions))]
        for caption, image in enumerate(self.caption_to_image.tolist()):
            self.captions_of_image[image].append(caption)

    @property
    def num_images(self) -> int:
        return len(self.regions)

    @property
    def pixels(self) -> Pixels | None:
        """How the pictures are read; None where there are regions of them."""
        return self.regions.pixels if isinstance(self.regions, PictureStore) else None

    @property
    def num_captions(self) -> int:
        return len(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, captions: Sequence[int], images: Sequence[int] | None = None,
              augment: tuple[int, int] | None = None) -> Batch:
        """The Batch of caption rows ``captions`` and image rows ``images`` (default: the image of each caption)."""
        captions = list(captions)
        caption_image_ids = self.caption_to_image[captions]
        images = caption_image_ids.tolist() if images is None else list(images)
        tokens, token_mask = pad_tokens([self.tokens[caption] for caption in captions])
        regions, region_mask = self.image_tensors(images, augment)
        return Batch(regions, region_mask, tokens, token_mask, torch.tensor(images), caption_image_ids, torch.tensor(captions))

    def image_tensors(self, images: Sequence[int], augment: tuple[int, int] | None = None) -> tuple[Tensor, Tensor | None]:
        """Regions (n, R, D) float32 and their mask (n, R) of image rows ``images``; R is the largest real count.

        Or pictures (n, 3, H, W) and None: for training with ``augment``, seed and epoch, for everything else without.
        """
        if isinstance(self.regions, PictureStore):
            return self.regions.tensors(images, augment), None
        counts = self.regions.num_regions[np.asarray(images, dtype=np.int64)]
        width = int(counts.max())
        features = torch.from_numpy(self.regions.features(images, width))
        return features, torch.arange(width)[None, :] < torch.from_numpy(counts.astype(np.int64))[:, None]

    def __getitem__(self, rows: int | Sequence[int]) -> Batch:
        return self.batch([rows] if isinstance(rows, int) else rows)


class BatchSampler:
    """Batches of caption rows for one epoch; the order depends on ``seed`` and the epoch alone.

    ``layout`` is a model's ``batch_layout``:

    * ``"caption"``: every caption once, with its image; images may repeat in a batch (VSE++, SCAN, HREM)
    * ``"image"``: every image once, with one random caption of its own (CAMP)
    * ``"set"``: every image once, with all its captions (DivE); ``batch_size`` counts images

    After ``group(labels, size)`` batches are made of neighbours: each of runs of ``size`` units whose images have one label.
    """

    def __init__(self, dataset: ImageCaptionDataset, batch_size: int, layout: str = "caption", seed: int = 0,
                 shuffle: bool = True, drop_last: bool = False):
        if layout not in LAYOUTS:
            raise InputError(f"unknown batch layout {layout!r}: choose one of {', '.join(LAYOUTS)}")
        if batch_size < 2:
            raise InputError(f"batch_size is {batch_size}: a batch of fewer than 2 has no negatives")
        self.dataset, self.batch_size, self.layout = dataset, batch_size, layout
        self.seed, self.shuffle, self.drop_last, self.epoch = seed, shuffle, drop_last, 0
        self.labels, self.run = None, 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def group(self, labels: np.ndarray | None, size: int = 1) -> None:
        """From now on put ``size`` units whose images share a label, ``labels`` (I,), side by side; None undoes it.

        Every unit still comes once an epoch. What is left over of each label, fewer than ``size``, comes last in the epoch.
        """
        if labels is not None and len(labels) != self.dataset.num_images:
            raise InputError(f"{len(labels)} labels for {self.dataset.num_images} images: give one an image")
        if size < 1 or self.batch_size % size:
            raise InputError(f"batch_size {self.batch_size} is no multiple of {size}: a batch is made of whole runs of neighbours")
        self.labels, self.run = None if labels is None else np.asarray(labels), size

    def __len__(self) -> int:
        count = self.dataset.num_captions if self.layout == "caption" else self._num_captioned
        full, rest = divmod(count, self.batch_size)
        return full + (1 if rest > 1 and not self.drop_last else 0)

    @property
    def _num_captioned(self) -> int:
        return sum(1 for captions in self.dataset.captions_of_image if captions)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        groups = self.dataset.captions_of_image
        if self.layout == "caption":
            units = [[caption] for caption in range(self.dataset.num_captions)]
        elif self.layout == "image":
            units = [[captions[rng.integers(len(captions))]] for captions in groups if captions]
        else:
            units = [captions for captions in groups if captions]
        order = rng.permutation(len(units)) if self.shuffle else np.arange(len(units))
        if self.labels is not None:
            image = self.dataset.caption_to_image.numpy()[[unit[0] for unit in units]]
            order = neighbours_together(order, image, self.labels, self.run, rng)
        for number in range(len(self)):
            chosen = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield [caption for unit in chosen for caption in units[unit]]


def neighbours_together(order: np.ndarray, image: np.ndarray, labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """``order`` (U,) of units, unit u of image ``image[u]``, rearranged into runs of ``size`` units of one label.

    Within a label the first units of all its images come before their second ones, so that a run has an image twice only where
    the label has fewer images than ``size``. The runs are shuffled; shorter ones, the labels' rests, come last.
    """
    label, turn = labels[image[order]], _count_before(image[order])
    order = order[np.lexsort((turn, label))]
    label = labels[image[order]]
    place = _count_before(label)
    number_of_label, total = np.unique(label, return_inverse=True, return_counts=True)[1:]
    rest = place >= total[number_of_label] // size * size
    runs = order[~rest].reshape(-1, size)
    return np.concatenate([runs[rng.permutation(len(runs))].ravel(), order[rest]])


def _count_before(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each one: [7, 7, 3, 7] -> [0, 1, 0, 2]."""
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    count = np.empty(len(values), dtype=np.int64)
    count[by_value] = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    return count


def collate(dataset: ImageCaptionDataset, captions: Sequence[int], layout: str, augment: tuple[int, int] | None = None) -> Batch:
    """The Batch of ``captions`` in a model's layout: in ``"set"`` each image appears once, else once a caption."""
    if layout != "set":
        return dataset.batch(captions, augment=augment)
    images = list(dict.fromkeys(dataset.caption_to_image[list(captions)].tolist()))
    return dataset.batch(captions, images, augment)


def open_images(folder: str | Path, name: str, image_ids: Sequence[str], pixels: Pixels | None = None,
                in_memory: bool | None = None) -> RegionStore | PictureStore:
    """The pictures ``image_ids`` of a dataset folder, as a model reads them: with ``pixels`` the pictures themselves, without
    their regions, regions/<name>.*."""
    folder = Path(folder)
    if pixels is not None:
        return PictureStore(folder / "images", image_ids, pixels)
    path = find_regions(folder, name)
    if not path.is_file() and (folder / "images").is_dir():
        raise InputError(f"{folder} has pictures and no regions/{path.name}: train a model of pixels on it, or extract its regions")
    return RegionStore(path, in_memory, image_ids if path.stem == ALL else None)


def about_images(images: RegionStore | PictureStore) -> dict[str, Any]:
    """What ``images`` are, as JSON values: the extractor of the regions, its settings and sizes; or the pixels that are read."""
    if isinstance(images, PictureStore):
        return {"pixels": images.pixels.size}
    attrs = {name: getattr(value, "tolist", lambda value=value: value)() for name, value in images.attrs.items()
             if name not in ("skipped", "images")}  # of single pictures, and a path
    return {**attrs, "max_regions": int(images.max_regions), "dim": int(images.dim), "boxes": images.has_boxes}


def load_split(folder: str | Path, split: str, in_memory: bool | None = None, vocabulary: Vocabulary | WordPieces | None = None,
               pixels: Pixels | None = None) -> ImageCaptionDataset:
    """Read one split of a dataset folder. Callers use ``open_split``: of this module, or of itm_lib.evaluation."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no dataset folder {folder}: make it first, for example with 'itm data'")
    splits = read_json(folder / "splits.json")
    if split not in splits:
        raise InputError(f"{folder} has no split {split!r}: it has {', '.join(splits)}")
    store = open_images(folder, split, splits[split], pixels, in_memory)
    if sorted(store.image_ids) != sorted(splits[split]):
        raise InputError(f"{store.path} and splits.json list different images for {split}; extract the features again")
    rows = []
    for number, row in enumerate(read_jsonl(folder / "captions.jsonl"), 1):
        lacking = [key for key in ("caption_id", "image_id", "text", "split") if key not in row]
        if lacking:
            raise InputError(f"{folder / 'captions.jsonl'} line {number} lacks {', '.join(lacking)}")
        if row["split"] == split:
            rows.append(row)
    if vocabulary is None:
        vocabulary = load_vocabulary(folder / "vocabulary.json")
    truth = None
    if (folder / "truth" / f"{split}.json").is_file():
        by_caption = read_json(folder / "truth" / f"{split}.json")
        truth = torch.zeros(len(store), len(rows), dtype=torch.bool)
        for column, row in enumerate(rows):
            if row["caption_id"] not in by_caption:
                raise InputError(f"{folder / 'truth'}: no entry for caption {row['caption_id']}; build the dataset again")
            truth[[store.row(image_id) for image_id in by_caption[row["caption_id"]]], column] = True
    meta = read_meta(folder)
    return ImageCaptionDataset(
        store, [row["text"] for row in rows], [store.row(row["image_id"]) for row in rows], vocabulary, split,
        caption_ids=[row["caption_id"] for row in rows], truth=truth, name=folder.name, protocols=meta.get("protocols", ()),
        language=str(meta.get("language", "")),
    )


def read_meta(folder: str | Path) -> dict[str, Any]:
    """What meta.json of a dataset folder says; an empty mapping where there is none."""
    path = Path(folder) / META
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        raise InputError(f"{path} is no mapping of names to values: make the folder again")
    protocols = content.get("protocols", [])
    if not isinstance(protocols, list) or not all(isinstance(name, str) for name in protocols):
        raise InputError(f'{path}: "protocols" must be a list of names: mend it, or make the folder again')
    return content


def open_split(folder: str | Path, split: str, in_memory: bool | None = None, vocabulary: Vocabulary | WordPieces | None = None,
               pixels: Pixels | None = None) -> ImageCaptionDataset:
    """The ``"train"`` or ``"val"`` split of a dataset folder, its captions in tokens of ``vocabulary`` (default: the folder's words).

    With ``pixels``, a model's ``pixels``, images are the pictures themselves and not their regions. ``in_memory``: whether
    regions are loaded, or read row by row; None loads them if they take at most 512 MiB.

    ``"test"`` is refused here: it opens in itm_lib.evaluation alone, once, after every choice is made.
    """
    if split == "test":
        raise InputError("the test split is for the final evaluation: open it with itm_lib.evaluation.open_split")
    return load_split(folder, split, in_memory, vocabulary, pixels)
