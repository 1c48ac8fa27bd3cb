import pytest

from itm_lib.data import Tokenizer, Vocabulary
from itm_lib.data.captions import SPECIAL
from itm_lib.files import InputError


def test_words_are_cut_as_written():
    assert Tokenizer()("A T-shirt, left of the dog's bowl!  3 cats") == [
        "a", "t-shirt", "left", "of", "the", "dog's", "bowl", "3", "cats",
    ]
    assert Tokenizer()("... --- !?") == []


def test_spans_point_at_the_words():
    text = "Two  Dogs, an x-ray."
    assert [text[start:end].lower() for _, start, end in Tokenizer().spans(text)] == [w for w, _, _ in Tokenizer().spans(text)]


def test_ids_follow_the_count_then_the_alphabet():
    vocabulary = Vocabulary.build(["b a c", "b c", "b"])
    assert vocabulary.words == (*SPECIAL, "b", "c", "a")
    assert vocabulary.encode("A zebra b") == [1, 6, 3, 4, 2]
    assert vocabulary.decode([1, 6, 3, 4, 2, 0, 0]) == ["<start>", "a", "<unk>", "b", "<end>"]


def test_rare_words_can_be_left_out():
    vocabulary = Vocabulary.build(["b a c", "b c", "b"], min_count=2)
    assert "a" not in vocabulary and "c" in vocabulary and len(vocabulary) == 6


def test_save_and_load(tmp_path):
    vocabulary = Vocabulary.build(["ein großer Hund"])
    vocabulary.save(tmp_path / "v.json")
    assert Vocabulary.load(tmp_path / "v.json") == vocabulary


@pytest.mark.parametrize("text", ["", "   ", "?!"])
def test_an_empty_caption_is_refused(text):
    with pytest.raises(InputError) as error:
        Vocabulary.build(["a dog"]).encode(text)
    assert str(error.value) == f"the caption {text!r} has no word in it: remove it or write one"


def test_a_file_that_is_no_vocabulary_is_refused(tmp_path):
    path = tmp_path / "v.json"
    path.write_text('["a", "dog"]')
    with pytest.raises(InputError, match=r'v.json is not a vocabulary: expected \{"words": \[...\]\}'):
        Vocabulary.load(path)
    path.write_text('{"words": ["dog", "a"]}')
    with pytest.raises(InputError, match="a vocabulary starts with <pad>, <start>, <end>, <unk>"):
        Vocabulary.load(path)


def test_a_word_listed_twice_is_refused():
    with pytest.raises(InputError, match="lists a word twice"):
        Vocabulary((*SPECIAL, "dog", "dog"))
