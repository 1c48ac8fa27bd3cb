"""Word vectors: GloVe's and word2vec's files, packed or not, and what is wrong with one."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from itm_lib.data import Vocabulary
from itm_lib.data.word_vectors import read_word_vectors
from itm_lib.files import InputError

WORDS = Vocabulary.build(["a red dog", "a naïve dog"])  # <pad> <start> <end> <unk> a dog naïve red
LINES = ["the 9 9 9", "dog 0.5 -1e-2 2", "at home@here.org 7 7 7", "a 1 2 3", "dog 8 8 8", "a b 7 7 7", "naïve 0 0 1"]


def write(path, lines):
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(("name", "lines"), [
    ("glove.txt", LINES), ("glove.txt.gz", LINES), ("word2vec.txt", ["7 3", *LINES]), ("spaces.vec", [f"{line} " for line in LINES]),
])
def test_the_words_that_are_there_get_their_vectors(name, lines, tmp_path):
    vectors, found = read_word_vectors(write(tmp_path / name, lines), WORDS, 3)
    assert vectors.dtype == np.float32 and vectors.shape == (8, 3)
    assert [WORDS.words[row] for row in np.flatnonzero(found)] == ["a", "dog", "naïve"]
    expected = {"a": [1, 2, 3], "dog": [0.5, -0.01, 2], "naïve": [0, 0, 1]}
    for row, word in enumerate(WORDS.words):
        np.testing.assert_allclose(vectors[row], expected.get(word, [0, 0, 0]), rtol=1e-6)


@pytest.mark.parametrize(("lines", "line"), [
    (["dog 1 2 3 4"], "v.txt has vectors of 4 numbers and word_dim is 3: set word_dim to 4, or give another file"),
    (["5 50", *LINES], "v.txt has vectors of 50 numbers and word_dim is 3: set word_dim to 50, or give another file"),
    ([*LINES, "red 1 2"], "v.txt line 8 is not a word and 3 numbers: the file is cut short, damaged, or not plain text"),
    ([*LINES, "blue 1"], "v.txt line 8 is not a word and 3 numbers"),
    ([*LINES, "", "red 1 x 3"], "v.txt line 9 is not a word and 3 numbers"), ([*LINES, "red 1 nan 3"], "v.txt line 8 is not a word"),
    ([*LINES, "red 1 2 3 4"], "v.txt line 8 is not a word and 3 numbers"),
    (["Dog 1 2 3", "RED 1 2 3"], "v.txt has none of the 8 words of the captions: give vectors of words of their language, in lower"),
    ([""], "v.txt has none of the 8 words of the captions"),
])
def test_a_file_that_does_not_fit_is_one_line(lines, line, tmp_path):
    with pytest.raises(InputError) as error:
        read_word_vectors(write(tmp_path / "v.txt", lines), WORDS, 3)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_missing_or_damaged_is_one_line(tmp_path):
    packed = write(tmp_path / "cut.gz", LINES)
    packed.write_bytes(packed.read_bytes()[:-12])
    (tmp_path / "plain.gz").write_text("dog 1 2 3\n")
    for name, line in (("glove.zip", "glove.zip is a zip archive: unpack it, and give one of the .txt files in it"), ("gone.txt", "no file of word vectors .*gone.txt: check the path"), ("", "cannot be read .*directory"),
                       ("cut.gz", "cut.gz cannot be read .*: it is damaged or cut short, fetch it again"),
                       ("plain.gz", "plain.gz cannot be read .*gzip")):
        with pytest.raises(InputError, match=line) as error:
            read_word_vectors(tmp_path / name, WORDS, 3)
        assert "\n" not in str(error.value)
