"""TrainConfig: every number that decides how a model is trained, and what follows from it: learning rate, frozen weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from itm_lib.files import InputError, nearest
from itm_lib.models.base import MatchingModel

# settings that change how a run goes but no number of it: a run may go on with others
PRACTICAL = ("num_workers", "save_every", "tensorboard")


def problem_line(error: ValidationError, names: Iterable[str], prefix: str = "") -> str:
    """The first problem of a pydantic error as one line; an unknown key gets the nearest of ``names``."""
    problems = error.errors()
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])  # a slip leaves its key missing
    key = prefix + ".".join(str(step) for step in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {nearest(problem['loc'][-1], names)}"
    if problem["type"] == "missing":
        return f"{key!r} is missing; give it a value"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message[:1].lower()}{message[1:]}" if problem["loc"] else prefix.rstrip(".") + ": " + message


class TrainConfig(BaseModel):
    """How to train. A wrong value or an unknown name is one line (:class:`InputError`).

    A *step* is one update of the weights; with ``accumulate`` k it sees k batches, each with negatives of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(64, ge=2)                    # captions, or images in the "set" layout
    lr: float = Field(2e-3, gt=0, allow_inf_nan=False)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = Field(0.9, ge=0, lt=1)             # of sgd
    nesterov: bool = False                               # of sgd
    weight_decay: float = Field(0.0, ge=0)
    schedule: Literal["constant", "step", "cosine"] = "constant"
    decay_at: tuple[float, ...] = (0.6,)                 # of step: a fraction of the run if below 1, else an epoch
    decay_factor: float = Field(0.1, gt=0, le=1)         # of step: lr is multiplied by it at each decay_at
    warmup_steps: int = Field(0, ge=0)                   # lr rises linearly over the first steps
    clip: float | None = Field(2.0, gt=0)                # global norm of the gradients; null: no clipping
    freeze: tuple[str, ...] = ()                         # parameters that do not train: "image", "text.embed", ...
    freeze_epochs: int | None = Field(None, ge=1)        # so many epochs at the start, then all train; null: the whole run
    neighbour_images: int | None = Field(None, ge=2)     # K: so many of a batch come from one cluster of pictures; null: any do
    neighbour_clusters: int | None = Field(None, ge=2)   # of k-means; null: train pictures / (4 K)
    neighbour_start: float = Field(0.5, ge=0)            # from here on: a fraction of the run if below 1, else an epoch
    neighbour_refresh: int = Field(1, ge=1)              # epochs from one clustering to the next
    precision: Literal["no", "bf16", "fp16"] = "no"
    accumulate: int = Field(1, ge=1)
    seed: int = Field(0, ge=0, lt=2**31)
    select_by: str = "rsum"                              # the validation metric whose best epoch is kept
    eval_every: int = Field(1, ge=1)                     # epochs
    val_images: int | None = Field(None, ge=2)           # epochs are compared on the first so many pictures of val; null: on all
    patience: int | None = Field(None, ge=1)             # stop after so many evaluations without a better one
    log_every: int = Field(10, ge=1)                     # steps in one row of the history
    save_every: int = Field(500, ge=1)                   # steps between two checkpoints, besides each epoch's end
    num_workers: int = Field(0, ge=0)                    # processes that read data; no more than there are CPUs
    tensorboard: bool = False                            # curves in the run's folder, tensorboard/

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(problem_line(error, type(self).model_fields, "train.")) from None

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        return "no" if value is False else value  # what YAML makes of it

    @model_validator(mode="after")
    def _together(self) -> TrainConfig:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        for place in self.decay_at:
            if place <= 0 or (place >= 1 and place != int(place)):
                raise ValueError(f"decay_at {place}: give a fraction of the run between 0 and 1, or a whole epoch")
        if self.neighbour_start >= 1 and self.neighbour_start != int(self.neighbour_start):
            raise ValueError(f"neighbour_start {self.neighbour_start}: give a fraction of the run below 1, or a whole epoch")
        if self.freeze_epochs and not self.freeze:
            raise ValueError("freeze_epochs needs freeze, the names of what does not train in these epochs")
        if self.freeze_epochs and self.freeze_epochs >= self.epochs:
            raise ValueError(f"freeze_epochs {self.freeze_epochs} of {self.epochs} epochs: leave it out to freeze the whole run")
        if self.neighbour_images and self.batch_size % self.neighbour_images:
            raise ValueError(f"batch_size {self.batch_size} is no multiple of neighbour_images {self.neighbour_images}")
        return self

    def evaluates(self, epoch: int) -> bool:
        """Whether there is an evaluation on val at the end of ``epoch``, from 0."""
        return (epoch + 1) % self.eval_every == 0 or epoch + 1 == self.epochs

    def evaluations(self, done: int = 0) -> int:
        """How many evaluations there are after the first ``done`` epochs."""
        return sum(map(self.evaluates, range(done, self.epochs)))

    @property
    def first_neighbour_epoch(self) -> int | None:
        """The epoch, from 0, from which on batches are made of neighbours; None if they never are."""
        if self.neighbour_images is None:
            return None
        return round(self.neighbour_start * (self.epochs if self.neighbour_start < 1 else 1))


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of step ``step`` (from 0): ``lr`` × warm-up × schedule. A function of the step alone.

    step: decay_factor^(number of decay_at reached); cosine: (1 + cos(π · step / total)) / 2.
    """
    total = config.epochs * steps_per_epoch
    factor = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "step":
        starts = [place * total if place < 1 else place * steps_per_epoch for place in config.decay_at]
        factor *= config.decay_factor ** sum(step >= round(start) for start in starts)
    elif config.schedule == "cosine":
        factor *= (1 + math.cos(math.pi * step / total)) / 2
    return config.lr * factor


def frozen_parameters(model: MatchingModel, freeze: Iterable[str]) -> dict[str, torch.nn.Parameter]:
    """The parameters that ``freeze`` names, each by its name or by that of a module which holds it ("text", "text.rnn").

    A name that the model does not have, and names that leave nothing to train, raise :class:`InputError`.
    """
    parameters = dict(model.named_parameters())
    held = {}
    for prefix in freeze:
        own = {name: value for name, value in parameters.items() if f"{name}.".startswith(f"{prefix}.")}
        if not own:
            parts = [name.split(".") for name in parameters]
            depth = max(map(len, parts)) if "." in prefix else 1
            known = dict.fromkeys(".".join(each[:end]) for each in parts for end in range(1, depth + 1))
            raise InputError(f"train.freeze: the model {model.name!r} has no parameters {prefix!r}; {nearest(prefix, known)}")
        held.update(own)
    if held and not any(value.requires_grad for name, value in parameters.items() if name not in held):
        raise InputError(f"train.freeze {', '.join(freeze)} leaves nothing of the model {model.name!r} to train: freeze less")
    return held


@contextlib.contextmanager
def frozen(model: MatchingModel, freeze: Iterable[str]) -> Iterator[None]:
    """The parameters that ``freeze`` names ask for no gradient meanwhile; each is as before at the end."""
    held = {parameter: parameter.requires_grad for parameter in frozen_parameters(model, freeze).values()}
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, asked in held.items():
            parameter.requires_grad_(asked)


def make_optimizer(model: MatchingModel, config: TrainConfig) -> torch.optim.Optimizer:
    """The optimizer over ``model.parameter_groups()``, less what is frozen; a group's ``lr_scale`` multiplies the learning rate."""
    groups = [{"lr_scale": 1.0, **group, "params": [each for each in group["params"] if each.requires_grad]}
              for group in model.parameter_groups()]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(f"the model {model.name!r} has no parameters to train")
    shared = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum, nesterov=config.nesterov, **shared)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups, **shared)
