"""Two processes, on the CPU with gloo, against one: the same loss, gradients and BatchNorm, the same runs, errors on all and no hang.

One pair of processes is forked and makes all its checks in one go; what it found is compared here.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from made_for_training import same_weights, write_backbone, write_dataset, write_pictures
from safetensors.torch import load_file, save_file
from torch import nn

from itm_lib.data import open_split
from itm_lib.evaluation.scoring import encode_dataset, over_all_processes, similarity_matrix
from itm_lib.files import InputError, write_json
from itm_lib.models import build_model
from itm_lib.models.layers import BatchNorm1d, BatchNorm2d
from itm_lib.processes import Share, sharing
from itm_lib.training import History, Recipe, TrainConfig, Trainer, run_recipe, seed_everything
from itm_lib.training import trainer as trainer_module
from itm_lib.training.distributed import from_all, is_main, launch, main_first, part_of, rank, share_of, world_size
from itm_lib.training.state import TIMINGS, sole_use
from itm_lib.training.trainer import make_accelerator

STILL = {"dropout": 0.0, "region_dropping": 0.0, "word_dropping": 0.0}
SMALL = {"embed_dim": 8, "word_dim": 6}
# Every model, and what of it looks at a whole batch: BatchNorm, padding, the graph.
MODELS = {
    "vse": ("vse", {}),
    "scan_ti": ("scan", {"compat": "official"}),
    "scan_it": ("scan", {"direction": "i2t", "aggregation": "lse", "raw_feature_norm": "softmax"}),
    "camp": ("camp", {"num_heads": 2}),
    "camp_all_negatives": ("camp", {"num_heads": 2, "negatives": "all"}),
    "hrem": ("hrem", {**STILL, "num_heads": 2}),
    "hrem_official": ("hrem", {**STILL, "num_heads": 2, "compat": "official", "matching_loss": "hinge", "mechanism": "standalone"}),
    "hrem_waiting": ("hrem", {**STILL, "num_heads": 2, "relation_warmup": 5}),
    "dive": ("dive", {**STILL, "num_heads": 2, "head_dim": 4, "num_slots": 2}),
    "dive_official": ("dive", {**STILL, "num_heads": 2, "head_dim": 4, "num_slots": 2, "compat": "official"}),
    "dive_grid": ("dive", {**STILL, "num_heads": 2, "head_dim": 4, "num_slots": 2, "image_encoder": "grid", "image_size": 32,
                           "backbone_batch_norm": True}),
}
FROZEN = {"camp": ("text.embed", "image")}
BATCHES = [7, 4]  # units: an uneven share in each of two processes


def make(name: str, world: Path, **settings) -> nn.Module:
    """One of MODELS in float64, with weights of the seed; HREM's negatives are drawn without chance."""
    method, own = MODELS[name]
    if name == "dive_grid":
        own = {**own, "backbone": str(world / "backbone")}
    seed_everything(0)
    train = open_split(world, "train")
    model = build_model(method, {**SMALL, **own, **settings}, train.regions.dim, len(train.vocabulary)).double()
    if method == "hrem":
        model.draw = lambda weights: weights.argmax(1)
    return model


def rows(model: nn.Module, train, units: list[int]) -> list[list[int]]:
    """Caption rows of one batch a number of units; the second batch has the longest caption of all in its first unit."""
    images = iter(range(train.num_images))
    if model.batch_layout == "set":
        return [[caption for _ in range(count) for caption in train.captions_of_image[next(images)]] for count in units]
    captions = iter(range(0, train.num_captions, 3))  # of neighbouring images, some twice
    return [[next(captions) for _ in range(count)] for count in units]


