"""A dataset folder while it is made, the same whatever it is made of: who may write it, and its small files.

``captions.jsonl``, ``splits.json`` and ``vocabulary.json`` are written at the end, each whole, and ``meta.json`` last: it says what
the folder is called, what it was made of, and that all is there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itm_lib.data.captions import SPECIAL, Tokenizer, Vocabulary
from itm_lib.files import InputError, held, read_json, write_json, write_jsonl

SPLITS = ("train", "val", "test")
META = "meta.json"
_BEGUN = ".making.json"  # the name of what is being made, until meta.json says it
FORMAT = 1


@dataclass(frozen=True)
class CaptionedPicture:
    """One picture of a split; ``captions`` as (caption id, text)."""

    image_id: str
    captions: tuple[tuple[str, str], ...]


@contextmanager
def making(out: Path, name: str, kind: str) -> Iterator[None]:
    """Hold ``out`` while it is written. What is another dataset's, by its ``name`` or by the ``kind`` of its making, is refused."""
    if (out / "splits.json").is_file():
        there = next((read_json(out / file) for file in (META, _BEGUN) if (out / file).is_file()), {})
        if there.get("name") != name or there.get("kind", kind) != kind:
            raise InputError(f"{out} holds another dataset already ({there.get('name', 'of unknown origin')}): give another --out, or remove it")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {out} cannot be made ({error.strerror}): give another --out") from None
    with held(out / ".import.lock", f"{out} is being written by another import: wait for it, or give another --out"):
        for part in out.glob(".*.part"):  # of a write that a kill cut short
            part.unlink()
        write_json(out / _BEGUN, {"name": name, "kind": kind})
        yield


def has_words(text: str, where: str, skip_empty: bool) -> bool:
    """Whether a caption has a word in it; if not, that is an error unless such captions are to be left out."""
    if Tokenizer().finds_any(text):
        return True
    if not skip_empty:
        raise InputError(f"{where}: the caption {text!r} has no word in it; write one, or leave such captions out with --skip-empty")
    return False


def replace_link(link: Path, target: Path) -> None:
    """Make ``link`` point at ``target``, whatever it pointed at before; at no moment is it absent."""
    link.parent.mkdir(parents=True, exist_ok=True)
    part = link.with_name(f".{link.name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    os.symlink(target.resolve(), part)
    os.replace(part, link)


def write_small_files(out: Path, pictures: Mapping[str, Sequence[CaptionedPicture]], min_count: int, about: Mapping[str, Any],
                      counts: Mapping[str, Mapping[str, int]] | None = None) -> Path:
    """The captions, splits and vocabulary of ``pictures`` a split, and meta.json with what ``about`` says; returns ``out``.

    ``min_count``: how often a word stands in the training captions to be known; ``counts``: what meta.json says of a split besides.
    """
    rows = [{"caption_id": caption_id, "image_id": picture.image_id, "text": text, "split": split}
            for split, found in pictures.items() for picture in found for caption_id, text in picture.captions]
    vocabulary = Vocabulary.build((row["text"] for row in rows if row["split"] == "train"), min_count)
    if len(vocabulary) == len(SPECIAL):
        raise InputError(f"no word stands {min_count} times in the training captions: give a smaller --min-count")
    (out / META).unlink(missing_ok=True)
    write_jsonl(out / "captions.jsonl", rows)
    write_json(out / "splits.json", {split: [picture.image_id for picture in found] for split, found in pictures.items()})
    vocabulary.save(out / "vocabulary.json")
    sizes = {split: {"images": len(found), "captions": sum(len(picture.captions) for picture in found), **(counts or {}).get(split, {})}
             for split, found in pictures.items()}
    write_json(out / META, {"format": FORMAT, **read_json(out / _BEGUN), **about, "splits": sizes, "words": len(vocabulary)})
    (out / _BEGUN).unlink()
    return out
