"""What the papers' recipes need to start, generated: a dataset folder, a BERT, a backbone and word vectors, all of random numbers.

Every picture holds a few things, and a thing has a word, a direction among the features of regions and a colour among pixels; captions
name some of them. So a model can learn it. Full width is that of the papers: 36 regions of 2048 numbers, BERT-base, ResNet-152, vocabularies
of their size. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from itm_lib.data import Vocabulary
from itm_lib.data.regions import RegionWriter
from itm_lib.features.pretrained import quiet_transformers
from itm_lib.files import write_json, write_jsonl
from itm_lib.training import Recipe, load_recipe

CAPTIONS = 5
THINGS = 4  # of a picture


@dataclass(frozen=True)
class Width:
    """Sizes of everything that is generated; ``overrides`` of the recipes' own by method, "" for all."""

    regions: int
    region_dim: int
    words: dict[str, int]  # of the vocabulary, by dataset
    word_dim: int
    pixels: int
    bert: dict[str, int]
    resnet: dict[str, object]
    overrides: dict[str, tuple[str, ...]]


FULL = Width(
    36, 2048, {"flickr30k": 8481, "coco": 11755}, 300, 224, {},  # BertConfig's own sizes are BERT-base's
    {"depths": [3, 8, 36, 3], "hidden_sizes": [256, 512, 1024, 2048], "layer_type": "bottleneck"}, {})
TINY = Width(
    4, 12, {"flickr30k": 100, "coco": 100}, 8, 32, {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    {"depths": [1, 1], "embedding_size": 8, "hidden_sizes": [8, 16], "layer_type": "basic"},
    {"": ("model.embed_dim=16",), "gru": ("model.word_dim=8",), "hrem": ("model.num_heads=2",), "dive": ("model.head_dim=8", "model.num_heads=2"),
     "grid": ("model.image_size=32",)})


def word(number: int) -> str:
    """The word of that number: letters alone, so that any tokenizer leaves it whole."""
    letters = ""
    for _ in range(4):
        number, letter = divmod(number, 20)
        letters = "bcdfghjklmnpqrstvwxz"[letter] + letters
    return letters


def write_world(folder: Path, sizes: dict[str, int], data: str, width: Width, pictures: bool = False, noise: float = 0.5, things: int = 50) -> Path:
    """A dataset folder with so many pictures a split, five captions each; regions, or ``pictures``. ``things`` there are in all."""
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(things, width.region_dim)).astype(np.float32)
    rows, splits = [], {}
    for split, count in sizes.items():
        ids = [f"{split}-{number:05d}" for number in range(count)]
        splits[split] = ids
        held = np.stack([rng.choice(things, THINGS, replace=False) for _ in range(count)])
        for image_id, own in zip(ids, held):
            for number in range(CAPTIONS):
                named = rng.permutation(own)[: rng.integers(2, THINGS + 1)]
                filler = rng.integers(things, width.words[data] - 10, size=rng.integers(2, 8))
                text = " ".join(map(word, rng.permutation(np.concatenate([named, filler]))))
                rows.append({"caption_id": f"{image_id}.{number}", "image_id": image_id, "text": text, "split": split})
        if pictures:
            _write_pictures(folder / "images", ids, held, things, width.pixels, rng)
            continue
        with RegionWriter(folder / "regions" / f"{split}.h5", ids, width.regions, width.region_dim, "generated", boxes=False) as writer:
            for row, own in enumerate(held):
                which = own[np.arange(width.regions) % THINGS]
                writer.write(row, looks[which] + noise * rng.normal(size=(width.regions, width.region_dim)).astype(np.float32))
    write_jsonl(folder / "captions.jsonl", rows)
    write_json(folder / "splits.json", splits)
    special = Vocabulary.build(["x"]).words[:4]
    Vocabulary((*special, *(word(number) for number in range(width.words[data] - 4)))).save(folder / "vocabulary.json")
    return folder


