"""Contact sheets: what is on them, in a picture, a page and JSON; files with odd names, missing and broken pictures."""

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from made_for_search import make_model
from PIL import Image

from itm_lib.files import InputError
from itm_lib.search import Hit, Region, Result, build_index, contact_sheet
from itm_lib.search.sheet import CELL, EDGE, GAP, with_regions

ODD = 'a <b>dog</b> & "cat"'
REGIONS = (Region((0.5, 0.5, 1.0, 1.0), 0.8, (0.9, 0.1)), Region((0.0, 0.0, 0.4, 0.4), 0.2, (0.0, 1.0)), Region((0.4, 0.0, 0.6, 0.2), -0.3, (0, 0)))


@pytest.fixture
def result(tmp_path):
    """Three hits: a wide picture with regions, one that is missing, and one that is broken, with a name that needs care."""
    Image.new("RGB", (80, 40), (200, 30, 30)).save(tmp_path / "wide.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    hits = (Hit(1, "wide", 0.75, 0.7, tmp_path / "wide.png", REGIONS), Hit(2, "gone", 0.5, 0.4, tmp_path / "gone.png"),
            Hit(3, f"folder/{ODD}/" + "long" * 30, -0.25, None, tmp_path / "broken.png"))
    return Result(f"{ODD} dog", hits, ("a", "dog"), ("b",), 5, 7, "attention", ("not in the vocabulary: <b>",))


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.words, self.open = [], [], []
        self.feed(path.read_text(encoding="utf-8"))
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def of(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def test_a_page_needs_nothing_else_and_shows_what_was_found(result, tmp_path):
    page = Page(contact_sheet(result, tmp_path / "sheet.html"))
    content = (tmp_path / "sheet.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|src=\"(?!data:)|href=|@import|url\(", content)
    assert "<b>" not in content and str(tmp_path) not in content  # escaped; no path of this machine
    text = "".join(page.words)
    for piece in (f"“{ODD} dog”", "3 of 7 pictures; the model scored 5 candidates", "not in the vocabulary: <b>", "score 0.750", "score -0.250",
                  "picture missing or broken", f"folder/{ODD}/"):
        assert piece in text
    picture, = page.of("img")
    assert picture["alt"] == "wide, rank 1, score 0.750"
    kind, data = picture["src"].split(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (80, 40)
    first, second, third = page.of("rect")
    assert (first["x"], first["y"], first["width"], first["height"]) == ("500.0", "500.0", "500.0", "500.0")
    assert first["style"] == "--s: 1.000" and second["style"] == "--s: 0.250" and third["style"] == "--s: 0.000"
    assert first["data-w"] == "0.9000 0.1000"
    assert [word["data-k"] for word in page.of("span") if word.get("class") == "word"] == ["0", "1"]
    assert len(page.of("script")) == 1 and page.of("html")[0]["lang"] == "en"
    assert len([item for item in page.of("li") if item["tabindex"] == "0"]) == 3


def test_a_page_without_regions_has_no_control(result, tmp_path):
    plain = dataclasses.replace(result, hits=tuple(dataclasses.replace(hit, regions=()) for hit in result.hits), weights="")
    page = Page(contact_sheet(plain, tmp_path / "sheet.html"))
    assert not page.of("script") and not page.of("svg") and not page.of("input")


def test_json_has_everything(result, tmp_path):
    content = json.loads(contact_sheet(result, tmp_path / "sheet.json").read_text(encoding="utf-8"))
    assert content == json.loads(json.dumps(result.to_dict()))
    assert content["hits"][0]["regions"][1] == {"box": [0.0, 0.0, 0.4, 0.4], "weight": 0.2, "words": [0.0, 1.0]}


def test_a_picture_has_a_card_a_hit(result, tmp_path):
    sheet = Image.open(contact_sheet(result, tmp_path / "sheet.png"))
    assert sheet.format == "PNG" and sheet.width == 2 * EDGE + 3 * (CELL + GAP) - GAP
    two = Image.open(contact_sheet(result, tmp_path / "two.PNG", columns=2))
    assert two.width == 2 * EDGE + 2 * (CELL + GAP) - GAP and two.height > sheet.height
    pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    reddish = (pixels[:, 0] > 180) & (pixels[:, 1] < 120) & (pixels[:, 2] < 120)
    assert reddish.sum() > CELL * CELL / 8  # the wide picture fills half of its tile


def test_what_is_attended_to_keeps_its_light_and_the_rest_is_veiled():
    picture = Image.new("RGB", (100, 100), (20, 40, 160))
    pixels = np.asarray(with_regions(picture, Hit(1, "a", 1.0, regions=REGIONS))).astype(int)
    assert pixels[75, 75].tolist() == [20, 40, 160]                 # inside the strongest
    veiled, weak = pixels[90, 10].sum(), pixels[20, 20].sum()       # nowhere; inside the weaker one
    assert 220 < weak < veiled
    frame = pixels[52, 75]
    assert frame[0] > 200 and frame[2] < 60                         # its frame is red
    assert pixels[10, 50].sum() == veiled                           # what counts against the picture is not shown
    assert with_regions(picture, Hit(1, "a", 1.0)) is picture


def test_long_queries_wrap_and_notes_have_room(result, tmp_path):
    long = dataclasses.replace(result, query="a very small dog left of a large red car and " * 6, words=())
    short = Image.open(contact_sheet(result, tmp_path / "short.png"))
    tall = Image.open(contact_sheet(long, tmp_path / "tall.png"))
    assert tall.width == short.width and tall.height > short.height + 40


def test_a_picture_as_the_query_is_on_the_sheet(result, tmp_path):
    asked = dataclasses.replace(result, query="wide.png", picture=tmp_path / "wide.png", words=(), weights="")
    page = Page(contact_sheet(asked, tmp_path / "sheet.html"))
    assert page.of("img")[0]["alt"] == "the picture asked with" and "pictures like wide.png" in "".join(page.words)
    assert Image.open(contact_sheet(asked, tmp_path / "sheet.png")).size[0] == 2 * EDGE + 3 * (CELL + GAP) - GAP


def test_what_cannot_be_drawn_is_one_line_and_changes_nothing(result, tmp_path):
    for name, options, line in [("sheet.gif", {}, r"sheet\.gif: a contact sheet is one of \.png, \.html, \.json"),
                                ("sheet.png", {"columns": 0}, "columns is 0")]:
        with pytest.raises(InputError, match=line):
            contact_sheet(result, tmp_path / name, **options)
    nowhere = dataclasses.replace(result, hits=tuple(dataclasses.replace(hit, path=None) for hit in result.hits))
    for name in ("sheet.png", "sheet.html"):
        with pytest.raises(InputError, match="^where the picture files lie is not known, .*--images FOLDER, or ask for .json$"):
            contact_sheet(nowhere, tmp_path / name)
    assert contact_sheet(nowhere, tmp_path / "sheet.json").is_file()
    (tmp_path / "file").write_text("")
    for name in ("sheet.png", "sheet.html", "sheet.json"):
        with pytest.raises(InputError, match=rf"{name} cannot be written \((File exists|Not a directory)\): make room, or name another place"):
            contact_sheet(result, tmp_path / "file" / name)
    assert not list(tmp_path.glob("sheet.[pg]*")) and not (tmp_path / "sheet.html").exists()


def test_from_an_index_to_a_sheet(dataset, tmp_path):
    result = build_index(make_model("scan"), dataset, progress=False).query("a small dog left of two red cats", top=7)
    assert Image.open(contact_sheet(result, tmp_path / "sheet.png")).size[0] == 2 * EDGE + 5 * (CELL + GAP) - GAP
    page = Page(contact_sheet(result, tmp_path / "sheet.html"))
    assert len(page.of("li")) == len(page.of("img")) == 7 and len(page.of("rect")) >= 14
    assert all(0 <= float(rect["x"]) <= 1000 and rect["data-w"].count(" ") == 7 for rect in page.of("rect"))
