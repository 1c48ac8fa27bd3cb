"""``itm``: the command line. An error of the user's is one line on stderr and exit code 2, never a traceback."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError

from itm_lib.files import InputError, committed, nearest, project_root, validation_line, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from itm_lib.evaluation.report import Metric, Result

# Modules that take seconds to import (torch, papermill) are imported inside the command that needs them.

SIZE_OF_PROFILE = {"smoke": "smoke", "course": "quick", "paper": "full"}  # the embedded dataset's sizes

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Image-text matching: the course, its data, training and evaluation.",
)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build and check datasets.")
search_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Search pictures by a sentence, or by a picture.")
app.add_typer(data_app, name="data")
app.add_typer(search_app, name="search")

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


@data_app.command("facts")
def data_facts(
    folder: Annotated[Path, typer.Argument(help="a dataset folder")],
    out: Annotated[Path | None, typer.Option(help="write them here, as JSON, in place of printing them")] = None,
) -> None:
    """What a dataset is like: lengths of captions, words and how often they stand, what captions of one picture share, regions."""
    import json

    from itm_lib.data.facts import dataset_facts

    facts = dataset_facts(folder)
    if out is None:
        print(json.dumps(facts, indent=1))
    else:
        write_json(out, facts)


@data_app.command("prepare")
def data_prepare(
    name: Annotated[str, typer.Argument(help="flickr8k, flickr30k or coco")],
    source: Annotated[Path | None, typer.Option(help="the features: SCAN's archive, a .tsv file, a folder of one array a picture; of flickr8k a region file of 'itm extract'")] = None,
    captions: Annotated[Path | None, typer.Option(help="Karpathy's dataset_NAME.json (SCAN's archive has its own captions); of flickr8k also its text archive or Kaggle's captions.txt")] = None,
    images: Annotated[Path | None, typer.Option(help="folder of the pictures, for models that read pixels and for looking")] = None,
    out: Annotated[Path | None, typer.Option(help="the dataset folder to make; default: NAME in data/")] = None,
    link: Annotated[bool, typer.Option("--link", help="use SCAN's arrays where they are, in float32, and copy nothing")] = False,
    val_images: Annotated[int, typer.Option(min=0, help="so many pictures of val, the first ones, as the papers; 0: all")] = 1000,
    restval: Annotated[bool, typer.Option("--restval/--no-restval", help="train on the pictures that Karpathy marks restval too, as the papers")] = True,
    min_count: Annotated[int, typer.Option(min=1, help="words that stand less often in the training captions are unknown")] = 4,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="leave out captions without a word in them")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="accept less than the whole dataset")] = False,
) -> None:
    """Make a dataset folder of published features and captions; without a source, say what to get and where. A stopped import goes on."""
    from itm_lib.data import importers
    from itm_lib.runner import shown

    if source is None and images is None and captions is None:
        print(importers.instructions(name))
        return
    print(shown(importers.prepare(name, source, out, captions, images, restval, link, val_images=val_images or None,
                                  min_count=min_count, skip_empty=skip_empty, partial=partial)))


@data_app.command("captions")
def data_captions(
    captions: Annotated[Path, typer.Argument(help="a folder of .txt, a .csv or .tsv, JSON lines, or COCO's JSON")],
    out: Annotated[Path, typer.Option(help="the dataset folder to make")],
    store: Annotated[Path | None, typer.Option(help="the pictures' regions: a file of 'itm extract'")] = None,
    images: Annotated[Path | None, typer.Option(help="folder of the pictures, for models that read pixels and for looking")] = None,
    name: Annotated[str | None, typer.Option(help="the dataset's name; default: the folder's")] = None,
    val: Annotated[float, typer.Option(min=0, help="share of the pictures in val, or from 1 on their number; where the captions name no splits")] = 0.1,
    test: Annotated[float, typer.Option(min=0, help="the same for test")] = 0.1,
    seed: SeedOption = 0,
    min_count: Annotated[int | None, typer.Option(min=1, help="words that stand less often in the training captions are unknown; default: 1, 2 or 4 by their number")] = None,
    skip_empty: Annotated[bool, typer.Option("--skip-empty", help="leave out captions without a word in them")] = False,
    partial: Annotated[bool, typer.Option("--partial", help="leave out pictures without captions, and captions without a picture")] = False,
) -> None:
    """Make a dataset folder of pictures of your own: captions, splits, vocabulary, and links to the regions and the pictures."""
    from itm_lib.data import own
    from itm_lib.runner import shown

    print(shown(own.make_dataset(captions, out, store, images, name, val=val, test=test, seed=seed, min_count=min_count, skip_empty=skip_empty,
                                 partial=partial)))


@app.command()
def extract(
    images: Annotated[Path, typer.Argument(help="a folder of pictures; folders in it count too")],
    backbone: Annotated[str, typer.Option(help="region-encoder, or a transformers model, a folder or a name on the Hub: a detector or an image backbone")],
    out: Annotated[Path, typer.Option(help="the region file to write, .h5; with --captions the dataset folder to make")],
    captions: Annotated[Path | None, typer.Option(help="captions of the pictures: make a dataset folder of both, as 'itm data captions' does")] = None,
    regions: Annotated[int | None, typer.Option(min=1, help="regions a picture, at most; default: 36 of a detector, 12 of region-encoder, all cells of a grid")] = None,
    features: Annotated[str, typer.Option(help="of a detector: pooled, its feature map over each box, or queries, its decoder's states")] = "pooled",
    nms: Annotated[float | None, typer.Option(min=0, max=1, help="of two boxes whose IoU is larger only the better one stays; default: 0.7 of detectors, 0.55 of region-encoder")] = None,
    size: Annotated[int | None, typer.Option(min=1, help="pixels that pictures are resized to; default: what the model was made for")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="pictures at once")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="processes that read pictures ahead")] = 0,
    precision: Annotated[str, typer.Option(help="no, bf16 or fp16: what the model computes in")] = "no",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; default: a GPU if there is one")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="with --captions: leave out pictures without captions, and captions without a picture")] = False,
) -> None:
    """Turn pictures into a file of regions with boxes. A broken picture is named and left out; a stopped run goes on where it was."""
    from itm_lib.data import own
    from itm_lib.features.backbones import open_backbone
    from itm_lib.features.extract import extract as extract_regions
    from itm_lib.runner import shown

    store = out / "regions" / "all.h5" if captions else out
    if captions:
        own.check_captions(captions, images, partial=partial)  # before the hours, not after
    done = extract_regions(images, open_backbone(backbone, regions, features, nms, size, device, precision), store, batch_size, workers)
    print(done.summary())
    if captions:
        print(shown(own.make_dataset(captions, out, store, images, partial=partial)))


@app.command()
def backbone(
    name: Annotated[str, typer.Argument(help="mobilenet-v2")],
    out: Annotated[Path, typer.Option(help="the folder to make: --backbone of 'itm extract' takes it")],
) -> None:
    """Make a folder of an image backbone whose weights come with a pip package: nothing is fetched."""
    from itm_lib.features.mobilenet import make_mobilenet_folder
    from itm_lib.runner import shown

    if name != "mobilenet-v2":
        raise InputError(f"no backbone {name!r} comes with pip; {nearest(name, ['mobilenet-v2'])}. 'itm extract --backbone' takes any folder, or name on the Hub, itself")
    print(shown(make_mobilenet_folder(out)))


SeedsOption = Annotated[list[int] | None, typer.Option(min=0, help="train once a seed, each into OUT/seed<k>: --seeds 0 1 2")]


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="a recipe file, or the name of one that comes with itm_lib: see 'itm recipes'")],
    out: Annotated[Path | None, typer.Option(help="folder of the run: the model, its history, and its state for going on")] = None,
    data: Annotated[Path | None, typer.Option(help="the dataset folder, in place of the recipe's")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe: train.epochs=5, stages.NAME.train.lr=1e-3")] = None,
    seeds: SeedsOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of going on with the run in --out")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="take three steps, print memory, steps and hours of the whole, write nothing")] = False,
) -> None:
    """Train a model by a recipe, stage by stage if it has stages, and measure it on val. A stopped run goes on, with the same numbers.

    In several processes: torchrun --nproc_per_node 4 -m itm_lib.cli train ...; batch_size stays that of all together.
    """
    from itm_lib.training.recipe import load_recipe, run_recipe, run_seeds

    loaded = load_recipe(recipe, override or [], data)
    if dry_run:
        from itm_lib.training.dry_run import dry_run as measure

        print(measure(loaded).table())
        return
    if out is None:
        raise InputError("no --out: give the folder of the run")
    if seeds:
        from itm_lib.evaluation.report import Metric

        runs = run_seeds(loaded, seeds, out, resume=not fresh)
        if _first_process():
            _print_metrics({name: Metric.of([run.metrics[name] for run in runs]) for name in runs[0].metrics}, width=16)
    else:
        run = run_recipe(loaded, out, resume=not fresh)
        if _first_process():
            _print_metrics(run.metrics)


def _first_process() -> bool:
    """Whether this is the one of a run's processes that speaks; torchrun and accelerate number them."""
    return os.environ.get("RANK", "0") == "0"


