"""The authors' vocabularies in every form they are saved in, what is not one, and the ids of their tokens."""

import builtins
import io
import json
import os
import pickle
import subprocess
import sys
import types

import pytest

from itm_lib.data import authors_text
from itm_lib.data.authors_text import AuthorsVocabulary, NLTKTokenizer, read_authors_vocabulary
from itm_lib.data.captions import Vocabulary, load_vocabulary
from itm_lib.files import InputError

WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "man", ".", "dr.", "caf\xe9", "'s", "``", "''"]


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


class PythonTwoPickler(pickle._Pickler):
    """Writes ASCII strings as Python 2 wrote its byte strings; the names of modules are Python 2's up to protocol 2 anyway."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_str(self, value):
        if not value.isascii():
            return super().save_str(value)
        data = value.encode()
        self.write(b"S" + repr(value).encode() + b"\n" if self.proto == 0 else b"U" + bytes([len(data)]) + data)
        self.memoize(value)

    dispatch[str] = save_str


@pytest.fixture
def authors_class(monkeypatch):
    """A function that makes the authors' class, in a module of the given name."""
    def make(module, words=WORDS):
        made = type("Vocabulary", (), {"__module__": module})
        if module not in sys.modules:
            monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        monkeypatch.setattr(sys.modules[module], "Vocabulary", made, raising=False)
        instance = made()
        instance.word2idx = {word: place for place, word in enumerate(words)}
        instance.idx2word = dict(enumerate(words))
        instance.idx = len(words)
        return instance
    return make


@pytest.mark.parametrize("module", ["vocab", "__main__"])
@pytest.mark.parametrize(("protocol", "python"), [*((each, 3) for each in range(6)), (0, 2), (1, 2), (2, 2)])
def test_a_pickled_vocabulary_is_read_as_plain_data(tmp_path, monkeypatch, authors_class, module, protocol, python):
    instance, file = authors_class(module), io.BytesIO()
    (PythonTwoPickler if python == 2 else pickle.Pickler)(file, protocol).dump(instance)
    (tmp_path / "f30k_precomp_vocab.pkl").write_bytes(file.getvalue())
    monkeypatch.delattr(sys.modules[module], "Vocabulary")
    vocabulary = read_authors_vocabulary(tmp_path / "f30k_precomp_vocab.pkl", "scan")
    assert vocabulary.words == tuple(WORDS) and vocabulary.max_words is None


def test_an_old_style_class_of_python_2_is_read(tmp_path):
    items = "".join(f"S{word!r}\nI{place}\ns" for place, word in enumerate(WORDS) if word.isascii())
    (tmp_path / "v.pkl").write_bytes(f"(ivocab\nVocabulary\np0\n(dS'word2idx'\n(d{items}V{WORDS[8]}\nI8\nssb.".encode("latin1"))
    assert read_authors_vocabulary(tmp_path / "v.pkl", "camp").words == tuple(WORDS)


@pytest.mark.parametrize("form", [
    lambda ids: {"word2idx": ids, "idx2word": {str(place): word for word, place in ids.items()}, "idx": len(ids)},
    lambda ids: {"word2idx": ids}, lambda ids: {"idx2word": {str(place): word for word, place in ids.items()}},
    lambda ids: {"idx2word": list(ids)}, lambda ids: ids, lambda ids: list(ids)])
@pytest.mark.parametrize("pickled", [True, False])
def test_every_form_of_dict_is_read(tmp_path, form, pickled):
    content = form({word: place for place, word in enumerate(WORDS)})
    path = tmp_path / "vocab"
    path.write_bytes(pickle.dumps(content) if pickled else json.dumps(content).encode())
    assert read_authors_vocabulary(path, "scan").words == tuple(WORDS)


