"""Trained word vectors from a text file, as GloVe and word2vec publish them: a word and its numbers a line."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from itm_lib.data.captions import Vocabulary
from itm_lib.files import InputError


def read_word_vectors(path: str | Path, vocabulary: Vocabulary, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (V, ``dim``) float32 of the words of ``vocabulary``, and which of them the file has (V,) bool; 0 for the others.

    ``path``: .txt, or .gz of one. A line is a word and ``dim`` numbers with single spaces between them; word2vec's first line,
    "number of words, number of dimensions", may be there. The file is read line by line and only the vocabulary's words are kept.
    Words are compared as they are written, so the file should be in lower case, as captions' words are; of two equal words the
    first counts. Raises :class:`InputError` for a file that is missing, damaged, of another width, or without any of the words.
    """
    path = Path(path).expanduser()
    rows = {word.encode(): row for row, word in enumerate(vocabulary.words)}
    vectors, found, width = np.zeros((len(rows), dim), dtype=np.float32), np.zeros(len(rows), dtype=bool), None
    for number, line in _lines(path):
        if width is None:
            header = line.split()
            has_header = number == 1 and len(header) == 2 and all(part.isdigit() for part in header)
            width = int(header[1]) if has_header else line.count(b" ")
            if width != dim:
                raise InputError(f"{path} has vectors of {width} numbers and word_dim is {dim}: set word_dim to {width}, or give "
                                 "another file")
            if has_header:
                continue
        word, _, rest = line.partition(b" ")
        row, spaces = rows.get(word), line.count(b" ")
        if spaces < dim:
            raise _broken(path, number, dim)
        if row is None or found[row] or (spaces > dim and not _is_number(rest.split(b" ", 1)[0])):
            continue
        try:
            vectors[row] = [float(part) for part in rest.split(b" ")]
        except ValueError:
            raise _broken(path, number, dim) from None
        if not np.isfinite(vectors[row]).all():
            raise _broken(path, number, dim)
        found[row] = True
    if not found.any():
        raise InputError(f"{path} has none of the {len(rows)} words of the captions: give vectors of words of their language, "
                         "in lower case")
    return vectors, found


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1."""
    if path.suffix == ".zip":
        raise InputError(f"{path} is a zip archive: unpack it, and give one of the .txt files in it")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                line = line.rstrip()
                if line:
                    yield number, line
    except FileNotFoundError:
        raise InputError(f"no file of word vectors {path}: check the path") from None
    except (OSError, EOFError, zlib.error) as error:
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{path} cannot be read ({why}): it is damaged or cut short, fetch it again") from None


def _broken(path: Path, line: int, dim: int) -> InputError:
    return InputError(f"{path} line {line} is not a word and {dim} numbers: the file is cut short, damaged, or not plain text")


def _is_number(text: bytes) -> bool:
    """Whether it is one. A few words of large files have spaces in them, and no number after the first."""
    try:
        float(text)
    except ValueError:
        return False
    return True
