"""Flickr8k: from the raw files that people have to a dataset folder.

Hodosh, Young, Hockenmaier: Framing Image Description as a Ranking Task, Journal of Artificial Intelligence Research 47, 2013. 8,091
photographs of people and dogs in action, five captions each, and human judgments of which other captions describe a photograph.

The captions come in three forms, and :func:`read_flickr8k` reads each:

==========================  ==================================================================================================
form                        files
==========================  ==================================================================================================
the official text archive   ``Flickr8k.token.txt`` and the lists ``Flickr_8k.trainImages.txt``, ``...devImages.txt``,
                            ``...testImages.txt``; beside them the judgments
Kaggle's archive            ``captions.txt``, a CSV with the columns image and caption; it has no splits
Karpathy's splits           ``dataset_flickr8k.json``
==========================  ==================================================================================================

Where a form has no splits, the official ones are used: 6,000 / 1,000 / 1,000 photographs. 91 photographs are in none of them. Caption
ids are the official ones, ``1000268201_693b08cb0e.jpg#0``, because the judgments name captions by them.

Two defects of the published files are known: captions of ``2258277193_586949ec62.jpg.1`` and of ``2258277193_586949ec62.jpg``, a
photograph that is in no copy of the data set. They are left out and counted. Whatever else is wrong is an :class:`InputError`.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

import itm_lib
from itm_lib.data.dataset import about_images
from itm_lib.data.dataset_files import SPLITS, CaptionedPicture, has_words, making, write_small_files
from itm_lib.data.judgments import FILES as JUDGMENT_FILES
from itm_lib.data.judgments import FOLDER as JUDGMENTS
from itm_lib.data.judgments import read_judgments
from itm_lib.data.karpathy import Options, read_karpathy
from itm_lib.data.own import link_images, link_store, store_in
from itm_lib.data.own_captions import OwnCaption, read_captions
from itm_lib.data.pictures import find_pictures
from itm_lib.data.published import CAPTIONS_PER_IMAGE, dataset_info
from itm_lib.data.regions import RegionStore
from itm_lib.files import InputError, counted, read_json, read_text, write_text

NAME, KIND, PROTOCOL = "flickr8k", "published", "flickr8k_1k"
TOKENS, KARPATHY, KAGGLE = "Flickr8k.token.txt", "dataset_flickr8k.json", "captions.txt"
LISTS = {"train": "Flickr_8k.trainImages.txt", "val": "Flickr_8k.devImages.txt", "test": "Flickr_8k.testImages.txt"}
WITHOUT_PHOTOGRAPH = ("2258277193_586949ec62.jpg.1", "2258277193_586949ec62.jpg")
SPLITS_FILE = Path(itm_lib.__file__).parent / "assets" / "flickr8k_splits.json"
SHOWN = 3  # names in an error line


@dataclass(frozen=True)
class Flickr8k:
    """What the raw files hold: ``captions``, each (caption id, text), by the photograph's file name; the photographs' ``splits``.

    ``without_photograph``: captions of the known defects, left out; ``form``: which of the three forms it was; ``files``: what was read.
    """

    captions: dict[str, list[tuple[str, str]]]
    splits: dict[str, list[str]]
    without_photograph: int
    form: str
    files: tuple[Path, ...]

    @property
    def in_no_split(self) -> list[str]:
        """The photographs that have captions and are in no split."""
        known = {name for names in self.splits.values() for name in names}
        return [name for name in self.captions if name not in known]


def prepare_flickr8k(captions: str | Path, out: str | Path, source: str | Path | None = None, images: str | Path | None = None,
                     min_count: int = 4, skip_empty: bool = False, partial: bool = False, progress: bool = True) -> Path:
    """Make the dataset folder ``out`` of Flickr8k's raw files; returns ``out``.

    ``captions``: a folder that holds one of the three forms, or the file itself. ``source``: the region file of the photographs, which
    ``itm extract`` makes; by default the one that lies in ``out``/regions already. ``images``: the folder of the photographs, for looking
    and for models that read pixels. One of the two is needed. ``min_count``: how often a word stands in the training captions to be known.
    ``partial``: accept fewer photographs than the splits list, and fewer captions than five a photograph.
    """
    out, captions = Path(out), Path(captions)
    with making(out, NAME, KIND):
        found = read_flickr8k(captions, skip_empty, partial)
        store_path = store_in(out, source)
        image_ids, store = _photographs(store_path, images)
        pictures = _join(found, image_ids, str(store_path or images), partial)
        judged = _copy_judgments(_folder_of(captions), out, found)
        if store is not None:
            link_store(out, store.path)
        if images is not None:
            link_images(out, Path(images))
        left_out = {"captions without a photograph": found.without_photograph, "photographs in no split": len(found.in_no_split)}
        about = {"made_from": found.form, "sources": [_digest(path) for path in found.files], "protocols": [PROTOCOL] if not partial or _is_official_test(pictures["test"]) else [], "language": "en",
                 "options": {"min_count": min_count, "skip_empty": skip_empty, "partial": partial},
                 "left_out": {what: count for what, count in left_out.items() if count}, "judgments": judged,
                 "regions": about_images(store) if store is not None else {}}
        write_small_files(out, pictures, min_count, about)
    if progress:
        for line in _told(found, pictures, judged):
            tqdm.write(line, file=sys.stderr)
    return out


def read_flickr8k(captions: str | Path, skip_empty: bool = False, partial: bool = False) -> Flickr8k:
    """The captions and splits in ``captions``: a folder that holds one of the three forms, or the file itself."""
    path = find_captions(captions)
    if path.suffix.lower() == ".json":
        return _of_karpathy(path, skip_empty, partial)
    rows = read_captions(path)
    kept = [row for row in rows if _file_name(row.image) not in WITHOUT_PHOTOGRAPH]
    by_file = _by_file(kept, skip_empty)
    lists, splits = _splits(path.parent, by_file)
    form = f"the official text archive, {path.name}" if rows[0].caption_id else f"Kaggle's {path.name}"
    found = Flickr8k(by_file, splits, len(rows) - len(kept), form, (path, *lists))
    _check_complete(found, path, partial)
    return found


def find_captions(place: str | Path) -> Path:
    """The file of captions that ``place`` is or holds, at most two folders deep."""
    place = Path(place)
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError(f"no folder or file {place}: check the path of Flickr8k's captions")
    for name in (TOKENS, KARPATHY, KAGGLE):
        found = sorted(path for depth in ("", "*/", "*/*/") for path in place.glob(depth + name) if path.is_file())
        if len(found) > 1:
            raise InputError(f"{place} has {name} {len(found)} times: give the path of one, for example {found[0]}")
        if found:
            return found[0]
    raise InputError(f"{place} holds no captions of Flickr8k, which are {TOKENS}, {KAGGLE} or {KARPATHY}: 'itm data prepare {NAME}' says "
                     "where to get them")


# --- the three forms ------------------------------------------------------------------------------------------------------


def _by_file(rows: Sequence[OwnCaption], skip_empty: bool) -> dict[str, list[tuple[str, str]]]:
    """The captions of each photograph under their official ids, in the order of the file."""
    captions: dict[str, list[tuple[str, str]]] = {}
    seen: dict[str, str] = {}
    for row in rows:
        name = _file_name(row.image)
        own = captions.setdefault(name, [])
        caption_id = f"{name}#{row.caption_id.rpartition('#')[2]}" if row.caption_id else f"{name}#{len(own)}"
        if caption_id in seen:
            raise InputError(f"{row.where}: caption {caption_id} is there twice, first in {seen[caption_id]}: remove one of them")
        seen[caption_id] = row.where
        if has_words(row.text, row.where, skip_empty):
            own.append((caption_id, row.text))
    return captions


def _of_karpathy(path: Path, skip_empty: bool, partial: bool) -> Flickr8k:
    captions, splits = {}, {split: [] for split in SPLITS}
    for split, pictures in read_karpathy(path, options=Options(skip_empty=skip_empty), captions_per_image=None).items():
        for picture in pictures:
            name = _file_name(picture.file)
            captions[name] = [(f"{name}#{number}", text) for number, (_, text) in enumerate(picture.captions)]
            splits[split].append(name)
    found = Flickr8k(captions, splits, 0, f"Karpathy's {path.name}", (path,))
    _check_complete(found, path, partial)
    return found


def _splits(folder: Path, captions: Mapping[str, object]) -> tuple[list[Path], dict[str, list[str]]]:
    """The lists of the splits that were read, and the photographs of each; the official splits where there are no lists."""
    there = {split: folder / name for split, name in LISTS.items() if (folder / name).is_file()}
    if not there:
        return [], official_splits(captions)
    lacking = [name for split, name in LISTS.items() if split not in there]
    if lacking:
        raise InputError(f"{folder} lacks {', '.join(lacking)} and has the other lists of the splits: get all three, or none to use the official "
                         "splits")
    splits: dict[str, list[str]] = {}
    where: dict[str, str] = {}
    for split, path in there.items():
        splits[split] = []
        for number, line in enumerate(read_text(path).split("\n"), 1):
            name = _file_name(line.strip())
            if not name:
                continue
            if name in where:
                raise InputError(f"{path} line {number}: {name} is in {where[name]} already; a photograph has one split")
            where[name] = path.name
            splits[split].append(name)
    return list(there.values()), splits


def _is_official_test(pictures: Iterable[CaptionedPicture]) -> bool:
    """Whether these are the 1,000 official test photographs, each with five captions: what the published protocol is about."""
    official = {str(number) for number in read_json(SPLITS_FILE)["test"]}
    return {picture.image_id.partition("_")[0] for picture in pictures} == official and all(len(picture.captions) == CAPTIONS_PER_IMAGE for picture in pictures)


def official_splits(names: Iterable[str]) -> dict[str, list[str]]:
    """The photographs ``names`` by their official split; val and test in the order of the lists, train in that of ``names``."""
    content = read_json(SPLITS_FILE)
    of_number: dict[int, str] = {}
    for name in names:
        number = name.partition("_")[0]
        if not number.isdecimal():
            raise InputError(f"{name} is no name of a photograph of Flickr8k, like 1000268201_693b08cb0e.jpg: give Flickr8k's own captions")
        of_number[int(number)] = name
    splits = {split: [of_number[number] for number in content[split] if number in of_number] for split in ("val", "test")}
    others = {number for part in ("val", "test", "none") for number in content[part]}
    return {"train": [name for number, name in of_number.items() if number not in others], **splits}


def _check_complete(found: Flickr8k, path: Path, partial: bool) -> None:
    """Every photograph of the splits has five captions, and the splits have their official sizes."""
    for split, names in found.splits.items():
        bare = [name for name in names if not found.captions.get(name)]
        if bare and not partial:
            raise InputError(f"{path} has no captions of {counted(len(bare), 'photograph')} of {split}, {_first(bare)}: get the whole file, or give "
                             "--partial to leave them out")
        if partial:
            names[:] = [name for name in names if found.captions.get(name)]
        odd = [name for name in names if len(found.captions[name]) != CAPTIONS_PER_IMAGE]
        if odd and not partial:
            raise InputError(f"{path} has {len(found.captions[odd[0]])} captions of {odd[0]}, not {CAPTIONS_PER_IMAGE} ({counted(len(odd), 'photograph')} of "
                             f"{split} like that): get the whole file, or give --partial if this is meant")
    expected = dataset_info(NAME).expected
    wrong = [f"{split} {len(found.splits[split]):,} of {expected[split]:,}" for split in SPLITS if len(found.splits[split]) != expected[split]]
    if wrong and not partial:
        raise InputError(f"{path}: the splits have not their sizes, {', '.join(wrong)} photographs: get the whole file, or give --partial if this is "
                         "meant")


# --- photographs and judgments --------------------------------------------------------------------------------------------


def _photographs(store: Path | None, images: str | Path | None) -> tuple[list[str], RegionStore | None]:
    """The ids of the photographs that there are, and their regions if those are given."""
    if store is None and images is None:
        raise InputError("neither regions nor photographs are given: extract the regions first, with 'itm extract', and give the file as --source; "
                         "or give the photographs' folder as --images, for models that read pixels")
    opened = RegionStore(store) if store is not None else None
    pictures = find_pictures(images) if images is not None else None
    if opened is not None and pictures is not None:
        lacking = [image_id for image_id in opened.image_ids if image_id not in pictures]
        if lacking:
            raise InputError(f"{images} lacks {len(lacking):,} of the photographs that {store} has regions of, {_first(lacking)}: give the folder that "
                             "the regions were extracted from")
    return list(opened.image_ids if opened is not None else pictures), opened


def _join(found: Flickr8k, image_ids: Sequence[str], where: str, partial: bool) -> dict[str, list[CaptionedPicture]]:
    """The photographs of each split with their captions, under the ids that regions or pictures have."""
    id_of: dict[str, str] = {}
    for image_id in image_ids:
        stem = image_id.rpartition("/")[2]
        if stem in id_of:
            raise InputError(f"{where} has the photograph {stem} twice, {id_of[stem]} and {image_id}: give a folder that has each once")
        id_of[stem] = image_id
    stems = {split: [(_stem(name), name) for name in names] for split, names in found.splits.items()}
    lost = [name for names in stems.values() for stem, name in names if stem not in id_of]
    if lost and not partial:
        raise InputError(f"{where} lacks {len(lost):,} of the {sum(map(len, stems.values())):,} photographs of the splits, {_first(lost)}: get the whole data "
                         "set, or leave them out with --partial")
    pictures = {split: [CaptionedPicture(id_of[stem], tuple(found.captions[name])) for stem, name in names if stem in id_of]
                for split, names in stems.items()}
    for split, kept in pictures.items():
        if not kept:
            raise InputError(f"{where} has no photograph of {split}: train, val and test are needed")
    return pictures


def _copy_judgments(folder: Path, out: Path, found: Flickr8k) -> dict[str, int]:
    """Copy the files of human judgments into ``out``, where they are read at each evaluation; how many judgments each has."""
    sources = {kind: folder / name for kind, name in JUDGMENT_FILES.items() if (folder / name).is_file()}
    if not sources:
        return {}
    _check_judged_captions(folder, found)
    for kind, path in sources.items():
        write_text(out / JUDGMENTS / JUDGMENT_FILES[kind], read_text(path))
    read = read_judgments(out)
    return {kind: len(getattr(read, kind)) for kind in sources}


def _check_judged_captions(folder: Path, found: Flickr8k) -> None:
    """Judgments name captions by their numbers in the token file: in another form those numbers must mean the same captions."""
    tokens = folder / TOKENS
    if tokens in found.files or not tokens.is_file():
        return
    plain = lambda text: "".join(character for character in text.lower() if character.isalnum())  # noqa: E731
    official = {row.caption_id: plain(row.text) for row in read_captions(tokens)}
    for own in found.captions.values():
        for caption_id, text in own:
            if official.get(caption_id, plain(text)) != plain(text):
                raise InputError(f"caption {caption_id} is {text[:40]!r} in {found.files[0]} and another one in {tokens}, so the human judgments would be "
                                 f"of other captions: give {TOKENS} as --captions")


def _told(found: Flickr8k, pictures: Mapping[str, Sequence[CaptionedPicture]], judged: Mapping[str, int]) -> list[str]:
    """What the user is to know, in lines."""
    lines = [f"{found.form}: " + ", ".join(f"{split} {counted(len(own), 'photograph')}" for split, own in pictures.items())]
    if found.without_photograph:
        lines.append(f"left out: {counted(found.without_photograph, 'caption')} of {' and '.join(WITHOUT_PHOTOGRAPH)}, a photograph that no copy has "
                     "(a known defect)")
    if found.in_no_split:
        lines.append(f"left out: {counted(len(found.in_no_split), 'photograph')} in no split")
    kinds = " and ".join(f"{count:,} of {kind}" for kind, count in judged.items())
    lines.append(f"human judgments: {kinds}" if judged else f"no human judgments: they come with the official text archive ({', '.join(JUDGMENT_FILES.values())})")
    return lines


def _folder_of(captions: Path) -> Path:
    return find_captions(captions).parent


def _digest(path: Path) -> dict[str, object]:
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _file_name(name: str) -> str:
    """The name of the file alone: folders before it, as in some copies, are dropped."""
    return name.replace("\\", "/").rpartition("/")[2]


def _stem(name: str) -> str:
    stem, _, suffix = name.rpartition(".")
    return stem if suffix.lower() in ("jpg", "jpeg", "png") else name


def _first(names: Sequence[str]) -> str:
    return f"{', '.join(names[:SHOWN])}{' ...' if len(names) > SHOWN else ''}"
