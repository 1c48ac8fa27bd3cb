"""RegionStore: region features and boxes of pictures, read row by row. In HDF5, one file:

====================  ==========================  =====================================================
dataset               type, shape                 meaning
====================  ==========================  =====================================================
``features``          float16 (N, R, D)           one vector a region; rows past ``num_regions`` are 0
``boxes``             float32 (N, R, 4)           x0 y0 x1 y1 in [0, 1] of the picture's width and height
``num_regions``       int32 (N,)                  how many of the R rows are real
``image_ids``         UTF-8 strings (N,)          the picture of each row, unique
``checksum``          uint32 (N,)                 CRC-32 of the row's bytes: features, boxes, num_regions
====================  ==========================  =====================================================

Features that came without boxes have no ``boxes`` dataset: ``has_boxes`` is False and asking for boxes is an error, so nothing
draws boxes that nobody measured. Files of others may lack ``checksum`` too, and may be chunked or compressed; ours are neither,
because a row of a plain file is one read. The file's attributes name the extractor and its settings; ``skipped``, JSON, are
pictures that have no row, by image id, and why.

Or as an array that is there already, ``<split>.npy`` (N, R, D) of float16 or float32, with ``<split>.json`` beside it:
``{"image_ids": [...]}`` and, where they apply, ``"row_of_image"`` (the array's row of each picture: arrays in which pictures
repeat), ``"num_regions"``, ``"extractor"``; boxes, if any, in ``<split>.boxes.npy``, in the rows of the array.

Either way rows are read when asked for, from the file, by whichever process asks; what was read is not kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from tqdm import tqdm

from itm_lib.files import InputError, one_line, read_json

IN_MEMORY = 2**29  # bytes of features up to which in_memory=None loads them; reading rows costs little more
HALF = np.finfo(np.float16).max
ALL = "all"            # regions/all.h5: one store of all splits
LEFT_OUT = -1          # num_regions of a row, in a file that is not whole yet
_FIELDS = ("features", "num_regions", "image_ids")
_EXPONENT = 0x7C00  # the bits of a float16 that are all set where it is NaN or infinite
_BLOCK = 256        # rows read at once where all are read


class FileRows:
    """An array of ``shape`` that lies in a file from byte ``offset`` on; single rows are read, none is kept.

    Plain reads and no memory map: pages that a map has touched count as this process's memory. Each process opens the file for
    itself, so that workers do not move each other's place in it.
    """

    def __init__(self, path: str | Path, offset: int, dtype: np.dtype, shape: Sequence[int]):
        self.path, self.offset, self.dtype, self.shape = Path(path), offset, np.dtype(dtype), tuple(shape)
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        needed, found = offset + self.shape[0] * self.row_bytes, self.path.stat().st_size
        if found < needed:
            raise InputError(f"{self.path} is cut short: {self.shape[0]} rows need {needed:,} bytes, it has {found:,}; get it again")
        self._file, self._pid = None, -1

    @classmethod
    def of_npy(cls, path: str | Path) -> FileRows:
        """The array of a .npy file."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"no file {path}: check the path")
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        with open(path, "rb") as file:
            try:
                shape, by_column, dtype = readers[np.lib.format.read_magic(file)](file)
            except (ValueError, KeyError, EOFError) as error:
                raise InputError(f"{path} cannot be read as .npy ({one_line(error)}): it is damaged or cut short, get it again") from None
            offset = file.tell()
        if dtype.kind != "f" or not dtype.isnative or by_column or not shape:
            order = ", column by column" if by_column else ""
            raise InputError(f"{path} holds {dtype} of shape {shape}{order}; floating-point rows are needed: save it with numpy.save "
                             "as a C-contiguous float array")
        return cls(path, offset, dtype, shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": -1}

    def read_into(self, row: int, out: np.ndarray) -> None:
        """Fill ``out``, C-contiguous and of this dtype, with row ``row``, or with its beginning if ``out`` is smaller."""
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = open(self.path, "rb", buffering=0), os.getpid()
        self._file.seek(self.offset + int(row) * self.row_bytes)
        rest = out.reshape(-1).view(np.uint8)
        while len(rest):
            count = self._file.readinto(rest)
            if not count:
                raise InputError(f"{self.path} was cut short while it was in use: get it again")
            rest = rest[count:]

    def __getitem__(self, row: int) -> np.ndarray:
        out = np.empty(self.shape[1:], self.dtype)
        self.read_into(row, out)
        return out


class _ChunkedRows:
    """Rows of a chunked or compressed HDF5 dataset, as :class:`FileRows` gives them. One by one: h5py's reading of a list of
    rows takes 40 times as long."""

    def __init__(self, path: Path, name: str, dataset: h5py.Dataset):
        self.path, self.name, self.dtype, self.shape = path, name, dataset.dtype, dataset.shape
        self._file, self._pid = None, -1

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": -1}

    def read_into(self, row: int, out: np.ndarray) -> None:
        if self._file is None or self._pid != os.getpid():  # h5py handles must not cross a fork
            self._file, self._pid = h5py.File(self.path, "r"), os.getpid()
        try:
            self._file[self.name].read_direct(out, np.s_[int(row), : len(out)])
        except OSError as error:
            raise InputError(f"{self.path} row {row} cannot be read ({one_line(error)}): the file is damaged, make it again") from None


class RegionWriter:
    """Writes a RegionStore in HDF5 row by row; ``with`` renames it into place at the end, and only then.

    ``max_regions`` is R, ``dim`` is D; ``extractor`` and ``settings`` become attributes of the file. ``boxes=False``: there are
    none. ``resume=True``: what is written stays when the writing ends early, even by a kill, and the next writer of the same
    pictures, sizes and settings goes on: ``done`` (N,) bool are the rows that are there, or left out, and whose checksum holds. The file has
    the same bytes in the end. Only one process may resume a file at a time.

    A picture for which there turn out to be no regions is left out, :meth:`leave_out`. ``skipped``: pictures of which that was
    known before, with why; they are not among ``image_ids``. ``verify``: in the end every row is read and held against its checksum,
    before the file takes the place of an older one. ``part``: where the file is until it is whole.
    """

    def __init__(self, path: str | Path, image_ids: Sequence[str], max_regions: int, dim: int, extractor: str, boxes: bool = True,
                 resume: bool = False, progress: bool = False, verify: bool = False, skipped: Mapping[str, str] | None = None,
                 part: Path | None = None, **settings):
        self.path, self.resume, self.image_ids = Path(path), resume, list(image_ids)
        self.part = part or (part_of(self.path) if resume else self.path.with_name(f".{self.path.name}.{os.getpid()}.part"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"folder {self.path.parent} cannot be made ({one_line(error)}): give another place") from None
        if len(set(self.image_ids)) != len(self.image_ids):
            raise InputError(f"{self.path}: an image id is listed twice: each picture has one row")
        if not self.image_ids:
            raise InputError(f"{self.path}: there are no pictures to write")
        self._shape = (len(self.image_ids), max_regions, dim)
        self._attrs = {"extractor": extractor, **settings}
        self._skipped, self._left_out = dict(skipped or {}), {}  # the second by row
        if self._skipped:
            self._attrs["skipped"] = _skipped_as_json(self._skipped)
        self._has_boxes, self._verify, self._progress = boxes, verify, progress
        self._check_free()
        if not (resume and self._is_ours()):
            self._create()
        with h5py.File(self.part, "r") as file:
            self._places = {name: file[name].id.get_offset() for name in _datasets(self._shape, boxes)}
            self.done = file["num_regions"][:] != 0
        self._file = open(self.part, "r+b", buffering=0)
        if self.done.any():
            self._check_done()

    def _is_ours(self) -> bool:
        """Whether the part that is there was begun for this very file."""
        try:
            with h5py.File(self.part, "r") as file:
                return (dict(file.attrs) == self._attrs and [value.decode() for value in file["image_ids"][:]] == self.image_ids
                        and all(file[name].shape == shape for name, (shape, _) in _datasets(self._shape, self._has_boxes).items())
                        and ("boxes" in file) == self._has_boxes)
        except (OSError, KeyError):  # none, or killed before it was complete
            return False

    def _check_done(self) -> None:
        with h5py.File(self.part, "r") as file:
            features = _rows_of(self.part, "features", file["features"])
            boxes = _rows_of(self.part, "boxes", file["boxes"]) if self._has_boxes else None
            counts, checksums = file["num_regions"][:], file["checksum"][:]
        for row in tqdm(np.flatnonzero(self.done), desc=f"check {self.path.name}", unit="picture", disable=not self._progress):
            if counts[row] == LEFT_OUT:
                text = features[row].tobytes()
                self.done[row] = checksums[row] == zlib.crc32(text)
                if self.done[row]:
                    self._left_out[int(row)] = text.rstrip(b"\0").decode()
            else:
                self.done[row] = checksums[row] == _checksum(features[row], boxes[row] if boxes else None, int(counts[row]))

    def _check_free(self) -> None:
        """Whether there is room for all rows; what a part has taken already is not needed again."""
        taken = self.part.stat().st_blocks * 512 if self.part.is_file() else 0
        needed, free = math.prod(self._shape) * 2 - taken, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise InputError(f"{self.path} needs {needed / 2**30:.1f} GiB and {free / 2**30:.1f} are free: make room")

    def _create(self) -> None:
        try:
            with h5py.File(self.part, "w") as file:
                for name, (shape, dtype) in _datasets(self._shape, self._has_boxes).items():
                    # space is taken at once, so that the file is whole at any moment and rows go to known places
                    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
                    plan.set_obj_track_times(False)
                    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
                    h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple(shape), plan)
                for name in ("num_regions", "checksum"):
                    file[name][:] = 0
                file.create_dataset("image_ids", data=self.image_ids, dtype=h5py.string_dtype())
                for name, value in self._attrs.items():
                    file.attrs[name] = value
        except (OSError, RuntimeError) as error:  # HDF5's own words for a full disk are of either kind
            self.part.unlink(missing_ok=True)
            raise _not_written(self.path, error) from None

    def write(self, row: int, features: np.ndarray, boxes: np.ndarray | None = None) -> None:
        """Row ``row``: ``features`` (r, D) and ``boxes`` (r, 4), r at most R and at least 1, all finite."""
        where = f"{self.path} row {row} (image {self.image_ids[row]})"
        if (boxes is None) == self._has_boxes:
            raise InputError(f"{where}: this file has {'boxes, give them' if self._has_boxes else 'no boxes, none can be given'}")
        if not 1 <= len(features) <= self._shape[1] or (self._has_boxes and len(features) != len(boxes)):
            count = f", {len(boxes)} boxes; need 1 to R of both" if self._has_boxes else "; need 1 to R"
            raise InputError(f"{where}: {len(features)} features{count}")
        if not np.isfinite(features).all() or np.abs(features).max() > HALF:
            raise InputError(f"{where}: features are NaN or too large for float16; check the extractor")
        if self._has_boxes and not np.isfinite(boxes).all():
            raise InputError(f"{where}: boxes are NaN or infinite; check the extractor")
        _, width, dim = self._shape
        values = {"features": _padded(features, (width, dim), "<f2"), "num_regions": np.array(len(features), "<i4")}
        if self._has_boxes:
            values["boxes"] = _padded(boxes, (width, 4), "<f4")
        values["checksum"] = np.array(_checksum(values["features"], values.get("boxes"), len(features)), "<u4")
        for name in ("features", "boxes", "checksum", "num_regions"):  # the last one says that the row is there
            if name in values:
                self._put(self._places[name] + row * values[name].nbytes, values[name])
        self.done[row] = True
        self._left_out.pop(row, None)

    def _put(self, place: int, value: np.ndarray) -> None:
        rest = value.reshape(-1).view(np.uint8)
        try:
            self._file.seek(place)
            while len(rest):
                rest = rest[self._file.write(rest):]
        except OSError as error:
            raise _not_written(self.path, error) from None

    def leave_out(self, row: int, why: str) -> None:
        """The picture of row ``row`` has no row in the end; the file's attribute ``skipped`` says why.

        Until then the reason stands in the place of the features, as much of it as fits.
        """
        text = why.encode()[: math.prod(self._shape[1:]) * 2].decode(errors="ignore")
        content = np.frombuffer(text.encode().ljust(math.prod(self._shape[1:]) * 2, b"\0"), np.uint8)
        for name, value in (("features", content), ("checksum", np.array(zlib.crc32(content), "<u4")),
                            ("num_regions", np.array(LEFT_OUT, "<i4"))):
            self._put(self._places[name] + row * value.nbytes, value)
        self.done[row] = True
        self._left_out[row] = text

    def _without_left_out(self) -> None:
        """Put the rows that are there into a file of their own."""
        kept = [row for row in range(len(self.image_ids)) if row not in self._left_out]
        if not kept:
            raise InputError(f"{self.path}: no picture is left of {len(self.image_ids)}, {self.image_ids[0]}: {self._left_out[0]}")
        skipped = {**self._skipped, **{self.image_ids[row]: why for row, why in self._left_out.items()}}
        _, regions, dim = self._shape
        attrs = {name: value for name, value in self._attrs.items() if name not in ("extractor", "skipped")}
        with h5py.File(self.part, "r") as file:
            features = _rows_of(self.part, "features", file["features"])
            boxes = _rows_of(self.part, "boxes", file["boxes"]) if self._has_boxes else None
            counts = file["num_regions"][:]
        whole = RegionWriter(self.path, [self.image_ids[row] for row in kept], regions, dim, self._attrs["extractor"], self._has_boxes,
                             resume=True, progress=self._progress, verify=self._verify, skipped=skipped,
                             part=self.part.with_suffix(".whole.part"), **attrs)
        with whole:
            for new, row in enumerate(kept):
                whole.write(new, features[row][: counts[row]], boxes[row][: counts[row]] if boxes else None)

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._file.close()
            if not self.resume:
                self.part.unlink(missing_ok=True)

    def _finish(self) -> None:
        missing = int((~self.done).sum())
        if missing:
            raise InputError(f"{self.path}: {missing} pictures were given no regions; write every row")
        try:
            if self._left_out:
                self._without_left_out()
                self.part.unlink()
                return
            os.fsync(self._file.fileno())
            self._file.close()
            if self._verify:
                written = RegionStore(self.part)
                written.path = self.path  # the name that a user knows
                written.verify(self._progress)
            os.replace(self.part, self.path)
        except OSError as error:
            raise _not_written(self.path, error) from None


def part_of(path: Path) -> Path:
    """Where the file ``path`` is while it is written by a writer that can be stopped: beside it, in plain sight."""
    return path.with_name(f"{path.name}.part")


def store_bytes(pictures: int, max_regions: int, dim: int, boxes: bool = True) -> int:
    """How large a file of ours becomes, but for ids and attributes."""
    return pictures * (max_regions * (2 * dim + (16 if boxes else 0)) + 8)


def remove_leftover(path: Path) -> None:
    """Remove the part of the finished file ``path``, if a writer that left pictures out was killed before it could do so."""
    part = part_of(path)
    try:
        with h5py.File(part, "r") as left, h5py.File(path, "r") as whole:
            of_both = [{name: value for name, value in file.attrs.items() if name != "skipped"} for file in (left, whole)]
    except OSError:  # none
        return
    if of_both[0] == of_both[1]:
        part.unlink()


class RegionStore:
    """Reads region features, from .h5 or .npy. Rows are read when asked for; ``in_memory=True`` loads all, None those of at most
    512 MiB. It may be handed to other processes, by fork or pickle.

    ``image_ids``: these pictures alone, in this order, of the more that the file has.

    Raises :class:`InputError` if the file is missing, truncated or of another format, or lacks one of ``image_ids``.
    """

    def __init__(self, path: str | Path, in_memory: bool | None = False, image_ids: Sequence[str] | None = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{self.path} links to {os.readlink(self.path)}, which is not there: put it back, or make the link again"
                             if self.path.is_symlink() else
                             f"no region file {self.path}: extract the features first (itm data or itm extract)")
        self._place: np.ndarray | None = None
        self._rows, self._boxes, self._checksums = None, None, None
        (self._read_npy if self.path.suffix == ".npy" else self._read_hdf5)()
        self.num_images = len(self.image_ids)
        _, self.max_regions, self.dim = self._rows.shape
        self._check()
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        if image_ids is not None:
            self._take(list(image_ids))
        size = self.num_images * self.max_regions * self.dim * self._rows.dtype.itemsize
        self._memory: np.ndarray | None = None
        if in_memory or (in_memory is None and size <= IN_MEMORY):
            self._memory = self._load()

    def _read_hdf5(self) -> None:
        try:
            with h5py.File(self.path, "r") as file:
                absent = [name for name in _FIELDS if name not in file]
                if absent:
                    raise InputError(f"{self.path} is no RegionStore, it lacks {', '.join(absent)}; extract again")
                self.attrs: dict[str, Any] = dict(file.attrs)
                self.image_ids: list[str] = [value.decode() for value in file["image_ids"][:]]
                self.num_regions: np.ndarray = file["num_regions"][:]
                self._rows = _rows_of(self.path, "features", file["features"])
                self._check_shape()
                if "boxes" in file:
                    self._boxes = _rows_of(self.path, "boxes", file["boxes"])
                if "checksum" in file:
                    self._checksums = file["checksum"][:]
        except OSError as error:
            raise InputError(f"{self.path} cannot be read as HDF5, perhaps cut short ({one_line(error)}); extract again") from None
        if len(self.image_ids) != self._rows.shape[0]:
            raise InputError(f"{self.path}: features, image_ids and num_regions differ in length; extract again")

    def _read_npy(self) -> None:
        self._rows = FileRows.of_npy(self.path)
        self._check_shape()
        about, boxes = self.path.with_suffix(".json"), self.path.with_suffix(".boxes.npy")
        content = read_json(about)
        if not isinstance(content, dict) or not isinstance(content.get("image_ids"), list):
            raise InputError(f'{about} must say which picture each row is: {{"image_ids": [...]}}')
        self.image_ids = [str(value) for value in content["image_ids"]]
        self.attrs = {name: value for name, value in content.items() if isinstance(value, str | int | float)}
        self.num_regions = np.array(content.get("num_regions", [self._rows.shape[1]] * len(self.image_ids)), dtype=np.int32)
        self._place = np.array(content.get("row_of_image", range(len(self.image_ids))), dtype=np.int64)
        if boxes.is_file():
            self._boxes = FileRows.of_npy(boxes)
        rows = self._rows.shape[0]
        if len(self._place) != len(self.image_ids) or ("row_of_image" not in content and rows != len(self.image_ids)):
            raise InputError(f"{self.path} has {rows} rows and {about.name} lists {len(self.image_ids)} pictures: list each, and "
                             "row_of_image where they are not one to one")
        if len(self._place) and (self._place.min() < 0 or self._place.max() >= rows):
            raise InputError(f"{about}: row_of_image must lie in 0..{rows - 1}")

    def _check_shape(self) -> None:
        if len(self._rows.shape) != 3:
            raise InputError(f"{self.path}: features have the shape {self._rows.shape}, (pictures, regions, numbers) is needed")

    def _check(self) -> None:
        if len(self.num_regions) != self.num_images or self._rows.dtype.kind != "f":
            raise InputError(f"{self.path}: features, image_ids and num_regions differ in length; extract again")
        if self.num_images and (self.num_regions.min() < 1 or self.num_regions.max() > self.max_regions):
            raise InputError(f"{self.path}: num_regions must lie in 1..{self.max_regions}; extract again")
        if self._boxes is not None and self._boxes.shape != (*self._rows.shape[:2], 4):
            raise InputError(f"{self.path}: boxes have the shape {self._boxes.shape}, features {self._rows.shape}; extract again")
        if len(set(self.image_ids)) != self.num_images:
            raise InputError(f"{self.path}: an image id is listed twice; extract again")

    def _take(self, image_ids: list[str]) -> None:
        """From now on have these pictures alone."""
        lacking = [image_id for image_id in image_ids if image_id not in self._row]
        if lacking:
            raise InputError(f"{self.path} has no regions of {len(lacking):,} of {len(image_ids):,} pictures, {', '.join(lacking[:3])} among "
                             "them: extract them too, or leave these pictures out")
        rows = np.array([self._row[image_id] for image_id in image_ids], dtype=np.int64)
        self._place = rows if self._place is None else self._place[rows]
        self.image_ids, self.num_images, self.num_regions = image_ids, len(image_ids), self.num_regions[rows]
        self._checksums = None if self._checksums is None else self._checksums[rows]
        self._row = {image_id: row for row, image_id in enumerate(image_ids)}
        if len(self._row) != len(image_ids):
            raise InputError(f"{self.path}: a picture is asked for twice: list each once")

    def _load(self) -> np.ndarray:
        values = np.empty((self.num_images, self.max_regions, self.dim), self._rows.dtype)
        for first in range(0, self.num_images, _BLOCK):
            rows = np.arange(first, min(first + _BLOCK, self.num_images))
            values[first : first + _BLOCK] = self._read(self._rows, rows, self.max_regions, values.dtype)
        return values

    def __len__(self) -> int:
        return self.num_images

    @property
    def has_boxes(self) -> bool:
        """Whether it is known where in the picture the regions lie."""
        return self._boxes is not None

    def row(self, image_id: str) -> int:
        """The row of ``image_id``."""
        if image_id not in self._row:
            raise InputError(f"{self.path} has no image {image_id}: captions and regions are of different datasets")
        return self._row[image_id]

    def stored(self, rows: Sequence[int], width: int | None = None) -> np.ndarray:
        """As :meth:`features`, in the type that the file has: float16 as a rule."""
        return self._values(rows, width, self._rows.dtype)

    def features(self, rows: Sequence[int], width: int | None = None) -> np.ndarray:
        """(n, R, D) float32 of ``rows``, in their order; repeats allowed. ``width``: of each the first so many regions alone."""
        return self._values(rows, width, np.dtype(np.float32))

    def _values(self, rows: Sequence[int], width: int | None, dtype: np.dtype) -> np.ndarray:
        rows, width = self._checked(rows), self.max_regions if width is None else width
        if self._memory is not None:
            values = self._memory[rows, :width]
            return values if values.dtype == dtype else torch.from_numpy(values).float().numpy()
        return self._read(self._rows, rows, width, dtype)

    def boxes(self, rows: Sequence[int]) -> np.ndarray:
        """(n, R, 4) float32 of ``rows``, x0 y0 x1 y1 in [0, 1]."""
        if self._boxes is None:
            raise InputError(f"{self.path} has no boxes: where its regions lie in the picture is not known")
        return self._read(self._boxes, self._checked(rows), self.max_regions, np.dtype(np.float32))

    @property
    def fingerprint(self) -> str:
        """A short hash of the pictures and their features: of the rows' checksums, or of some rows where there are none."""
        digest = hashlib.sha256(json.dumps([self.image_ids, self.max_regions, self.dim, self.num_regions.tolist()]).encode())
        if self._checksums is not None:
            digest.update(self._checksums.tobytes())
        else:
            digest.update(self.stored(np.unique(np.linspace(0, self.num_images - 1, 16).astype(np.int64))).tobytes())
        return digest.hexdigest()[:16]

    def verify(self, progress: bool = False) -> int:
        """Read every row and hold it against its checksum; the number of rows. :class:`InputError` names the first wrong one.

        Where the file has no checksums, values are checked to be finite, and no more.
        """
        for row in tqdm(range(self.num_images), desc=f"check {self.path.name}", unit="picture", disable=not progress):
            features = self.stored([row])
            if self._checksums is not None:
                boxes = self.boxes([row]) if self.has_boxes else None
                if _checksum(features, boxes, int(self.num_regions[row])) != int(self._checksums[row]):
                    raise InputError(f"{self.path}: the regions of image {self.image_ids[row]} are not what was written; write the "
                                     "file again")
        return self.num_images

    def _checked(self, rows: Sequence[int]) -> np.ndarray:
        rows = np.asarray(rows, dtype=np.int64)
        if len(rows) and (rows.min() < 0 or rows.max() >= self.num_images):
            raise IndexError(f"row {rows.max() if rows.max() >= self.num_images else rows.min()} of {self.num_images}")
        return rows

    def _read(self, source: FileRows | _ChunkedRows, rows: np.ndarray, width: int, dtype: np.dtype) -> np.ndarray:
        """The beginnings of ``rows``, ``width`` vectors each. Each row is read once, in rising order, which a disk reads quickest,
        and converted while it is in the processor's cache."""
        out, one = np.empty((len(rows), width, source.shape[2]), dtype), np.empty((width, source.shape[2]), source.dtype)
        converted, as_read = torch.from_numpy(out), torch.from_numpy(one)  # torch converts float16 twice as quickly as numpy
        unique, first, back = np.unique(rows if self._place is None else self._place[rows], return_index=True, return_inverse=True)
        for row, place in zip(unique, first):
            source.read_into(row, one)
            if not _is_finite(one):
                raise InputError(f"{self.path}: features of image {self.image_ids[rows[place]]} are NaN or infinite; extract that picture again")
            converted[place].copy_(as_read)
        origin = first[back]
        for place in np.flatnonzero(origin != np.arange(len(rows))):
            out[place] = out[origin[place]]
        return out


def find_regions(folder: str | Path, name: str) -> Path:
    """regions/<name>.h5 or .npy of a dataset folder, whichever is there; else regions/all.h5 or .npy, one store of all splits.

    Where none is there, the first of these.
    """
    regions = Path(folder) / "regions"
    for start in (name, ALL):
        found = [path for path in (regions / f"{start}.h5", regions / f"{start}.npy") if path.is_file() or path.is_symlink()]
        if len(found) > 1:
            raise InputError(f"{regions} has both {found[0].name} and {found[1].name}: keep one of them")
        if found:
            return found[0]
    return regions / f"{name}.h5"


def _not_written(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} cannot be written ({one_line(error)}): make room, and start the same again")


def _skipped_as_json(skipped: Mapping[str, str]) -> str:
    return json.dumps(dict(sorted(skipped.items())), ensure_ascii=False)


def _datasets(shape: tuple[int, int, int], boxes: bool) -> dict[str, tuple[tuple[int, ...], str]]:
    """What a file of ours has, by name: shape and type; image_ids besides."""
    count, regions, _ = shape
    own = {"features": (shape, "<f2"), "boxes": ((count, regions, 4), "<f4"), "num_regions": ((count,), "<i4"),
           "checksum": ((count,), "<u4")}
    return {name: value for name, value in own.items() if boxes or name != "boxes"}


def _rows_of(path: Path, name: str, dataset: h5py.Dataset) -> FileRows | _ChunkedRows:
    offset = dataset.id.get_offset()
    if dataset.chunks is None and dataset.external is None and offset is not None:
        return FileRows(path, offset, dataset.dtype, dataset.shape)
    return _ChunkedRows(path, name, dataset)


def _is_finite(values: np.ndarray) -> bool:
    if values.dtype == np.float16:  # four times as quick as isfinite
        return not (values.view(np.uint16) & _EXPONENT == _EXPONENT).any()
    return bool(np.isfinite(values).all())


def _checksum(features: np.ndarray, boxes: np.ndarray | None, count: int) -> int:
    value = zlib.crc32(features)
    if boxes is not None:
        value = zlib.crc32(boxes, value)
    return zlib.crc32(count.to_bytes(4, "little"), value)


def _padded(values: np.ndarray, shape: tuple[int, int], dtype: str) -> np.ndarray:
    out = np.zeros(shape, dtype)
    out[: len(values)] = values
    return out
