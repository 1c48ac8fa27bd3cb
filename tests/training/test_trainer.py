"""The trainer learns, is deterministic, goes on after a stop as if there had been none, and says what is wrong."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from made_for_training import write_dataset
from torch import nn

from itm_lib.data import ImageCaptionDataset, open_split
from itm_lib.data.dataset import load_split
from itm_lib.evaluation import encode_dataset, evaluate_scores, similarity_matrix
from itm_lib.files import InputError
from itm_lib.losses import hinge_loss, matched_pairs, positive_mask
from itm_lib.models import VSE, VSEConfig, build_model
from itm_lib.models.base import Encoding
from itm_lib.training import History, TrainConfig, Trainer, seed_everything
from itm_lib.training import trainer as trainer_module
from itm_lib.training.config import learning_rate, make_optimizer
from itm_lib.training.state import TIMINGS, load_checkpoint


class NoisyVSE(VSE):
    """VSE++ with dropout and noise from all three random generators; ``stop_at``: the forward pass that is interrupted."""

    stop_at: int | None = None
    passes = 0

    def forward(self, batch, gather=None):
        self.passes += 1
        if self.passes == self.stop_at:
            raise KeyboardInterrupt
        noise = random.random() + np.random.rand()
        batch.regions = nn.functional.dropout(batch.regions, 0.2) + 0.01 * noise
        return super().forward(batch, gather)


class Constant(VSE):
    """Scores every pair the same."""

    def similarity(self, images, captions):
        return images.embedding.new_full((len(images), len(captions)), 0.5) + 0 * images.embedding.sum()


def vse_config(train: ImageCaptionDataset, **settings) -> VSEConfig:
    settings = {"embed_dim": 16, "word_dim": 16, **settings}
    return VSEConfig(region_dim=train.regions.dim, vocab_size=len(train.vocabulary), **settings)


def make(kind, train, **settings):
    seed_everything(0)
    return kind(vse_config(train, **settings))


def quick(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 16, "lr": 5e-3, **settings})


def without_time(history: History) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


# --- learning -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["vse", "scan"])
def test_learns_and_returns_the_best_weights(method, splits, tmp_path):
    train, val = splits
    seed_everything(0)
    model = build_model(method, {"embed_dim": 24, "word_dim": 24, "warmup_epochs": 2}, train.regions.dim, len(train.vocabulary))
    seen = []
    history = Trainer(model, train, val, quick(epochs=8, schedule="step"), tmp_path, progress=False,
                      on_epoch=lambda history: seen.append(history.epochs[-1]["epoch"])).fit()
    assert history.best["rsum"] > 450 and history.best["rsum"] == max(row["rsum"] for row in history.epochs)
    assert history.steps[-1]["loss"] < 0.8 * history.steps[-1]["collapsed_loss"]
    now = evaluate_scores(similarity_matrix(model, *encode_dataset(model, val)), val)
    assert now["rsum"] == pytest.approx(history.best["rsum"], abs=1e-6)
    assert seen == list(range(1, 9)) and not history.of("warning")


def test_history_is_written_and_becomes_a_table(splits, tmp_path):
    train, val = splits
    history = Trainer(make(VSE, train), train, val, quick(log_every=3), tmp_path, progress=False).fit()
    read = History.load(tmp_path / "history.jsonl")
    assert read == history
    assert [row["step"] for row in read.steps] == [3, 6, 8, 11, 14, 16, 19, 22, 24]  # 8 steps an epoch
    table = read.frame()
    assert list(table["epoch"]) == [1, 2, 3] and {"loss", "rsum", "t2i_r1", "seconds", "collapsed_loss"} <= set(table)
    assert read.frame("steps")["grad_norm"].gt(0).all()


def test_two_runs_give_the_same_numbers(splits, tmp_path):
    train, val = splits
    models = [make(NoisyVSE, train), make(NoisyVSE, train)]
    histories = [Trainer(model, train, val, quick(), tmp_path / str(number), progress=False).fit()
                 for number, model in enumerate(models)]
    assert same_weights(*models) and without_time(histories[0]) == without_time(histories[1])


def test_loader_processes_change_no_number(splits, tmp_path):
    train, val = splits
    models = [make(NoisyVSE, train), make(NoisyVSE, train)]
    for number, model in enumerate(models):
        Trainer(model, train, val, quick(epochs=1, num_workers=number), tmp_path / str(number), progress=False).fit()
    assert same_weights(*models)


def test_progress_is_shown_or_not(splits, tmp_path, capsys):
    train, val = splits
    Trainer(make(VSE, train), train, val, quick(epochs=2), tmp_path).fit()
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "loss=" in shown and "best val rsum=" in shown
    Trainer(make(VSE, train), train, val, quick(epochs=2), tmp_path, progress=False).fit()
    assert capsys.readouterr() == ("", "")


def test_patience_ends_a_run_that_no_longer_improves(splits, tmp_path):
    train, val = splits
    trainer = Trainer(make(VSE, train), train, val, quick(epochs=9, lr=1e-12, patience=2), tmp_path, progress=False)
    assert len(trainer.fit().epochs) == 3
    assert len(trainer.fit(resume=True).epochs) == 3


def test_of_perfect_epochs_the_last_is_kept_and_patience_still_counts(splits, tmp_path, monkeypatch):
    train, val = splits
    for value, best in ((600.0, 3), (599.0, 1)):  # a val split of a few pictures cannot tell perfect epochs apart
        monkeypatch.setattr("itm_lib.training.trainer.validation_metrics", lambda scores, *_, value=value: {"rsum": value})
        history = Trainer(make(VSE, train), train, val, quick(epochs=9, patience=2), tmp_path / str(best), progress=False).fit()
        assert len(history.epochs) == 3 and history.best["epoch"] == best


def test_evaluates_every_few_epochs_and_at_the_end(splits, tmp_path):
    train, val = splits
    history = Trainer(make(VSE, train), train, val, quick(epochs=3, eval_every=2), tmp_path, progress=False).fit()
    assert ["rsum" in row for row in history.epochs] == [False, True, True]


def test_selects_by_exact_truth_where_there_is_one(folder, tmp_path):
    train, val = open_split(folder, "train"), open_split(folder, "val")
    val.truth = torch.zeros(val.num_images, val.num_captions, dtype=torch.bool)
    val.truth[val.caption_to_image, torch.arange(val.num_captions)] = True
    history = Trainer(make(VSE, train), train, val, quick(select_by="map_at_r"), tmp_path, progress=False).fit()
    assert history.best["map_at_r"] == max((row["i2t_map_at_r"] + row["t2i_map_at_r"]) / 2 for row in history.epochs)


# --- going on -------------------------------------------------------------------------------------------------------------

OPTIMIZERS = {"adam": {}, "sgd": {"optimizer": "sgd", "nesterov": True, "schedule": "cosine", "accumulate": 2}}


@pytest.fixture(scope="module", params=OPTIMIZERS)
def uninterrupted(request, splits, tmp_path_factory):
    """(config, model, history, folder) of a run from start to end."""
    config = quick(epochs=2, save_every=2, log_every=3, warmup_steps=3, **OPTIMIZERS[request.param])
    model, folder = make(NoisyVSE, splits[0]), tmp_path_factory.mktemp("whole")
    return config, model, Trainer(model, *splits, config, folder, progress=False).fit(), folder


@pytest.mark.parametrize("stop_at", [1, 6, 9, 14])  # before a checkpoint, within an epoch, at its first step, in the second
def test_a_stopped_run_ends_with_the_same_weights(stop_at, uninterrupted, splits, tmp_path):
    config, whole, expected, folder = uninterrupted
    stopped, resumed = make(NoisyVSE, splits[0]), make(NoisyVSE, splits[0])
    stopped.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, *splits, config, tmp_path, progress=False).fit()
    if (tmp_path / "last.pt").is_file():
        nn.init.normal_(resumed.image.fc.weight)  # a new process starts with whatever weights
    (tmp_path / ".last.pt.x.part").write_bytes(b"cut short by a kill")
    trainer = Trainer(resumed, *splits, config, tmp_path, progress=False)
    history = trainer.fit(resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "best.safetensors", "history.jsonl", "last.pt"]
    assert same_weights(whole, resumed)
    assert without_time(history) == without_time(expected)
    assert resumed.passes == whole.passes if stop_at == 1 else resumed.passes < whole.passes
    first, second = (load_checkpoint(path / "last.pt", trainer._run())[2] for path in (folder, tmp_path))
    assert first["optimizer"]["state"] and torch.equal(first["random"]["torch"], second["random"]["torch"])
    for state, other in zip(first["optimizer"]["state"].values(), second["optimizer"]["state"].values()):
        assert all(torch.equal(torch.as_tensor(state[name]), torch.as_tensor(other[name])) for name in state)


def test_going_on_with_a_finished_run_trains_no_more(splits, tmp_path):
    train, val = splits
    model, again = make(NoisyVSE, train), make(NoisyVSE, train)
    history = Trainer(model, train, val, quick(), tmp_path, progress=False).fit()
    assert Trainer(again, train, val, quick(), tmp_path, progress=False).fit(resume=True) == history
    assert again.passes == 0 and same_weights(model, again)


def test_a_checkpoint_of_another_run_is_refused(splits, tmp_path):
    train, val = splits
    Trainer(make(VSE, train), train, val, quick(epochs=1), tmp_path, progress=False).fit()
    for model, config, named in (
        (make(VSE, train), quick(epochs=2), "train.epochs is 1 there and 2 here"),
        (make(VSE, train, margin=0.3), quick(epochs=1), "model.margin is 0.2 there and 0.3 here"),
    ):
        with pytest.raises(InputError) as error:
            Trainer(model, train, val, config, tmp_path, progress=False).fit(resume=True)
        assert named in str(error.value) and "another out_dir" in str(error.value) and "\n" not in str(error.value)
    Trainer(make(VSE, train), train, val, quick(epochs=1, save_every=7), tmp_path, progress=False).fit(resume=True)


@pytest.mark.parametrize("damage", ["cut", "text", "pickle"])
def test_a_damaged_checkpoint_is_one_line(damage, splits, tmp_path):
    train, val = splits
    Trainer(make(VSE, train), train, val, quick(epochs=1), tmp_path, progress=False).fit()
    last = tmp_path / "last.pt"
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:5000])
    elif damage == "text":
        last.write_text("not a checkpoint")
    else:
        torch.save({"run": Executes(tmp_path / "executed")}, last)
    with pytest.raises(InputError, match="damaged") as error:
        Trainer(make(VSE, train), train, val, quick(epochs=1), tmp_path, progress=False).fit(resume=True)
    assert "\n" not in str(error.value) and not (tmp_path / "executed").exists()


class Executes:
    """What an attacker would put into a checkpoint."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_two_processes_never_share_a_folder(splits, tmp_path):
    train, val = splits
    hold = ("import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
            "print('held', flush=True); sys.stdin.read()")
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path / ".lock")], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        trainer = Trainer(make(VSE, train), train, val, quick(epochs=1), tmp_path, progress=False)
        with pytest.raises(InputError, match="in use by another run: wait for it, or give another out_dir"):
            trainer.fit()
    finally:
        other.communicate()
    assert trainer.fit().epochs  # its lock went with it


