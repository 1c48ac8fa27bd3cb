"""Foils: hard negatives with one object, attribute or relation changed, in the caption or in the picture.

Side "caption": the caption is true of the picture, the foil caption, one word away, is false of it. Side "picture": the same
scene with one object replaced, recoloured, resized or moved is a picture of its own, and the caption is false of that.
Every foil is checked with the exact truth of scene_captions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from itm_lib.data.captions import Vocabulary
from itm_lib.data.scene_captions import (
    OPPOSITE,
    SIZE_WORDS,
    Caption,
    Phrase,
    gap,
    holds,
    is_true,
    sample_caption,
    told_apart,
)
from itm_lib.data.scene_captions import words as words_of
from itm_lib.data.scene_pictures import (
    CANVAS,
    COLOURS,
    NOUNS,
    Scene,
    SceneObject,
    VariantSettings,
    draw_colour,
    drawn_size,
    is_free,
    object_at,
    place,
    shuffled,
    with_object,
)

FOIL_KINDS = ("object", "attribute", "relation")
FAR = 0.2  # things this far apart, of the picture's side, are plainly not next to each other


@dataclass(frozen=True)
class Foil:
    """A caption true of the picture, with the caption (side "caption") or the scene (side "picture") that breaks it.

    ``caption_number`` is the caption's place among the picture's own, or None for a caption made for this foil.
    """

    kind: str
    caption: Caption
    caption_number: int | None
    foil_caption: Caption | None = None
    foil_scene: Scene | None = None


class FoilMaker:
    """Makes the foils of one split's scenes with words of the training ``vocabulary`` and ``nouns`` of the variant."""

    def __init__(self, settings: VariantSettings, nouns: Sequence[str], vocabulary: Vocabulary):
        self.nouns, self.vocabulary = tuple(nouns), vocabulary
        self.settings = settings
        self._forced = {
            "object": settings,
            "attribute": replace(settings, colour=1.0, size=1.0),
            "relation": replace(settings, relation=1.0, things=(0.0, 0.8, 0.2)),
        }

    def make(self, rng: random.Random, scene: Scene, captions: Sequence[Caption]) -> list[Foil]:
        """The foils of ``scene``: one a kind and side, where there is one. The scene's own captions are tried first."""
        foils = []
        for kind in FOIL_KINDS:
            for side in (self._caption_side, self._picture_side):
                candidates = self._candidates(rng, kind, scene, captions)
                foil = next((foil for number, caption in candidates if (foil := side(rng, kind, scene, number, caption))), None)
                if foil is not None:
                    foils.append(foil)
        return foils

    def _candidates(
        self, rng: random.Random, kind: str, scene: Scene, captions: Sequence[Caption]
    ) -> Iterator[tuple[int | None, Caption]]:
        for number in shuffled(rng, range(len(captions))):
            yield number, captions[number]
        for _ in range(40):
            caption = sample_caption(rng, scene, self._forced[kind])
            if caption is not None and self._known(caption):
                yield None, caption

    def _known(self, caption: Caption) -> bool:
        return all(word in self.vocabulary for word in words_of(caption))

    def _caption_side(
        self, rng: random.Random, kind: str, scene: Scene, number: int | None, caption: Caption
    ) -> Foil | None:
        changes: dict[str, Callable] = {
            "object": self._other_nouns, "attribute": self._other_attributes, "relation": self._other_relations,
        }
        for changed in changes[kind](rng, scene, caption):
            if self._known(changed) and told_apart(changed.phrases) and not is_true(changed, scene):
                return Foil(kind, caption, number, foil_caption=changed)
        return None

    def _picture_side(
        self, rng: random.Random, kind: str, scene: Scene, number: int | None, caption: Caption
    ) -> Foil | None:
        changes: dict[str, Callable] = {
            "object": self._other_objects, "attribute": self._other_paint, "relation": self._other_places,
        }
        for changed in changes[kind](rng, scene, caption):
            if not is_true(caption, changed):
                return Foil(kind, caption, number, foil_scene=changed)
        return None

    def _replacements(self, rng: random.Random, scene: Scene, noun: str, colourable: bool) -> list[str]:
        """Nouns that the scene does not show, of ``noun``'s own kind first, a few."""
        shown = {item.noun for item in scene.objects}
        free = [n for n in self.nouns if n not in shown and (NOUNS[n].colourable or not colourable)]
        kin = [n for n in free if set(NOUNS[n].hypernyms) & set(NOUNS[noun].hypernyms)]
        return shuffled(rng, kin)[:6] + shuffled(rng, free)[:6]

    def _other_nouns(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Caption]:
        for phrase in shuffled(rng, caption.phrases):
            noun = scene.objects[phrase.objects[0]].noun
            for other in self._replacements(rng, scene, noun, phrase.colour is not None):
                yield _with_phrase(caption, phrase, replace(phrase, form=NOUNS[other].forms[0]))

    def _other_attributes(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Caption]:
        for phrase in shuffled(rng, caption.phrases):
            changed = [replace(phrase, colour=c) for c in shuffled(rng, tuple(COLOURS)) if phrase.colour not in (None, c)]
            if phrase.size:
                other = "large" if phrase.size == "small" else "small"
                changed.append(replace(phrase, size=other, size_word=SIZE_WORDS[other][0]))
            yield from (_with_phrase(caption, phrase, other) for other in shuffled(rng, changed))

    def _other_relations(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Caption]:
        if caption.relation in OPPOSITE:
            other = OPPOSITE[caption.relation]
            yield replace(caption, relation=other, relation_words=_opposite_words(caption.relation_words))

    def _other_objects(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Scene]:
        for number in shuffled(rng, [number for phrase in caption.phrases for number in phrase.objects]):
            item = scene.objects[number]
            for other in self._replacements(rng, scene, item.noun, item.colour is not None):
                colour = item.colour if NOUNS[other].colourable and item.colour else draw_colour(rng, other)
                yield from _replaced(scene, number, _at_centre(other, colour, item.size, item))

    def _other_paint(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Scene]:
        for phrase in shuffled(rng, caption.phrases):
            for number in phrase.objects:
                item = scene.objects[number]
                changed = [
                    _at_centre(item.noun, colour, item.size, item)
                    for colour in shuffled(rng, tuple(COLOURS))
                    if phrase.colour not in (None, colour)
                ]
                if phrase.size:
                    changed.append(_at_centre(item.noun, item.colour, "large" if phrase.size == "small" else "small", item))
                for other in shuffled(rng, changed):
                    yield from _replaced(scene, number, other)

    def _other_places(self, rng: random.Random, scene: Scene, caption: Caption) -> Iterator[Scene]:
        if caption.relation is None:
            return
        first, second = (phrase.objects[0] for phrase in caption.phrases[:2])
        a, b = scene.objects[first], scene.objects[second]
        rest = [item for number, item in enumerate(scene.objects) if number not in (first, second)]
        new_a, new_b = _at_centre(a.noun, a.colour, a.size, b), _at_centre(b.noun, b.colour, b.size, a)
        if caption.relation in OPPOSITE and is_free(new_a, rest) and is_free(new_b, [*rest, new_a]):
            swapped = with_object(with_object(scene, first, new_a, scene.image_id), second, new_b, scene.image_id)
            if holds(OPPOSITE[caption.relation], new_a, new_b, plain=True):
                yield swapped
        for number, item, fixed in ((first, a, b), (second, b, a)):
            for _ in range(30):
                moved = place(rng, item.noun, item.colour, item.size, [*rest, fixed], tries=20)
                pair = (moved, fixed) if number == first else (fixed, moved)
                if moved is not None and _breaks(caption.relation, *pair):
                    yield with_object(scene, number, moved, scene.image_id)


