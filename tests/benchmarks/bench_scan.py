"""SCAN's scores at full size: the exact rewrite beside a literal loop over captions, and the memory of an evaluation.

    python tests/benchmarks/bench_scan.py [--pairs 128] [--threads 2] [--images 1000] [--captions 5000] [--quick]

128 x 128 pairs, 36 regions of 1024 numbers, captions of 8 to 20 words. Both ways run in turn in one process and must agree;
the best of their times is taken. "score" is the similarity without gradients; "train" is similarity, hinge loss and the
gradients of regions and words, which is what the rewrite changes; "step" is a whole training step with the encoders and
Adam, regions of 2048 numbers. The memory of a 1000 x 5000 evaluation is the growth of a fresh process's peak over what it held before
(Linux). The exit status is 1 if the ways disagree or a required ratio or the memory budget is missed.
--quick: 32 pairs and 100 x 500; no ratio is required, for so few pairs tell little.
--cpu-time counts the process's own seconds, for a machine that others use too; give it --threads 1.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from literal_scan import literal_scan  # noqa: E402

from itm_lib.evaluation import similarity_matrix  # noqa: E402
from itm_lib.losses import hinge_loss, matched_pairs, positive_mask  # noqa: E402
from itm_lib.models import SCAN, Encoding, SCANConfig  # noqa: E402

REGIONS, DIM, SHORTEST, LONGEST = 36, 1024, 8, 20
REQUIRED = {"score": 4.0, "train": 6.0}
BUDGET = 2**28


def make_model(direction: str, region_dim: int = 8) -> SCAN:
    torch.manual_seed(0)
    return SCAN(SCANConfig(region_dim=region_dim, vocab_size=8000, embed_dim=DIM, direction=direction, aggregation="lse"))


def random_words(captions: int, generator: torch.Generator) -> torch.Tensor:
    """(C, W) mask of captions of 8 to 20 words."""
    lengths = torch.randint(SHORTEST, LONGEST + 1, (captions,), generator=generator)
    return torch.arange(int(lengths.max())) < lengths[:, None]


def encodings(images: int, captions: int) -> tuple[Encoding, Encoding]:
    """Unit vectors around a common direction, as encoders give them."""
    generator = torch.Generator().manual_seed(0)
    mask = random_words(captions, generator)
    regions = torch.randn(images, REGIONS, DIM, generator=generator).add_(0.5)
    words = torch.randn(captions, mask.shape[1], DIM, generator=generator).add_(0.5).mul_(mask[..., None])
    for value in (regions, words):
        value.div_(torch.linalg.vector_norm(value, dim=-1, keepdim=True).clamp(min=1e-8))
    return Encoding(regions, torch.ones(images, REGIONS, dtype=torch.bool)), Encoding(words, mask)


def literally(model: SCAN, images: Encoding, captions: Encoding) -> torch.Tensor:
    settings = {name: getattr(model.config, name) for name in ("direction", "aggregation", "lambda_softmax", "lambda_lse")}
    lengths = captions.mask.sum(1).tolist()
    return literal_scan(images.fragments, [REGIONS] * len(images), captions.fragments, lengths, **settings)


def scored(scorer: Callable, images: Encoding, captions: Encoding) -> list[torch.Tensor]:
    with torch.no_grad():
        return [scorer(images, captions)]


def trained(scorer: Callable, images: Encoding, captions: Encoding) -> list[torch.Tensor]:
    """Similarity, loss, gradients."""
    regions, words = (side.fragments.clone().requires_grad_() for side in (images, captions))
    ids = torch.arange(len(images))
    scores = scorer(Encoding(regions, images.mask), Encoding(words, captions.mask))
    hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids))["loss"].backward()
    return [scores.detach(), regions.grad, words.grad]


def seconds(work: Callable, repeats: int, clock: Callable[[], float] = time.perf_counter) -> tuple[float, object]:
    """The shortest time of ``repeats`` and the last result."""
    times = []
    for _ in range(repeats):
        start = clock()
        result = work()
        times.append(clock() - start)
    return min(times), result


def compare(direction: str, pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of both ways, their ratio and the largest difference of scores and gradients."""
    model, sides = make_model(direction), encodings(pairs, pairs)
    row = {}
    for name, work, repeats in (("score", scored, (5, 2)), ("train", trained, (5, 1))):
        ours_alone = partial(work, model.similarity, *sides)
        ours_alone()  # first-call costs are not what is measured
        fast, ours = seconds(ours_alone, repeats[0], clock)
        slow, theirs = seconds(partial(work, partial(literally, model), *sides), repeats[1], clock)
        difference = max((mine - other).abs().max().item() for mine, other in zip(ours, theirs))
        row |= {f"{name}_fast_s": fast, f"{name}_literal_s": slow, f"{name}_ratio": slow / fast,
                f"{name}_difference": difference}
    return row


