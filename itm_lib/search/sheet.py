"""A contact sheet of what a query found: a picture (.png), a page (.html) or the numbers (.json).

The page is one file: pictures are in it as small JPEGs, nothing is fetched. Regions come forward where the pointer or the
keyboard's focus is; over a word of the query, the regions that this word attends to.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from itm_lib.data import pictures
from itm_lib.files import InputError, one_line, replace_atomically, write_json, write_text
from itm_lib.search.query import Hit, Result

KINDS = (".png", ".html", ".json")
INLINED = 480          # pixels of the longer side of a picture in a page
FAINT = 0.15           # regions below this share of the largest weight are not drawn
INK, PALE, PAPER, TILE, ORANGE, RED, AMBER = "#1b1b1b", "#6b6b6b", "#ffffff", "#eeeeec", (230, 159, 0), (213, 94, 0), "#9a5b00"
CELL, GAP, EDGE = 300, 22, 36  # pixels: a picture's square, between them, around all


def contact_sheet(result: Result, path: str | Path, columns: int | None = None) -> Path:
    """Draw ``result`` into ``path``: .png, .html or .json. ``columns``: pictures a row, at most 5 if None."""
    path = Path(path)
    if path.suffix.lower() not in KINDS:
        raise InputError(f"{path}: a contact sheet is one of {', '.join(KINDS)}; name the file so")
    if columns is not None and columns < 1:
        raise InputError(f"columns is {columns}: a row needs 1 picture at least")
    kind = path.suffix.lower()
    if kind != ".json" and result.hits and all(hit.path is None for hit in result.hits):
        raise InputError("where the picture files lie is not known, so there is nothing to draw: give their folder, --images FOLDER, or "
                         "ask for .json")
    try:
        _write(result, path, kind, columns or min(5, max(1, len(result.hits))))
    except OSError as error:
        raise InputError(f"{path} cannot be written ({one_line(error.strerror or error)}): make room, or name another place") from None
    return path


def _write(result: Result, path: Path, kind: str, columns: int) -> None:
    if kind == ".json":
        write_json(path, result.to_dict())
    elif kind == ".html":
        write_text(path, page(result))
    else:
        sheet = draw(result, columns)
        with replace_atomically(path) as part:
            sheet.save(part, format="PNG", optimize=True)


def strengths(hit: Hit) -> list[float]:
    """Of each region, its weight as a share of the hit's largest; what is negative is 0."""
    most = max((region.weight for region in hit.regions), default=0.0)
    return [max(0.0, region.weight) / most if most > 0 else 0.0 for region in hit.regions]


def summary(result: Result) -> str:
    """How the pictures were found, in a line."""
    asked = f"{len(result.hits)} of {result.pictures:,} pictures"
    return f"{asked}, all of them scored" if result.exact else f"{asked}; the model scored {result.scored:,} candidates"


def legend(result: Result) -> str:
    """What the frames are; empty where there are none."""
    if not result.weights or not any(hit.regions for hit in result.hits):
        return ""
    return f"Frames: {result.weights}. The brighter and thicker, the more."


def _read(hit: Hit) -> Image.Image | None:
    """The picture; None where it is missing or broken, which one picture of a sheet may be."""
    if hit.path is None:
        return None
    try:
        return pictures.read_picture(hit.path)
    except InputError:
        return None


# --- the picture ------------------------------------------------------------------------------------------------------------


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """matplotlib's own, which every installation has and which knows most scripts' letters."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def draw(result: Result, columns: int) -> Image.Image:
    """The sheet as a picture: the query, then ``columns`` pictures a row with rank, score, name and regions."""
    rows = -(-len(result.hits) // columns)
    width = 2 * EDGE + max(columns * (CELL + GAP) - GAP, 2 * CELL)
    heading = _heading(result, width - 2 * EDGE)
    footing = _lines([(legend(result), 17, False, PALE)], width - 2 * EDGE)
    card = CELL + 58
    bottom = footing.height + 12 if legend(result) else 0
    sheet = Image.new("RGB", (width, EDGE + heading.height + 20 + rows * (card + GAP) + bottom + EDGE - GAP), PAPER)
    sheet.paste(heading, (EDGE, EDGE))
    for place, hit in enumerate(result.hits):
        corner = (EDGE + place % columns * (CELL + GAP), EDGE + heading.height + 20 + place // columns * (card + GAP))
        sheet.paste(_card(hit), corner)
    if bottom:
        sheet.paste(footing, (EDGE, sheet.height - EDGE - footing.height + 8))
    return sheet


def _heading(result: Result, width: int) -> Image.Image:
    side = 0
    asked = None
    if result.picture is not None:
        asked = pictures.read_picture(result.picture)
        asked.thumbnail((CELL // 2, CELL // 2), Image.Resampling.LANCZOS)
        side = asked.width + GAP
    title = f"“{result.query}”" if result.picture is None else f"pictures like {result.query}"
    lines = [(title, 30, True, INK), (summary(result), 17, False, PALE), *((note, 17, False, AMBER) for note in result.notes)]
    text = _lines(lines, width - side)
    if asked is None:
        return text
    whole = Image.new("RGB", (width, max(asked.height, text.height)), PAPER)
    whole.paste(asked, (0, 0))
    whole.paste(text, (side, (whole.height - text.height) // 2))
    return whole


def _lines(lines: list[tuple[str, int, bool, str]], width: int) -> Image.Image:
    """Lines of text, size, boldness and colour, wrapped to ``width``."""
    wrapped = [(part, size, bold, colour) for text, size, bold, colour in lines for part in _wrap(text, _font(size, bold), width)]
    block = Image.new("RGB", (width, sum(round(size * 1.4) for _, size, _, _ in wrapped) or 1), PAPER)
    pen, y = ImageDraw.Draw(block), 0
    for text, size, bold, colour in wrapped:
        pen.text((0, y), text, font=_font(size, bold), fill=colour)
        y += round(size * 1.4)
    return block


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int = 4) -> list[str]:
    """``text`` in lines of ``width`` pixels, ``most`` of them at most; a word that is longer alone is cut."""
    text = " ".join(text.split())
    letters = max(8, len(text))
    while letters > 8 and any(font.getlength(line) > width for line in textwrap.wrap(text, letters)):
        letters -= max(1, letters // 20)
    return textwrap.wrap(text, letters, max_lines=most, placeholder=" …")


def _card(hit: Hit) -> Image.Image:
    """One picture with its regions, and below it rank, score and name."""
    card = Image.new("RGB", (CELL, CELL + 58), PAPER)
    tile = Image.new("RGB", (CELL, CELL), TILE)
    picture = _read(hit)
    if picture is None:
        pen = ImageDraw.Draw(tile)
        pen.multiline_text((CELL / 2, CELL / 2), "picture missing\nor broken", font=_font(18), fill=PALE, anchor="mm", align="center")
    else:
        scale = CELL / max(picture.size)
        size = tuple(max(1, round(edge * scale)) for edge in picture.size)
        picture = with_regions(picture.resize(size, Image.Resampling.LANCZOS), hit)
        tile.paste(picture, ((CELL - size[0]) // 2, (CELL - size[1]) // 2))
    card.paste(tile, (0, 0), _rounded(CELL, 10))
    pen = ImageDraw.Draw(card)
    rank = f"{hit.rank}"
    pen.text((0, CELL + 8), rank, font=_font(20, True), fill=INK)
    pen.text((_font(20, True).getlength(rank) + 12, CELL + 11), f"score {hit.score:.3f}", font=_font(17), fill=INK)
    pen.text((0, CELL + 34), shortened(hit.image_id, _font(15), CELL), font=_font(15), fill=PALE)
    return card


def shortened(name: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """``name``, its middle left out where it is wider than ``width`` pixels: a name's end tells more than its middle."""
    kept = len(name)
    short = name
    while font.getlength(short) > width and kept > 4:
        kept -= 1
        short = f"{name[: kept // 3]}…{name[len(name) - (kept - kept // 3):]}"
    return short


def with_regions(picture: Image.Image, hit: Hit) -> Image.Image:
    """``picture`` with the hit's regions: what is attended to keeps its light, frames are the stronger the larger their weight."""
    shares = strengths(hit)
    if not any(shares):
        return picture
    width, height = picture.size
    light = np.zeros((height, width), np.float32)
    boxes = []
    for region, share in zip(hit.regions, shares):
        x0, y0, x1, y1 = (round(edge * size) for edge, size in zip(region.box, (width, height, width, height)))
        light[y0:y1, x0:x1] = np.maximum(light[y0:y1, x0:x1], share)
        boxes.append((x0, y0, max(x0 + 1, x1 - 1), max(y0 + 1, y1 - 1)))
    pixels = np.asarray(picture, dtype=np.float32)
    kept = (0.62 + 0.38 * light)[..., None]  # the rest is veiled towards a light grey, and still seen
    veiled = Image.fromarray((pixels * kept + 235 * (1 - kept)).astype(np.uint8)).convert("RGBA")
    for place in reversed(range(len(boxes))):  # the strongest last, on top
        if shares[place] < FAINT:
            continue
        layer = Image.new("RGBA", veiled.size)
        pen, thick = ImageDraw.Draw(layer), 1 + round(3 * shares[place])
        colour = RED if place == 0 else ORANGE
        pen.rectangle(boxes[place], outline=(255, 255, 255, round(200 * shares[place])), width=thick + 2)
        inner = tuple(edge + shift for edge, shift in zip(boxes[place], (1, 1, -1, -1)))
        if inner[2] > inner[0] and inner[3] > inner[1]:
            pen.rectangle(inner, outline=(*colour, round(90 + 165 * shares[place])), width=thick)
        veiled = Image.alpha_composite(veiled, layer)
    return veiled.convert("RGB")


@cache
def _rounded(side: int, radius: int) -> Image.Image:
    mask = Image.new("L", (4 * side, 4 * side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 4 * radius, fill=255)
    return mask.resize((side, side), Image.Resampling.LANCZOS)


# --- the page ---------------------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --pale: #5f5f5f; --paper: #fff; --tile: #f0f0ee; --note: #8a5200; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --pale: #a8a8a8; --paper: #17181a; --tile: #26282b; --note: #e8a33d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1600px; padding: 2rem; background: var(--paper); color: var(--ink); font: 16px/1.45 system-ui, sans-serif; }
header { display: flex; gap: 1.25rem; align-items: center; margin-bottom: 1.25rem; }
header img { max-width: 150px; max-height: 150px; border-radius: 8px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere; }
p { margin: .2rem 0; color: var(--pale); }
p.note { color: var(--note); }
.word { border-radius: 5px; cursor: pointer; padding: 0 .1em; }
.word:hover, .word:focus { background: #e69f00; color: #1b1b1b; outline: none; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 1.4rem; list-style: none; margin: 1rem 0 0; padding: 0; }
.tile { position: relative; aspect-ratio: 1; background: var(--tile); border-radius: 10px; display: flex; align-items: center; justify-content: center; overflow: hidden; }
.picture { position: absolute; }
.picture img { width: 100%; height: 100%; display: block; }
svg { position: absolute; inset: 0; width: 100%; height: 100%; }
rect { fill: #e69f00; stroke: #e69f00; stroke-width: 2.5; vector-effect: non-scaling-stroke; opacity: 0; transition: opacity .15s;
  fill-opacity: calc(var(--s) * .38); stroke-opacity: var(--s); }
rect:first-of-type { stroke: #d55e00; }
li:hover rect, li:focus rect, li:focus-within rect, .by-word rect, #always:checked ~ ol rect { opacity: 1; }
li:focus { outline: 2px solid #0072b2; outline-offset: 6px; border-radius: 6px; }
.rank { font-weight: 700; font-size: 1.15rem; margin-right: .5rem; }
.name { color: var(--pale); font-size: .9rem; overflow-wrap: anywhere; }
@media print { rect { opacity: 1; } }
"""
SCRIPT = """
const rects = [...document.querySelectorAll('rect')];
rects.forEach(r => { r.whole = r.style.getPropertyValue('--s'); r.words = (r.dataset.w || '').split(' ').map(Number); });
const show = k => { document.querySelectorAll('svg').forEach(svg => {
    const own = [...svg.querySelectorAll('rect')], most = Math.max(...own.map(r => r.words[k] || 0), 1e-9);
    own.forEach(r => r.style.setProperty('--s', ((r.words[k] || 0) / most).toFixed(3))); }); document.body.classList.add('by-word'); };
const rest = () => { rects.forEach(r => r.style.setProperty('--s', r.whole)); document.body.classList.remove('by-word'); };
document.querySelectorAll('.word').forEach(word => {
  ['mouseenter', 'focus'].forEach(name => word.addEventListener(name, () => show(+word.dataset.k)));
  ['mouseleave', 'blur'].forEach(name => word.addEventListener(name, rest)); });
"""


def page(result: Result) -> str:
    """The sheet as a page of its own."""
    by_word = any(region.words for hit in result.hits for region in hit.regions)
    asked = "" if result.picture is None else f'<img src="{_inlined(pictures.read_picture(result.picture))}" alt="the picture asked with">'
    title = _title(result, by_word)
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in result.notes)
    control = ""
    if legend(result):
        hint = " Point at a word of the query to see where it looks." if by_word else ""
        control = (f'<p>Point at a picture to see its regions: {html.escape(result.weights)}.{hint}</p>\n'
                   '<input type="checkbox" id="always"> <label for="always">show them always</label>')
    items = "\n".join(map(_item, result.hits))
    script = f"<script>{SCRIPT}</script>" if by_word else ""
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
            f"<title>{html.escape(result.query)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header>{asked}<div><h1>{title}</h1>"
            f"<p>{html.escape(summary(result))}</p>{notes}</div></header>\n{control}\n<ol>\n{items}\n</ol>\n{script}\n</body>\n</html>\n")


def _title(result: Result, by_word: bool) -> str:
    """The query, its words to be pointed at where they have regions of their own."""
    if result.picture is not None:
        return f"pictures like {html.escape(result.query)}"
    if not by_word:
        return f"“{html.escape(result.query)}”"
    parts, end = [], 0
    for number, word in enumerate(result.words):
        start = result.query.index(word, end)
        parts += [html.escape(result.query[end:start]), f'<span class="word" tabindex="0" data-k="{number}">{html.escape(word)}</span>']
        end = start + len(word)
    return f"“{''.join(parts)}{html.escape(result.query[end:])}”"


def _item(hit: Hit) -> str:
    picture = _read(hit)
    name = html.escape(hit.image_id)
    if picture is None:
        inside = "<p>picture missing or broken</p>"
    else:
        wide, high = (round(100 * edge / max(picture.size), 2) for edge in picture.size)
        place = f"left: {(100 - wide) / 2:g}%; top: {(100 - high) / 2:g}%; width: {wide:g}%; height: {high:g}%"
        inside = (f'<div class="picture" style="{place}">'
                  f'<img src="{_inlined(picture)}" alt="{name}, rank {hit.rank}, score {hit.score:.3f}">{_overlay(hit)}</div>')
    return (f'<li tabindex="0"><div class="tile">{inside}</div><div><span class="rank">{hit.rank}</span>score {hit.score:.3f}</div>'
            f'<div class="name">{name}</div></li>')


def _overlay(hit: Hit) -> str:
    """The regions as an SVG over the picture, the strongest first."""
    if not hit.regions:
        return ""
    rects = []
    for region, share in zip(hit.regions, strengths(hit)):
        x0, y0, x1, y1 = (round(1000 * edge, 1) for edge in region.box)
        words = f' data-w="{" ".join(f"{weight:.4f}" for weight in region.words)}"' if region.words else ""
        rects.append(f'<rect x="{x0}" y="{y0}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}" style="--s: {share:.3f}"{words}>'
                     f"<title>{region.weight:.3f}</title></rect>")
    return f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true">{"".join(rects)}</svg>'


def _inlined(picture: Image.Image) -> str:
    """The picture, made small, as a data URL."""
    small = picture.copy()
    small.thumbnail((INLINED, INLINED), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    small.save(content, format="JPEG", quality=85, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}"
