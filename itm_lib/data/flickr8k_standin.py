"""A stand-in for Flickr8k: drawings of the embedded dataset in Flickr8k's own files, for whoever does not have the photographs.

What reads Flickr8k reads it: ``Flickr8k.token.txt``, the three lists, ``images/<number>_<letters>.jpg`` and both files of judgments. The pictures and
captions are those of OpenMoji Scenes, variant many_to_many, where a caption is true of several pictures. The judgments are *simulated*
from the exact truth: an expert marks a true pair 3 or 4, and another pair the higher the more words it shares with the picture's captions; most
of the crowd says yes to a true pair. No number that is measured on it says anything about photographs.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from itm_lib.data import scenes
from itm_lib.data.captions import Tokenizer
from itm_lib.data.flickr8k import LISTS, TOKENS
from itm_lib.data.judgments import FILES
from itm_lib.data.regions import RegionStore, RegionWriter, find_regions
from itm_lib.files import InputError, held, read_json, read_jsonl, replace_atomically, write_json, write_text

MARKER, REGIONS = "standin.json", "regions.h5"
JUDGED_CAPTION = 2      # the judgments are of caption #2 of a photograph alone, as in Flickr8k
CLOSEST = 6             # pictures that the experts see for a caption, and
SEEN_BY_CROWD = 12      # the crowd: those that share the most words with it
SIMULATED = "simulated from the exact truth of OpenMoji Scenes"


def write_standin(out: str | Path, size: str = "smoke", seed: int = 0, progress: bool = True) -> Path:
    """Write the stand-in into the folder ``out``; returns ``out``. ``size``: of the embedded dataset. What is there already is kept."""
    out, settings = Path(out), {"size": size, "seed": seed, "generator": scenes.fingerprint(), "judgments": SIMULATED}
    out.mkdir(parents=True, exist_ok=True)
    with held(out / ".lock", f"{out} is being written by another process: wait for it, or give another folder"):
        there = read_json(out / MARKER) if (out / MARKER).is_file() else None
        if there == settings:
            return out
        if there is None and any(path.name != ".lock" for path in out.iterdir()):
            raise InputError(f"{out} holds other files: give another folder for the stand-in")
        folder = scenes.build("many_to_many", size, seed, progress=progress)
        write_json(out / MARKER, {"unfinished": settings})  # first, so that what a kill leaves behind is known as ours
        if there is not None and there.get("unfinished") != settings:  # pictures and regions of another size or seed
            shutil.rmtree(out / "images", ignore_errors=True)
            (out / REGIONS).unlink(missing_ok=True)
        (out / "images").mkdir(exist_ok=True)
        splits, rows = read_json(folder / "splits.json"), read_jsonl(folder / "captions.jsonl")
        names = _file_names(splits)
        for image_id, name in tqdm(names.items(), desc="pictures of the stand-in", unit="picture", disable=not progress):
            if not (out / "images" / name).is_file():
                with replace_atomically(out / "images" / name) as part, Image.open(folder / "images" / f"{image_id}.png") as picture:
                    picture.convert("RGB").save(part, format="JPEG", quality=90)
        captions: dict[str, list[dict]] = {}
        for row in rows:
            captions.setdefault(row["image_id"], []).append(row)
        lines = [f"{name}#{number}\t{row['text']}" for image_id, name in names.items() for number, row in enumerate(captions[image_id])]
        write_text(out / TOKENS, "\n".join(lines) + "\n")
        for split, name in LISTS.items():
            write_text(out / name, "".join(f"{names[image_id]}\n" for image_id in splits[split]))
        truth = read_json(folder / "truth" / "test.json")
        for kind, text in _judgments(splits["test"], captions, truth, names, random.Random(seed)).items():
            write_text(out / FILES[kind], text)
        write_json(out / MARKER, settings)
    return out


def write_standin_regions(folder: str | Path, progress: bool = True) -> Path:
    """Write ``folder``/regions.h5 for a stand-in, the embedded dataset's own regions under the stand-in's names; returns it.

    Of drawings the boxes of all objects are known, so they are not looked for in the JPEGs, as ``itm extract`` would.
    """
    folder = Path(folder)
    settings = read_json(folder / MARKER) if (folder / MARKER).is_file() else {}
    if "size" not in settings:
        raise InputError(f"{folder} is no stand-in, or an unfinished one: make it with write_standin first")
    scene_folder = scenes.prepare("many_to_many", settings["size"], settings["seed"], progress=progress)
    splits, out = read_json(scene_folder / "splits.json"), folder / REGIONS
    with held(folder / ".lock", f"{folder} is being written by another process: wait for it, or give another folder"):
        stores = [RegionStore(find_regions(scene_folder, split), image_ids=splits[split]) for split in LISTS]
        names = [Path(name).stem for name in _file_names(splits).values()]
        there = RegionStore(out) if out.is_file() else None
        if there is not None and there.attrs.get("source") == settings["generator"] and there.image_ids == names:
            return out
        row = 0
        with RegionWriter(out, names, max(store.max_regions for store in stores), stores[0].dim, str(stores[0].attrs["extractor"]),
                          source=settings["generator"]) as writer:
            for store in stores:
                for number, count in enumerate(store.num_regions):
                    writer.write(row, store.features([number])[0, :count], store.boxes([number])[0, :count])
                    row += 1
    return out


def _file_names(splits: dict[str, list[str]]) -> dict[str, str]:
    """The name of each picture's file, by the picture's id, in the order of the three lists."""
    return {image_id: _file_name(image_id, number) for number, image_id in enumerate(image_id for split in LISTS for image_id in splits[split])}


def _file_name(image_id: str, number: int) -> str:
    """A name like those of Flickr's photographs."""
    return f"{1000000001 + 7919 * number}_{hashlib.sha256(image_id.encode()).hexdigest()[:10]}.jpg"


def _judgments(images: list[str], captions: dict[str, list[dict]], truth: dict[str, list[str]], names: dict[str, str],
               rng: random.Random) -> dict[str, str]:
    """The lines of both files: of every test picture's caption #2 with the pictures whose captions share the most words with it."""
    words = {image_id: {word for row in captions[image_id] for word in Tokenizer()(row["text"])} for image_id in images}
    experts, crowd = [], []
    for owner in images:
        row = captions[owner][JUDGED_CAPTION]
        own, true = set(Tokenizer()(row["text"])), set(truth[row["caption_id"]])
        near = sorted(images, key=lambda image_id: (-len(own & words[image_id]), image_id))
        for place, image_id in enumerate(near[:SEEN_BY_CROWD]):
            pair = f"{names[image_id]}\t{names[owner]}#{JUDGED_CAPTION}"
            if place < CLOSEST:
                level = 3.6 if image_id in true else 1 + 1.6 * len(own & words[image_id]) / len(own)
                marks = [min(4, max(1, round(level + rng.uniform(-0.7, 0.7)))) for _ in range(3)]
                experts.append("\t".join([pair, *map(str, sorted(marks))]))
            yes = sum(rng.random() < (0.9 if image_id in true else 0.06) for _ in range(3))
            crowd.append(f"{pair}\t{yes / 3:.6g}\t{yes}\t{3 - yes}")
    return {"experts": "\n".join(experts) + "\n", "crowd": "\n".join(crowd) + "\n"}
