"""Pictures and captions of one's own -> a dataset folder, like those of the papers' data.

The pictures are those of a RegionStore, or of a folder for models that read pixels; captions come from any source that
:func:`read_captions` reads, any number a picture. Splits are those that the captions' source gives, or drawn.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from itm_lib.data.dataset import about_images
from itm_lib.data.dataset_files import SPLITS, CaptionedPicture, has_words, making, replace_link, write_small_files
from itm_lib.data.own_captions import OwnCaption, read_captions
from itm_lib.data.pictures import SUFFIXES, find_pictures
from itm_lib.data.regions import ALL, RegionStore, find_regions
from itm_lib.files import InputError, counted

__all__ = ["OwnCaption", "check_captions", "draw_splits", "make_dataset", "read_captions", "usual_min_count"]

KIND = "own"
FEWEST = {"train": 2, "val": 1, "test": 1}  # pictures
ENOUGH = 20  # pictures of val and of test, below which a user is told
SHOWN = 3  # names in an error line


def make_dataset(captions: str | Path | Sequence[OwnCaption], out: str | Path, store: str | Path | None = None,
                 images: str | Path | None = None, name: str | None = None, val: float = 0.1, test: float = 0.1, seed: int = 0,
                 min_count: int | None = None, skip_empty: bool = False, partial: bool = False, progress: bool = True) -> Path:
    """Make the dataset folder ``out`` of ``captions`` (a source, or what :func:`read_captions` read) and pictures; returns ``out``.

    ``store``: the regions of the pictures, linked as regions/all.h5 (default: the one that lies there already); ``images``: the
    folder of the pictures, linked as images/; one of them is needed. An image id is the picture's path below its folder, without
    suffix. ``name``: the dataset's, by default the folder's.

    ``val``, ``test``: shares of the pictures below 1, or numbers of pictures; see :func:`draw_splits`. They and ``seed`` count
    only where the captions' source gives no splits. ``min_count``: how often a word stands in the training captions to be known; None follows
    their number, :func:`usual_min_count`.
    ``skip_empty``: leave out captions without a word. ``partial``: leave out captions without a picture and pictures without
    captions, which otherwise are errors. The same arguments give the same bytes.
    """
    out, chosen = Path(out), _Choices(val, test, seed, skip_empty, partial)
    with making(out, name or out.resolve().name, KIND):
        pictures = _Pictures.open(store_in(out, store), images)
        plan = _plan(captions, pictures, chosen)
        if min_count is None:
            min_count = usual_min_count(sum(len(picture.captions) for picture in plan.parts["train"]))
        if pictures.store is not None:
            link_store(out, pictures.store.path)
        if images is not None:
            link_images(out, Path(images))
        about = {"made_from": plan.made_from, "captions_sha256": plan.digest, "splits_given": plan.splits_given,
                 "options": {"min_count": min_count, **chosen.told(plan.splits_given)}, "left_out": plan.matched.left_out,
                 "repeated_captions": plan.matched.repeated, "regions": about_images(pictures.store) if pictures.store else {}}
        write_small_files(out, plan.parts, min_count, about)
    if progress:
        for line in plan.told():
            tqdm.write(line, file=sys.stderr)
    return out


def usual_min_count(captions: int) -> int:
    """How often a word should stand in so many training captions to be known: 4 as in the papers, less of few captions.

    A word that is never unknown in training leaves ``<unk>`` untrained, and every new word of a query becomes ``<unk>``.

    >>> [usual_min_count(captions) for captions in (100, 5000, 30000)]
    [1, 2, 4]
    """
    return next(count for fewest, count in ((10_000, 4), (2_000, 2), (0, 1)) if captions >= fewest)


def check_captions(captions: str | Path | Sequence[OwnCaption], images: str | Path, val: float = 0.1, test: float = 0.1,
                   skip_empty: bool = False, partial: bool = False) -> None:
    """Raise the :class:`InputError` that :func:`make_dataset` would, as far as the pictures in ``images`` show it: before hours of
    extraction."""
    _plan(captions, _Pictures.open(None, images), _Choices(val, test, 0, skip_empty, partial))


@dataclass(frozen=True)
class _Choices:
    """Arguments of :func:`make_dataset`."""

    val: float
    test: float
    seed: int
    skip_empty: bool
    partial: bool

    def told(self, splits_given: bool) -> dict[str, Any]:
        """Those that the folder depends on."""
        return {name: value for name, value in asdict(self).items() if not (splits_given and name in ("val", "test", "seed"))}


@dataclass(frozen=True)
class _Plan:
    """What goes into the folder: the pictures of each split."""

    made_from: str
    digest: str
    matched: _Matched
    splits_given: bool
    parts: dict[str, list[CaptionedPicture]]

    def told(self) -> list[str]:
        """What the user is to know of it, in lines."""
        lines = [", ".join(f"{split} {counted(len(found), 'picture')}" for split, found in self.parts.items())]
        small = [split for split in ("val", "test") if len(self.parts[split]) < ENOUGH]
        if small:
            lines.append(f"{' and '.join(small)} of fewer than {ENOUGH} pictures: what is measured there says little, and val chooses the model")
        lines += [f"left out: {count:,} {what}" for what, count in self.matched.left_out.items()]
        if self.matched.repeated:
            lines.append(f"repeated, and kept: {counted(self.matched.repeated, 'caption')} like another one of the same picture")
        return lines


def _plan(captions: str | Path | Sequence[OwnCaption], pictures: _Pictures, chosen: _Choices) -> _Plan:
    from_file = isinstance(captions, str | Path)
    made_from = Path(captions).name if from_file else "captions"
    found = read_captions(captions) if from_file else list(captions)
    matched = _match(found, pictures, made_from, chosen)
    given = _given_splits(matched.captions)
    split_of = given or draw_splits(matched.captions, chosen.val, chosen.test, chosen.seed)
    digest = hashlib.sha256(json.dumps([[*vars(caption).values()] for caption in found]).encode()).hexdigest()
    return _Plan(made_from, digest, matched, given is not None, _parts(matched.captions, split_of, made_from))


# --- captions and pictures ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pictures:
    """The pictures that there are: ``ids`` in order, ``where`` they are; ``broken`` and why; ``files``, where images/ is given;
    ``folder``, that they are in, where it is known."""

    ids: tuple[str, ...]
    where: str
    store: RegionStore | None
    broken: dict[str, str]
    files: frozenset[str] | None
    folder: Path | None

    @classmethod
    def open(cls, store: Path | None, images: str | Path | None) -> _Pictures:
        if store is None and images is None:
            raise InputError("neither regions nor pictures are given: extract the pictures' regions first, with 'itm extract', and give them "
                             "as --store, or for models that read pixels give the pictures' folder as --images")
        files = find_pictures(images) if images is not None else None
        if store is None:
            return cls(tuple(files), str(images), None, {}, frozenset(files), Path(images))
        opened = RegionStore(store)
        broken, folder = json.loads(opened.attrs.get("skipped", "{}")), images or opened.attrs.get("images")
        return cls(tuple(opened.image_ids), str(store), opened, broken, None if files is None else frozenset(files), folder and Path(folder))

    def __post_init__(self):
        names = {_normal(image_id): image_id for image_id in (*self.broken, *(self.files or ()), *self.ids)}
        folders = [self.folder, self.folder.resolve(), self.folder.resolve().name] if self.folder else []
        object.__setattr__(self, "_names", names)
        object.__setattr__(self, "_before", [f"{_normal(str(folder))}/" for folder in folders])

    def find(self, name: str) -> str | None:
        """The id of the picture that goes by ``name``."""
        return next((self._names[each] for each in self._forms(name) if each in self._names), None)

    def _forms(self, name: str) -> list[str]:
        """``name`` with and without suffix, and without the pictures' folder before it; the last is the barest."""
        name = _normal(name)
        paths = [name, *(name.removeprefix(folder) for folder in self._before if name.startswith(folder))]
        return [form for path in paths for form in (path, _without_suffix(path))]

    def suggest(self, name: str) -> str:
        """`` (did you mean 'cats/001'?)`` for the nearest of the names, or nothing."""
        by_lower = {known.lower(): image_id for known, image_id in self._names.items()}
        close = difflib.get_close_matches(self._forms(name)[-1].lower(), by_lower, n=1, cutoff=0.7)
        return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


