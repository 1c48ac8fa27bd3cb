"""What a run tells while it trains: throughput, memory, time left; and TensorBoard's curves, of resumed runs too."""

from __future__ import annotations

import sys
import time

import pytest
import torch
from made_for_training import same_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from itm_lib.files import InputError
from itm_lib.models import build_model
from itm_lib.training import TrainConfig, Trainer, seed_everything
from itm_lib.training.monitor import Monitor, peak_memory
from itm_lib.training.state import TIMINGS


def trainer(splits, out, **train):
    seed_everything(0)
    model = build_model("vse", {"embed_dim": 8, "word_dim": 8}, 16, len(splits[0].vocabulary))
    return Trainer(model, *splits, TrainConfig(**{"epochs": 3, "batch_size": 20, "lr": 5e-3, "log_every": 2, **train}), out, progress=False)


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_pairs_a_second_and_time_left_know_steps_from_evaluations(clock):
    monitor = Monitor(steps=10, evaluations=2, steps_ahead=5, evaluations_ahead=1)
    assert monitor.pairs_per_second is None and monitor.seconds_left is None and monitor.shown() == {}
    for _ in range(5):
        clock(2.0)
        monitor.step(100)
    assert monitor.pairs_per_second == pytest.approx(50) and monitor.seconds_left == pytest.approx(10 * 2.0)
    assert monitor.shown()["left"] == ">0:00:20" and monitor.shown()["pairs/s"] == "50"
    with monitor.pause(evaluation=True):
        clock(30.0)
    with monitor.pause():
        clock(7.0)
    clock(1.0)
    monitor.step(100)
    assert monitor.pairs_per_second == pytest.approx(600 / 11)
    assert monitor.seconds_left == pytest.approx(9 * 11 / 6 + 2 * 30)
    assert monitor.epoch()["pairs_per_second"] == pytest.approx(600 / 11, abs=1e-3)
    clock(4.0)
    monitor.step(8)
    assert monitor.epoch()["pairs_per_second"] == pytest.approx(2)
    assert monitor.shown()["left"] == "0:01:17"


def test_the_window_moves(clock):
    monitor = Monitor(steps=1000, evaluations=0)
    for seconds in [10.0] * 20 + [0.5] * 60:
        clock(seconds)
        monitor.step(10)
    assert monitor.pairs_per_second == pytest.approx(20)


def test_peak_memory_is_that_of_this_process():
    before = peak_memory()
    assert 2**26 < before < 2**36
    assert sys.platform == "win32" or peak_memory() >= before


def test_the_history_and_the_bar_tell_pace_and_memory(splits, tmp_path, capsys):
    run = trainer(splits, tmp_path)
    run.progress_bar = True
    history = run.fit()
    for row in history.epochs:
        assert row["pairs_per_second"] > 0 and row["peak_memory_mib"] == pytest.approx(peak_memory() / 2**20, rel=0.5)
    told = capsys.readouterr().err
    assert all(f"{name}=" in told for name in ("pairs/s", "MiB", "left", "loss"))


def curves(folder):
    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def stopped_and_resumed(splits, out, **train):
    """A run that a failure ends three steps after its last checkpoint, and that goes on."""
    run = trainer(splits, out, **{**train, "tensorboard": train.get("tensorboard") is True})
    step, count = run._step, [0]

    def failing(*batches):
        count[0] += 1
        if count[0] == 10:
            raise KeyboardInterrupt
        return step(*batches)

    run._step = failing
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    again = trainer(splits, out, **{**train, "tensorboard": bool(train.get("tensorboard"))})
    again.fit(resume=True)
    return again


def test_curves_go_on_after_a_resume_without_doubled_steps(splits, tmp_path):
    plain = trainer(splits, tmp_path / "plain")
    plain.fit()
    whole = trainer(splits, tmp_path / "whole", tensorboard=True)
    history = whole.fit()
    resumed = stopped_and_resumed(splits, tmp_path / "resumed", tensorboard=True)
    assert same_weights(plain.model, whole.model) and same_weights(plain.model, resumed.model)
    expected, found = curves(tmp_path / "whole"), curves(tmp_path / "resumed")
    assert [step for step, _ in found["train/loss"]] == [row["step"] for row in history.steps]
    assert [value for _, value in found["epoch/rsum"]] == pytest.approx([row["rsum"] for row in history.epochs])
    timings = {f"epoch/{name}" for name in TIMINGS}
    assert timings <= set(found) == set(expected) and "train/lr" in found and "train/grad_norm" in found
    assert {name: found[name] for name in set(found) - timings} == {name: expected[name] for name in set(found) - timings}
    assert not (tmp_path / "plain" / "tensorboard").exists()
    stopped_and_resumed(splits, tmp_path / "later", tensorboard="later")
    late = curves(tmp_path / "later")  # asked for on going on: they begin with what there was
    assert {name: late[name] for name in set(late) - timings} == {name: expected[name] for name in set(expected) - timings}
    trainer(splits, tmp_path / "resumed", tensorboard=True, epochs=1).fit()  # from the start: nothing of before is left
    assert [step for step, _ in curves(tmp_path / "resumed")["epoch/loss"]] == [history.epochs[0]["step"]]


def test_without_the_package_it_is_one_line(splits, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="^train.tensorboard needs the package tensorboard: pip install tensorboard, or set it to false$"):
        trainer(splits, tmp_path, tensorboard=True).fit()


def test_what_is_frozen_in_the_first_epochs_stays_and_then_learns(splits, tmp_path):
    seen = []
    run = trainer(splits, tmp_path, optimizer="adamw", weight_decay=0.1, freeze=["image"], freeze_epochs=2, epochs=4)
    start = run.model.image.fc.weight.detach().clone()
    run.on_epoch = lambda history: seen.append(bool(torch.equal(run.model.image.fc.weight, start)))
    run.fit()
    assert seen == [True, True, False, False]
    resumed = stopped_and_resumed(splits, tmp_path / "resumed", optimizer="adamw", weight_decay=0.1, freeze=["image"], freeze_epochs=2, epochs=4)
    assert same_weights(run.model, resumed.model)


@pytest.mark.parametrize(("settings", "line"), [
    ({"freeze_epochs": 1}, "train: freeze_epochs needs freeze"),
    ({"freeze": ["image"], "freeze_epochs": 3}, "train: freeze_epochs 3 of 3 epochs: leave it out to freeze the whole run"),
    ({"freeze": ["image"], "freeze_epochs": 0}, "train.freeze_epochs = 0"),
])
def test_frozen_epochs_that_make_no_sense_are_one_line(settings, line):
    with pytest.raises(InputError) as error:
        TrainConfig(epochs=3, **settings)
    assert line in str(error.value) and "\n" not in str(error.value)
