"""Neighbour batches: clusters of what looks alike to the model, in the later epochs, and a run that stops among them goes on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import nn

from itm_lib.files import InputError
from itm_lib.models import build_model
from itm_lib.models.base import Encoding
from itm_lib.training import TrainConfig, Trainer, seed_everything
from itm_lib.training import trainer as trainer_module
from itm_lib.training.neighbours import cluster_images, number_of_clusters


def make(train, method="hrem"):
    seed_everything(0)
    settings = {"embed_dim": 16, "word_dim": 8, **({"num_heads": 2} if method == "hrem" else {})}
    return build_model(method, settings, train.regions.dim, len(train.vocabulary))


def config(**settings):
    return TrainConfig(**{"epochs": 4, "batch_size": 12, "neighbour_images": 4, "neighbour_clusters": 5, "save_every": 3, **settings})


class Placed(nn.Module):
    """Stands for a model that puts picture ``i`` into group ``i % 3``; with ``members``, as a set of embeddings."""

    name = "placed"

    def __init__(self, train, members=0):
        super().__init__()
        self.members, self.first = members, torch.from_numpy(train.regions.features(range(train.num_images))[:, 0])

    def encode_images(self, regions, mask):
        rows = torch.cdist(regions[:, 0], self.first).argmin(1)
        noise = 0.05 * torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(len(rows)))
        embedding = nn.functional.normalize(torch.eye(3)[rows % 3] + noise, dim=1)
        return Encoding(embedding=embedding[:, None].repeat(1, self.members, 1) if self.members else embedding)


@pytest.mark.parametrize("members", [0, 4])
def test_clusters_are_of_what_the_model_embeds_side_by_side(splits, members):
    train = splits[0]
    found = cluster_images(Placed(train, members), train, 3)
    assert found.shape == (train.num_images,) and found.dtype == np.int64
    assert adjusted_rand_score(np.arange(train.num_images) % 3, found) == 1


def test_clusters_depend_on_model_and_seed_alone_and_leave_the_model_as_it_was(splits):
    train, model = splits[0], make(splits[0]).train()
    state = torch.get_rng_state()
    first = cluster_images(model, train, 5, seed=1)
    torch.manual_seed(3), np.random.seed(3)
    assert np.array_equal(first, cluster_images(model, train, 5, seed=1)) and len(set(first)) == 5
    torch.set_rng_state(state)
    cluster_images(model, train, 5)
    assert torch.equal(torch.get_rng_state(), state) and model.training


def test_a_cluster_holds_several_batches_worth_of_pictures():
    assert number_of_clusters(29000, 16) == 453 and number_of_clusters(5, 16) == 2


def recorded(monkeypatch, trainer):
    """(epoch, weights' sum) of each clustering, and the batches of each epoch, as the trainer goes."""
    calls, cluster = [], trainer_module.cluster_images
    monkeypatch.setattr(trainer_module, "cluster_images", lambda *args: calls.append(trainer.state.epoch) or cluster(*args))
    return calls


@pytest.mark.parametrize("start, refresh, expected", [(0.5, 1, [2, 3]), (0, 2, [0, 2]), (1, 3, [1]), (0.25, 1, [1, 2, 3])])
def test_pictures_are_clustered_in_the_later_epochs_as_often_as_asked(splits, tmp_path, monkeypatch, start, refresh, expected):
    trainer = Trainer(make(splits[0]), *splits, config(neighbour_start=start, neighbour_refresh=refresh), tmp_path, progress=False)
    calls = recorded(monkeypatch, trainer)
    trainer.fit()
    assert calls == expected


def test_batches_are_random_before_and_neighbours_after(splits, tmp_path):
    train, val = splits
    trainer = Trainer(make(train), train, val, config(), tmp_path, progress=False)
    shares = {}

    def look(history):
        labels = cluster_images(trainer.model, train, trainer.clusters) if trainer.sampler.labels is None else trainer.sampler.labels
        runs = [labels[train.caption_to_image[batch[first : first + 4]]] for batch in trainer.sampler for first in (0, 4, 8)]
        shares[trainer.state.epoch] = np.mean([len(set(run)) == 1 for run in runs if len(run) == 4])

    trainer.on_epoch = look
    trainer.fit()
    assert max(shares[1], shares[2]) < 0.3 and min(shares[3], shares[4]) > 0.6
    trainer.config = config(neighbour_start=3)
    trainer.fit()
    assert shares[1] < 0.3, "a second run starts with random batches again"


class Stopping:
    """Interrupts a model's training at its ``at``-th pass."""

    def __init__(self, model, at):
        self.model, self.at, self.forward, self.passes = model, at, model.forward, 0
        model.forward = self

    def __call__(self, *args, **options):
        self.passes += 1
        if self.passes == self.at:
            raise KeyboardInterrupt
        return self.forward(*args, **options)


@pytest.mark.parametrize("stop_at", [23, 26, 38])  # of 10 steps an epoch: clusters from step 20 on, found again at 30
def test_a_run_that_stops_among_neighbours_ends_with_the_same_weights(splits, tmp_path, stop_at):
    whole, stopped, resumed = (make(splits[0]) for _ in range(3))
    expected = Trainer(whole, *splits, config(), tmp_path / "whole", progress=False).fit()
    Stopping(stopped, stop_at)
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, *splits, config(), tmp_path / "run", progress=False).fit()
    history = Trainer(resumed, *splits, config(), tmp_path / "run", progress=False).fit(resume=True)
    assert all(torch.equal(mine, other) for mine, other in zip(whole.state_dict().values(), resumed.state_dict().values()))
    assert [row["loss"] for row in history.epochs] == [row["loss"] for row in expected.epochs]


def test_a_model_without_embeddings_and_too_many_clusters_are_refused(splits, tmp_path):
    train, val = splits
    with pytest.raises(InputError, match="needs an embedding of each picture, and the model 'scan' has none: leave it out"):
        Trainer(make(train, "scan"), train, val, config(), tmp_path)
    with pytest.raises(InputError, match="neighbour_clusters is 61 and there are 60 pictures: give fewer"):
        Trainer(make(train), train, val, config(neighbour_clusters=61), tmp_path)
    with pytest.raises(InputError, match="61 clusters of 60 pictures"):
        cluster_images(make(train), train, 61)
    assert Trainer(make(train), train, val, config(neighbour_clusters=None), tmp_path).clusters == 3


@pytest.mark.parametrize("settings, line", [
    ({"neighbour_images": 5}, "train: batch_size 12 is no multiple of neighbour_images 5"),
    ({"neighbour_images": 1}, "train.neighbour_images = 1: input should be greater than or equal to 2"),
    ({"neighbour_start": 1.5}, "train: neighbour_start 1.5: give a fraction of the run below 1, or a whole epoch"),
])
def test_bad_settings_are_one_line(settings, line):
    with pytest.raises(InputError) as error:
        config(**settings)
    assert str(error.value) == line