@dataclass
class _Matched:
    """The captions of each picture in the end, by image id, and what was left out."""

    captions: dict[str, list[tuple[str, OwnCaption]]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    repeated: int = 0


def _match(found: Iterable[OwnCaption], pictures: _Pictures, made_from: str, chosen: _Choices) -> _Matched:
    """Each caption with its picture; what is without the other is an error, or left out if that was chosen."""
    by_picture: dict[str, list[OwnCaption]] = {}
    lost: list[OwnCaption] = []
    known = set(pictures.ids)
    for caption in found:
        image_id = pictures.find(caption.image)
        if image_id in known:
            by_picture.setdefault(image_id, []).append(caption)
        else:
            lost.append(caption)
    if lost and not chosen.partial:
        raise InputError(_lost_line(lost, pictures, made_from))
    matched, empty = _Matched(), 0
    seen: dict[str, str] = {}
    for image_id in filter(by_picture.__contains__, pictures.ids):
        kept = _kept(image_id, by_picture[image_id], chosen.skip_empty, seen)
        empty += len(by_picture[image_id]) - len(kept)
        matched.repeated += len(kept) - len({caption.text for _, caption in kept})
        if kept:
            matched.captions[image_id] = kept
    bare = [image_id for image_id in pictures.ids if image_id not in matched.captions]
    if bare and not chosen.partial:
        raise InputError(f"{made_from} has no captions of {len(bare):,} of the {counted(len(pictures.ids), 'picture')} in {pictures.where}, "
                         f"{_first(bare)}: write some, or leave these pictures out with --partial")
    unseen = [image_id for image_id in matched.captions if pictures.files is not None and image_id not in pictures.files]
    if unseen:
        raise InputError(f"the pictures' folder lacks {len(unseen):,} of the {len(matched.captions):,} pictures that {pictures.where} has regions "
                         f"of, {_first(unseen)}: give the folder that the regions were extracted from")
    counts = {"captions without a word": empty, "captions without a picture": len(lost), "pictures without captions": len(bare)}
    matched.left_out = {what: count for what, count in counts.items() if count}
    return matched


def _kept(image_id: str, captions: Sequence[OwnCaption], skip_empty: bool, seen: dict[str, str]) -> list[tuple[str, OwnCaption]]:
    """The captions of one picture that have a word, with their ids; ``seen``: where each id was given."""
    kept = []
    for number, caption in enumerate(captions):
        where = caption.where or f"image {image_id}"
        if not has_words(caption.text, where, skip_empty):
            continue
        caption_id = caption.caption_id or f"{image_id}#{number}"
        if caption_id in seen:
            raise InputError(f"{where}: the caption id {caption_id} is there twice, first in {seen[caption_id]}: give each caption an id of its "
                             "own, or leave the ids out")
        seen[caption_id] = where
        kept.append((caption_id, caption))
    return kept


def _lost_line(lost: Sequence[OwnCaption], pictures: _Pictures, made_from: str) -> str:
    """What to say of captions whose picture is not there: a wrong name before what extraction left out."""
    unknown = [caption for caption in lost if pictures.find(caption.image) is None]
    of_them = lambda captions: f"{counted(len(captions), 'caption')} of {counted(len({each.image for each in captions}), 'picture')}"  # noqa: E731
    if unknown:
        names = list({caption.image: caption for caption in reversed(unknown)}.values())[::-1]
        shown = ", ".join(f"{each.image!r}{f' in {each.where}' if each.where else ''}{pictures.suggest(each.image)}" for each in names[:SHOWN])
        return (f"{made_from} has {of_them(unknown)} that are not in {pictures.where}: {shown}{' ...' if len(names) > SHOWN else ''}; correct the "
                "names, or leave these captions out with --partial")
    broken = dict.fromkeys(image_id for caption in lost if (image_id := pictures.find(caption.image)) in pictures.broken)
    if broken:
        shown = ", ".join(f"{image_id} ({pictures.broken[image_id]})" for image_id in list(broken)[:SHOWN])
        return (f"{made_from} has captions of {counted(len(broken), 'picture')} that the extraction left out as broken: {shown}"
                f"{' ...' if len(broken) > SHOWN else ''}; mend them and extract again, or leave them out with --partial")
    return (f"{made_from} has {of_them(lost)} that {pictures.where} has no regions of, {_first(caption.image for caption in lost)}: extract "
            "again, or leave these captions out with --partial")


def _first(names: Iterable[str]) -> str:
    """``a, b and c among them``, or all of them if there are no more."""
    names = list(dict.fromkeys(names))
    shown = names[:SHOWN]
    text = " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))
    return text if len(names) <= SHOWN else f"{text} among them"


def _normal(name: str) -> str:
    """How names are compared: accents in one form, "/" between folders."""
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


def _without_suffix(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem if f".{suffix.lower()}" in SUFFIXES else name


# --- splits ---------------------------------------------------------------------------------------------------------------


def _given_splits(captions: Mapping[str, Sequence[tuple[str, OwnCaption]]]) -> dict[str, str] | None:
    """The split of each picture as the captions' source gives it; None if it gives none."""
    every = [(image_id, caption) for image_id, own in captions.items() for _, caption in own]
    without = [caption for _, caption in every if caption.split is None]
    if len(without) == len(every):
        return None
    if without:
        raise InputError(f"{without[0].where or without[0].image}: this caption has no split and others have one: give all of them one, or none")
    splits: dict[str, str] = {}
    for image_id, caption in every:
        if splits.setdefault(image_id, caption.split) != caption.split:
            raise InputError(f"{caption.where or image_id}: picture {image_id} is in {splits[image_id]} by one caption and in {caption.split} "
                             "by another: a picture has one split")
    return splits


def draw_splits(image_ids: Iterable[str], val: float = 0.1, test: float = 0.1, seed: int = 0) -> dict[str, str]:
    """The split of each picture, by a hash of ``seed`` and its id.

    ``val`` and ``test`` below 1 are shares: each picture falls into test with the probability ``test`` and into val with ``val``,
    so that pictures which are added move none of the others. From 1 on they are numbers of pictures, and a picture that is added
    may push one out. Val and test have at least one picture, train two.
    """
    for what, size in (("val", val), ("test", test)):
        if size <= 0 or (size >= 1 and size != int(size)):
            raise InputError(f"{what} is {size}: give a share of the pictures below 1, or a number of pictures")
    place = {image_id: _hash(f"{seed}/{image_id}") for image_id in image_ids}
    order = sorted(place, key=lambda image_id: (place[image_id], image_id))
    spare = len(order) - sum(FEWEST.values())
    if spare < 0:
        raise InputError(f"only {counted(len(order), 'picture')} with captions: at least {sum(FEWEST.values())} are needed, {_fewest()}")
    if sum(size for size in (val, test) if size < 1) >= 1 or sum(int(size) for size in (val, test) if size >= 1) > len(order) - FEWEST["train"]:
        raise InputError(f"val {val:g} and test {test:g} of {len(order)} pictures leave too few for train: give less")
    of_test = int(test) if test >= 1 else max(1, sum(value < test for value in place.values()))
    of_test = min(of_test, 1 + spare)
    start = place[order[of_test - 1]] if test >= 1 else test
    of_val = int(val) if val >= 1 else max(1, sum(value < start + val for value in place.values()) - of_test)
    of_val = min(of_val, len(order) - FEWEST["train"] - of_test)
    split = ["test"] * of_test + ["val"] * of_val + ["train"] * (len(order) - of_test - of_val)
    drawn = dict(zip(order, split))
    return {image_id: drawn[image_id] for image_id in place}


def _hash(text: str) -> float:
    """A number in [0, 1) that depends on ``text`` alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _fewest() -> str:
    return ", ".join(f"{count} of {split}" for split, count in FEWEST.items())


def _parts(captions: Mapping[str, Sequence[tuple[str, OwnCaption]]], split_of: Mapping[str, str],
           made_from: str) -> dict[str, list[CaptionedPicture]]:
    parts: dict[str, list[CaptionedPicture]] = {split: [] for split in SPLITS}
    for image_id, own in captions.items():
        texts = tuple((caption_id, caption.text) for caption_id, caption in own)
        parts[split_of[image_id]].append(CaptionedPicture(image_id, texts))
    for split, fewest in FEWEST.items():
        if len(parts[split]) < fewest:
            raise InputError(f"{made_from} gives {split} {counted(len(parts[split]), 'picture')}: at least {_fewest()} are needed; mark more, or give no splits "
                             "and they are drawn")
    return parts


# --- the folder -----------------------------------------------------------------------------------------------------------


def store_in(out: Path, store: str | Path | None) -> Path | None:
    """The regions: those given, or else those that lie in ``out`` already."""
    if store is not None:
        return Path(store)
    there = find_regions(out, ALL)
    return there if there.is_file() or there.is_symlink() else None


def link_store(out: Path, store: Path) -> None:
    """regions/all.h5 or .npy, a link to ``store`` unless it is that file."""
    regions = out / "regions"
    for split in SPLITS:
        if find_regions(out, split).stem != ALL and find_regions(out, split).exists():
            raise InputError(f"{regions} has {find_regions(out, split).name}, regions of one split: remove it, or give another --out")
    files = [store, *(path for path in (store.with_suffix(".json"), store.with_suffix(".boxes.npy")) if store.suffix == ".npy" and path.is_file())]
    links = {regions / f"{ALL}{path.name.removeprefix(store.stem)}": path for path in files}
    if store.resolve() in {path.resolve() for path in (regions / f"{ALL}.h5", regions / f"{ALL}.npy")}:
        return
    for path in regions.glob(f"{ALL}.*"):
        if not path.is_symlink():
            raise InputError(f"{regions} has regions of its own already, {path.name}: remove them, or give another --out")
        path.unlink()
    for link, path in links.items():
        replace_link(link, path)


def link_images(out: Path, images: Path) -> None:
    """images/, a link to the pictures' folder unless it is that folder."""
    link = out / "images"
    if link.is_dir() and link.resolve() == images.resolve():
        return
    if link.exists() and not link.is_symlink():
        raise InputError(f"{out} has pictures of its own already, in images: remove them, or give another --out")
    replace_link(link, images)
