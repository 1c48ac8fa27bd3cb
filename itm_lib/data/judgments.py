"""Human judgments of Flickr8k: which captions that were written for another photograph describe this one, too.

The two files lie in judgments/ of a dataset folder as they were published. An *expert* judgment is three people's marks from 1 (the
caption does not describe the photograph) to 4 (it does). A *crowd* judgment is how many of three or more people said yes, it describes
the photograph, possibly with minor mistakes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from itm_lib.files import InputError, read_text

FOLDER = "judgments"
FILES = {"experts": "ExpertAnnotations.txt", "crowd": "CrowdFlowerAnnotations.txt"}
LOWEST, HIGHEST = 1, 4  # marks of an expert


@dataclass(frozen=True)
class ExpertJudgment:
    """Three experts' ``marks``, 1 to 4, of a photograph and a caption."""

    image_id: str
    caption_id: str
    marks: tuple[int, int, int]

    @property
    def mean(self) -> float:
        return sum(self.marks) / len(self.marks)


@dataclass(frozen=True)
class CrowdJudgment:
    """How many people of the crowd said that the caption describes the photograph, ``yes``, and that it does not, ``no``."""

    image_id: str
    caption_id: str
    yes: int
    no: int

    @property
    def majority(self) -> bool:
        """True if more than half said yes."""
        return self.yes > self.no


@dataclass(frozen=True)
class Judgments:
    """All judgments of a dataset, in the order of the files. Image ids are file names without suffix."""

    experts: tuple[ExpertJudgment, ...] = ()
    crowd: tuple[CrowdJudgment, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.experts or self.crowd)


def read_judgments(folder: str | Path) -> Judgments:
    """The judgments in the dataset folder ``folder``; none where it has no judgments/. A broken line is an :class:`InputError`."""
    place = Path(folder) / FOLDER
    experts = tuple(_experts(place / FILES["experts"])) if (place / FILES["experts"]).is_file() else ()
    crowd = tuple(_crowd(place / FILES["crowd"])) if (place / FILES["crowd"]).is_file() else ()
    return Judgments(experts, crowd)


def _experts(path: Path) -> Iterator[ExpertJudgment]:
    for where, (image, caption_id, *marks) in _rows(path, "three marks", 5):
        values = tuple(int(mark) for mark in marks if mark.isdecimal() and LOWEST <= int(mark) <= HIGHEST)
        if len(values) != len(marks):
            raise InputError(f"{where}: marks {' '.join(marks)} are not three whole numbers from {LOWEST} to {HIGHEST}: mend that line, or get the file again")
        yield ExpertJudgment(_image_id(image), caption_id, values)


def _crowd(path: Path) -> Iterator[CrowdJudgment]:
    for where, (image, caption_id, share, yes, no) in _rows(path, "the share of yes, and the numbers of yes and no", 5):
        if not (yes.isdecimal() and no.isdecimal() and int(yes) + int(no)):
            raise InputError(f"{where}: {yes} yes and {no} no are not numbers of people: mend that line, or get the file again")
        try:
            agrees = abs(float(share) - int(yes) / (int(yes) + int(no))) < 0.01
        except ValueError:
            agrees = False
        if not agrees:
            raise InputError(f"{where}: the share {share} is not that of {yes} yes and {no} no: mend that line, or get the file again")
        yield CrowdJudgment(_image_id(image), caption_id, int(yes), int(no))


def _rows(path: Path, what: str, width: int) -> Iterator[tuple[str, list[str]]]:
    """The rows of a file, each with its place; every photograph and caption is judged once."""
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        row, where = line.rstrip("\r").split("\t"), f"{path} line {number}"
        if len(row) != width or "#" not in row[1]:
            raise InputError(f"{where} is not a photograph, a caption's id and {what}, with tabs between them: mend that line, or get the file again")
        first = seen.setdefault((row[0], row[1]), number)
        if first != number:
            raise InputError(f"{where} judges {row[0]} and {row[1]} a second time, after line {first}: remove one of them")
        yield where, [cell.strip() for cell in row]


def _image_id(name: str) -> str:
    return name.rpartition(".")[0] or name
