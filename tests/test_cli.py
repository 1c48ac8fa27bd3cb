"""The command line: quick to start, one line for an error, and a model from recipe to report."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image
from pydantic import BaseModel

from itm_lib import cli
from itm_lib.data import Vocabulary
from itm_lib.data.regions import RegionStore, RegionWriter
from itm_lib.evaluation import read_scores
from itm_lib.evaluation.report import Result, read_results, write_result
from itm_lib.files import write_json, write_jsonl, write_text
from itm_lib.training.recipe import paper_recipes

WORDS = ["dog", "cat", "boat", "tree", "lamp", "bread"]
RECIPE = """data: {{folder: {folder}}}
model: {{method: vse, embed_dim: 8, word_dim: 8}}
train: {{epochs: 2, batch_size: 6, seed: 3}}
"""


@pytest.fixture
def itm(capsys):
    """``itm(*arguments)`` is (exit code, stdout, stderr)."""

    def run(*arguments):
        try:
            cli.main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset of 12 / 6 / 6 pictures, each with one region that shows one of six words."""
    folder = tmp_path_factory.mktemp("data")
    rng, captions, splits = np.random.default_rng(0), [], {}
    looks = rng.normal(size=(len(WORDS), 4)).astype(np.float32)
    for split, count in {"train": 12, "val": 6, "test": 6}.items():
        splits[split] = [f"{split}{number}" for number in range(count)]
        with RegionWriter(folder / "regions" / f"{split}.h5", splits[split], 1, 4, "test") as writer:
            for row, image_id in enumerate(splits[split]):
                writer.write(row, looks[row % 6][None], np.array([[0, 0, 1, 1]], dtype=np.float32))
                captions.append({"caption_id": image_id, "image_id": image_id, "text": f"a {WORDS[row % 6]}", "split": split})
    write_jsonl(folder / "captions.jsonl", captions)
    write_json(folder / "splits.json", splits)
    Vocabulary.build(row["text"] for row in captions if row["split"] == "train").save(folder / "vocabulary.json")
    return folder


def test_help_names_every_command_and_loads_nothing_heavy():
    script = "import sys\nfrom itm_lib import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nassert not {'torch', 'papermill', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for command in ("course", "data", "extract", "train", "recipes", "sweep", "evaluate", "convert", "report", "ground-truths", "search"):
        assert f"  {command} " in done.stdout


def test_every_command_and_option_says_what_it_is():
    commands = typer.main.get_command(cli.app).commands
    for command in [*commands.values(), *commands["data"].commands.values(), *commands["search"].commands.values()]:
        assert command.help
        for parameter in command.params:
            assert parameter.help, f"{command.name} {parameter.name}"


@pytest.mark.parametrize("arguments, line", [
    (["data", "check", "nowhere"], "no dataset folder nowhere: make it first, for example with 'itm data scenes'"),
    (["evaluate", "nowhere", "--data", "nowhere"], "no model folder nowhere: check the path, or train and save a model first"),
    (["extract", "nowhere", "--backbone", "region-encoder", "--out", "store.h5"], "no folder of pictures nowhere: check the path"),
    (["search", "query"], "give a sentence, or a picture with --image"),
    (["search", "query", "a dog", "--index", "nowhere"], "nowhere holds no index: make one first, itm search index MODEL DATA --out nowhere"),
    (["sweep", "nowhere.yaml"], "no file nowhere.yaml: check the path"),
    (["report", "nowhere", "--sweep", "spine"], "no sweep's results in nowhere: run one first, with 'itm sweep'"),
    (["report", "nowhere"], "no results at nowhere: run what makes them first, or give a folder, a file or a pattern"),
])
def test_user_error_is_one_line_and_code_2(arguments, line, itm):
    assert itm(*arguments) == (2, "", f"itm: {line}\n")


@pytest.mark.parametrize("arguments", [["data", "scenes", "--size", "huge"], ["data", "scenes", "--variant", "both"],
                                       ["train", "vse_", "--out", "x"]])
def test_unknown_name_is_one_line(arguments, itm):
    code, out, err = itm(*arguments)
    assert (code, out) == (2, "") and err.startswith("itm: ") and err.count("\n") == 1


