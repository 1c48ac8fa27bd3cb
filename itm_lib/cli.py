"""``itm``: the command line. An error of the user's is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError

from itm_lib.files import InputError, data_dir, nearest, project_root, validation_line

if TYPE_CHECKING:
    from itm_lib.evaluation.report import Result

# Modules that take seconds to import (torch, papermill) are imported inside the command that needs them.

SIZE_OF_PROFILE = {"smoke": "smoke", "course": "quick", "paper": "full"}  # the embedded dataset's sizes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Image-text matching: the course, its data, training and evaluation.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build and check datasets.")
app.add_typer(data_app, name="data")

ProfileOption = Annotated[str, typer.Option(help="smoke (minutes), course (a laptop) or paper (GPU, real datasets)")]
SeedOption = Annotated[int, typer.Option(min=0, help="seed of everything random")]


@app.command()
def course(
    profile: ProfileOption = "course",
    notebook: Annotated[list[str] | None, typer.Option(help="one notebook, by name or number; may be repeated")] = None,
    param: Annotated[list[str] | None, typer.Option(help="name=value of a notebook's parameters; may be repeated")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="run again what is complete already")] = False,
    source: Annotated[Path | None, typer.Option(help="folder of the notebooks; default: notebooks/ of the checkout")] = None,
    runs: Annotated[Path | None, typer.Option(help="folder of the runs; default: runs/ of the checkout")] = None,
) -> None:
    """Run the notebooks in order, each into a folder of its own, and write an index page."""
    from itm_lib import runner
    from itm_lib.course import runs_dir

    runs = runs or runs_dir()
    chosen = runner.find_notebooks(source or project_root() / "notebooks", notebook or [])
    planned = runner.plan(chosen, profile, runner.parse_parameters(param or []), runs)
    try:
        _prepare_scenes("default", SIZE_OF_PROFILE[profile], 0)
        failed = runner.run_all(planned, fresh)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # the kernel that was just ended is no news
        print("itm: stopped; the same command goes on where it was", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        if (runs / profile).is_dir():
            from itm_lib.pages import write_index

            index = write_index(runs, profile)
    print(f"{len(planned) - len(failed)} of {len(planned)} notebooks complete; open {runner.shown(index)}")
    raise typer.Exit(1 if failed else 0)


def _prepare_scenes(variant: str, size: str, seed: int) -> Path:
    from itm_lib.data import scenes

    return scenes.prepare(variant, size, seed)


@data_app.command("scenes")
def data_scenes(
    variant: Annotated[str, typer.Option(help="default, or many_to_many")] = "default",
    size: Annotated[str, typer.Option(help="smoke, quick or full")] = "quick",
    seed: SeedOption = 0,
) -> None:
    """Build the embedded dataset: pictures, captions, truth, foils and region features. Built once, then kept."""
    from itm_lib.runner import shown

    print(shown(_prepare_scenes(variant, size, seed)))


@data_app.command("train-encoder")
def data_train_encoder(
    out: Annotated[Path, typer.Option(help="file of the weights (.safetensors)")],
    crops: Annotated[int | None, typer.Option(min=1, help="number of training crops; default: the shipped weights'")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="default: the shipped weights'")] = None,
    seed: SeedOption = 0,
) -> None:
    """Train the region encoder of the embedded dataset anew; the shipped weights stay as they are."""
    from itm_lib.features.region_encoder import EncoderTraining, train_region_encoder

    def show(row: dict[str, float]) -> None:
        print(", ".join(f"{name} {value:.1f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()))

    given = {name: value for name, value in {"num_crops": crops, "epochs": epochs}.items() if value is not None}
    settings = EncoderTraining(**given, seed=seed)
    train_region_encoder(settings.num_crops, settings.epochs, seed, out=out, settings=settings, on_epoch=show)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="a dataset folder")],
    checksums: Annotated[bool, typer.Option("--checksums", help="read every region too, and hold it against its checksum")] = False,
) -> None:
    """Read every split of a dataset folder and say what is in it; what does not fit together is named."""
    from itm_lib.evaluation import describe

    for line in describe(folder, checksums, progress=True):
        print(line)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of one that comes with itm_lib")],
    out: Annotated[Path, typer.Option(help="folder of the run: the model, its history, and its state for going on")],
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe: train.epochs=5, stages.NAME.train.lr=1e-3")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of going on with the run in --out")] = False,
) -> None:
    """Train a model by a recipe, stage by stage if it has stages, and measure it on val. A stopped run goes on, with the same numbers."""
    from itm_lib.training.recipe import load_recipe, run_recipe

    run = run_recipe(load_recipe(recipe, override or []), out, resume=not fresh)
    _print_metrics(run.metrics)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a sweep file: variants and seeds of a recipe")],
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="make every run again")] = False,
) -> None:
    """Train every run of a sweep and write the results; runs that are done are kept."""
    from itm_lib.runner import shown
    from itm_lib.training.sweep import run_sweep

    for path in run_sweep(file, jobs, fresh=fresh):
        print(shown(path))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(help="a model folder")],
    data: Annotated[Path, typer.Option(help="a dataset folder")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file too")] = None,
    save_scores: Annotated[Path | None, typer.Option(help="keep the score matrix and its ids: FILE.npy or FILE.safetensors")] = None,
) -> None:
    """Measure a model on one split of a dataset: recalls, rsum and what else the dataset allows."""
    from itm_lib.evaluation import evaluate as measure
    from itm_lib.evaluation.report import Result, write_result
    from itm_lib.models import load_model

    start = time.monotonic()
    loaded, _ = load_model(model)
    metrics = measure(loaded, data, split, progress=True, scores_file=save_scores)
    if out:
        recipe = (loaded.metadata or {}).get("recipe", {})
        write_result(out, Result.from_runs(
            [metrics], seeds=[recipe.get("train", {}).get("seed", 0)], model=model.resolve().name, dataset=data.resolve().name,
            split=split, profile="", config=recipe, command=f"itm evaluate {model.name} --data {data.name} --split {split}", seconds=time.monotonic() - start,
        ))
    _print_metrics(metrics)


def _print_metrics(metrics: dict[str, float]) -> None:
    from itm_lib.evaluation.report import fraction, is_fraction

    for name, value in metrics.items():
        print(f"{name:24} {fraction(value) if is_fraction(name) else format(value, '.2f'):>8}")


@app.command()
def report(
    results: Annotated[Path | None, typer.Argument(help="a folder or file of results; default: data/results")] = None,
    sweep: Annotated[str | None, typer.Option(help="results of this sweep alone, by its name, e.g. spine")] = None,
    split: Annotated[str | None, typer.Option(help="results of this split alone: val or test")] = None,
    column: Annotated[list[str] | None, typer.Option(help="a metric to show, e.g. i2t_r1; may be repeated")] = None,
) -> None:
    """Print the results on disk as a table, mean and standard deviation over the seeds."""
    from itm_lib.evaluation.report import RECALLS, markdown, results_table

    found = _results(results, sweep, split)
    columns = column or list(RECALLS)
    unknown = [name for name in columns if not any(name in result.metrics for result in found)]
    if unknown:
        raise InputError(f"no result has the metric {unknown[0]!r}; {nearest(unknown[0], found[0].metrics)}")
    print(markdown(results_table(found, columns)))


def _results(where: Path | None, sweep: str | None, split: str | None) -> list[Result]:
    from itm_lib.evaluation.report import read_results, read_sweep

    where = where or data_dir() / "results"
    every = read_results(where) if sweep is None else read_sweep(sweep, where)
    found = [result for result in every if split in (None, result.split)]
    if not found:
        raise InputError(f"no results of the split {split!r}: it is one of train, val and test")
    return found


@app.command("ground-truths")
def ground_truths(
    results: Annotated[Path | None, typer.Argument(help="a folder or file of results; default with --sweep: data/results")] = None,
    sweep: Annotated[str | None, typer.Option(help="results of this sweep, by its name, e.g. dive_many")] = None,
    split: Annotated[str, typer.Option(help="results of this split: val or test")] = "test",
    model: Annotated[list[str] | None, typer.Option(help="a model's results alone, by its label; may be repeated")] = None,
    coco_scores: Annotated[Path | None, typer.Option(help="scores of COCO's test split, 5000 x 25000: .npy or .safetensors")] = None,
    ids: Annotated[Path | None, typer.Option(help="JSON file of their image_ids and caption_ids, if the scores' own lacks them")] = None,
) -> None:
    """Print recalls of listed pairs beside what counts all that is true: COCO 1K, 5K, CxC and ECCV Caption, and the exact truth."""
    from itm_lib.evaluation.report import ground_truth_table, markdown

    if ids and not coco_scores:
        raise InputError("--ids names the rows and columns of --coco-scores: give that too")
    found = _results(results, sweep, split) if results or sweep else None
    labels = [result.model for result in found or []]
    for label in model or []:
        if label not in labels:
            raise InputError(f"no result of a model {label!r}" + (f"; {nearest(label, labels)}" if labels else ": give --sweep"))
    if found and model:
        found = [result for result in found if result.model in model]
    coco = None
    if coco_scores:
        from itm_lib.evaluation import coco_file_metrics

        coco = coco_file_metrics(coco_scores, ids)
    print(markdown(ground_truth_table(coco, found)))


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the user's end with one line on stderr and exit code 2."""
    try:
        app(arguments, prog_name="itm")
    except InputError as error:
        _stop(str(error), 2)
    except ValidationError as error:
        _stop(f"{error.title}: {validation_line(error)}", 2)
    except KeyboardInterrupt:
        _stop("stopped", 130)


def _stop(line: str, code: int) -> NoReturn:
    print(f"itm: {' '.join(line.split())}", file=sys.stderr)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
