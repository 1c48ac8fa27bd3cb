"""Small datasets in the formats in which Flickr30K and COCO are published; the features show which words a caption has."""

import base64
import json
from dataclasses import dataclass, field

import numpy as np

WORDS = ["dog", "cat", "boat", "tree", "lamp", "bread"]
COUNTS = {"train": 8, "val": 3, "test": 4}
WIDTH, HEIGHT = 200, 100


@dataclass
class Picture:
    number: int
    split: str
    features: np.ndarray  # (regions, numbers) float32
    boxes: np.ndarray     # (regions, 4) float32, pixels
    captions: list = field(default_factory=list)

    @property
    def filename(self):
        return f"COCO_val2014_{self.number:012d}.jpg"


def make_pictures(counts=None, regions=4, dim=6, seed=0, varied=False):
    """{split: [Picture, ...]} with five captions each; ``varied``: 1 to ``regions`` regions."""
    rng, number, found = np.random.default_rng(seed), 100, {}
    looks = rng.normal(size=(len(WORDS), dim))
    for split, count in (counts or COUNTS).items():
        found[split] = []
        for _ in range(count):
            number += int(rng.integers(1, 9))
            rows = int(rng.integers(1, regions + 1)) if varied else regions
            words = rng.integers(len(WORDS), size=max(rows, 2))
            features = (looks[words[:rows]] + 0.1 * rng.normal(size=(rows, dim))).astype(np.float32)
            low = rng.uniform(0, 50, (rows, 2))
            captions = [f"A {WORDS[words[k % 2]]} and a {WORDS[words[1 - k % 2]]}, view {k} of {number}." for k in range(5)]
            found[split].append(Picture(number, split, features, np.concatenate([low, low + 40], 1).astype(np.float32), captions))
    return found


def write_scan_archive(folder, pictures, repeated=("val", "test"), test="test"):
    """<split>_ims.npy and <split>_caps.txt, dev and test rows five times, as SCAN's archive has them."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in pictures.items():
        name = {"val": "dev", "test": test}.get(split, split)
        rows = np.stack([picture.features for picture in found])
        np.save(folder / f"{name}_ims.npy", rows.repeat(5, 0) if split in repeated else rows)
        (folder / f"{name}_caps.txt").write_text("".join(f"{caption}\n" for picture in found for caption in picture.captions))
    return folder


def karpathy_rows(pictures, coco=True):
    """The rows of Karpathy's JSON: the last training picture is marked restval; a sixth caption is there in COCO."""
    rows, sentid = [], 1000
    for split, found in pictures.items():
        for place, picture in enumerate(found):
            texts = picture.captions + ([f"One dog too many in {picture.number}."] if coco else [])
            row = {"filename": picture.filename if coco else f"{picture.number}.jpg", "imgid": len(rows), "split": split,
                   "sentences": [{"raw": text, "tokens": text.lower().split(), "imgid": len(rows), "sentid": sentid + k}
                                 for k, text in enumerate(texts)]}
            if coco:
                row |= {"cocoid": picture.number, "filepath": "val2014"}
                if split == "train" and place == len(found) - 1:
                    row["split"] = "restval"
            row["sentids"] = [sentence["sentid"] for sentence in row["sentences"]]
            sentid += len(texts)
            rows.append(row)
    return rows


def write_karpathy(path, pictures, coco=True, change=lambda rows: rows):
    path.write_text(json.dumps({"images": change(karpathy_rows(pictures, coco)), "dataset": "coco" if coco else "flickr30k"}))
    return path


def tsv_line(picture):
    boxes, features = (base64.b64encode(value.tobytes()) for value in (picture.boxes, picture.features))
    return b"\t".join([str(picture.number).encode(), b"%d" % WIDTH, b"%d" % HEIGHT, b"%d" % len(picture.boxes), boxes, features]) + b"\n"


def write_tsv(path, pictures):
    """The detector's .tsv; pictures in falling order, which no other file has."""
    path.write_bytes(b"".join(tsv_line(picture) for found in pictures.values() for picture in found[::-1]))
    return path


def write_arrays(folder, pictures, suffix=".npz", boxes=True):
    """A file a picture."""
    folder.mkdir()
    for picture in (picture for found in pictures.values() for picture in found):
        if suffix == ".npy":
            np.save(folder / f"{picture.number}.npy", picture.features)
        else:
            more = {"bbox": picture.boxes, "image_w": WIDTH, "image_h": HEIGHT, "num_bbox": len(picture.boxes)} if boxes else {}
            np.savez(folder / f"{picture.number:012d}.npz", x=picture.features, **more)
    return folder
