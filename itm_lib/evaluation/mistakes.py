"""Wrong first answers sorted by kind: what does the caption say that nobody said of the photograph?

A wrong answer pairs a photograph with a caption that was written for another one. The words of this caption are compared with the words of all
captions that were written for the photograph. The first kind that applies counts:

==========  ========================================================================================================
kind        the caption has a word of this group that no caption of the photograph has
==========  ========================================================================================================
subject     who or what it is about: man, girl, dog, people ...
action      what happens: run, jump, play ..., and other words in -ing that are no nouns
number      how many: two, three, group ...
colour      red, black ...
setting     any other content word
none        nothing: every content word of the caption was said of the photograph, too
==========  ========================================================================================================

"None" is the closest that words come to a false negative. The lists are short and English. Plurals count as their singulars, "dog's" as "dog", and
"runs", "run" and "running" as one word. Words with the same meaning ("couch", "sofa") are different words here, so the kinds are rough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from itm_lib.data.captions import Tokenizer
from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.evaluation.ranking import score_array

KINDS = ("subject", "action", "number", "colour", "setting", "none")
SUBJECTS = frozenset("""man woman boy girl child baby toddler people person crowd player team dog puppy cat horse bird cow sheep adult teenager
    couple family biker cyclist skier snowboarder surfer skateboarder climber hiker swimmer runner rider driver""".split())
ACTIONS = frozenset("""run jump play walk ride climb swim catch throw kick hit leap fly fall smile laugh talk sing dance eat drink read sleep lie lay chase fight bite
    carry pull push dig splash slide surf skate snowboard skateboard hike kiss hug wave pose perform crawl roll bounce dive float paddle sail drive tackle
    swing spin shake fetch lick bark wrestle compete practice celebrate cheer clap watch wait rest relax lean kneel bend reach stretch turn flip try hang
    race ski jog gather share chew sniff""".split())
COLOURS = frozenset("black white red blue green yellow brown orange pink purple tan grey blond dark golden".split())
NUMBERS = frozenset("one two three four five six seven eight nine ten several many group couple pair single both multiple".split())
NOUNS_IN_ING = frozenset("""building clothing railing ceiling evening morning spring string king ring wing thing something anything nothing everything swing
    parking lightning painting wedding earring""".split())
PLURALS = {"men": "man", "women": "woman", "children": "child", "people": "person", "babies": "baby", "puppies": "puppy", "ladies": "woman"}
FUNCTION_WORDS = frozenset("""a an the and or of in on at by with to from for as is are was be has have having being its it his her their they he she
    him them this that these those there here while who which what where when into onto over under up down out off through near next beside behind front
    around along across against between above below after before during about some other another each one's very just not no something someone s t
    wearing wear wears holding hold holds standing stand stands sitting sit sits looking look looks getting get gets making make makes taking take takes using use
    uses doing do does going go goes""".split())
SAME = {"gray": "grey", "blonde": "blond", "kid": "child", "guy": "man", "lady": "woman"}


def content_words(text: str) -> set[str]:
    """The words of a caption that say something of the picture, plurals as singulars.

    >>> sorted(content_words("Two dogs are running on the grass beside a man 's bike ."))
    ['bike', 'dog', 'grass', 'man', 'run', 'two']
    """
    words = (_base(word) for word in Tokenizer()(text) if word not in FUNCTION_WORDS)
    return {SAME.get(word, word) for word in words if word not in FUNCTION_WORDS}


def _base(word: str) -> str:
    """The word without a possessive, as a singular, or as the stem of an action."""
    for possessive in ("'s", "’s"):
        word = word.removesuffix(possessive)
    if word in PLURALS:
        return PLURALS[word]
    if word.endswith("ing") and len(word) > 4 and word not in NOUNS_IN_ING:
        stem = word[:-3]
        stems = (stem, f"{stem}e", stem[:-1] if stem[-1:] == stem[-2:-1] else stem, f"{stem[:-1]}ie")  # jumping, riding, running, lying
        return next((each for each in stems if each in ACTIONS), word)
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes")):
        return word[:-2]
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word


def group_of(word: str) -> str:
    """The group of a content word, as :func:`content_words` gives it: subject, action, number, colour or setting."""
    for name, words in (("subject", SUBJECTS), ("number", NUMBERS), ("colour", COLOURS), ("action", ACTIONS)):
        if word in words:
            return name
    return "action" if word.endswith("ing") and len(word) > 4 and word not in NOUNS_IN_ING else "setting"


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
