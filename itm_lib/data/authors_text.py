"""The vocabularies and tokens of the papers' authors, so that captions get the ids that their weights were trained with.

SCAN, CAMP and DivE lower-case a caption, cut it with NLTK's word tokenizer and put ``<start>`` and ``<end>`` around it; a word
that is not in the vocabulary is ``<unk>``. CAMP keeps the first 47 tokens. DivE has a ``<mask>`` behind the words of its file.
HREM reads the word pieces of bert-base-uncased, :class:`itm_lib.data.captions.WordPieces`.

The vocabularies are files of JSON, or pickles of a class ``Vocabulary``. Nothing of a pickle is run: :func:`read_plain_pickle`.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from itm_lib.data.captions import UNKNOWN, Vocabulary, short_hash
from itm_lib.files import InputError, one_line, read_json, write_json

MASK = "<mask>"
MAX_WORDS = {"camp": 47}  # tokens of a caption that a method reads at most, <start> and <end> not counted
VOCABULARY_CLASSES = frozenset({"__main__.Vocabulary", "vocab.Vocabulary"})

# What ends in a period and does not end a sentence. NLTK reads such words from data that it downloads; these are the common
# English ones among them. Letters alone ("j. smith") need no list.
ABBREVIATIONS = frozenset("""
    dr mr mrs ms messrs prof st sr jr lt col maj gen adm sen rep reps gov inc corp co cos ltd bros cie vs ave ft mg yr ct chg
    jan feb aug sep sept oct nov dec tues wed fri ala ariz calif colo conn fla ga ill kan ky mich minn nev okla ore pa tenn va vt
    wash wis w.va u.s u.s.a u.k u.n n.y n.j n.c n.d n.h n.m s.c d.c l.a r.i a.m p.m a.d ph.d m.b.a ok sw""".split())
_QUOTES = ('"', "''", "``")  # the tokenizer writes one for another


class NLTKTokenizer:
    """``nltk.word_tokenize`` of the lower-cased caption, without the data that it downloads.

    That function first cuts a text into sentences, because a period is a token of its own only at the end of one, then each
    sentence by fixed rules. Here are the same rules and the same algorithm for sentences; of its downloaded data there are the common
    abbreviations, :data:`ABBREVIATIONS`, and none of its counts of words. Captions without a period inside have the same tokens, and
    so have those of several plain sentences. After an abbreviation that is not listed, the period is a token of its own here
    ("m.j. is here").
    The rules are those of the installed NLTK: its versions differ in quotation marks, and the authors' were of 2018 to 2022.

    >>> NLTKTokenizer()("A man. He's at Dr. Smith's, isn't he?")
    ['a', 'man', '.', 'he', "'s", 'at', 'dr.', 'smith', "'s", ',', 'is', "n't", 'he', '?']
    """

    def __call__(self, text: str) -> list[str]:
        sentences, words = _nltk()
        text = text.lower()
        return [word for start, end in sentences.span_tokenize(text) for word in words.tokenize(text[start:end])]

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The tokens with their first and one-past-last character in ``text``."""
        lower = text.lower()
        place = [index for index, letter in enumerate(text) for _ in letter.lower()]  # a capital may have two small letters
        found, start = [], 0
        for token in self(text):
            while lower[start].isspace():
                start += 1
            written = [each for each in (_QUOTES if token in _QUOTES else (token,)) if lower.startswith(each, start)]
            end = start + len(written[0] if written else token)
            found.append((token, place[start], place[min(end, len(place)) - 1] + 1))
            start = end
        return found


@lru_cache(maxsize=1)
def _nltk() -> tuple[Any, Any]:
    """What finds sentences, and what cuts one. NLTK takes a second to import: only here."""
    try:
        from nltk.tokenize.destructive import NLTKWordTokenizer
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer
    except ImportError:
        raise InputError("the authors' tokens need NLTK, which is not installed: pip install 'itm_lib[official]'") from None
    parameters = PunktParameters()
    parameters.abbrev_types = set(ABBREVIATIONS)
    return PunktSentenceTokenizer(parameters), NLTKWordTokenizer()


@dataclass(frozen=True)
class AuthorsVocabulary(Vocabulary):
    """A vocabulary of the authors, ``words`` in the order of their ids, with their tokenizer.

    ``max_words``: how many tokens of a caption are read, ``<start>`` and ``<end>`` not counted; None for all.
    """

    form: ClassVar[str] = "authors"  # "kind" of the saved file
    max_words: int | None = None

    def encode(self, text: str) -> list[int]:
        """``<start>``, the tokens, ``<end>`` as ids. A caption without any token raises :class:`InputError`."""
        tokens = NLTKTokenizer()(text)[: self.max_words]
        if not tokens:
            raise InputError(f"the caption {text!r} has no word in it: remove it or write one")
        return [self.id("<start>"), *map(self.id, tokens), self.id("<end>")]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """First and one-past-last character in ``text`` of each token of :meth:`encode`; (0, 0) for those without any."""
        return [(0, 0), *((start, end) for _, start, end in NLTKTokenizer().spans(text)[: self.max_words]), (0, 0)]

    @property
    def fingerprint(self) -> str:
        """A short hash of what decides the ids."""
        return short_hash("\n".join([self.form, str(self.max_words), *self.words]))

    def save(self, path: str | Path) -> None:
        write_json(path, {"kind": self.form, "max_words": self.max_words, "words": list(self.words)})

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: str | Path) -> AuthorsVocabulary:
        """What :meth:`save` wrote into ``where``."""
        words, longest = content.get("words"), content.get("max_words")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not isinstance(longest, int | None):
            raise InputError(f'{where} is not a vocabulary of the authors: expected {{"kind": "authors", "words": [...]}}')
        return cls(tuple(words), longest)