def _write_pictures(folder: Path, ids: list[str], held: np.ndarray, things: int, pixels: int, rng: np.random.Generator) -> None:
    """Four quarters, each of the colour of a thing."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(1).integers(0, 256, size=(things, 3))
    for image_id, own in zip(ids, held):
        quarters = colours[own].reshape(2, 2, 3).repeat(pixels // 2, 0).repeat(pixels // 2, 1)
        Image.fromarray((quarters + rng.integers(-9, 10, size=quarters.shape)).clip(0, 255).astype(np.uint8)).save(folder / f"{image_id}.png")


def write_bert(folder: Path, width: Width, words: int) -> Path:
    """A BERT of random weights, whose pieces are the words themselves."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    total = words + len(special) if width.bert else 30522
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*special, *(word(number) for number in range(total - len(special)))]))
    torch.manual_seed(0)
    with quiet_transformers():
        BertModel(BertConfig(vocab_size=total, **width.bert)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def write_backbone(folder: Path, width: Width) -> Path:
    """A ResNet of random weights."""
    from transformers import AutoModel, ResNetConfig

    torch.manual_seed(0)
    with quiet_transformers():
        AutoModel.from_config(ResNetConfig(**width.resnet)).save_pretrained(folder)
    return folder


def write_word_vectors(path: Path, width: Width) -> Path:
    """Vectors of the first words, as word2vec's binary or, .txt, as GloVe's text."""
    rng, count = np.random.default_rng(0), 40
    vectors = rng.normal(size=(count, width.word_dim)).astype("<f4")
    if path.suffix == ".bin":
        path.write_bytes(f"{count} {width.word_dim}\n".encode() + b"".join(word(n).encode() + b" " + vectors[n].tobytes() for n in range(count)))
    else:
        path.write_text("\n".join(f"{word(n)} " + " ".join(map(str, vectors[n].tolist())) for n in range(count)))
    return path


def make_recipe(name: str, folder: Path, width: Width, batch: int, overrides: tuple[str, ...] = (), steps: int = 4) -> Recipe:
    """The recipe of that name on a world of its own in ``folder``, in which an epoch of the last stage has ``steps`` steps of ``batch``.

    Its BERT, backbone and word vectors are generated; HREM's relations take part from the second step on.
    """
    plain = load_recipe(name)
    model, data = plain.plan[-1].config, plain.paper.dataset
    units = steps * batch
    images = units if plain.method in ("camp", "dive") else -(-units // CAPTIONS)
    write_world(folder / "data", {"train": max(2, images), "val": 8, "test": 8}, data, width, model.pixels is not None)
    kinds = ["", plain.method, getattr(model, "text_encoder", "gru"), getattr(model, "image_encoder", "regions")]
    changes = [change for kind in kinds for change in width.overrides.get(kind, ())]
    if model.token_kind == "pieces":
        changes.append(f"model.bert={write_bert(folder / 'bert', width, width.words[data])}")
    if model.pixels is not None:
        changes.append(f"model.backbone={write_backbone(folder / 'backbone', width)}")
    if plain.method == "camp":
        changes.append(f"stages.pretrain.model.word_vectors={write_word_vectors(folder / 'vectors.bin', width)}")
    elif getattr(model, "word_vectors", None):
        changes.append(f"model.word_vectors={write_word_vectors(folder / 'vectors.txt', width)}")
    if plain.method == "hrem":
        changes.append("model.relation_warmup=1")
    if plain.train.precision == "fp16" and not torch.cuda.is_available():
        changes.append("train.precision=no")
    places = ["train", *(f"stages.{stage.name}.train" for stage in plain.stages)]
    epochs = 2 if plain.train.freeze_epochs else 1
    for place in places:
        changes += [f"{place}.batch_size={batch}", f"{place}.epochs={epochs}", f"{place}.eval_every=1"]
    return load_recipe(name, [*changes, *overrides], data=folder / "data")

