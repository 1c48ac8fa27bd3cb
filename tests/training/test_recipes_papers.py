"""The recipes of the papers' tables: their settings against a table written here, and the rows that they name."""

from __future__ import annotations

import re

import pytest
import yaml

from itm_lib.files import project_root
from itm_lib.training import load_recipe
from itm_lib.training.config import learning_rate
from itm_lib.training.recipe import RECIPES, Recipe, paper_recipe_names

PUBLISHED, OURS = "published", "ours, chosen on val"
PAPERS = paper_recipe_names()

SCAN = {"model.embed_dim": 1024, "model.word_dim": 300, "model.margin": 0.2, "model.raw_feature_norm": "clipped_l2norm", "model.raw_activation": "leaky_relu",
        "model.bidirectional": True, "model.gru_layers": 1, "model.negatives": "hardest", "model.warmup_epochs": 0, "model.reduction": "sum",
        "model.same_image_negatives": False, "train.optimizer": "adam", "train.weight_decay": 0.0, "train.batch_size": 128, "train.clip": 2.0,
        "train.schedule": "step", "train.decay_factor": 0.1}
SHORT = {"flickr30k": {"train.lr": 2e-4, "train.epochs": 30, "train.decay_at": (15,)}, "coco": {"train.lr": 5e-4, "train.epochs": 20, "train.decay_at": (10,)}}
SGD = {"train.lr": 0.01, "train.optimizer": "sgd", "train.momentum": 0.9, "train.nesterov": True, "train.weight_decay": 1e-4, "train.batch_size": 128, "train.clip": 2.0}
CAMP = {"model.embed_dim": 1024, "model.word_dim": 300, "model.gate": "scalar", "model.fusion": "concat", "model.second_attention": True, "model.message_norm": True,
        "model.num_heads": 4, "model.objective": "bce", "model.score": "mlp", "model.aggregation": "attention", "model.reduction": "sum", "model.image_norm": False, "model.text_norm": False}
STAGES = {
    "pretrain": {"model.fusion": "none", "model.message_norm": False, "model.aggregation": "mean", "model.score": "cosine", "model.objective": "ranking", "model.margin": 0.2,
                 "model.word_vectors": "GoogleNews-vectors-negative300.bin", "train.epochs": 110, "train.batch_size": 256, "train.lr": 1e-3, "train.optimizer": "adam",
                 "train.weight_decay": 0.0, "train.decay_at": (50, 100), "train.clip": 2.0, "train.freeze": (), "train.eval_every": 5},
    "fixed_attention": {**CAMP, **SGD, "train.epochs": 65, "train.decay_at": (45,), "train.freeze": ("image", "text", "attention"), "train.eval_every": 5,
                        "model.word_vectors": None},
    "fine_tune": {**CAMP, **SGD, "train.epochs": 150, "train.decay_at": (50, 100), "train.freeze": (), "model.word_vectors": None},
}
HREM = {"model.embed_dim": 1024, "model.num_heads": 16, "model.num_layers": 1, "model.dropout": 0.1, "model.pool_top": 2, "model.beta": 0.8, "model.margin": 0.2,
        "model.matching_loss": "distance_weighted", "model.sampling_dim": 512, "model.topk": 10, "model.threshold": 0.5, "model.reg_weight": 10, "model.relation_warmup": 8000,
        "model.region_dropping": 0.2, "model.word_dropping": 0.2, "model.reduction": "sum", "model.graph_lr_scale": 1, "model.cross_loss": True, "train.epochs": 30,
        "train.decay_at": (15, 25), "train.decay_factor": 0.1, "train.lr": 5e-4, "train.optimizer": "adamw", "train.weight_decay": 1e-4, "train.clip": 2.0, "train.precision": "no"}
SIZED = {"flickr30k": {"train.batch_size": 128, "model.relation_weight": 1.0, "model.distance_cutoff": 1.7},
         "coco": {"train.batch_size": 256, "model.relation_weight": 1.5, "model.distance_cutoff": 1.9}}
