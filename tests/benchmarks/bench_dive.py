"""DivE's smooth-Chamfer scores at full size: ours beside five other ways, a training batch, and the evaluation of COCO 5K.

    python tests/benchmarks/bench_dive.py [--images 1000] [--captions 5000] [--threads 2] [--quick] [--cpu-time]

1000 x 5000 sets of 4 unit vectors of 1024 numbers, float32, alpha 16. All ways get the same sets, in turn in one process, and
the best of three times is taken (loop and broadcast: of one):

ours       DivE.similarity, in blocks
loop       an image at a time: a product of all captions' elements with its own, and a log-sum-exp over either axis
broadcast  all pairs of elements by broadcasting (n,m,K,K,d), summed over d; in blocks of 1 MiB, its fastest here
pooling    the released formulation: all cosines at once (nK,mK), exp, sums of K neighbours as average pooling along either axis
logsumexp  all cosines at once, seen as (n,K,m,K), and torch.logsumexp over either K
product    the bare product (nK,mK) of all elements, which neither ours nor pooling can do without

Differences are the largest from float64, on the first 64 images and 256 captions. "MiB" is the growth of a fresh process's
peak over what it held with the sets made and one small call done, for each way on its own (Linux); the returned scores are
part of it. "train" is a batch of a fifth of the images, 200, with five captions each: scores, hinge loss and the gradients
of all elements. "evaluation" is similarity_matrix of five times as many sets on either side, 5000 x 25000, in a fresh
process: its seconds and the most that the process ever holds, Python, torch, sets and scores included.

Ours must be 5 times as fast as loop and broadcast, no slower than pooling, in half of pooling's memory, and the evaluation
must stay within 4 GiB. The exit status is 1 if a way differs or a target is missed.
--quick: 40 x 200 sets, a batch of 8 x 40 and an evaluation of 200 x 1000; no ratio is required, for so few pairs tell little.
--cpu-time counts the process's own seconds, for a machine that others use too; give it --threads 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import lru_cache, partial

import torch
from bench_scan import forget_peak, in_fresh_process, resident, seconds
from torch import Tensor
from torch.nn.functional import avg_pool2d

from itm_lib.evaluation import similarity_matrix
from itm_lib.losses import hinge_loss, matched_pairs, positive_mask
from itm_lib.models import DivE, DiveConfig, Encoding

ELEMENTS, DIM, ALPHA = 4, 1024, 16.0
CAPTIONS_AN_IMAGE = 5
REQUIRED = {"loop": 5.0, "broadcast": 5.0, "pooling": 1.0}
MEMORY_SHARE = 0.5                 # of pooling's peak
EVALUATION_LIMIT = 4 * 2**30
AGREE = 1e-5


def random_sets(count: int, seed: int) -> Tensor:
    """(count, K, d) unit vectors around a common direction; made in place, so that little more than them is ever held."""
    sets = torch.randn(count, ELEMENTS, DIM, generator=torch.Generator().manual_seed(seed)).add_(0.5)
    return sets.div_(torch.linalg.vector_norm(sets, dim=-1, keepdim=True))


@lru_cache(maxsize=1)
def make_model() -> DivE:
    return DivE(DiveConfig(region_dim=8, vocab_size=8, embed_dim=DIM, head_dim=8, alpha=ALPHA)).eval()


# --- the ways: sets (n,K,d) and (m,K,d) -> scores (n,m) ---


def ours(images: Tensor, captions: Tensor) -> Tensor:
    return make_model().similarity(Encoding(embedding=images), Encoding(embedding=captions))


def loop(images: Tensor, captions: Tensor) -> Tensor:
    return torch.stack([smooth(captions @ image.T, 2, 1) for image in images])


def broadcast(images: Tensor, captions: Tensor) -> Tensor:
    def block(x: Tensor, y: Tensor) -> Tensor:
        return smooth((x[:, None, :, None] * y[None, :, None]).sum(-1), 3, 2)

    return torch.cat([torch.cat([block(x, y) for y in captions.split(4)], dim=1) for x in images.split(4)])


def pooling(images: Tensor, captions: Tensor) -> Tensor:
    powers = torch.exp(ALPHA * product(images, captions))[None]
    row, column = (1, ELEMENTS), (ELEMENTS, 1)
    over_captions = avg_pool2d(torch.log(ELEMENTS * avg_pool2d(powers, row)), column)
    over_images = avg_pool2d(torch.log(ELEMENTS * avg_pool2d(powers, column)), row)
    return (over_captions + over_images)[0] / (2 * ALPHA)


def logsumexp(images: Tensor, captions: Tensor) -> Tensor:
    values = ALPHA * product(images, captions).view(len(images), ELEMENTS, len(captions), ELEMENTS)
    return (values.logsumexp(3).mean(1) + values.logsumexp(1).mean(2)) / (2 * ALPHA)


def product(images: Tensor, captions: Tensor) -> Tensor:
    return images.flatten(0, 1) @ captions.flatten(0, 1).T


def smooth(cosines: Tensor, first: int, second: int) -> Tensor:
    """Smooth-Chamfer of cosines whose last two axes of elements are ``first`` and ``second``."""
    over = [torch.logsumexp(ALPHA * cosines, axis).mean(-1) for axis in (first, second)]
    return (over[0] + over[1]) / (2 * ALPHA)


WAYS = {way.__name__: way for way in (ours, loop, broadcast, pooling, logsumexp, product)}
ONCE = ("loop", "broadcast")


# --- what is measured ---


def compare(images: int, captions: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of all ways and how far their scores are from float64."""
    sides = random_sets(images, 0), random_sets(captions, 1)
    few = sides[0][:64], sides[1][:256]
    exact = logsumexp(*(side.double() for side in few))
    row = {}
    with torch.no_grad():
        for name, way in WAYS.items():
            if name != "product":
                row[f"{name}_difference"] = (way(*few) - exact).abs().max().item()  # and first-call costs are paid
        times = {name: [] for name in WAYS}
        for turn in range(3):
            for name, way in WAYS.items():
                if not turn or name not in ONCE:
                    times[name].append(seconds(partial(way, *sides), 1, clock)[0])
    return row | {f"{name}_s": min(taken) for name, taken in times.items()}


