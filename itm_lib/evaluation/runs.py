"""Trained runs, measured: one model, the seeds of one recipe as one result, or ensembles of such runs."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from itm_lib.evaluation.protocols import evaluate, evaluate_ensemble
from itm_lib.evaluation.report import Result
from itm_lib.evaluation.score_files import KINDS
from itm_lib.files import InputError, read_json
from itm_lib.models import load_model
from itm_lib.models.card import CONFIG, write_card
from itm_lib.models.saving import HUB, read_config, resolve_folder

MODEL = "model"
SEED = re.compile(r"seed(\d+)")


def model_folders(run: str | Path) -> list[str | Path]:
    """The model folders that ``run`` means: itself, its ``model/``, or the ``seed<k>/model/`` of a run of several seeds.

    What is none of these, a name of the Hub (``hf://owner/name``) among it, comes back as it is: reading it says what is wrong.
    """
    folder = Path(run)
    if str(run).startswith(HUB) or (folder / CONFIG).is_file():
        return [run]
    if (folder / MODEL / CONFIG).is_file():
        return [folder / MODEL]
    seeds = {int(found[1]): each for each in folder.glob("seed*") if (found := SEED.fullmatch(each.name))}
    return [seeds[seed] / MODEL for seed in sorted(seeds) if (seeds[seed] / MODEL / CONFIG).is_file()] or [run]


def label_of(folder: str | Path) -> str:
    """What a result calls the model of ``folder``: the run's name, without ``seed<k>`` and ``model``."""
    folder = Path(folder).resolve()
    while folder.name == MODEL or SEED.fullmatch(folder.name):
        folder = folder.parent
    return folder.name


def recipe_of(folder: str | Path) -> dict[str, Any]:
    """The recipe that a saved model was trained by; empty for one that came otherwise."""
    folder = resolve_folder(folder)
    read_config(folder)
    return (read_json(folder / CONFIG).get("metadata") or {}).get("recipe") or {}


def evaluate_runs(runs: Sequence[str | Path], data: str | Path, split: str = "test", progress: bool = False,
                  scores_file: str | Path | None = None, command: str = "") -> Result:
    """One Result of all models of ``runs``, which are of one recipe with different seeds.

    It has everything that :func:`itm_lib.evaluation.evaluate` measures, mean ± sd over the seeds. Raises :class:`InputError` for models
    of different recipes, for a seed that comes twice, and for one ``scores_file`` of several models.
    """
    folders = [folder for run in runs for folder in model_folders(run)]
    if scores_file is not None and len(folders) > 1:
        raise InputError(f"{len(folders)} models and one file of scores: give one model, or average them with --ensemble")
    recipes = [recipe_of(folder) for folder in folders]  # before minutes of work
    seeds = _seeds(recipes)
    for number, folder in enumerate(folders[1:], 1):
        if _without_seeds(recipes[number]) != _without_seeds(recipes[0]):
            raise InputError(f"{folder} is of another recipe than {folders[0]}: measure them one by one, or average them with --ensemble")
        if seeds[number] in seeds[:number]:
            raise InputError(f"{folder} is of seed {seeds[number]}, as a model before it: give each seed once")
    start = time.monotonic()
    metrics = [evaluate(load_model(folder)[0], data, split, progress=progress, scores_file=scores_file) for folder in folders]
    return Result.from_runs(metrics, seeds=seeds, model=label_of(folders[0]), dataset=Path(data).resolve().name, split=split,
                            profile="", config=recipes[0], command=command, seconds=time.monotonic() - start)


def evaluate_ensemble_runs(runs: Sequence[str | Path], data: str | Path, split: str = "test", progress: bool = False,
                           scores_file: str | Path | None = None, command: str = "") -> Result:
    """One Result of the ensemble of ``runs``: their scores averaged before ranking. A file of scores counts as a run.

    Runs of several seeds are averaged seed by seed and must have the same seeds.
    """
    if len(runs) < 2:
        raise InputError("an ensemble needs at least two models: give more, or leave --ensemble out")
    members = [[run] if Path(run).suffix in KINDS else model_folders(run) for run in runs]
    recipes = [[{} if Path(folder).suffix in KINDS else recipe_of(folder) for folder in member] for member in members]
    seeds = [_seeds(each) for each in recipes]
    if len(members[0]) > 1 and any(each != seeds[0] for each in seeds) or len({len(each) for each in members}) > 1:
        told = "; ".join(f"{run}: {', '.join(map(str, each))}" for run, each in zip(runs, seeds))
        raise InputError(f"the runs of this ensemble have different seeds ({told}): give runs of the same seeds")
    if scores_file is not None and len(members[0]) > 1:
        raise InputError(f"{len(members[0])} seeds and one file of scores: give one model a member")
    start = time.monotonic()
    metrics = [evaluate_ensemble(list(each), data, split, progress=progress, scores_file=scores_file) for each in zip(*members)]
    return Result.from_runs(metrics, seeds=seeds[0], model=" + ".join(map(label_of, runs)), dataset=Path(data).resolve().name, split=split,
                            profile="", config={"ensemble": [each[0] for each in recipes]}, command=command,
                            seconds=time.monotonic() - start)


def record_results(runs: Sequence[str | Path], result: Result) -> list[Path]:
    """Tell the model folders of ``runs`` what :func:`evaluate_runs` measured of them: their cards, which are returned.

    A card shows a model's own numbers, and those of the last measurement on the same data and split. Models on the Hub, and
    folders that may not be written, are left as they are.
    """
    cards = []
    for number, folder in enumerate(folder for run in runs for folder in model_folders(run)):
        if str(folder).startswith(HUB) or not os.access(folder, os.W_OK):
            continue
        metrics = {name: metric.values[number] for name, metric in result.metrics.items()}
        cards.append(write_card(folder, [{"dataset": result.dataset, "split": result.split, "metrics": metrics, "commit": result.commit,
                                          "command": result.command}]))
    return cards


def _seeds(recipes: Sequence[dict[str, Any]]) -> list[int]:
    """The seed of each recipe; its place where it has none."""
    return [recipe.get("train", {}).get("seed", number) for number, recipe in enumerate(recipes)]


def _without_seeds(recipe: dict[str, Any]) -> dict[str, Any]:
    recipe = deepcopy(recipe)
    for section in (recipe, *recipe.get("stages", [])):
        section.get("train", {}).pop("seed", None)
    return recipe