BERT = {"model.text_encoder": "bert", "model.bert": "bert-base-uncased", "model.bert_lr_scale": 0.1}
GRU = {"model.text_encoder": "gru", "model.word_dim": 300, "model.bidirectional": True}
DIVE = {"model.embed_dim": 1024, "model.num_slots": 4, "model.caption_slots": None, "model.iterations": 4, "model.share_weights": True, "model.similarity": "smooth_chamfer",
        "model.alpha": 16, "model.mmd_weight": 0.01, "model.diversity_weight": 0.01, "model.dropout": 0.1, "model.region_dropping": 0.2, "model.word_dropping": 0.2,
        "model.image_lr_scale": 0.1, "model.text_set_lr_scale": 0.1, "model.reduction": "mean", "model.negatives": "hardest", "train.optimizer": "adamw",
        "train.weight_decay": 1e-4, "train.clip": 1.0, "train.precision": "fp16"}
GLOVE = {"model.word_vectors": "glove.840B.300d.txt", "model.text_local": "words", "model.text_global": "last"}
REGIONS = {"model.image_encoder": "regions", "model.num_heads": 4, "model.head_dim": 512, "model.margin": 0.2, "train.epochs": 80, "train.batch_size": 200, "train.lr": 1e-3,
           "train.schedule": "cosine"}
GRID = {"model.image_encoder": "grid", "model.backbone": "microsoft/resnet-152", "train.epochs": 50, "train.batch_size": 128, "train.schedule": "step", "train.decay_at": (20, 40),
        "train.freeze": ("backbone",), "train.freeze_epochs": 1}


def scan(data: str, direction: str, lse: float | None) -> dict:
    row = {"model.direction": direction, "model.lambda_softmax": 9 if direction == "t2i" else 4, "model.aggregation": "lse" if lse else "mean"}
    return {**SCAN, **SHORT[data], **row, **({"model.lambda_lse": lse} if lse else {})}


TABLE = {}  # of each recipe: the row's variant, where the settings are from, the settings
for _data in ("flickr30k", "coco"):
    _flickr = _data == "flickr30k"
    for _name, _row in {
        "vse": ("BUTD regions + BiGRU, re-implemented", OURS, {"model.embed_dim": 1024, "model.word_dim": 300, "model.margin": 0.2, "model.warmup_epochs": 1,
                                                               "model.negatives": "hardest", "train.batch_size": 128, "train.optimizer": "adam", **SHORT[_data]}),
        "scan_ti_lse": ("t-i LSE", PUBLISHED, scan(_data, "t2i", 6)), "scan_ti_avg": ("t-i AVG", PUBLISHED, scan(_data, "t2i", None)),
        "scan_it_lse": ("i-t LSE", PUBLISHED, scan(_data, "i2t", 5 if _flickr else 20)), "scan_it_avg": ("i-t AVG", PUBLISHED, scan(_data, "i2t", None)),
        "camp": ("full model", PUBLISHED if _flickr else OURS, {**STAGES["fine_tune"], "train.eval_every": 1 if _flickr else 5}),
        "hrem_bert": ("regions + BERT, single", PUBLISHED, {**HREM, **SIZED[_data], **BERT, "model.mechanism": "fusion"}),
        "hrem_bigru": (None, OURS, {**HREM, **SIZED[_data], **GRU, "model.mechanism": "fusion"}),
        "hrem_standalone_bert": (None, OURS, {**HREM, **SIZED[_data], **BERT, "model.mechanism": "standalone"}),
        "hrem_standalone_bigru": (None, OURS, {**HREM, **SIZED[_data], **GRU, "model.mechanism": "standalone"}),
        "dive_region_bigru": ("K = 4" if _flickr else None, OURS if _flickr else PUBLISHED, {**DIVE, **GRU, **GLOVE, **REGIONS}),
        "dive_grid_bigru": ("ResNet-152 + BiGRU", OURS, {**DIVE, **GRU, **GLOVE, **GRID, "model.margin": 0.2, "model.num_heads": 4, "model.head_dim": 512}),
        "dive_grid_bert": (None if _flickr else "ResNeXt-101 + BERT, single", OURS, {**DIVE, **BERT, **GRID, "model.margin": 0.1, "model.num_heads": 8, "model.head_dim": 256,
                                                                                     "model.text_local": "states", "model.text_global": "max"}),
    }.items():
        TABLE[f"{_data}/{_name}"] = _row