# --- what is refused --------------------------------------------------------------------------------------------------------

def test_the_test_split_is_refused(folder, splits, tmp_path):
    train, val = splits
    test = load_split(folder, "test")
    for pair, line in (((train, test), "the test split as its val"), ((test, val), "the test split as its train"),
                       ((val, train), "the val split as its train"), ((train, train), "the train split as its val")):
        with pytest.raises(InputError, match=line):
            Trainer(make(VSE, train), *pair, quick(), tmp_path)


def test_splits_that_share_pictures_are_refused(splits, tmp_path):
    train, _ = splits
    renamed = ImageCaptionDataset(train.regions, train.texts, train.caption_to_image, train.vocabulary, "val")
    with pytest.raises(InputError, match="train and val share 60 pictures"):
        Trainer(make(VSE, train), train, renamed, quick(), tmp_path)


def test_data_that_does_not_fit_is_refused(splits, tmp_path):
    train, val = splits
    other = open_split(write_dataset(tmp_path / "other", {"train": 5, "val": 5}, seed=1), "val")
    with pytest.raises(InputError, match="different vocabularies"):
        Trainer(make(VSE, train), train, other, quick(), tmp_path)
    for changed, line in (({"vocab_size": 9}, "the model knows 9 words"), ({"region_dim": 7}, "takes regions of 7 numbers")):
        model = VSE(VSEConfig(**{**vse_config(train).model_dump(), **changed}))
        with pytest.raises(InputError, match=line):
            Trainer(model, train, val, quick(), tmp_path)