def step(name: str, world: Path, folder: Path, units: list[int]) -> dict[str, torch.Tensor]:
    """Loss, gradients and buffers of one training step, by the Trainer's own way through a batch."""
    model = make(name, world)
    train, val = (open_split(world, split, pixels=model.pixels) for split in ("train", "val"))
    config = TrainConfig(epochs=1, batch_size=max(units), accumulate=len(units), freeze=FROZEN.get(name, ()))
    trainer = Trainer(model, train, val, config, folder, progress=False)
    with trainer_module.frozen(model, config.freeze):
        trainer._accelerator = make_accelerator("no", model.parameters_rest)
        trainer._wrapped = trainer._accelerator.prepare(model)
        model.start_epoch(1)
        trainer._wrapped.train()
        parts = [part_of(train, batch, model.batch_layout, None, rank(), world_size()) for batch in rows(model, train, units)]
        terms = trainer._backward(parts)
    found = {f"gradient {key}": value.grad for key, value in model.named_parameters() if value.grad is not None}
    found |= {f"buffer {key}": value for key, value in model.named_buffers()}
    found |= {f"term {key}": torch.tensor(value, dtype=torch.float64) for key, value in terms.items()}
    trainer._finish()
    return {key: value.detach().clone().contiguous() for key, value in found.items()}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key].double(), value.double(), rtol=tolerance, atol=tolerance), key


# --- runs -------------------------------------------------------------------------------------------------------------------

RUNS = {
    "scan_ti": {},
    "hrem": {"neighbour_images": 2, "neighbour_start": 1, "accumulate": 2, "batch_size": 8},
    "dive": {"batch_size": 9, "eval_every": 2, "select_by": "t2i_r1"},
}


def whole_run(name: str, world: Path, folder: Path, resume: bool = False, model: nn.Module | None = None, **settings):
    """A short run in float64; (model, history)."""
    if model is None:  # everything is near: an image that a batch has twice ties with itself, and rounding would decide what is connected
        model = make(name, world, **({"threshold": 1.0} if name == "hrem" else {}))
    train, val = open_split(world, "train"), open_split(world, "val")
    config = TrainConfig(**{"epochs": 2, "batch_size": 10, "lr": 5e-3, "log_every": 1, "save_every": 2, **RUNS.get(name, {}), **settings})
    history = Trainer(model, train, val, config, folder, progress=False).fit(resume)
    return model, history


def noisy(world: Path, stop_at: int | None = None) -> nn.Module:
    """A model with dropout and noise of all random generators, other in each process; it is interrupted in pass ``stop_at``."""
    model, passes = make("dive", world, dropout=0.2, word_dropping=0.2, region_dropping=0.2), []
    forward = model.forward

    def noisy_forward(batch, gather=None):
        passes.append(1)
        if len(passes) == stop_at:
            raise KeyboardInterrupt
        batch.regions = nn.functional.dropout(batch.regions, 0.2) + 0.01 * (random.random() + np.random.rand())
        return forward(batch, gather)

    model.forward = noisy_forward
    return model


# --- what the pair does ---------------------------------------------------------------------------------------------------


def in_the_pair(world: Path, out: Path) -> None:
    """Everything that is done in two processes; the main one writes."""
    torch.use_deterministic_algorithms(True)
    for name in MODELS:
        keep(out / f"step-{name}", step(name, world, out / "steps", BATCHES))
    keep(out / "step-alone", step_without_gather(world, out / "steps"))
    for name in RUNS:
        model, _ = whole_run(name, world, out / f"run-{name}")
        keep(out / f"run-{name}.weights", dict(model.state_dict()))
    scoring_together(world, out)
    stopped_halfway(world, out / "halfway")
    stopped_and_resumed(world, out)
    stages(world, out / "stages", out / "stages.json")
    agreement(world, out)


