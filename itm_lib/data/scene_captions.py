"""Captions of scenes: a set of facts, the sentence that tells them, and the exact scenes that they are true of.

What a caption means
--------------------
"a dog" holds of a scene with at least one dog, "two dogs" with at least two. Things named apart are different objects, so
"a red car and a car" needs two. A noun and its synonyms mean the same; a wider word (``animal``, ``vehicle``) holds of every
member. "small" and "large" are the drawn sizes; a colour is the painted one, or one of ``looks`` on a drawing that is never
painted. A relation holds of some pair of the objects that fit (:func:`holds`); captions state it only where it is plain
(``plain=True``, a tighter bound), so that nobody would dispute it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from itm_lib.data.captions import Tokenizer
from itm_lib.data.scene_pictures import (
    BACKGROUNDS,
    HYPERNYMS,
    NOUNS,
    Scene,
    SceneObject,
    VariantSettings,
    choose,
    choose_weighted,
    shuffled,
)

COUNT_WORDS = {2: "two", 3: "three"}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "next to": ("next to", "beside"),
}
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PLACES = {  # where things are; the pair's second word opens "... with a dog"
    "meadow": (("in a meadow", "on the grass", "in a green field"), ("a meadow", "a green field")),
    "beach": (("on the beach", "on the sand"), ("a beach", "a sandy beach")),
    "sea": (("in the sea", "in the water"), ("the sea",)),
    "night": (("at night", "in the dark"), ("a night scene",)),
    "snow": (("in the snow", "on the snow"), ("a snowy field",)),
    "room": (("in a room", "inside a room"), ("a room",)),
    "table": (("on a table", "on a wooden table"), ("a table", "a wooden table")),
    "street": (("on a street", "on the road"), ("a street", "a road")),
}
_MISREAD = {("big", "cat")}  # size words that mean something else before a noun: a big cat may be a tiger
_NOUN = re.compile("\x02(\\d+)\x03(.*?)\x04")  # marks a noun in a sentence until its place is known


@cache
def term_nouns() -> dict[str, frozenset[str]]:
    """For every singular word of a caption, the nouns that it is true of."""
    members: dict[str, set[str]] = {}
    for noun in NOUNS.values():
        for word in (*(form[0] for form in noun.forms), *noun.hypernyms):
            members.setdefault(word, set()).add(noun.noun)
    for noun in NOUNS.values():  # a taxi is a car, so it is an automobile too
        for singular, _ in noun.forms:
            members[singular] |= members.get(noun.forms[0][0], set())
    return {word: frozenset(nouns) for word, nouns in members.items()}


@dataclass(frozen=True)
class Phrase:
    """One thing of a caption: ``count`` objects of a word (singular, plural), with a size and a colour or without."""

    form: tuple[str, str]
    count: int
    size: str | None
    size_word: str | None
    colour: str | None
    objects: tuple[int, ...]  # the objects of the scene that it was said of

    @property
    def nouns(self) -> frozenset[str]:
        return term_nouns()[self.form[0]]

    def text(self, number: int) -> str:
        """The noun phrase, its noun between marks: "two small red cars", "a pair of big red socks", "a big bunch of red grapes"."""
        head, _, noun = self.form[self.count > 1].rpartition("|")
        order = (head, self.size_word, self.colour) if head.startswith("pair") else (self.size_word, head, self.colour)
        words = " ".join([*(word.strip() for word in order if word), f"\x02{number}\x03{noun}\x04"])
        first = COUNT_WORDS[self.count] if self.count > 1 else article(_NOUN.sub(r"\2", words))
        return f"{first} {words}"


@dataclass(frozen=True)
class Caption:
    """Facts and the choice of words. ``relation`` is between the first and the second phrase."""

    phrases: tuple[Phrase, ...]
    relation: str | None
    relation_words: str | None
    background: str | None
    place_words: str | None
    template: str

    def facts(self) -> dict[str, Any]:
        """What the caption says, as JSON."""
        things = [
            {"term": p.form[0].replace("|", ""), "count": p.count, "size": p.size, "colour": p.colour} for p in self.phrases
        ]
        return {"things": things, "relation": self.relation, "background": self.background}

    def key(self) -> tuple:
        """Equal for captions that say the same in other words."""
        # nouns in order: equal sets may print in different orders, which the hashes of strings, new in every process, decide
        things = [(tuple(sorted(p.nouns)), p.count, p.size, p.colour) for p in self.phrases]
        return tuple(things if self.relation else sorted(things, key=str)), self.relation, self.background

    def tell(self) -> tuple[str, list[dict[str, Any]]]:
        """The sentence, and its mentions: where each noun stands (``start``, ``end``) and the objects it refers to."""
        marked = TEMPLATES[self.template](self, [phrase.text(number) for number, phrase in enumerate(self.phrases)])
        marked = marked[0].upper() + marked[1:] + "."
        text, mentions, last = "", [], 0
        for match in _NOUN.finditer(marked):
            text += marked[last : match.start()]
            objects = list(self.phrases[int(match[1])].objects)
            mentions.append({"start": len(text), "end": len(text) + len(match[2]), "objects": objects})
            text, last = text + match[2], match.end()
        return text + marked[last:], mentions

    @property
    def text(self) -> str:
        return self.tell()[0]


def words(caption: Caption) -> list[str]:
    """The caption's words, as the tokenizer cuts them."""
    return Tokenizer()(caption.text)


