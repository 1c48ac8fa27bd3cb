"""Region features in the formats that people have them in, read picture by picture: nothing is ever loaded whole.

* .tsv of the bottom-up attention detector, a picture a line: image_id, image_w, image_h, num_boxes, boxes, features, the last two
  float32 in base64; any number of regions
* a folder of .npy files (regions, numbers), or of .npz with such an array, one a picture, named by it
* a RegionStore

Each is gone through once before anything is written: sizes, names, and the SHA-256 of what is there. That pass is kept in a
file, and done again only if the source has changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from itm_lib.data.regions import FileRows, RegionStore
from itm_lib.files import InputError, one_line, read_json, write_json

TSV_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LONGEST_LINE = 2**26  # bytes; 100 regions of 2048 numbers take 1.1 million
_FEATURES = ("features", "feat", "feats", "x")
_BOXES = ("boxes", "bbox", "norm_bbox")
_COCO_NAME = re.compile(r"COCO_[a-z]+\d*_(\d+)")
_BUFFER = 2**22


class Features(Protocol):
    """Features of pictures: at most ``max_regions`` of ``dim`` numbers each; ``boxes``: whether it is known where they lie."""

    max_regions: int
    dim: int
    boxes: bool
    extractor: str
    sources: list[dict[str, Any]]  # file, bytes, sha256

    def __contains__(self, key: str) -> bool: ...
    def place(self, key: str) -> Any: ...  # pictures are read quickest in the order of this
    def read(self, key: str) -> tuple[np.ndarray, np.ndarray | None]: ...  # (r, D), and boxes (r, 4) as x0 y0 x1 y1 in [0, 1]


def picture_key(name: str) -> str:
    """What a picture is called in all formats: COCO_val2014_000000391895.jpg, 000000391895 and 391895 are one."""
    name = re.sub(r"\.(jpe?g|png)$", "", str(name).strip(), flags=re.IGNORECASE)
    found = _COCO_NAME.fullmatch(name)
    name = found.group(1) if found else name
    return str(int(name)) if name.isascii() and name.isdigit() else name


class Passes:
    """What was found in files that were gone through, kept in ``path`` while they do not change."""

    def __init__(self, path: Path, progress: bool = True):
        self.path, self.progress = path, progress
        try:
            self._known: dict[str, Any] = read_json(path) if path.is_file() else {}
        except InputError:  # cut short by a kill: go through them again
            self._known = {}

    def of(self, source: Path, state: Any, look) -> dict[str, Any]:
        """``look()``, or what it gave when ``source`` was in the same ``state``."""
        key = source.resolve().as_posix()
        if self._known.get(key, {}).get("state") != state:
            self._known[key] = {"state": state, "found": look()}
            write_json(self.path, self._known)
        return self._known[key]["found"]

    def digest(self, path: Path) -> dict[str, Any]:
        """{"file", "bytes", "sha256"} of one file."""
        return self.of(path, file_state(path), lambda: {"file": path.name, "bytes": path.stat().st_size, "sha256": self._hash(path)})

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with open(path, "rb", buffering=0) as file, self.bar(path) as bar:
            while block := file.read(_BUFFER):
                digest.update(block)
                bar.update(len(block))
        return digest.hexdigest()

    def bar(self, path: Path) -> tqdm:
        """A bar over the bytes of a file."""
        return tqdm(total=path.stat().st_size, desc=f"read {path.name}", unit="B", unit_scale=True, disable=not self.progress)


def file_state(path: Path) -> list[int]:
    """What changes when the file does."""
    return [path.stat().st_size, path.stat().st_mtime_ns]


def open_features(source: Path, passes: Passes) -> Features:
    """The features in ``source``: a .tsv or a folder of them, a folder of .npy or .npz, a RegionStore or a folder of them."""
    if source.is_dir():
        names = sorted(path for path in source.iterdir() if path.is_file() and not path.name.startswith("."))
        tables = [path for path in names if re.search(r"\.tsv(\.\d+)?$", path.name)]
        stores = [path for path in names if path.suffix == ".h5"]
        arrays = [path for path in names if path.suffix in (".npy", ".npz")]
        kinds = [found for found in (tables, stores, arrays) if found]
        if len(kinds) != 1:
            found = "several kinds of features" if kinds else "no features"
            raise InputError(f"{source} holds {found}: give one .tsv, or a folder of .tsv, of .npy or .npz, or of .h5 files")
        if arrays:
            return FolderFeatures(source, arrays, passes)
        return TsvFeatures(tables, passes) if tables else StoreFeatures(stores, passes)
    if not source.is_file():
        raise InputError(f"no features {source}: check the path")
    if source.suffix == ".h5":
        return StoreFeatures([source], passes)
    if re.search(r"\.tsv(\.\d+)?$", source.name):
        return TsvFeatures([source], passes)
    raise InputError(f"{source} is of no known kind of features: give a .tsv, a folder of .npy or .npz files, or a RegionStore (.h5)")


@dataclass
class _Line:
    file: Path
    number: int
    offset: int
    length: int


class TsvFeatures:
    """Features of the bottom-up attention detector as it writes them; boxes in pixels become shares of width and height.

    Damaged and doubled lines are errors when their picture is asked for: the published files have some, of pictures of test2014.
    """

    extractor, boxes = "bottom-up attention", True

    def __init__(self, files: Sequence[Path], passes: Passes):
        self._lines: dict[str, _Line] = {}
        self._problems: dict[str, str] = {}
        self.sources, self.dim, self.max_regions = [], 0, 0
        for path in files:
            found = passes.of(path, file_state(path), lambda path=path: _index_tsv(path, passes))
            self.sources.append({"file": path.name, "bytes": path.stat().st_size, "sha256": found["sha256"]})
            if self.dim and found["dim"] != self.dim:
                raise InputError(f"{path} has {found['dim']} numbers a region and the files before it {self.dim}: give files of one detector")
            self.dim, self.max_regions = found["dim"], max(self.max_regions, found["max_regions"])
            for name, *place in found["lines"]:
                self._add(picture_key(name), _Line(path, *place))
            for name, problem in found["problems"]:
                self._problems.setdefault(picture_key(name), f"{path} {problem}")
        self._open: tuple[Path, Any] | None = None

    def _add(self, key: str, line: _Line) -> None:
        if key in self._lines:
            other = self._lines[key]
            where = f"{other.file.name} line {other.number} and {line.file.name} line {line.number}"
            self._problems.setdefault(key, f"image {key} has features twice, in {where}: remove one of them")
        self._lines[key] = line

    def __contains__(self, key: str) -> bool:
        if key in self._problems:
            raise InputError(self._problems[key])
        return key in self._lines

    def place(self, key: str) -> tuple[str, int]:
        return str(self._lines[key].file), self._lines[key].offset

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        line = self._lines[key]
        if self._open is None or self._open[0] != line.file:
            self._open = (line.file, open(line.file, "rb"))
        self._open[1].seek(line.offset)
        _, width, height, count, boxes, features = self._open[1].read(line.length).rstrip(b"\r\n").split(b"\t")
        try:
            boxes, features = (np.frombuffer(base64.b64decode(value, validate=True), "<f4") for value in (boxes, features))
        except binascii.Error as error:
            raise InputError(f"{line.file} line {line.number} (image {key}): base64 is damaged ({error}); get the file again") from None
        size = np.array([float(width), float(height)] * 2, np.float32)
        return features.reshape(int(count), self.dim), (boxes.reshape(int(count), 4) / size).clip(0, 1)


def _index_tsv(path: Path, passes: Passes) -> dict[str, Any]:
    """Where each picture's line is, checked for its columns and their sizes, and the file's SHA-256; one pass, line by line."""
    digest, lines, problems, offset, number, dim, most = hashlib.sha256(), [], [], 0, 0, None, 0
    with open(path, "rb", buffering=_BUFFER) as file, passes.bar(path) as bar:
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            digest.update(line)
            bar.update(len(line))
            fields = line.rstrip(b"\r\n").split(b"\t")
            name = fields[0].decode(errors="replace").strip()
            if len(line) > LONGEST_LINE or (line.strip() and (len(fields) == 1 or not name)):
                raise InputError(f"{path} line {number} is no line of a .tsv of features ({', '.join(TSV_COLUMNS)}): get the file again")
            if line.strip() and not (number == 1 and name == "image_id"):
                try:
                    count, own = _facts_of_line(fields)
                    dim = own if dim is None else dim
                    if own != dim:
                        raise InputError(f"{own} numbers a region, and {dim} in the lines before it")
                    lines.append((name, number, offset, len(line)))
                    most = max(most, count)
                except InputError as error:
                    problems.append((name, f"line {number} (image {name}) has {error}: it is damaged or cut short, get the file again"))
            offset += len(line)
    if not lines:
        raise InputError(f"{path} {problems[0][1]}" if problems else f"{path} has no lines: it is empty, get it again")
    return {"sha256": digest.hexdigest(), "dim": dim, "max_regions": most, "lines": lines, "problems": problems}


def _facts_of_line(fields: list[bytes]) -> tuple[int, int]:
    """(number of regions, numbers a region) of a line of a .tsv; lengths are checked, base64 is not decoded yet."""
    if len(fields) != len(TSV_COLUMNS):
        raise InputError(f"{len(fields)} columns, not {len(TSV_COLUMNS)} ({', '.join(TSV_COLUMNS)})")
    try:
        width, height, count = (float(value) for value in fields[1:4])
    except ValueError:
        raise InputError("no numbers as image_w, image_h and num_boxes") from None
    boxes, features = (_decoded_length(value) for value in fields[4:])
    if width <= 0 or height <= 0 or count < 1 or count != int(count):
        raise InputError(f"{count:g} boxes on a picture of {width:g} x {height:g}, which cannot be")
    if boxes != 16 * int(count) or features <= 0 or features % (4 * int(count)):
        raise InputError(f"{boxes} bytes of boxes and {features} of features, which do not fit num_boxes {count:g}")
    return int(count), features // (4 * int(count))


def _decoded_length(value: bytes) -> int:
    """How many bytes a base64 text stands for; -1 if it is cut."""
    return -1 if len(value) % 4 else len(value) // 4 * 3 - value[-2:].count(b"=")


class FolderFeatures:
    """A file a picture: .npy, or .npz with the array called features, feat or x, or its only one; boxes in the .npz, called
    boxes, bbox or norm_bbox, are in shares of the picture, or in pixels with image_w and image_h beside them."""

    extractor = "a file a picture"

    def __init__(self, folder: Path, files: Sequence[Path], passes: Passes):
        state = [[path.name, *file_state(path)] for path in files]
        found = passes.of(folder, state, lambda: _index_files(folder, files, passes))
        self._files: dict[str, Path] = {}
        for path in files:
            key = picture_key(path.stem)
            if key in self._files:
                raise InputError(f"image {key} has features twice, in {self._files[key]} and {path.name}: remove one of them")
            self._files[key] = path
        self.max_regions, self.dim, self.boxes = found["max_regions"], found["dim"], found["boxes"]
        self.sources = [{"file": f"{folder.name}/ ({len(files)} files)", "bytes": found["bytes"], "sha256": found["sha256"]}]

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def place(self, key: str) -> str:
        return self._files[key].name

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray | None]:
        path = self._files[key]
        if path.suffix == ".npy":
            rows = FileRows.of_npy(path)
            features = np.empty(rows.shape, rows.dtype)
            for row in range(len(features)):
                rows.read_into(row, features[row])
            return features, None
        try:
            with np.load(path) as content:
                names = set(content.files)
                features, boxes = content[_one_of(names, _FEATURES, path)], next((name for name in _BOXES if name in names), None)
                return features, _shares(content, boxes, path) if self.boxes else None
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise _damaged(path, error) from None


def _index_files(folder: Path, files: Sequence[Path], passes: Passes) -> dict[str, Any]:
    digest, size, dims, most, boxes = hashlib.sha256(), 0, {}, 0, True
    for path in tqdm(files, desc=f"read {folder.name}", unit="file", disable=not passes.progress):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)} {hashlib.sha256(content).hexdigest()}\n".encode())
        size += len(content)
        shape, has_boxes = _shape_of_file(path)
        if len(shape) != 2 or not shape[0]:
            raise InputError(f"{path} has the shape {shape}: a picture's features are (regions, numbers)")
        dims.setdefault(shape[1], path)
        if len(dims) > 1:
            one, other = dims
            raise InputError(f"{dims[one]} has {one} numbers a region and {dims[other].name} {other}: give files of one detector")
        most, boxes = max(most, shape[0]), boxes and has_boxes
    return {"sha256": digest.hexdigest(), "bytes": size, "dim": next(iter(dims)), "max_regions": most, "boxes": boxes}


def _shape_of_file(path: Path) -> tuple[tuple[int, ...], bool]:
    """The shape of a picture's features, without reading them, and whether there are boxes."""
    if path.suffix == ".npy":
        return FileRows.of_npy(path).shape, False
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            with archive.open(_one_of(names, _FEATURES, path) + ".npy") as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                return read(file)[0], bool(names & set(_BOXES))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise _damaged(path, error) from None


