"""Captions of one's own, read from whatever they are kept in. What cannot be read is one line that names file and line.

========================  ================================================================================================
source                    what it holds
========================  ================================================================================================
a folder                  ``cats/001.txt``, named as the picture ``cats/001.jpg`` is, a caption a line
``.csv``, ``.tsv``        a table with a header; columns apart by comma, semicolon, tab or "|". One column names the picture
                          (image, file, filename, path ...), one the caption (caption, text, sentence, comment ...); there may
                          be several of captions (caption1, caption2 ...), and columns split and caption_id
tokens                    ``name.jpg#0<tab>caption`` a line, as Flickr8k and Flickr30K have them
``.jsonl``                ``{"image": ..., "caption": ...}`` a line, or ``"captions": [...]``; split and caption_id as above
``.json``                 COCO's captions, ``{"images": [...], "annotations": [...]}``, or a list of rows as in ``.jsonl``
========================  ================================================================================================

A picture goes by its path below the folder of pictures, with or without suffix; the folder's own name or path may stand before it.
COCO's go by ``file_name``, not by COCO's number.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itm_lib.data.published import DATASETS
from itm_lib.files import InputError, numbered_jsonl, one_line, read_text

IMAGE = ("image", "file", "filename", "imagename", "imagefile", "imagefilename", "imagepath", "filepath", "path", "picture", "photo",
         "img", "imageid")
CAPTION = ("caption", "captions", "text", "texts", "sentence", "sentences", "comment", "description")
CAPTION_ID = ("captionid", "sentid", "sentenceid", "annotationid")
SPLIT = ("split", "set", "subset")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test",
               "testing": "test"}
_TOKEN = re.compile(r"(?P<id>(?P<image>[^\t]+)#\d+)\t(?P<text>.*)")
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_TABLES = (".csv", ".tsv", ".txt", ".token", ".tok")


@dataclass(frozen=True)
class OwnCaption:
    """A caption of the picture that goes by the name ``image``; its white space is made single blanks.

    ``split``: train, val or test, or None where they are to be drawn; ``where``: file and line, for error lines.
    """

    image: str
    text: str
    caption_id: str | None = None
    split: str | None = None
    where: str = ""

    def __post_init__(self):
        object.__setattr__(self, "text", " ".join(unicodedata.normalize("NFC", self.text).split()))


def read_captions(source: str | Path) -> list[OwnCaption]:
    """The captions in ``source``, in its order; captions without a word are among them."""
    source = Path(source)
    if source.is_dir():
        found = list(_folder(source))
    elif not source.is_file():
        raise InputError(f"no captions {source}: check the path")
    elif source.suffix.lower() in (".jsonl", ".ndjson"):
        found = [caption for number, row in numbered_jsonl(source) for caption in _of_row(row, f"{source.name} line {number}")]
    elif source.suffix.lower() == ".json":
        found = list(_json(source))
    elif source.suffix.lower() in _TABLES:
        found = list(_lines_or_table(source))
    else:
        raise InputError(f"{source} is of no known kind of captions: give a folder of .txt files, or a .csv, .tsv, .jsonl or .json")
    if not found:
        raise InputError(f"{source} has no captions: check the path")
    return found


# --- text files -----------------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> Iterator[OwnCaption]:
    inside = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".txt"]
    names = sorted(path for path in inside if not any(part.startswith(".") for part in path.parts))
    if not names:
        raise InputError(f"{folder} has no .txt files: give the folder in which each picture has one of its own, or a file of captions")
    for name in names:
        for number, line in enumerate(_lines(read_text(folder / name).rstrip()), 1):
            yield OwnCaption(name.with_suffix("").as_posix(), line, where=f"{name.as_posix()} line {number}")


def _lines_or_table(path: Path) -> Iterator[OwnCaption]:
    text = read_text(path)
    first = _lines(text.lstrip("\r\n"))[0]
    return _tokens(path, text) if _TOKEN.match(first) else _table(path, text)


def _tokens(path: Path, text: str) -> Iterator[OwnCaption]:
    for number, line in enumerate(_lines(text), 1):
        found = _TOKEN.fullmatch(line)
        if found:
            yield OwnCaption(found["image"], found["text"], found["id"], where=f"{path.name} line {number}")
        elif line.strip():
            raise InputError(f"{path} line {number} is not as the first one, name.jpg#0, a tab and the caption: mend or remove that line")


def _lines(text: str) -> list[str]:
    """Not ``splitlines``: captions from the web have rarer separators in them, which are white space here."""
    return re.split(r"\r\n|\r|\n", text)


# --- tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """The places of what is read in a row; ``captions`` may be several."""

    image: int
    captions: tuple[int, ...]
    caption_id: int | None
    split: int | None

    @classmethod
    def find(cls, header: Sequence[str]) -> _Columns | None:
        """The columns that ``header`` names; None if none is of pictures, or none of captions."""
        names = [_plain(name) for name in header]
        place = lambda known: next((names.index(name) for name in known if name in names), None)  # noqa: E731
        captions = [place(CAPTION)] if place(CAPTION) is not None else [
            number for number, name in enumerate(names) if name.rstrip("0123456789") in CAPTION]
        image = place(IMAGE)
        return cls(image, tuple(captions), place(CAPTION_ID), place(SPLIT)) if image is not None and captions else None


def _plain(name: Any) -> str:
    """``"File Name"`` → ``filename``."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def _table(path: Path, text: str) -> Iterator[OwnCaption]:
    delimiter, columns = _layout(path, text)
    rows = _rows(path, text, delimiter)
    _, header = next(rows)
    for number, row in rows:
        where = f"{path.name} line {number}"
        if len(row) != len(header):
            hint = "put a caption that has commas in it into double quotes" if delimiter == "," else "mend that line"
            raise InputError(f"{path} line {number} has {len(row)} columns and the header has {len(header)}: {hint}")
        texts = [row[place] for place in columns.captions]
        if len(texts) > 1:  # pictures with fewer captions leave some empty
            texts = [text for text in texts if text.strip()] or [""]
        yield from _captions(row[columns.image], texts, _value(row, columns.caption_id), _value(row, columns.split), where)