@app.command()
def recipes() -> None:
    """List the recipes that come with itm_lib."""
    from itm_lib.training.recipe import recipe_names

    print("\n".join(recipe_names()))


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(help="a sweep file: variants and seeds of a recipe")],
    jobs: Annotated[int, typer.Option(min=1, help="runs at the same time")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="make every run again")] = False,
    only: Annotated[list[str] | None, typer.Option(help="this variant or ensemble alone; may be repeated")] = None,
    seeds: Annotated[list[int] | None, typer.Option(min=0, help="these seeds alone: --seeds 0 1")] = None,
) -> None:
    """Train every run of a sweep, write the results and print them as a table; runs that are done are kept."""
    from itm_lib.evaluation.report import RECALLS, markdown, read_results, results_table
    from itm_lib.runner import shown
    from itm_lib.training.sweep import run_sweep

    written = run_sweep(file, jobs, fresh=fresh, only=only or [], seeds=seeds or [])
    for path in written:
        print(shown(path), file=sys.stderr)
    results = [result for path in written for result in read_results(path)]
    measured = [result for result in results if result.split == "test"] or results
    print(markdown(results_table(measured, RECALLS)))


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="a model folder, or a run's; several: the seeds of one recipe")],
    data: Annotated[Path, typer.Option(help="a dataset folder")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "test",
    ensemble: Annotated[bool, typer.Option("--ensemble", help="average the models' scores; files of scores count as models")] = False,
    out: Annotated[Path | None, typer.Option(help="write the result to this JSON file too")] = None,
    save_scores: Annotated[Path | None, typer.Option(help="keep the score matrix and its ids: FILE.npy or FILE.safetensors")] = None,
) -> None:
    """Measure a model on one split of a dataset: recalls, rsum and what else the dataset allows."""
    from itm_lib.evaluation import evaluate_ensemble_runs, evaluate_runs, record_results
    from itm_lib.evaluation.report import write_result

    names = [Path(name).name if Path(name).is_absolute() else name for name in models]
    command = shlex.join(["itm", "evaluate", *names, "--data", data.name, "--split", split, *(["--ensemble"] if ensemble else [])])
    measure = evaluate_ensemble_runs if ensemble else evaluate_runs
    result = measure(models, data, split, progress=True, scores_file=save_scores, command=command)
    if out:
        write_result(out, result)
    if split == "test" and not ensemble:
        record_results(models, result)  # into the models' cards
    _print_metrics(result.metrics)


