"""The trainer and the evaluator with a model of sets: every picture of a batch comes once, with all its captions."""

from __future__ import annotations

import pytest
import torch
from made_for_training import same_weights

from itm_lib.evaluation.scoring import encode_dataset, similarity_matrix
from itm_lib.files import InputError
from itm_lib.models import build_model, load_model
from itm_lib.training import TrainConfig, Trainer, run_recipe, seed_everything
from itm_lib.training.recipe import Recipe


def test_dive_trains_on_whole_sets_of_captions_and_is_evaluated(splits, tmp_path):
    train, val = splits
    seed_everything(0)
    settings = {"embed_dim": 16, "word_dim": 8, "num_heads": 2, "head_dim": 8, "iterations": 2, "num_slots": 3}
    model = build_model("dive", settings, train.regions.dim, len(train.vocabulary))
    seen, forward = [], model.forward
    model.forward = lambda batch, gather=None: seen.append(batch) or forward(batch, gather)
    history = Trainer(model, train, val, TrainConfig(epochs=1, batch_size=20, lr=3e-3), tmp_path, progress=False).fit()
    del model.forward
    assert len(seen) == 3
    for batch in seen:
        assert len(batch.regions) == len(batch.image_ids.unique()) == 20 and len(batch.tokens) == 40
        assert torch.equal(batch.image_ids.repeat_interleave(2), batch.caption_image_ids)
    assert {"i2t", "t2i", "mmd", "diversity", "collapsed_loss"} <= set(history.steps[0])
    images, captions = encode_dataset(model, val, batch_size=100)
    assert images.embedding.shape == (30, 3, 16) and captions.fragments.shape[::2] == (60, 3)
    scores = similarity_matrix(model, *encode_dataset(model, val, batch_size=7), block_bytes=2000)
    torch.testing.assert_close(scores, similarity_matrix(model, images, captions), rtol=0, atol=1e-6)


def test_dive_starts_from_the_word_vectors_of_a_file_and_is_saved_without_it(folder, splits, tmp_path, capsys):
    path, words = tmp_path / "vectors.txt", splits[0].vocabulary
    known = words.words[4:9]
    path.write_text("\n".join(f"{word} " + " ".join(str(number + place / 8) for place in range(8)) for number, word in enumerate(known)))
    model = {"method": "dive", "embed_dim": 16, "word_dim": 8, "num_heads": 2, "head_dim": 8, "iterations": 2}
    recipe = lambda **more: Recipe.parse({"data": {"folder": str(folder)}, "model": {**model, **more},  # noqa: E731
                                          "train": {"epochs": 2, "batch_size": 20, "lr": 1e-5, "optimizer": "adamw", "seed": 5}})
    plain = run_recipe(recipe(), tmp_path / "plain", progress=False).model
    run = run_recipe(recipe(word_vectors=str(path)), tmp_path / "run")
    assert f"word vectors: 5 of the {len(words)} words of the captions are in {path}" in capsys.readouterr().err
    rows = [words.id(word) for word in known]
    expected = torch.arange(5)[:, None] + torch.arange(8) / 8
    weight, before = run.model.text.embed.weight.detach(), plain.text.embed.weight.detach()
    torch.testing.assert_close(weight[rows], expected, rtol=0, atol=1e-3)  # and a little training
    others = [row for row in range(len(words)) if row not in rows]
    torch.testing.assert_close(weight[others], before[others], rtol=0, atol=1e-3)  # the same N(0, 1) as without the file
    assert run.model.config.word_vectors_found == 5 and (weight[rows] - before[rows]).abs().max() > 0.1

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe(word_vectors=str(path)), tmp_path / "stopped", progress=False, on_epoch=stop)
    again = run_recipe(recipe(word_vectors=str(path)), tmp_path / "stopped", resume=True, progress=False).model
    path.unlink()
    found = load_model(tmp_path / "run" / "model")[0]
    assert found.config == run.model.config and found.use_vocabulary(words) is None
    assert same_weights(again, run.model) and same_weights(found, run.model)
    with pytest.raises(InputError, match="no file of word vectors .*vectors.txt: check the path"):
        run_recipe(recipe(word_vectors=str(path)), tmp_path / "again", progress=False)
    with pytest.raises(InputError, match="recipe: model: word_vectors are of the GRU's words: a BERT brings its own"):
        recipe(word_vectors=str(path), text_encoder="bert", bert="x")
