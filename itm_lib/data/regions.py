"""RegionStore: region features and boxes in HDF5, one row an image.

====================  ==========================  =====================================================
dataset               type, shape                 meaning
====================  ==========================  =====================================================
``features``          float16 (N, R, D)           one vector a region; rows past ``num_regions`` are 0
``boxes``             float32 (N, R, 4)           x0 y0 x1 y1 in [0, 1] of the picture's width and height
``num_regions``       int32 (N,)                  how many of the R rows are real
``image_ids``         UTF-8 strings (N,)          the picture of each row, unique
====================  ==========================  =====================================================

The file's attributes name the extractor and its settings. The file appears under its name only when complete.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np

from itm_lib.files import InputError

_FIELDS = ("features", "boxes", "num_regions", "image_ids")


class RegionWriter:
    """Writes a RegionStore row by row; ``with`` renames it into place at the end, and only then.

    ``max_regions`` is R, ``dim`` is D; ``extractor`` and ``settings`` become attributes of the file.
    """

    def __init__(self, path: str | Path, image_ids: Sequence[str], max_regions: int, dim: int, extractor: str, **settings):
        self.path = Path(path)
        self.part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if len(set(image_ids)) != len(image_ids):
            raise InputError(f"{self.path}: an image id is listed twice: each picture has one row")
        self._file = h5py.File(self.part, "w")
        count = len(image_ids)
        self._file.create_dataset("features", (count, max_regions, dim), "f2", chunks=(1, max_regions, dim))
        self._file.create_dataset("boxes", (count, max_regions, 4), "f4")
        self._file.create_dataset("num_regions", (count,), "i4")
        self._file.create_dataset("image_ids", data=list(image_ids), dtype=h5py.string_dtype())
        self._file.attrs["extractor"] = extractor
        for name, value in settings.items():
            self._file.attrs[name] = value

    def write(self, row: int, features: np.ndarray, boxes: np.ndarray) -> None:
        """Row ``row``: ``features`` (r, D) and ``boxes`` (r, 4), r at most R and at least 1, all finite."""
        if not len(features) or len(features) != len(boxes) or len(features) > self._file["features"].shape[1]:
            raise InputError(f"{self.path} row {row}: {len(features)} features, {len(boxes)} boxes; need 1 to R of both")
        if not np.isfinite(features).all() or np.abs(features).max() > np.finfo(np.float16).max:
            raise InputError(f"{self.path} row {row}: features are NaN or too large for float16; check the extractor")
        self._file["features"][row, : len(features)] = features
        self._file["boxes"][row, : len(boxes)] = boxes
        self._file["num_regions"][row] = len(features)

    def __enter__(self) -> RegionWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        try:
            missing = int((self._file["num_regions"][:] == 0).sum())
            self._file.close()
            if kind is None:
                if missing:
                    raise InputError(f"{self.path}: {missing} pictures were given no regions; write every row")
                os.replace(self.part, self.path)
        finally:
            self.part.unlink(missing_ok=True)


class RegionStore:
    """Reads region features. ``in_memory=True`` loads all rows; otherwise rows are read when asked for.

    Raises :class:`InputError` if the file is missing, truncated or of another format.
    """

    def __init__(self, path: str | Path, in_memory: bool = False):
        self.path = Path(path)
        self._file: h5py.File | None = None
        self._pid = -1
        file = self._open()
        self.attrs = {name: value for name, value in file.attrs.items()}
        self.num_images, self.max_regions, self.dim = file["features"].shape
        self.image_ids: list[str] = [value.decode() for value in file["image_ids"][:]]
        self.num_regions: np.ndarray = file["num_regions"][:]
        if len(self.image_ids) != self.num_images or len(self.num_regions) != self.num_images:
            raise InputError(f"{self.path}: features, image_ids and num_regions differ in length; extract again")
        if self.num_images and (self.num_regions.min() < 1 or self.num_regions.max() > self.max_regions):
            raise InputError(f"{self.path}: num_regions must lie in 1..{self.max_regions}; extract again")
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}
        self._memory = file["features"][:] if in_memory else None
        if in_memory and not np.isfinite(self._memory).all():
            bad = self.image_ids[int(np.where(~np.isfinite(self._memory).all((1, 2)))[0][0])]
            raise InputError(f"{self.path}: features of image {bad} are NaN or infinite; extract that picture again")

    def _open(self) -> h5py.File:
        # h5py handles must not cross a fork: a loader worker opens its own
        if self._file is None or self._pid != os.getpid():
            if not self.path.is_file():
                raise InputError(f"no region file {self.path}: extract the features first (itm data or itm extract)")
            try:
                self._file = h5py.File(self.path, "r")
                absent = [name for name in _FIELDS if name not in self._file]
            except OSError as error:
                why = str(error).split("\n")[0]
                raise InputError(f"{self.path} cannot be read as HDF5, perhaps cut short ({why}); extract again") from None
            if absent:
                raise InputError(f"{self.path} is no RegionStore, it lacks {', '.join(absent)}; extract again")
            self._pid = os.getpid()
        return self._file

    def __len__(self) -> int:
        return self.num_images

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None, "_pid": -1}

    def row(self, image_id: str) -> int:
        """The row of ``image_id``."""
        if image_id not in self._row:
            raise InputError(f"{self.path} has no image {image_id}: captions and regions are of different datasets")
        return self._row[image_id]

    def features(self, rows: Sequence[int]) -> np.ndarray:
        """(n, R, D) float32 of ``rows``, in their order; repeats allowed."""
        rows = np.asarray(rows, dtype=np.int64)
        if self._memory is not None:
            return self._memory[rows].astype(np.float32)
        unique, back = np.unique(rows, return_inverse=True)  # HDF5 wants rising rows, each once
        values = self._open()["features"][unique].astype(np.float32)
        if not np.isfinite(values).all():
            bad = self.image_ids[int(unique[np.where(~np.isfinite(values).all((1, 2)))[0][0]])]
            raise InputError(f"{self.path}: features of image {bad} are NaN or infinite; extract that picture again")
        return values[back]

    def boxes(self, rows: Sequence[int]) -> np.ndarray:
        """(n, R, 4) float32 of ``rows``, x0 y0 x1 y1 in [0, 1]."""
        rows = np.asarray(rows, dtype=np.int64)
        unique, back = np.unique(rows, return_inverse=True)
        return self._open()["boxes"][unique][back]
