"""The trainer and the evaluator with a model of sets: every picture of a batch comes once, with all its captions."""

from __future__ import annotations

import torch

from itm_lib.evaluation.scoring import encode_dataset, similarity_matrix
from itm_lib.models import build_model
from itm_lib.training import TrainConfig, Trainer, seed_everything


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