def keep(path: Path, found: dict[str, torch.Tensor]) -> None:
    """``found`` of each process; both must have the same."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(found, path / f"{rank()}.safetensors")


def step_without_gather(world: Path, folder: Path) -> dict[str, torch.Tensor]:
    kept, trainer_module.gather_encoding = trainer_module.gather_encoding, lambda encoding: encoding
    try:
        return step("vse", world, folder, BATCHES)
    finally:
        trainer_module.gather_encoding = kept


def scoring_together(world: Path, out: Path) -> None:
    model, val = make("scan_ti", world).float(), open_split(world, "val")
    with over_all_processes():
        images, captions = encode_dataset(model, val, batch_size=7)
        scores = similarity_matrix(model, images, captions, block_bytes=2**14)
    keep(out / "scores", {"images": images.fragments, "captions": captions.fragments, "scores": scores})


def stopped_halfway(world: Path, folder: Path) -> None:
    """What a run leaves behind that ends after 5 of its 14 steps: a checkpoint of the fourth."""
    model, steps = make("scan_ti", world), []

    def stop(*_) -> None:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(stop)
    try:
        whole_run("scan_ti", world, folder, model=model)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not stopped")


def stopped_and_resumed(world: Path, out: Path) -> None:
    whole, expected = whole_run("dive", world, out / "whole", model=noisy(world))
    for number, stop_at in enumerate((3, 9)):
        folder = out / f"stopped-{stop_at}"
        try:
            whole_run("dive", world, folder, model=noisy(world, stop_at))
        except KeyboardInterrupt:
            seed_everything(99 + number)  # a new process draws otherwise
        again, history = whole_run("dive", world, folder, resume=True, model=noisy(world))
        assert same_weights(whole, again), stop_at
        assert without_timings(history) == without_timings(expected)
    states = from_all(random.random())
    assert states[0] != states[1]  # each process has random numbers of its own


def without_timings(history: History) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in history]


def stages(world: Path, folder: Path, result: Path) -> None:
    run = run_recipe(staged(world), folder, progress=True)
    if is_main():
        write_json(result, {"rsum": run.metrics["rsum"], "losses": [row["loss"] for row in run.history.steps], "stages": list(run.stages)})


def staged(world: Path) -> Recipe:
    return Recipe.parse({
        "data": {"folder": str(world)}, "model": {"method": "camp", **SMALL, "num_heads": 2},
        "train": {"epochs": 1, "batch_size": 12, "lr": 1e-3, "log_every": 1},
        "stages": [{"name": "first", "model": {"negatives": "all"}}, {"name": "second", "train": {"freeze": ["image", "text"]}}]})


def agreement(world: Path, out: Path) -> None:
    """An error of one process is one line on both; what one prepares the other finds."""
    told = []
    with main_first():
        if is_main():
            write_json(out / "prepared.json", 1)
        assert (out / "prepared.json").is_file()
    for problem in (broken_features, locked_folder, missing_for_main):
        try:
            problem(world, out)
        except InputError as error:
            told.append(str(error))
    (out / f"told-{rank()}.json").write_text(json.dumps(told))


def broken_features(world: Path, out: Path) -> None:
    """Image 3 of the train split cannot be read, which one process alone sees in the first step."""
    model = make("vse", world)
    train, val = open_split(world, "train", in_memory=False), open_split(world, "val")
    features = train.regions.features

    def read(images, *width):
        if 3 in list(images):
            raise InputError("image 3 cannot be read")
        return features(images, *width)

    train.regions.features = read
    Trainer(model, train, val, TrainConfig(epochs=1, batch_size=62), out / "broken", progress=False).fit()


def locked_folder(world: Path, out: Path) -> None:
    with sole_use(out / "held"), sole_use(out / "held"):
        raise AssertionError("held twice")


def missing_for_main(world: Path, out: Path) -> None:
    with main_first():
        if is_main():
            raise InputError("no data here")
        raise AssertionError("the other process went on")


# --- the pair, and what it found --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = write_dataset(tmp_path_factory.mktemp("world"), {"train": 31, "val": 12, "test": 3})
    write_pictures(folder)
    write_backbone(folder / "backbone")
    return folder


@pytest.fixture(scope="module")
def pair(world, tmp_path_factory) -> Path:
    """The folder of what two processes found."""
    out = tmp_path_factory.mktemp("pair")
    launch(in_the_pair, world, out, num_processes=2)
    return out


def of_both(path: Path) -> dict[str, torch.Tensor]:
    first, second = (load_file(path / f"{number}.safetensors") for number in (0, 1))
    assert first.keys() == second.keys() and all(torch.equal(value, second[key]) for key, value in first.items())
    return first


@pytest.mark.parametrize("name", MODELS)
def test_two_processes_have_the_loss_and_the_gradients_of_one(name, pair, world, tmp_path):
    expected = step(name, world, tmp_path, BATCHES)
    assert_close(of_both(pair / f"step-{name}"), expected, 1e-6 if name == "dive_grid" else 1e-9)
    with_gradient = {key for key in expected if key.startswith("gradient")}
    resting = [key for key in make(name, world).state_dict() if key.startswith(("graph.", "relevance."))]
    assert not any(f"gradient {key}" in with_gradient for key in (resting if name == "hrem_waiting" else ()))
    assert not any(key.startswith(tuple(f"gradient {part}" for part in FROZEN.get(name, ("none",)))) for key in with_gradient)


def test_the_hardest_negatives_of_the_whole_batch_count(pair, world, tmp_path):
    """For some pairs the hardest negative is on the other process. Without gathering, the loss and the gradients are others."""
    alone = [load_file(pair / "step-alone" / f"{number}.safetensors") for number in (0, 1)]
    together = of_both(pair / "step-vse")
    model = make("vse", world)
    train = open_split(world, "train")
    batch = train[rows(model, train, BATCHES)[0]]
    scores = model.similarity(model.encode_images(batch.regions, batch.region_mask), model.encode_captions(batch.tokens, batch.token_mask))
    hardest = scores.masked_fill(batch.image_ids[:, None] == batch.caption_image_ids, -torch.inf).argmax(1)
    border = share_of(BATCHES[0], 1, 2).start
    assert ((hardest >= border) != (torch.arange(len(hardest)) >= border)).any()
    assert all(abs(float(each["term loss"] - together["term loss"])) > 1e-3 for each in alone)
    gradient = "gradient image.fc.weight"
    assert torch.equal(alone[0][gradient], alone[1][gradient])  # the mean over both, as DistributedDataParallel makes it
    assert (alone[0][gradient] - together[gradient]).abs().max() > 1e-2 * together[gradient].abs().max()


EMPTY = ("hrem", "dive_official", "dive_grid", "camp")  # with what looks at the whole batch


def in_three(world: Path, out: Path) -> None:
    for name in EMPTY:
        keep(out / name, step(name, world, out / "steps", [2, 2]))


def test_a_process_without_a_share_changes_nothing(world, tmp_path):
    assert [len(range(2)[share_of(2, number, 3)]) for number in range(3)] == [0, 1, 1]
    launch(in_three, world, tmp_path, num_processes=3)
    for name in EMPTY:
        assert_close(of_both(tmp_path / name), step(name, world, tmp_path / "one", [2, 2]), 1e-6 if name == "dive_grid" else 1e-9)


def assert_same_history(found: History, expected: History) -> None:
    assert [row.keys() for row in found] == [row.keys() for row in expected]
    for row, other in zip(without_timings(found), without_timings(expected)):
        assert row.pop("kind") == other.pop("kind")
        assert row == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize("name", RUNS)
def test_a_run_ends_with_the_weights_of_one_process(name, pair, world, tmp_path):
    model, history = whole_run(name, world, tmp_path)
    assert_close(of_both(pair / f"run-{name}.weights"), dict(model.state_dict()), 1e-6)
    found = History.load(pair / f"run-{name}" / "history.jsonl")
    assert_same_history(found, history)
    assert {"best.safetensors", "history.jsonl", "last.pt"} <= {path.name for path in (pair / f"run-{name}").iterdir()}


def test_scoring_together_gives_the_numbers_of_one_process(pair, world):
    model, val = make("scan_ti", world).float(), open_split(world, "val")
    found, threads = of_both(pair / "scores"), torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has: sums of another number of threads are rounded in another way
    try:
        images, captions = encode_dataset(model, val, batch_size=7)
        scores = similarity_matrix(model, images, captions, block_bytes=2**14)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found["images"], images.fragments) and torch.equal(found["captions"], captions.fragments)
    assert torch.equal(found["scores"], scores)


def test_a_run_of_two_goes_on_with_one(pair, world):
    """A pair that was stopped left this behind, and then another run of the pair ended it; here one process goes on from the middle."""
    folder = pair / "halfway"
    model, history = whole_run("scan_ti", world, folder, resume=True)
    assert [row["step"] for row in history.steps] == list(range(1, 2 * 7 + 1))
    assert_same_history(history, History.load(pair / "run-scan_ti" / "history.jsonl"))
    assert_close(dict(model.state_dict()), of_both(pair / "run-scan_ti.weights"), 1e-6)


def test_stages_in_two_processes_are_those_of_one(pair, world, tmp_path):
    found = json.loads((pair / "stages.json").read_text())
    run = run_recipe(staged(world), tmp_path, progress=False)
    assert found["stages"] == ["first", "second"] and found["rsum"] == pytest.approx(run.metrics["rsum"])
    assert found["losses"] == pytest.approx([row["loss"] for row in run.history.steps], rel=1e-4)
    names = sorted(path.name for path in (pair / "stages").iterdir())
    assert names == sorted(path.name for path in tmp_path.iterdir())


def test_an_error_of_one_process_is_one_line_on_both(pair):
    told = [json.loads((pair / f"told-{number}.json").read_text()) for number in (0, 1)]
    assert told[0] == told[1] and len(told[0]) == 3
    assert told[0][0] == "image 3 cannot be read" and told[0][2] == "no data here"
    assert "in use by another run: wait for it, or give another out_dir" in told[0][1]


# --- what starts them ---------------------------------------------------------------------------------------------------------


def refuses(world: Path) -> None:
    if rank() == 1:
        raise InputError("the second process has no data")
    from_all("the main process waits")


def breaks() -> None:
    raise KeyError("a programmer's mistake")


def test_launch_tells_what_went_wrong_and_leaves_no_trace(world, capfd):
    from accelerate.state import AcceleratorState

    make_accelerator("no")
    before, environment = dict(AcceleratorState._shared_state), dict(os.environ)
    with pytest.raises(InputError, match="^the second process has no data$"):
        launch(refuses, world)
    with pytest.raises(Exception, match="a programmer's mistake"):
        launch(breaks)
    assert dict(AcceleratorState._shared_state) == before and dict(os.environ) == environment and world_size() == 1
    shown = capfd.readouterr()
    assert shown.out == "" and "Launching" not in shown.err
    with pytest.raises(InputError, match="num_processes is 0"):
        launch(breaks, num_processes=0)
    with pytest.raises(KeyError):
        launch(breaks, num_processes=1)  # right here


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                   "--dynamo_backend", "no", "--main_process_port", "0"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_itm_train_runs_in_two_processes(launcher, world, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    content = {"data": {"folder": str(world)}, "model": {"method": "vse", **SMALL},
               "train": {"epochs": 1, "batch_size": 10, "lr": 1e-3, "log_every": 1}}
    recipe.write_text(yaml.safe_dump(content))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "itm_lib.cli", "train", str(recipe), "--out", str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^rsum", done.stdout, re.MULTILINE)) == 1  # the main process alone prints, and draws
    assert len(re.findall("epoch 1/1: 100%", done.stderr)) <= 2
    seed_everything(0)
    run = run_recipe(Recipe.parse(content), tmp_path / "one", progress=False)
    losses = [row["loss"] for row in History.load(tmp_path / "two" / "history.jsonl").steps]
    assert losses == pytest.approx([row["loss"] for row in run.history.steps], rel=1e-4)
    content = torch.load(tmp_path / "two" / "last.pt", weights_only=True)
    assert len(content["random_of_others"]) == 1  # there really were two


# --- BatchNorm ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("own", "torchs", "shape"), [(BatchNorm1d, nn.BatchNorm1d, (9, 5)), (BatchNorm2d, nn.BatchNorm2d, (3, 5, 2, 4))])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_over_all_processes_is_torchs_where_there_is_one(own, torchs, shape, momentum):
    """The formula, by way of a share that is the whole batch; outside of a share it is torch's own code."""
    torch.manual_seed(0)
    ours, theirs = own(5, momentum=momentum).double(), torchs(5, momentum=momentum).double()
    with torch.no_grad():
        for layer in (ours, theirs):
            layer.weight.copy_(torch.arange(5.0) + 1)
            layer.bias.copy_(torch.arange(5.0))
    for _ in range(2):
        x = torch.randn(shape, dtype=torch.float64) * 3 + 2
        first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
        with sharing(Share(True, 0)):
            found = ours(first)
        expected = theirs(second)
        for y in (found, expected):
            (y * torch.linspace(0, 1, y.numel(), dtype=y.dtype).view(shape)).sum().backward()
        assert torch.allclose(found, expected, atol=1e-12) and torch.allclose(first.grad, second.grad, atol=1e-12)
    assert_close(ours.state_dict(), theirs.state_dict(), 1e-12)
    assert torch.equal(ours(x), theirs(x))
    ours.eval(), theirs.eval()
    with sharing(Share(True, 0)):
        assert torch.allclose(ours(x), theirs(x), atol=1e-12)