@pytest.mark.parametrize(("settings", "line"), [
    ({"lrr": 1}, "unknown key 'train.lrr'; did you mean 'lr'?"),
    ({"lr": "fast"}, "train.lr = 'fast': input should be a valid number"),
    ({"lr": -1}, "train.lr = -1: input should be greater than 0"),
    ({"lr": math.nan}, "train.lr = nan"),
    ({"batch_size": 1}, "train.batch_size = 1: input should be greater than or equal to 2"),
    ({"optimizer": "adamm"}, "train.optimizer = 'adamm': input should be 'adam', 'adamw' or 'sgd'"),
    ({"optimizer": "sgd", "momentum": 0, "nesterov": True}, "nesterov needs a momentum above 0"),
    ({"decay_at": [1.5]}, "decay_at 1.5: give a fraction of the run between 0 and 1, or a whole epoch"),
])
def test_wrong_settings_are_one_line(settings, line):
    with pytest.raises(InputError) as error:
        TrainConfig(**settings)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "line"), [
    ("rsun", "unknown metric select_by 'rsun'; did you mean 'rsum'?"),
    ("i2t_mean_rank", "unknown metric select_by 'i2t_mean_rank'"),  # less is better
    ("map_at_r", "needs data with an exact ground truth"),
])
def test_a_metric_that_cannot_select_is_refused_before_training(name, line, splits, tmp_path):
    train, val = splits
    with pytest.raises(InputError) as error:
        Trainer(make(VSE, train), train, val, quick(select_by=name), tmp_path)
    assert line in str(error.value)


