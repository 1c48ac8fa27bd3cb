"""Recipes: data, model and training of one run as a YAML file, checked before anything is computed.

::

    paper: {dataset: flickr30k, variant: "t-i AVG", settings: published}       # if it is a row of a paper's table
    data:  {name: openmoji_scenes, variant: default, size: quick, seed: 0}     # or {folder: path/to/dataset}, or with
                                                                               # {folder: ..., subset: ids.json} a part of it
    model: {method: scan, direction: t2i, embed_dim: 64}                       # settings of the model's config
    train: {epochs: 20, batch_size: 64, lr: 2e-3}                              # fields of TrainConfig
    stages:                                                                    # if it is trained in stages
      - {name: warm_start, model: {negatives: all}, train: {epochs: 5}}        # laid over model and train
      - {name: fine_tune, train: {lr: 2e-4, freeze: [image]}}

Stages are trained one after the other, each with its own optimizer, schedule, warm-up and best epoch on val. A stage starts with
the best weights of the stage before, wherever a tensor's name and shape are in both models; what is new has random weights of
the seed. The final stage's files are where a run without stages has them, those of the others in a folder of the stage's name.

``paper`` names the published row that the recipe is for, as data/paper_results.yaml has it: ``variant`` of its method, null where
no number is published; and whether the ``settings`` are published, too, or ours, chosen on val.

Recipes that come with the library are found by name: "flickr30k/scan_ti_avg", "flickr8k/scan_ti_avg", "embedded/scan_ti_avg". A short name,
"scan_ti_avg", is that of the embedded dataset, or of Flickr8k where a folder of other pictures is given: drawings and photographs
want other settings.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tqdm import tqdm

import itm_lib
from itm_lib.data.dataset import ImageCaptionDataset, open_split, read_meta
from itm_lib.data.subset import make_subset
from itm_lib.evaluation import evaluate
from itm_lib.evaluation.scoring import over_all_processes
from itm_lib.files import InputError, data_dir, nearest, project_root, read_json, write_json, write_text
from itm_lib.models import MatchingModel, build_model, load_model, model_classes
from itm_lib.models.base import ModelConfig, vocabulary_for
from itm_lib.processes import all_or_none, from_main, is_main, main_first
from itm_lib.training.config import PRACTICAL, TrainConfig, problem_line
from itm_lib.training.provenance import about_data, about_training
from itm_lib.training.state import History, differences, seed_everything, sole_use
from itm_lib.training.trainer import BEST, HISTORY, LAST, Trainer

RECIPES = Path(itm_lib.__file__).parent / "assets" / "recipes"
FROM_DATA = {"region_dim": 1, "vocab_size": 4}  # stand-ins for what the data decides, to check the other settings
MODEL_FOLDER = "model"
DONE = "val.json"  # of a finished run: its recipe, and the best model's metrics on val
PREFERRED, PHOTOGRAPHS = "embedded", "flickr8k"  # what a short name means where several folders have it: on drawings, and on other pictures
STAGE_NAME = r"[A-Za-z0-9][A-Za-z0-9_-]*"  # it names a folder, and stands between dots in overrides


class DataSection(BaseModel):
    """The embedded dataset by ``variant``, ``size`` and ``seed``, or a dataset ``folder``, or the part of it that the file ``subset`` lists."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["openmoji_scenes"] | None = None
    variant: Literal["default", "many_to_many"] = "default"
    size: Literal["smoke", "quick", "full"] = "quick"
    seed: int = Field(0, ge=0)
    folder: str | None = None
    subset: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.name is None) == (self.folder is None):
            raise ValueError("give either data.name or data.folder")
        if self.folder is not None and self.model_fields_set - {"folder", "name", "subset"}:
            raise ValueError("variant, size and seed belong to data.name, not to data.folder")
        if self.name is not None and self.subset is not None:
            raise ValueError("subset is a part of data.folder: the embedded dataset has sizes")
        return self

    @property
    def label(self) -> str:
        """What results call the dataset."""
        return self.name or Path(self.folder).name

    @property
    def part(self) -> str:
        """Which part or variant of it, as results call it: "default-quick", the name of a subset's file, or nothing."""
        if self.name:
            return f"{self.variant}-{self.size}"
        return Path(self.subset).stem.removesuffix("_ids").removeprefix(f"{self.label}_") if self.subset else ""

    def prepare(self, progress: bool = True, regions: bool = True) -> Path:
        """The dataset folder; the embedded dataset is generated, and its ``regions`` extracted, if they are not there yet.

        Models of pixels need no regions.
        """
        if self.folder is not None:
            return self._place() if self.subset is None else self._part()
        from itm_lib.data import scenes

        make = scenes.prepare if regions else scenes.build
        return make(self.variant, self.size, self.seed, progress=progress)

    def _part(self) -> Path:
        """The folder of the subset, made if it is not there yet, beside the whole one."""
        whole = self._place()
        places = (Path(self.subset).expanduser(), data_dir() / self.subset, project_root() / "data" / "sweeps" / self.subset)
        ids = next((place for place in places if place.is_file()), None)
        if ids is None:
            raise InputError(f"no file {self.subset} with the ids of data.subset: give its path")
        return make_subset(whole, ids, whole.with_name(f"{whole.name}_{ids.stem.removesuffix('_ids').removeprefix(f'{whole.name}_')}"))

    def _place(self) -> Path:
        """The folder: the path, or else one below the data folder."""
        folder = Path(self.folder).expanduser()
        for place in (folder, data_dir() / folder):
            if place.is_dir():
                return place
        raise InputError(f"no dataset folder {folder}: make it first, with 'itm data prepare', or say where it is with --data")


