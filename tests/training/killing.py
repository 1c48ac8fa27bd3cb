"""A training run in a process of its own that is killed at a named moment, SIGKILL, and started again until it ends.

The process is forked, so that a start costs nothing. In it, what writes, trains and evaluates tells of every moment that it comes to.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from itm_lib.training import History, Recipe, run_recipe
from itm_lib.training import trainer as trainer_module
from itm_lib.training.state import TIMINGS

STEP = ("before the gradient", "after the gradient", "after the step")
CHECKPOINT = ("half a checkpoint", "before last.pt", "after last.pt")
FILES = ("half the best weights", "before best.safetensors", "after best.safetensors", "before history.jsonl", "before model.safetensors",
         "after model.safetensors", "after config.json", "before recipe.yaml", "before val.json")
EVALUATION = ("before the evaluation", "between encoding and scoring", "after the evaluation")
MOMENTS = (*STEP, *CHECKPOINT, *FILES, *EVALUATION)


def recipe(world: Path, **train: Any) -> Recipe:
    """Two stages with dropout, BatchNorm and a graph, checkpoints within the epochs, the best epoch not always the last."""
    return Recipe.parse({
        "data": {"folder": str(world)}, "model": {"method": "hrem", "embed_dim": 8, "word_dim": 6, "num_heads": 2},
        "train": {"epochs": 2, "batch_size": 8, "lr": 2e-3, "log_every": 2, "save_every": 2, "optimizer": "adamw", "accumulate": 2,
                  "schedule": "cosine", **train},
        "stages": [{"name": "first", "model": {"matching_loss": "hinge"}, "train": {"epochs": 1}}, {"name": "second"}]})


class Killer:
    """Counts the moments that a run comes to, and kills this process at the ``number``-th of the kind ``moment``."""

    def __init__(self, moment: str | None = None, number: int = 1):
        self.moment, self.number, self.seen = moment, number, Counter()

    def at(self, moment: str) -> None:
        self.seen[moment] += 1
        if moment == self.moment and self.seen[moment] == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, what comes to a moment tells it."""
        kept = [(os, "replace"), (torch, "save"), (trainer_module, "save_file"), (torch.Tensor, "backward"), (torch.optim.AdamW, "step"),
                (trainer_module, "encode_images"), (trainer_module, "encode_tokens"), (trainer_module, "similarity_matrix")]
        originals = [(place, name, getattr(place, name)) for place, name in kept]
        replace, save, save_file, backward, step, encode, encode_captions, score = (original for _, _, original in originals)
        os.replace = self._around(replace, lambda source, target: Path(target).name)
        torch.save = self._halfway("half a checkpoint", save)
        trainer_module.save_file = self._halfway("half the best weights", save_file)
        torch.Tensor.backward = self._told(backward, "before the gradient", "after the gradient")
        torch.optim.AdamW.step = self._told(step, None, "after the step")
        trainer_module.encode_images = self._told(encode, "before the evaluation", None)
        trainer_module.encode_tokens = self._told(encode_captions, None, "between encoding and scoring")
        trainer_module.similarity_matrix = self._told(score, None, "after the evaluation")
        try:
            yield
        finally:
            for place, name, original in originals:
                setattr(place, name, original)

    def _told(self, function: Callable[..., Any], before: str | None, after: str | None) -> Callable[..., Any]:
        def told(*args: Any, **options: Any) -> Any:
            if before:
                self.at(before)
            result = function(*args, **options)
            if after:
                self.at(after)
            return result

        return told

    def _around(self, function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        def around(*args: Any) -> None:
            self.at(f"before {name(*args)}")
            function(*args)
            self.at(f"after {name(*args)}")

        return around

    def _halfway(self, moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A write that is killed when half of it is on the disk."""
        def halfway(content: Any, path: Any, **options: Any) -> None:
            function(content, path, **options)
            if not isinstance(path, Path):  # what processes send one another
                return
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            self.at(moment)
            Path(path).write_bytes(whole)

        return halfway


def attempt(chosen: Recipe, out: Path, killer: Killer, seen: Path | None = None) -> bool:
    """Start the run, or go on with it, in a new process; whether it came to its end. ``seen``: a file for how often each moment came."""
    child = os.fork()
    if not child:
        code = 1
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            torch.manual_seed(random.SystemRandom().randrange(2**31))  # a new process starts with whatever numbers
            with killer.watching():
                run_recipe(chosen, out, resume=True, progress=False)
            if seen is not None:
                seen.write_text(json.dumps(killer.seen))
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the run ended with {status}"
    return status == 0


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves behind, less its timings: bytes of weights, rows of histories, names of files."""
    found: dict[str, Any] = {"files": sorted(str(path.relative_to(out)) for path in out.rglob("*"))}
    for path in out.rglob("*.safetensors"):
        found[str(path.relative_to(out))] = path.read_bytes()
    for path in out.rglob("history.jsonl"):
        found[str(path.relative_to(out))] = [{key: value for key, value in row.items() if key not in TIMINGS} for row in History.load(path)]
    for path in out.rglob("*.json"):
        content = json.loads(path.read_text())
        if "metadata" in content:
            content["metadata"]["training"] = {name: value for name, value in content["metadata"]["training"].items() if name not in TIMINGS}
        found[str(path.relative_to(out))] = content
    return found


def same_outcome(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """What differs."""
    return [name for name in {**expected, **found} if found.get(name) != expected.get(name)]


def killed_run(chosen: Recipe, out: Path, kills: int, rng: random.Random, moments: tuple[str, ...] = MOMENTS) -> list[str]:
    """Start a run again and again, killed ``kills`` times at random moments; a folder that is complete makes place for a new one.

    Returns the moments of the kills. The run in the last folder, ``out``/<number>, is then complete.
    """
    done: list[str] = []
    number = 0
    while len(done) < kills:
        moment = rng.choice(moments)
        if attempt(chosen, out / str(number), Killer(moment, rng.randint(1, 3))):
            number += 1  # it ended before it came to that moment so often
        else:
            done.append(moment)
    assert attempt(chosen, out / str(number), Killer())
    return done
