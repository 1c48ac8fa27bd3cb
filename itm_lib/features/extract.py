"""Regions of a folder of pictures, by any backbone, into one region file.

Every picture's size is read from its header first. Pictures of one input size are put into batches by their ids, so that the
batches, and with them the numbers to the last bit, depend on the pictures, the backbone and the batch size alone: not on the number
of loader workers, nor on whether the extraction was stopped in between and went on. Batches are ``workers`` processes' work, from
file to tensor, and then the backbone's, on its device.

A picture that cannot be read is told of, left out, and listed in the file's attribute ``skipped``. The attribute ``source`` is a
digest of the names, bytes and sizes of the pictures: a finished file of the same source and backbone is kept. ``images`` is the folder
that they were in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from itm_lib.data.pictures import BrokenPicture, as_rgb, find_pictures, picture_size, read_picture
from itm_lib.data.regions import RegionStore, RegionWriter, part_of, remove_leftover, store_bytes
from itm_lib.features.extractor import PictureExtractor, Regions
from itm_lib.files import InputError, locked, one_line
from itm_lib.processes import usable_cpus

_NO_MEMORY = ("can't allocate memory", "</torch_")  # torch's words on the CPU, and where loaders have too little /dev/shm
_NO_REGIONS = "the backbone finds nothing in it"


@dataclass(frozen=True)
class Extraction:
    """What an extraction made: ``images`` pictures in the region file ``path``, up to ``regions`` each of ``dim`` numbers.

    ``skipped``: why a picture is not among them, by image id. ``seconds`` and ``pictures_per_second`` are this call's;
    ``kept``: the file was there already, and nothing was extracted.
    """

    path: Path
    images: int
    regions: int
    dim: int
    skipped: dict[str, str]
    seconds: float
    pictures_per_second: float
    kept: bool = False

    def summary(self) -> str:
        """One line of all that."""
        left_out = f", {len(self.skipped):,} skipped" if self.skipped else ""
        size = f"{self.regions} regions of {self.dim} numbers, {self.path.stat().st_size / 2**20:,.1f} MiB"
        time_taken = "nothing to do" if self.kept else f"{self.seconds:,.1f} s, {self.pictures_per_second:,.1f} pictures/s"
        return f"{self.path}: {self.images:,} pictures{left_out}, {size}; {time_taken}"


def extract(images: str | Path, backbone: PictureExtractor, out: str | Path, batch_size: int = 8, workers: int = 0,
            progress: bool = True) -> Extraction:
    """Write the regions of all pictures in the folder ``images`` to ``out``, a region file (.h5).

    Stopped, by a kill too, the same call goes on, and ``out`` has the same bytes in the end. ``batch_size``: pictures that the
    backbone reads at once, at most. ``workers``: processes that read pictures, no more than there are CPUs.

    Raises :class:`InputError` of one line, with what is extracted kept, where pictures or ``out`` are not as they must be, memory
    or the disk is full, or another extraction writes ``out``.
    """
    images, out = Path(images), Path(out)
    _check(out, batch_size, workers)
    found = find_pictures(images)
    with _alone(out), _errors(out, batch_size):
        start = time.perf_counter()
        pictures = _survey(found, images, progress)
        attributes = {**backbone.settings, "source": pictures.digest}
        kept = _finished(out, {**attributes, "extractor": backbone.name}, pictures, progress)
        if kept is not None:
            return kept
        if not pictures.sizes:
            raise InputError(f"none of the {len(found):,} pictures in {images} can be read, {_first(pictures.broken)}: fetch them again")
        count = _extract(pictures, images.resolve(), backbone, out, batch_size, min(workers, usable_cpus()), progress, attributes)
        store, seconds = RegionStore(out), time.perf_counter() - start
        return Extraction(out, len(store), store.max_regions, store.dim, _skipped(store), seconds, count / seconds)


def extract_picture(backbone: PictureExtractor, picture: Image.Image | str | Path) -> Regions:
    """The regions of one picture, or of the picture in a file."""
    picture = as_rgb(picture) if isinstance(picture, Image.Image) else read_picture(picture)
    (regions,) = backbone(backbone.prepare(picture)[None])
    if not len(regions.features):
        raise InputError(f"this picture has no regions: {_NO_REGIONS}, give another picture or a smaller nms")
    return regions


# ------------------------------------------------------------------------------------------------ which pictures, in which batches

class _Pictures(NamedTuple):
    """Of each picture its (width, height), or why it cannot be read, by image id; and a digest of them all."""

    files: dict[str, Path]
    sizes: dict[str, tuple[int, int]]
    broken: dict[str, str]
    digest: str


def _survey(files: dict[str, Path], images: Path, progress: bool) -> _Pictures:
    """Read the headers of ``files``, and tell of those that are broken."""
    sizes, broken, digest = {}, {}, hashlib.sha256()
    for image_id, path in tqdm(files.items(), desc="read headers", unit="picture", disable=not progress, delay=1, leave=False):
        try:
            sizes[image_id] = picture_size(path)
        except BrokenPicture as error:
            broken[image_id] = error.why
            _tell(path, error.why)
        size_on_disk = path.stat().st_size if path.exists() else None
        digest.update(json.dumps([path.relative_to(images).as_posix(), size_on_disk, sizes.get(image_id)]).encode())
    return _Pictures(files, sizes, broken, digest.hexdigest()[:16])


def plan_batches(input_sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Rows of pictures in batches of one input size, at most ``batch_size`` each; rows rise in a batch, and their first ones do."""
    of_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, size in enumerate(input_sizes):
        of_size[tuple(size)].append(row)
    return sorted(rows[first : first + batch_size] for rows in of_size.values() for first in range(0, len(rows), batch_size))