class PaperSection(BaseModel):
    """The published row that a recipe is for; ``variant`` of the recipe's method in data/paper_results.yaml, or null."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: Literal["flickr30k", "coco"]
    variant: str | None
    settings: Literal["published", "ours, chosen on val"]


class Stage(BaseModel):
    """One stage of a recipe: its settings laid over those of the recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: dict[str, Any]
    train: TrainConfig

    @property
    def config(self) -> ModelConfig:
        """The model's settings, with stand-ins for what the data decides."""
        return model_classes(self.model["method"])[1](**_settings(self.model), **FROM_DATA)

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as JSON values; the data's sizes left out of the model's."""
        model = {"method": self.model["method"], **self.config.model_dump(mode="json", exclude=set(FROM_DATA))}
        return {"name": self.name, "model": model, "train": self.train.model_dump(mode="json")}

    def build(self, region_dim: int | None, vocabulary_size: int) -> MatchingModel:
        """The model, with random weights of the current seed."""
        return build_model(self.model["method"], _settings(self.model), region_dim, vocabulary_size)


class Recipe(BaseModel):
    """One run. ``model`` is ``method`` and the settings of that method's config; what is left out has its default.

    Make one with :func:`load_recipe` or :meth:`parse`, which check all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: PaperSection | None = None
    data: DataSection
    model: dict[str, Any]
    train: TrainConfig
    stages: tuple[Stage, ...] = ()

    @classmethod
    def parse(cls, content: Any, where: str = "recipe") -> Recipe:
        """The recipe in ``content``, as YAML gives it. A wrong key or value is one line naming ``where`` and the key."""
        sections = _mapping(content, where, "")
        for name in sections:
            if name not in cls.model_fields:
                raise InputError(f"{where}: unknown key {name!r}; {nearest(name, cls.model_fields)}")
        for name in ("data", "model", "train"):
            if name not in sections:
                raise InputError(f"{where}: {name!r} is missing; a recipe has the sections data, model and train")
        data, model, train = (_mapping(sections[name], where, name) for name in ("data", "model", "train"))
        paper = _checked_section(PaperSection, "paper", sections["paper"], where) if sections.get("paper") is not None else None
        return cls(paper=paper, data=_checked_section(DataSection, "data", data, where), model=_checked_model(model, where), train=_checked_train(train, where),
                   stages=_checked_stages(sections.get("stages"), model, train, where))

    @property
    def method(self) -> str:
        return self.model["method"]

    @property
    def plan(self) -> tuple[Stage, ...]:
        """What is trained, in order: the stages, or the recipe itself as one without a name."""
        return self.stages or (Stage(name="", model=self.model, train=self.train),)

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as JSON values; the data's sizes left out of the models'."""
        base = Stage(name="", model=self.model, train=self.train).resolved()
        data = self.data.model_dump(mode="json", exclude_none=True)
        if self.data.folder is not None:
            data = {"folder": self.data.folder, **({"subset": self.data.subset} if self.data.subset else {})}
        stages = {"stages": [stage.resolved() for stage in self.stages]} if self.stages else {}
        paper = {"paper": self.paper.model_dump(mode="json")} if self.paper else {}
        return {**paper, "data": data, "model": base["model"], "train": base["train"], **stages}

    def seeded(self, seed: int) -> Recipe:
        """The recipe with another ``train.seed``, in all its stages."""
        change = lambda part: part.model_copy(update={"train": TrainConfig(**{**part.train.model_dump(), "seed": seed})})  # noqa: E731
        return change(self).model_copy(update={"stages": tuple(map(change, self.stages))})

    def build(self, region_dim: int | None, vocabulary_size: int) -> MatchingModel:
        """The model that comes out, the final stage's, with random weights of the current seed."""
        return self.plan[-1].build(region_dim, vocabulary_size)


