"""Every recipe of the papers' tables at full width on generated data: does it start, train, save, resume and evaluate, and at what cost.

    python tests/benchmarks/bench_recipes.py [NAME ...] [--memory 8] [--batch 128] [--threads 2] [--tiny] [--json FILE]

Each recipe in a process of its own: it starts, takes 3 steps, writes a checkpoint and is stopped in the 4th step; started again, it goes on
from the checkpoint to the end of its epoch, through its later stages if it has some, evaluates on val and saves its model; the model is
loaded and evaluated on val, with the same numbers, and on test. Weights are random, BERT-base and ResNet-152 included, and nothing is
downloaded. What is not the recipe's: the data (an epoch has 4 steps, val and test 8 pictures), epochs, HREM's relations from the second step on,
and the batch, which is halved until the process stays within --memory GiB (of a GPU's memory, if there is one). A line a recipe: its
batch and the one used, seconds a step (the median), the most memory that was held, and the precision.
The exit status is 1 if a recipe fails. NAME: flickr30k/scan_ti_avg, ...; all of them by default. --batch: no larger one is tried.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from recipe_world import FULL, TINY, Width, make_recipe  # noqa: E402

from itm_lib.evaluation import evaluate  # noqa: E402
from itm_lib.models import load_model  # noqa: E402
from itm_lib.training import History, Trainer, load_recipe, run_recipe  # noqa: E402
from itm_lib.training.monitor import forget_peak, peak_memory  # noqa: E402
from itm_lib.training.recipe import paper_recipe_names  # noqa: E402

SMALLEST = 2
STEPS = 3   # before the stop


class Stopped(Exception):
    """What ends a run in the middle."""


@contextmanager
def timed_steps(stop_after: int | None = None) -> Iterator[list[float]]:
    """The seconds of every training step taken inside; the one after ``stop_after`` raises :class:`Stopped`."""
    took: list[float] = []
    plain = Trainer._step

    def step(self: Trainer, parts: list[Any]) -> None:
        if len(took) == stop_after:
            raise Stopped
        began = time.perf_counter()
        plain(self, parts)  # reads the loss, so a GPU has done its work
        took.append(time.perf_counter() - began)

    Trainer._step = step
    try:
        yield took
    finally:
        Trainer._step = plain


def try_recipe(name: str, folder: Path, width: Width, batch: int, threads: int | None = None) -> dict[str, Any]:
    """One recipe from start to evaluation; a row of the table. An AssertionError says what went wrong."""
    if threads:
        torch.set_num_threads(threads)
    recipe = make_recipe(name, folder, width, batch, ("train.save_every=3", "train.log_every=1", "train.num_workers=0"))
    out, data = folder / "run", folder / "data"
    forget_peak()
    try:
        with timed_steps(STEPS) as first:
            run_recipe(recipe, out, progress=False)
    except Stopped:
        pass
    else:
        raise AssertionError("the run was not stopped")
    begun = out / recipe.plan[0].name if recipe.stages else out
    assert (begun / "last.pt").is_file(), "no checkpoint was written"
    with timed_steps() as rest:
        run = run_recipe(recipe, out, resume=True, progress=False)
    plans = {stage.name: stage.train.epochs for stage in recipe.plan}
    for stage, history in (run.stages or {"": run.history}).items():
        steps = [row["step"] for row in history.steps]
        assert steps == list(range(1, len(steps) + 1)) and len(steps) >= STEPS + 1, f"{stage or name}: steps {steps}"
        assert len(history.epochs) == plans[stage] and all(row["rsum"] >= 0 for row in history.epochs)
    assert len(rest) == sum(len(history.steps) for history in (run.stages or {"": run.history}).values()) - STEPS, "steps were taken twice"
    assert History.load(begun / "history.jsonl").steps, "no history"
    model = load_model(out / "model")[0].to("cuda" if torch.cuda.is_available() else "cpu")
    assert evaluate(model, data, split="val")["rsum"] == run.metrics["rsum"], "the saved model has other numbers"
    assert 0 <= evaluate(model, data, split="test")["rsum"] <= 600
    return {"recipe": name, "batch": load_recipe(name).train.batch_size, "used": batch, "precision": recipe.train.precision,
            "parameters": sum(each.numel() for each in model.parameters()), "step_s": statistics.median([*first[1:], *rest]),
            "peak_mib": peak_memory() / 2**20}


def _child(name: str, width: Width, batch: int, threads: int, memory: float, pipe: Any) -> None:
    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory * 2**30 / torch.cuda.get_device_properties(0).total_memory))
    else:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            pipe.send(try_recipe(name, Path(folder), width, batch, threads))
    except (torch.OutOfMemoryError, MemoryError) as error:
        pipe.send({"full": str(error)})
    except RuntimeError as error:
        full = "can't allocate memory" in str(error) or "Cannot allocate memory" in str(error)
        pipe.send({"full" if full else "failed": f"{type(error).__name__}: {error}"[:300]})
    except Exception as error:  # a row of the table, whatever it is
        pipe.send({"failed": f"{type(error).__name__}: {error}"[:300]})


def in_a_process(name: str, width: Width, batch: int, threads: int, memory: float) -> dict[str, Any]:
    """What :func:`try_recipe` gives in a new process that may hold ``memory`` GiB; ``{"full"}`` or ``{"failed"}`` otherwise."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(name, width, batch, threads, memory, sender))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        return {"full": "the process was ended"} if process.exitcode in (-9, -6, 137) else {"failed": f"exit status {process.exitcode}"}
    finally:
        process.join()


def largest_that_fits(name: str, width: Width, largest: int | None, threads: int, memory: float) -> dict[str, Any]:
    """The row of the recipe with its own batch, or ``largest``, halved until the process stays within ``memory``."""
    batch = min(load_recipe(name).train.batch_size, largest or 10**9)
    while True:
        row = in_a_process(name, width, batch, threads, memory)
        if "full" not in row or batch <= SMALLEST:
            return {"recipe": name, **row} if "full" not in row else {"recipe": name, "failed": f"batch {batch}: {row['full']}"}
        batch = max(SMALLEST, batch // 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB a process may hold")
    parser.add_argument("--batch", type=int, help="the largest batch that is tried")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="a width that takes seconds")
    parser.add_argument("--json", type=Path, help="write the rows there, too")
    asked = parser.parse_args()
    names = asked.names or paper_recipe_names()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {asked.threads} threads"
    print(f"{device}, {asked.memory:g} GiB\n{'recipe':<32}{'batch':>6}{'used':>6}{'parameters':>13}{'s/step':>9}{'peak MiB':>10}  precision", flush=True)
    rows = []
    for name in names:
        row = largest_that_fits(name, TINY if asked.tiny else FULL, asked.batch or (4 if asked.tiny else None), asked.threads, asked.memory)
        rows.append(row)
        print(f"{name:<32}" + (f"FAILED {row['failed']}" if "failed" in row else
              f"{row['batch']:>6}{row['used']:>6}{row['parameters']:>13,}{row['step_s']:>9.2f}{row['peak_mib']:>10.0f}  {row['precision']}"), flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n")
    failed = [row["recipe"] for row in rows if "failed" in row]
    print(f"all {len(rows)} recipes start, train, save, resume and evaluate" if not failed else f"MISSED: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