def test_each_method_has_its_own_rules(tmp_path):
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps({"word2idx": {word: place for place, word in enumerate(WORDS)}}))
    long = " ".join(["a"] * 60)
    assert [len(read_authors_vocabulary(path, method).encode(long)) for method in ("scan", "dive", "camp")] == [62, 62, 49]
    assert read_authors_vocabulary(path, "dive", len(WORDS) + 1).words == (*WORDS, "<mask>")
    assert read_authors_vocabulary(path, "dive", len(WORDS)).words == tuple(WORDS)
    with pytest.raises(InputError, match="has 12 words and the checkpoint was made for 13: give the vocabulary that it was"):
        read_authors_vocabulary(path, "scan", 13)


def test_it_is_a_vocabulary_and_comes_back_from_json(tmp_path):
    vocabulary = AuthorsVocabulary(tuple(WORDS), 3)
    assert vocabulary.encode("A Man is here.") == [1, 4, 5, 3, 2] and vocabulary.decode([1, 4, 2, 0]) == ["<start>", "a", "<end>"]
    assert (len(vocabulary), vocabulary.id("nobody"), "man" in vocabulary, vocabulary.kind) == (12, 3, True, "words")
    assert vocabulary.spans("A Man is here.") == [(0, 0), (0, 1), (2, 5), (6, 8), (0, 0)]
    vocabulary.save(tmp_path / "vocabulary.json")
    back = load_vocabulary(tmp_path / "vocabulary.json")
    assert back == vocabulary and back.fingerprint == vocabulary.fingerprint and isinstance(back, AuthorsVocabulary)
    others = [AuthorsVocabulary(tuple(WORDS)), AuthorsVocabulary(tuple(WORDS[:-1]), 3), Vocabulary(tuple(WORDS))]
    assert all(other.fingerprint != vocabulary.fingerprint and other != vocabulary for other in others)
    with pytest.raises(InputError, match="the caption ' ' has no word in it"):
        vocabulary.encode(" ")
    (tmp_path / "vocabulary.json").write_text('{"kind": "authors", "words": 3}')
    with pytest.raises(InputError, match="is not a vocabulary of the authors"):
        load_vocabulary(tmp_path / "vocabulary.json")


# --- what is refused --------------------------------------------------------------------------------------------------

class Hostile:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_never_run(tmp_path, protocol):
    for number, call in enumerate([(os.system, f"touch {tmp_path}/run"), (eval, f"open({str(tmp_path / 'run')!r}, 'w')"),
                                   (subprocess.Popen, ["touch", str(tmp_path / "run")]), (getattr, {}, "clear")]):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps({"word2idx": {"<pad>": 0}, "idx": Hostile(*call)}, protocol))
        with pytest.raises(InputError, match="of a vocabulary nothing is read but plain values and the class __main__.Vocabulary or") as error:
            read_authors_vocabulary(path, "scan")
        assert call[0].__name__ in line_of(error)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [
    b"cvocab\nVocabulary\n(S'x'\ntR.",                                                    # the class called with arguments
    b"ccopy_reg\n_reconstructor\n(c__builtin__\nobject\nc__builtin__\nobject\nNtR.",      # an instance of object
    b"ccopy_reg\n_reconstructor\n(cvocab\nVocabulary\nc__builtin__\nobject\nS'x'\ntR.",   # with a state of its own
    b"cvocab\nVocabulary\n.", b"c__builtin__\nobject\n.", b"(lp0\ng0\na.", b"I3\n.",      # a class; a list in itself; a number
    b"\x80\x02}U\x08word2idxX\x01\x00\x00\x00as.", b"\x80\x02}U\x08word2idx}U\x01\xffK\x00ss.",  # a string; not UTF-8
    b"", b"\x80\x02}U\x08word2", b"no pickle", b"\x80\x63.", b"P1\n.", b"r\xff\xff\xff\xff."])