def _layout(path: Path, text: str) -> tuple[str, _Columns]:
    """What stands between the columns, and which they are, by the header."""
    first = _lines(text.lstrip("\r\n"))[0]
    for delimiter in (",", ";", "\t", "|"):
        columns = _Columns.find(_split(first, delimiter))
        if columns is not None:
            return delimiter, columns
    raise InputError(f"{path}: its first line, {first[:60]!r}, must name a column of pictures (image, file, filename ...) and one of "
                     "captions (caption, text ...): write such a header")


def _split(line: str, delimiter: str) -> list[str]:
    """The columns of a line whose captions may hold single quotation marks: only what is quoted as a whole is quoted."""
    cells = [cell.strip() for cell in line.split(delimiter)]
    return [cell[1:-1].replace('""', '"') if _QUOTED.fullmatch(cell) else cell for cell in cells]


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with the number of its last line; commas and semicolons as the csv module reads them."""
    if delimiter in "\t|":
        yield from ((number, _split(line, delimiter)) for number, line in enumerate(_lines(text), 1) if line.strip())
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    try:
        yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
    except csv.Error as error:
        raise InputError(f"{path} line {reader.line_num} cannot be read ({one_line(error)}): check its quotation marks") from None


# --- JSON -----------------------------------------------------------------------------------------------------------------


def _json(path: Path) -> Iterator[OwnCaption]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} line {error.lineno} is not valid JSON ({error.msg}): the file is damaged or cut short, make it again") from None
    if isinstance(content, list):
        for number, row in enumerate(content, 1):
            yield from _of_row(row, f"{path.name} row {number}")
    elif isinstance(content, dict) and isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
        yield from _coco(path, content)
    elif isinstance(content, dict) and isinstance(content.get("images"), list):
        name = content.get("dataset") if content.get("dataset") in DATASETS else "NAME"
        raise InputError(f"{path} looks like one of Karpathy's files: make a dataset folder of it with 'itm data prepare {name}'")
    else:
        raise InputError(f'{path} is not COCO\'s captions: {{"images": [...], "annotations": [...]}} is expected, or a list of rows')


def _coco(path: Path, content: Mapping[str, Any]) -> Iterator[OwnCaption]:
    name_of: dict[Any, str] = {}
    for number, row in enumerate(content["images"], 1):
        _check_keys(row, ("id", "file_name"), f"{path.name} image number {number}")
        name_of[row["id"]] = str(row["file_name"])
    for number, row in enumerate(content["annotations"], 1):
        where = f"{path.name} annotation number {number}"
        _check_keys(row, ("image_id", "caption"), where)
        if row["image_id"] not in name_of:
            raise InputError(f"{where} is of image {row['image_id']}, which \"images\" does not list: mend it, or get the file again")
        caption_id = None if row.get("id") is None else str(row["id"])
        yield OwnCaption(name_of[row["image_id"]], str(row["caption"]), caption_id, where=where)


def _check_keys(row: Any, keys: Sequence[str], where: str) -> None:
    lacking = [key for key in keys if not isinstance(row, dict) or key not in row]
    if lacking:
        raise InputError(f"{where} lacks {', '.join(lacking)}: mend it, or get the file again")


def _of_row(row: Any, where: str) -> Iterator[OwnCaption]:
    columns = _Columns.find(list(row)) if isinstance(row, dict) else None
    if columns is None:
        raise InputError(f'{where} must have a key of the picture and one of its captions: {{"image": "a.jpg", "captions": ["...", "..."]}}')
    values = list(row.values())
    texts = [text for place in columns.captions for text in (values[place] if isinstance(values[place], list) else [values[place]])]
    if not isinstance(values[columns.image], str | int) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{where}: the picture's name and its captions must be text")
    yield from _captions(str(values[columns.image]), texts or [""], _value(values, columns.caption_id), _value(values, columns.split), where)


def _value(row: Sequence[Any], place: int | None) -> str | None:
    """What a row has in a column that it need not have."""
    return None if place is None or row[place] is None else str(row[place]).strip() or None


def _captions(image: str, texts: Sequence[str], caption_id: str | None, split: str | None, where: str) -> Iterator[OwnCaption]:
    """The captions of one row."""
    if not image.strip():
        raise InputError(f"{where} names no picture: mend or remove it")
    if split is not None and _plain(split) not in SPLIT_NAMES:
        raise InputError(f"{where} has the split {split!r}: train, val and test are known")
    if caption_id is not None and len(texts) > 1:
        raise InputError(f"{where} has one caption id for {len(texts)} captions: give each a row, or leave the id out")
    for text in texts:
        yield OwnCaption(image.strip(), text, caption_id, SPLIT_NAMES.get(_plain(split)) if split is not None else None, where)