def article(words: str) -> str:
    """``a`` or ``an``, by the sound of the first word: an orange, an hourglass."""
    return "an" if words[0].lower() in "aeio" or words.startswith(("umbrella", "hourglass")) else "a"


def colours_of(item: SceneObject) -> tuple[str, ...]:
    """The colours that a person would call ``item``: its paint, or the looks of a drawing that is never painted."""
    return (item.colour,) if item.colour is not None else NOUNS[item.noun].looks


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def _be(caption: Caption, phrases: int) -> str:
    """The verb for the first ``phrases`` things named before it."""
    return "are" if phrases > 1 or caption.phrases[0].count > 1 else "is"


def _after(caption: Caption) -> str:
    return f" {caption.place_words}" if caption.background else ""


def _related(caption: Caption, texts: Sequence[str], verb: str = "") -> str:
    """"a dog (is) next to a car on the beach, with a tree"."""
    place = "" if caption.template.startswith("place") else _after(caption)
    rest = f", with {_listed(texts[2:])}" if len(texts) > 2 else ""
    return f"{texts[0]}{verb} {caption.relation_words} {texts[1]}{place}{rest}"


# The name says what a template needs: "place" a background, "relation" a relation, "with" two things.
TEMPLATES = {
    "list": lambda c, t: f"{_listed(t)}{_after(c)}",
    "there": lambda c, t: f"there {_be(c, 1)} {_listed(t)}{_after(c)}",
    "picture": lambda c, t: f"a picture of {_listed(t)}{_after(c)}",
    "with": lambda c, t: f"{t[0]} with {_listed(t[1:])}{_after(c)}",
    "place there": lambda c, t: f"{c.place_words}, there {_be(c, 1)} {_listed(t)}",
    "place with": lambda c, t: f"{c.place_words} with {_listed(t)}",
    "place be": lambda c, t: f"{_listed(t)} {_be(c, len(t))} {c.place_words}",
    "relation": lambda c, t: _related(c, t),
    "relation be": lambda c, t: _related(c, t, " is"),
    "relation there": lambda c, t: f"there is {_related(c, t)}",
    "place relation": lambda c, t: f"{c.place_words}, {_related(c, t, ' is')}",
}
_TEMPLATE_WEIGHTS = {"list": 3.0, "place with": 0.7, "place be": 0.8, "place there": 0.7, "picture": 0.6}


def _templates(count: int, relation: bool, background: str | None) -> list[str]:
    """The templates that can tell so many things, with or without a relation and a background."""
    def suits(name: str) -> bool:
        if ("relation" in name) != relation or (name.startswith("place") and background is None):
            return False
        return (name != "with" or count > 1) and (name != "place be" or background != "night")

    return [name for name in TEMPLATES if suits(name)]


def gap(first: SceneObject, second: SceneObject) -> float:
    """The distance of two boxes, as a share of the picture's side; 0 where they touch."""
    across = max(0.0, first.box[0] - second.box[2], second.box[0] - first.box[2])
    upright = max(0.0, first.box[1] - second.box[3], second.box[1] - first.box[3])
    return (across**2 + upright**2) ** 0.5


def holds(relation: str, first: SceneObject, second: SceneObject, plain: bool = False) -> bool:
    """Whether ``first`` is ``relation`` ``second``, from their boxes.

    left of: the boxes do not overlap sideways, and the centres differ at least half as much sideways as in height
    (``plain``: at least as much). Above and below likewise. next to: the gap between the boxes is at most 0.09 of the
    picture's side (``plain``: 0.055).
    """
    if relation in ("right of", "below"):
        return holds(OPPOSITE[relation], second, first, plain)
    sideways, upright = abs(first.centre[0] - second.centre[0]), abs(first.centre[1] - second.centre[1])
    slope = 1.0 if plain else 0.5
    if relation == "left of":
        return first.box[2] <= second.box[0] and sideways >= slope * upright
    if relation == "above":
        return first.box[3] <= second.box[1] and upright >= slope * sideways
    return gap(first, second) <= (0.055 if plain else 0.09)