def _print_metrics(metrics: Mapping[str, float | Metric], width: int = 8) -> None:
    """A line a metric: two decimals of one seed's number; of several seeds mean and spread, as tables have them."""
    from itm_lib.evaluation.report import Metric, is_fraction

    for name, value in metrics.items():
        metric = value if isinstance(value, Metric) else Metric.of([value])
        number = f"{metric.mean:.2f}" if metric.sd is None and not is_fraction(name) else metric.shown_as(name)
        print(f"{name:24} {number:>{width}}")


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="a checkpoint as the authors' code saved it")],
    method: Annotated[str, typer.Option(help="scan, camp, hrem or dive")],
    out: Annotated[Path, typer.Option(help="the model folder to write")],
    vocabulary: Annotated[Path | None, typer.Option(help="the authors' vocabulary, .json or .pkl; of HREM's BERT, its folder")] = None,
    options: Annotated[Path | None, typer.Option(help="JSON file of settings that the checkpoint does not hold")] = None,
    row: Annotated[str | None, typer.Option(help="the row of the papers' tables that it is: \"flickr30k/t-i AVG\"")] = None,
) -> None:
    """Turn a checkpoint of the authors' into a model folder that every command reads; scores stay the authors'."""
    from itm_lib.models.official import convert_official
    from itm_lib.runner import shown

    paper = None
    if row:
        dataset, slash, variant = row.partition("/")
        if not (slash and variant):
            raise InputError(f"cannot read --row {row!r}: write it as dataset/variant, for example 'flickr30k/t-i AVG'")
        paper = {"dataset": dataset, "variant": variant, "settings": "published"}
    print(shown(convert_official(checkpoint, method, out, vocabulary=vocabulary, options=options, paper=paper)))


@app.command()
def report(
    results: Annotated[list[Path] | None, typer.Argument(help="folders or files of results; default: data/results")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="the papers' tables: the paper's value, what was measured here, whether it is reproduced")] = False,
    sweep: Annotated[str | None, typer.Option(help="results of this sweep alone, by its name, e.g. spine")] = None,
    split: Annotated[str | None, typer.Option(help="results of this split alone: val or test")] = None,
    column: Annotated[list[str] | None, typer.Option(help="a metric to show, e.g. i2t_r1; may be repeated")] = None,
) -> None:
    """Print the results on disk as a table, mean and standard deviation over the seeds."""
    from itm_lib.evaluation.report import RECALLS, markdown, paper_markdown, paper_table, results_table

    if paper:
        if sweep or split or column:
            raise InputError("--paper prints the papers' own columns, of test: leave --sweep, --split and --column out")
        from itm_lib.training.recipe import paper_recipes

        # the embedded dataset's results have a column of their own
        found = [result for where in dict.fromkeys([*(results or []), committed("results")]) for result in _results(where)]
        print(paper_markdown(paper_table(found, recipes=paper_recipes())))
        return
    found = [result for where in results or [None] for result in _results(where, sweep, split)]
    columns = column or list(RECALLS)
    unknown = [name for name in columns if not any(name in result.metrics for result in found)]
    if unknown:
        raise InputError(f"no result has the metric {unknown[0]!r}; {nearest(unknown[0], found[0].metrics)}")
    print(markdown(results_table(found, columns)))