@dataclass
class Run:
    """What :func:`run_recipe` gives: the trained model, its history, its metrics on val, and where it is saved.

    ``stages``: the history of each stage by its name, in order; empty for a recipe without stages.
    """

    model: MatchingModel
    history: History
    metrics: dict[str, float]
    folder: Path
    stages: dict[str, History] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def paper_recipe_names() -> list[str]:
    """The recipes for the rows of the papers' tables, on Flickr30K and COCO."""
    return [name for name in recipe_names() if name.startswith(("flickr30k/", "coco/"))]


def paper_recipes() -> dict[str, dict[str, Any]]:
    """The recipes for the rows of the papers' tables, by their names: every setting of each."""
    return {name: load_recipe(name).resolved() for name in paper_recipe_names()}


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = (), data: str | Path | None = None) -> Recipe:
    """The recipe of that name, or in that file, with ``overrides`` laid over it.

    An override is ``"train.lr=1e-3"``, or ``"stages.fine_tune.train.lr=1e-3"`` for the stage of that name. ``data``: a dataset
    folder, which takes the place of the recipe's data.
    """
    drawings = data is None or "fingerprint" in read_meta(data)  # OpenMoji Scenes name their generator
    content = read_yaml(_find(str(name_or_path), PREFERRED if drawings else PHOTOGRAPHS))
    if data is not None and isinstance(content, Mapping):
        content = {**content, "data": {"folder": str(data)}}
    return Recipe.parse(override(content, overrides), f"recipe {name_or_path}")


