"""A small world that a model can learn in seconds: every picture holds nouns, every noun has its own region vector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from itm_lib.data import Tokenizer, Vocabulary
from itm_lib.data.regions import RegionWriter
from itm_lib.files import read_jsonl, write_json, write_jsonl

NOUNS = ["dog", "cat", "boat", "tree", "lamp", "bread", "chair", "apple", "train", "bird", "shoe", "clock", "house", "fish",
         "crown", "glove", "spoon", "guitar", "horse", "book"]
DIM = 16


def write_dataset(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """A dataset folder whose pictures hold 2 or 3 of 20 nouns, with two captions each that name them."""
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(len(NOUNS), DIM)).astype(np.float32)
    captions, splits = [], {}
    for split, count in sizes.items():
        names = [f"{split}{number}" for number in range(count)]
        splits[split] = names
        with RegionWriter(folder / "regions" / f"{split}.h5", names, 3, DIM, "test") as writer:
            for row, name in enumerate(names):
                held = rng.choice(len(NOUNS), size=rng.integers(2, 4), replace=False)
                boxes = np.tile(np.array([0, 0, 1, 1], dtype=np.float32), (len(held), 1))
                writer.write(row, looks[held] + 0.1 * rng.normal(size=(len(held), DIM)).astype(np.float32), boxes)
                for which in range(2):
                    words = " and a ".join(NOUNS[noun] for noun in rng.permutation(held))
                    captions.append({"caption_id": f"{name}.{which}", "image_id": name, "text": f"A {words}.", "split": split})
    write_jsonl(folder / "captions.jsonl", captions)
    write_json(folder / "splits.json", splits)
    Vocabulary.build(row["text"] for row in captions if row["split"] == "train").save(folder / "vocabulary.json")
    return folder


def same_weights(first, second) -> bool:
    """Whether two models have the same tensors, to the bit."""
    other = second.state_dict()
    return first.state_dict().keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def write_pictures(folder: Path, size: int = 32) -> Path:
    """A picture for every image of ``folder``: each noun of its captions is a square of its own colour and place."""
    from PIL import Image

    (folder / "images").mkdir(exist_ok=True)
    for image_id, text in {row["image_id"]: row["text"] for row in read_jsonl(folder / "captions.jsonl")}.items():
        picture = np.full((size, size, 3), 255, dtype=np.uint8)
        for word in Tokenizer()(text):
            if word in NOUNS:
                place, side = NOUNS.index(word), size // 5
                top, left = place // 5 * side, place % 5 * side
                picture[top : top + side, left : left + side] = [place * 12, 255 - place * 12, place % 4 * 80]
        Image.fromarray(picture).save(folder / "images" / f"{image_id}.png")
    return folder


def write_backbone(folder: Path, kind: str = "resnet", size: int = 32) -> Path:
    """A random image backbone of two stages, ResNet or ViT, for pictures of ``size`` pixels."""
    from transformers import AutoModel, ResNetConfig, ViTConfig

    torch.manual_seed(0)
    config = (ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic") if kind == "resnet" else
              ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=size, patch_size=8,
                        initializer_range=0.2))
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


def write_bert(folder: Path, texts: list[str], special: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
               spare: int = 0) -> Path:
    """A random BERT of two layers, and its tokenizer: of a word in ``texts`` three letters, and the rest as a piece of its own.

    ``spare``: rows of its table of embeddings that belong to no piece.
    """
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for text in texts for word in Tokenizer()(text)})
    pieces = dict.fromkeys([*(word[:3] for word in words), *(f"##{word[3:]}" for word in words if word[3:]), "."])
    vocabulary = [*special, *pieces]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(vocabulary) + spare, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
                         max_position_embeddings=24, initializer_range=0.2)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder
