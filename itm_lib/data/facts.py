"""What a dataset is like, in numbers: how long captions are, how many words there are, how much captions of one picture share.

The numbers of Flickr8k stand in data/flickr8k_facts.json, so that the course can lay them beside those of its drawings:

    itm data facts data/flickr8k --out data/flickr8k_facts.json
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itm_lib.data.captions import Tokenizer
from itm_lib.data.dataset import ImageCaptionDataset, open_split, read_meta

MIN_COUNTS = (1, 2, 4)
PAIRS = 10_000  # of captions that are compared


def dataset_facts(folder: str | Path, seed: int = 0) -> dict[str, Any]:
    """Facts of the dataset ``folder``, of its train and val splits; test is not opened.

    ``caption_length`` {words: captions}; ``word_ranks`` {rank: times}, of ranks 1, 2, 4, ...; ``vocabulary`` {min-count: {"words", "training" and "val":
    percent of a split's words that are <unk>}}; ``shared_words``: see :func:`shared_words`; ``regions``: of a picture, the least and the most, and their dimension.
    """
    train, val = open_split(folder, "train"), open_split(folder, "val")
    texts = [[Tokenizer()(text) for text in split.texts] for split in (train, val)]
    counts = Counter(word for words in texts[0] for word in words)
    common = counts.most_common()
    vocabulary = {}
    for least in MIN_COUNTS:
        known = {word for word, count in common if count >= least}
        unknown = [100 * sum(word not in known for words in part for word in words) / sum(map(len, part)) for part in texts]
        vocabulary[str(least)] = {"words": len(known), "training": round(unknown[0], 3), "val": round(unknown[1], 3)}
    return {
        "name": read_meta(folder).get("name", Path(folder).name),
        "pictures": {"train": train.num_images, "val": val.num_images}, "captions": {"train": train.num_captions, "val": val.num_captions},
        "caption_length": {str(length): number for length, number in sorted(Counter(map(len, texts[0])).items())},
        "words": len(common), "words_once": sum(count == 1 for _, count in common),
        "word_ranks": {str(2**power): common[2**power - 1][1] for power in range(len(common).bit_length())},
        "vocabulary": vocabulary,
        "shared_words": {name: None if value is None else round(value, 2) for name, value in shared_words(train, [set(words) for words in texts[0]], seed).items()},
        "regions": {"least": int(train.regions.num_regions.min()), "most": int(train.regions.num_regions.max()), "dim": train.regions.dim},
    }


def shared_words(dataset: ImageCaptionDataset, words: Sequence[set[str]], seed: int = 0) -> dict[str, float | None]:
    """Of all different words of two captions the percentage that stands in both, the mean over pairs of one picture ("own") and of two ("others").

    None where there are no such pairs: "own", if every picture has one caption.
    """
    rng = random.Random(seed)
    several = [captions for captions in dataset.captions_of_image if len(captions) > 1]
    own = [rng.sample(list(rng.choice(several)), 2) for _ in range(PAIRS)] if several else []
    others = [rng.sample(range(len(words)), 2) for _ in range(PAIRS)]
    others = [(one, other) for one, other in others if dataset.caption_to_image[one] != dataset.caption_to_image[other]]
    share = lambda one, other: 100 * len(words[one] & words[other]) / max(1, len(words[one] | words[other]))  # noqa: E731
    mean = lambda pairs: sum(share(*pair) for pair in pairs) / len(pairs) if pairs else None  # noqa: E731
    return {"own": mean(own), "others": mean(others)}