# --- what goes wrong while it runs --------------------------------------------------------------------------------------------

def test_a_collapsed_model_is_told_once(splits, tmp_path, capsys):
    train, val = splits
    model = make(Constant, train, warmup_epochs=1)
    history = Trainer(model, train, val, quick(epochs=4), tmp_path, progress=False).fit()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "collapse" in lines[0] and "model.warmup_epochs" in lines[0]
    assert [row["message"] for row in history.of("warning")] == lines
    assert history.of("warning")[0]["epoch"] > 1  # not while it warms up
    assert all(row["collapsed_loss"] == pytest.approx(0.4) for row in history.steps)


def camp_run(splits, folder, zeroed=False, model=(), **settings) -> History:
    """CAMP trained on batches of 12 pictures, from weights of zero or from random ones."""
    train, val = splits
    seed_everything(0)
    built = build_model("camp", {"embed_dim": 16, "word_dim": 16, "num_heads": 2, **dict(model)}, train.regions.dim, len(train.vocabulary))
    if zeroed:
        for parameter in built.parameters():
            nn.init.zeros_(parameter)
    return Trainer(built, train, val, quick(**{"epochs": 5, "batch_size": 12, **settings}), folder, progress=False).fit()


@pytest.mark.parametrize(("settings", "level"), [
    ({}, 4 * math.log(2)),                                                                    # every score is 0.5
    ({"reduction": "sum"}, 12 * 4 * math.log(2)),
    ({"negatives": "all"}, math.log(2) * (2 - 1 / 12)),
    ({"objective": "ranking"}, 2 * 0.2),
    ({"objective": "ranking", "reduction": "sum"}, 12 * 2 * 0.2),
    ({"score": "cosine", "objective": "ranking"}, 2 * 0.2),
])
def test_the_loss_of_a_collapsed_camp_is_known_and_its_collapse_is_told(settings, level, splits, tmp_path, capsys):
    history = camp_run(splits, tmp_path, zeroed=True, model=settings)
    assert all(row["collapsed_loss"] == pytest.approx(level) and row["loss"] == pytest.approx(level, rel=0.01) for row in history.steps)
    warning, = history.of("warning")
    told = re.fullmatch(r"collapse: for 20 steps the loss has been (.*), that of a model which scores every pair the same, .*", warning["message"])
    assert float(told[1]) == pytest.approx(level, rel=0.01)
    assert capsys.readouterr().err == warning["message"] + "\n"


@pytest.mark.parametrize("objective", ["bce", "ranking"])
def test_a_learning_rate_that_breaks_a_model_is_told_as_a_collapse(objective, splits, tmp_path):
    """SGD with a thousand times too much: the scores are 0 or 1 whatever the pair, and clamped, so that no gradient is left."""
    history = camp_run(splits, tmp_path, model={"objective": objective}, optimizer="sgd", lr=10.0, epochs=8)
    assert history.epochs[-1]["rsum"] < 100  # chance is above
    told = {"bce": "above the 2.77 of a model which", "ranking": "0.4, that of a model which"}[objective]
    assert [told in row["message"] for row in history.of("warning")] == [True]