def test_what_is_no_vocabulary_is_one_line(tmp_path, content):
    (tmp_path / "v.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"v\.pkl (cannot be read as a pickle|is not a vocabulary)") as error:
        read_authors_vocabulary(tmp_path / "v.pkl", "scan")
    line_of(error)


@pytest.mark.parametrize("value", [1.5, None, (1, 2), b"bytes", {1, 2}, True, {"deep": [{"er": 1j}]}])
def test_other_values_are_refused(tmp_path, value):
    (tmp_path / "v.pkl").write_bytes(pickle.dumps({"word2idx": {"<pad>": 0}, "more": value}))
    with pytest.raises(InputError, match=r"v\.pkl (is not a vocabulary: it holds a value of the type|holds builtins.complex)") as error:
        read_authors_vocabulary(tmp_path / "v.pkl", "scan")
    line_of(error)


IDS = {word: place for place, word in enumerate(WORDS)}


@pytest.mark.parametrize(("content", "expected"), [
    ({"word2idx": {**IDS, "a": 5}}, "two words have one id"), ({"word2idx": {**IDS, "a": 50}}, "the ids of its 12 words are not 0 to 11"),
    ({"word2idx": IDS, "idx2word": {**dict(enumerate(WORDS)), "4": "b"}}, "word2idx and idx2word do not say the same"),
    ({"word2idx": {**IDS, "a": "4"}}, "is not a vocabulary"), ({"word2idx": 3}, "is not a vocabulary"), ({}, "is not a vocabulary"),
    ({"idx2word": {"one": "a"}}, "is not a vocabulary"), ([], "is not a vocabulary"), ({"words": WORDS}, "is not a vocabulary"),
    ({"a": 0, "b": 1}, "has no word <unk>"), ({"<unk>": 0, "<start>": 1, "<end>": 2, "<pad>": 3}, "a vocabulary starts with <pad>")])
def test_a_damaged_vocabulary_is_one_line(tmp_path, content, expected):
    (tmp_path / "vocab.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=expected) as error:
        read_authors_vocabulary(tmp_path / "vocab.json", "scan")
    assert "vocab.json" in line_of(error)


def test_missing_and_cut_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no vocabulary .*nowhere.json: check the path"):
        read_authors_vocabulary(tmp_path / "nowhere.json", "scan")
    (tmp_path / "cut.json").write_text('{"word2idx": {"<pa')
    with pytest.raises(InputError, match="cut.json is not valid JSON"):
        read_authors_vocabulary(tmp_path / "cut.json", "scan")


# --- tokens -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("text", "tokens"), [
    ("Two men, one woman.", "two men , one woman ."), ("A man 's hat .", "a man 's hat ."), ("The dog's T-shirt", "the dog 's t-shirt"),
    ("He can't; they're gonna.", "he ca n't ; they 're gon na ."), ('A sign: "STOP!"', "a sign : `` stop ! ''"),
    ("$5 (or 3,36 euros)...", "$ 5 ( or 3,36 euros ) ..."), ("A man. A dog.", "a man . a dog ."), ("A man runs", "a man runs"),
    ("Dr. Smith is here. Two dogs!", "dr. smith is here . two dogs !"), ("The U.S. flag in St. Paul.", "the u.s. flag in st. paul ."),
    ("J. Smith at 5 p.m. today", "j. smith at 5 p.m. today"), ("caf\xe9s -- \xc9cole", "caf\xe9s -- \xe9cole"), ("one.two", "one.two")])
def test_tokens_are_those_of_word_tokenize(text, tokens):
    assert NLTKTokenizer()(text) == tokens.split()
    for token, start, end in NLTKTokenizer().spans(text):
        assert text[start:end].lower() == token or (text[start:end] == '"' and token in ("``", "''"))


def test_spans_hold_where_small_letters_are_longer():
    text = '\u0130zmir: \'\'so\'\' he said.'
    assert [text[start:end] for _, start, end in NLTKTokenizer().spans(text)] == ["\u0130zmir", ":", "''", "so", "''", "he", "said", "."]


def test_without_nltk_the_line_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_nltk(name, *rest):
        if name.startswith("nltk"):
            raise ImportError(name)
        return real(name, *rest)
    authors_text._nltk.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_nltk)
    with pytest.raises(InputError, match=r"need NLTK, which is not installed: pip install 'itm_lib\[official\]'"):
        AuthorsVocabulary(tuple(WORDS)).encode("a man")
