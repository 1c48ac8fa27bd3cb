"""Sweeps: variants × seeds of a recipe, each run once, measured on val and at the very end on test, and written as results.

::

    name: spine
    data: {name: openmoji_scenes, variant: default, size: quick, seed: 0}
    seeds: [0, 1, 2]
    base:
      model: {method: scan, embed_dim: 64}
      train: {epochs: 20}
    variants:
      ti_avg: {model: {direction: t2i}}            # laid over base
      it_lse: {model: {direction: i2t, aggregation: lse}, train: {lr: 1e-3}}
      staged: {stages: [{name: first, model: {negatives: all}}, {name: second}]}  # as in a recipe; in place of base's
    ensembles:
      both: [ti_avg, it_lse]                       # mean of the scores of the members' models of the same seed
    labels: {ti_avg: SCAN t-i AVG}                 # what tables call a variant; its own name if left out
    test: false                                    # while settings are being chosen: the test split stays shut

A run lives in runs/sweeps/<name>/<variant>/seed<k>/. Its metrics.json holds a hash of its settings and data: a run that is
done is kept, one whose settings or data changed is made again, one that was stopped goes on. First stages that runs of
one seed have in common are trained once.

results/<name>__<variant>.json is written after each run, with the seeds that are done so far. A run whose hash stands in that file is
done, too, so that a sweep goes on in a fresh checkout where the committed results end. An ensemble is measured as soon as its members of
one seed are trained.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from tqdm import tqdm

from itm_lib.evaluation import evaluate
from itm_lib.evaluation.report import Result, commit_id, read_results, write_result
from itm_lib.files import InputError, data_dir, nearest, project_root, read_json, write_json, write_text
from itm_lib.models import Ensemble, MatchingModel, load_model
from itm_lib.training.config import problem_line
from itm_lib.training.recipe import MODEL_FOLDER, DataSection, Recipe, read_yaml, run_recipe
from itm_lib.training.state import sole_use
from itm_lib.training.trainer import LAST

METRICS, BEGUN = "metrics.json", "begun.json"
CURVE = ("stage", "epoch", "loss", "collapsed_loss", "rsum", "map_at_r")      # of each epoch, to see whether a run converged
RUN_FACTS = ("hash", "commit", "seconds", "train_seconds", "best_epoch", "curve", "warnings")
DATA = ("regions/[!.]*", "truth/*.json", "foils/*.jsonl", "scenes.jsonl")  # what the fingerprint takes besides the three texts
LARGE = 2**26  # bytes: of larger files the fingerprint takes the size, not the content
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"


class Sweep(BaseModel):
    """A sweep file, checked. ``recipes[variant]`` is the recipe of a variant; the seed goes into its ``train.seed``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME)
    data: dict[str, Any]
    base: dict[str, Any]
    variants: dict[str, dict[str, Any] | None] = Field(min_length=1)
    ensembles: dict[str, list[str]] = {}
    seeds: list[int] = Field(min_length=1)
    labels: dict[str, str] = {}
    test: bool = True
    profile: str = "course"

    def recipe(self, variant: str, seed: int, where: str = "sweep") -> Recipe:
        """The recipe of one run."""
        content: dict[str, Any] = {"data": self.data, "model": {}, "train": {}}
        for place, sections in (("base", self.base), (f"variants.{variant}", self.variants[variant] or {})):
            for section, values in sections.items():
                if section not in ("model", "train", "stages"):
                    known = nearest(section, ("model", "train", "stages"))
                    raise InputError(f"{where}: unknown key '{place}.{section}'; {known}")
                if section == "stages":
                    content[section] = values
                    continue
                if not isinstance(values, Mapping):
                    raise InputError(f"{where}: '{place}.{section}' must be a mapping of names to values")
                content[section] = {**content[section], **values}
        stages = content.get("stages")
        for part in [content, *(stages if isinstance(stages, list) else [])]:
            settings = part.get("train") if isinstance(part, Mapping) else None
            if isinstance(settings, Mapping) and "seed" in settings:
                raise InputError(f"{where}: train.seed comes from 'seeds': leave it out")
        content["train"]["seed"] = seed
        return Recipe.parse(content, f"{where}, variant {variant}")


