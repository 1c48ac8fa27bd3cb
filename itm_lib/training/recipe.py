"""Recipes: data, model and training of one run as a YAML file, checked before anything is computed.

::

    data:  {name: openmoji_scenes, variant: default, size: quick, seed: 0}     # or {folder: path/to/dataset}
    model: {method: scan, direction: t2i, embed_dim: 64}                       # settings of the model's config
    train: {epochs: 20, batch_size: 64, lr: 2e-3}                              # fields of TrainConfig

Recipes that come with the library are found by name, "embedded/scan_ti_avg" or "scan_ti_avg".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

import itm_lib
from itm_lib.data.dataset import open_split
from itm_lib.evaluation import evaluate
from itm_lib.files import InputError, nearest, write_text
from itm_lib.models import MatchingModel, build_model, model_classes
from itm_lib.training.config import TrainConfig, problem_line
from itm_lib.training.state import History, seed_everything
from itm_lib.training.trainer import Trainer

RECIPES = Path(itm_lib.__file__).parent / "assets" / "recipes"
FROM_DATA = {"region_dim": 1, "vocab_size": 4}  # stand-ins for what the data decides, to check the other settings
MODEL_FOLDER = "model"


class DataSection(BaseModel):
    """The embedded dataset by ``variant``, ``size`` and ``seed``, or a dataset ``folder``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["openmoji_scenes"] | None = None
    variant: Literal["default", "many_to_many"] = "default"
    size: Literal["smoke", "quick", "full"] = "quick"
    seed: int = Field(0, ge=0)
    folder: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        if (self.name is None) == (self.folder is None):
            raise ValueError("give either data.name or data.folder")
        if self.folder is not None and self.model_fields_set - {"folder", "name"}:
            raise ValueError("variant, size and seed belong to data.name, not to data.folder")
        return self

    @property
    def label(self) -> str:
        """What results call the dataset."""
        return self.name or Path(self.folder).name

    def prepare(self, progress: bool = True) -> Path:
        """The dataset folder; the embedded dataset is generated and its features extracted if they are not there yet."""
        if self.folder is not None:
            return Path(self.folder).expanduser()
        from itm_lib.data import scenes

        return scenes.prepare(self.variant, self.size, self.seed, progress=progress)


class Recipe(BaseModel):
    """One run. ``model`` is ``method`` and the settings of that method's config; what is left out has its default.

    Make one with :func:`load_recipe` or :meth:`parse`, which check all of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: DataSection
    model: dict[str, Any]
    train: TrainConfig

    @classmethod
    def parse(cls, content: Any, where: str = "recipe") -> Recipe:
        """The recipe in ``content``, as YAML gives it. A wrong key or value is one line naming ``where`` and the key."""
        sections = _mapping(content, where, "")
        for name in sections:
            if name not in cls.model_fields:
                raise InputError(f"{where}: unknown key {name!r}; {nearest(name, cls.model_fields)}")
        for name in cls.model_fields:
            if name not in sections:
                raise InputError(f"{where}: {name!r} is missing; a recipe has the sections data, model and train")
        data, model, train = (_mapping(sections[name], where, name) for name in ("data", "model", "train"))
        return cls(data=_checked_data(data, where), model=_checked_model(model, where), train=_checked_train(train, where))

    @property
    def method(self) -> str:
        return self.model["method"]

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as JSON values; the data's sizes left out of the model's."""
        config = model_classes(self.method)[1](**_settings(self.model), **FROM_DATA)
        model = {"method": self.method, **config.model_dump(mode="json", exclude=set(FROM_DATA))}
        data = self.data.model_dump(mode="json", exclude_none=True)
        if self.data.folder is not None:
            data = {"folder": self.data.folder}
        return {"data": data, "model": model, "train": self.train.model_dump(mode="json")}

    def build(self, region_dim: int, vocabulary_size: int) -> MatchingModel:
        """The model, with random weights of the current seed."""
        return build_model(self.method, _settings(self.model), region_dim, vocabulary_size)


