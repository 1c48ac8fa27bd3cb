"""The pictures that are searched: of a region file, of a dataset folder, or a folder of pictures for models of pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itm_lib.data import pictures
from itm_lib.data.pictures import PictureStore, Pixels
from itm_lib.data.regions import ALL, RegionStore, find_regions
from itm_lib.files import InputError, read_json


class Gallery:
    """All pictures of ``source``, or those of one ``split`` of a dataset folder, as a model reads them.

    ``image_ids`` (N,), ``num_images``, ``pixels`` and ``image_tensors(rows)`` are those of an ImageCaptionDataset, so that
    itm_lib.evaluation encodes a Gallery as it does a split. ``images``: the folder of the picture files, where ``source`` does not
    say it.
    """

    def __init__(self, source: str | Path, split: str | None = None, images: str | Path | None = None, pixels: Pixels | None = None):
        self.source, self.split, self.pixels = Path(source), split, pixels
        if images is not None and not Path(images).is_dir():
            raise InputError(f"no folder of pictures {images}: check the path")
        if self.source.is_dir():
            self.parts = self._of_folder(images)
        elif pixels is not None:
            raise InputError(f"this model reads pictures, not regions, and {source} is no folder: give a dataset folder, or one of pictures")
        elif split is not None:
            raise InputError(f"{source} is a file of regions and has no splits: give a dataset folder, or leave split out")
        else:
            self.parts = [RegionStore(self.source)]
        self.image_ids = [image_id for part in self.parts for image_id in part.image_ids]
        self._starts = np.cumsum([0, *map(len, self.parts)])
        self._check(images)

    def _of_folder(self, images: str | Path | None) -> list[RegionStore | PictureStore]:
        if not (self.source / "splits.json").is_file():
            if self.pixels is None:
                raise InputError(f"{self.source} is no dataset folder, it has no splits.json: give one, or a file of regions made by "
                                 "itm extract")
            return [PictureStore(self.source, list(pictures.find_pictures(self.source)), self.pixels)]
        splits = read_json(self.source / "splits.json")
        if self.split is not None and self.split not in splits:
            raise InputError(f"{self.source} has no split {self.split!r}: it has {', '.join(splits)}")
        names = [name for name in splits if splits[name]] if self.split is None else [self.split]
        if self.pixels is not None:
            folder = Path(images) if images is not None else self.source / "images"
            return [PictureStore(folder, [image_id for name in names for image_id in splits[name]], self.pixels)]
        paths = {name: find_regions(self.source, name) for name in names}
        if self.split is None and {path.stem for path in paths.values()} == {ALL}:
            return [RegionStore(paths[names[0]])]  # pictures without captions too
        return [RegionStore(path, image_ids=splits[name]) for name, path in paths.items()]

    def _check(self, images: str | Path | None) -> None:
        if len(set(self.image_ids)) < len(self.image_ids):
            seen: set[str] = set()
            twice = next(image_id for image_id in self.image_ids if image_id in seen or seen.add(image_id))
            raise InputError(f"{self.source}: picture {twice} is in two splits; index one split, or make the dataset again")
        if len({part.dim for part in self.parts}) > 1:
            raise InputError(f"{self.source}: regions of its splits have different sizes; extract them again")
        self.given_images = Path(images) if images is not None else None

    @property
    def num_images(self) -> int:
        return len(self.image_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def row(self, image_id: str) -> int:
        """The row of ``image_id``."""
        return self._rows[image_id]

    @property
    def dim(self) -> int | None:
        """Numbers of a region; None where there are pixels."""
        return self.parts[0].dim

    @property
    def num_regions(self) -> np.ndarray:
        """(N,) real regions of each picture."""
        return np.concatenate([part.num_regions for part in self.parts])

    @property
    def attrs(self) -> dict[str, Any]:
        """What the regions' file says of the extractor; of the first file where there are several, whose extractors are alike."""
        return dict(getattr(self.parts[0], "attrs", {}))

    @property
    def has_boxes(self) -> bool:
        return all(getattr(part, "has_boxes", False) for part in self.parts)

    def _split_rows(self, rows: Sequence[int]) -> list[tuple[RegionStore | PictureStore, np.ndarray, np.ndarray]]:
        """Of each part: the part, its own rows, and their places in ``rows``."""
        rows = np.asarray(rows, dtype=np.int64)
        part = np.searchsorted(self._starts, rows, side="right") - 1
        return [(self.parts[number], rows[part == number] - self._starts[number], np.flatnonzero(part == number))
                for number in np.unique(part)]

    def image_tensors(self, rows: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Regions (n, R, D) float32 and their mask (n, R), or pictures (n, 3, H, W) and None."""
        parts = self._split_rows(rows)
        if self.pixels is not None:
            return parts[0][0].tensors(parts[0][1].tolist()), None
        counts = np.zeros(len(rows), np.int64)
        for store, own, places in parts:
            counts[places] = store.num_regions[own]
        width = int(counts.max())
        features = torch.zeros(len(rows), width, self.dim)
        for store, own, places in parts:
            values = torch.from_numpy(store.features(own, min(width, store.max_regions)))
            features[torch.from_numpy(places), : values.shape[1]] = values
        return features, torch.arange(width)[None, :] < torch.from_numpy(counts)[:, None]

    def boxes(self, row: int) -> np.ndarray:
        """(r, 4) boxes of picture ``row``, in [0, 1]."""
        (store, own, _), = self._split_rows([row])
        return store.boxes(own)[0, : store.num_regions[own[0]]]

    # --- the files of the pictures ---

    @cached_property
    def images_folder(self) -> Path | None:
        """Where the picture files are, if that is known."""
        places = [self.given_images, self.source / "images", self.source if self.source.is_dir() and self.pixels else None]
        if "images" in self.attrs:  # as it was given to itm extract
            places += [Path(self.attrs["images"]), self.parts[0].path.parent / self.attrs["images"]]
        return next((place for place in places if place is not None and place.is_dir()), None)

    @cached_property
    def _files(self) -> dict[str, Path]:
        return {} if self.images_folder is None else pictures.find_pictures(self.images_folder)

    def path(self, row: int) -> Path | None:
        """The file of picture ``row``; None where it is not known."""
        folder = self.images_folder
        if folder is None:
            return None
        names = (f"{self.image_ids[row]}{suffix}" for suffix in pictures.SUFFIXES)  # looking at a whole folder may take minutes
        return next((folder / name for name in names if (folder / name).is_file()), None) or self._files.get(self.image_ids[row])

    def find(self, path: Path) -> int | None:
        """The row of the picture whose file is ``path``; None where it is none of the gallery's."""
        if self.images_folder is None:
            return None
        path, folder = path.resolve(), self.images_folder.resolve()
        return self._rows.get(path.relative_to(folder).with_suffix("").as_posix()) if path.is_relative_to(folder) else None

    # --- what an index remembers of it ---

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the pictures' ids, their order, and what is read of them."""
        digest = hashlib.sha256(json.dumps(self.image_ids).encode())
        for part in self.parts:
            if isinstance(part, PictureStore):
                digest.update(json.dumps([part.pixels.size, [self._files[name].stat().st_size for name in self.image_ids]]).encode())
            else:
                digest.update(part.fingerprint.encode())
        return digest.hexdigest()[:16]

    def needs_pictures(self) -> InputError:
        """What to raise where a picture file is needed and there is none."""
        return InputError(f"where the picture files of {self.source} lie is not known: give their folder, --images FOLDER")
