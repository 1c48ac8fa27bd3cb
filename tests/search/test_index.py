"""Indexes: scores are the evaluator's for every model, a folder is whole or as it was, and what changed since is told."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from made_for_search import (
    DIM,
    PICTURES,
    SETTINGS,
    TEXTS,
    full_scores,
    make_ensemble,
    make_folder,
    make_model,
    write_store,
)

from itm_lib.files import InputError, read_json, write_json
from itm_lib.models import build_model
from itm_lib.search import SearchIndex, build_index
from itm_lib.search import index as index_module

TOP = 6


def refused(line):
    return pytest.raises(InputError, match=f"^{re.escape(line)}")


def assert_best_of(index, results, scores):
    """``results`` are the first pictures of ``scores`` (N, C), with those scores."""
    for column, result in enumerate(results):
        best = scores[:, column].sort(descending=True, stable=True)
        assert [hit.score for hit in result.hits] == pytest.approx(best.values[: len(result.hits)].tolist(), abs=2e-6)
        assert [hit.image_id for hit in result.hits] == [index.gallery.image_ids[row] for row in best.indices[: len(result.hits)]]
        assert [hit.rank for hit in result.hits] == list(range(1, len(result.hits) + 1))


def assert_scores_of(index, results, scores):
    """Every hit of ``results`` has its score of ``scores`` (N, C), best first."""
    for column, result in enumerate(results):
        expected = [float(scores[index.gallery.row(hit.image_id), column]) for hit in result.hits]
        assert [hit.score for hit in result.hits] == pytest.approx(expected, abs=2e-6)
        assert expected == sorted(expected, reverse=True)


@pytest.mark.parametrize("name", SETTINGS)
def test_all_pictures_as_candidates_give_the_evaluators_ranking(name, dataset):
    index = build_index(make_model(name), dataset, progress=False)
    scores = full_scores(index, TEXTS)
    results = index.query_many(TEXTS, top=TOP, candidates=1000)
    assert_best_of(index, results, scores)
    assert all(result.exact and result.pictures == 3 * PICTURES for result in results)
    assert_best_of(index, [index.query(text, top=TOP, candidates=3 * PICTURES) for text in TEXTS], scores)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["torch", "hnsw"])
def test_candidates_get_the_evaluators_scores(name, kind, dataset):
    index = build_index(make_model(name), dataset, kind=kind, progress=False)
    results = index.query_many(TEXTS, top=TOP, candidates=9)
    assert_scores_of(index, results, full_scores(index, TEXTS))
    assert all(result.scored == 9 and not result.exact and len(result.hits) == TOP for result in results)
    for text, many in zip(TEXTS, results):
        one = index.query(text, top=TOP, candidates=9)
        assert [hit.image_id for hit in one.hits] == [hit.image_id for hit in many.hits]


@pytest.mark.parametrize("name", ["vse", "hrem", "hrem_long"])
def test_one_embedding_a_picture_needs_no_more_candidates_than_hits(name, dataset):
    index = build_index(make_model(name), dataset, progress=False)
    results = index.query_many(TEXTS, top=TOP, candidates=TOP)
    assert_best_of(index, results, full_scores(index, TEXTS))
    assert all(hit.shortlist_score == pytest.approx(hit.score, abs=2e-6) for result in results for hit in result.hits)


@pytest.mark.parametrize("shortlist", ["words", "mean"])
@pytest.mark.parametrize("name", ["scan", "camp"])
def test_shortlists_of_regions(name, shortlist, dataset):
    """Their scores, against a loop: words take their best region; means are the mean product."""
    from itm_lib.evaluation.scoring import encode_images, encode_tokens

    index = build_index(make_model(name), dataset, shortlist=shortlist, progress=False)
    images = encode_images(index.model, index.gallery)
    captions = encode_tokens(index.model, [index.vocabulary.encode(text) for text in TEXTS])
    for column, result in enumerate(index.query_many(TEXTS, top=5, candidates=5)):
        words = captions.fragments[column][captions.mask[column]]
        expected = {}
        for row, image_id in enumerate(index.gallery.image_ids):
            products = words @ images.fragments[row][images.mask[row]].T
            expected[image_id] = float(products.amax(1).mean() if shortlist == "words" else products.mean())
        best = sorted(expected, key=expected.get, reverse=True)[:5]
        assert {hit.image_id for hit in result.hits} == set(best)
        for hit in result.hits:
            assert hit.shortlist_score == pytest.approx(expected[hit.image_id], abs=1e-5)


def test_candidates_of_another_model(dataset, tmp_path):
    make_model("vse", 3).save_pretrained(tmp_path / "vse" / "model")
    make_model("scan").save_pretrained(tmp_path / "scan")
    index = build_index(tmp_path / "scan", dataset, tmp_path / "index", shortlist=tmp_path / "vse", progress=False)
    other = build_index(tmp_path / "vse", dataset, progress=False)
    index = SearchIndex.open(tmp_path / "index")
    assert index.shortlist == "vse"
    for text in TEXTS:
        found = {hit.image_id for hit in index.query(text, top=7, candidates=7).hits}
        assert found == {hit.image_id for hit in other.query(text, top=7).hits}
    assert_scores_of(index, index.query_many(TEXTS, candidates=12), full_scores(index, TEXTS))
    make_model("vse", 4).save_pretrained(tmp_path / "vse" / "model")
    with refused(f"{(tmp_path / 'vse' / 'model').resolve()} is not the model that the index was made by"):
        SearchIndex.open(tmp_path / "index")


@pytest.mark.parametrize("names", [("vse", "hrem"), ("scan", "vse", "dive"), ("scan", "scan_it")])
def test_ensembles_take_the_candidates_of_all_members(names, dataset):
    index = build_index(make_ensemble(*names), dataset, progress=False)
    results = index.query_many(TEXTS, top=TOP, candidates=8)
    scores = full_scores(index, TEXTS)
    assert_scores_of(index, results, scores)
    assert all(8 <= result.scored <= 8 * len(names) for result in results)
    assert_best_of(index, index.query_many(TEXTS, candidates=1000), scores)
    few = index.query_many(TEXTS[:1], top=1, candidates=1)[0]
    firsts = [build_index(member, dataset, progress=False).query(TEXTS[0], top=1, candidates=1).hits[0].image_id for member in index.model.models]
    assert few.scored == len(set(firsts)) and few.hits[0].image_id in firsts


def test_sets_are_found_by_their_elements(dataset):
    """DivE: with torch, candidates are the pictures with the largest mean over a query's elements of their best element."""
    index = build_index(make_model("dive"), dataset, progress=False)
    assert len(index.shortlists[0].pictures.vectors) == 3 * 3 * PICTURES
    result = index.query(TEXTS[0], top=5, candidates=5)
    from itm_lib.evaluation.scoring import encode_images, encode_tokens

    query = encode_tokens(index.model, [index.vocabulary.encode(TEXTS[0])]).embedding[0]
    sets = encode_images(index.model, index.gallery).embedding
    best = (sets @ query.T).amax(1).mean(1)
    assert {hit.image_id for hit in result.hits} == {index.gallery.image_ids[row] for row in best.topk(5).indices}


