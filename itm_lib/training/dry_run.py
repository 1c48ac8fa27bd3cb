"""What a run will cost, before it starts: a few real steps on the real data, and a projection from them.

The measured steps are those that training takes, with the recipe's batches, model, precision and optimizer; what a recipe switches on
later (HREM's relations) is on. Evaluation is measured on a part of val and projected. Nothing is written to the run's folder.
"""

from __future__ import annotations

import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from itm_lib.data.dataset import open_split
from itm_lib.data.regions import find_regions
from itm_lib.evaluation.scoring import encode_images, encode_tokens, similarity_matrix
from itm_lib.files import InputError
from itm_lib.models.base import Encoding, vocabulary_for
from itm_lib.processes import world_size
from itm_lib.training.monitor import forget_peak, peak_memory
from itm_lib.training.recipe import Recipe, Stage
from itm_lib.training.state import seed_everything
from itm_lib.training.trainer import Trainer

PART_IMAGES, PART_CAPTIONS = 128, 640  # of val, encoded and scored at most
ENOUGH = 0.3                           # seconds of scoring that are projected from
ALL_ON = {"relation_warmup": 0}        # settings of models that put off a part of the work


@dataclass(frozen=True)
class StageCost:
    """One stage, or the whole of a recipe without stages. Memory and disk in bytes; ``peak_memory`` of the GPU, or else of the process.

    ``step_seconds`` is measured, ``evaluation_seconds`` projected from a part of val; ``parameters`` in all and of those, ``trained``.
    """

    name: str
    parameters: int
    trained: int
    steps_per_epoch: int
    epochs: int
    pairs_per_step: float
    step_seconds: float
    evaluations: int
    evaluation_seconds: float
    peak_memory: int
    weights: int
    checkpoint: int

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.evaluations * self.evaluation_seconds


@dataclass(frozen=True)
class DryRun:
    """What :func:`dry_run` found. ``missing``: what training does not need and evaluation will; ``free``: bytes on the run's disk."""

    method: str
    dataset: str
    device: str
    measured: int
    stages: tuple[StageCost, ...]
    missing: tuple[str, ...] = ()
    free: int | None = None

    @property
    def hours(self) -> float:
        """Training and evaluation on val of all stages, projected."""
        return sum(stage.seconds for stage in self.stages) / 3600

    @property
    def disk(self) -> int:
        """What the run's folder will hold, in bytes: a checkpoint and two copies of the weights a stage."""
        return sum(stage.checkpoint + 2 * stage.weights for stage in self.stages)

    def table(self) -> str:
        """The lines to print."""
        lines = [f"dry run of {self.method} on {self.dataset}, {self.device}: {_count(self.measured, 'step')} measured, the rest projected from them"]
        for stage in self.stages:
            rest = f", {stage.trained:,} of them trained" if stage.trained < stage.parameters else ""
            evaluation = "once" if stage.evaluations == 1 else f"{stage.evaluations} times"
            rows = [
                ("parameters", f"{stage.parameters:,}{rest}"),
                ("steps", f"{stage.steps_per_epoch:,} an epoch, {_count(stage.epochs, 'epoch')}, {stage.steps:,} in all"),
                ("a step", f"{stage.step_seconds:.3g} s, {stage.pairs_per_step / stage.step_seconds:,.0f} pairs/s (measured)"),
                ("evaluation", f"{stage.evaluation_seconds:.3g} s on val, {evaluation} (projected)"),
                ("peak memory", f"{_size(stage.peak_memory)} of the {'GPU' if self.device.startswith('cuda') else 'process'} (measured)"),
                ("time", f"{timedelta(seconds=round(stage.seconds))} (projected)"),
            ]
            lines += [f"stage {stage.name}"] if stage.name else []
            lines += [f"  {name:<12} {text}" for name, text in rows]
        free = "" if self.free is None else f", {_size(self.free)} free there" + (" - TOO LITTLE" if self.free < self._needed else "")
        lines.append(f"in all         {self.hours:.2f} hours (projected), {_size(self.disk)} on disk{free}")
        return "\n".join([*lines, *(f"missing: {what}" for what in self.missing)])

    @property
    def _needed(self) -> int:
        """Bytes that must be free: a checkpoint is written beside the one that it replaces."""
        return self.disk + max(stage.checkpoint for stage in self.stages)


