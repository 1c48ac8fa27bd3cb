"""What a run keeps: its history, and checkpoints from which it goes on as if it had never stopped."""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from itm_lib.files import InputError, held, read_jsonl, replace_atomically, write_jsonl
from itm_lib.processes import from_all, is_main, on_main, rank

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
TIMINGS = ("seconds", "pairs_per_second", "peak_memory_mib")  # of the history: what differs between two runs of the same numbers


class History(list[dict[str, Any]]):
    """Rows of a run, in order; every row has ``kind``, ``epoch`` (epochs done), ``step`` (steps done) and, if the run is
    one of a recipe's stages, ``stage``, its name.

    * ``kind="start"``, of a stage that begins with the weights of another: its name as ``after``, the SHA-256 of its best
      weights, and how many of this model's ``tensors`` were ``taken`` from them
    * ``kind="steps"``: means over the steps since the last such row: ``loss`` and its terms, ``grad_norm``; and
      ``collapsed_loss``, what a model that scores all pairs the same would have had; ``lr``
    * ``kind="epoch"``: mean ``loss`` and ``collapsed_loss`` of the epoch, ``seconds`` since the start, ``pairs_per_second`` of its
      training steps, ``peak_memory_mib`` so far (of the GPU, or else of the process) and, if the epoch was evaluated, the validation
      metrics and ``best``: whether it is the best so far
    * ``kind="warning"``: a ``message``
    """

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The rows of one kind."""
        return [row for row in self if row["kind"] == kind]

    @property
    def steps(self) -> list[dict[str, Any]]:
        return self.of("steps")

    @property
    def epochs(self) -> list[dict[str, Any]]:
        return self.of("epoch")

    @property
    def best(self) -> dict[str, Any] | None:
        """The row of the best epoch on validation, or None before the first evaluation."""
        return next((row for row in reversed(self) if row.get("best")), None)

    def frame(self, kind: str = "epoch") -> pd.DataFrame:
        """The rows of one kind as a table."""
        import pandas as pd

        return pd.DataFrame(self.of(kind)).drop(columns="kind", errors="ignore")

    def save(self, path: str | Path) -> None:
        write_jsonl(path, self)

    @classmethod
    def load(cls, path: str | Path) -> History:
        """The history in ``path`` (history.jsonl of a run's folder)."""
        return cls(read_jsonl(path))


@dataclass
class Sums:
    """Running sums of named numbers, for their means."""

    count: int = 0
    values: dict[str, float] = field(default_factory=dict)

    def add(self, numbers: dict[str, float]) -> None:
        self.count += 1
        for name, number in numbers.items():
            self.values[name] = self.values.get(name, 0.0) + number

    def means(self) -> dict[str, float]:
        return {name: value / self.count for name, value in self.values.items()}


@dataclass
class Progress:
    """How far a run is, besides weights, optimizer and random numbers."""

    epoch: int = 0                # epochs finished
    position: int = 0             # steps done in the epoch that is under way
    step: int = 0                 # steps done in all
    best: float | None = None     # best value of the metric that selects
    best_epoch: int | None = None  # epochs finished when it was found
    since_best: int = 0           # evaluations since then
    stopped: bool = False         # patience ran out
    seconds: float = 0.0
    warned: bool = False          # of a collapse
    ratios: list[float] = field(default_factory=list)  # loss / loss of a collapsed model, latest steps
    spread: float | None = None   # of a batch's scores, when half of these steps were done
    row: Sums = field(default_factory=Sums)            # since the last row of the history
    whole: Sums = field(default_factory=Sums)          # of the epoch

    @classmethod
    def parse(cls, text: str) -> Progress:
        values = json.loads(text)
        return cls(**{**values, "row": Sums(**values["row"]), "whole": Sums(**values["whole"])})


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers, on the GPU too."""
    set_seed(seed)


def random_state() -> dict[str, Any]:
    """The state of Python's, NumPy's and torch's random numbers, as tensors and plain numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],  # of the device in use
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state["cuda"][0])


def save_checkpoint(path: Path, run: dict[str, Any], progress: Progress, history: History, **states: Any) -> None:
    """Write everything that going on needs to ``path``, atomically. ``run`` says whose checkpoint it is.

    All processes call it, for the states of their random numbers; the main one writes.
    """
    random_states = from_all(random_state())
    if not is_main():
        return
    content = {
        "format": FORMAT, "run": json.dumps(run), "progress": json.dumps(asdict(progress)), "history": json.dumps(history),
        "random": random_states[0], "random_of_others": random_states[1:], **states,
    }
    with replace_atomically(path) as part:
        torch.save(content, part)


def own_random_state(content: dict[str, Any]) -> dict[str, Any] | None:
    """This process's state of the random numbers in a checkpoint; None if the run had fewer processes."""
    states = [content["random"], *content.get("random_of_others", [])]
    return states[rank()] if rank() < len(states) else None


def load_checkpoint(path: Path, run: dict[str, Any]) -> tuple[Progress, History, dict[str, Any]]:
    """(progress, history, the other states) in ``path``. Nothing in the file is executed.

    Raises :class:`InputError` if the file is damaged or of a run with another model, data or settings than ``run``.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = json.loads(content["run"])
    except (pickle.UnpicklingError, zipfile.BadZipFile, OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError) as error:
        why = str(error).split("\n")[0][:100]
        raise InputError(f"{path} is no checkpoint of a training run, or is damaged ({why}): remove it to start again") from None
    for key, there, here in differences(found, run):
        raise InputError(f"{path} is of another run: {key} is {there} there and {here} here; "
                         "use the same settings, start over, or give another out_dir")
    if content["format"] != FORMAT:
        raise InputError(f"{path} has checkpoint format {content['format']}, this version writes {FORMAT}: start again")
    return Progress.parse(content["progress"]), History(json.loads(content["history"])), content


def differences(there: Any, here: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(key, value there, value here) wherever two JSON values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        for name in [*there, *(name for name in here if name not in there)]:
            yield from differences(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    elif there != here:
        yield key, there, here


@contextlib.contextmanager
def sole_use(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Make ``folder`` and hold it; a second run on it raises :class:`InputError`. A killed run holds nothing.

    Of several processes the main one holds it for all.
    """
    with on_main(_made_and_held(folder, name)):
        yield


@contextlib.contextmanager
def _made_and_held(folder: Path, name: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / name, f"{folder} is in use by another run: wait for it, or give another out_dir"):
        yield


def cpu_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the weights and buffers on the CPU, each tensor with storage of its own."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