def _finished(out: Path, attributes: dict[str, Any], pictures: _Pictures, progress: bool) -> Extraction | None:
    """What was extracted before, if it is whole and of just these pictures and this backbone."""
    try:
        store = RegionStore(out)
        skipped = _skipped(store)
        if ({name: value for name, value in store.attrs.items() if name not in ("images", "skipped")} != attributes
                or sorted([*store.image_ids, *skipped]) != list(pictures.files)):
            return None
        store.verify(progress)
        remove_leftover(out)
    except InputError:  # none, or damaged: it is made again
        return None
    return Extraction(out, len(store), store.max_regions, store.dim, skipped, 0.0, 0.0, kept=True)


def _skipped(store: RegionStore) -> dict[str, str]:
    return json.loads(store.attrs.get("skipped", "{}"))


# ------------------------------------------------------------------------------------------------ from files to tensors

class _Read(NamedTuple):
    """A batch as a loader's worker gives it: (rows, pixels (n, 3, H, W)) of one size each, and why rows could not be read."""

    stacks: list[tuple[list[int], Tensor]]
    broken: dict[int, str]


class _Reader(Dataset):
    """Batches of rows to pixels. A worker gets this object alone, so the model is no part of it."""

    def __init__(self, paths: Sequence[Path], prepare: Callable[[Image.Image], Tensor]):
        self.paths, self.prepare = list(paths), prepare

    def __getitem__(self, rows: Sequence[int]) -> _Read:
        tensors, broken = defaultdict(dict), {}
        for row in rows:
            try:
                pixels = self.prepare(read_picture(self.paths[row]))
            except BrokenPicture as error:
                broken[row] = error.why
            else:
                tensors[tuple(pixels.shape)][row] = pixels  # one shape, but for headers that say otherwise than the data
        return _Read([(list(of_shape), torch.stack(list(of_shape.values()))) for of_shape in tensors.values()], broken)


def _as_it_is(read: _Read) -> _Read:
    return read


def _end_quietly(_: int) -> None:
    """Of a worker: Ctrl-C reaches all processes, and the main one ends the others, perhaps while one hands it a batch."""
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = hook


def _read_batches(reader: _Reader, batches: list[list[int]], workers: int, pin: bool) -> Iterator[_Read]:
    """``batches`` in their order.

    Workers are forked where the system can do it, which takes no time: Pillow, numpy and copies of tensors are all that runs in
    them, on one thread, so that it does not matter that torch's threads of before are gone.
    """
    how = {"multiprocessing_context": "fork" if sys.platform == "linux" else "spawn", "worker_init_fn": _end_quietly} if workers else {}
    yield from DataLoader(reader, sampler=batches, batch_size=None, collate_fn=_as_it_is, num_workers=workers, pin_memory=pin, **how)


