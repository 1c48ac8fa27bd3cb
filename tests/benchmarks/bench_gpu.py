"""The papers' recipes on a GPU: a full-size training step of each, SCAN's and CAMP's evaluation, and what bf16 and TF32 do to Recall.

    python tests/benchmarks/bench_gpu.py [NAME ...] [--only steps evaluation recall] [--tiny] [--json FILE]

"steps": a training step of each recipe (of the last stage, if it has some) with its batch, on a generated batch that lies on the device: forward,
loss, backward, clip and optimizer, in the recipe's precision and in bf16; weights are random and of full width, BERT-base and
ResNet-152 included, and HREM's relations are on. The median of five steps after two; pairs a second, the most memory held, and the floating point
operations of a step, counted as they are executed (recomputed blocks count again), as a share of the device's bf16 peak: the
nominal one of dense products where it is known, else that of a bare bf16 product measured here, which is told in both cases. One process for all:
memory is given back in between.

"evaluation": similarity_matrix of 1000 pictures and 5000 captions of 8 to 20 words, encodings given, SCAN both ways and CAMP as released; its
seconds. A part of the pairs is also scored by the literal implementation of the tests (for SCAN a loop over captions that forms every
attended vector, for CAMP a loop over images that forms every message) on the same device in the same run; they must agree, and the ratio of
the times on that part is told, for scores alone ("score") and with loss and gradients of the fragments ("train").

"recall": small models of all methods learn on a generated world; the same weights are then evaluated in float32, with TF32 products and
with encoders in bf16. No Recall may differ from float32's by more than a point.

It runs on a CPU, too, where its numbers say little; --tiny takes a width and sizes that take a minute there. The exit status is 1 if ways
disagree or a Recall moves.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "models")]
from literal_camp import literal_camp  # noqa: E402
from literal_scan import literal_scan  # noqa: E402
from recipe_world import FULL, TINY, Width, write_world  # noqa: E402

from itm_lib.data.dataset import Batch  # noqa: E402
from itm_lib.evaluation import RetrievalMetrics, encode_dataset, similarity_matrix  # noqa: E402
from itm_lib.losses import hinge_loss, matched_pairs, positive_mask  # noqa: E402
from itm_lib.models import CAMP, SCAN, CampConfig, Encoding, MatchingModel, SCANConfig, build_model  # noqa: E402
from itm_lib.training import load_recipe, run_recipe, seed_everything  # noqa: E402
from itm_lib.training.config import TrainConfig, make_optimizer  # noqa: E402
from itm_lib.training.monitor import forget_peak, peak_memory  # noqa: E402
from itm_lib.training.recipe import Recipe, paper_recipe_names  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# dense bf16 products, TFLOP/s, as the makers publish them
NOMINAL = {"H200": 989, "H100 80GB HBM3": 989, "H100 SXM": 989, "H100 PCIe": 756, "H100 NVL": 835, "B200": 2250, "A100": 312, "L40S": 362, "L4": 121,
           "RTX 4090": 165, "RTX 3090": 71, "A10G": 70, "A10": 125}
SHORTEST, LONGEST = 8, 20
AGREE, RECALL_AGREES = 1e-3, 1.0


def finish() -> None:
    """Wait until the device has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int, warm: int = 1) -> tuple[float, Any]:
    """The median time of ``repeats`` runs after ``warm`` others, and the last result."""
    took, result = [], None
    for number in range(warm + repeats):
        finish()
        began = time.perf_counter()
        result = work()
        finish()
        if number >= warm:
            took.append(time.perf_counter() - began)
    return statistics.median(took), result


def measured_peak(tiny: bool) -> float:
    """FLOP/s of a bare bf16 product."""
    size = 512 if tiny or DEVICE.type == "cpu" else 8192
    left, right = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, 10, 3)[0]


def nominal_peak() -> float | None:
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else ""
    return next((1e12 * peak for part, peak in NOMINAL.items() if part in name), None)


# --- steps --------------------------------------------------------------------------------------------------------------


