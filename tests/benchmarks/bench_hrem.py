"""HREM's adjacency at full size: all pairs at once beside a literal loop over captions, and what a training step takes.

    python tests/benchmarks/bench_hrem.py [--pairs 128] [--threads 2] [--quick] [--cpu-time]

128 images of 36 regions and 128 captions of 14 words, 1024 numbers each, no padding. "adjacency" is the connection A and the
relevance S of all four blocks: p and q both ways, the MLPs, the nearest, the intra-modal distances and the regulariser;
then the gradients of the MLPs and the embeddings. All ways in turn in one process, the best of their times is taken:

ours      HREM.relate and the regulariser
literal   p and q in the released code's order: the regions are normalised once; then, for each caption, its words are repeated
          for every image and the repeats normalised, a batched product, LeakyReLU, a normalisation over regions and one over
          words, maxima, means and top-k. MLPs, nearest and regulariser once for all pairs, distances by torch.cdist
lean      the same but for the loop, literal_hrem.literal_matches: each caption's words are normalised once and not repeated, so
          that the loop is one product of all regions with a caption's words and what follows
product   the bare matrix product of all regions with all words, which ours cannot do without: its share of ours, and the ratio
          to the literal loop that it would allow if all the rest took no time

Ours must be 3.5 times as fast as literal; the ratio to lean is told, not required. S and the gradients must agree, the latter as a
share of their length, and A wherever the score is not within rounding of the border between near and far. On the diagonal of
S, which is 1, torch.cdist rounds: it is not compared.

"step" is a whole training step of the fusion mechanism with encoders, dropping and AdamW, regions of 2048 numbers: its seconds, the
share of them that the adjacency of such encodings takes, and the most the process ever holds, everything included (Linux).
The exit status is 1 if the ways disagree or the required ratio is missed.
--quick: 16 x 16 pairs; no ratio is required, for so few pairs tell little.
--cpu-time counts the process's own seconds, for a machine that others use too; give it --threads 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from bench_scan import in_fresh_process, resident, seconds
from literal_hrem import literal_matches
from torch.nn import functional

from itm_lib.data.dataset import Batch
from itm_lib.models import HREM, Encoding, HremConfig
from itm_lib.models.hrem import closeness, regulariser

REGIONS, WORDS, DIM = 36, 14, 1024
REQUIRED = 3.5
AGREE, TIE = 1e-4, 1e-5


@dataclass
class Found:
    """What a way finds: S (N,N), its gradients, and A (N,N) bool or, by its sign, ``margin`` (N,N): how far above the border."""

    relevance: torch.Tensor
    gradients: torch.Tensor
    connection: torch.Tensor
    margin: torch.Tensor | None = None


def make_model(region_dim: int = 8, vocab_size: int = 8) -> HREM:
    torch.manual_seed(0)
    return HREM(HremConfig(region_dim=region_dim, vocab_size=vocab_size, embed_dim=DIM))


def encodings(pairs: int) -> tuple[Encoding, Encoding]:
    """Fragments, all of them true, and embeddings of unit length whose gradients are asked for."""
    generator = torch.Generator().manual_seed(0)
    sides = []
    for count in (REGIONS, WORDS):
        fragments = torch.randn(pairs, count, DIM, generator=generator).add_(0.1)
        embedding = functional.normalize(fragments.mean(1), dim=1).requires_grad_()
        sides.append(Encoding(fragments, torch.ones(pairs, count, dtype=torch.bool), embedding))
    return tuple(sides)


# --- the ways ---


def ours(model: HREM, images: Encoding, captions: Encoding) -> Found:
    graph = model.relate(images, captions)
    guide = closeness(images.embedding, captions.embedding, model.config.sigma)
    gradients = gradients_of(model, images, captions, graph.relevance, regulariser(graph.i2t, graph.t2i, guide))
    return Found(graph.relevance.detach(), gradients, graph.connection)


def by_loop(matches: Callable, model: HREM, images: Encoding, captions: Encoding) -> Found:
    """The adjacency from p and q as ``matches`` finds them caption by caption."""
    (p_i2t, q_i2t), (p_t2i, q_t2i) = matches(images.fragments, captions.fragments, model.config.topk)
    v, u, sigma = images.embedding, captions.embedding, model.config.sigma
    i2t = model.relevance["i2t"](q_i2t).squeeze(-1) + p_i2t
    t2i = model.relevance["t2i"](q_t2i).squeeze(-1) + p_t2i
    relevance = joined(torch.exp(-torch.cdist(v, v) / sigma), i2t, t2i, torch.exp(-torch.cdist(u, u) / sigma))
    guide = torch.exp(-torch.cdist(v, u) / sigma).detach()
    cost = sum(functional.kl_div(fixed.log_softmax(1), learned.softmax(1), reduction="batchmean")
               for learned, fixed in ((i2t, guide), (t2i, guide.T)))
    with torch.no_grad():
        margin = joined(*(above_border(scores, model.config.threshold) for scores in (v @ v.T, p_i2t, p_t2i, u @ u.T)))
    return Found(relevance.detach(), gradients_of(model, images, captions, relevance, cost), margin >= 0, margin)


def literally(regions: torch.Tensor, words: torch.Tensor, topk: int) -> tuple[tuple, tuple]:
    """(p, q) of i2t (I, C), (I, C, K) and of t2i (C, I), (C, I, K), in the released code's order."""
    regions, columns = functional.normalize(regions, dim=-1), []
    for caption in words:
        repeated = functional.normalize(caption.repeat(len(regions), 1, 1), dim=-1)                    # (I, W, d)
        affinity = functional.leaky_relu(torch.bmm(repeated, regions.transpose(1, 2)), 0.1)            # (I, W, R)
        word_best = functional.normalize(affinity, dim=1).max(dim=2).values
        region_best = functional.normalize(affinity, dim=2).max(dim=1).values
        columns.append((region_best.mean(1), region_best.topk(topk, dim=1).values,
                        word_best.mean(1), word_best.topk(topk, dim=1).values))
    p_i2t, q_i2t, p_t2i, q_t2i = (torch.stack(part) for part in zip(*columns))
    return (p_i2t.T, q_i2t.transpose(0, 1)), (p_t2i, q_t2i)


