"""Trained word vectors from a file, as GloVe and word2vec publish them: text, a word and its numbers a line, or word2vec's binary."""

from __future__ import annotations

import contextlib
import gzip
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from itm_lib.data.captions import Vocabulary
from itm_lib.files import InputError, data_dir, one_line

CHUNK = 2**20  # bytes read at once of a binary file


def read_word_vectors(path: str | Path, vocabulary: Vocabulary, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (V, ``dim``) float32 of the words of ``vocabulary``, and which of them the file has (V,) bool; 0 for the others.

    ``path``: .txt, word2vec's .bin, or .gz of one; where there is no such path, one below the data folder. A line of text is a word
    and ``dim`` numbers with single spaces between them; word2vec's first line, "number of words, number of dimensions", may be
    there. The file is read piece by piece and only the vocabulary's words are kept. Words are compared as they are written, so the
    file should be in lower case, as captions' words are; of two equal words the first counts. Raises :class:`InputError` for a file
    that is missing, damaged, of another width, or without any of the words.
    """
    path = Path(path).expanduser()
    if not path.exists() and not path.is_absolute() and (data_dir() / path).exists():
        path = data_dir() / path
    rows = {word.encode(): row for row, word in enumerate(vocabulary.words)}
    vectors, found = np.zeros((len(rows), dim), dtype=np.float32), np.zeros(len(rows), dtype=bool)
    binary = path.suffixes[-1:] == [".bin"] or path.suffixes[-2:] == [".bin", ".gz"]
    for row, vector in (_binary_entries if binary else _text_entries)(path, rows, dim):
        if not found[row]:
            vectors[row], found[row] = vector, True
    if not found.any():
        raise InputError(f"{path} has none of the {len(rows)} words of the captions: give vectors of words of their language, "
                         "in lower case")
    return vectors, found


def _text_entries(path: Path, rows: Mapping[bytes, int], dim: int) -> Iterator[tuple[int, np.ndarray]]:
    """(row, vector) of each line whose word is one of ``rows``."""
    width = None
    for number, line in _lines(path):
        if width is None:
            header = line.split()
            has_header = number == 1 and len(header) == 2 and all(part.isdigit() for part in header)
            width = int(header[1]) if has_header else line.count(b" ")
            _check_width(path, width, dim)
            if has_header:
                continue
        word, _, rest = line.partition(b" ")
        row, spaces = rows.get(word), line.count(b" ")
        if spaces < dim:
            raise _broken(path, number, dim)
        if row is None or (spaces > dim and not _is_number(rest.split(b" ", 1)[0])):
            continue
        try:
            vector = np.array([float(part) for part in rest.split(b" ")])
        except ValueError:
            raise _broken(path, number, dim) from None
        if len(vector) != dim or not np.isfinite(vector).all():
            raise _broken(path, number, dim)
        yield row, vector


def _binary_entries(path: Path, rows: Mapping[bytes, int], dim: int) -> Iterator[tuple[int, np.ndarray]]:
    """(row, vector) of each entry whose word is one of ``rows``: a line with two counts; then words, a space, float32 numbers."""
    with _opened(path) as file:
        header = file.readline(100).split()
        if len(header) != 2 or not all(part.isdigit() for part in header):
            raise InputError(f"{path} is no binary file of word2vec, its first line is not two counts: name a text file .txt")
        count, width = map(int, header)
        _check_width(path, width, dim)
        buffer, at = b"", 0
        for number in range(1, count + 1):
            while (space := buffer.find(b" ", at)) < 0 or len(buffer) - space - 1 < 4 * dim:
                more = file.read(CHUNK)
                if not more:
                    raise InputError(f"{path} ends in vector {number} of {count}: it is cut short, fetch it again")
                buffer, at = buffer[at:] + more, 0
            row = rows.get(buffer[at:space].lstrip(b"\n"))
            at = space + 1 + 4 * dim
            if row is None:
                continue
            vector = np.frombuffer(buffer, "<f4", dim, space + 1)
            if not np.isfinite(vector).all():
                raise InputError(f"{path} vector {number} is not {dim} finite numbers: the file is damaged, fetch it again")
            yield row, vector


def _check_width(path: Path, width: int, dim: int) -> None:
    if width != dim:
        raise InputError(f"{path} has vectors of {width} numbers and word_dim is {dim}: set word_dim to {width}, or give another file")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file to read, unpacked if it is a .gz; what is wrong with it is one line."""
    if path.suffix == ".zip":
        raise InputError(f"{path} is a zip archive: unpack it, and give one of the .txt files in it")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            yield file
    except FileNotFoundError:
        raise InputError(f"no file of word vectors {path}: check the path, get it, or go without it, word_vectors=null") from None
    except (OSError, EOFError, zlib.error) as error:
        why = one_line(error, 100)
        raise InputError(f"{path} cannot be read ({why}): it is damaged or cut short, fetch it again") from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not empty, with their numbers from 1."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            line = line.rstrip()
            if line:
                yield number, line


def _broken(path: Path, line: int, dim: int) -> InputError:
    return InputError(f"{path} line {line} is not a word and {dim} numbers: the file is cut short, damaged, or not plain text")


def _is_number(text: bytes) -> bool:
    """Whether it is one. A few words of large files have spaces in them, and no number after the first."""
    try:
        float(text)
    except ValueError:
        return False
    return True
