"""The input pipeline of training at Flickr30K's size: 29,000 pictures of 36 x 2048 float16 numbers, 4.3 GB, generated and deleted.

    python tests/benchmarks/bench_input.py [--images 29000] [--steps 200] [--workers 0 2] [--cold] [--limit-mib 1500]

Batches of 128 pairs in the order of training, BatchSampler and DataLoader, without a model: from HDF5, from .npy, from the .npy
through a memory map, and from the array loaded whole. Each way runs in a process of its own, so that its peak memory (resident
size of the process and of its largest worker) is its own; "opened" is that before the first batch. Memory that forked workers
share with their parent counts in both. --cold drops the file from the system's cache before each way (Linux). The exit status
is 1 if the ways differ in what they give, or if reading row by row needs more than --limit-mib.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

BATCH, CAPTIONS, WARM_UP = 128, 5, 5
WAYS = {"HDF5, row by row": ("h5", False), ".npy, row by row": ("npy", False), ".npy, memory map": ("npy", None),
        ".npy, loaded whole": ("npy", True)}


def image_ids(count: int) -> list[str]:
    return [f"p{number}" for number in range(count)]


def write_texts(folder: Path, count: int) -> None:
    """Five captions of eight to fourteen words a picture."""
    from itm_lib.data import Vocabulary
    from itm_lib.files import write_json, write_jsonl

    rng, words = np.random.default_rng(0), [f"w{number}" for number in range(8000)]
    rows = [{"caption_id": f"{image_id}#{k}", "image_id": image_id, "split": "train",
             "text": " ".join(words[index] for index in rng.integers(8000, size=rng.integers(8, 15)))}
            for image_id in image_ids(count) for k in range(CAPTIONS)]
    write_jsonl(folder / "captions.jsonl", rows)
    write_json(folder / "splits.json", {"train": image_ids(count)})
    Vocabulary.build(row["text"] for row in rows).save(folder / "vocabulary.json")


@contextlib.contextmanager
def written(folder: Path, kind: str, count: int, regions: int, dim: int) -> Iterator[Path]:
    """regions/train.h5 or .npy of ``count`` pictures, row by row; the same values in both. Deleted at the end."""
    from itm_lib.data.regions import RegionWriter
    from itm_lib.files import write_json

    path = folder / "regions" / f"train.{kind}"
    path.parent.mkdir(exist_ok=True)
    base = np.random.default_rng(1).standard_normal((regions, dim)).astype(np.float16)
    values = lambda row: np.roll(base, row, axis=1)
    start = time.perf_counter()
    try:
        if kind == "h5":
            with RegionWriter(path, image_ids(count), regions, dim, "generated", boxes=False) as writer:
                for row in range(count):
                    writer.write(row, values(row))
        else:
            with open(path, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f2", "fortran_order": False, "shape": (count, regions, dim)})
                for row in range(count):
                    file.write(values(row))
            write_json(path.with_suffix(".json"), {"image_ids": image_ids(count)})
        seconds = time.perf_counter() - start
        print(f"wrote {path.name}, {path.stat().st_size / 2**30:.2f} GiB, in {seconds:.0f} s: {count / seconds:,.0f} pictures/s", flush=True)
        yield path
    finally:
        for made in (path, path.with_suffix(".json")):
            made.unlink(missing_ok=True)


class Batches:
    """What the trainer's DataLoader reads."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, captions):
        from itm_lib.data.dataset import collate
        return collate(self.dataset, captions, "caption")


def mapped(dataset, path: Path):
    """``dataset`` with its rows read through a memory map, as numpy.load(mmap_mode="r") gives them."""
    array = np.load(path, mmap_mode="r")
    dataset.regions.features = lambda rows, width=None: array[np.asarray(rows), :width].astype(np.float32)
    return dataset


def measure(folder: str, path: str, in_memory: bool | None, workers: int, steps: int, cold: bool) -> dict[str, float]:
    """Open the dataset and draw ``steps`` batches; what it took, and a checksum of what came."""
    import torch
    from torch.utils.data import DataLoader

    from itm_lib.data.dataset import BatchSampler, open_split

    if cold:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    dataset = open_split(folder, "train", in_memory=bool(in_memory))
    if in_memory is None:
        dataset = mapped(dataset, Path(path))
    opened, opened_mib = time.perf_counter() - start, peak_mib(resource.RUSAGE_SELF)
    rows = list(BatchSampler(dataset, BATCH))
    rows = (rows * (1 + (steps + WARM_UP) // len(rows)))[: steps + WARM_UP]
    check, pairs = 0, 0
    how = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}  # as a trainer that was not spawned has it
    for number, batch in enumerate(DataLoader(Batches(dataset), sampler=rows, batch_size=None, **how)):
        pairs += len(batch.caption_ids)
        check = zlib.crc32(batch.regions[:, 0, :16].contiguous().numpy(), check)
        assert batch.regions.dtype == torch.float32
        if number == WARM_UP:
            start, pairs = time.perf_counter(), 0
    return {"opened_s": opened, "opened_mib": opened_mib, "pairs_s": pairs / (time.perf_counter() - start),
            "peak_mib": peak_mib(resource.RUSAGE_SELF), "worker_mib": peak_mib(resource.RUSAGE_CHILDREN), "check": check}


def peak_mib(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / (2**10 if sys.platform == "linux" else 2**20)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in {"images": 29000, "regions": 36, "dim": 2048, "steps": 200, "limit-mib": 1500}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", help="where the store is written; default: the system's temporary folder")
    asked = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder = Path(temporary)
        write_texts(folder, asked.images)
        print(f"{asked.images:,} pictures of {asked.regions} x {asked.dim}, {CAPTIONS * asked.images:,} captions, batches of {BATCH}")
        print(f"{'':22}{'workers':>8}{'open s':>8}{'opened MiB':>12}{'pairs/s':>9}{'peak MiB':>10}{'worker MiB':>12}")
        for kind in ("h5", "npy"):
            with written(folder, kind, asked.images, asked.regions, asked.dim) as path:
                for way, (needed, in_memory) in WAYS.items():
                    for workers in asked.workers if needed == kind else []:
                        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # its peak memory is its own
                            found = pool.submit(measure, temporary, str(path), in_memory, workers, asked.steps, asked.cold).result()
                        results[way, workers] = found
                        print(f"{way:22}{workers:8}{found['opened_s']:8.1f}{found['opened_mib']:12,.0f}{found['pairs_s']:9,.0f}"
                              f"{found['peak_mib']:10,.0f}{found['worker_mib']:12,.0f}", flush=True)
    if len({found["check"] for found in results.values()}) > 1:
        print("the ways differ in what they give")
        return 1
    most = max(max(found["peak_mib"], found["worker_mib"]) for (way, _), found in results.items() if "row by row" in way)
    print(f"row by row needs {most:,.0f} MiB at most (limit {asked.limit_mib:,})")
    return 0 if most <= asked.limit_mib else 1


if __name__ == "__main__":
    sys.exit(main())