@dataclass
class Run:
    """What :func:`run_recipe` gives: the trained model, its history, its metrics on val, and where it is saved."""

    model: MatchingModel
    history: History
    metrics: dict[str, float]
    folder: Path


def recipe_names() -> list[str]:
    """The recipes that come with the library."""
    return sorted(path.relative_to(RECIPES).with_suffix("").as_posix() for path in RECIPES.rglob("*.yaml"))


def load_recipe(name_or_path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe of that name, or in that file, with ``overrides`` like ``"train.lr=1e-3"`` laid over it."""
    return Recipe.parse(override(read_yaml(_find(str(name_or_path))), overrides), f"recipe {name_or_path}")


def run_recipe(recipe: Recipe, out_dir: str | Path, resume: bool = False, progress: bool = True,
               on_epoch: Callable[[History], None] | None = None, data: Path | None = None) -> Run:
    """Train ``recipe`` and measure the best model on val. The folder gets recipe.yaml, the run's files and model/.

    ``data``: the dataset folder, where ``recipe.data`` is prepared already. The test split is not opened here:
    :func:`itm_lib.evaluation.evaluate` does that, once, after every choice.
    """
    out_dir = Path(out_dir)
    folder = data if data is not None else recipe.data.prepare(progress)
    train, val = open_split(folder, "train"), open_split(folder, "val")
    seed_everything(recipe.train.seed)
    model = recipe.build(train.regions.dim, len(train.vocabulary))
    trainer = Trainer(model, train, val, recipe.train, out_dir, progress, on_epoch)
    history = trainer.fit(resume)
    write_text(out_dir / "recipe.yaml", yaml.safe_dump(recipe.resolved(), sort_keys=False))
    model.save_pretrained(out_dir / MODEL_FOLDER, train.vocabulary, {"recipe": recipe.resolved()})
    return Run(model, history, evaluate(model, folder, split="val"), out_dir)


def override(content: Any, overrides: Iterable[str]) -> Any:
    """``content`` with each ``section.key=value`` set; the value is read as YAML."""
    content = {name: dict(part) if isinstance(part, Mapping) else part for name, part in content.items()} \
        if isinstance(content, Mapping) else content
    for text in overrides:
        key, equals, value = text.partition("=")
        section, dot, name = key.strip().partition(".")
        if not (equals and dot and section and name):
            raise InputError(f"cannot read the override {text!r}: write it as section.key=value, for example train.lr=1e-3")
        if not isinstance(content, Mapping) or not isinstance(content.setdefault(section, {}), Mapping):
            raise InputError(f"cannot set {key!r}: the recipe has no section {section!r}")
        try:
            content[section][name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"cannot read the value of the override {text!r}: it is not valid YAML") from None
    return content


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


def _find(name: str) -> Path:
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return Path(name)
    names = recipe_names()
    found = [known for known in names if known == name or known.rpartition("/")[2] == name]
    if len(found) == 1:
        return RECIPES / f"{found[0]}.yaml"
    if found:
        raise InputError(f"the recipe name {name!r} could be {' or '.join(found)}: give the longer name")
    raise InputError(f"no recipe is called {name!r}; {nearest(name, names)}; or give the path of a .yaml file")


def _mapping(content: Any, where: str, section: str) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        what = f"section {section!r}" if section else "the recipe"
        raise InputError(f"{where}: {what} must be a mapping of names to values, not {content!r:.40}")
    return {str(key): value for key, value in content.items()}


def _checked_data(data: dict[str, Any], where: str) -> DataSection:
    try:
        return DataSection(**data)
    except ValidationError as error:
        raise InputError(f"{where}: {problem_line(error, DataSection.model_fields, 'data.')}") from None


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


def _settings(model: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in model.items() if name != "method"}