def random_tokens(captions: int, words: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(C, W) ids and mask of captions of 8 to 20 words."""
    lengths = torch.randint(SHORTEST, LONGEST + 1, (captions,), generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.randint(4, words, mask.shape, generator=generator) * mask, mask


def full_model(name: str, width: Width, tiny: bool) -> tuple[MatchingModel, TrainConfig]:
    """The recipe's model of random weights, and how it trains."""
    recipe = load_recipe(name)
    stage = recipe.plan[-1]
    changes: dict[str, Any] = {"relation_warmup": 0} if recipe.method == "hrem" else {}
    if stage.config.token_kind == "pieces":
        changes |= {"bert": None, "bert_config": {"vocab_size": 30522, **width.bert}, "mask_id": 103}
    if stage.config.pixels is not None:
        changes |= {"backbone": None, "backbone_config": {"model_type": "resnet", **width.resnet}}
    settings = {key: value for key, value in {**stage.model, **changes}.items() if key not in ("method", "word_vectors")}
    if tiny:
        settings |= {"embed_dim": 16} | ({"num_heads": 2} if recipe.method in ("hrem", "dive") else {}) | ({"head_dim": 8} if recipe.method == "dive" else {})
        settings |= {"image_size": width.pixels} if stage.config.pixels is not None else {}
    words = 30522 if stage.config.token_kind == "pieces" else width.words[recipe.paper.dataset]
    seed_everything(0)
    model = build_model(recipe.method, settings, None if stage.config.pixels is not None else width.region_dim, words)
    return model.to(DEVICE), stage.train.model_copy(update={"batch_size": 4} if tiny else {})


def full_batch(model: MatchingModel, units: int, width: Width) -> Batch:
    """A batch of so many units on the device: captions each with its picture, or pictures each with five captions."""
    generator = torch.Generator().manual_seed(0)
    captions = 5 * units if model.batch_layout == "set" else units
    tokens, mask = random_tokens(captions, model.config.vocab_size, generator)
    images = torch.arange(units)
    if model.pixels is not None:
        regions, region_mask = torch.rand(units, 3, width.pixels, width.pixels, generator=generator), None
    else:
        regions = torch.randn(units, width.regions, width.region_dim, generator=generator)
        region_mask = torch.ones(units, width.regions, dtype=torch.bool)
    return Batch(regions, region_mask, tokens, mask, images, images.repeat_interleave(captions // units), torch.arange(captions)).to(DEVICE)


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(DEVICE.type, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision), enabled=precision != "no")


def gru_flops(model: MatchingModel, batch: Batch) -> int:
    """What the GRU of ``model`` takes forward and backward, which the counter does not see where cuDNN computes it."""
    rnn = getattr(getattr(model, "text", None), "rnn", None)
    if rnn is None or DEVICE.type != "cuda":
        return 0
    directions = 2 if rnn.bidirectional else 1
    per_word = sum(6 * rnn.hidden_size * ((rnn.input_size if layer == 0 else directions * rnn.hidden_size) + rnn.hidden_size)
                   for layer in range(rnn.num_layers))
    return 3 * directions * per_word * int(batch.token_mask.sum())


def step_row(name: str, precision: str, width: Width, tiny: bool) -> dict[str, Any]:
    """Seconds, memory and operations of a training step."""
    model, train = full_model(name, width, tiny)
    batch = full_batch(model, train.batch_size, width)
    optimizer = make_optimizer(model, train)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=precision == "fp16")
    model.train()
    model.start_epoch(train.epochs - 1)

    def step() -> float:
        with autocast(precision):
            loss = model(batch)["loss"]
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return float(loss.detach())

    gc.collect()
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
    forget_peak()
    took, loss = seconds(step, 1 if tiny else 5, 1 if tiny else 2)
    peak = peak_memory()
    with FlopCounterMode(display=False) as counter:
        step()
    return {"recipe": name, "precision": precision, "batch": train.batch_size, "pairs": len(batch.caption_ids), "step_s": took, "peak_mib": peak / 2**20,
            "tflop": (counter.get_total_flops() + gru_flops(model, batch)) / 1e12, "finite": torch.isfinite(torch.tensor(loss)).item()}


def bench_steps(names: list[str], width: Width, tiny: bool) -> tuple[list[dict[str, Any]], list[str]]:
    measured, nominal = measured_peak(tiny), nominal_peak()
    peak = nominal or measured
    told = f"nominal {nominal / 1e12:.0f}" if nominal else "nominal unknown"
    print(f"bf16 peak: {told}, measured {measured / 1e12:.2f} TFLOP/s; % is of the {'nominal' if nominal else 'measured'} one\n"
          f"{'recipe':<32}{'precision':>10}{'batch':>6}{'ms/step':>9}{'pairs/s':>9}{'peak MiB':>10}{'TFLOP':>9}{'TFLOP/s':>9}{'%':>7}")
    rows, problems = [], []
    for name in names:
        own = load_recipe(name).train.precision
        own = "no" if own == "fp16" and DEVICE.type == "cpu" else own
        for precision in dict.fromkeys([own, "bf16"]):
            try:
                row = step_row(name, precision, width, tiny)
            except torch.OutOfMemoryError:
                problems.append(f"{name} {precision} does not fit the memory")
                print(f"{name:<32}{precision:>10}  does not fit the memory", flush=True)
                continue
            row |= {"pairs_per_s": row["pairs"] / row["step_s"], "tflop_per_s": row["tflop"] / row["step_s"]}
            row["percent_of_peak"] = 100e12 * row["tflop_per_s"] / peak
            rows.append(row)
            if not row["finite"]:
                problems.append(f"{name} {precision}: the loss is not finite")
            print(f"{name:<32}{precision:>10}{row['batch']:>6}{1000 * row['step_s']:>9.1f}{row['pairs_per_s']:>9.0f}{row['peak_mib']:>10.0f}"
                  f"{row['tflop']:>9.3f}{row['tflop_per_s']:>9.2f}{row['percent_of_peak']:>7.2f}", flush=True)
    return rows, problems


# --- evaluation ---------------------------------------------------------------------------------------------------------


def encodings(images: int, captions: int, regions: int, dim: int, unit: bool) -> tuple[Encoding, Encoding]:
    """Regions and words around a common direction, of unit length or as CAMP's encoders give them."""
    generator = torch.Generator().manual_seed(0)
    mask = random_tokens(captions, 100, generator)[1]
    shared = torch.randn(dim, generator=generator)
    sides = []
    for shape in ((images, regions, dim), (*mask.shape, dim)):
        value = torch.randn(shape, generator=generator) + 0.5 * shared
        sides.append(torch.nn.functional.normalize(value, dim=-1) * (1 if unit else dim**0.5 / 4))
    return (Encoding(sides[0], torch.ones(images, regions, dtype=torch.bool)), Encoding(sides[1].masked_fill(~mask[..., None], 0), mask))


def scorers(tiny: bool) -> Iterator[tuple[str, MatchingModel, Callable[[Encoding, Encoding], torch.Tensor], int]]:
    """Name, model, literal scorer, and how many pictures the literal one is to score."""
    dim = 16 if tiny else 1024
    for direction, kind in (("t2i", "lse"), ("i2t", "lse")):
        seed_everything(0)
        config = SCANConfig(region_dim=8, vocab_size=8, embed_dim=dim, direction=direction, aggregation=kind)
        options = {key: getattr(config, key) for key in ("direction", "aggregation", "lambda_softmax", "lambda_lse")}

        def literal(images: Encoding, captions: Encoding, options: dict[str, Any] = options) -> torch.Tensor:
            return literal_scan(images.fragments, [images.fragments.shape[1]] * len(images), captions.fragments, captions.mask.sum(1).tolist(), **options)

        yield f"SCAN {direction} {kind}", SCAN(config).to(DEVICE), literal, 8 if tiny else 128
    seed_everything(0)
    model = CAMP(CampConfig.released(region_dim=8, vocab_size=8, embed_dim=dim)).to(DEVICE)
    with torch.no_grad():
        model.head[2].weight.mul_(30)  # scores well apart

    def literally(images: Encoding, captions: Encoding) -> torch.Tensor:
        return literal_camp(dict(model.named_parameters()), model.config, images.fragments, None, captions.fragments, captions.mask)

    yield "CAMP released", model, literally, 4 if tiny else 32


def trained(scorer: Callable[[Encoding, Encoding], torch.Tensor], images: Encoding, captions: Encoding) -> list[torch.Tensor]:
    """Scores, and the gradients of the hinge loss over hardest negatives."""
    sides = [Encoding(side.fragments.detach().clone().requires_grad_(), side.mask) for side in (images, captions)]
    scores = scorer(*sides)
    ids = torch.arange(len(images), device=DEVICE)
    hinge_loss(scores, matched_pairs(ids, ids), positive_mask(ids, ids), negatives="all")["loss"].backward()  # without ties
    return [scores.detach(), *(side.fragments.grad for side in sides)]


def scored(scorer: Callable[[Encoding, Encoding], torch.Tensor], images: Encoding, captions: Encoding) -> list[torch.Tensor]:
    with torch.no_grad():
        return [scorer(images, captions)]


def bench_evaluation(tiny: bool) -> tuple[list[dict[str, Any]], list[str]]:
    images, captions, regions, dim = (20, 100, 4, 16) if tiny else (1000, 5000, 36, 1024)
    print(f"{images} x {captions} pairs, {regions} regions of {dim} numbers\n{'model':<16}{'seconds':>9}{'pairs/s':>11}"
          f"{'part':>10}{'score x':>9}{'train x':>9}{'differs':>10}")
    rows, problems = [], []
    for name, model, literal, part in scorers(tiny):
        sides = encodings(images, captions, regions, dim, unit=name.startswith("SCAN"))
        similarity_matrix(model, sides[0].select(slice(0, 8)), sides[1].select(slice(0, 40)))  # first-call costs are not what is measured
        took, _ = seconds(partial(similarity_matrix, model, *sides), 1, 0)
        few = [side.select(slice(0, part)).to(DEVICE) for side in sides]
        row: dict[str, Any] = {"model": name, "images": images, "captions": captions, "seconds": took, "part": part, "difference": 0.0}
        for kind, work in (("score", scored), ("train", trained)):
            ours_s, ours = seconds(partial(work, model.similarity, *few), 3)
            theirs_s, theirs = seconds(partial(work, literal, *few), 1)
            for mine, other in zip(ours, theirs):
                row["difference"] = max(row["difference"], float(torch.dist(mine.double(), other.double()) / other.double().norm().clamp(min=1e-12)))
            row |= {f"{kind}_s": ours_s, f"{kind}_literal_s": theirs_s, f"{kind}_ratio": theirs_s / ours_s}
        rows.append(row)
        if row["difference"] > AGREE:
            problems.append(f"{name} differs from the literal implementation by {row['difference']:.1e}")
        print(f"{name:<16}{took:>9.2f}{images * captions / took:>11.0f}{f'{part} x {part}':>10}{row['score_ratio']:>9.1f}{row['train_ratio']:>9.1f}"
              f"{row['difference']:>10.0e}", flush=True)
    return rows, problems


# --- recall -------------------------------------------------------------------------------------------------------------

SMALL = {
    "vse": {}, "scan": {}, "scan i2t": {"direction": "i2t"}, "camp": dict(fusion="none", message_norm=False, aggregation="mean", score="cosine", objective="ranking", warmup_epochs=4),
    "hrem": {"matching_loss": "hinge", "num_heads": 4}, "dive": {"num_heads": 2, "head_dim": 16, "iterations": 2, "dropout": 0.0, "image_lr_scale": 1.0, "text_set_lr_scale": 1.0},
}


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """float32 proper, TF32 products, or bf16 where autocast takes it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        with autocast("bf16" if precision == "bf16" else "no"):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def bench_recall(tiny: bool) -> tuple[list[dict[str, Any]], list[str]]:
    from itm_lib.data import open_split

    dim, pictures, val, epochs = (32, 300, 100, 8) if tiny else (256, 4000, 1000, 10)
    width = replace(TINY, region_dim=64) if tiny else FULL
    print(f"Recall on val, {val} generated pictures, models of {dim} numbers\n{'model':<12}{'':<10}{'fp32':>8}{'tf32':>8}{'bf16':>8}")
    rows, problems = [], []
    with tempfile.TemporaryDirectory() as place:
        folder = write_world(Path(place) / "data", {"train": pictures, "val": val, "test": 2}, "flickr30k", width, noise=0.5 if tiny else 1.5, things=20 if tiny else 50)
        dataset = open_split(folder, "val")
        for name, settings in SMALL.items():
            method = name.split()[0]
            recipe = Recipe.parse({
                "data": {"folder": str(folder)}, "model": {"method": method, "embed_dim": dim, "word_dim": 64, "margin": 0.2, "warmup_epochs": 2, **settings},
                "train": {"epochs": 2 * epochs if method == "camp" else epochs, "batch_size": 16 if method == "dive" else 64, "lr": 2e-3, "optimizer": "adamw",
                          "eval_every": epochs, "schedule": "cosine"}})
            model = run_recipe(recipe, Path(place) / name, progress=False).model.to(DEVICE)
            found = {}
            for precision in ("fp32", "tf32", "bf16"):
                with products(precision):
                    found[precision] = RetrievalMetrics.from_scores(similarity_matrix(model, *encode_dataset(model, dataset)), dataset.caption_to_image).to_dict()
            names = [key for key in found["fp32"] if "_r1" in key or "_r5" in key]
            for key in ("i2t_r1", "t2i_r1"):
                print(f"{name:<12}{key:<10}" + "".join(f"{found[each][key]:>8.1f}" for each in found), flush=True)
            moved = {each: max(abs(found[each][key] - found["fp32"][key]) for key in names) for each in ("tf32", "bf16")}
            rows.append({"model": name, "moved": moved, **{f"{each}_{key}": found[each][key] for each in found for key in names}})
            allowed = max(RECALL_AGREES, 100 / val * 2)  # two pictures of few
            if found["fp32"]["i2t_r5"] < 5 * 500 / val:  # chance is 5 of all captions
                problems.append(f"{name} has learned nothing, so its Recall tells nothing")
            problems += [f"{name}: {each} moves Recall by {by:.1f}" for each, by in moved.items() if by > allowed]
    return rows, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes of the steps; default: all")
    parser.add_argument("--only", nargs="+", choices=("steps", "evaluation", "recall"), default=["steps", "evaluation", "recall"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    names = asked.names or paper_recipe_names()
    print(torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU", f"torch {torch.__version__}", flush=True)
    work = {"steps": partial(bench_steps, names, TINY if asked.tiny else FULL, asked.tiny), "evaluation": partial(bench_evaluation, asked.tiny),
            "recall": partial(bench_recall, asked.tiny)}
    found, problems = {}, []
    for name in asked.only:
        found[name], wrong = work[name]()
        problems += wrong
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    print("nothing disagrees" if not problems else "MISSED: " + "; ".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