def _one_of(names: set[str], wanted: Iterable[str], path: Path) -> str:
    found = [name for name in wanted if name in names] or (list(names) if len(names) == 1 else [])
    if not found:
        raise InputError(f"{path} has the arrays {', '.join(sorted(names))}: the features must be called {' or '.join(wanted)}")
    return found[0]


def _shares(content: Any, name: str, path: Path) -> np.ndarray:
    """Boxes as shares of the picture's width and height."""
    boxes = content[name][:, :4].astype(np.float32)
    if {"image_w", "image_h"} <= set(content.files):
        return (boxes / np.array([float(content["image_w"]), float(content["image_h"])] * 2, np.float32)).clip(0, 1)
    if boxes.max() > 1.001:
        raise InputError(f"{path}: boxes are in pixels, and image_w and image_h are not there: add them, or leave out the boxes")
    return boxes.clip(0, 1)


def _damaged(path: Path, error: Exception) -> InputError:
    why = one_line(error, 100)
    return InputError(f"{path} cannot be read ({why}): it is damaged or cut short, get it again")


class StoreFeatures:
    """RegionStores that are there already, whatever their splits."""

    def __init__(self, files: Sequence[Path], passes: Passes):
        self._stores, self._rows = [RegionStore(path) for path in files], {}
        for number, store in enumerate(self._stores):
            for row, image_id in enumerate(store.image_ids):
                key = picture_key(image_id)
                if key in self._rows:
                    other = self._stores[self._rows[key][0]].path.name
                    raise InputError(f"image {key} has features twice, in {other} and {store.path.name}: remove one of them")
                self._rows[key] = (number, row)
        dims = sorted({store.dim for store in self._stores})
        if len(dims) > 1:
            raise InputError(f"{files[0].parent}: files have {dims[0]} and {dims[1]} numbers a region: give files of one detector")
        self.dim, self.max_regions = dims[0], max(store.max_regions for store in self._stores)
        self.boxes = all(store.has_boxes for store in self._stores)
        self.extractor = str(self._stores[0].attrs.get("extractor", "unknown"))
        self.sources = [passes.digest(path) for path in files]

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def place(self, key: str) -> tuple[int, int]:
        return self._rows[key]

    def read(self, key: str) -> tuple[np.ndarray, np.ndarray | None]:
        number, row = self._rows[key]
        store = self._stores[number]
        count = int(store.num_regions[row])
        return store.stored([row], count)[0], store.boxes([row])[0, :count] if self.boxes else None


class RepeatedRows:
    """Rows of an array in which each picture stands ``repeat`` times in a row; that the copies are the same is checked when they
    are read."""

    boxes, extractor = False, "bottom-up attention"

    def __init__(self, path: Path, rows: FileRows, repeat: int, source: dict[str, Any]):
        self.path, self.rows, self.repeat, self.sources = path, rows, repeat, [source]
        _, self.max_regions, self.dim = rows.shape

    def __contains__(self, key: int) -> bool:
        return 0 <= key < len(self.rows) // self.repeat

    def place(self, key: int) -> int:
        return key

    def read(self, key: int) -> tuple[np.ndarray, None]:
        first = self.rows[key * self.repeat]
        for other in range(1, self.repeat):
            if self.rows[key * self.repeat + other].tobytes() != first.tobytes():
                raise InputError(f"{self.path}: rows {key * self.repeat} and {key * self.repeat + other} differ, but where there are as many "
                                 f"rows as captions each picture stands {self.repeat} times: the file is damaged or of another order")
        return first, None


