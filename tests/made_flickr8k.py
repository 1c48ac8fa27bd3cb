"""A small Flickr8k in the three forms that people have, with photographs, regions and judgments."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from itm_lib.data import flickr8k
from itm_lib.data.published import DATASETS
from itm_lib.data.regions import RegionWriter

SIZES = {"train": 8, "val": 3, "test": 4}
NOUNS = ("dog", "man", "girl", "ball", "beach", "horse", "boy", "bike")
UNSPLIT = "1900000_ffffffffff.jpg"
GHOSTS = flickr8k.WITHOUT_PHOTOGRAPH


def small_sizes(monkeypatch) -> None:
    """Flickr8k as if it had the photographs that are made here."""
    for split, count in SIZES.items():
        monkeypatch.setitem(DATASETS["flickr8k"].expected, split, count)


def names() -> dict[str, list[str]]:
    """File names of the photographs of each split, not in their alphabetical order."""
    numbers = iter(range(1000001, 1000100))
    return {split: [f"{next(numbers)}_{count:010x}.jpg" for count in range(size)][::-1] for split, size in SIZES.items()}


def captions() -> dict[str, list[str]]:
    """Five captions of every photograph, with what captions have in them: commas, quotation marks, capitals."""
    found = {}
    for place, name in enumerate([*(name for own in names().values() for name in own), UNSPLIT]):
        noun, other = NOUNS[place % 8], NOUNS[(place + 3) % 8]
        found[name] = [f"A {noun} is running .", f"The {noun} , near a {other} , plays .", f'A sign says " {noun} " .', f"Two {noun}s are jumping .",
                       f"A {noun} and a {other} ."]
    return found


def write_text_archive(folder: Path, ghosts: bool = True, lists: bool = True) -> Path:
    """The official archive: token file, lists, judgments."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{name}#{number}\t{text}" for name, texts in captions().items() for number, text in enumerate(texts)]
    if ghosts:
        rows += [f"{GHOSTS[0]}#{number}\tTwo people ." for number in range(4)] + [f"{GHOSTS[1]}#4\tPeople ."]
    (folder / flickr8k.TOKENS).write_text("\n".join(rows) + "\n")
    for split, own in names().items() if lists else ():
        (folder / flickr8k.LISTS[split]).write_text("\n".join(own) + "\n")
    test = names()["test"]
    pairs = [(image, f"{caption}#2", image == caption) for image in test for caption in test]
    marks, votes = {True: "4\t3\t4", False: "1\t2\t1"}, {True: "1\t3\t0", False: "0.333333\t1\t2"}
    for name, said in (("ExpertAnnotations.txt", marks), ("CrowdFlowerAnnotations.txt", votes)):
        (folder / name).write_text("".join(f"{image}\t{caption}\t{said[own]}\n" for image, caption, own in pairs))
    return folder


def write_kaggle(folder: Path) -> Path:
    """captions.txt of Kaggle's archive: a CSV without splits, in which the photograph that does not exist is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / flickr8k.KAGGLE, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "caption"])
        writer.writerows([name, text] for name, texts in captions().items() for text in texts)
    return folder


def write_karpathy(folder: Path) -> Path:
    """dataset_flickr8k.json: splits, no photograph without one, no filepath."""
    folder.mkdir(parents=True, exist_ok=True)
    split_of = {name: split for split, own in names().items() for name in own}
    rows, sentid = [], 0
    for imgid, (name, texts) in enumerate((name, texts) for name, texts in captions().items() if name in split_of):
        sentences = [{"raw": text, "tokens": text.lower().split(), "imgid": imgid, "sentid": sentid + number} for number, text in enumerate(texts)]
        sentid += len(texts)
        rows.append({"sentids": [each["sentid"] for each in sentences], "imgid": imgid, "sentences": sentences, "split": split_of[name], "filename": name})
    (folder / flickr8k.KARPATHY).write_text(json.dumps({"images": rows, "dataset": "flickr8k"}))
    return folder


def write_photographs(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in captions():
        Image.new("RGB", (12, 8), (len(name), 90, 20)).save(folder / name)
    return folder


def write_regions(path: Path, image_ids: list[str] | None = None) -> Path:
    """What ``itm extract`` makes of the photographs."""
    image_ids = image_ids or sorted(name.removesuffix(".jpg") for name in captions())
    rng = np.random.default_rng(0)
    with RegionWriter(path, image_ids, 4, 6, "made") as writer:
        for row in range(len(image_ids)):
            writer.write(row, rng.normal(size=(4, 6)).astype(np.float32), np.tile(np.array([0, 0, 1, 1], np.float32), (4, 1)))
    return path
