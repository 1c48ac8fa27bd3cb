"""A part of a dataset folder as a dataset folder of its own: the pictures that a file of ids lists, with the same regions.

The file is JSON, ``{"train": [image_id, ...], "val": [...], "test": [...]}``. Ablations run on such a part: a difference between two models
is told better by many seeds than by many pictures.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from itm_lib.data.dataset import read_meta
from itm_lib.data.dataset_files import SPLITS, CaptionedPicture, making, write_small_files
from itm_lib.data.judgments import FILES as JUDGMENT_FILES
from itm_lib.data.judgments import FOLDER as JUDGMENTS
from itm_lib.data.own import link_images, link_store
from itm_lib.data.regions import ALL, find_regions
from itm_lib.files import InputError, read_json, read_jsonl

KIND = "subset"
INHERITED = ("language", "regions")  # of meta.json


def make_subset(folder: str | Path, ids: str | Path, out: str | Path) -> Path:
    """Make the dataset folder ``out`` of the pictures of ``folder`` that the file ``ids`` lists; returns ``out``.

    The vocabulary is that of the part's training captions, by the ``min_count`` of the whole. Regions and pictures are linked; human
    judgments are copied. What is made already, of the same ids and captions, is kept. No published protocol is declared.
    """
    folder, ids, out = Path(folder), Path(ids), Path(out)
    wanted, meta = read_ids(ids), read_meta(folder)
    sources = [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in (ids, folder / "captions.jsonl")]
    if read_meta(out).get("sources") == sources:
        return out
    store = find_regions(folder, ALL)
    if not store.is_file():
        raise InputError(f"{folder} has no regions/{ALL}.h5, one store of all splits, which a part of it can share: extract its regions into that file")
    with making(out, out.resolve().name, KIND):
        pictures = _pictures(folder, wanted, ids)
        link_store(out, store.resolve())
        if (folder / "images").is_dir():
            link_images(out, (folder / "images").resolve())
        for name in JUDGMENT_FILES.values():
            if (folder / JUDGMENTS / name).is_file():
                (out / JUDGMENTS).mkdir(exist_ok=True)
                shutil.copyfile(folder / JUDGMENTS / name, out / JUDGMENTS / name)
        min_count = meta.get("options", {}).get("min_count", 1)
        about = {"made_from": f"{ids.name}, a part of {meta.get('name', folder.name)}", "sources": sources, "options": {"min_count": min_count},
                 **{name: meta[name] for name in INHERITED if name in meta}}
        return write_small_files(out, pictures, min_count, about)


def read_ids(path: str | Path) -> dict[str, list[str]]:
    """The ids of each split in a file of ids; each picture once."""
    content = read_json(path)
    if not isinstance(content, dict) or any(not isinstance(content.get(split), list) or not content[split] for split in SPLITS):
        raise InputError(f'{path} is no list of a part: {{"train": [image_id, ...], "val": [...], "test": [...]}} is expected')
    every = [image_id for split in SPLITS for image_id in content[split]]
    if len(set(every)) != len(every):
        raise InputError(f"{path} lists a picture twice: each has one split")
    return {split: content[split] for split in SPLITS}


def _pictures(folder: Path, wanted: dict[str, list[str]], ids: Path) -> dict[str, list[CaptionedPicture]]:
    captions: dict[str, dict[str, list[tuple[str, str]]]] = {split: {} for split in SPLITS}
    for row in read_jsonl(folder / "captions.jsonl"):
        captions[row["split"]].setdefault(row["image_id"], []).append((row["caption_id"], row["text"]))
    for split, image_ids in wanted.items():
        lost = [image_id for image_id in image_ids if image_id not in captions[split]]
        if lost:
            raise InputError(f"{ids} lists {len(lost):,} pictures of {split} that {folder} does not have there, {lost[0]} among them: make {folder.name} of the "
                             "data that the list is of")
    return {split: [CaptionedPicture(image_id, tuple(captions[split][image_id])) for image_id in image_ids] for split, image_ids in wanted.items()}