def settings(part) -> dict:
    """``{"model.margin": ..., "train.lr": ...}`` of a stage, defaults filled in."""
    return {**{f"model.{name}": value for name, value in part.config.model_dump().items()}, **{f"train.{name}": value for name, value in part.train.model_dump().items()}}


def test_there_is_a_recipe_for_every_row_and_no_other():
    assert len(PAPERS) == 26 and sorted(TABLE) == PAPERS


@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_has_the_settings_of_its_row(name):
    recipe, (variant, source, expected) = load_recipe(name), TABLE[name]
    assert recipe.paper.model_dump() == {"dataset": name.partition("/")[0], "variant": variant, "settings": source}
    assert recipe.data.folder == recipe.paper.dataset and recipe.plan[-1].config.compat == "default"
    assert recipe.train.seed == 0 and recipe.train.select_by == "rsum" and recipe.train.accumulate == 1
    found = settings(recipe.plan[-1])
    assert {key: found[key] for key in expected} == expected
    assert Recipe.parse(recipe.resolved()).resolved() == recipe.resolved() and recipe.resolved()["paper"] == recipe.paper.model_dump()


@pytest.mark.parametrize("name", ["flickr30k/camp", "coco/camp"])
def test_the_stages_of_camp_are_the_released_ones(name):
    plan = load_recipe(name).plan
    assert [stage.name for stage in plan] == list(STAGES)
    for stage in plan:
        found = settings(stage)
        assert {key: found[key] for key in STAGES[stage.name]} == STAGES[stage.name]


def test_learning_rates_fall_where_the_authors_let_them_fall():
    rates = {name: [learning_rate(load_recipe(name).train, epoch * 100, 100) for epoch in range(load_recipe(name).train.epochs)]
             for name in ("flickr30k/scan_it_avg", "coco/scan_it_lse", "coco/hrem_bert", "flickr30k/camp", "coco/dive_grid_bert", "coco/dive_region_bigru")}
    falls = {name: [epoch for epoch in range(1, len(each)) if each[epoch] < 0.5 * each[epoch - 1]] for name, each in rates.items() if "region" not in name}
    assert falls == {"flickr30k/scan_it_avg": [15], "coco/scan_it_lse": [10], "coco/hrem_bert": [15, 25], "flickr30k/camp": [50, 100], "coco/dive_grid_bert": [20, 40]}
    assert rates["coco/hrem_bert"][25] == pytest.approx(5e-6) and rates["coco/dive_region_bigru"][40] == pytest.approx(5e-4)


@pytest.mark.parametrize("name", PAPERS)
def test_the_row_that_a_recipe_names_is_published(name):
    recipe = load_recipe(name)
    rows = yaml.safe_load((project_root() / "data" / "paper_results.yaml").read_text())
    found = [row for row in rows if (row["method"], row["dataset"], row["variant"]) == (recipe.method, recipe.paper.dataset, recipe.paper.variant)]
    assert bool(found) == (recipe.paper.variant is not None)


@pytest.mark.parametrize("name", PAPERS)
def test_every_setting_says_where_it_is_from(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    head = text[: text.index("paper:")].replace("\n# ", " ")
    source = load_recipe(name).paper.settings
    assert f"Settings: {source}" in head and (source == PUBLISHED or "earest published row" in head or "nearest published one" in head or "similar" in head)
    said = re.compile(r"^  (\w+): \S.*#", re.M)
    silent = {"method", "text_encoder", "image_encoder", "schedule", "eval_every", "num_workers", "seed", "aggregation", "bidirectional", "mechanism", "flip"}
    for section in ("model", "train"):
        lines = text.partition(f"\n{section}:\n")[2]
        lines = lines[: re.search(r"^\S", lines + "\n.", re.M).start()] if re.search(r"^\S", lines, re.M) else lines
        keys = {line.split(":")[0].strip() for line in lines.splitlines() if re.match(r"  \w", line)}
        assert keys and keys - set(said.findall("\n" + lines)) <= silent