def test_pydantic_error_is_one_line(itm, monkeypatch):
    class Recipe(BaseModel, extra="forbid"):
        epochs: int

    monkeypatch.setattr("itm_lib.evaluation.report.read_results", lambda _: Recipe(epochs="many", epoch=3))
    code, out, err = itm("report")
    assert (code, out) == (2, "")
    assert err == ("itm: Recipe: epochs = 'many': input should be a valid integer, unable to parse string as an integer; "
                   "unknown 'epoch'\n")


def test_stopping_is_no_traceback(itm, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("itm_lib.evaluation.report.read_results", stop)
    code, out, err = itm("report")
    assert code == 130 and "Traceback" not in err


def test_check_tells_what_a_dataset_holds(itm, folder):
    code, out, _ = itm("data", "check", folder)
    assert code == 0
    assert out.splitlines() == [f"{split}: {n} images, {n} captions, 1 to 1 regions of 4 numbers"
                                for split, n in (("train", 12), ("val", 6), ("test", 6))]


def test_check_takes_a_dataset_of_pictures_and_reads_checksums(itm, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "data")
    for split in ("val", "test"):
        (tmp_path / "data" / "regions" / f"{split}.h5").unlink()
        for number in range(6):
            (tmp_path / "data" / "images").mkdir(exist_ok=True)
            Image.new("RGB", (4, 4)).save(tmp_path / "data" / "images" / f"{split}{number}.png")
    code, out, _ = itm("data", "check", tmp_path / "data", "--checksums")
    assert code == 0 and out.splitlines()[1:] == [f"{split}: 6 images, 6 captions, pictures, no regions" for split in ("val", "test")]
    path = tmp_path / "data" / "regions" / "train.h5"
    looks = RegionStore(path).stored([5])[0].tobytes()
    path.write_bytes(path.read_bytes().replace(looks, looks[:-1] + bytes([looks[-1] ^ 1])))  # one bit of a picture, and of its twin
    code, out, err = itm("data", "check", tmp_path / "data", "--checksums")
    assert code == 2 and "train.h5: the regions of image train5 are not what was written; write the file again" in err
    assert itm("data", "check", tmp_path / "data")[0] == 0


def test_check_names_what_is_damaged(itm, folder, tmp_path):
    for path in ("captions.jsonl", "splits.json", "vocabulary.json"):
        (tmp_path / path).write_bytes((folder / path).read_bytes())
    store = (folder / "regions" / "train.h5").read_bytes()
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions" / "train.h5").write_bytes(store[: len(store) // 2])
    code, out, err = itm("data", "check", tmp_path)
    assert (code, out) == (2, "") and "train.h5" in err and err.count("\n") == 1


def test_train_evaluate_report(itm, folder, tmp_path):
    write_text(tmp_path / "recipe.yaml", RECIPE.format(folder=folder.as_posix()))
    run, result = tmp_path / "run", tmp_path / "results" / "vse.json"
    code, out, err = itm("train", tmp_path / "recipe.yaml", "--out", run, "--set", "train.epochs=1")
    assert code == 0, err
    assert "rsum" in out
    kept = tmp_path / "scores.npy"
    code, out, err = itm("evaluate", run / "model", "--data", folder, "--split", "val", "--out", result, "--save-scores", kept)
    assert code == 0, err
    assert read_scores(kept).image_ids == [f"val{number}" for number in range(6)]
    stored = read_results(result)[0]
    assert (stored.split, stored.seeds, stored.config["train"]["epochs"]) == ("val", [3], 1)
    assert f"{'rsum':24} {stored.metrics['rsum'].mean:8.2f}" in out.splitlines()
    code, out, err = itm("report", result)
    assert code == 0, err
    assert f"{stored.metrics['rsum'].mean:.1f}" in out
    assert itm("report", result.parent, "--sweep", "vse")[0] == 2
    result.rename(result.parent / "tiny__vse.json")
    assert itm("report", result.parent, "--sweep", "tiny") == (0, out, "")
    code, out, err = itm("ground-truths", result.parent, "--sweep", "tiny", "--split", "val")
    assert code == 0 and f"| rSum | not run | not run |  |  | {stored.metrics['rsum'].mean:.1f} |  |\n" in out, err
    assert itm("ground-truths", "--coco-scores", kept) == (
        2, "", "itm: COCO's image ids are whole numbers, these are not; the first is 'val0'\n")
    code, _, err = itm("train", tmp_path / "recipe.yaml", "--out", run, "--set", "train.epohcs=1")
    assert code == 2 and "epochs" in err and err.count("\n") == 1


def test_ground_truths_of_chosen_models_beside_cocos(itm, tmp_path, monkeypatch):
    about = {"dataset": "scenes", "split": "test", "profile": "course", "command": "itm sweep", "seconds": 1.0, "commit": "abc"}
    path = write_result(tmp_path / "results.json", [Result.from_runs([{"i2t_exact_r1": value}], seeds=[0], model=name, **about)
                                                    for name, value in (("VSE++", 30.0), ("DivE", 40.0))])
    given = []
    monkeypatch.setattr("itm_lib.evaluation.coco_file_metrics", lambda *arguments: given.append(arguments) or {"cxc_i2t_r1": 55.5})
    code, out, err = itm("ground-truths", path, "--model", "DivE", "--coco-scores", "coco.npy", "--ids", "ids.json")
    assert code == 0 and [str(name) for name in given[0]] == ["coco.npy", "ids.json"], err
    lines = out.splitlines()
    assert "COCO, test: CxC" in lines[0] and "DivE, scenes, test: exact truth" in lines[0] and "VSE++" not in lines[0]
    assert lines[2] == "| i2t R@1 | not run | not run | 55.5 | not run | not run | 40.0 |"
    assert itm("ground-truths", path, "--model", "DivF")[2] == "itm: no result of a model 'DivF'; did you mean 'DivE'?\n"
    assert itm("ground-truths", "--model", "DivE")[2] == "itm: no result of a model 'DivE': give --sweep\n"
    assert itm("ground-truths", "--ids", "ids.json")[2] == "itm: --ids names the rows and columns of --coco-scores: give that too\n"


def test_train_in_stages(itm, folder, tmp_path):
    stages = "stages: [{name: first, train: {epochs: 1}}, {name: last, train: {freeze: [image]}}]\n"
    write_text(tmp_path / "recipe.yaml", RECIPE.format(folder=folder.as_posix()) + stages)
    code, out, err = itm("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--set", "stages.last.train.epochs=1")
    assert code == 0 and "rsum" in out, err
    assert "stage 1 of 2: first\n" in err and "stage 2 of 2: last, 11 of 11 tensors from first\n" in err
    code, _, err = itm("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run", "--set", "stages.lats.train.epochs=1")
    assert code == 2 and err.endswith("no stage is called 'lats'; did you mean 'last'?\n") and err.count("\n") == 1


def test_fractions_are_printed_however_small(capsys):
    cli._print_metrics({"rsum": 500.0, "gate_positive": 0.97, "gate_negative": 2.7e-9})
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["rsum", "500.00"], ["gate_positive", "0.970"], ["gate_negative", "2.7e-09"]]


