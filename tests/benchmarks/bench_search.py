"""Search among many generated embeddings: time to build, memory, queries a second and recall@10 against exact search, for every
kind of index; and what re-ranking by SCAN and CAMP costs.

    python tests/benchmarks/bench_search.py                                       # 1,000,000 vectors of 256 numbers
    python tests/benchmarks/bench_search.py --elements 4 --count 250000           # DivE: four elements a picture
    python tests/benchmarks/bench_search.py --spread uniform --kinds torch hnsw   # directions without structure: nothing is near

The vectors are generated, not a model's. "clusters": up to ten thousand overlapping groups, coordinate k scaled by k^-0.5, as
embeddings vary more in some directions than in others; a query is one more of them, so there are neighbours worth finding (the
first has a cosine near 0.6, the hundredth near 0.4). "uniform": independent directions, which in 256 dimensions are all almost
at right angles: what is nearest is so by chance, and approximate indexes find little of it.

Each kind builds and answers in a process of its own, so that its peak memory is its own. Faiss builds on one thread, see
itm_lib.search.vectors; queries run on the threads that OMP_NUM_THREADS allows. "rescored": 100 candidates from the index, ordered
by their exact products, which is what itm_lib.search does. A child reads vectors that its parent wrote to a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from itm_lib.evaluation.scoring import evaluating
from itm_lib.files import project_root, write_json
from itm_lib.search.vectors import KINDS, FaissVectors, PictureVectors, TorchVectors, VectorSettings, make_vectors

EF_SEARCH, NPROBE = (16, 32, 64, 128, 256), (1, 4, 16, 32, 64, 128)
TOP, CANDIDATES, BATCH = 10, 100, 100


def options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="pictures")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--elements", type=int, default=1, help="vectors a picture, and a query")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--spread", choices=("clusters", "uniform"), default="clusters")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seconds", type=float, default=8.0, help="at most for each timing, less where all queries are asked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rerank", nargs="*", choices=("scan", "camp"), default=["scan", "camp"])
    parser.add_argument("--rerank-sizes", type=int, nargs=5, default=[100, 36, 2048, 1024, 12], metavar=("CANDIDATES", "REGIONS", "NUMBERS", "DIM", "WORDS"))
    parser.add_argument("--out", type=Path, default=project_root() / "tests" / "benchmarks" / "results" / "search.json")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


# --- the vectors ------------------------------------------------------------------------------------------------------------


def generate(given: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (count, elements, dim) and queries (queries, elements, dim), float32."""
    rng = np.random.default_rng(given.seed)
    middle = rng.standard_normal((min(10_000, max(1, given.count // 50)), given.dim), dtype=np.float32)

    scale = np.arange(1, given.dim + 1, dtype=np.float32) ** -0.5 if given.spread == "clusters" else 1

    def draw(count: int) -> np.ndarray:
        values = np.empty((count, given.elements, given.dim), np.float32)
        for first in range(0, count, 50_000):
            size = min(50_000, count - first)
            own = rng.standard_normal((size, 1, given.dim), dtype=np.float32)
            if given.spread == "clusters":
                own = middle[rng.integers(len(middle), size=size)][:, None] + 1.5 * own
            if given.elements > 1:
                own = own + 0.5 * rng.standard_normal((size, given.elements, given.dim), dtype=np.float32)
            own = own * scale
            values[first : first + size] = own / np.linalg.norm(own, axis=-1, keepdims=True)
        return values

    return draw(given.count), draw(given.queries)


# --- one kind ---------------------------------------------------------------------------------------------------------------


def settings_of(kind: str) -> list[dict[str, int]]:
    """The search settings that are tried."""
    return {"hnsw": [{"ef_search": value} for value in EF_SEARCH], "ivfpq": [{"nprobe": value} for value in NPROBE]}.get(kind, [{}])


def rate(ask: Callable[[int], Any], rounds: int, seconds: float) -> float:
    """Calls of ``ask(number)`` a second: ``rounds`` of them, or as many as ``seconds`` hold."""
    ask(0)
    start, done = time.perf_counter(), 0
    while done < rounds and (done == 0 or time.perf_counter() - start < seconds):
        ask(done)
        done += 1
    return done / (time.perf_counter() - start)


def recall(found: list[torch.Tensor], exact: torch.Tensor) -> float:
    """Share of the exact first ten that are among ``found``, in percent."""
    kept = [len(set(own[:TOP].tolist()) & set(best.tolist())) / len(best) for own, best in zip(found, exact)]
    return 100 * statistics.mean(kept)


def rescored(pictures: PictureVectors, queries: list[torch.Tensor], found: list[torch.Tensor]) -> list[torch.Tensor]:
    """The candidates of each query by their exact scores, as a model of embeddings orders them."""
    ordered = []
    for query, rows in zip(queries, found):
        sets = pictures.vectors.view(len(pictures), pictures.width, -1)[rows]
        ordered.append(rows[(sets @ query.T).amax(1).mean(1).argsort(descending=True, stable=True)])
    return ordered


def exact_answers(folder: Path) -> None:
    """Write the exact first ten of each query."""
    vectors, queries = torch.from_numpy(np.load(folder / "vectors.npy")), torch.from_numpy(np.load(folder / "queries.npy"))
    starts = torch.arange(len(vectors) + 1) * vectors.shape[1]
    flat = vectors.flatten(0, 1)
    found = PictureVectors(flat, starts, TorchVectors(flat)).nearest(list(queries), TOP)
    np.save(folder / "exact.npy", torch.stack([rows for _, rows in found]).numpy())


def measure(kind: str, folder: Path, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Build an index of ``kind`` of the vectors in ``folder``, and ask it."""
    vectors, queries = torch.from_numpy(np.load(folder / "vectors.npy")), torch.from_numpy(np.load(folder / "queries.npy"))
    exact = torch.from_numpy(np.load(folder / "exact.npy"))
    loaded = peak_bytes()
    starts = torch.arange(len(vectors) + 1) * vectors.shape[1]
    flat = vectors.flatten(0, 1)
    begin = time.perf_counter()
    built = make_vectors(flat, VectorSettings(kind=kind, seed=seed))
    row: dict[str, Any] = {"kind": kind, "build_seconds": time.perf_counter() - begin, "vectors_bytes": flat.numel() * 4,
                           "index_bytes": index_bytes(built, folder), "peak_bytes": peak_bytes(), "loaded_bytes": loaded, "search": []}
    asked = list(queries)
    for setting in settings_of(kind):
        found = built if kind == "torch" else FaissVectors(built.index, built.settings.model_copy(update=setting), built.lifted)
        pictures = PictureVectors(flat, starts, found)
        many = lambda number, count, pictures=pictures: pictures.nearest(asked[number * BATCH % len(asked) :][:BATCH], count)  # noqa: E731
        batches, per_batch = -(-len(asked) // BATCH), min(BATCH, len(asked))
        candidates = [rows for number in range(batches) for _, rows in many(number, CANDIDATES)]
        row["search"].append({
            **setting,
            "one_by_one_per_second": rate(lambda number, pictures=pictures: pictures.nearest([asked[number % len(asked)]], TOP), len(asked), seconds),
            "batches_per_second": per_batch * rate(lambda number, many=many: many(number, TOP), batches, seconds),
            "recall_at_10": recall([rows for number in range(batches) for _, rows in many(number, TOP)], exact),
            "candidates_per_second": per_batch * rate(lambda number, many=many: many(number, CANDIDATES), batches, seconds),
            "recall_at_10_rescored": recall(rescored(pictures, asked, candidates), exact),
        })
    row["peak_bytes_asked"] = peak_bytes()
    return row


def index_bytes(built: TorchVectors | FaissVectors, folder: Path) -> int:
    """What the index takes beside the vectors, or instead of them: the size of its file; 0 of torch, which has none."""
    if isinstance(built, TorchVectors):
        return 0
    path = folder / "index.faiss"
    built.save(path)
    size = path.stat().st_size
    path.unlink()
    return size


def peak_bytes() -> int:
    """The largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- re-ranking -------------------------------------------------------------------------------------------------------------


def rerank(name: str, candidates: int, regions: int, numbers: int, dim: int, words: int, folder: Path, repeats: int = 7) -> dict[str, Any]:
    """Milliseconds to read the regions of ``candidates`` pictures from a float16 file, to encode and to score them."""
    from itm_lib.data.regions import RegionStore, RegionWriter
    from itm_lib.evaluation.scoring import encode_tokens, similarity_matrix
    from itm_lib.models import build_model

    rng, count = np.random.default_rng(0), 3 * candidates
    path = folder / "regions.h5"
    with RegionWriter(path, [str(number) for number in range(count)], regions, numbers, "generated", boxes=False) as writer:
        for row in range(count):
            writer.write(row, rng.standard_normal((regions, numbers), dtype=np.float32))
    torch.manual_seed(0)
    model = build_model(name, {"embed_dim": dim, "word_dim": 300}, numbers, 1000).eval()
    store, mask = RegionStore(path), torch.ones(candidates, regions, dtype=torch.bool)
    query = encode_tokens(model, [[1, *rng.integers(4, 1000, words - 2).tolist(), 2]])
    parts: dict[str, list[float]] = {"read": [], "encode": [], "score": []}
    for _ in range(repeats):
        rows = rng.choice(count, candidates, replace=False)
        times = [time.perf_counter()]
        features = torch.from_numpy(store.features(rows))
        times.append(time.perf_counter())
        with evaluating(model):
            images = model.encode_images(features, mask)
        times.append(time.perf_counter())
        similarity_matrix(model, images, query)
        times.append(time.perf_counter())
        for part, start, end in zip(parts, times, times[1:]):
            parts[part].append(1000 * (end - start))
    path.unlink()
    medians = {f"{part}_ms": statistics.median(values) for part, values in parts.items()}
    return {"model": name, "candidates": candidates, "regions": regions, "numbers": numbers, "embed_dim": dim, "words": words,
            **medians, "total_ms": sum(medians.values())}


# --- all of it --------------------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    import faiss

    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    return {"cpu": model, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "python": platform.python_version(),
            "torch": torch.__version__, "faiss": faiss.__version__}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def in_own_process(kind: str, folder: Path, given: argparse.Namespace) -> dict[str, Any] | None:
    """``measure`` of ``kind``, or with "exact" ``exact_answers``, in a new process."""
    command = [sys.executable, __file__, "--child", kind, str(folder), "--seconds", str(given.seconds), "--seed", str(given.seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout) if done.stdout.strip() else None


def run(given: argparse.Namespace, apart: bool = True) -> dict[str, Any]:
    """All measurements; ``apart``: each kind in a process of its own."""
    result = {"command": shlex.join(["python", "tests/benchmarks/bench_search.py", *sys.argv[1:]]) if apart else "", "machine": machine(),
              "data": {key: getattr(given, key) for key in ("count", "dim", "elements", "queries", "spread", "seed")}, "kinds": [], "rerank": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        vectors, queries = generate(given)
        np.save(folder / "vectors.npy", vectors)
        np.save(folder / "queries.npy", queries)
        del vectors
        if apart:
            in_own_process("exact", folder, given)
        else:
            exact_answers(folder)
        for kind in given.kinds:
            result["kinds"].append(in_own_process(kind, folder, given) if apart else measure(kind, folder, given.seconds, given.seed))
            print_kind(result["kinds"][-1])
    with tempfile.TemporaryDirectory() as name:
        for model in given.rerank:
            result["rerank"].append(rerank(model, *given.rerank_sizes, Path(name)))
            row = result["rerank"][-1]
            print(f"re-rank {row['candidates']} by {model}: read {row['read_ms']:.1f} ms, encode {row['encode_ms']:.1f} ms, "
                  f"score {row['score_ms']:.1f} ms", flush=True)
    return result


def print_kind(row: dict[str, Any]) -> None:
    print(f"{row['kind']}: built in {row['build_seconds']:.1f} s, file {row['index_bytes'] / 1e6:,.0f} MB beside {row['vectors_bytes'] / 1e6:,.0f} MB "
          f"of vectors, process at most {row['peak_bytes_asked'] / 1e6:,.0f} MB")
    print(f"  {'setting':>16} {'one by one/s':>13} {'batches/s':>11} {'recall@10':>10} {'rescored':>9}")
    for each in row["search"]:
        setting = ", ".join(f"{key} {value}" for key, value in each.items() if key in ("ef_search", "nprobe"))
        print(f"  {setting:>16} {each['one_by_one_per_second']:13,.1f} {each['batches_per_second']:11,.1f} {each['recall_at_10']:10.1f} "
              f"{each['recall_at_10_rescored']:9.1f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    given = options(arguments)
    if given.child is None:
        write_json(given.out, run(given))
        print(f"written to {given.out}")
        return
    kind, folder = given.child
    if kind == "exact":
        exact_answers(Path(folder))
    else:
        print(json.dumps(measure(kind, Path(folder), given.seconds, given.seed)))


if __name__ == "__main__":
    main()