def test_models_of_pixels(dataset, tmp_path):
    torch.manual_seed(0)
    resnet = {"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1]}
    vocabulary = make_model("dive").vocabulary
    model = build_model("dive", {"embed_dim": 16, "word_dim": 8, "num_slots": 2, "num_heads": 2, "head_dim": 4, "iterations": 1,
                                 "image_encoder": "grid", "backbone_config": resnet, "image_size": 32}, None, len(vocabulary)).eval()
    model.vocabulary = vocabulary
    for source in (dataset, dataset / "images"):
        index = build_index(model, source, progress=False)
        assert len(index) == 3 * PICTURES
        assert_best_of(index, index.query_many(TEXTS, candidates=1000), full_scores(index, TEXTS))
    hit = index.query("a dog", candidates=5, top=5).hits[0]
    assert len(hit.regions) == 4 ** 2 and sum(region.weight for region in hit.regions) == pytest.approx(1, abs=1e-4)
    assert hit.path.is_file()
    with refused("this model reads pictures, not regions, and"):
        build_index(model, dataset / "regions" / "val.h5")
    own = dataset / "images" / "val" / "3.png"
    assert index.query(image=own, top=1).hits[0].image_id == "val/3"
    index.save(tmp_path / "index")
    shutil.copytree(dataset / "images", tmp_path / "images")
    (tmp_path / "images" / "val" / "3.png").write_bytes(own.read_bytes() + b" ")
    with refused(f"{tmp_path / 'images'} is not what the index"):
        SearchIndex.open(tmp_path / "index", source=tmp_path / "images")


# --- what is indexed ---

def test_all_splits_or_one_or_a_file(dataset, tmp_path):
    model = make_model("vse")
    assert len(build_index(model, dataset, progress=False)) == 3 * PICTURES
    one = build_index(model, dataset, split="val", progress=False)
    assert one.gallery.image_ids == [f"val/{number}" for number in range(PICTURES)]
    of_file = build_index(model, dataset / "regions" / "val.h5", images=dataset / "images", progress=False)
    result, same = of_file.query("a dog"), one.query("a dog")
    assert result == same
    assert result.hits[0].path == dataset / "images" / f"{result.hits[0].image_id}.png"
    assert build_index(model, dataset / "regions" / "val.h5", progress=False).query("a dog").hits[0].path is None


def test_one_region_file_of_all_splits_has_pictures_without_captions_too(tmp_path):
    folder = make_folder(tmp_path / "data", together=True)
    index = build_index(make_model("vse"), folder, progress=False)
    assert len(index) == 3 * PICTURES + 1 and index.gallery.image_ids[-1] == "extra"
    one = build_index(make_model("vse"), folder, split="test", progress=False)
    assert one.gallery.image_ids == [f"test/{number}" for number in range(PICTURES)]
    assert index.query("a dog", top=28, candidates=28).hits[0].path.is_file()
    assert_best_of(one, one.query_many(TEXTS), full_scores(one, TEXTS))


def test_what_does_not_fit_is_one_line(dataset, tmp_path):
    model = make_model("vse")
    wide = build_model("vse", {"embed_dim": 16, "word_dim": 8}, DIM + 1, len(model.vocabulary))
    wide.vocabulary = model.vocabulary
    silent = build_model("vse", {"embed_dim": 16, "word_dim": 8}, DIM, len(model.vocabulary))
    silent.save_pretrained(tmp_path / "silent")
    for seed in (0, 1):
        model.save_pretrained(tmp_path / "seeds" / f"seed{seed}" / "model")
    for line, arguments in [
        (f"this model was made for regions of 9 numbers, {dataset} has regions of 8", {"model": wide}),
        (f"{tmp_path / 'silent'} has no vocabulary.json, so queries cannot be read", {"model": tmp_path / "silent"}),
        (f"{tmp_path / 'seeds'} has models of 2 seeds: choose one, for example {tmp_path / 'seeds/seed0/model'}", {"model": tmp_path / "seeds"}),
        (f"no model folder {tmp_path / 'none'}", {"model": tmp_path / "none"}),
        (f"no region file {tmp_path / 'none.h5'}", {"source": tmp_path / "none.h5"}),
        (f"{tmp_path} is no dataset folder, it has no splits.json", {"source": tmp_path}),
        (f"{dataset} has no split 'vall'", {"split": "vall"}),
        ("no index is of kind 'fiass'", {"kind": "fiass"}),
        ("shortlist 'words' is for SCAN and CAMP", {"shortlist": "words"}),
        ("shortlist 'averages' is none of mean, words and no model folder", {"shortlist": "averages"}),
        (f"no folder of pictures {tmp_path / 'none'}", {"images": tmp_path / "none"}),
        ("index of kind torch: unknown 'nprob': did you mean 'nprobe'?", {"nprob": 3}),
    ]:
        with refused(line):
            build_index(**{"model": model, "source": dataset, "progress": False, **arguments})
    make_model("scan").save_pretrained(tmp_path / "scan")
    with refused(f"shortlist {tmp_path / 'scan'}: scan has no embeddings"):
        build_index(make_model("camp"), dataset, shortlist=tmp_path / "scan", progress=False)


def test_too_few_vectors_for_ivfpq_are_searched_exactly_and_it_is_said(dataset):
    index = build_index(make_model("vse"), dataset, kind="ivfpq", progress=False)
    assert index.notes == ("an ivfpq index learns from 9,984 vectors at least and there are 27: kind flat, which is exact, is used",)
    assert index.settings.kind == "flat"
    assert_best_of(index, index.query_many(TEXTS), full_scores(index, TEXTS))


# --- the folder ---

@pytest.fixture
def saved(dataset, tmp_path):
    """A saved model, a copy of the data, and an index of them, all in one folder."""
    home = tmp_path / "home"
    shutil.copytree(dataset, home / "data")
    make_model("scan").save_pretrained(home / "runs" / "mine" / "model")
    build_index(home / "runs" / "mine", home / "data", home / "runs" / "search", kind="hnsw", progress=False)
    return home


def test_an_index_opens_as_it_was_and_anywhere(saved, tmp_path):
    built = build_index(saved / "runs" / "mine", saved / "data", kind="hnsw", progress=False)
    index = SearchIndex.open(saved / "runs" / "search")
    expected = built.query_many(TEXTS, candidates=10)
    assert index.query_many(TEXTS, candidates=10) == expected
    assert index.settings == built.settings and index.shortlist == "words" and len(index) == len(built)
    files = sorted(path.name for path in (saved / "runs" / "search").iterdir() if not path.name.startswith("."))
    assert [re.sub("[0-9a-f]{12}", "*", name) for name in files] == ["found-*-0.faiss", "index.json", "vectors-*.safetensors"]
    saved.rename(tmp_path / "moved")
    moved = SearchIndex.open(tmp_path / "moved" / "runs" / "search").query_many(TEXTS, candidates=10)
    assert [[hit.score for hit in result.hits] for result in moved] == [[hit.score for hit in result.hits] for result in expected]
    shutil.move(tmp_path / "moved" / "runs" / "search", tmp_path / "alone")
    with refused(f"the model {saved / 'runs/mine/model'} of the index {tmp_path / 'alone'} is not there any more"):
        SearchIndex.open(tmp_path / "alone")
    there = tmp_path / "moved"
    assert SearchIndex.open(tmp_path / "alone", there / "runs/mine", there / "data").query("a dog", candidates=10).hits


def test_a_model_given_as_an_object_is_kept_in_the_index(dataset, tmp_path):
    index = build_index(make_ensemble("vse", "dive"), dataset, tmp_path / "index", progress=False)
    assert SearchIndex.open(tmp_path / "index").query_many(TEXTS) == index.query_many(TEXTS)


def test_what_changed_since_is_told(saved):
    folder = saved / "runs" / "search"
    model = make_model("scan", seed=5)
    original = (saved / "runs/mine/model/model.safetensors").read_bytes()
    model.save_pretrained(saved / "runs/mine/model")
    with refused(f"{saved / 'runs/mine/model'} is not the model that the index was made by: it was trained again or replaced, index again"):
        SearchIndex.open(folder)
    (saved / "runs/mine/model/model.safetensors").write_bytes(original)
    SearchIndex.open(folder)
    metadata = read_json(saved / "runs/mine/model/config.json")
    write_json(saved / "runs/mine/model/config.json", {**metadata, "metadata": {"test": {"rsum": 1.0}}})  # what evaluating it adds
    SearchIndex.open(folder)
    write_store(saved / "data/regions/val.h5", [f"val/{number}" for number in range(PICTURES)], np.random.default_rng(9))
    with refused(f"{saved / 'data'} is not what the index {folder} was made of: its pictures or regions changed, index again"):
        SearchIndex.open(folder)
    shutil.rmtree(saved / "data")
    with refused(f"the source {saved / 'data'} of the index {folder} is not there any more: put it back, or index again"):
        SearchIndex.open(folder)


def test_damaged_and_missing_files_are_one_line(saved):
    folder = saved / "runs" / "search"
    content = read_json(folder / "index.json")
    vectors, found = folder / content["files"]["vectors"], folder / content["files"]["found"][0]
    for path in (vectors, found):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with refused(f"{path} cannot be read"):
            SearchIndex.open(folder)
        path.unlink()
        with refused(f"{path} cannot be read"):
            SearchIndex.open(folder)
        path.write_bytes(whole)
    write_json(folder / "index.json", {**content, "format": 99})
    with refused(f"{folder / 'index.json'} is not of this version of itm_lib: index again"):
        SearchIndex.open(folder)
    (folder / "index.json").write_text(json.dumps(content)[:100])
    with refused(f"{folder / 'index.json'} is not valid JSON"):
        SearchIndex.open(folder)
    with refused(f"{saved} holds no index: make one first, itm search index MODEL DATA --out {saved}"):
        SearchIndex.open(saved)


KILLED = """
import os, signal, sys
from itm_lib.search import build_index, index
write = index.save_file
def die(tensors, path):
    write(tensors, path)
    os.truncate(path, 100)
    os.kill(os.getpid(), signal.SIGKILL)
index.save_file = die
build_index(*sys.argv[1:4], shortlist="mean", progress=False)
"""


def test_a_build_that_is_killed_leaves_the_index_as_it_was(saved):
    folder = saved / "runs" / "search"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    killed = subprocess.run([sys.executable, "-c", KILLED, saved / "runs/mine", saved / "data", folder], capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.items() <= after.items() and len(after) > len(before)
    assert SearchIndex.open(folder).shortlist == "words"
    build_index(saved / "runs/mine", saved / "data", folder, shortlist="mean", progress=False)
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".json", ".safetensors"]  # nothing is left of either
    assert SearchIndex.open(folder).shortlist == "mean"


def test_what_cannot_be_written_is_one_line(saved, monkeypatch, tmp_path):
    folder = saved / "runs" / "search"

    def full(tensors, path):
        raise OSError(28, "No space left on device")

    index = SearchIndex.open(folder)
    monkeypatch.setattr(index_module, "save_file", full)
    with refused(f"{folder} cannot be written ([Errno 28] No space left on device): make room, and index again"):
        index.save(folder)
    assert SearchIndex.open(folder).query("a dog").hits
    (tmp_path / "file").write_text("")
    with refused(f"{tmp_path / 'file'} is a file: give a folder for the index"):
        index.save(tmp_path / "file")
    from itm_lib.files import held

    with held(folder / ".lock", ""), refused(f"another process writes the index {folder}"):
        index.save(folder)
    assert os.listdir(folder)