@dataclass(frozen=True)
class Job:
    """One run of a sweep: where it lives, what it is, and the hash that says whether it is done."""

    variant: str
    seed: int
    folder: Path
    data: Path
    recipe: dict[str, Any]
    digest: str
    test: bool
    data_hash: str = ""
    members: tuple[Job, ...] = ()
    known: dict[str, Any] | None = None  # what a result file says of this very run
    needs_model: bool = False            # an ensemble that is not done yet reads it

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

    @property
    def done(self) -> dict[str, Any] | None:
        """What metrics.json holds, or a result file says, if this very run is finished; None if it is not, or is another."""
        path = self.folder / METRICS
        content = read_json(path) if path.is_file() else {}
        if content.get("hash") == self.digest and ("test" in content or not self.test):
            return content
        return None if self.needs_model else self.known


def load_sweep(path: str | Path) -> Sweep:
    """The sweep in ``path``, every variant of it checked. A wrong key or value is one line (:class:`InputError`)."""
    where = str(path)
    content = read_yaml(Path(path))
    if not isinstance(content, Mapping):
        raise InputError(f"{where} must be a mapping with the keys {', '.join(Sweep.model_fields)}")
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{where}: {problem_line(error, Sweep.model_fields)}") from None
    if len(set(sweep.seeds)) != len(sweep.seeds):
        raise InputError(f"{where}: a seed is listed twice")
    for variant in sweep.variants:
        sweep.recipe(variant, sweep.seeds[0], where)
    _check_names(sweep, where)
    return sweep