def test_seeds_may_follow_one_option():
    assert cli.one_each("--seeds", ["train", "x", "--seeds", "0", "1", "2", "--out", "y"]) == [
        "train", "x", "--seeds", "0", "--seeds", "1", "--seeds", "2", "--out", "y"]
    assert cli.one_each("--seeds", ["--seeds", "3", "--set", "a.b=1", "4"]) == ["--seeds", "3", "--set", "a.b=1", "4"]


def test_seeds_of_a_recipe_and_their_ensemble(itm, folder, tmp_path):
    write_text(tmp_path / "recipe.yaml", RECIPE.format(folder="elsewhere"))
    for name, dim in (("small", 8), ("large", 12)):
        code, out, err = itm("train", tmp_path / "recipe.yaml", "--data", folder, "--out", tmp_path / name, "--seeds", 0, 1,
                             "--set", "train.epochs=1", "--set", f"model.embed_dim={dim}")
        assert code == 0 and " ± " in next(line for line in out.splitlines() if line.startswith("rsum")), err
    result = tmp_path / "small.json"
    code, out, err = itm("evaluate", tmp_path / "small", "--data", folder, "--split", "val", "--out", result)
    assert code == 0, err
    stored = read_results(result)[0]
    assert (stored.seeds, stored.model) == ([0, 1], "small") and stored.command == f"itm evaluate small --data {folder.name} --split val"
    assert f"{'rsum':24} {stored.metrics['rsum'].shown_as('rsum'):>8}" in out.splitlines()
    code, out, err = itm("evaluate", tmp_path / "small", tmp_path / "large", "--data", folder, "--split", "val", "--ensemble", "--out", result)
    assert code == 0, err
    assert read_results(result)[0].model == "small + large" and read_results(result)[0].seeds == [0, 1]
    code, _, err = itm("evaluate", tmp_path / "small", tmp_path / "large", "--data", folder, "--split", "val")
    assert code == 2 and "average them with --ensemble" in err and err.count("\n") == 1


