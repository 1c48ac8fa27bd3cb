"""The authors' files as they lie on disk, and what is made of them: a model folder that is evaluated like any other."""

import argparse
import json
import pickle
import types
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from official_states import (
    CAMP_OPTIONS,
    DIVE_OPTIONS,
    HREM_OPTIONS,
    SCAN_OPTIONS,
    camp_states,
    dive_states,
    hrem_states,
    states,
)

from itm_lib.data.captions import WordPieces
from itm_lib.data.regions import RegionWriter
from itm_lib.evaluation import (
    encode_dataset,
    evaluate,
    evaluate_ensemble,
    open_split,
    read_scores,
    similarity_matrix,
)
from itm_lib.files import InputError, write_json, write_jsonl
from itm_lib.models import load_model
from itm_lib.models.official import convert_official, load_official, read_options

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *(f"word{n}" for n in range(20)), ".", ",", "'s", "``", "''", "a"]
METHODS = {"scan": (states, SCAN_OPTIONS), "camp": (camp_states, CAMP_OPTIONS), "hrem": (hrem_states, {**HREM_OPTIONS, "num_layers_enc": 1}),
           "dive": (lambda: dive_states(copies=3), DIVE_OPTIONS)}


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def parallel(part):
    return OrderedDict((f"module.{key}", value) for key, value in part.items())


def save(path, method, wrapped=True, **changes):
    """A checkpoint as the authors' code writes it: DivE's model is one dict, the others' a list of state dicts."""
    make, options = METHODS[method]
    parts = [OrderedDict(part) for part in make()]
    if method == "dive":
        model = OrderedDict((f"{name}.{key}", value) for name, part in zip(("img_enc", "txt_enc"), parts) for key, value in part.items())
        content = {"args": argparse.Namespace(**options), "epoch": 79, "best_score": 480.5, "model": parallel(model) if wrapped else model}
    else:
        content = {"epoch": 12, "model": [parallel(part) for part in parts] if wrapped else parts, "best_rsum": 431.25,
                   "opt": argparse.Namespace(**options), "Eiters": 3000}
    torch.save({**content, **changes}, path)
    return path


def same_model(first, second):
    own, other = first.state_dict(), second.state_dict()
    return first.config == second.config and own.keys() == other.keys() and all(torch.equal(own[key], other[key]) for key in own)


def loaded(source, method, **more):
    torch.manual_seed(0)  # HREM's relation modules are in no checkpoint
    return load_official(source, method, **more)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrapped", [True, False])
def test_each_methods_checkpoint_is_read_from_its_file(tmp_path, method, wrapped):
    make, options = METHODS[method]
    model = loaded(save(tmp_path / "model_best.pth.tar", method, wrapped), method)
    assert same_model(model, loaded({"model": make(), "opt": options}, method))
    fewer = {"dive": {"heads": 2}, "hrem": {"nhead": 4}}.get(method, {})  # what no shape tells
    assert not same_model(model, loaded(make(), method, config=fewer))


class PythonTwoPickler(pickle._Pickler):
    """Writes byte strings for strings and a list of pairs for an ordered dict, as Python 2 did."""

    dispatch = dict(pickle._Pickler.dispatch)
    dispatch_table = {OrderedDict: lambda content: (OrderedDict, ([list(item) for item in content.items()],))}

    def save_str(self, value):
        self.write(b"U" + bytes([len(value.encode())]) + value.encode())
        self.memoize(value)

    dispatch[str] = save_str


@pytest.mark.parametrize("method", ["scan", "camp"])
def test_files_of_python_2_and_an_old_torch_are_read(tmp_path, method):
    make, options = METHODS[method]
    module = types.SimpleNamespace(__name__="pickle", Pickler=PythonTwoPickler, dump=lambda value, file, protocol: PythonTwoPickler(file, protocol).dump(value))
    content = {"epoch": 3, "model": [parallel(part) for part in make()], "best_rsum": 400.0, "opt": argparse.Namespace(**options), "Eiters": 9}
    torch.save(content, tmp_path / "old.pth.tar", pickle_module=module, _use_new_zipfile_serialization=False)
    assert same_model(load_official(tmp_path / "old.pth.tar", method), load_official({"model": make(), "opt": options}, method))


@pytest.mark.parametrize("write", [
    lambda path, options: torch.save(argparse.Namespace(**options), path),
    lambda path, options: torch.save({"epoch": 3, "opt": argparse.Namespace(**options)}, path),
    lambda path, options: torch.save(argparse.Namespace(**options), path, _use_new_zipfile_serialization=False),
    lambda path, options: path.write_bytes(pickle.dumps(argparse.Namespace(**options))),
    lambda path, options: path.write_bytes(pickle.dumps(argparse.Namespace(**options), 2)),
    lambda path, options: path.write_bytes(pickle.dumps(options))])