def whole_step(direction: str, pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a training step with encoders and optimizer, with either scorer."""
    generator = torch.Generator().manual_seed(0)
    mask = random_words(pairs, generator)
    tokens = torch.randint(4, 8000, mask.shape, generator=generator) * mask
    regions, ids, times = torch.randn(pairs, REGIONS, 2048, generator=generator), torch.arange(pairs), {}
    for name, repeats in (("fast", 3), ("literal", 1)):
        model = make_model(direction, 2048)
        scorer = model.similarity if name == "fast" else partial(literally, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)

        def step(model=model, scorer=scorer, optimizer=optimizer) -> None:
            scores = scorer(model.encode_images(regions, None), model.encode_captions(tokens, mask))
            optimizer.zero_grad()
            hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids))["loss"].backward()
            optimizer.step()

        times[name] = seconds(step, repeats, clock)[0]
    return {"step_fast_s": times["fast"], "step_literal_s": times["literal"], "step_ratio": times["literal"] / times["fast"]}


def resident(field: str) -> int:
    """Bytes of this process: ``VmRSS`` now, ``VmHWM`` the most since :func:`forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> int:
    """Start the peak from what is held now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def evaluation_memory(direction: str, images: int, captions: int, threads: int) -> dict[str, float]:
    """Growth of the peak while all pairs are scored, the score matrix included; and the seconds."""
    torch.set_num_threads(threads)
    model, sides = make_model(direction), encodings(images, captions)
    model.similarity(*(side.select(slice(0, 8)) for side in sides))  # first-call costs are not what is measured
    before = forget_peak()
    took, scores = seconds(lambda: similarity_matrix(model, *sides, block_bytes=BUDGET), 1)
    grown = resident("VmHWM") - before
    return {"evaluation_s": took, "evaluation_pairs": images * captions, "evaluation_peak_mib": grown / 2**20,
            "budget_mib": (BUDGET + scores.nbytes) / 2**20}


def block_copies(direction: str, threads: int) -> float:
    """Peak of one block in units of its affinities: the constant COPIES of the model is an upper bound."""
    torch.set_num_threads(threads)
    model, sides = make_model(direction), encodings(160, 160)
    model.block_bytes = 2**40
    with torch.no_grad():
        model.similarity(*(side.select(slice(0, 8)) for side in sides))
        before = forget_peak()
        model.similarity(*sides)
    return (resident("VmHWM") - before) / (160 * REGIONS * sides[1].mask.numel() * 4)


def in_fresh_process(function: Callable, *arguments: object) -> object:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def missed(row: dict[str, float], required: dict[str, float]) -> list[str]:
    """What a row of results falls short in."""
    found = [f"{row['direction']} {name} ratio {row[f'{name}_ratio']:.1f} < {least}" for name, least in required.items()
             if row[f"{name}_ratio"] < least]
    found += [f"{row['direction']} {name} differs by {row[f'{name}_difference']:.1e}" for name in REQUIRED
              if row[f"{name}_difference"] > 1e-5]
    if row["evaluation_peak_mib"] > row["budget_mib"]:
        found.append(f"{row['direction']} evaluation took {row['evaluation_peak_mib']:.0f} MiB of {row['budget_mib']:.0f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    pairs, images, captions = (32, 100, 500) if asked.quick else (asked.pairs, asked.images, asked.captions)
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(f"{pairs} x {pairs} pairs, {REGIONS} x {DIM}, {SHORTEST}-{LONGEST} words, {asked.threads} threads, "
          f"load of the machine {os.getloadavg()[0]:.1f}")
    rows = []
    for direction in ("t2i", "i2t"):
        row = {"direction": direction, "pairs": pairs}
        row |= compare(direction, pairs, clock) | whole_step(direction, pairs, clock)
        row |= in_fresh_process(evaluation_memory, direction, images, captions, asked.threads)
        row["block_copies"] = in_fresh_process(block_copies, direction, asked.threads)
        rows.append(row)
        for name in ("score", "train", "step"):
            print(f"{direction} {name:<6}{row[f'{name}_fast_s']:>8.3f} s  literal{row[f'{name}_literal_s']:>8.3f} s"
                  f"{row[f'{name}_ratio']:>7.1f} x")
        print(f"{direction} {images} x {captions}: {row['evaluation_s']:.0f} s, {row['evaluation_peak_mib']:.0f} MiB of "
              f"{row['budget_mib']:.0f}; a block holds {row['block_copies']:.1f} copies of its affinities", flush=True)
        print(json.dumps({key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()}))
    short = [line for row in rows for line in missed(row, {} if asked.quick else REQUIRED)]
    print("all ratios, differences and memory as required" if not short else "MISSED: " + "; ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