def test_training_needs_a_folder_unless_it_is_a_dry_run(itm, folder, tmp_path):
    write_text(tmp_path / "recipe.yaml", RECIPE.format(folder=folder.as_posix()))
    assert itm("train", tmp_path / "recipe.yaml") == (2, "", "itm: no --out: give the folder of the run\n")
    code, out, err = itm("train", tmp_path / "recipe.yaml", "--dry-run")
    assert code == 0 and "steps" in out and "memory" in out, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recipe.yaml"]


def test_only_the_first_process_speaks(itm, folder, tmp_path, monkeypatch):
    write_text(tmp_path / "recipe.yaml", RECIPE.format(folder="nowhere"))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert itm("train", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == (2, "", "")


def test_recipes_and_how_to_get_data(itm):
    code, out, _ = itm("recipes")
    assert code == 0 and {"embedded/vse", "flickr30k/scan_ti_avg", "coco/dive_grid_bert"} <= set(out.splitlines())
    code, out, _ = itm("data", "prepare", "flickr30k")
    assert code == 0 and "Flickr30K" in out
    code, _, err = itm("data", "prepare", "flickr31k")
    assert code == 2 and "flickr30k" in err and err.count("\n") == 1


def test_convert_says_what_a_row_is(itm):
    code, _, err = itm("convert", "nowhere.pth", "--method", "scan", "--out", "x", "--row", "t-i AVG")
    assert code == 2 and "flickr30k/t-i AVG" in err
    assert itm("convert", "nowhere.pth", "--method", "scan", "--out", "x") == (2, "", "itm: no checkpoint nowhere.pth: check the path\n")


def test_the_papers_tables(itm, tmp_path):
    code, out, err = itm("report", "--paper")
    assert code == 0, err
    row = next(line for line in out.splitlines() if line.startswith("| SCAN t-i AVG |") and "flickr30k/scan_ti_avg" in line)
    assert "61.8 / 45.8, 446.2" in row and "embedded only" in row
    assert itm("report", "--paper", "--split", "val")[0] == 2
    about = {"dataset": "flickr30k", "split": "test", "profile": "", "command": "itm evaluate", "seconds": 1.0, "commit": "abc"}
    recalls = {"i2t_r1": 62.0, "i2t_r5": 88.0, "i2t_r10": 94.0, "t2i_r1": 46.0, "t2i_r5": 74.0, "t2i_r10": 83.0, "rsum": 447.0}
    config = paper_recipes()["flickr30k/scan_ti_avg"]
    run = Result.from_runs([{f"{prefix}{name}": value + seed for name, value in recalls.items() for prefix in ("", "f30k_1k_")} for seed in (0, 1)],
                           seeds=[0, 1], model="mine", config=config, **about)
    write_result(tmp_path / "mine.json", run)
    code, out, err = itm("report", tmp_path / "mine.json", "--paper")
    row = next(line for line in out.splitlines() if line.startswith("| SCAN t-i AVG |") and "flickr30k/scan_ti_avg" in line)
    assert code == 0 and "reproduced" in row and "447.5 ± 0.7 (2 seeds)" in row, err