@pytest.mark.parametrize(("settings", "learning"), [
    ({"fusion": "none", "message_norm": False, "aggregation": "mean", "score": "cosine", "objective": "ranking"}, {"lr": 1e-2}),
    ({"negatives": "all"}, {"lr": 1e-2}),
    ({"warmup_epochs": 6}, {"lr": 1e-2, "epochs": 12}),
])
def test_a_camp_that_learns_is_not_called_collapsed(settings, learning, splits, tmp_path):
    """Its scores are all alike at the start, too, and its loss is that of a collapsed model."""
    history = camp_run(splits, tmp_path, model=settings, **{"epochs": 8, **learning})
    assert history.of("warning") == [] and history.best["rsum"] > 250


class SlowScores(VSE):
    """Losses of a collapsed model, but scores that differ: every caption likes the next picture as much as its own."""

    batch_layout = "image"

    def similarity(self, images, captions):
        size = len(images)
        like = torch.eye(size) + torch.eye(size).roll(1, 1)
        return like + 0 * images.embedding.sum()


def test_the_level_of_the_loss_alone_is_no_collapse(splits, tmp_path, capsys):
    train, val = splits
    trainer = Trainer(make(SlowScores, train, warmup_epochs=0), train, val, quick(eval_every=9, epochs=1), tmp_path, progress=False)
    trainer._evaluate = lambda: {"rsum": 0.0}  # its scores exist for square batches alone
    history = trainer.fit()
    assert history.epochs[-1]["loss"] == pytest.approx(0.4)
    assert capsys.readouterr().err == "" and not history.of("warning")


class Breaks(VSE):
    """Its loss is NaN from pass 11 on."""

    passes = 0

    def loss(self, images, captions, image_ids, caption_image_ids):
        self.passes += 1
        scores = self.similarity(images, captions) / (0.0 if self.passes > 10 else 1.0)
        return hinge_loss(scores - scores.detach().amax(), matched_pairs(image_ids, caption_image_ids),
                          positive_mask(image_ids, caption_image_ids))


def test_a_loss_that_is_not_finite_stops_with_one_line(splits, tmp_path):
    train, val = splits
    with pytest.raises(InputError) as error:
        Trainer(make(Breaks, train), train, val, quick(), tmp_path, progress=False).fit()
    line = str(error.value)
    assert line.startswith("the loss became nan in epoch 2, step 11: try a lower lr") and "\n" not in line
    run = Trainer(make(Breaks, train), train, val, quick(), tmp_path)._run()
    progress, _, states = load_checkpoint(tmp_path / "last.pt", run)
    assert progress.step == 8 and all(value.isfinite().all() for value in states["model"].values())


def test_precision_of_one_run_does_not_leak_into_the_next(splits, tmp_path):
    train, val = splits
    model, dtypes = make(VSE, train), []
    model.image.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    for precision, expected in (("bf16", torch.bfloat16), ("no", torch.float32), ("bf16", torch.bfloat16)):
        Trainer(model, train, val, quick(epochs=1, precision=precision, eval_every=1), tmp_path, progress=False).fit()
        assert dtypes[0] == expected and dtypes[-1] == torch.float32  # evaluation is never in half precision
        dtypes.clear()
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="precision fp16 does not work on cpu: use bf16 or no"):
            Trainer(model, train, val, quick(precision="fp16"), tmp_path, progress=False).fit()


@pytest.fixture
def fp16_on_cpu(monkeypatch):
    """accelerate keeps fp16 and its loss scaling to GPUs; torch has both on the CPU too, so that they can be tested."""

    def make_accelerator(precision, parameters_rest=False):
        AcceleratorState._reset_state()
        accelerator = Accelerator(mixed_precision="fp16", cpu=True)
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        return accelerator

    monkeypatch.setattr(trainer_module, "make_accelerator", make_accelerator)
    yield
    AcceleratorState._reset_state(True)