@pytest.mark.parametrize("method", ["scan", "camp"])
def test_options_may_lie_beside_the_checkpoint(tmp_path, write, method):
    make, options = METHODS[method]
    write(tmp_path / "opt.pkl", options)
    assert same_model(load_official(make(), method, options=tmp_path / "opt.pkl"), load_official({"model": make(), "opt": options}, method))


def test_options_as_text(tmp_path):
    (tmp_path / "opt.json").write_text(json.dumps(SCAN_OPTIONS))
    (tmp_path / "config_test.yaml").write_text(yaml.safe_dump({"common": CAMP_OPTIONS}))
    assert read_options(tmp_path / "opt.json") == SCAN_OPTIONS and read_options(tmp_path / "config_test.yaml") == CAMP_OPTIONS
    save(tmp_path / "scan.pth.tar", "scan")
    assert load_official(tmp_path / "scan.pth.tar", "scan", {"lambda_lse": 7}, {"cross_attn": "t2i", "lambda_lse": 8}).config.direction == "t2i"
    assert load_official(tmp_path / "scan.pth.tar", "scan", {"lambda_lse": 7}, {"lambda_lse": 8}).config.lambda_lse == 7


class Hostile:
    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_code_in_a_checkpoint_or_its_options_is_not_run(tmp_path, method, zipped):
    hostile = Hostile()
    hostile.path = str(tmp_path / "run")
    torch.save({"model": METHODS[method][0](), "opt": argparse.Namespace(margin=hostile)}, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(argparse.Namespace(margin=hostile)))
    for work, line in ((lambda: load_official(tmp_path / "bad.pth", method), "bad.pth holds (_io|io).open, which is not read"),
                       (lambda: read_options(tmp_path / "bad.pth"), "bad.pth holds (_io|io).open, which is not read"),
                       (lambda: read_options(tmp_path / "bad.pkl"), "bad.pkl holds (_io|io).open: of a file of options nothing is read"),
                       (lambda: convert_official(tmp_path / "bad.pth", method, tmp_path / "out"), "which is not read")):
        with pytest.raises(InputError, match=line) as error:
            work()
        line_of(error)
    assert not (tmp_path / "run").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "content", "line"), [
    ("opt.json", b"[1]", "must be a mapping of names to values, not list"), ("opt.json", b"{", "is not valid JSON"),
    ("opt.yaml", b"a: [", "is not valid YAML"), ("opt.yaml", b"3", "must be a mapping"), ("opt.pkl", pickle.dumps([1]), "must be a mapping"),
    ("opt.pkl", b"", "cannot be read as a pickle"), ("opt.pkl", pickle.dumps({"a": 1j}), "holds builtins.complex"), ("gone", None, "no options")])
def test_what_are_no_options_is_one_line(tmp_path, name, content, line):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line) as error:
        read_options(tmp_path / name)
    assert name in line_of(error)


# --- from the authors' files to scores --------------------------------------------------------------------------------