def leanly(regions: torch.Tensor, words: torch.Tensor, topk: int) -> tuple[tuple, tuple]:
    return literal_matches(regions, [REGIONS] * len(regions), words, [WORDS] * len(words), topk)


def joined(images: torch.Tensor, i2t: torch.Tensor, t2i: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    return torch.cat([torch.cat([images, i2t], dim=1), torch.cat([t2i, captions], dim=1)])


def above_border(scores: torch.Tensor, share: float) -> torch.Tensor:
    return scores - scores.topk(max(1, int(scores.shape[1] * share)), dim=1).values[:, -1:]


def gradients_of(model: HREM, images: Encoding, captions: Encoding, relevance: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """Of the regulariser plus a sum of S with fixed weights, by the embeddings and the MLPs; in one row."""
    weights = torch.linspace(-1, 1, len(relevance))
    total = cost + weights @ relevance @ weights / len(relevance)
    leaves = [images.embedding, captions.embedding, *model.relevance.parameters()]
    return torch.cat([value.flatten() for value in torch.autograd.grad(total, leaves)])


# --- what is measured ---


def compare(pairs: int, clock: Callable[[], float], rounds: int = 7) -> dict[str, float]:
    """Seconds of all ways, ratios, and how far the loops are from ours."""
    model, (images, captions) = make_model(), encodings(pairs)
    ways = {"product": lambda: images.fragments.flatten(0, 1) @ captions.fragments.flatten(0, 1).T,
            "ours": partial(ours, model, images, captions),
            "literal": partial(by_loop, literally, model, images, captions),
            "lean": partial(by_loop, leanly, model, images, captions)}
    found = {name: way() for name, way in ways.items()}  # first-call costs are not what is measured
    times = [{name: seconds(way, 1, clock)[0] for name, way in ways.items()} for _ in range(rounds)]
    row = {f"{name}_s": min(each[name] for each in times) for name in ways}
    row |= {"product_share": row["product_s"] / row["ours_s"], "product_allows": row["literal_s"] / row["product_s"]}
    for name in ("literal", "lean"):
        row[f"{name}_ratio"] = row[f"{name}_s"] / row["ours_s"]
        row |= {f"{name}_{what}": value for what, value in differences(found["ours"], found[name]).items()}
    return row


def differences(mine: Found, other: Found) -> dict[str, float]:
    """The largest of S, of the gradients as a share of their length, and how many entries of A differ without a tie."""
    apart = ~torch.eye(len(mine.relevance), dtype=torch.bool)
    return {"relevance": (mine.relevance - other.relevance)[apart].abs().max().item(),
            "gradients": (torch.dist(mine.gradients, other.gradients) / torch.linalg.vector_norm(other.gradients)).item(),
            "connections": int(((mine.connection != other.connection) & (other.margin.abs() > TIE)).sum())}


def whole_step(pairs: int, threads: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of a training step, of the adjacency of such encodings, and the most bytes that the process held."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    model, ids = make_model(2048, 8000).train(), torch.arange(pairs)
    optimizer = torch.optim.AdamW([{"params": each["params"]} for each in model.parameter_groups()], lr=5e-4, weight_decay=1e-4)
    batch = Batch(torch.randn(pairs, REGIONS, 2048, generator=generator), None,
                  torch.randint(4, 8000, (pairs, WORDS), generator=generator), torch.ones(pairs, WORDS, dtype=torch.bool),
                  ids, ids, ids)

    def step() -> None:
        loss = model(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    step()  # first-call costs are not what is measured
    took, _ = seconds(step, 3, clock)
    peak = resident("VmHWM")
    dropped = model.drop(batch)
    sides = (model.encode_images(dropped.regions, dropped.region_mask), model.encode_captions(dropped.tokens, dropped.token_mask))
    leaves = [Encoding(side.fragments.detach(), side.mask, side.embedding.detach().requires_grad_()) for side in sides]
    adjacency, _ = seconds(partial(ours, model, *leaves), 5, clock)
    return {"step_s": took, "step_adjacency_s": adjacency, "step_share": adjacency / took, "step_peak_mib": peak / 2**20}


def missed(row: dict[str, float], required: float | None) -> list[str]:
    """What the results fall short in."""
    found = [f"{name} loop: {what} differ by {row[f'{name}_{what}']:.1e}" for name in ("literal", "lean")
             for what in ("relevance", "gradients") if not row[f"{name}_{what}"] <= AGREE]
    found += [f"{name} loop: {row[f'{name}_connections']} connections differ" for name in ("literal", "lean")
              if row[f"{name}_connections"]]
    if required is not None and row["literal_ratio"] < required:
        found.append(f"ratio {row['literal_ratio']:.1f} < {required}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    pairs = 16 if asked.quick else asked.pairs
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(f"adjacency, forward and backward: {pairs} x {pairs} pairs, {REGIONS} x {DIM}, {WORDS} words, {asked.threads} threads, "
          f"load of the machine {os.getloadavg()[0]:.1f}")
    row = {"pairs": pairs} | compare(pairs, clock)
    print(f"ours    {row['ours_s']:>8.3f} s")
    for name, what in (("literal", "captions repeated for all images"), ("lean", "captions not repeated")):
        print(f"{name:<8}{row[f'{name}_s']:>8.3f} s{row[f'{name}_ratio']:>7.1f} x  loop over captions, {what}; differences: S "
              f"{row[f'{name}_relevance']:.0e}, gradients {row[f'{name}_gradients']:.0e}, A {row[f'{name}_connections']}")
    print(f"product {row['product_s']:>8.3f} s, {row['product_share']:.0%} of ours; alone it would allow "
          f"{row['product_allows']:.1f} x", flush=True)
    row |= in_fresh_process(whole_step, pairs, asked.threads, clock)
    print(f"step    {row['step_s']:>8.2f} s, {row['step_share']:.0%} of it ({row['step_adjacency_s']:.3f} s) the adjacency, "
          f"{row['step_peak_mib']:.0f} MiB in all")
    print(json.dumps({key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()}))
    short = missed(row, None if asked.quick else REQUIRED)
    print("ratio and differences as required" if not short else "MISSED: " + "; ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