# ------------------------------------------------------------------------------------------------ from tensors to the file

def _extract(pictures: _Pictures, images: Path, backbone: PictureExtractor, out: Path, batch_size: int, workers: int, progress: bool,
             attributes: dict[str, Any]) -> int:
    """Write ``out``; how many pictures were read for it."""
    image_ids = list(pictures.sizes)
    batches = plan_batches([backbone.input_size(size) for size in pictures.sizes.values()], batch_size)
    if progress:
        size = store_bytes(len(image_ids), backbone.max_regions, backbone.dim) / 2**20
        tqdm.write(f"{out}: {len(image_ids):,} pictures of up to {backbone.max_regions} regions of {backbone.dim} numbers, {size:,.1f} MiB; until it is whole "
                   f"it is {part_of(out).name}", file=sys.stderr)
    reader, device = _Reader([pictures.files[image_id] for image_id in image_ids], backbone.prepare), _device(backbone)
    with RegionWriter(out, image_ids, backbone.max_regions, backbone.dim, backbone.name, resume=True, progress=progress, verify=True,
                      skipped=pictures.broken, images=str(images), **attributes) as writer:
        todo = [batch for batch in batches if not writer.done[batch].all()]  # whole batches, for the same numbers
        left = sum(map(len, todo))
        with (tqdm(total=len(image_ids), initial=len(image_ids) - left, desc=f"regions by {backbone.name}", unit="picture",
                   disable=not progress, smoothing=0.05) as bar,
              contextlib.closing(_read_batches(reader, todo, workers, device.type == "cuda")) as read_batches):
            for read in read_batches:
                for row, why in sorted({**_write(read.stacks, backbone, device, writer), **read.broken}.items()):
                    writer.leave_out(row, why)
                    _tell(reader.paths[row], why)
                bar.update(len(read.broken) + sum(len(rows) for rows, _ in read.stacks))
    return left


def _write(stacks: list[tuple[list[int], Tensor]], backbone: PictureExtractor, device: torch.device, writer: RegionWriter) -> dict[int, str]:
    """Write the rows of a batch; why some have no regions."""
    broken = {}
    for rows, pixels in stacks:
        for row, regions in zip(rows, backbone(pixels.to(device, non_blocking=True)), strict=True):
            if len(regions.features):
                writer.write(row, regions.features, regions.boxes)
            else:
                broken[row] = _NO_REGIONS
    return broken


def _device(backbone: PictureExtractor) -> torch.device:
    return torch.device(getattr(backbone, "device", "cpu"))


def _tell(path: Path, why: str) -> None:
    tqdm.write(f"skipped {path}: {why}", file=sys.stderr)


def _first(broken: dict[str, str]) -> str:
    image_id, why = next(iter(broken.items()))
    return f"{image_id}: {why}"


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Inside, no other extraction writes ``out``."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = locked(out.with_name(f".{out.name}.lock"), f"{out} is being written by another extraction: wait for it, or give another --out")
    except OSError as error:
        raise InputError(f"{out} cannot be written ({one_line(error)}): check the path and its permissions") from None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _errors(out: Path, batch_size: int) -> Iterator[None]:
    """Memory that does not suffice, as one line."""
    again = "what was extracted is kept, start the same again with"
    problem = f"{out}: no memory for batches of {batch_size} pictures: {again} a smaller --batch-size or fewer --workers"
    try:
        yield
        return
    except (MemoryError, torch.OutOfMemoryError):
        pass
    except RuntimeError as error:
        said = str(error)
        if said.startswith("DataLoader worker"):
            problem = f"{out}: a process that reads pictures was ended ({one_line(said)}): {again} fewer --workers"
        elif not any(words in said for words in _NO_MEMORY):
            raise
    raise InputError(problem)


def _check(out: Path, batch_size: int, workers: int) -> None:
    if os.path.isdir(out):
        raise InputError(f"{out} is a folder: give the name of a file in it, {out / 'store.h5'}")
    if out.suffix != ".h5":
        raise InputError(f"{out}: a region file ends in .h5, give {out.with_suffix('.h5')}")
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}: a batch has at least 1 picture")
    if workers < 0:
        raise InputError(f"workers is {workers}: give 0 or more processes")