def train(way: Callable, images: Tensor, captions: Tensor) -> Tensor:
    """Scores, hinge loss and the gradients of all elements; the latter are returned in one row."""
    sides = [side.detach().requires_grad_() for side in (images, captions)]
    ids = torch.arange(len(images))
    owners = ids.repeat_interleave(CAPTIONS_AN_IMAGE)
    loss = hinge_loss(way(*sides), matched_pairs(ids, owners), positive_mask(ids, owners))["loss"]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, sides)])


def compare_training(images: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of ours and pooling for a training batch; how far the gradients are apart, as a share of their length."""
    sides = random_sets(images, 0), random_sets(CAPTIONS_AN_IMAGE * images, 1)
    found = {name: train(WAYS[name], *sides) for name in ("ours", "pooling")}
    times = [{name: seconds(partial(train, WAYS[name], *sides), 1, clock)[0] for name in found} for _ in range(5)]
    row = {f"train_{name}_s": min(each[name] for each in times) for name in found}
    apart = torch.dist(found["ours"], found["pooling"]) / torch.linalg.vector_norm(found["pooling"])
    return row | {"train_difference": apart.item()}


def peak(name: str, images: int, captions: int, threads: int, training: bool = False) -> float:
    """MiB by which the peak of this process grows while a way works."""
    torch.set_num_threads(threads)
    sides = random_sets(images, 0), random_sets(captions, 1)
    work = partial(train, WAYS[name]) if training else torch.no_grad()(WAYS[name])
    work(sides[0][:2], sides[1][:2 * CAPTIONS_AN_IMAGE])  # first-call costs are not what is measured
    before = forget_peak()
    kept = work(*sides)
    return (resident("VmHWM") - before) / 2**20 if len(kept) else 0.0


def evaluation(images: int, captions: int, threads: int) -> dict[str, float]:
    """Seconds of similarity_matrix, and the most bytes that this process ever holds."""
    torch.set_num_threads(threads)
    sides = Encoding(embedding=random_sets(images, 0)), Encoding(embedding=random_sets(captions, 1))
    took, scores = seconds(lambda: similarity_matrix(make_model(), *sides), 1)
    row, column = images - 1, captions - 1  # the last of the last block, in float64
    exact = logsumexp(*(side.embedding[place : place + 1].double() for side, place in zip(sides, (row, column))))
    return {"evaluation_s": took, "evaluation_peak_mib": resident("VmHWM") / 2**20,
            "evaluation_difference": abs(scores[row, column].item() - exact.item())}


def missed(row: dict[str, float], required: bool) -> list[str]:
    """What the results fall short in."""
    differences = [name for name in row if name.endswith("difference") and not row[name] <= AGREE]
    found = [f"{name} {row[name]:.1e}" for name in differences]
    if required:
        found += [f"{name} / ours {row[f'{name}_s'] / row['ours_s']:.2f} < {least}" for name, least in REQUIRED.items()
                  if row[f"{name}_s"] < least * row["ours_s"]]
        if row["ours_mib"] > MEMORY_SHARE * row["pooling_mib"]:
            found.append(f"memory {row['ours_mib']:.0f} MiB of pooling's {row['pooling_mib']:.0f}")
    if row["evaluation_peak_mib"] * 2**20 > EVALUATION_LIMIT:
        found.append(f"evaluation took {row['evaluation_peak_mib']:.0f} MiB")
    return found


def show(row: dict[str, float], name: str, prefix: str = "") -> None:
    took, ours_took = row[f"{prefix}{name}_s"], row[f"{prefix}ours_s"]
    difference = row.get(f"{prefix}{name}_difference")
    print(f"{prefix.rstrip('_'):<6}{name:<10}{took:>9.3f} s{took / ours_took:>7.2f} x{row[f'{prefix}{name}_mib']:>9.0f} MiB"
          + ("" if difference is None else f"   difference {difference:.0e}"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--cpu-time", action="store_true")
    asked = parser.parse_args()
    images, captions = (40, 200) if asked.quick else (asked.images, asked.captions)
    batch, gallery = max(2, images // 5), (5 * images, 5 * captions)
    torch.set_num_threads(asked.threads)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    print(f"{images} x {captions} sets of {ELEMENTS} x {DIM}, {asked.threads} threads, load of the machine "
          f"{os.getloadavg()[0]:.1f}; times as multiples of ours")
    row = {"images": images, "captions": captions} | compare(images, captions, clock)
    for name in WAYS:
        row[f"{name}_mib"] = in_fresh_process(peak, name, images, captions, asked.threads)
        show(row, name)
    row |= compare_training(batch, clock)
    for name in ("ours", "pooling"):
        row[f"train_{name}_mib"] = in_fresh_process(peak, name, batch, CAPTIONS_AN_IMAGE * batch, asked.threads, True)
        show(row, name, "train_")
    print(f"gradients of the two differ by {row['train_difference']:.0e} of their length", flush=True)
    row |= in_fresh_process(evaluation, *gallery, asked.threads)
    print(f"evaluation of {gallery[0]} x {gallery[1]}: {row['evaluation_s']:.1f} s, {row['evaluation_peak_mib']:.0f} MiB in "
          f"all, difference {row['evaluation_difference']:.0e}")
    print(json.dumps({key: round(value, 9) if isinstance(value, float) else value for key, value in row.items()}))
    short = missed(row, not asked.quick)
    print("ratios, memory and differences as required" if not short else "MISSED: " + "; ".join(short))
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
