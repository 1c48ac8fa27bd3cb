"""What every notebook of the course starts and ends with: checked parameters, a folder of its own, metrics.json.

A notebook declares its own parameters by subclassing :class:`NotebookParameters` in its setup cell::

    class Parameters(NotebookParameters):
        epochs: int = Field(0, ge=0)            # 0: the profile's

    parameters = Parameters(profile=profile, seed=seed, out_dir=out_dir, epochs=epochs)
    folder = parameters.folder("02_scan")       # created, and locked until this kernel ends
    epochs = parameters.epochs or parameters.choose(smoke=1, course=15, paper=30)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from itm_lib.files import InputError, locked, nearest, project_root, validation_line

if TYPE_CHECKING:
    from itm_lib.evaluation.report import Result

PROFILES = ("smoke", "course", "paper")
Value = TypeVar("Value")

_locks: dict[Path, FileLock] = {}  # held until the process ends; the system frees them even if it is killed


def choose(profile: str, *, smoke: Value, course: Value, paper: Value) -> Value:
    """The value that belongs to ``profile``. Raises :class:`InputError` for a profile that does not exist."""
    values = {"smoke": smoke, "course": course, "paper": paper}
    if profile not in values:
        raise InputError(f"unknown profile {profile!r}: {nearest(profile, PROFILES)}")
    return values[profile]


class NotebookParameters(BaseModel):
    """The parameters that all notebooks share. A wrong value or an unknown name is one line (:class:`InputError`)."""

    model_config = ConfigDict(extra="forbid", validate_default=True)

    profile: Literal["smoke", "course", "paper"] = "course"
    seed: int = Field(0, ge=0)
    out_dir: str = ""

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(f"notebook parameters: {validation_line(error, type(self).model_fields)}") from None

    def choose(self, *, smoke: Value, course: Value, paper: Value) -> Value:
        """The value that belongs to this run's profile."""
        return choose(self.profile, smoke=smoke, course=course, paper=paper)

    def changed(self) -> dict[str, Any]:
        """The parameters that differ from the notebook's defaults, without profile and out_dir."""
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields if name not in ("profile", "out_dir")}
        return {name: value for name, value in values.items() if value != fields[name].get_default(call_default_factory=True)}

    def folder(self, notebook: str) -> Path:
        """The folder this run writes to, created and locked: ``out_dir``, or runs/<profile>/<notebook> if that is empty.

        Other parameters give another folder, and a folder that a running notebook holds is refused, so two runs never
        write to the same one. The lock lasts until the kernel ends; running the cell again is fine.
        """
        own = Path(self.out_dir).expanduser() if self.out_dir else runs_dir() / self.profile / run_name(notebook, self.changed())
        own.mkdir(parents=True, exist_ok=True)
        hold(own / ".notebook.lock", "another kernel is writing to it: shut that kernel down, or give another out_dir")
        return own


def runs_dir() -> Path:
    """Where runs are kept: runs/ of the checkout."""
    return project_root() / "runs"


def run_name(notebook: str, parameters: Mapping[str, Any]) -> str:
    """The folder name of a run: the notebook, then the parameters that were set; the same on every system.

    >>> run_name("02_scan", {"seed": 1, "epochs": 5})
    '02_scan+epochs=5+seed=1'
    """
    name = "+".join([notebook, *(f"{key}={value}" for key, value in sorted(parameters.items()))])
    safe = re.sub(r"[^A-Za-z0-9_.=+-]", "_", name)
    if safe == name and len(name) <= 100:
        return name
    return f"{safe[:80]}+{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def hold(lock: Path, otherwise: str) -> None:
    """Hold ``lock`` until this process ends, or raise :class:`InputError` saying ``otherwise``."""
    key = lock.resolve()
    if key in _locks:
        return
    _locks[key] = locked(key, f"the folder {lock.parent.name} is in use, {otherwise}")


def write_metrics(out_dir: str | Path, results: Result | Sequence[Result]) -> Path:
    """Write metrics.json into ``out_dir``: one result, or a list of them."""
    from itm_lib.evaluation.report import write_result  # late: the command line reads this module and needs no torch

    return write_result(Path(out_dir) / "metrics.json", results)
