"""Published formats -> a dataset folder: SCAN's archive, Karpathy's splits with features of the bottom-up attention detector.

Features are written in float16, picture by picture: memory stays flat whatever the size. An import that was stopped, by a kill
too, goes on where it was: what is written is held against its checksum and kept, and the folder is the same in the end. What
does not fit together is one line (:class:`InputError`) that names file and line; nothing is skipped unless asked.

``meta.json`` of the folder says what it was made of: sizes and SHA-256 of the sources, the options, the counts. It is written
last. Features without boxes (SCAN's archive has none) give a RegionStore without boxes: ``has_boxes`` is False.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from itm_lib.data import flickr8k
from itm_lib.data.dataset_files import SPLITS, has_words, making, replace_link, write_small_files
from itm_lib.data.feature_files import Features, Passes, RepeatedRows, open_features
from itm_lib.data.karpathy import Options, Picture, read_karpathy
from itm_lib.data.pictures import SUFFIXES
from itm_lib.data.published import CAPTIONS_PER_IMAGE, DATASETS, DatasetInfo, dataset_info, instructions
from itm_lib.data.regions import FileRows, RegionStore, RegionWriter
from itm_lib.files import InputError, data_dir, read_text, write_json

__all__ = ["DATASETS", "DatasetInfo", "import_karpathy", "import_scan_archive", "instructions", "prepare"]

ARCHIVE_SPLITS = {"train": ("train",), "val": ("dev",), "test": ("testall", "test")}  # the first that is there
REPEATS = 5       # in SCAN's arrays of dev and test each picture stands so many times in a row
KIND = "published"


def prepare(name: str, source: str | Path | None = None, out: str | Path | None = None, captions: str | Path | None = None,
            images: str | Path | None = None, restval: bool | None = None, link: bool = False, **options: Any) -> Path:
    """Make the dataset folder ``out`` (default: ``name`` in the data folder) of whatever ``source`` holds; returns it.

    ``source``: SCAN's archive, or features as :func:`import_karpathy` takes them; ``captions``: Karpathy's JSON, looked for beside
    the features if not given; ``images``: a folder of the pictures, for models that read pixels. The rest as in
    :func:`import_scan_archive`, :func:`import_karpathy` and :class:`Options`. Counts are checked against those of the papers;
    ``partial=True`` allows others.

    Flickr8k is another kind: ``source`` is the region file that ``itm extract`` made of the photographs, ``captions`` a folder or file
    of any of its three forms; see :mod:`itm_lib.data.flickr8k`.
    """
    info = dataset_info(name)
    if name == flickr8k.NAME:
        return _prepare_flickr8k(source, Path(out) if out is not None else data_dir() / name, captions, images, link, options)
    if source is None and images is None:
        raise InputError(f"nothing to prepare {name} from: give --source, or --captions and --images; 'itm data prepare {name}' says what to get")
    out = Path(out) if out is not None else data_dir() / name
    found = _archive(Path(source), info) if source is not None else None
    if found is not None:
        if images is not None:
            raise InputError("SCAN's archive does not name its pictures' files: with --images give Karpathy's JSON and no archive")
        return import_scan_archive(found, out, name, captions, link=link, **options)
    if link:
        raise InputError("--link takes SCAN's archive as it is; other features have to be written anew: leave it out")
    json_path = Path(captions) if captions is not None else _beside(source or images, f"dataset_{name}.json")
    return import_karpathy(json_path, source, out, name, images=images, restval=restval, **options)


def _prepare_flickr8k(source: str | Path | None, out: Path, captions: str | Path | None, images: str | Path | None, link: bool,
                      options: dict[str, Any]) -> Path:
    if link:
        raise InputError("--link takes SCAN's archive as it is; flickr8k links its region file anyway: leave it out")
    if captions is None:
        raise InputError(f"no captions to prepare {flickr8k.NAME} from: give --captions, the folder or file that holds them; 'itm data prepare "
                         f"{flickr8k.NAME}' says what to get")
    chosen = Options(**options)
    return flickr8k.prepare_flickr8k(captions, out, source, images, chosen.min_count, chosen.skip_empty, chosen.partial, chosen.progress)


def _archive(source: Path, info: DatasetInfo) -> Path | None:
    """The folder of SCAN's arrays that ``source`` is or has; None if it has none."""
    if not source.exists():
        raise InputError(f"no folder or file {source}: check the path")
    short = {"flickr30k": "f30k"}.get(info.name, info.name)
    places = [source, *(source / place for place in (info.archive, f"{short}/precomp", f"data/{info.archive}"))]
    return next((place for place in places if place.is_dir() and any(place.glob("*_ims.npy"))), None)