def read_authors_vocabulary(path: str | Path, method: str, size: int | None = None) -> AuthorsVocabulary:
    """The vocabulary that the authors of ``method`` ("scan", "camp", "dive") saved in ``path``: JSON, or a pickle.

    ``size``: the number of words that a checkpoint was made for. DivE's files lack the ``<mask>`` that its code puts behind the
    words, which is added here where ``size`` says so. Any other difference raises :class:`InputError`.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no vocabulary {path}: check the path; the authors' lies in the folder vocab/ of their code")
    with open(path, "rb") as file:
        text = file.read(64).lstrip()[:1] in (b"{", b"[")
    content = read_json(path) if text else read_plain_pickle(path, VOCABULARY_CLASSES, "a vocabulary")
    words = _words_in_order(content, path)
    if method == "dive" and MASK not in words and size == len(words) + 1:
        words.append(MASK)
    if size is not None and size != len(words):
        raise InputError(f"{path} has {len(words)} words and the checkpoint was made for {size}: give the vocabulary that it was "
                         "trained with")
    try:
        return AuthorsVocabulary(tuple(words), MAX_WORDS.get(method))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _words_in_order(content: Any, path: Path) -> list[str]:
    """The words by their ids, from word2idx, idx2word, both, a plain {word: id} or a list of words."""
    if isinstance(content, Mapping) and not {"word2idx", "idx2word"} & set(content):
        content = {"word2idx": content}
    elif isinstance(content, list):
        content = {"idx2word": content}
    ids = content.get("word2idx") if isinstance(content, Mapping) else None
    listed = content.get("idx2word") if isinstance(content, Mapping) else None
    if isinstance(listed, list):
        listed = dict(enumerate(listed))
    try:
        by_word = None if ids is None else {place: word for word, place in ids.items()}
        by_place = None if listed is None else {int(place): word for place, word in listed.items()}
    except (AttributeError, TypeError, ValueError):
        by_word = by_place = None
    words = by_word if by_word is not None else by_place
    if not words or not all(type(place) is int and isinstance(word, str) for place, word in words.items()):
        raise InputError(f"{path} is not a vocabulary: expected word2idx {{word: id}}, idx2word {{id: word}}, or both")
    if by_word is not None and (len(by_word) != len(ids) or by_place not in (None, by_word)):
        raise InputError(f"{path}: word2idx and idx2word do not say the same, or two words have one id: the file is damaged")
    if sorted(words) != list(range(len(words))):
        raise InputError(f"{path}: the ids of its {len(words)} words are not 0 to {len(words) - 1}: the file is damaged")
    if UNKNOWN not in words.values():
        raise InputError(f"{path} has no word {UNKNOWN}: it is no vocabulary of SCAN's, CAMP's or DivE's code")
    return [words[place] for place in range(len(words))]


# --- pickles as plain data --------------------------------------------------------------------------------------------

_PLAIN = (dict, list, str, int)


def read_plain_pickle(path: str | Path, classes: Collection[str], what: str,
                      plain: tuple[type, ...] = _PLAIN) -> dict[str, Any] | list[Any]:
    """What the pickle ``path`` holds, as plain data: an instance of one of ``classes`` ("module.Class") becomes the dict of its
    attributes. Pickles of Python 2 are read too. ``what``: what the file should be, for the error line.

    No class or function of the file's is looked up, so nothing can be run: its instances are made of a class without anything.
    A file that names another class, or holds a value that is not ``plain``, raises :class:`InputError`.
    """
    class Instance:
        """Stands for any of ``classes``; made anew for each file, which may put attributes on it."""

    class Base:
        """Stands for object, which Python 2 names as the base of every class."""

    def rebuild(cls: Any, base: Any, state: Any) -> Any:  # how protocols 0 and 1 make an instance
        if cls is not Instance or base is not Base or state is not None:
            raise pickle.UnpicklingError("an instance is made of something else")
        return Instance()

    known = {**dict.fromkeys(classes, Instance), **dict.fromkeys(("copy_reg._reconstructor", "copyreg._reconstructor"), rebuild),
             **dict.fromkeys(("__builtin__.object", "builtins.object"), Base)}

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if f"{module}.{name}" not in known:
                raise InputError(f"{path} holds {module}.{name}: of {what} nothing is read but plain values and the class "
                                 f"{' or '.join(sorted(classes))}")
            return known[f"{module}.{name}"]

    try:
        with open(path, "rb") as file:
            content = Unpickler(file, encoding="utf-8").load()
    except InputError as error:
        raise InputError(one_line(error, 400)) from None
    except Exception as error:  # a broken pickle may raise any
        raise InputError(f"{path} cannot be read as a pickle ({one_line(error)}): it is damaged or is not {what}") from None
    return _as_plain(content, Instance, plain, f"{path} is not {what}")


def _as_plain(content: Any, instance: type, plain: tuple[type, ...], where: str) -> Any:
    """``content`` with each ``instance`` as the dict of its attributes, after a look at every value in it."""
    if isinstance(content, instance):
        content = vars(content)
    todo, seen = [content], set()
    while todo:
        value = todo.pop()
        if type(value) not in plain:
            raise InputError(f"{where}: it holds a value of the type {type(value).__name__}")
        if isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo += [*value, *value.values()] if isinstance(value, dict) else value
    if not isinstance(content, (dict, list)):
        raise InputError(f"{where}: it holds a value of the type {type(content).__name__}")
    return content
