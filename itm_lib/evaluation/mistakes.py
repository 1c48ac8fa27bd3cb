"""Wrong first answers sorted by kind: what does the caption say that nobody said of the photograph?

A wrong answer pairs a photograph with a caption that was written for another one. The caption's words are held against the words of all
captions that were written for the photograph. The first kind that applies counts:

==========  ========================================================================================================
kind        the caption has a word of this group that no caption of the photograph has
==========  ========================================================================================================
subject     who or what it is about: man, girl, dog, people ...
action      what happens: words that end in -ing, as captions put it (running, jumping)
number      how many: two, three, group ...
colour      red, black ...
setting     any other content word
none        nothing: every content word of the caption was said of the photograph, too
==========  ========================================================================================================

"None" is the closest that words come to a false negative. The lists are short and English; plurals count as their singulars.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from itm_lib.data.captions import Tokenizer
from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.evaluation.ranking import score_array

KINDS = ("subject", "action", "number", "colour", "setting", "none")
SUBJECTS = frozenset("""man woman boy girl child kid baby toddler people person guy lady crowd player team dog puppy cat horse bird cow sheep adult teenager
    couple family biker cyclist skier snowboarder surfer skateboarder climber hiker swimmer runner rider driver child's man's woman's dog's""".split())
COLOURS = frozenset("black white red blue green yellow brown orange pink purple tan grey gray blond blonde dark golden".split())
NUMBERS = frozenset("one two three four five six seven eight nine ten several many group couple pair single both multiple".split())
PLURALS = {"men": "man", "women": "woman", "children": "child", "people": "person", "babies": "baby", "puppies": "puppy", "ladies": "lady"}
FUNCTION_WORDS = frozenset("""a an the and or of in on at by with to from for as is are was be has have having being its it his her their they he she
    him them this that these those there here while who which what where when into onto over under up down out off through near next beside behind front
    around along across against between above below after before during about some other another each one's very just not no something someone
    wearing holding standing sitting looking getting making taking using doing going""".split())
SAME = {"gray": "grey", "blonde": "blond", "kid": "child", "guy": "man", "lady": "woman"}


def content_words(text: str) -> set[str]:
    """The words of a caption that say something of the picture, plurals as singulars.

    >>> sorted(content_words("Two dogs are running on the grass ."))
    ['dog', 'grass', 'running', 'two']
    """
    words = (_singular(word) for word in Tokenizer()(text) if word not in FUNCTION_WORDS)
    return {SAME.get(word, word) for word in words}


def _singular(word: str) -> str:
    if word in PLURALS:
        return PLURALS[word]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def group_of(word: str) -> str:
    """The group of a content word: subject, action, number, colour or setting."""
    for name, words in (("subject", SUBJECTS), ("number", NUMBERS), ("colour", COLOURS)):
        if word in words:
            return name
    return "action" if word.endswith("ing") and len(word) > 4 else "setting"


def kind_of_mistake(caption: str, said: Sequence[str]) -> str:
    """The kind of a wrong pair: of ``caption`` with a photograph of which people ``said`` these captions.

    >>> kind_of_mistake("A black dog runs .", ["A brown dog is running .", "The dog runs ."])
    'colour'
    """
    known = set().union(*map(content_words, said)) if said else set()
    lacking = {group_of(word) for word in content_words(caption) - known}
    return next(kind for kind in KINDS if kind in lacking or kind == "none")


def mistake_metrics(scores: Tensor | np.ndarray, dataset: ImageCaptionDataset) -> dict[str, float]:
    """The wrong first answers of ``scores`` (I, C) by kind: ``mistake_<i2t|t2i>_<kind>``, in percent of the queries.

    The kinds of a direction add up to 100 - R@1, but for queries that equal scores decide.
    """
    values = score_array(scores)
    owner = np.asarray(dataset.caption_to_image)
    first = {"i2t": [(row, int(column)) for row, column in enumerate(values.argmax(1)) if dataset.captions_of_image[row]],
             "t2i": [(int(row), column) for column, row in enumerate(values.argmax(0))]}
    words = [content_words(text) for text in dataset.texts]
    known = [set().union(*(words[caption] for caption in captions)) if captions else set() for captions in dataset.captions_of_image]
    result = {}
    for way, pairs in first.items():
        counts = dict.fromkeys(KINDS, 0)
        for row, column in pairs:
            if owner[column] != row:
                lacking = {group_of(word) for word in words[column] - known[row]}
                counts[next(kind for kind in KINDS if kind in lacking or kind == "none")] += 1
        result.update({f"mistake_{way}_{kind}": 100 * count / len(pairs) for kind, count in counts.items()})
    return result