def _beside(place: str | Path, name: str) -> Path:
    place = Path(place)
    for folder in (place, place.parent):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"no {name} in {place} or beside it: give the path of Karpathy's file with --captions")


# --- SCAN's archive -------------------------------------------------------------------------------------------------------


def import_scan_archive(source: str | Path, out: str | Path, name: str, captions: str | Path | None = None, link: bool = False,
                        **options: Any) -> Path:
    """SCAN's archive of one dataset, the folder ``source``, as the dataset folder ``out``; returns ``out``.

    ``<split>_ims.npy`` (rows, 36, 2048) and ``<split>_caps.txt``, a caption a line, five a picture; splits train, dev and test,
    or testall in place of test. An array has a row a picture, or five equal ones, which become one. Pictures are called
    "<split>-00012", or as ``<split>_ids.txt`` calls them if every split has that file; or, with ``captions``, Karpathy's JSON, as
    there: pictures are found by their captions. ``link=True``: the arrays are used where they are, float32, and nothing is copied.
    """
    source, out, chosen = Path(source), Path(out), Options(**options)
    files = {split: _archive_files(source, split) for split in SPLITS}
    with _folder(out, name, chosen.progress) as passes:
        arrays, pictures = {}, {}
        for split, (array, texts) in files.items():
            rows = FileRows.of_npy(array)
            if len(rows.shape) != 3:
                raise InputError(f"{array} has the shape {rows.shape}: (rows, regions, numbers) is needed")
            lines = _caption_lines(texts)
            arrays[split] = rows, _repeats(rows, lines, array, texts)
            pictures[split] = _archive_pictures(split, lines, len(rows) // arrays[split][1], chosen, texts)
        pictures = _with_ids(pictures, source, files, arrays)
        if captions is not None:
            pictures = _named_by_karpathy(pictures, Path(captions))
        _check_counts(name, pictures, chosen)
        made = _Folder(out, name, f"SCAN's archive, {source.name}", chosen, passes)
        made.take(pictures)
        for split in SPLITS:
            rows, repeat = arrays[split]
            features = RepeatedRows(files[split][0], rows, repeat, passes.digest(files[split][0]))
            (made.link if link else made.write)(split, features)
        made.sources += [passes.digest(texts) for _, texts in files.values()]
        made.sources += [passes.digest(Path(captions))] if captions is not None else []
        return made.finish(link=link)


def _archive_files(source: Path, split: str) -> tuple[Path, Path]:
    names = ARCHIVE_SPLITS[split]
    for name in names:
        if (source / f"{name}_ims.npy").is_file():
            texts = source / f"{name}_caps.txt"
            if not texts.is_file():
                raise InputError(f"{source} has {name}_ims.npy and no {texts.name}: get the captions too")
            return source / f"{name}_ims.npy", texts
    raise InputError(f"{source} has no {' or '.join(f'{name}_ims.npy' for name in names)}: SCAN's archive has train, dev and test; get "
                     "what is missing")


def _caption_lines(path: Path) -> list[str]:
    """The captions in a file, one a line; only the end of the file may be empty."""
    text = read_text(path)
    return [" ".join(line.split()) for line in text.removesuffix("\n").split("\n")]


def _repeats(rows: FileRows, lines: Sequence[str], array: Path, texts: Path) -> int:
    """How often each picture stands in the array, from the number of rows and captions."""
    if len(lines) == REPEATS * len(rows):
        return 1
    if len(lines) == len(rows) and len(rows) % REPEATS == 0:
        return REPEATS
    raise InputError(f"{array.name} has {len(rows):,} rows and {texts.name} {len(lines):,} captions: {array.parent} needs {REPEATS} captions a "
                     "picture, each picture in one row or in five; one of the files is cut short or of another split")


def _archive_pictures(split: str, lines: Sequence[str], count: int, options: Options, texts: Path) -> list[Picture]:
    pictures = []
    for number in range(count):
        image_id = f"{split}-{number:05d}"
        kept = []
        for place in range(REPEATS):
            line = REPEATS * number + place
            if has_words(lines[line], f"{texts} line {line + 1}", options.skip_empty):
                kept.append((f"{image_id}#{place}", lines[line]))
        pictures.append(Picture(image_id, tuple(kept), number))
    return pictures


def _with_ids(pictures: dict[str, list[Picture]], source: Path, files: Mapping[str, tuple[Path, Path]],
              arrays: Mapping[str, tuple[FileRows, int]]) -> dict[str, list[Picture]]:
    """The pictures under the names in <split>_ids.txt, a line a picture or a line a row, if every split has such a file."""
    paths = {split: source / array.name.replace("_ims.npy", "_ids.txt") for split, (array, _) in files.items()}
    if not all(path.is_file() for path in paths.values()):
        return pictures
    renamed, seen = {}, {}
    for split, path in paths.items():
        ids, count = path.read_text(encoding="utf-8").split(), len(pictures[split])
        groups = [ids[first : first + REPEATS] for first in range(0, len(ids), REPEATS)]
        if len(ids) == REPEATS * count and all(len(set(group)) == 1 for group in groups):
            ids = [group[0] for group in groups]
        twice = next((image_id for image_id in ids if seen.setdefault(image_id, path.name) != path.name), None)
        if len(ids) != count or len(set(ids)) != count or twice is not None:
            why = f"{twice} is in {seen[twice]} too" if twice is not None else f"{len(set(ids)):,} different ids for {count:,} pictures"
            raise InputError(f"{path}: {why}; remove the *_ids.txt files to number the pictures instead")
        renamed[split] = [replace(picture, image_id=image_id, captions=tuple(
            (f"{image_id}#{caption_id.rpartition('#')[2]}", text) for caption_id, text in picture.captions))
            for picture, image_id in zip(pictures[split], ids)]
    return renamed


def _named_by_karpathy(pictures: dict[str, list[Picture]], path: Path) -> dict[str, list[Picture]]:
    """The archive's pictures under the ids of Karpathy's file, found by their captions, letters and digits alone."""
    plain = lambda texts: tuple(re.sub(r"[^a-z0-9]", "", text.lower()) for _, text in texts)
    named = {}
    for split, theirs in read_karpathy(path, restval=True, options=Options(skip_empty=True)).items():
        waiting: dict[tuple[str, ...], list[Picture]] = {}
        for picture in reversed(theirs):
            waiting.setdefault(plain(picture.captions), []).append(picture)
        lost = [picture for picture in pictures[split] if not waiting.get(plain(picture.captions))]
        if lost:
            raise InputError(f"{path} lacks {len(lost):,} of the {len(pictures[split]):,} {split} pictures of the archive, by their captions; "
                             f"{lost[0].image_id} among them ({lost[0].captions[0][1][:40]!r}): give the file of this dataset, or none")
        named[split] = []
        for picture in pictures[split]:
            known = waiting[plain(picture.captions)].pop()
            ids = [caption_id for caption_id, _ in known.captions]
            named[split].append(replace(picture, image_id=known.image_id, captions=tuple(zip(ids, (text for _, text in picture.captions)))))
    return named


# --- Karpathy's splits ----------------------------------------------------------------------------------------------------


def import_karpathy(json_path: str | Path, features: str | Path | None, out: str | Path, name: str = "",
                    images: str | Path | None = None, restval: bool | None = None, captions_per_image: int | None = CAPTIONS_PER_IMAGE,
                    **options: Any) -> Path:
    """Karpathy's dataset_*.json joined with ``features``, as the dataset folder ``out``; returns ``out``.

    ``features``: a .tsv of the bottom-up attention detector, a folder of such, a folder of one .npy or .npz a picture, a
    RegionStore or a folder of those; None with ``images``. ``images``: a folder of the pictures, linked into images/ under their
    ids. ``restval``: the pictures so marked are for training; by default they are if there are any (COCO). Of each picture the first
    ``captions_per_image`` captions are taken, as in the papers; None for all. Ids are COCO's numbers (``cocoid``), or the file's
    name without .jpg, and ``sentid``.
    """
    json_path, out, chosen = Path(json_path), Path(out), Options(**options)
    if features is None and images is None:
        raise InputError("neither features nor images are given: a dataset folder needs one of them")
    pictures = read_karpathy(json_path, restval is not False, captions_per_image, chosen)
    name = name or str(json_path.stem).removeprefix("dataset_")
    _check_counts(name, pictures, chosen, restval is not False, captions_per_image)
    with _folder(out, name, chosen.progress) as passes:
        found = open_features(Path(features), passes) if features is not None else None
        if found is not None:
            pictures = _with_features(pictures, found, Path(features), chosen)
        made = _Folder(out, name, f"Karpathy's {json_path.name}", chosen, passes)
        made.take(pictures)
        for split in SPLITS if found is not None else ():
            made.write(split, found)
        if images is not None:
            made.link_pictures(Path(images))
        made.sources = [passes.digest(json_path), *made.sources]
        return made.finish(restval=restval is not False, captions_per_image=captions_per_image)


def _with_features(pictures: dict[str, list[Picture]], features: Features, where: Path, options: Options) -> dict[str, list[Picture]]:
    """The pictures that there are features of: all of them, or else ``partial`` was asked for."""
    wanted = sum(len(found) for found in pictures.values())
    kept = {split: [picture for picture in found if picture.key in features] for split, found in pictures.items()}
    lost = [picture.image_id for found in pictures.values() for picture in found if picture.key not in features]
    if lost and not options.partial:
        raise InputError(f"{where} has no features of {len(lost):,} of {wanted:,} pictures, {', '.join(lost[:3])} among them: add them, or leave "
                         "these pictures out with --partial")
    return kept


# --- the dataset folder ---------------------------------------------------------------------------------------------------


@contextmanager
def _folder(out: Path, name: str, progress: bool) -> Iterator[Passes]:
    """Hold ``out`` while it is written, and remember what was found in the sources."""
    with making(out, name, KIND):
        yield Passes(out / ".sources.json", progress)


class _Folder:
    """The dataset folder while it is written: regions first, then captions, splits and vocabulary, and meta.json last."""

    def __init__(self, out: Path, name: str, made_from: str, options: Options, passes: Passes):
        self.out, self.name, self.made_from, self.options, self.passes = out, name, made_from, options, passes
        self.pictures: dict[str, list[Picture]] = {}
        self.all_val, self.sources, self.regions = 0, [], {}

    def take(self, pictures: dict[str, list[Picture]]) -> None:
        """The pictures that go into the folder: val is cut, and every split has some, each with captions."""
        self.all_val = len(pictures["val"])
        self.pictures = {**pictures, "val": pictures["val"][: self.options.val_images]}
        for split, found in self.pictures.items():
            if not found:
                raise InputError(f"{self.made_from} has no {split} pictures: train, val and test are needed")
            bare = [picture.image_id for picture in found if not picture.captions]
            if bare:
                raise InputError(f"image {bare[0]} of {split} has no captions ({len(bare)} such pictures): add some, or remove it")

    def write(self, split: str, features: Features) -> None:
        """regions/<split>.h5; what is there of it already is checked and kept."""
        path, pictures = self._path(split, ".h5", features), self.pictures[split]
        image_ids = [picture.image_id for picture in pictures]
        settings = {"source": _digest(features.sources)}
        if not _is_whole(path, image_ids, {"extractor": features.extractor, **settings}):
            with RegionWriter(path, image_ids, features.max_regions, features.dim, features.extractor, features.boxes, resume=True,
                              progress=self.options.progress, **settings) as writer:
                order = sorted(np.flatnonzero(~writer.done), key=lambda row: features.place(pictures[row].key))
                with tqdm(order, desc=f"regions of {split}", unit="picture", initial=int(writer.done.sum()), total=len(image_ids),
                          disable=not self.options.progress) as bar:
                    for row in bar:
                        writer.write(row, *features.read(pictures[row].key))
        RegionStore(path).verify(self.options.progress)

    def link(self, split: str, features: RepeatedRows) -> None:
        """regions/<split>.npy, a link to the array as it is, and the list of its pictures. All of it is read once, to check it."""
        path, pictures = self._path(split, ".npy", features), self.pictures[split]
        replace_link(path, features.path)
        write_json(path.with_suffix(".json"), {"extractor": features.extractor, "image_ids": [picture.image_id for picture in pictures],
                                               "row_of_image": [picture.key * features.repeat for picture in pictures]})
        for picture in tqdm(pictures if features.repeat > 1 else [], desc=f"check {split}", disable=not self.options.progress):
            features.read(picture.key)
        RegionStore(path).verify(self.options.progress)

    def _path(self, split: str, suffix: str, features: Features) -> Path:
        other = self.out / "regions" / f"{split}{'.npy' if suffix == '.h5' else '.h5'}"
        other.unlink(missing_ok=True)
        if other.suffix == ".npy":
            other.with_suffix(".json").unlink(missing_ok=True)
        self.sources += [source for source in features.sources if source not in self.sources]
        self.regions = {"max_regions": features.max_regions, "dim": features.dim, "boxes": features.boxes}
        return self.out / "regions" / f"{split}{suffix}"

    def link_pictures(self, folder: Path) -> None:
        """images/<image_id>.jpg, links to the pictures in ``folder``, under filepath/filename or filename."""
        if not folder.is_dir():
            raise InputError(f"no folder of pictures {folder}: check the path")
        wanted = [picture for found in self.pictures.values() for picture in found]
        for picture in tqdm(wanted, desc="link pictures", unit="picture", disable=not self.options.progress):
            path = next((path for path in (folder / picture.file, folder / Path(picture.file).name) if path.is_file()), None)
            if path is None or path.suffix.lower() not in SUFFIXES:
                raise InputError(f"{folder} has no picture {picture.file} (image {picture.image_id}): put it there, or check the path")
            replace_link(self.out / "images" / f"{picture.image_id}{path.suffix.lower()}", path)

    def finish(self, **settings: Any) -> Path:
        """The small files; meta.json says that all is there."""
        options = {name: value for name, value in vars(self.options).items() if name != "progress"}
        whole = self.name in DATASETS and (not self.options.partial or len(self.pictures["test"]) == DATASETS[self.name].expected["test"])
        protocols = list(DATASETS[self.name].protocols) if whole else []
        language = {"language": "en"} if self.name in DATASETS else {}
        about = {"made_from": self.made_from, "sources": self.sources, "protocols": protocols, **language, "options": {**options, **settings},
                 "regions": self.regions}
        return write_small_files(self.out, self.pictures, self.options.min_count, about, {"val": {"of_images": self.all_val}})


def _is_whole(path: Path, image_ids: list[str], attrs: dict[str, Any]) -> bool:
    """Whether ``path`` was written before, of the same pictures and source."""
    try:
        with h5py.File(path, "r") as file:
            return dict(file.attrs) == attrs and [value.decode() for value in file["image_ids"][:]] == image_ids
    except (OSError, KeyError):
        return False


def _digest(sources: Iterable[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([source["sha256"] for source in sources]).encode()).hexdigest()


def _check_counts(name: str, found: Mapping[str, Sequence[Picture]], options: Options, restval: bool = True,
                  captions_per_image: int | None = CAPTIONS_PER_IMAGE) -> None:
    """Pictures and captions a split against those of the papers."""
    if name not in DATASETS or options.partial:
        return
    info = DATASETS[name]
    for split, expected in info.expected.items():
        if split == "train" and info.restval and not restval:
            continue
        if len(found[split]) != expected:
            raise InputError(f"{name} has {expected:,} {split} pictures and here are {len(found[split]):,}: get what is missing, or give "
                             "--partial if this is meant")
        captions = sum(len(picture.captions) for picture in found[split])
        if captions_per_image == CAPTIONS_PER_IMAGE and captions != info.expected_captions(split) and not options.skip_empty:
            raise InputError(f"{name} has {info.expected_captions(split):,} {split} captions, five a picture, and here are {captions:,}: get "
                             "what is missing, or give --partial if this is meant")
