"""Captions: text -> words -> token ids. The vocabulary is JSON and comes from training captions alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from itm_lib.files import InputError, read_json, write_json

PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unk>"
SPECIAL = (PAD, START, END, UNKNOWN)
_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


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


@dataclass(frozen=True)
class Vocabulary:
    """Words and their ids: ``<pad>`` 0, ``<start>`` 1, ``<end>`` 2, ``<unk>`` 3, then words by falling count."""

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
        words = Tokenizer()(text)
        if not words:
            raise InputError(f"the caption {text!r} has no word in it: remove it or write one")
        return [self.id(START), *(self.id(word) for word in words), self.id(END)]

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
