"""A small dataset with pictures, regions and boxes, and a small model of every kind, with random weights."""

import numpy as np
import torch
from PIL import Image

from itm_lib.data.captions import Vocabulary
from itm_lib.data.regions import RegionWriter
from itm_lib.files import write_json, write_jsonl
from itm_lib.models import Ensemble, build_model

WORDS = "a dog cat car tree left of red blue small large two".split()
DIM, PICTURES = 8, 9  # numbers of a region; pictures a split
SMALL = {"embed_dim": 16, "word_dim": 8}
SETTINGS = {
    "vse": {},
    "vse_max": {"image_pooling": "max", "text_pooling": "last"},
    "hrem": {"num_heads": 2, "pool_top": 2},
    "hrem_long": {"num_heads": 2, "pool_top": 2, "image_norm": False},
    "dive": {"num_slots": 3, "num_heads": 2, "head_dim": 8, "iterations": 2},
    "dive_chamfer": {"num_slots": 3, "num_heads": 2, "head_dim": 8, "iterations": 2, "similarity": "chamfer"},
    "scan": {},
    "scan_it": {"direction": "i2t", "aggregation": "lse"},
    "camp": {"num_heads": 2},
}


def make_model(name, seed=0):
    """A model of ``SETTINGS``, with its vocabulary."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.build(WORDS)
    model = build_model(name.split("_")[0], {**SMALL, **SETTINGS[name]}, DIM, len(vocabulary)).eval()
    model.vocabulary = vocabulary
    return model


def make_ensemble(*names):
    model = Ensemble([make_model(name, seed) for seed, name in enumerate(names)]).eval()
    return model


def random_regions(rng, dim=DIM):
    """Features (r, dim) and boxes (r, 4), r from 2 to 6."""
    count = int(rng.integers(2, 7))
    corner = rng.uniform(0, 0.6, (count, 2))
    return rng.normal(size=(count, dim)).astype(np.float32), np.concatenate([corner, corner + rng.uniform(0.1, 0.4, (count, 2))], 1)


def write_store(path, image_ids, rng, boxes=True, **attrs):
    with RegionWriter(path, image_ids, 6, DIM, "made", boxes=boxes, **attrs) as writer:
        for row in range(len(image_ids)):
            features, own = random_regions(rng)
            writer.write(row, features, own if boxes else None)
    return path


def write_pictures(folder, image_ids, rng):
    for image_id in image_ids:
        path = folder / f"{image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (int(rng.integers(20, 40)), int(rng.integers(20, 40)), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def make_folder(folder, seed=0, together=False):
    """A dataset folder of three splits; ``together``: one region file for all, with a picture that has no caption."""
    rng = np.random.default_rng(seed)
    splits = {split: [f"{split}/{number}" for number in range(PICTURES)] for split in ("train", "val", "test")}
    every = [image_id for image_ids in splits.values() for image_id in image_ids]
    if together:
        write_store(folder / "regions" / "all.h5", [*every, "extra"], rng)
        every.append("extra")
    else:
        for split, image_ids in splits.items():
            write_store(folder / "regions" / f"{split}.h5", image_ids, rng)
    write_pictures(folder / "images", every, rng)
    rows = [{"caption_id": image_id, "image_id": image_id, "split": split, "text": " ".join(rng.choice(WORDS, 4))}
            for split, image_ids in splits.items() for image_id in image_ids]
    write_jsonl(folder / "captions.jsonl", rows)
    write_json(folder / "splits.json", splits)
    Vocabulary.build(WORDS).save(folder / "vocabulary.json")
    return folder


TEXTS = ["a small dog left of two red cars", "a tree", "two blue cats and a large car"]


def full_scores(index, texts):
    """The evaluator's scores (N, C) of all pictures and ``texts``."""
    from itm_lib.evaluation import similarity_matrix
    from itm_lib.evaluation.scoring import encode_images, encode_tokens

    captions = encode_tokens(index.model, [index.vocabulary.encode(text) for text in texts])
    return similarity_matrix(index.model, encode_images(index.model, index.gallery), captions)
