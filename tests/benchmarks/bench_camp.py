"""CAMP's scores at full size: the exact rewrite beside a literal loop over images, and the memory of a training step.

    python tests/benchmarks/bench_camp.py [--pairs 16] [--step-pairs 128] [--threads 2] [--quick] [--cpu-time]

The released model (scalar gate, concat fusion, four heads), 36 regions of 1024 numbers, captions of 14 words, no padding in
either way. 16 x 16 pairs, both ways in turn in one process; they must agree, and the best of their times is taken. "score" is
the similarity without gradients; "train" is similarity, BCE with hardest negatives and the gradients of fragments and
parameters. "memory" is what "train" takes at its peak beyond weights, gradients and inputs, in a fresh process each: the literal
loop, ours with its graph kept, ours with every block computed again in the backward pass. "step" is a whole training step
of 128 x 128 pairs with the encoders and Adam, regions of 2048 numbers, as trained by default: its seconds, and the most the
process ever holds, everything included (Linux). The exit status is 1 if the ways disagree or a required ratio or the
memory limit is missed.
--quick: 4 x 4 pairs and a step of 8 x 8; no ratio is required, for so few pairs tell little.
--cpu-time counts the process's own seconds, for a machine that others use too; give it --threads 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from bench_scan import forget_peak, in_fresh_process, resident, seconds
from literal_camp import literal_camp

from itm_lib.losses import bce_loss, matched_pairs, positive_mask
from itm_lib.models import CAMP, CampConfig, Encoding

REGIONS, WORDS, DIM = 36, 14, 1024
REQUIRED = {"score": 4.0, "train": 4.0, "memory": 4.0}
AGREE = 1e-4
STEP_LIMIT = 8 * 2**30


def make_model(region_dim: int = 8, vocab_size: int = 8) -> CAMP:
    """A model whose scores are well apart, so that rounding does not change which negative is the hardest."""
    torch.manual_seed(0)
    model = CAMP(CampConfig.released(region_dim=region_dim, vocab_size=vocab_size, embed_dim=DIM))
    with torch.no_grad():
        model.head[2].weight.mul_(30)
    return model


def fragments(pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Regions (I, R, d) and words (C, W, d), of lengths as encoders give them."""
    generator = torch.Generator().manual_seed(0)
    return 0.5 * torch.randn(pairs, REGIONS, DIM, generator=generator), 0.1 * torch.randn(pairs, WORDS, DIM, generator=generator)


def literally(model: CAMP, images: Encoding, captions: Encoding) -> torch.Tensor:
    return literal_camp(dict(model.named_parameters()), model.config, images.fragments, None, captions.fragments, None)


def scorer_of(model: CAMP, way: str) -> Callable[[Encoding, Encoding], torch.Tensor]:
    """``"literal"``, ``"kept"`` (ours, its graph kept) or ``"recomputed"`` (ours, blocks computed again)."""
    model.graph_bytes = 0 if way == "recomputed" else 2**62
    return partial(literally, model) if way == "literal" else model.similarity


def encoded(regions: torch.Tensor, words: torch.Tensor) -> tuple[Encoding, Encoding]:
    return tuple(Encoding(side, torch.ones(side.shape[:2], dtype=torch.bool)) for side in (regions, words))


def scored(scorer: Callable, regions: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    with torch.no_grad():
        return [scorer(*encoded(regions, words))]


def trained(scorer: Callable, model: CAMP, regions: torch.Tensor, words: torch.Tensor) -> list[torch.Tensor]:
    """Similarity, loss and gradients, which are written into those of the call before."""
    weights = scoring_parameters(model)
    leaves = [value.detach().requires_grad_() for value in (regions, words)]
    for value, held in zip([*leaves, *weights], [regions, words, *weights]):
        held.grad = torch.zeros_like(held) if held.grad is None else held.grad.zero_()
        value.grad = held.grad
    ids = torch.arange(len(regions))
    scores = scorer(*encoded(*leaves))
    bce_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids))["loss"].backward()
    return [scores.detach(), *(value.grad for value in (*leaves, *weights))]


def scoring_parameters(model: CAMP) -> list[torch.nn.Parameter]:
    return [value for name, value in model.named_parameters() if not name.startswith(("image.", "text."))]