def dry_run(recipe: Recipe, out: str | Path | None = None, steps: int = 3, progress: bool = True) -> DryRun:
    """Measure ``steps`` training steps of each stage of ``recipe``, after one that does not count, and project the run's memory, hours and
    disk.

    ``out``: the folder where the run is to be; only the free space of its disk is looked at. Raises :class:`InputError` if the data, or
    the features of train or val, are not there, or if a batch does not fit the memory. Random numbers of the caller are drawn from.
    """
    if world_size() > 1:
        raise InputError("a dry run measures one process: start it without torchrun or accelerate launch")
    if steps < 1:
        raise InputError(f"steps is {steps}: a dry run measures at least one")
    pixels = recipe.plan[-1].config.pixels
    folder = recipe.data.prepare(progress, regions=pixels is None)
    missing = _missing(folder) if pixels is None else []
    if any(split != "test" for split in missing):
        raise InputError(f"{folder} has no features of {', '.join(missing)}: make regions/ first, with 'itm data prepare'")
    vocabulary = vocabulary_for(recipe.plan[-1].config)
    train, val = (open_split(folder, split, vocabulary=vocabulary, pixels=pixels) for split in ("train", "val"))
    costs = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, stage in enumerate(recipe.plan):
            seed_everything(stage.train.seed)
            stage = Stage(name=stage.name, train=stage.train, model=_all_on(stage.model))
            trial = _Trial(stage.build(train.regions.dim, len(train.vocabulary)), train, val, stage.train, Path(scratch) / str(number),
                           False, stage=stage.name)
            trial.count = steps + 1  # the first has costs that come once
            costs.append(trial.cost())
    return DryRun(recipe.method, recipe.data.label, _device(), steps, tuple(costs), tuple(f"features of {split} in {folder}" for split in missing),
                  _free(out))


class _Trial(Trainer):
    """A trainer that takes ``count`` steps, measures a part of an evaluation, and writes nothing but its lock."""

    count: int

    def cost(self) -> StageCost:
        self.took: list[float] = []
        self.pairs: list[int] = []
        forget_peak()
        try:
            self.fit()
        except torch.OutOfMemoryError:
            raise InputError(f"a batch of {self.config.batch_size} does not fit the memory of {_device()}: a smaller train.batch_size, or "
                             "precision bf16, needs less") from None
        parameters = list(self.model.parameters())
        return StageCost(
            self.stage, sum(each.numel() for each in parameters), self.trained, self.steps_per_epoch, self.config.epochs, statistics.mean(self.pairs),
            statistics.median(self.took[1:] or self.took), self.config.evaluations(), self.evaluation, self.peak, self.weights, self.weights + self.states)

    def _steps(self) -> Iterator[Any]:
        return itertools.islice(super()._steps(), self.count)

    def _run_epoch(self) -> None:
        self._since_step = time.perf_counter()
        super()._run_epoch()

    def _step(self, batches: list[Any]) -> None:
        super()._step(batches)  # reads the loss, so a GPU has done its work
        now = time.perf_counter()
        self.took.append(now - self._since_step)
        self._since_step = now

    def _record(self, terms: dict[str, float], lr: float) -> None:
        self.pairs.append(self._monitor.last_pairs)

    def _watch(self, *_: Any) -> None:
        """A few steps tell nothing of a collapse."""

    def _save(self) -> None:
        """Nothing is kept."""

    def _end_epoch(self) -> None:
        self.trained = sum(each.numel() for group in self._optimizer.param_groups for each in group["params"])
        self.weights = _bytes(self.model.state_dict().values())
        self.states = _bytes(value for state in self._optimizer.state_dict()["state"].values() for value in state.values())
        self.evaluation = self._evaluation_seconds()
        self.peak = peak_memory()
        self.state.stopped = True

    def _evaluation_seconds(self) -> float:
        """Encoding goes with the number of images and captions, scoring with that of pairs."""
        images, captions = min(PART_IMAGES, self.val.num_images), min(PART_CAPTIONS, self.val.num_captions)
        self._encode(min(8, images), min(8, captions))  # first-call costs are not what is measured
        (regions, words), image_seconds, caption_seconds = self._encode(images, captions)
        small, wide = min(8, images), min(40, captions)
        while True:
            began = time.perf_counter()
            similarity_matrix(self.model, regions.select(slice(0, small)), words.select(slice(0, wide)))
            took = time.perf_counter() - began
            if took > ENOUGH or (small, wide) == (images, captions):
                break
            small, wide = min(2 * small, images), min(2 * wide, captions)
        num_images, columns = self.val_part
        return (image_seconds * num_images / images + caption_seconds * len(columns) / captions
                + took * num_images * len(columns) / (small * wide))

    def _encode(self, images: int, captions: int) -> tuple[tuple[Encoding, Encoding], float, float]:
        """Encodings of the first images and captions, and the seconds of each."""
        began = time.perf_counter()
        regions = encode_images(self.model, self.val, 32, rows=range(images))
        between = time.perf_counter()
        words = encode_tokens(self.model, self.val.tokens[:captions])
        return (regions, words), between - began, time.perf_counter() - between


def _all_on(model: dict[str, Any]) -> dict[str, Any]:
    """The model's settings with all its work from the first step on."""
    return {**model, **{name: value for name, value in ALL_ON.items() if name in model}}


def _missing(folder: Path) -> list[str]:
    return [split for split in ("train", "val", "test") if not find_regions(folder, split).is_file()]


def _bytes(values: Iterable[Any]) -> int:
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def _device() -> str:
    return f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"


def _free(out: str | Path | None) -> int | None:
    """Free bytes on the disk where ``out`` is, or will be."""
    if out is None:
        return None
    place = Path(out).expanduser().absolute()
    return shutil.disk_usage(next(each for each in (place, *place.parents) if each.exists())).free


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _size(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