class SceneIndex:
    """Finds the scenes that a caption is true of, exactly.

    Per scene and word, colour or size there is one byte: bit k says that object k fits. Scenes with too few fitting objects
    fall out by array operations; the few that are left are searched for distinct objects and the relation.
    """

    def __init__(self, scenes: Sequence[Scene]):
        self.scenes = list(scenes)
        self._backgrounds = np.array([scene.background for scene in self.scenes])
        self._bits: dict[str, np.ndarray] = {}  # of nouns, sizes and colours: no word is two of these
        for row, scene in enumerate(self.scenes):
            for number, item in enumerate(scene.objects):
                for word in (item.noun, item.size, *colours_of(item)):
                    self._of(word)[row] |= 1 << number
        self._terms: dict[str, np.ndarray] = {}

    def _of(self, word: str) -> np.ndarray:
        return self._bits.setdefault(word, np.zeros(len(self.scenes), dtype=np.uint8))

    def _phrase_bits(self, phrase: Phrase) -> np.ndarray:
        word = phrase.form[0]
        if word not in self._terms:
            self._terms[word] = np.bitwise_or.reduce([self._of(noun) for noun in sorted(phrase.nouns)])
        bits = self._terms[word]
        if phrase.size:
            bits = bits & self._of(phrase.size)
        return bits & self._of(phrase.colour) if phrase.colour else bits

    def true_of(self, caption: Caption) -> list[int]:
        """Rows of the scenes that ``caption`` is true of, rising."""
        bits = [self._phrase_bits(phrase) for phrase in caption.phrases]
        possible = np.ones(len(self.scenes), dtype=bool)
        if caption.background:
            possible &= self._backgrounds == caption.background
        for phrase, mask in zip(caption.phrases, bits):
            possible &= (mask > 0) if phrase.count == 1 else (_POPCOUNT[mask] >= phrase.count)
        rows = np.flatnonzero(possible).tolist()
        return [row for row in rows if self._assignable(row, caption, [int(mask[row]) for mask in bits])]

    def _assignable(self, row: int, caption: Caption, masks: list[int]) -> bool:
        slots = [mask for mask, phrase in zip(masks, caption.phrases) for _ in range(phrase.count)]
        objects = self.scenes[row].objects

        def search(chosen: list[int]) -> bool:
            if caption.relation and len(chosen) == 2 and not holds(caption.relation, *(objects[k] for k in chosen)):
                return False
            if len(chosen) == len(slots):
                return True
            free = (k for k in range(len(objects)) if slots[len(chosen)] >> k & 1 and k not in chosen)
            return any(search([*chosen, k]) for k in free)

        return search([])


_POPCOUNT = np.array([value.bit_count() for value in range(256)], dtype=np.uint8)


def is_true(caption: Caption, scene: Scene) -> bool:
    """Whether ``caption`` is true of ``scene``."""
    return bool(SceneIndex([scene]).true_of(caption))


def _units(rng: random.Random, scene: Scene, settings: VariantSettings) -> list[tuple[int, ...]]:
    """The things of a scene in random order: single objects, or two or three of one kind that are counted together."""
    objects = scene.objects
    by_noun: dict[str, list[int]] = {}
    for number, item in enumerate(objects):
        by_noun.setdefault(item.noun, []).append(number)
    units: list[tuple[int, ...]] = []
    for numbers in by_noun.values():
        together = len(numbers) > 1 and rng.random() < settings.plural
        units += [tuple(numbers)] if together else [(number,) for number in numbers]
    if rng.random() < settings.hypernym:
        wider = sorted({word for o in objects for word in NOUNS[o.noun].hypernyms if word in HYPERNYMS})
        word = choose(rng, wider) if wider else ""
        members = tuple(k for k, o in enumerate(objects) if word in NOUNS[o.noun].hypernyms)
        if len(members) in COUNT_WORDS:
            units = [unit for unit in units if not set(unit) & set(members)] + [members]
    return shuffled(rng, units)