def run_recipe(recipe: Recipe, out_dir: str | Path, resume: bool = False, progress: bool = True,
               on_epoch: Callable[[History], None] | None = None, data: Path | None = None) -> Run:
    """Train ``recipe`` and measure the best model on val. The folder gets recipe.yaml, the run's files and model/.

    ``data``: the dataset folder, where ``recipe.data`` is prepared already. The test split is not opened here:
    :func:`itm_lib.evaluation.evaluate` does that, once, after every choice.

    In several processes every one calls it, with the same arguments, and gets the Run; the main one prepares and writes.
    """
    out_dir, progress = Path(out_dir), progress and is_main()
    pixels = recipe.plan[-1].config.pixels
    with main_first():
        folder = data if data is not None else recipe.data.prepare(progress, regions=pixels is None)
        vocabulary = vocabulary_for(recipe.plan[-1].config)
    with all_or_none():
        train, val = (open_split(folder, split, vocabulary=vocabulary, pixels=pixels) for split in ("train", "val"))
    metadata: dict[str, Any] = {"recipe": recipe.resolved(), "data": about_data(recipe.data, train, val)}
    with sole_use(out_dir, ".stages.lock") if recipe.stages else contextlib.nullcontext():
        if is_main():
            (out_dir / DONE).unlink(missing_ok=True)
        with all_or_none():
            trainers = _trainers(recipe, train, val, out_dir, progress, on_epoch)
        if recipe.stages and not resume and is_main():
            for trainer in reversed(trainers):  # no later stage may go on from where another run left it
                (trainer.out_dir / LAST).unlink(missing_ok=True)
        for number, trainer in enumerate(trainers):
            start = _take_over(trainer, trainers[number - 1]) if number else None
            if trainer.stage and progress:
                tqdm.write(_stage_line(number, trainers, start), file=sys.stderr)
            history = trainer.fit(resume, start)
            if trainer.stage:
                done = {"stage": trainer.stage, "best_epoch": history.best["epoch"], **(start or {})}
                metadata["stages"] = [*metadata.get("stages", []), done]
            if is_main():
                _save_model(trainer, {**metadata, **about_training(trainers[: number + 1])})
        if is_main():
            write_text(out_dir / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
    histories = {trainer.stage: trainer.history for trainer in trainers if trainer.stage}
    with over_all_processes():
        metrics = from_main(evaluate(trainer.model, folder, split="val"))
    if is_main():
        write_json(out_dir / DONE, {"recipe": recipe.resolved(), "metrics": metrics})
    return Run(trainer.model, history, metrics, out_dir, histories)


def run_seeds(recipe: Recipe, seeds: Iterable[int], out_dir: str | Path, resume: bool = True, progress: bool = True,
              data: Path | None = None) -> list[Run]:
    """Train ``recipe`` with each of ``seeds`` into ``out_dir``/seed<k>, one after the other; see :func:`run_recipe`.

    With ``resume`` what is finished is read, and what was stopped goes on; a folder that holds another recipe's run is refused.
    """
    seeds = list(seeds)
    if not seeds or len(set(seeds)) != len(seeds):
        raise InputError(f"seeds {seeds}: give at least one, each once")
    runs = []
    for seed in seeds:
        own, folder = recipe.seeded(seed), Path(out_dir) / f"seed{seed}"
        if from_main(resume and (folder / DONE).is_file()):
            runs.append(_finished(own, folder))
            continue
        if progress and is_main() and len(seeds) > 1:
            tqdm.write(f"seed {seed}, number {len(runs) + 1} of {len(seeds)}", file=sys.stderr)
        runs.append(run_recipe(own, folder, resume, progress, data=data))
    return runs


def _finished(recipe: Recipe, folder: Path) -> Run:
    """The finished run in ``folder``, which must be of ``recipe``."""
    done = read_json(folder / DONE)
    for key, there, here in differences(_numbers(done["recipe"]), _numbers(recipe.resolved())):
        raise InputError(f"{folder} holds a run of another recipe: {key} is {there} there and {here} here; give another folder, or "
                         "train anew")
    places = {stage.name: folder if stage is recipe.plan[-1] else folder / stage.name for stage in recipe.plan}
    histories = {name: History.load(place / HISTORY) for name, place in places.items()}
    last = histories[recipe.plan[-1].name]
    return Run(load_model(folder / MODEL_FOLDER)[0], last, done["metrics"], folder, histories if recipe.stages else {})


def _numbers(resolved: dict[str, Any]) -> dict[str, Any]:
    """A resolved recipe less what changes no number."""
    less = lambda part: {**part, "train": {key: value for key, value in part["train"].items() if key not in PRACTICAL}}  # noqa: E731
    stages = {"stages": {stage["name"]: less(stage) for stage in resolved["stages"]}} if "stages" in resolved else {}
    return {**less(resolved), **stages}


def _trainers(recipe: Recipe, train: ImageCaptionDataset, val: ImageCaptionDataset, out_dir: Path, progress: bool,
              on_epoch: Callable[[History], None] | None) -> list[Trainer]:
    """One trainer a stage, each with a model of its own, so that whatever does not fit is told before anything is trained."""
    trainers: list[Trainer] = []
    for stage in recipe.plan:
        seed_everything(stage.train.seed)
        model = stage.build(train.regions.dim, len(train.vocabulary))
        if trainers and not shared_tensors(trainers[-1].model, model):
            raise InputError(f"stage {stage.name!r} has no tensor whose name and shape stage {trainers[-1].stage!r} has too, so it "
                             "cannot start from it: keep sizes like embed_dim and word_dim the same")
        folder = out_dir if stage is recipe.plan[-1] else out_dir / stage.name
        trainers.append(Trainer(model, train, val, stage.train, folder, progress, on_epoch, stage.name))
    for number, trainer in enumerate(trainers):
        later = [(each.config.epochs * each.steps_per_epoch, each.config.evaluations()) for each in trainers[number + 1 :]]
        trainer.ahead = sum(steps for steps, _ in later), sum(evaluations for _, evaluations in later)
    return trainers


def _save_model(trainer: Trainer, metadata: dict[str, Any]) -> None:
    folder = trainer.out_dir / MODEL_FOLDER
    for part in folder.glob(".saving-*"):  # of a write that a kill cut short
        shutil.rmtree(part)
    trainer.model.save_pretrained(folder, trainer.train.vocabulary, metadata)


def shared_tensors(first: MatchingModel, second: MatchingModel) -> list[str]:
    """The names of parameters and buffers that both models have in the same shape."""
    other = first.state_dict()
    return [name for name, value in second.state_dict().items() if name in other and other[name].shape == value.shape]


def _take_over(trainer: Trainer, before: Trainer) -> dict[str, Any]:
    """Give the trainer's model the weights that it shares with the trained one of ``before``; says what was taken."""
    own, other = trainer.model.state_dict(), before.model.state_dict()
    taken = shared_tensors(before.model, trainer.model)
    with torch.no_grad():
        for name in taken:
            own[name].copy_(other[name])
    weights = hashlib.sha256((before.out_dir / BEST).read_bytes()).hexdigest()
    return {"after": before.stage, "taken": len(taken), "tensors": len(own), "weights": weights}


def _stage_line(number: int, trainers: list[Trainer], start: dict[str, Any] | None) -> str:
    origin = f", {start['taken']} of {start['tensors']} tensors from {start['after']}" if start else ""
    return f"stage {number + 1} of {len(trainers)}: {trainers[number].stage}{origin}"


def override(content: Any, overrides: Iterable[str]) -> Any:
    """``content`` with each ``section.key=value`` and ``stages.name.section.key=value`` set; the value is read as YAML."""
    content = deepcopy(content)
    for text in overrides:
        key, equals, value = text.partition("=")
        *place, name = key.strip().split(".")
        if not (equals and name and place and all(place)):
            raise InputError(f"cannot read the override {text!r}: write it as section.key=value, for example train.lr=1e-3")
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"cannot read the value of the override {text!r}: it is not valid YAML") from None
        _section(content, place, key)[name] = parsed
    return content