def compare(pairs: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of both ways, their ratio and the difference of scores and gradients, as a share of their length.

    Of the length, for a single number may differ: where a ReLU's input is 0 but for rounding its gradient is on or off.
    """
    model, sides, row = make_model(), fragments(pairs), {}
    for name, repeats in (("score", (5, 3)), ("train", (5, 3))):
        ways = {way: partial(scored, scorer_of(model, way), *sides) if name == "score"
                else partial(trained, scorer_of(model, way), model, *sides) for way in ("kept", "literal")}
        scorer_of(model, "kept")
        ways["kept"]()  # first-call costs are not what is measured
        fast, ours = seconds(ways["kept"], repeats[0], clock)
        ours = [value.clone() for value in ours]
        slow, theirs = seconds(ways["literal"], repeats[1], clock)
        together = lambda values: torch.cat([value.flatten().double() for value in values])
        difference = (torch.dist(together(ours), together(theirs)) / torch.linalg.vector_norm(together(theirs))).item()
        row |= {f"{name}_fast_s": fast, f"{name}_literal_s": slow, f"{name}_ratio": slow / fast,
                f"{name}_difference": difference}
    return row


def training_peak(way: str, pairs: int, threads: int) -> int:
    """Bytes that "train" takes at its peak beyond weights, gradients and inputs."""
    torch.set_num_threads(threads)
    model = make_model()
    scorer, sides = scorer_of(model, way), fragments(pairs)
    trained(scorer, model, *fragments(2))  # first-call costs are not what is measured; the weights' gradients stay
    for side in sides:
        side.grad = torch.zeros_like(side)
    before = forget_peak()
    trained(scorer, model, *sides)
    return resident("VmHWM") - before


def whole_step(pairs: int, threads: int) -> dict[str, float]:
    """Seconds of a training step with encoders and optimizer, and the most bytes that the process held."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    model = make_model(2048, 8000)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    tokens, ids = torch.randint(4, 8000, (pairs, WORDS), generator=generator), torch.arange(pairs)
    regions, mask = torch.randn(pairs, REGIONS, 2048, generator=generator), torch.ones(pairs, WORDS, dtype=torch.bool)

    def step() -> None:
        loss = model.loss(model.encode_images(regions, None), model.encode_captions(tokens, mask), ids, ids)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    took, _ = seconds(step, 1)
    return {"step_s": took, "step_pairs": pairs, "step_peak_mib": resident("VmHWM") / 2**20}


def missed(row: dict[str, float], required: dict[str, float]) -> list[str]:
    """What the results fall short in."""
    found = [f"{name} ratio {row[f'{name}_ratio']:.1f} < {least}" for name, least in required.items()
             if row[f"{name}_ratio"] < least]
    found += [f"{name} differs by {row[f'{name}_difference']:.1e}" for name in ("score", "train")
              if row[f"{name}_difference"] > AGREE]
    if row["step_peak_mib"] > STEP_LIMIT / 2**20:
        found.append(f"the training step took {row['step_peak_mib']:.0f} MiB of {STEP_LIMIT / 2**20:.0f}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--step-pairs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    pairs, step_pairs = (4, 8) if asked.quick else (asked.pairs, asked.step_pairs)
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(f"{pairs} x {pairs} pairs, {REGIONS} x {DIM}, {WORDS} words, {asked.threads} threads, "
          f"load of the machine {os.getloadavg()[0]:.1f}")
    row = {"pairs": pairs} | compare(pairs, clock)
    for name in ("score", "train"):
        print(f"{name:<8}{row[f'{name}_fast_s']:>8.3f} s  literal{row[f'{name}_literal_s']:>8.3f} s"
              f"{row[f'{name}_ratio']:>7.1f} x  difference {row[f'{name}_difference']:.0e}", flush=True)
    for way in ("literal", "kept", "recomputed"):
        row[f"memory_{way}_mib"] = in_fresh_process(training_peak, way, pairs, asked.threads) / 2**20
    row["memory_ratio"] = row["memory_literal_mib"] / row["memory_recomputed_mib"]
    print(f"memory  {row['memory_recomputed_mib']:>8.0f} MiB, graph kept{row['memory_kept_mib']:>6.0f} MiB, literal"
          f"{row['memory_literal_mib']:>6.0f} MiB{row['memory_ratio']:>7.1f} x", flush=True)
    row |= in_fresh_process(whole_step, step_pairs, asked.threads)
    print(f"step    {row['step_s']:>8.1f} s of {step_pairs} x {step_pairs} pairs, {row['step_peak_mib']:.0f} MiB of "
          f"{STEP_LIMIT / 2**20:.0f} in all")
    print(json.dumps({key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()}))
    short = missed(row, {} if asked.quick else REQUIRED)
    print("all ratios, differences and memory as required" if not short else "MISSED: " + "; ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
