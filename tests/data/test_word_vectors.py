"""Word vectors: GloVe's and word2vec's files, packed or not, and what is wrong with one."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from itm_lib.data import Vocabulary
from itm_lib.data.word_vectors import read_word_vectors
from itm_lib.files import InputError
from itm_lib.models import build_model

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
    for name, line in (("glove.zip", "glove.zip is a zip archive: unpack it, and give one of the .txt files in it"), ("gone.txt", "no file of word vectors .*gone.txt: check the path, get it, or go without it, word_vectors=null"), ("", "cannot be read .*directory"),
                       ("cut.gz", "cut.gz cannot be read .*: it is damaged or cut short, fetch it again"),
                       ("plain.gz", "plain.gz cannot be read .*gzip")):
        with pytest.raises(InputError, match=line) as error:
            read_word_vectors(tmp_path / name, WORDS, 3)
        assert "\n" not in str(error.value)


def binary(path, words, dim=3, count=None, between=b"\n"):
    """A file as word2vec writes it: a line with two counts, then each word, a space and its float32 numbers."""
    entries = [word.encode() + b" " + np.full(dim, number, dtype="<f4").tobytes() + between for number, word in enumerate(words)]
    data = f"{len(words) if count is None else count} {dim}\n".encode() + b"".join(entries)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize(("name", "between"), [("v.bin", b"\n"), ("v.bin", b""), ("v.bin.gz", b"")])
def test_word2vecs_binary_is_read_chunk_by_chunk(name, between, tmp_path, monkeypatch):
    monkeypatch.setattr("itm_lib.data.word_vectors.CHUNK", 7)  # words and numbers are cut anywhere
    path = binary(tmp_path / name, ["</s>", "Dog", "dog", "naïve", "dog", "red"], between=between)
    vectors, found = read_word_vectors(path, WORDS, 3)
    assert {WORDS.words[row]: vectors[row].tolist() for row in np.flatnonzero(found)} == {
        "dog": [2.0] * 3, "naïve": [3.0] * 3, "red": [5.0] * 3}
    assert not vectors[~found].any()


def test_a_binary_file_that_does_not_fit_is_one_line(tmp_path):
    path = binary(tmp_path / "v.bin", ["dog", "red"])
    nan = tmp_path / "nan.bin"
    nan.write_bytes(b"1 3\ndog " + np.full(3, np.nan, dtype="<f4").tobytes())
    text = write(tmp_path / "text.bin", LINES)
    for source, dim, line in ((path, 4, "has vectors of 3 numbers and word_dim is 4: set word_dim to 3"),
                              (binary(tmp_path / "cut.bin", ["dog", "red"], count=3), 3, "ends in vector 3 of 3: it is cut short"),
                              (nan, 3, "nan.bin vector 1 is not 3 finite numbers"), (text, 3, "is no binary file of word2vec"),
                              (tmp_path / "gone.bin", 3, "no file of word vectors .*gone.bin"),
                              (binary(tmp_path / "other.bin", ["Hund"]), 3, "has none of the 8 words of the captions")):
        with pytest.raises(InputError, match=line) as error:
            read_word_vectors(source, WORDS, dim)
        assert "\n" not in str(error.value)


def test_a_name_is_looked_up_below_the_data_folder(tmp_path, monkeypatch):
    write(tmp_path / "glove.txt", LINES)
    monkeypatch.setenv("ITM_DATA", str(tmp_path))
    assert read_word_vectors("glove.txt", WORDS, 3)[1].sum() == 3


@pytest.mark.parametrize(("method", "settings", "deviation"), [
    ("vse", {}, 0.1 / 3**0.5), ("scan", {}, 0.1 / 3**0.5), ("camp", {}, 0.1), ("hrem", {"num_heads": 2}, 0.1 / 3**0.5), ("dive", {}, 1.0),
])
def test_every_model_with_a_gru_takes_word_vectors(method, settings, deviation, tmp_path):
    words = Vocabulary.build([" ".join(f"w{number}" for number in range(200)), "dog naïve"])
    path = binary(tmp_path / "v.bin", ["dog", "naïve"], dim=16)
    torch.manual_seed(0)
    model = build_model(method, {"embed_dim": 16, "word_dim": 16, "word_vectors": str(path), **settings}, 4, len(words))
    assert "2 of the 206 words" in model.use_vocabulary(words) and model.config.word_vectors_found == 2
    weight = model.text.embed.weight.detach()
    assert weight[words.id("naïve")].tolist() == [1.0] * 16 and not weight[words.id("dog")].any()
    others = [words.id(f"w{number}") for number in range(200)]
    assert float(weight[others].std()) == pytest.approx(deviation, rel=0.05)
    assert model.use_vocabulary(words) is None