TEXTS = ["Word1, word2.", "word3's word4", '"Word5" word6 .', "a word7. Word8", "Nobody knows word9", "word10 word11 word12 word13"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset of three test pictures of two captions each. It has no words of its own: models bring theirs."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    ids = ["p0", "p1", "p2"]
    with RegionWriter(folder / "regions" / "test.h5", ids, 4, 10, "test") as writer:
        for row in range(3):
            writer.write(row, rng.normal(size=(4, 10)).astype(np.float32), np.array([[0, 0, 1, 1]] * 4, dtype=np.float32))
    write_jsonl(folder / "captions.jsonl", ({"caption_id": f"c{n}", "image_id": ids[n // 2], "text": text, "split": "test"}
                                            for n, text in enumerate(TEXTS)))
    write_json(folder / "splits.json", {"test": ids})
    write_json(folder / "vocabulary.json", {"words": ["<pad>", "<start>", "<end>", "<unk>", "dog"]})
    return folder


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory, bert_folder):
    """The authors' vocabulary of each method: SCAN's JSON, the others' pickles, DivE's without <mask>."""
    folder = tmp_path_factory.mktemp("vocab")
    ids = {word: place for place, word in enumerate(WORDS)}
    (folder / "scan.json").write_text(json.dumps({"word2idx": ids, "idx2word": {str(n): word for n, word in enumerate(WORDS)}, "idx": 30}))
    (folder / "camp.pkl").write_bytes(pickle.dumps(ids, 2))
    (folder / "dive.pkl").write_bytes(pickle.dumps({"word2idx": dict(list(ids.items())[:-1])}, 2))
    return {"scan": folder / "scan.json", "camp": folder / "camp.pkl", "dive": folder / "dive.pkl", "hrem": bert_folder}


@pytest.mark.parametrize("method", METHODS)
def test_a_converted_model_scores_as_the_authors_does(tmp_path, data, vocabularies, method):
    checkpoint = save(tmp_path / "model_best.pth.tar", method)
    out = convert_official(checkpoint, method, tmp_path / "model", vocabularies[method])
    model, vocabulary = load_model(out)
    official = load_official(checkpoint, method)
    dataset = open_split(data, "test", vocabulary=vocabulary)
    if method == "hrem":
        assert isinstance(vocabulary, WordPieces) and dataset.tokens[5] == WordPieces.from_pretrained(vocabularies["hrem"]).encode(TEXTS[5])
    else:
        words = ["<start> word1 , word2 . <end>", "<start> word3 's word4 <end>", "<start> `` word5 '' word6 . <end>",
                 "<start> a word7 . word8 <end>", "<start> <unk> <unk> word9 <end>", "<start> word10 word11 word12 word13 <end>"]
        known = WORDS if method != "dive" else [*WORDS[:-1], "<mask>"]  # which has no "a" then
        ids = {word: place for place, word in enumerate(known)}
        assert dataset.tokens == [[ids.get(word, 3) for word in line.split()] for line in words]
    scores = similarity_matrix(official, *encode_dataset(official, dataset))
    metrics = evaluate(model, data, scores_file=tmp_path / "scores.npy")
    assert torch.equal(torch.from_numpy(np.array(read_scores(tmp_path / "scores.npy").scores)), scores) and metrics["rsum"] > 0
    about = model.metadata["recipe"]["official"]
    assert (about["method"], about["file"], len(about["sha256"])) == (method, "model_best.pth.tar", 64)
    assert about["epoch"] == (79 if method == "dive" else 12)
    again = convert_official(checkpoint, method, tmp_path / "again", vocabularies[method], paper={"dataset": "coco", "variant": None})
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert load_model(again)[0].metadata["recipe"]["paper"] == {"dataset": "coco", "variant": None}


def test_an_ensemble_of_two_methods_is_the_mean_of_their_scores(tmp_path, data, vocabularies):
    folders = [convert_official(save(tmp_path / f"{method}.pth", method), method, tmp_path / method, vocabularies[method]) for method in ("scan", "hrem")]
    for folder in folders:
        evaluate(load_model(folder)[0], data, scores_file=tmp_path / f"{folder.name}.safetensors")
    first, second = (read_scores(tmp_path / f"{folder.name}.safetensors").scores for folder in folders)
    metrics = evaluate_ensemble(folders, data, scores_file=tmp_path / "both.npy")
    assert np.array_equal(read_scores(tmp_path / "both.npy").scores, (first + second) / 2)
    assert metrics == evaluate_ensemble([tmp_path / "scan.safetensors", folders[1]], data)


def test_vocabularies_that_do_not_fit_are_one_line(tmp_path, data, vocabularies, bert_folder):
    scan, hrem = save(tmp_path / "scan.pth", "scan"), save(tmp_path / "hrem.pth", "hrem")
    torch.save({"model": hrem_states(vocab=31), "opt": argparse.Namespace(**METHODS["hrem"][1])}, tmp_path / "other.pth")
    for arguments, line in (((scan, "scan", tmp_path / "out"), "a checkpoint of scan does not hold its 30 words: give the authors' vocabulary"),
                            ((scan, "scan", tmp_path / "out", vocabularies["dive"]), "has 29 words and the checkpoint was made for 30"),
                            ((tmp_path / "other.pth", "hrem", tmp_path / "out", bert_folder), "has 30 word pieces and the checkpoint was made for 31"),
                            ((hrem, "hrem", tmp_path / "out", vocabularies["scan"]), "is a file: HREM reads the word pieces of a BERT"),
                            ((scan, "blip", tmp_path / "out"), "no loader for official checkpoints of 'blip'"),
                            ((scan, "camp", tmp_path / "out", vocabularies["camp"]), "is not a CAMP checkpoint")):
        with pytest.raises(InputError, match=line) as error:
            convert_official(*arguments)
        line_of(error)
    assert not (tmp_path / "out").exists()
