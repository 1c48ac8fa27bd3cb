"""A tiny model and a tiny dataset folder: what the evaluator needs of either, and no more."""

import numpy as np
import tokenizers
import torch

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.regions import RegionWriter
from itm_lib.files import write_json, write_jsonl
from itm_lib.models.base import Encoding, MatchingModel

WORDS = ["dog", "cat", "ball", "tree", "red", "blue"]
DIM = 8


class WordRegionModel(MatchingModel):
    """S = mean over words of the largest word-region product. Dropout shows whether it is in eval mode."""

    name = "word_region"

    def __init__(self, vocabulary_size: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image = torch.nn.Parameter(torch.randn(DIM, 5, generator=generator))
        self.words = torch.nn.Parameter(torch.randn(vocabulary_size, 5, generator=generator))
        self.dropout = torch.nn.Dropout(0.5)
        self.image_rows_encoded = 0
        self.blocks = []

    def encode_images(self, regions, region_mask):
        self.image_rows_encoded += len(regions)
        return Encoding(fragments=self.dropout(regions @ self.image) * region_mask[..., None], mask=region_mask)

    def encode_captions(self, tokens, token_mask):
        return Encoding(fragments=self.dropout(self.words[tokens]) * token_mask[..., None], mask=token_mask)

    def _products(self, images, captions):
        products = torch.einsum("ire,cwe->icwr", images.fragments, captions.fragments)
        return products.masked_fill(~images.mask[:, None, None, :], -torch.inf)

    def similarity(self, images, captions):
        self.blocks.append((len(images), len(captions), captions.fragments.shape[1]))
        best = self._products(images, captions).amax(-1)
        return (best * captions.mask).sum(-1) / captions.mask.sum(-1)

    def explain(self, images, captions):
        return {"attention": self._products(images, captions).softmax(-1) * captions.mask[None, :, :, None]}

    def pair_bytes(self, images, captions):
        return 4 * images.fragments.shape[1] * captions.fragments.shape[1]


class ConstantModel(WordRegionModel):
    """Every pair has the same score, every region the same attention."""

    def _products(self, images, captions):
        return 0 * super()._products(images, captions).clamp(-1, 1)


def word_pieces(*pieces):
    """A WordPiece vocabulary of ``pieces``."""
    ids = {piece: place for place, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *pieces])}
    cut = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
    cut.normalizer, cut.pre_tokenizer = tokenizers.normalizers.BertNormalizer(), tokenizers.pre_tokenizers.BertPreTokenizer()
    cut.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return WordPieces(cut.to_str(), "[UNK]", "[PAD]")


def write_regions(path, image_ids, features, boxes=None):
    """``features``: a list of (r, DIM) arrays, one an image."""
    with RegionWriter(path, image_ids, max(map(len, features)), DIM, "made") as writer:
        for row, each in enumerate(features):
            frame = np.tile([0, 0, 1, 1], (len(each), 1)).astype(np.float32) if boxes is None else boxes[row]
            writer.write(row, each, frame)


def make_folder(folder, seed=0, images=7, truth=True):
    """A dataset of three splits; image k has k % 3 + 1 captions of 1 to 6 words and 2 to 4 regions."""
    rng = np.random.default_rng(seed)
    rows, splits = [], {}
    for split in ("train", "val", "test"):
        splits[split] = [f"{split}{number}" for number in range(images)]
        write_regions(folder / "regions" / f"{split}.h5", splits[split],
                      [rng.normal(size=(rng.integers(2, 5), DIM)).astype(np.float32) for _ in range(images)])
        own = [(image_id, number) for k, image_id in enumerate(splits[split]) for number in range(k % 3 + 1)]
        rng.shuffle(own)  # captions of an image need not be neighbours
        rows += [{"caption_id": f"{image_id}-{number}", "image_id": image_id, "split": split,
                  "text": " ".join(rng.choice(WORDS, rng.integers(1, 7)))} for image_id, number in own]
        if truth:
            write_json(folder / "truth" / f"{split}.json", {
                row["caption_id"]: sorted({row["image_id"], *rng.choice(splits[split], 1).tolist()})
                for row in rows if row["split"] == split})
    write_jsonl(folder / "captions.jsonl", rows)
    write_json(folder / "splits.json", splits)
    Vocabulary.build(WORDS).save(folder / "vocabulary.json")
    return folder