def test_fp16_skips_overflows_unscales_before_clipping_and_goes_on_exactly(splits, tmp_path, fp16_on_cpu):
    config = quick(precision="fp16", save_every=2, log_every=1, clip=0.1)
    whole, stopped, resumed = (make(NoisyVSE, splits[0]) for _ in range(3))
    history = Trainer(whole, *splits, config, tmp_path / "whole", progress=False).fit()
    norms = [row.get("grad_norm") for row in history.steps]
    assert norms[0] is None                                          # 2^24 is too much for fp16: no step was made
    assert all(norm < 10 for norm in norms if norm is not None)      # the norms are those of the true gradients
    assert norms[-1] is not None and history.best["rsum"] > history.epochs[0]["rsum"]
    stopped.stop_at = 7
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, *splits, config, tmp_path / "run", progress=False).fit()
    trainer = Trainer(resumed, *splits, config, tmp_path / "run", progress=False)
    trainer.fit(resume=True)
    assert same_weights(whole, resumed)
    scales = [load_checkpoint(tmp_path / name / "last.pt", trainer._run())[2]["scaler"]["scale"] for name in ("whole", "run")]
    assert scales[0] == scales[1] < 2.0**24


# --- schedule and optimizer ---------------------------------------------------------------------------------------------------

def test_learning_rate_follows_its_formula():
    rates = lambda **settings: [learning_rate(TrainConfig(lr=1, epochs=4, **settings), step, 5) for step in range(20)]
    assert rates() == [1.0] * 20
    assert rates(schedule="step", decay_at=[0.6]) == pytest.approx([1.0] * 12 + [0.1] * 8)
    assert rates(schedule="step", decay_at=[1, 3], decay_factor=0.5) == [1.0] * 5 + [0.5] * 10 + [0.25] * 5
    assert rates(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)])
    assert rates(warmup_steps=3)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_model_may_give_groups_with_learning_rates_of_their_own(splits, tmp_path):
    train, val = splits
    model = make(VSE, train)
    frozen = model.image.fc.weight.clone()
    model.parameter_groups = lambda: [{"params": list(model.image.parameters()), "lr_scale": 0.0},
                                      {"params": list(model.text.parameters()), "weight_decay": 0.5}]
    groups = make_optimizer(model, TrainConfig(optimizer="adamw")).param_groups
    assert [(group["lr_scale"], group["weight_decay"]) for group in groups] == [(0.0, 0.0), (1.0, 0.5)]
    Trainer(model, train, val, quick(epochs=1), tmp_path, progress=False).fit()
    assert torch.equal(model.image.fc.weight, frozen)


# --- frozen parameters --------------------------------------------------------------------------------------------------------

FROZEN = ("image", "text.embed")


class WatchedVSE(NoisyVSE):
    """Remembers the gradients that were asked for while it trained."""

    def forward(self, batch, gather=None):
        self.asked = {name for name, value in self.named_parameters() if value.requires_grad}
        return super().forward(batch, gather)


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "weight_decay": 0.1}, {"optimizer": "adamw", "weight_decay": 0.1}])
def test_frozen_parameters_keep_every_bit_and_the_others_train(settings, splits, tmp_path):
    train, val = splits
    model = make(WatchedVSE, train)
    model.text.rnn.bias_hh_l0.requires_grad_(False)  # somebody's own choice, which is kept
    start = {name: value.clone() for name, value in model.named_parameters()}
    config = quick(freeze=FROZEN, clip=0.5, log_every=1, **settings)
    history = Trainer(model, train, val, config, tmp_path, progress=False).fit()
    same = {name for name, value in model.named_parameters() if torch.equal(value, start[name])}
    assert same == {"image.fc.weight", "image.fc.bias", "text.embed.weight", "text.rnn.bias_hh_l0"} == start.keys() - model.asked
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {"text.rnn.bias_hh_l0"}
    groups = make_optimizer(model, config).param_groups
    assert sum(len(group["params"]) for group in groups) == len(start) - 1  # nothing is frozen outside fit
    assert history.best and len(load_checkpoint(tmp_path / "last.pt", Trainer(model, train, val, config, tmp_path)._run())[2][
        "optimizer"]["param_groups"][0]["params"]) == len(model.asked)


def test_clipping_sees_the_trained_parameters_alone(splits, tmp_path):
    train, val = splits
    model = make(VSE, train)
    model.image.fc.weight.grad = torch.full_like(model.image.fc.weight, 1e6)  # left over from something else
    settings = {"epochs": 1, "batch_size": 60, "log_every": 1, "optimizer": "sgd", "momentum": 0, "clip": 1e-3, "lr": 1.0}
    start = {name: value.clone() for name, value in model.named_parameters()}
    history = Trainer(model, train, val, quick(freeze=["image"], **settings), tmp_path, progress=False).fit()
    assert all(row["grad_norm"] < 100 for row in history.steps)
    moved = sum(((value - start[name]) ** 2).sum() for name, value in model.named_parameters()) ** 0.5
    assert 0.5e-3 < moved <= len(history.steps) * 1e-3 * 1.01