def _word_for(rng: random.Random, scene: Scene, unit: tuple[int, ...], settings: VariantSettings) -> tuple[str, str]:
    """The (singular, plural) word for a unit: its noun, a synonym or a wider word."""
    nouns = sorted({scene.objects[number].noun for number in unit})
    shared = [w for w in NOUNS[nouns[0]].hypernyms if w in HYPERNYMS and all(w in NOUNS[n].hypernyms for n in nouns)]
    if len(nouns) > 1 or (shared and rng.random() < settings.hypernym):
        word = choose(rng, shared)
        return word, HYPERNYMS[word]
    forms = NOUNS[nouns[0]].forms
    return choose(rng, forms[1:]) if len(forms) > 1 and rng.random() < settings.synonym else forms[0]


def _phrase(rng: random.Random, scene: Scene, unit: tuple[int, ...], settings: VariantSettings) -> Phrase:
    items = [scene.objects[number] for number in unit]
    form = _word_for(rng, scene, unit, settings)
    colours, sizes = {item.colour for item in items}, {item.size for item in items}
    colour = items[0].colour if len(colours) == 1 and rng.random() < settings.colour else None
    size = items[0].size if len(sizes) == 1 and rng.random() < settings.size and items[0].size in SIZE_WORDS else None
    size_words = [word for word in SIZE_WORDS[size] if (word, form[0]) not in _MISREAD] if size else [None]
    return Phrase(form, len(unit), size, choose(rng, size_words), colour, unit)


def _plain_relations(scene: Scene, units: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], str, tuple[int, ...]]]:
    singles = [unit for unit in units if len(unit) == 1]
    for first in singles:
        for second in singles:
            for relation in RELATION_WORDS:
                if first != second and holds(relation, scene.objects[first[0]], scene.objects[second[0]], plain=True):
                    yield first, relation, second


def told_apart(phrases: Sequence[Phrase]) -> bool:
    """Phrases that could mean the same object must differ in a stated colour or size, or they read oddly."""
    for number, first in enumerate(phrases):
        for second in phrases[number + 1 :]:
            colours, sizes = {first.colour, second.colour}, {first.size, second.size}
            differ = (len(colours) == 2 and None not in colours) or (len(sizes) == 2 and None not in sizes)
            if first.nouns & second.nouns and not differ:
                return False
    return True


def sample_caption(rng: random.Random, scene: Scene, settings: VariantSettings) -> Caption | None:
    """A random caption that is true of ``scene``, or None where the draw reads badly (draw again)."""
    units = _units(rng, scene, settings)
    numbers = range(1, min(len(settings.things), len(units)) + 1)
    units = units[: choose_weighted(rng, numbers, settings.things[: len(numbers)])]
    relation = None
    if rng.random() < settings.relation:
        found = list(_plain_relations(scene, units))
        kinds = sorted({kind for _, kind, _ in found})
        if kinds:
            kind = choose(rng, kinds)
            first, relation, second = choose(rng, [item for item in found if item[1] == kind])
            units = [first, second, *(unit for unit in units if unit not in (first, second))]
    phrases = tuple(_phrase(rng, scene, unit, settings) for unit in units)
    if not told_apart(phrases):
        return None
    background = scene.background if rng.random() < settings.background else None
    templates = _templates(len(phrases), relation is not None, background)
    template = choose_weighted(rng, templates, [_TEMPLATE_WEIGHTS.get(name, 1.0) for name in templates])
    words = choose(rng, RELATION_WORDS[relation]) if relation else None
    place = choose(rng, PLACES[background][template == "place with"]) if background else None
    return Caption(phrases, relation, words, background, place, template)


def sample_captions(
    rng: random.Random, scene: Scene, settings: VariantSettings, index: SceneIndex, count: int = 5
) -> list[tuple[Caption, list[int]]]:
    """``count`` captions that say different things of ``scene``, each with the rows of ``index`` that it is true of.

    A caption that is true of more than ``settings.share`` of the scenes (at least 4) is drawn again, after many draws with
    more attributes and things, so that every scene gets its captions.
    """
    limit = max(4, int(settings.share * len(index.scenes)))
    kept: dict[tuple, tuple[Caption, list[int]]] = {}
    for draw in range(1000):
        fuller = replace(settings, colour=1.0, size=1.0, background=0.9, relation=0.8) if draw > 200 else settings
        caption = sample_caption(rng, scene, fuller)
        if caption is None or caption.key() in kept:
            continue
        rows = index.true_of(caption)
        if len(rows) <= limit:
            kept[caption.key()] = caption, rows
            if len(kept) == count:
                return list(kept.values())
    raise AssertionError(f"scene {scene.image_id} allows no {count} captions; this is a fault of the generator")


assert set(PLACES) == set(BACKGROUNDS)