def _check_names(sweep: Sweep, where: str) -> None:
    for name in [*sweep.variants, *sweep.ensembles]:
        if not re.match(NAME, name):
            raise InputError(f"{where}: {name!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
    for name in sweep.labels:
        if name not in sweep.variants and name not in sweep.ensembles:
            raise InputError(f"{where}: unknown key 'labels.{name}'; {nearest(name, [*sweep.variants, *sweep.ensembles])}")
    for name, members in sweep.ensembles.items():
        if name in sweep.variants or len(members) < 2:
            raise InputError(f"{where}: ensemble {name!r} needs a name of its own and at least two variants")
        for member in members:
            if member not in sweep.variants:
                raise InputError(f"{where}: ensemble {name!r} has no variant {member!r}; {nearest(member, sweep.variants)}")


def run_sweep(path: str | Path, jobs: int = 1, out: str | Path | None = None, runs: str | Path | None = None, fresh: bool = False,
              progress: bool = True, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Path]:
    """Run what is not done yet of the sweep ``path``, ``jobs`` runs at a time, and write a result file a variant.

    ``out``: folder of the results (default data/results); ``runs``: folder of the runs (default runs/sweeps);
    ``fresh`` makes the runs again. ``only``, ``seeds``: these variants and ensembles, and these seeds, alone; none: all. Each run is one process
    on one thread, so its numbers do not depend on ``jobs``. A failed run does not stop the others; at the end one line
    (:class:`InputError`) names it. Returns the result files.
    """
    sweep = load_sweep(path)
    if jobs < 1:
        raise InputError(f"jobs is {jobs}: at least one run at a time is needed")
    _check_chosen(sweep, only, seeds, str(path))
    out = Path(out) if out is not None else data_dir() / "results"
    home = (Path(runs) if runs is not None else project_root() / "runs" / "sweeps") / sweep.name
    with sole_use(home):
        models = [sweep.recipe(variant, sweep.seeds[0]).plan[-1].config for variant in sweep.variants]
        data = _data(sweep).prepare(progress, regions=any(model.pixels is None for model in models))
        known = _known_runs(sweep, out)
        planned = plan(sweep, home, data, known)
        if fresh:
            for job in _chosen(sweep, planned, only, seeds):  # other runs of the same files stay as they are
                known.pop((job.variant, job.digest), None)
                for name in (METRICS, BEGUN):
                    (job.folder / name).unlink(missing_ok=True)
            planned = plan(sweep, home, data, known)
        chosen = _with_members([job for job in _chosen(sweep, planned, only, seeds) if not only or job.variant in only], planned)
        write = _Results(sweep, planned, out, f"itm sweep {_shown(Path(path))}")
        failures: list[str] = []
        with tqdm(total=len(chosen), desc=f"sweep {sweep.name}", unit="run", disable=not progress) as bar:
            bar.update(sum(1 for job in chosen if job.done))
            todo = [job for job in chosen if not job.done]
            if todo:
                with _workers(min(jobs, len(todo))) as pool:
                    _run_all(todo, jobs, pool, bar, write, failures)
        written = [file for name in dict.fromkeys(job.variant for job in chosen) if (file := write(name))]
    if failures:
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        raise InputError(f"sweep {sweep.name}: {failures[0]}{more}; the other runs are kept, start it again to go on")
    return written


def _chosen(sweep: Sweep, planned: list[Job], only: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """The jobs of the variants and ensembles ``only``, and of those ensembles' members, with these ``seeds``; none given: all."""
    names = {*only, *(member for name in only for member in sweep.ensembles.get(name, ()))}
    return [job for job in planned if (not names or job.variant in names) and (not seeds or job.seed in seeds)]


def _check_chosen(sweep: Sweep, only: Sequence[str], seeds: Sequence[int], where: str) -> None:
    names = [*sweep.variants, *sweep.ensembles]
    for name in only:
        if name not in names:
            raise InputError(f"{where} has no variant {name!r}; {nearest(name, names)}")
    for seed in seeds:
        if seed not in sweep.seeds:
            raise InputError(f"{where} has no seed {seed}: its seeds are {', '.join(map(str, sweep.seeds))}")


def plan(sweep: Sweep, home: Path, data: Path, known: Mapping[tuple[str, str], dict[str, Any]] | None = None) -> list[Job]:
    """All runs of a sweep, seed by seed: those that are trained, and after them the ensembles of them.

    ``known``: what result files say of runs, by variant and hash.
    """
    data_hash, known = fingerprint(data), known or {}
    jobs = []
    for seed in sweep.seeds:
        own = {}
        for variant in sweep.variants:
            recipe = sweep.recipe(variant, seed).resolved()
            digest = _digest(recipe, data_hash)
            own[variant] = Job(variant, seed, home / variant / f"seed{seed}", data, recipe, digest, sweep.test, data_hash,
                               known=known.get((variant, digest)))
        ensembles = []
        for name, members in sweep.ensembles.items():
            parts = tuple(own[member] for member in members)
            recipe, digest = {"ensemble": {member: own[member].recipe for member in members}}, _digest(*(job.digest for job in parts))
            job = Job(name, seed, home / name / f"seed{seed}", data, recipe, digest, sweep.test, data_hash, parts, known.get((name, digest)))
            if not job.done:
                job = replace(job, members=tuple(replace(part, needs_model=True) for part in parts))
            ensembles.append(job)
        jobs += [*own.values(), *ensembles]
    return jobs


def _with_members(chosen: list[Job], planned: list[Job]) -> list[Job]:
    """``chosen``, and before them the members of their ensembles, which need the members' models unless they are done."""
    needed = {(member.variant, member.seed): member for job in chosen for member in job.members if not job.done}
    wanted = {(job.variant, job.seed) for job in chosen} | set(needed)
    return [needed.get((job.variant, job.seed), job) for job in planned if (job.variant, job.seed) in wanted]


def _known_runs(sweep: Sweep, out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """The runs in the result files of this sweep, by variant and hash, as metrics.json has them."""
    known = {}
    for variant in [*sweep.variants, *sweep.ensembles]:
        path = out / f"{sweep.name}__{variant}.json"
        results = read_results(path) if path.is_file() else []
        facts = results[0].config.get("runs", []) if results else []
        for place, fact in enumerate(facts):
            if "hash" in fact:
                known[variant, fact["hash"]] = {
                    **fact, "parameters": results[0].config.get("parameters"),
                    **{result.split: {name: metric.values[place] for name, metric in result.metrics.items()} for result in results}}
    return {key: run for key, run in known.items() if "test" in run or not sweep.test}


def run_job(job: Job) -> None:
    """Train one run, measure it, and write its metrics.json; a run that was stopped goes on."""
    started = time.perf_counter()
    begun = job.folder / BEGUN
    resume = begun.is_file() and read_json(begun).get("hash") == job.digest
    if not resume:
        for path in [*job.folder.rglob(LAST), job.folder / METRICS]:  # of every stage; what metrics.json tells must be there
            path.unlink(missing_ok=True)
        write_json(begun, {"hash": job.digest})
    reused = reuse_stages(job)
    run = run_recipe(Recipe.parse(job.recipe), job.folder, resume or reused, progress=False, data=job.data)
    histories = list(run.stages.values()) or [run.history]
    facts = {"train_seconds": round(sum(history.epochs[-1]["seconds"] for history in histories), 3),
             "best_epoch": run.history.best["epoch"],
             "curve": [_curve_point(row) for history in histories for row in history.epochs],
             "warnings": [": ".join(filter(None, [row.get("stage"), row["message"]]))
                          for history in histories for row in history.of("warning")]}
    _write_metrics(job, run.model, run.metrics, started, facts)


def reuse_stages(job: Job) -> bool:
    """Take over the first stages that a finished run of this sweep has in common: the same settings, data and seed give the same
    weights. True if there are any. A stage that this run has begun itself stays."""
    own = job.recipe.get("stages", [])[:-1]
    if not own:
        return False
    for path in sorted(job.folder.parents[1].glob(f"*/*/{METRICS}")):
        other = read_json(path)
        theirs = other["recipe"].get("stages", [])[:-1]
        if other.get("data_hash") != job.data_hash or own[:1] != theirs[:1]:
            continue
        for stage, same in zip(own, theirs):
            if stage != same:
                break
            if not (job.folder / stage["name"] / LAST).is_file():
                source, target = path.parent / stage["name"], job.folder / stage["name"]
                shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*", LAST))
                shutil.copy2(source / LAST, target / LAST)  # at the end: with it, the stage counts as trained
        return True
    return False


def _curve_point(row: dict[str, Any]) -> dict[str, Any]:
    return {name: round(row[name], 4) if isinstance(row[name], float) else row[name] for name in CURVE if name in row}


def run_ensemble(job: Job) -> None:
    """Measure the mean of the members' scores and write metrics.json."""
    started = time.perf_counter()
    model = Ensemble([load_model(member.folder / MODEL_FOLDER)[0] for member in job.members])
    _write_metrics(job, model, evaluate(model, job.data, split="val"), started, {})


def _write_metrics(job: Job, model: MatchingModel, val: dict[str, float], started: float, facts: dict[str, Any]) -> None:
    measured = {"val": val}
    if job.test:  # the last thing that happens to a run
        measured["test"] = evaluate(model, job.data, split="test")
    seconds = max(time.perf_counter() - started, facts.get("train_seconds", 0))  # a run that went on trained before, too
    write_json(job.folder / METRICS, {
        "hash": job.digest, "data_hash": job.data_hash, "variant": job.variant, "seed": job.seed, "recipe": job.recipe, "commit": commit_id(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": round(seconds, 3), **facts, **measured})


class _Results:
    """Writes the result file of a variant: a Result for val and one for test, a value a seed of the seeds that are done."""

    def __init__(self, sweep: Sweep, jobs: Sequence[Job], out: Path, command: str):
        self.sweep, self.jobs, self.out, self.command = sweep, jobs, out, command

    def __call__(self, variant: str) -> Path | None:
        """The file; None where no seed is done."""
        done = [(job, content) for job in self.jobs if job.variant == variant and (content := job.done)]
        if not done:
            return None
        sweep, data, runs = self.sweep, _data(self.sweep), [content for _, content in done]
        config = deepcopy({name: value for name, value in done[0][0].recipe.items() if name != "data"})
        for part in [config, *config.get("stages", [])]:
            part.get("train", {}).pop("seed", None)
        config["parameters"] = runs[0]["parameters"]
        config["runs"] = [{name: run[name] for name in RUN_FACTS if name in run} for run in runs]
        about = {
            "model": sweep.labels.get(variant, variant), "dataset": data.label, "variant": data.part,
            "seeds": [job.seed for job, _ in done], "profile": sweep.profile,
            "config": config, "command": self.command, "seconds": round(sum(run["seconds"] for run in runs), 3),
            "commit": " ".join(dict.fromkeys(run["commit"] for run in runs)),
        }
        splits = ("val", "test") if sweep.test else ("val",)
        results = [Result.from_runs([run[split] for run in runs], split=split, **about) for split in splits]
        return write_result(self.out / f"{sweep.name}__{variant}.json", results)


def fingerprint(folder: Path) -> str:
    """A hash of what a dataset folder holds: small files by content, large ones by size."""
    folder = Path(folder)
    digest = hashlib.sha256()
    needed = [folder / name for name in ("captions.jsonl", "splits.json", "vocabulary.json")]
    for path in [*needed, *sorted(path for pattern in DATA for path in folder.glob(pattern) if path.suffix != ".part")]:
        if not path.is_file():
            raise InputError(f"{folder} is no dataset folder, it has no {path.name}: make it first, for example with 'itm data'")
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}".encode())
        if size <= LARGE:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _workers(jobs: int) -> ProcessPoolExecutor:
    """Processes that begin when there is work. Not by fork, which would copy torch's threads in mid-work."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker)


def _run_all(todo: list[Job], jobs: int, pool: Executor, bar: tqdm, write: Callable[[str], Any], failures: list[str]) -> None:
    """Run all of ``todo``, ``jobs`` at a time, an ensemble as soon as its members are done; what fails is told in ``failures``."""
    waiting: dict[Future, Job] = {}
    left = list(todo)
    try:
        while left or waiting:
            while len(waiting) < jobs and (ready := _first_ready(left)):
                left.remove(ready)
                waiting[pool.submit(run_ensemble if ready.members else run_job, ready)] = ready
            if not waiting:  # what is left are ensembles of runs that failed
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                job = waiting.pop(future)
                error = future.exception()
                if error is None:
                    write(job.variant)
                else:
                    failures.append(_failure(job, error))
                bar.set_postfix_str(job.name)
                bar.update()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _first_ready(jobs: Sequence[Job]) -> Job | None:
    """An ensemble whose members are done, or else the first run that is trained."""
    ready = [job for job in jobs if all(member.done for member in job.members)]
    return next((job for job in ready if job.members), next(iter(ready), None))


def _failure(job: Job, error: BaseException) -> str:
    """One line about a failed run; the traceback of what is no wrong input goes to error.txt in the run's folder."""
    if isinstance(error, InputError):
        return f"{job.name} failed: {error}"
    if isinstance(error, BrokenProcessPool):
        return f"{job.name} was ended with its process, perhaps for want of memory: use fewer jobs"
    write_text(job.folder / "error.txt", "".join(traceback.format_exception(error)))
    return f"{job.name} failed with {type(error).__name__}, see {job.folder / 'error.txt'}"


def _start_worker() -> None:
    """One thread a run, and no run that outlives the sweep."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _data(sweep: Sweep) -> DataSection:
    return sweep.recipe(next(iter(sweep.variants)), sweep.seeds[0]).data


def _shown(path: Path) -> str:
    """The path as a command shows it: from the checkout, where it lies in it."""
    path = path.resolve()
    root = project_root().resolve()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
