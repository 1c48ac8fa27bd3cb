"""Runs as one measures them: by their folders, the seeds of one recipe together, and as ensembles."""

import json

import numpy as np
import pytest
import torch

from itm_lib.data import Vocabulary
from itm_lib.data.regions import RegionWriter
from itm_lib.evaluation import evaluate, evaluate_ensemble_runs, evaluate_runs, model_folders, read_scores
from itm_lib.evaluation.runs import label_of
from itm_lib.files import InputError, write_json, write_jsonl
from itm_lib.models import build_model, load_model

WORDS = ["dog", "cat", "boat", "tree", "lamp", "bread"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of six test pictures with two regions and one caption each."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    ids = [f"p{number}" for number in range(6)]
    with RegionWriter(folder / "regions" / "test.h5", ids, 2, 4, "test") as writer:
        for row in range(6):
            writer.write(row, rng.normal(size=(2, 4)).astype(np.float32), np.array([[0, 0, 1, 1]] * 2, dtype=np.float32))
    write_jsonl(folder / "captions.jsonl", ({"caption_id": f"c{n}", "image_id": ids[n], "text": f"a {word}", "split": "test"}
                                            for n, word in enumerate(WORDS)))
    write_json(folder / "splits.json", {"test": ids})
    Vocabulary.build(f"a {word}" for word in WORDS).save(folder / "vocabulary.json")
    return folder


def save(folder, data, seed, lr=0.1):
    """A model of ``seed`` with the metadata that a run leaves."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.load(data / "vocabulary.json")
    model = build_model("vse", {"embed_dim": 8, "word_dim": 8}, 4, len(vocabulary))
    model.save_pretrained(folder, vocabulary, {"recipe": {"model": {"method": "vse"}, "train": {"seed": seed, "lr": lr}}})
    return folder


@pytest.fixture
def run(data, tmp_path):
    for seed in (0, 2, 10):
        save(tmp_path / "scan" / f"seed{seed}" / "model", data, seed)
    return tmp_path / "scan"


def test_a_run_is_named_by_any_of_its_folders(run):
    folders = [run / f"seed{seed}" / "model" for seed in (0, 2, 10)]  # in the order of numbers, not of names
    assert model_folders(run) == folders
    assert model_folders(run / "seed2") == model_folders(folders[1]) == [folders[1]]
    assert {label_of(path) for path in (run, *folders, run / "seed2")} == {"scan"}


def test_seeds_of_one_recipe_are_one_result(run, data):
    result = evaluate_runs([run], data)
    single = [evaluate(load_model(folder)[0], data) for folder in model_folders(run)]
    assert (result.seeds, result.model, result.split, result.config["train"]["lr"]) == ([0, 2, 10], "scan", "test", 0.1)
    assert result.metrics["rsum"].values == [metrics["rsum"] for metrics in single]
    assert result.metrics["rsum"].sd is not None
    assert evaluate_runs([run / "seed10"], data).metrics["rsum"].values == [single[2]["rsum"]]
    assert evaluate_runs([run / "seed10", run / "seed0"], data).seeds == [10, 0]


def test_other_recipes_and_seeds_that_come_twice_are_told(run, data, tmp_path):
    other = save(tmp_path / "other", data, 1, lr=0.2)
    with pytest.raises(InputError, match="of another recipe than .*measure them one by one, or average them with --ensemble"):
        evaluate_runs([run, other], data)
    with pytest.raises(InputError, match="is of seed 2, as a model before it"):
        evaluate_runs([run, run / "seed2"], data)
    with pytest.raises(InputError, match="3 models and one file of scores"):
        evaluate_runs([run], data, scores_file=tmp_path / "scores.npy")
    with pytest.raises(InputError, match="no model folder"):
        evaluate_runs([tmp_path / "nowhere"], data)


def test_an_ensemble_is_the_mean_of_its_scores_seed_by_seed(run, data, tmp_path):
    for seed in (0, 2, 10):
        save(tmp_path / "it" / f"seed{seed}" / "model", data, seed + 50)
        path = tmp_path / "it" / f"seed{seed}" / "model" / "config.json"  # the same seed by the recipe, other weights
        content = json.loads(path.read_text())
        content["metadata"]["recipe"]["train"]["seed"] = seed
        write_json(path, content)
    files = [tmp_path / f"{name}.npy" for name in ("first", "second", "both")]
    one, two = run / "seed2", tmp_path / "it" / "seed2"
    evaluate_runs([one], data, scores_file=files[0])
    evaluate_runs([two], data, scores_file=files[1])
    single = evaluate_ensemble_runs([one, two], data, scores_file=files[2])
    first, second, both = (read_scores(file).scores for file in files)
    np.testing.assert_allclose(both, (np.asarray(first) + np.asarray(second)) / 2, rtol=1e-6)
    every = evaluate_ensemble_runs([run, tmp_path / "it"], data)
    assert (every.seeds, every.model, len(every.config["ensemble"])) == ([0, 2, 10], "scan + it", 2)
    assert every.metrics["rsum"].values[1] == single.metrics["rsum"].mean
    assert evaluate_ensemble_runs(files[:2], data).metrics["rsum"].mean == pytest.approx(single.metrics["rsum"].mean)
    with pytest.raises(InputError, match="different seeds .*scan: 0, 2, 10; .*seed2: 2"):
        evaluate_ensemble_runs([run, two], data)
    with pytest.raises(InputError, match="at least two models"):
        evaluate_ensemble_runs([run], data)
