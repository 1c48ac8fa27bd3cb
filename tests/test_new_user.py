"""A new user's way, by the command line alone: twenty pictures and a CSV file, four commands, a contact sheet."""

import csv
import json

import pytest
from PIL import Image, ImageDraw

from itm_lib import cli
from itm_lib.search import SearchIndex

COLOURS = {"red": (214, 39, 40), "blue": (31, 119, 180), "green": (44, 160, 44), "yellow": (240, 200, 40)}
SHAPES = ("circle", "square", "triangle")


def draw(shape, box, colour, picture):
    x0, y0, x1, y1 = box
    pen = ImageDraw.Draw(picture)
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    else:
        pen.polygon([((x0 + x1) / 2, y0), (x1, y1), (x0, y1)], fill=colour)


@pytest.fixture(scope="module")
def my_files(tmp_path_factory):
    """A folder with pictures/ and captions.csv: two coloured shapes a picture, two captions each."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "pictures").mkdir()
    rows = []
    for number in range(20):
        left = list(COLOURS)[number % 4], SHAPES[number % 3]
        right = list(COLOURS)[(number + 1 + number // 4) % 4], SHAPES[(number + 1) % 3]
        picture = Image.new("RGB", (200, 150), (235, 235, 230))
        draw(left[1], (15, 40, 85, 110), COLOURS[left[0]], picture)
        draw(right[1], (115, 40, 185, 110), COLOURS[right[0]], picture)
        name = f"photo_{number:02}.{'jpg' if number % 2 else 'png'}"
        picture.save(folder / "pictures" / name)
        rows += [(name, f"A {left[0]} {left[1]} left of a {right[0]} {right[1]}."), (name, f"There is a {right[0]} {right[1]}.")]
    with open(folder / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return folder


@pytest.fixture
def itm(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        assert not end.value.code, printed.err
        return printed.out

    return run


def test_from_twenty_pictures_to_a_contact_sheet_in_four_commands(my_files, itm, monkeypatch):
    monkeypatch.chdir(my_files)
    itm("extract", "pictures", "--captions", "captions.csv", "--backbone", "region-encoder", "--out", "data/mine")
    itm("train", "vse", "--data", "data/mine", "--out", "runs/mine", "--set", "train.batch_size=8")
    itm("search", "index", "runs/mine", "data/mine", "--out", "index")
    asked = "A red circle left of a blue square."
    printed = itm("search", "query", asked, "--index", "index", "--top", "6", "--out", "sheet.png")
    assert len(printed.splitlines()) == 7 and "photo_" in printed
    with Image.open("sheet.png") as sheet:
        assert sheet.width > 400 and len(sheet.convert("RGB").getcolors(2**24)) > 50

    assert "nothing to do" in itm("extract", "pictures", "--captions", "captions.csv", "--backbone", "region-encoder", "--out", "data/mine")
    itm("search", "query", "--image", "pictures/photo_03.jpg", "--index", "index", "--top", "3", "--out", "sheet.json")
    found = json.loads((my_files / "sheet.json").read_text(encoding="utf-8"))
    assert found["hits"][0]["image_id"] == "photo_03"  # itself

    # the search answers: most captions find their picture among the first three of twenty; by luck one in seven would
    with open("captions.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    results = SearchIndex.open("index").query_many([row["caption"] for row in rows], top=3)
    hits = [row["image"].rpartition(".")[0] in [hit.image_id for hit in result.hits] for row, result in zip(rows, results)]
    assert sum(hits) / len(hits) > 0.5