def _results(where: Path | None, sweep: str | None = None, split: str | None = None) -> list[Result]:
    from itm_lib.evaluation.report import read_results, read_sweep

    where = where or committed("results")
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


@search_app.command("index")
def search_index(
    model: Annotated[str, typer.Argument(help="a model folder, or a run's")],
    store: Annotated[Path, typer.Argument(help="a region file, or a dataset folder: all its pictures")],
    out: Annotated[Path | None, typer.Option(help="folder of the index; default: search in runs/")] = None,
    kind: Annotated[str, typer.Option(help="torch, exact; flat, hnsw or ivfpq: faiss's")] = "torch",
    shortlist: Annotated[str | None, typer.Option(help="how SCAN and CAMP find their candidates: words, mean, or the folder of an embedding model")] = None,
    images: Annotated[Path | None, typer.Option(help="folder of the pictures, for the contact sheet; default: the store's")] = None,
    split: Annotated[str | None, typer.Option(help="of a dataset folder this split's pictures alone")] = None,
) -> None:
    """Encode the pictures with a trained model, once, so that they can be searched."""
    from itm_lib.runner import shown
    from itm_lib.search import build_index

    index = build_index(model, store, out or _index_folder(), kind, shortlist, images, split=split)
    for note in index.notes:
        print(note, file=sys.stderr)
    print(f"{shown(index.folder)}: {len(index):,} pictures, {index.model.name}, {index.shortlist}, {index.settings.kind}, {index.seconds:.1f} s")


@search_app.command("query")
def search_query(
    text: Annotated[str | None, typer.Argument(help="a sentence: what the pictures should show")] = None,
    image: Annotated[Path | None, typer.Option(help="a picture in place of the sentence: find pictures like it")] = None,
    index: Annotated[Path | None, typer.Option(help="folder of the index; default: search in runs/")] = None,
    top: Annotated[int, typer.Option(min=1, help="pictures to show")] = 10,
    candidates: Annotated[int, typer.Option(min=1, help="pictures of the shortlist that are scored exactly")] = 100,
    out: Annotated[Path | None, typer.Option(help="contact sheet to write: FILE.png, FILE.html or FILE.json")] = None,
) -> None:
    """Print the pictures that fit best; --out shows them, with the regions that the model attended to."""
    from itm_lib.runner import shown
    from itm_lib.search import SearchIndex, contact_sheet

    if (text is None) == (image is None):
        raise InputError("give a sentence, or a picture with --image")
    result = SearchIndex.open(index or _index_folder()).query(text, image, top=top, candidates=candidates)
    for note in result.notes:
        print(note, file=sys.stderr)
    for hit in result.hits:
        print(f"{hit.rank:4} {hit.score:8.4f}  {hit.image_id}")
    if out:
        print(shown(contact_sheet(result, out)))


def _index_folder() -> Path:
    from itm_lib.course import runs_dir

    return runs_dir() / "search"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; errors of the user's end with one line on stderr and exit code 2."""
    try:
        app(one_each("--seeds", sys.argv[1:] if arguments is None else arguments), prog_name="itm")
    except InputError as error:
        _stop(str(error), 2)
    except ValidationError as error:
        _stop(f"{error.title}: {validation_line(error)}", 2)
    except KeyboardInterrupt:
        _stop("stopped", 130)


def one_each(option: str, arguments: list[str]) -> list[str]:
    """``--seeds 0 1 2`` as the command line's parser wants it: the option before every number."""
    spread: list[str] = []
    for argument in arguments:
        more = len(spread) > 1 and spread[-2] == option and spread[-1].isdecimal() and argument.isdecimal()
        spread += [option, argument] if more else [argument]
    return spread


def _stop(line: str, code: int) -> NoReturn:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once a machine, not once a process
        print(f"itm: {' '.join(line.split())}", file=sys.stderr)
    else:
        time.sleep(1)  # torchrun ends all with the first that ends: not before the line is told
    raise SystemExit(code)


if __name__ == "__main__":
    main()