def test_a_stopped_run_with_frozen_parameters_goes_on_exactly(splits, tmp_path):
    config = quick(epochs=2, save_every=2, freeze=FROZEN)
    whole, stopped, resumed = (make(NoisyVSE, splits[0]) for _ in range(3))
    expected = Trainer(whole, *splits, config, tmp_path / "whole", progress=False).fit()
    stopped.stop_at = 6
    with pytest.raises(KeyboardInterrupt):
        Trainer(stopped, *splits, config, tmp_path / "run", progress=False).fit()
    assert all(value.requires_grad for value in stopped.parameters())
    nn.init.normal_(resumed.image.fc.weight)
    history = Trainer(resumed, *splits, config, tmp_path / "run", progress=False).fit(resume=True)
    assert same_weights(whole, resumed) and without_time(history) == without_time(expected)


@pytest.mark.parametrize(("freeze", "line"), [
    (["imgae"], "train.freeze: the model 'vse' has no parameters 'imgae'; did you mean 'image'?"),
    (["gru"], "train.freeze: the model 'vse' has no parameters 'gru'; choose one of image, text"),
    (["text.embedding"], "train.freeze: the model 'vse' has no parameters 'text.embedding'; did you mean 'text.embed"),
    (["image", "text"], "train.freeze image, text leaves nothing of the model 'vse' to train: freeze less"),
    ("image", "train.freeze = 'image': input should be a valid tuple"),
])
def test_what_cannot_be_frozen_is_one_line(freeze, line, splits, tmp_path):
    with pytest.raises(InputError) as error:
        Trainer(make(VSE, splits[0]), *splits, quick(freeze=freeze), tmp_path)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_accumulated_gradients_are_the_mean_over_the_batches(splits, tmp_path):
    train, val = splits
    model = make(VSE, train, warmup_epochs=0)
    trainer = Trainer(model, train, val, quick(epochs=1, batch_size=40, accumulate=3, clip=None, optimizer="sgd", momentum=0,
                                               lr=1.0), tmp_path, progress=False)
    assert trainer.steps_per_epoch == 1
    start = {name: value.clone() for name, value in model.named_parameters()}
    batches = [train[rows] for rows in trainer.sampler]
    (sum(model(batch)["loss"] for batch in batches) / 3).backward()
    expected = {name: start[name] - value.grad for name, value in model.named_parameters()}
    model.zero_grad()
    trainer.fit()
    for name, value in model.named_parameters():
        assert torch.allclose(value, expected[name], atol=1e-6), name


def test_set_batches_hold_each_picture_once(splits, tmp_path):
    train, val = splits

    class SetVSE(VSE):
        batch_layout = "set"
        shapes = []

        def loss(self, images: Encoding, captions: Encoding, image_ids, caption_image_ids):
            self.shapes.append((len(images), len(captions), len(set(image_ids.tolist()))))
            return super().loss(images, captions, image_ids, caption_image_ids)

    Trainer(make(SetVSE, train), train, val, quick(epochs=1, batch_size=20), tmp_path, progress=False).fit()
    assert SetVSE.shapes == [(20, 40, 20)] * 3


def test_epochs_may_be_compared_on_a_part_of_val(folder, tmp_path):
    train, val = open_split(folder, "train"), open_split(folder, "val")
    model = make(VSE, train)
    history = Trainer(model, train, val, TrainConfig(epochs=1, batch_size=20, val_images=5), tmp_path, progress=False).fit()
    part = val.caption_to_image < 5
    scores = similarity_matrix(model, *encode_dataset(model, val))
    expected = evaluate_scores(scores, val)["rsum"], float(trainer_module.RetrievalMetrics.from_scores(scores[:5, part], val.caption_to_image[part]).rsum)
    assert history.epochs[0]["rsum"] == pytest.approx(expected[1]) and expected[0] != expected[1]
    every = Trainer(make(VSE, train), train, val, TrainConfig(epochs=1, batch_size=20, val_images=10**6), tmp_path / "all", progress=False).fit()
    assert every.epochs[0]["rsum"] == pytest.approx(expected[0])
