"""Ranks of a 5000 x 25000 score matrix (COCO 5K): counted by comparison, and by argsort of every row and column.

    python tests/benchmarks/bench_ranking.py [--images 5000] [--captions 25000] [--limit-gb 2]

Each way runs in a process of its own, one after the other, on the same random scores; the two must give the same ranks.
Peak memory is that of the whole process: Python, torch, the matrix (500 MB) and the work. The exit status is 1 if the
ranks differ or counting needs more than --limit-gb.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time

import numpy as np


def counted(scores: np.ndarray, caption_to_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from itm_lib.evaluation import retrieval_ranks
    return retrieval_ranks(scores, caption_to_image)


def sorted_rows(scores: np.ndarray, caption_to_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The definition, literally: sort each row and each column, and look where the match stands."""
    i2t = np.array([np.flatnonzero(caption_to_image[np.argsort(row)[::-1]] == image)[0] for image, row in enumerate(scores)])
    t2i = np.array([np.flatnonzero(np.argsort(column)[::-1] == image)[0] for column, image in zip(scores.T, caption_to_image)])
    return i2t, t2i


GRID = 2.0**20
WAYS = {"counted": counted, "sorted": sorted_rows}


def measure(way: str, images: int, captions: int) -> tuple[float, float, list[np.ndarray]]:
    """(seconds, peak GB of this process, the ranks)."""
    caption_to_image = np.arange(captions) * images // captions
    scores = np.random.default_rng(0).random((images, captions), dtype=np.float32)
    np.floor(np.multiply(scores, GRID, out=scores), out=scores)
    scores[caption_to_image, np.arange(captions)] += 0.2 * GRID // 1 + 0.5  # half-integers: a match ties with no other
    WAYS[way](scores[:50], np.minimum(caption_to_image, 49))  # imports and first-call costs are not what is measured
    start = time.perf_counter()
    ranks = WAYS[way](scores, caption_to_image)
    seconds = time.perf_counter() - start
    return seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, list(ranks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=25000)
    parser.add_argument("--limit-gb", type=float, default=2.0)
    asked = parser.parse_args()
    results = {}
    for way in WAYS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a fresh process: its peak memory is its own
            results[way] = pool.apply(measure, (way, asked.images, asked.captions))
    reference = results["counted"][0]
    print(f"{asked.images} x {asked.captions} float32, {asked.images * asked.captions * 4 / 2**30:.2f} GB")
    print(f"{'way':<10}{'seconds':>10}{'ratio':>8}{'peak GB':>10}")
    for way, (seconds, peak, _) in results.items():
        print(f"{way:<10}{seconds:>10.2f}{seconds / reference:>8.1f}{peak:>10.2f}")
    same = all(np.array_equal(*pair) for pair in zip(results["counted"][2], results["sorted"][2]))
    print("the same ranks" if same else "THE RANKS DIFFER")
    return 0 if same and results["counted"][1] < asked.limit_gb else 1


if __name__ == "__main__":
    sys.exit(main())