def _opposite_words(words: str) -> str:
    """The relation's words turned round: "to the left of" -> "to the right of", "over" -> "below"."""
    for old, new in (("left", "right"), ("right", "left")):
        if old in words:
            return words.replace(old, new)
    return {"above": "below", "over": "under", "below": "above", "under": "over", "beneath": "above"}[words]


def _breaks(relation: str, first: SceneObject, second: SceneObject) -> bool:
    """Whether the relation is plainly broken: turned round, or far apart for "next to"."""
    if relation in OPPOSITE:
        return holds(OPPOSITE[relation], first, second, plain=True)
    return gap(first, second) >= FAR


def _with_phrase(caption: Caption, old: Phrase, new: Phrase) -> Caption:
    return replace(caption, phrases=tuple(new if phrase is old else phrase for phrase in caption.phrases))


def _at_centre(noun: str, colour: str | None, size: str, old: SceneObject) -> SceneObject:
    """The object in the place of ``old``, around the same centre."""
    width, height = drawn_size(noun, size)
    x, y = old.centre
    return object_at(noun, colour, size, int(x * CANVAS - width / 2 + 0.5), int(y * CANVAS - height / 2 + 0.5))


def _replaced(scene: Scene, number: int, item: SceneObject) -> Iterator[Scene]:
    """``scene`` with object ``number`` replaced, if the new one fits there."""
    if is_free(item, [old for index, old in enumerate(scene.objects) if index != number]):
        yield with_object(scene, number, item, scene.image_id)