def _section(content: Any, place: list[str], key: str) -> dict[str, Any]:
    """The section that an override speaks of: ["train"], or ["stages", name of the stage, "train"]."""
    if place[0] == "stages":
        stages = content.get("stages") if isinstance(content, Mapping) else None
        stages = {str(stage.get("name")): stage for stage in stages or [] if isinstance(stage, dict)} if isinstance(stages, list) else {}
        if not stages:
            raise InputError(f"cannot set {key!r}: the recipe has no stages")
        if len(place) != 3:
            raise InputError(f"cannot set {key!r}: write it as stages.name.section.key, for example "
                             f"stages.{next(iter(stages))}.train.lr=1e-3")
        if place[1] not in stages:
            raise InputError(f"cannot set {key!r}: no stage is called {place[1]!r}; {nearest(place[1], stages)}")
        content, place = stages[place[1]], place[2:]
    if len(place) != 1 or not isinstance(content, dict) or not isinstance(content.setdefault(place[0], {}), dict):
        raise InputError(f"cannot set {key!r}: the recipe has no section {'.'.join(place)!r}")
    return content[place[0]]


def read_yaml(path: Path) -> Any:
    """What the YAML file ``path`` holds. Raises :class:`InputError` with the line where it is broken."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no file {path}: check the path") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{place} is not valid YAML ({getattr(error, 'problem', None) or 'broken'}): mend it") from None


def _find(name: str, preferred: str = PREFERRED) -> Path:
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    names = recipe_names()
    found = [known for known in names if known == name or known.rpartition("/")[2] == name]
    for folder in (preferred, PREFERRED):
        if f"{folder}/{name}" in found:
            return RECIPES / folder / f"{name}.yaml"
    if len(found) == 1:
        return RECIPES / f"{found[0]}.yaml"
    if found:
        raise InputError(f"the recipe name {name!r} could be {' or '.join(found)}: give the longer name")
    close = nearest(name if "/" in name else f"{PREFERRED}/{name}", names)
    raise InputError(f"no recipe is called {name!r}; {close}; or give the path of a .yaml file")


def _mapping(content: Any, where: str, section: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        what = f"section {section!r}" if section else "the recipe"
        raise InputError(f"{where}: {what} must be a mapping of names to values, not {content!r:.40}")
    return {str(key): value for key, value in content.items()}


def _checked_section(kind: type[BaseModel], name: str, content: Any, where: str) -> Any:
    """The section ``name`` as the model ``kind`` of it."""
    content = _mapping(content, where, name)
    try:
        return kind(**content)
    except ValidationError as error:
        raise InputError(f"{where}: {problem_line(error, kind.model_fields, f'{name}.')}") from None


def _checked_train(train: dict[str, Any], where: str) -> TrainConfig:
    try:
        return TrainConfig(**train)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _checked_model(model: dict[str, Any], where: str) -> dict[str, Any]:
    if "method" not in model:
        raise InputError(f"{where}: 'model.method' is missing; for example method: scan")
    try:
        config_class = model_classes(model["method"])[1]
    except InputError as error:
        raise InputError(f"{where}: model.method: {error}") from None
    known = [name for name in config_class.model_fields if name not in FROM_DATA]
    for name in FROM_DATA:
        if name in model:
            raise InputError(f"{where}: 'model.{name}' comes from the data: leave it out")
    try:
        config_class(**_settings(model), **FROM_DATA)
    except ValidationError as error:
        raise InputError(f"{where}: {problem_line(error, ['method', *known], 'model.')}") from None
    return model


def _checked_stages(content: Any, model: dict[str, Any], train: dict[str, Any], where: str) -> tuple[Stage, ...]:
    if content is not None and not isinstance(content, list):
        raise InputError(f"{where}: 'stages' must be a list of stages, each with a name, not {content!r:.40}")
    stages: list[Stage] = []
    for number, each in enumerate(content or [], 1):
        part = _mapping(each, where, f"stages, number {number}")
        name = part.get("name")
        if not isinstance(name, str) or not re.fullmatch(STAGE_NAME, name) or name == MODEL_FOLDER:
            raise InputError(f"{where}: stage number {number} needs a name of letters, digits, '_' and '-', other than "
                             f"{MODEL_FOLDER!r}, not {name!r:.40}")
        if name in [stage.name for stage in stages]:
            raise InputError(f"{where}: two stages are called {name!r}")
        for key in part:
            if key not in Stage.model_fields:
                raise InputError(f"{where}: unknown key 'stages.{name}.{key}'; {nearest(key, Stage.model_fields)}")
        place = f"{where}, stage {name}"
        own = {section: _mapping(part.get(section) or {}, place, section) for section in ("model", "train")}
        if own["model"].get("method", model["method"]) != model["method"]:
            raise InputError(f"{place}: model.method is {own['model']['method']!r}, the recipe's is {model['method']!r}: "
                             "all stages train one method")
        stages.append(Stage(name=name, model=_checked_model({**model, **own["model"]}, place),
                            train=_checked_train({**train, **own["train"]}, place)))
        if (stages[0].config.token_kind, stages[0].config.tokenizer) != (stages[-1].config.token_kind, stages[-1].config.tokenizer):
            raise InputError(f"{place}: it reads other tokens than stage {stages[0].name!r}: all stages share one text encoder")
        if stages[0].config.pixels != stages[-1].config.pixels:
            raise InputError(f"{place}: it reads pictures otherwise than stage {stages[0].name!r}: all stages share image_encoder, "
                             "image_size, crop and flip")
    return tuple(stages)


def _settings(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "method"}
