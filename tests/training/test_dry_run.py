"""The dry run: what a run will cost, from a few real steps, and nothing written."""

from __future__ import annotations

import itertools
import math
import shutil
import sys

import pytest
import torch

from itm_lib.files import InputError
from itm_lib.training import Trainer, dry_run, run_recipe
from itm_lib.training.dry_run import _all_on
from itm_lib.training.recipe import Recipe


def recipe(folder, stages=None, data=None, **train):
    content = {"data": {"folder": str(data or folder)}, "model": {"method": "scan", "embed_dim": 32, "word_dim": 16},
               "train": {"epochs": 6, "batch_size": 16, "lr": 1e-3, "eval_every": 4, **train}}
    return Recipe.parse({**content, **({"stages": stages} if stages else {})})


def test_it_counts_what_the_run_then_does(folder, tmp_path):
    plan = recipe(folder)
    found = dry_run(plan, out=tmp_path / "absent" / "run", progress=False)
    stage = found.stages[0]
    assert (stage.steps_per_epoch, stage.epochs, stage.steps, stage.evaluations) == (8, 6, 48, 2) and stage.pairs_per_step == 16
    assert not (tmp_path / "absent").exists() and not list(tmp_path.iterdir())
    run = run_recipe(plan, tmp_path / "run", progress=False)
    assert stage.parameters == stage.trained == sum(each.numel() for each in run.model.parameters())
    written = (tmp_path / "run" / "last.pt").stat().st_size
    assert stage.checkpoint == pytest.approx(written, rel=0.3) and stage.checkpoint > 2.9 * stage.weights  # weights and Adam's two moments
    assert run.history.epochs[-1]["step"] == stage.steps and run.history.epochs[-1]["peak_memory_mib"] * 2**20 >= 0.5 * stage.peak_memory
    assert found.hours == pytest.approx((48 * stage.step_seconds + 2 * stage.evaluation_seconds) / 3600)
    assert found.disk == stage.checkpoint + 2 * stage.weights and found.missing == () and found.free > 0
    assert 0 < stage.step_seconds < 5 and 0 < stage.evaluation_seconds < 60 and math.isfinite(found.hours)


def test_a_part_of_val_costs_its_part(folder, monkeypatch):
    """A clock that ticks once a call: what is projected goes with the pictures that epochs are compared on."""
    ticks = itertools.count()
    monkeypatch.setattr(sys.modules["itm_lib.training.dry_run"].time, "perf_counter", lambda: float(next(ticks)))
    whole, part = (dry_run(recipe(folder, **more), progress=False).stages[0].evaluation_seconds for more in ({}, {"val_images": 5}))
    assert part < whole / 3


def test_its_table_says_what_is_measured_and_what_is_projected(folder):
    found = dry_run(recipe(folder, [{"name": "one", "train": {"freeze": ["text"]}}, {"name": "two", "train": {"epochs": 1}}]), steps=1, progress=False)
    lines = found.table().splitlines()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert lines[0].startswith(f"dry run of scan on {folder.name}, {device}") and lines[0].endswith("1 step measured, the rest projected from them")
    assert [line for line in lines if line.startswith("stage")] == ["stage one", "stage two"]
    first, second = found.stages
    assert first.trained < first.parameters == second.trained
    assert f"  parameters   {first.parameters:,}, {first.trained:,} of them trained" in lines
    assert "  steps        8 an epoch, 6 epochs, 48 in all" in lines and "  steps        8 an epoch, 1 epoch, 8 in all" in lines
    assert sum("pairs/s (measured)" in line for line in lines) == 2 and sum(line.endswith("once (projected)") for line in lines) == 1
    assert lines[-1].startswith("in all") and "hours (projected)" in lines[-1] and "free there" not in lines[-1]
    assert found.disk == sum(stage.checkpoint + 2 * stage.weights for stage in found.stages)


def test_it_changes_no_number_of_the_run_that_follows(folder, tmp_path):
    plan = recipe(folder, epochs=1)
    alone = run_recipe(plan, tmp_path / "alone", progress=False)
    dry_run(plan, out=tmp_path / "alone", steps=2, progress=False)
    assert run_recipe(plan, tmp_path / "after", progress=False).metrics == alone.metrics
    assert run_recipe(plan, tmp_path / "alone", resume=True, progress=False).history == alone.history  # its folder is as it was


def test_what_a_model_puts_off_is_measured_too():
    assert _all_on({"method": "hrem", "relation_warmup": 8000, "topk": 3}) == {"method": "hrem", "relation_warmup": 0, "topk": 3}
    assert _all_on({"method": "scan"}) == {"method": "scan"}


def test_features_that_are_missing_are_told(folder, tmp_path, monkeypatch):
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "regions" / "test.h5").unlink()
    found = dry_run(recipe(folder, data=data), steps=1, progress=False)
    assert found.missing == (f"features of test in {data}",) and found.table().splitlines()[-1] == f"missing: features of test in {data}"
    (data / "regions" / "train.h5").unlink()
    with pytest.raises(InputError) as error:
        dry_run(recipe(folder, data=data), progress=False)
    assert str(error.value) == f"{data} has no features of train, test: make regions/ first, with 'itm data prepare'"
    with pytest.raises(InputError, match="no dataset folder .*nowhere: make it first, with 'itm data prepare', or say where it is with --data"):
        dry_run(recipe(folder, data=tmp_path / "nowhere"), progress=False)
    with pytest.raises(InputError, match="steps is 0: a dry run measures at least one"):
        dry_run(recipe(folder), steps=0)
    monkeypatch.setattr(sys.modules[dry_run.__module__], "world_size", lambda: 2)
    with pytest.raises(InputError, match="a dry run measures one process: start it without torchrun or accelerate launch"):
        dry_run(recipe(folder))


def test_too_large_a_batch_is_one_line(folder, monkeypatch):
    def full(self, *_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Trainer, "_backward", full)
    with pytest.raises(InputError, match="^a batch of 16 does not fit the memory of .*: a smaller train.batch_size, or precision bf16, needs less$"):
        dry_run(recipe(folder), progress=False)


def test_too_little_disk_is_told(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10))
    assert dry_run(recipe(folder), out=tmp_path, steps=1, progress=False).table().endswith("0 MiB free there - TOO LITTLE")
