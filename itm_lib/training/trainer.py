"""The trainer: a model, its train and val split, a TrainConfig and a folder; best weights on val come out.

Files in the folder: ``history.jsonl``, ``best.safetensors`` (weights of the best epoch), ``last.pt`` (checkpoint to go on
from). accelerate chooses the device, does mixed precision and averages the gradients of several processes; the loop, the
checkpoints and the checks are here. itm_lib.training.distributed says how several processes share the work.
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from itm_lib.data.dataset import Batch, BatchSampler, ImageCaptionDataset, collate
from itm_lib.evaluation.ranking import RetrievalMetrics, map_at_r
from itm_lib.evaluation.scoring import encode_images, encode_tokens, evaluating, over_all_processes, similarity_matrix
from itm_lib.files import InputError, nearest, replace_atomically
from itm_lib.models.base import MatchingModel, check_token_kind
from itm_lib.processes import Share, all_or_none, barrier, from_main, is_main, rank, sharing, usable_cpus, world_size
from itm_lib.training.config import PRACTICAL, TrainConfig, frozen, frozen_parameters, learning_rate, make_optimizer
from itm_lib.training.distributed import Part, gather_encoding, part_of, seed_of
from itm_lib.training.monitor import Curves, Monitor
from itm_lib.training.neighbours import check_embeddings, cluster_images, number_of_clusters
from itm_lib.training.state import (
    History,
    Progress,
    Sums,
    cpu_weights,
    load_checkpoint,
    own_random_state,
    save_checkpoint,
    seed_everything,
    set_random_state,
    sole_use,
)

LAST, BEST, HISTORY = "last.pt", "best.safetensors", "history.jsonl"
COLLAPSE_STEPS = 20     # for half an epoch, and for so many steps at least ...
COLLAPSE_LEVEL = 0.02   # ... the mean loss is this near, relatively, to that of a collapsed model ...
COLLAPSE_SPREAD = 0.01  # ... and the scores of a batch differ by less than this, relative to their size or 1
SAME = 1e-6             # scores that differ by less are the same


class _Batches(Dataset):
    """The dataset as the loader sees it: a list of caption rows in, this process's Part of that batch in the model's layout out;
    pictures as ``augment``, seed and epoch, changes them.

    An InputError is handed over, not raised: what a loader's process raises arrives with that process's traceback in its line.
    """

    def __init__(self, dataset: ImageCaptionDataset, layout: str, augment: tuple[int, int]):
        self.dataset, self.layout, self.augment = dataset, layout, augment
        self.process, self.processes = rank(), world_size()  # asked here: a loader's process is none of them

    def __getitem__(self, captions: list[int]) -> Part | InputError:
        try:
            return part_of(self.dataset, captions, self.layout, self.augment, self.process, self.processes)
        except InputError as error:
            return error


class Trainer:
    """Trains ``model`` on ``train`` and keeps the weights that are best on ``val``.

    >>> history = Trainer(model, train, val, TrainConfig(epochs=5), "runs/first").fit()      # doctest: +SKIP

    ``progress=False`` draws no bar. ``on_epoch(history)`` is called after every epoch; a notebook draws with it. ``stage``: the
    name of this run among a recipe's stages; the bar and the history's rows show it.
    In several processes every one makes the same Trainer and calls ``fit``; the main process alone writes, draws and calls
    ``on_epoch``. Parameters that ``config.freeze`` names keep their values, to the bit. Raises :class:`InputError` for another split than
    train and val, for splits that share pictures, for data that does not fit the model, and for freezing what it lacks.
    """

    def __init__(self, model: MatchingModel, train: ImageCaptionDataset, val: ImageCaptionDataset, config: TrainConfig,
                 out_dir: str | Path, progress: bool = True, on_epoch: Callable[[History], None] | None = None,
                 stage: str = ""):
        check_splits(model, train, val)
        check_metric(config.select_by, val)
        frozen_parameters(model, config.freeze)
        told = model.use_vocabulary(train.vocabulary)
        progress = progress and is_main()
        if told and progress:
            tqdm.write(told, file=sys.stderr)
        self.model, self.train, self.val, self.config = model, train, val, config
        self.out_dir, self.progress_bar, self.on_epoch = Path(out_dir), progress, on_epoch if is_main() else None
        self.sampler = BatchSampler(train, config.batch_size, model.batch_layout, config.seed)
        if config.neighbour_images:
            check_embeddings(model, train)
            self.clusters = config.neighbour_clusters or number_of_clusters(train.num_images, config.neighbour_images)
            if self.clusters > train.num_images:
                raise InputError(f"neighbour_clusters is {self.clusters} and there are {train.num_images} pictures: give fewer")
        self.steps_per_epoch = math.ceil(len(self.sampler) / config.accumulate)
        if not self.steps_per_epoch:
            raise InputError(f"the train split of {train.name or 'this dataset'} is too small for one batch of 2")
        self.state, self.history = Progress(), History()
        self.stage, self.start = stage, None
        self.ahead, self._curves = (0, 0), None  # steps and evaluations of later stages, for the time left

    def fit(self, resume: bool = False, start: dict[str, Any] | None = None) -> History:
        """Train to the end, load the best weights into the model and return the history.

        ``resume=True`` goes on from the folder's last checkpoint, if there is one, and ends with the very weights of an
        uninterrupted run; otherwise what the folder holds of an earlier run is replaced. With another number of processes a run
        goes on too, on the same batches; sums are then rounded, and random numbers drawn, in another way.
        ``start`` says where the model's weights come from: a row of the history, and a checkpoint with another one is refused.
        """
        self.start = start
        held = () if self.config.freeze_epochs else self.config.freeze
        with sole_use(self.out_dir), frozen(self.model, held):
            self._accelerator = make_accelerator(self.config.precision, self.model.parameters_rest)
            try:
                self._start(resume)
                steps = self.config.epochs * self.steps_per_epoch - self.state.step
                self._monitor = Monitor(steps, self.config.evaluations(self.state.epoch), *self.ahead)
                with tqdm(total=self.config.epochs * self.steps_per_epoch, initial=self.state.step, unit="step",
                          disable=not self.progress_bar, file=sys.stderr) as self._bar:
                    while self.state.epoch < self.config.epochs and not self.state.stopped:
                        self._run_epoch()
            finally:
                self._finish()
            self._load_best()
        return self.history

    # --- start and end ----------------------------------------------------------------------------------------------

    def _start(self, resume: bool) -> None:
        self.state, self.history = Progress(), History()
        self.sampler.group(None)
        if is_main():
            for part in self.out_dir.glob(".*.part"):  # of a write that a kill cut short
                part.unlink()
        seed_everything(seed_of(self.config.seed, rank()))
        optimizer = make_optimizer(self.model, self.config)
        self._wrapped, self._optimizer = self._accelerator.prepare(self.model, optimizer)
        self.model.prepare_captions([*self.train.tokens, *self.val.tokens], self.progress_bar)
        goes_on = from_main(resume and (self.out_dir / LAST).is_file())
        with all_or_none():
            if goes_on:
                self._restore()
            elif is_main():
                for name in (LAST, BEST, HISTORY):
                    (self.out_dir / name).unlink(missing_ok=True)
            if self.config.tensorboard and is_main():
                self._curves = Curves(self.out_dir, self.state.step, fresh=not goes_on, rows=self.history)
        if self.start and not goes_on:
            self._add_row("start", **self.start)
        self._since = time.monotonic() - self.state.seconds

    def _restore(self) -> None:
        self.state, self.history, states = load_checkpoint(self.out_dir / LAST, self._run())
        self.model.load_state_dict(states["model"])
        self._optimizer.load_state_dict(states["optimizer"])
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(states["scaler"])
        if len(states["neighbours"]):
            self.sampler.group(states["neighbours"].numpy(), self.config.neighbour_images)
        random_state = own_random_state(states)
        if random_state is None:
            seed_everything(seed_of(self.config.seed, rank(), self.state.step))
        else:
            set_random_state(random_state)
        if is_main():  # a kill may have come between the checkpoint and these files
            if self.state.position == 0 and self.state.best_epoch == self.state.epoch:
                self._write_best()
            self.history.save(self.out_dir / HISTORY)

    def _run(self) -> dict[str, Any]:
        """What a checkpoint must agree in to be of this run."""
        data = {"train_images": self.train.num_images, "train_captions": self.train.num_captions,
                "val_images": self.val.num_images, "val_captions": self.val.num_captions, "vocabulary": self.train.vocabulary.fingerprint}
        staged = {name: value for name, value in (("stage", self.stage), ("start", self.start)) if value}
        return {"method": self.model.name, "model": self.model.config.model_dump(mode="json"), "data": data,
                "train": self.config.model_dump(mode="json", exclude=set(PRACTICAL)), **staged}

    def _finish(self) -> None:
        """Take accelerate's wrapping off the model, so that another trainer, or none, can have it."""
        self._accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.__dict__.pop("_is_accelerate_prepared", None)
        if self._curves:
            self._curves.close()
            self._curves = None
        for name in ("_accelerator", "_wrapped", "_optimizer"):  # they hold the optimizer's memory
            self.__dict__.pop(name, None)
        self.model.eval()

    def _load_best(self) -> None:
        path = self.out_dir / BEST
        barrier()  # the main process may be writing them
        if self.state.best is None:
            return
        with all_or_none():
            try:
                self.model.load_state_dict(load_file(path))
            except (OSError, SafetensorError, RuntimeError) as error:
                why = str(error).split("\n")[0][:100]
                raise InputError(f"{path}, the best weights of this run, cannot be read ({why}): train again") from None

    # --- one epoch, one step ----------------------------------------------------------------------------------------

    def _run_epoch(self) -> None:
        self.model.start_epoch(self.state.epoch)
        if not self.state.position:
            self._find_neighbours()
        self._wrapped.train()
        for parts in self._steps():
            self._step(parts)
            if self.state.step % self.config.save_every == 0 and self.state.position < self.steps_per_epoch:
                self._save()
        self._end_epoch()

    def _find_neighbours(self) -> None:
        """In the epochs that are for it, cluster the pictures; the batches that follow are made of neighbours."""
        begin = self.config.first_neighbour_epoch
        if begin is not None and self.state.epoch >= begin and (self.state.epoch - begin) % self.config.neighbour_refresh == 0:
            with self._monitor.pause(), over_all_processes():
                labels = cluster_images(self.model, self.train, self.clusters, self.config.seed)
            self.sampler.group(labels, self.config.neighbour_images)

    def _steps(self):
        """This process's Parts of the batches of each step that the epoch still has, in lists of ``accumulate``."""
        self.sampler.set_epoch(self.state.epoch)
        size = self.config.accumulate
        rows = list(self.sampler)[self.state.position * size :]
        # a generator of its own: otherwise the loader takes its seed from the global one, once more after a resume
        data = _Batches(self.train, self.model.batch_layout, (self.config.seed, self.state.epoch))
        loader = iter(DataLoader(data, sampler=rows, batch_size=None,
                                 num_workers=min(self.config.num_workers, usable_cpus()), generator=torch.Generator().manual_seed(0)))
        for first in range(0, len(rows), size):
            with all_or_none():
                parts = [next(loader) for _ in rows[first : first + size]]
                for part in parts:
                    if isinstance(part, InputError):
                        raise part
            yield parts

    def _step(self, parts: list[Part]) -> None:
        lr = learning_rate(self.config, self.state.step, self.steps_per_epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        terms = self._backward(parts)
        self._hold_back()
        if self.config.clip:
            trained = [each for group in self._optimizer.param_groups for each in group["params"]]
            norm = float(self._accelerator.clip_grad_norm_(trained, self.config.clip))
            if math.isfinite(norm):
                terms["grad_norm"] = norm
            elif self._accelerator.scaler is None:  # with a scaler, the step is skipped and the scale lowered
                self._stop(f"the gradient became {norm}")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.state.step += 1
        self.state.position += 1
        self._monitor.step(sum(len(part.captions) for part in parts))
        self._record(terms, lr)
        self._watch(parts[-1], terms)

    def _hold_back(self) -> None:
        """In the first ``freeze_epochs`` epochs what ``freeze`` names gets no gradient, so that no optimizer touches it."""
        if self.state.epoch < (self.config.freeze_epochs or 0):
            for parameter in frozen_parameters(self.model, self.config.freeze).values():
                parameter.grad = None

    def _backward(self, parts: list[Part]) -> dict[str, float]:
        """Gradients of the mean loss over the batches; the mean of each term, and of the collapsed model's loss."""
        sums = Sums()
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            with contextlib.nullcontext() if last else self._accelerator.no_sync(self._wrapped), self._shared(part, number) as gather:
                terms = self._wrapped(part.batch.to(self._accelerator.device), **gather)
                self._accelerator.backward(terms["loss"] / len(parts))
            values = {name: float(value.detach()) for name, value in terms.items()}
            if not math.isfinite(values["loss"]):
                self._stop(f"the loss became {values['loss']}")
            collapsed = self.model.collapsed_loss(part.images, len(part.captions))
            sums.add(values if collapsed is None else {**values, "collapsed_loss": collapsed})
        return sums.means()

    @contextlib.contextmanager
    def _shared(self, part: Part, number: int) -> Iterator[dict[str, Any]]:
        """Where there are several processes, the model knows inside that it sees a share; yields what ``forward`` needs besides."""
        if world_size() == 1:
            yield {}
            return
        with sharing(Share(part.counted, seed_of(self.config.seed, 0, self.state.step, number))):
            yield {"gather": gather_encoding}

    def _stop(self, what: str) -> None:
        kept = f"; the checkpoint before it is kept in {self.out_dir / LAST}" if (self.out_dir / LAST).is_file() else ""
        less = ", precision bf16 or no" if self.config.precision == "fp16" else ""
        clip = "a smaller clip" if self.config.clip else "clip=2"
        raise InputError(f"{what} in epoch {self.state.epoch + 1}, step {self.state.step + 1}: "
                         f"try a lower lr, warmup_steps, {clip}{less}{kept}")

    def _record(self, terms: dict[str, float], lr: float) -> None:
        self.state.row.add(terms)
        self.state.whole.add({name: terms[name] for name in ("loss", "collapsed_loss") if name in terms})
        at_end = self.state.position == self.steps_per_epoch
        if self.state.row.count == self.config.log_every or at_end:
            self._add_row("steps", **self.state.row.means(), lr=lr)
            self.state.row = Sums()
        stage = f"{self.stage}: " if self.stage else ""
        self._bar.set_description(f"{stage}epoch {self.state.epoch + 1}/{self.config.epochs}", refresh=False)
        self._show(loss=f"{terms['loss']:.3f}")
        self._bar.update()

    def _add_row(self, kind: str, **values: Any) -> None:
        epoch = round(self.state.epoch + self.state.position / self.steps_per_epoch, 6)
        stage = {"stage": self.stage} if self.stage else {}
        self.history.append({"kind": kind, **stage, "epoch": epoch, "step": self.state.step, **values})
        if self._curves:
            self._curves.add(self.history[-1])

    def _show(self, **values: str) -> None:
        if self.state.best is not None:
            values[f"best val {self.config.select_by}"] = f"{self.state.best:.1f}"
        self._bar.set_postfix(values | self._monitor.shown(), refresh=False)

    # --- the end of an epoch ----------------------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        done = self.state.epoch + 1
        metrics: dict[str, Any] = {}
        if self.config.evaluates(self.state.epoch):
            with self._monitor.pause(evaluation=True):
                metrics = self._evaluate()
            metrics["best"] = self._is_best(metrics[self.config.select_by])
        self.state.seconds = time.monotonic() - self._since
        self.state.epoch, self.state.position = done, 0
        self._add_row("epoch", **self.state.whole.means(), **metrics, **self._monitor.epoch(),
                      seconds=round(self.state.seconds, 3))
        self.state.whole = Sums()
        self._save()
        if metrics.get("best") and is_main():
            self._write_best()  # after the checkpoint, which has them too: see _restore
        if self.on_epoch:
            self.on_epoch(self.history)

    @property
    def val_part(self) -> tuple[int, torch.Tensor]:
        """How many pictures of val epochs are compared on, and the rows of their captions."""
        count = min(self.config.val_images or self.val.num_images, self.val.num_images)
        return count, (self.val.caption_to_image < count).nonzero().squeeze(1)

    def _evaluate(self) -> dict[str, float]:
        count, columns = self.val_part
        with over_all_processes():
            images = encode_images(self.model, self.val, rows=range(count))
            captions = encode_tokens(self.model, [self.val.tokens[column] for column in columns.tolist()])
            scores = similarity_matrix(self.model, images, captions)
        truth = None if self.val.truth is None else self.val.truth[:count, columns]
        return from_main(validation_metrics(scores, self.val.caption_to_image[columns], truth))

    def _is_best(self, value: float) -> bool:
        """Whether the model is the best so far, and what follows from it.

        Of perfect epochs the last one is the best: a val split of a few pictures cannot tell them apart.
        """
        state = self.state
        if state.best is None or value > state.best:
            state.since_best = 0
        else:
            state.since_best += 1
            state.stopped = self.config.patience is not None and state.since_best >= self.config.patience
            if value < state.best or value < perfect(self.config.select_by):
                return False
        state.best, state.best_epoch = value, state.epoch + 1
        return True

    def _write_best(self) -> None:
        with replace_atomically(self.out_dir / BEST) as part:
            save_file(cpu_weights(self.model), part)

    def _save(self) -> None:
        if self._curves:
            self._curves.flush()
        with self._monitor.pause():
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        self.state.seconds = time.monotonic() - self._since
        scaler = self._accelerator.scaler
        labels = [] if self.sampler.labels is None else self.sampler.labels  # found with weights that are gone after a resume
        save_checkpoint(self.out_dir / LAST, self._run(), self.state, self.history, neighbours=torch.as_tensor(labels),
                        model=self.model.state_dict(),
                        optimizer=self._optimizer.state_dict(), scaler=None if scaler is None else scaler.state_dict())
        if is_main():
            self.history.save(self.out_dir / HISTORY)

    # --- collapse ---------------------------------------------------------------------------------------------------

    def _watch(self, part: Part, terms: dict[str, float]) -> None:
        """Warn once if for half an epoch the loss is a collapsed model's, and a batch's scores are all alike and grow no
        further apart: at the start of a run that learns they are alike, too. Scores that are the very same at the wrong
        level, as a saturated sigmoid's, have a higher loss and no gradient: they are told as well."""
        if self.state.warned or not terms.get("collapsed_loss") or self._warming_up():
            return
        ratios, window = self.state.ratios, max(COLLAPSE_STEPS, self.steps_per_epoch // 2)
        ratios.append(terms["loss"] / terms["collapsed_loss"])
        level = sum(ratios) / len(ratios)
        if len(ratios) == window // 2:
            self.state.spread = self._spread(part) if level > 1 - COLLAPSE_LEVEL else None
        if len(ratios) < window:
            return
        ratios.clear()
        if level <= 1 - COLLAPSE_LEVEL or self.state.spread is None:
            return
        spread, above = self._spread(part), level > 1 + COLLAPSE_LEVEL
        if spread > SAME and (above or spread > min(COLLAPSE_SPREAD, 2 * self.state.spread)):
            return
        self.state.warned = True
        than = "that of" if terms["loss"] < (1 + COLLAPSE_LEVEL) * terms["collapsed_loss"] else f"above the {terms['collapsed_loss']:.3g} of"
        message = (f"collapse: for {window} steps the loss has been {terms['loss']:.3g}, {than} a model which scores every "
                   f"pair the same, and the scores of a batch spread by {spread:.1g}; try a lower lr, more warm-up "
                   f"(model.warmup_epochs, train.warmup_steps), or a smaller batch")
        self._add_row("warning", message=message)
        if is_main():
            tqdm.write(message, file=sys.stderr)

    def _spread(self, part: Part) -> float:
        batch = part.batch
        if world_size() > 1:  # every process looks at the whole batch, so that all decide alike
            batch = collate(self.train, part.captions, self.model.batch_layout, (self.config.seed, self.state.epoch))
        return score_spread(self.model, batch.to(self._accelerator.device))

    def _warming_up(self) -> bool:
        return (self.state.step <= self.config.warmup_steps
                or self.state.epoch < getattr(self.model.config, "warmup_epochs", 0))


def check_splits(model: MatchingModel, train: ImageCaptionDataset, val: ImageCaptionDataset) -> None:
    """Raise :class:`InputError` unless ``train`` and ``val`` are those splits, apart, and fit each other and the model."""
    for role, dataset in (("train", train), ("val", val)):
        if dataset.split != role:
            raise InputError(f"the trainer was given the {dataset.split} split as its {role} split: it trains on train and "
                             "chooses on val; test is for itm_lib.evaluation, after every choice")
    shared = set(train.regions.image_ids) & set(val.regions.image_ids)
    if shared:
        raise InputError(f"train and val share {len(shared)} pictures, {min(shared)} among them: make the splits again")
    if train.vocabulary != val.vocabulary:
        raise InputError("train and val have different vocabularies: open both from one dataset folder")
    check_token_kind(model, train.vocabulary)
    words = getattr(model.config, "vocab_size", None)
    if words is not None and words != len(train.vocabulary):
        raise InputError(f"the model knows {words} words and the data has {len(train.vocabulary)}: build it for this data")
    for role, dataset in (("train", train), ("val", val)):
        if dataset.pixels != model.pixels:
            how = "without pixels=" if model.pixels is None else "with pixels=model.pixels"
            raise InputError(f"the {role} split's images are not read as the model {model.name!r} reads them: open it {how}")
    dim = getattr(model.config, "region_dim", None)
    if model.image_input == "regions" and dim is not None and {train.regions.dim, val.regions.dim} != {dim}:
        raise InputError(f"the model takes regions of {dim} numbers, train has {train.regions.dim} and val "
                         f"{val.regions.dim}: build the model for this data")


def check_metric(name: str, val: ImageCaptionDataset) -> None:
    """Raise :class:`InputError` if the validation metrics have no ``name`` in which more is better."""
    known = [each.name for each in fields(RetrievalMetrics) if "rank" not in each.name]
    exact = ["map_at_r", "i2t_map_at_r", "t2i_map_at_r", "i2t_r_precision", "t2i_r_precision"]
    if name in exact and val.truth is None:
        raise InputError(f"select_by {name} needs data with an exact ground truth (truth/val.json): use rsum")
    if name not in known + exact:
        raise InputError(f"unknown metric select_by {name!r}; {nearest(name, known + exact)}")


def perfect(metric: str) -> float:
    """The largest value of a validation metric, in percent: rsum is a sum of six."""
    return 600.0 if metric == "rsum" else 100.0


def validation_metrics(scores: torch.Tensor, caption_to_image: torch.Tensor, truth: torch.Tensor | None = None) -> dict[str, float]:
    """Recalls, ranks and rsum of ``scores`` (I, C); with an exact ``truth`` (I, C) also mAP@R and R-Precision, and ``map_at_r``: the
    mean of the two directions' mAP@R."""
    metrics = RetrievalMetrics.from_scores(scores, caption_to_image).to_dict()
    if truth is not None:
        metrics.update(map_at_r(scores, truth))
        metrics["map_at_r"] = (metrics["i2t_map_at_r"] + metrics["t2i_map_at_r"]) / 2
    return metrics


def score_spread(model: MatchingModel, batch: Batch) -> float:
    """Standard deviation of a batch's scores once each row's and each column's own level is taken off.

    Relative to the mean absolute score where that is above 1. What is left is what depends on the pair: a model that knows
    only that long captions score higher has none.
    """
    with evaluating(model):
        images = model.encode_images(batch.regions, batch.region_mask)
        captions = model.encode_captions(batch.tokens, batch.token_mask)
        scores = model.similarity(images, captions).cpu().double()  # not every device has float64
    rest = scores - scores.mean(0, keepdim=True) - scores.mean(1, keepdim=True) + scores.mean()
    return float(rest.std() / scores.abs().mean().clamp(min=1.0))


def make_accelerator(precision: str, parameters_rest: bool = False) -> Accelerator:
    """accelerate on the device there is. Its precision is global: another one needs its state cleared first.

    ``parameters_rest``: see :class:`MatchingModel`; several processes must know, or they wait for gradients that never come.
    """
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    try:
        handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)] if parameters_rest else None
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=handlers)
    except ValueError as error:
        raise InputError(f"precision {precision} does not work here ({error}): use bf16 or no") from None
    if accelerator.native_amp != (precision != "no"):  # accelerate would go on in float32 without a word
        raise InputError(f"precision {precision} does not work on {accelerator.device.type}: use bf16 or no")
    return accelerator
