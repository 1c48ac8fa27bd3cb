"""Karpathy's splits, ``dataset_flickr8k.json``, ``dataset_flickr30k.json`` and ``dataset_coco.json``: captions, their ids and splits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from itm_lib.data.dataset_files import SPLITS, CaptionedPicture, has_words
from itm_lib.data.feature_files import picture_key
from itm_lib.data.published import CAPTIONS_PER_IMAGE, VAL_IMAGES
from itm_lib.files import InputError, read_json

MIN_COUNT = 4     # words of the training captions that are rarer are unknown, as in all four papers


@dataclass(frozen=True)
class Picture(CaptionedPicture):
    """One picture of a split: ``key``, its name among the features; ``file``, of the picture."""

    key: Any
    file: str = ""


@dataclass(frozen=True)
class Options:
    """How a dataset folder is made. ``val_images``: only the first so many pictures of val, None for all; ``min_count``: how often
    a word stands in the training captions to be known; ``skip_empty``: leave out captions without a word, where otherwise they are
    an error; ``partial``: take it that pictures of the splits, or features, are missing."""

    val_images: int | None = VAL_IMAGES
    min_count: int = MIN_COUNT
    skip_empty: bool = False
    partial: bool = False
    progress: bool = True

    def __post_init__(self):
        if self.val_images is not None and self.val_images < 1:
            raise InputError(f"val_images is {self.val_images}: give at least 1, or None for all")


def read_karpathy(path: Path, restval: bool = True, captions_per_image: int | None = CAPTIONS_PER_IMAGE,
                  options: Options = Options()) -> dict[str, list[Picture]]:
    """The pictures of each split in Karpathy's JSON, in its order. ``restval``: those are for training; else they are left out."""
    content = read_json(path)
    rows = content.get("images") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise InputError(f'{path} is not one of Karpathy\'s files: {{"images": [...], "dataset": ...}} is expected')
    split_of = {"train": "train", "val": "val", "test": "test", "restval": "train" if restval else None}
    pictures: dict[str, list[Picture]] = {split: [] for split in SPLITS}
    images_seen, captions_seen = set(), set()
    for number, row in enumerate(rows):
        where = f"{path} image number {number}"
        lacking = [key for key in ("split", "filename", "sentences") if not row.get(key)]
        if lacking:
            raise InputError(f"{where} lacks {', '.join(lacking)}: mend it, or get the file again")
        if row["split"] not in split_of:
            raise InputError(f"{where} ({row['filename']}) has the split {row['split']!r}: {', '.join(split_of)} are known")
        image_id = str(row["cocoid"]) if "cocoid" in row else Path(row["filename"]).stem
        where = f"{where} (image {image_id})"
        if image_id in images_seen:
            raise InputError(f"{where} is there twice: remove one of them")
        images_seen.add(image_id)
        if split_of[row["split"]] is not None:
            captions = tuple(islice(_sentences(row, where, captions_seen, options), captions_per_image))
            file = "/".join(filter(None, [row.get("filepath"), row["filename"]]))
            pictures[split_of[row["split"]]].append(Picture(image_id, captions, picture_key(image_id), file))
    return pictures


def _sentences(row: dict[str, Any], where: str, seen: set[str], options: Options) -> Iterator[tuple[str, str]]:
    for sentence in row["sentences"]:
        if "sentid" not in sentence or "raw" not in sentence:
            raise InputError(f"{where}: a sentence lacks sentid or raw: mend it, or get the file again")
        caption_id, text = str(sentence["sentid"]), " ".join(str(sentence["raw"]).split())
        if caption_id in seen:
            raise InputError(f"{where}: sentid {caption_id} is there twice: mend it, or get the file again")
        seen.add(caption_id)
        if has_words(text, f"{where}, sentid {caption_id}", options.skip_empty):
            yield caption_id, text
