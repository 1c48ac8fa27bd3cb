"""A training step of SCAN and CAMP at the size of the recipes for photographs: 49 cells of 1280 numbers, d = 256, batches of 128.

    python tests/benchmarks/bench_photographs.py [--pairs 128] [--threads 2] [--repeats 3] [--quick]

Three ways to the same loss and gradients, in turn in one process, the encoders included; the best of the times is taken:

* "pairs": the library's: all scores without a gradient, and those of the matched and the hardest pairs again with one
* "matrix": the gradient goes through all pairs (the same rewrite of the equations; what training did before)
* "literal": a loop over captions (SCAN) or images (CAMP) that forms every attended vector

The exit status is 1 if the ways disagree or a required ratio is missed. --quick: 12 pairs, and no ratio is required.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))
from literal_camp import literal_camp  # noqa: E402
from literal_scan import literal_scan  # noqa: E402

from itm_lib.data.dataset import Batch  # noqa: E402
from itm_lib.models import MatchingModel, build_model, hinge  # noqa: E402

CELLS, REGION_DIM, DIM, VOCABULARY = 49, 1280, 256, 3000
MODELS = {"SCAN t-i AVG": {"method": "scan"}, "SCAN i-t LSE": {"method": "scan", "direction": "i2t", "aggregation": "lse"}, "CAMP": {"method": "camp"}}
WAYS = ("pairs", "matrix", "literal")
REQUIRED = {"SCAN t-i AVG": (1.3, 2.0), "SCAN i-t LSE": (1.3, 2.0), "CAMP": (3.0, 8.0)}  # matrix / pairs, literal / pairs
AGREE = 1e-3  # of gradients, relative to their length: in float32 a ReLU's input may be 0 but for rounding


def make_batch(pairs: int) -> Batch:
    """Regions like those behind a ReLU, and captions of 8 to 18 words."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 19, (pairs,), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.randint(4, VOCABULARY, mask.shape, generator=generator) * mask
    regions = torch.randn(pairs, CELLS, REGION_DIM, generator=generator).relu()
    ids = torch.arange(pairs)
    return Batch(regions, torch.ones(pairs, CELLS, dtype=torch.bool), tokens, mask, ids, ids, ids)


def make_model(settings: dict) -> MatchingModel:
    torch.manual_seed(0)
    settings = dict(settings)
    return build_model(settings.pop("method"), {"embed_dim": DIM, "word_dim": DIM, **settings}, REGION_DIM, VOCABULARY).train()


def literally(model: MatchingModel, images, captions) -> torch.Tensor:
    if model.name == "camp":
        return literal_camp(dict(model.named_parameters()), model.config, images.fragments, None, captions.fragments, captions.mask)
    c = model.config
    return literal_scan(images.fragments, images.mask.sum(1).tolist(), captions.fragments, captions.mask.sum(1).tolist(), direction=c.direction,
                        aggregation=c.aggregation, raw_feature_norm=c.raw_feature_norm, raw_activation=c.raw_activation,
                        lambda_softmax=c.lambda_softmax, lambda_lse=c.lambda_lse, attention=c.attention)


@contextlib.contextmanager
def way_of(model: MatchingModel, way: str) -> Iterator[None]:
    """Inside, the model's loss is computed in that way."""
    usual = hinge.SPARSE
    hinge.SPARSE = 1 if way == "pairs" else 10**9
    if way == "literal":
        model.similarity = lambda images, captions: literally(model, images, captions)
    try:
        yield
    finally:
        hinge.SPARSE = usual
        model.__dict__.pop("similarity", None)


def step(model: MatchingModel, batch: Batch, way: str) -> tuple[float, float, torch.Tensor]:
    """Seconds, the loss, and all gradients as one vector."""
    model.zero_grad()
    with way_of(model, way):
        start = time.perf_counter()
        loss = model(batch)["loss"]
        loss.backward()
        seconds = time.perf_counter() - start
    return seconds, float(loss.detach()), torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


def compare(name: str, pairs: int, repeats: int) -> dict:
    model, batch = make_model(MODELS[name]), make_batch(pairs)
    best, found = dict.fromkeys(WAYS, float("inf")), {}
    for number in range(repeats + 1):  # the first round warms up
        for way in WAYS:
            if number > 1 and way == "literal":
                continue
            seconds, loss, gradient = step(model, batch, way)
            best[way], found[way] = min(best[way], seconds), (loss, gradient)
    lengths = torch.linalg.vector_norm(found["literal"][1])
    differences = {way: float(torch.dist(found[way][1], found["literal"][1]) / lengths) for way in ("pairs", "matrix")}
    return {"model": name, **{f"{way}_s": seconds for way, seconds in best.items()}, "matrix_ratio": best["matrix"] / best["pairs"],
            "literal_ratio": best["literal"] / best["pairs"], "difference": max(differences.values()),
            "loss_difference": max(abs(found[way][0] - found["literal"][0]) for way in WAYS)}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    pairs, repeats, wrong = (12, 1, 0) if given.quick else (given.pairs, given.repeats, 0)
    for name in MODELS:
        row = compare(name, pairs, repeats)
        print(f"{name}: pairs {row['pairs_s']:.2f} s, matrix {row['matrix_s']:.2f} s ({row['matrix_ratio']:.1f} times), literal {row['literal_s']:.2f} s "
              f"({row['literal_ratio']:.1f} times); gradients differ by {row['difference']:.1e}", flush=True)
        missed = [] if given.quick else [f"{what} {row[f'{what}_ratio']:.1f} < {least}" for what, least in zip(("matrix", "literal"), REQUIRED[name])
                                         if row[f"{what}_ratio"] < least]
        if row["difference"] > AGREE or row["loss_difference"] > 1e-4:
            missed.append(f"the ways differ: gradients by {row['difference']:.1e}, losses by {row['loss_difference']:.1e}")
        wrong |= bool(missed)
        for line in missed:
            print(f"MISSED: {name}: {line}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
