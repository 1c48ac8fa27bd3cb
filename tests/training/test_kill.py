"""A run that is killed at any moment and started again ends with the same files, to the bit. tests/benchmarks/bench_kill.py kills more."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml
from killing import CHECKPOINT, EVALUATION, FILES, MOMENTS, STEP, Killer, attempt, killed_run, outcome, recipe, same_outcome
from made_for_training import write_dataset

from itm_lib.training.distributed import launch
from itm_lib.training.recipe import run_recipe


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("world"), {"train": 16, "val": 8, "test": 3})


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """(what an uninterrupted run leaves behind, how often it came to each moment)."""
    out = tmp_path_factory.mktemp("whole")
    run_recipe(recipe(world), out / "here", progress=False)  # what is slow only once is then done, for all that is forked
    assert attempt(recipe(world), out / "run", Killer(), out / "seen.json")
    return outcome(out / "run"), json.loads((out / "seen.json").read_text())


def test_a_run_comes_to_every_moment(uninterrupted):
    assert all(uninterrupted[1].get(moment, 0) > 0 for moment in MOMENTS)
    assert {*STEP, *CHECKPOINT, *EVALUATION, *FILES} == set(MOMENTS)


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_a_moment_it_ends_the_same(moment, uninterrupted, world, tmp_path):
    expected, seen = uninterrupted
    number = 1 if moment in FILES else (seen[moment] + 1) // 2  # the first stage has one epoch, and ends with its first files
    assert not attempt(recipe(world), tmp_path / "run", Killer(moment, number))
    assert attempt(recipe(world), tmp_path / "run", Killer())
    assert same_outcome(outcome(tmp_path / "run"), expected) == []


def test_killed_again_and_again_it_ends_the_same(uninterrupted, world, tmp_path):
    kills = int(os.environ.get("ITM_KILLS", "5"))
    moments = killed_run(recipe(world), tmp_path, kills, random.Random(0))
    assert len(moments) == kills
    for out in tmp_path.iterdir():
        assert same_outcome(outcome(out), uninterrupted[0]) == []


def in_the_pair(world, out, moment):
    with Killer(moment, 2).watching():
        run_recipe(recipe(world), out, resume=True, progress=False)


def test_two_processes_that_are_killed_end_the_same(world, tmp_path):
    """The main process alone comes to the checkpoint; launch ends the one that is left."""
    launch(in_the_pair, world, tmp_path / "whole", None)
    with pytest.raises(Exception, match="Signal 9"):
        launch(in_the_pair, world, tmp_path / "killed", "half a checkpoint")
    launch(in_the_pair, world, tmp_path / "killed", None)
    assert same_outcome(outcome(tmp_path / "killed"), outcome(tmp_path / "whole")) == []


def test_the_command_line_is_killed_and_goes_on(uninterrupted, world, tmp_path):
    """``itm train`` itself, killed from outside at some moment after its first checkpoint."""
    chosen = recipe(world)
    content = {"data": {"folder": str(world)}, "model": chosen.model, "train": chosen.train.model_dump(mode="json"),
               "stages": [{"name": stage.name, "model": {"matching_loss": stage.model["matching_loss"]} if "matching_loss" in stage.model else {},
                           "train": {"epochs": stage.train.epochs}} for stage in chosen.stages]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "itm_lib.cli", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    quiet = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    killed = subprocess.Popen(command, **quiet)
    while killed.poll() is None and not (tmp_path / "run" / "first" / "last.pt").is_file():
        time.sleep(0.02)
    time.sleep(random.Random(1).random() / 4)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "run" / "val.json").exists()
    assert subprocess.run(command, **quiet, timeout=120).returncode == 0
    assert same_outcome(outcome(tmp_path / "run"), uninterrupted[0]) == []
