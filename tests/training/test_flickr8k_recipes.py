"""The recipes for photographs are the rows of the sweep that they name."""

from __future__ import annotations

import re

import pytest

from itm_lib.evaluation.claims import read_claims
from itm_lib.files import project_root
from itm_lib.training import load_recipe
from itm_lib.training.recipe import RECIPES
from itm_lib.training.sweep import load_sweep

SWEEP = load_sweep(project_root() / "data" / "sweeps" / "flickr8k.yaml")
NAMES = sorted(path.stem for path in (RECIPES / "flickr8k").glob("*.yaml"))
PRACTICAL = {"data", "paper"}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_its_row(name):
    text = (RECIPES / "flickr8k" / f"{name}.yaml").read_text(encoding="utf-8")
    (row,) = re.findall(r'Row "(\w+)" of data/sweeps/flickr8k\.yaml', text)
    recipe, wanted = load_recipe(f"flickr8k/{name}").resolved(), SWEEP.recipe(row, 0).resolved()
    assert {key: value for key, value in recipe.items() if key not in PRACTICAL} == {key: value for key, value in wanted.items() if key not in PRACTICAL}
    assert recipe["data"]["folder"] == "flickr8k"


def test_all_methods_have_one():
    assert {load_recipe(f"flickr8k/{name}").method for name in NAMES} == {"vse", "scan", "camp", "hrem", "dive"}
    assert {"vse", "scan_ti_avg", "scan_it_lse", "camp", "hrem", "dive", "dive_k1", "hrem_minilm", "dive_minilm"} == set(NAMES)


@pytest.mark.parametrize("name", ["flickr8k", "flickr8k_small"])
def test_rows_have_labels_that_the_claims_know(name):
    sweep = load_sweep(project_root() / "data" / "sweeps" / f"{name}.yaml")
    assert set(sweep.labels) == {*sweep.variants, *sweep.ensembles}
    assert len(set(sweep.labels.values())) == len(sweep.labels)


def test_every_claim_has_its_rows_on_photographs():
    labels = set(load_sweep(project_root() / "data" / "sweeps" / "flickr8k_small.yaml").labels.values())
    assert {label for claim in read_claims() for label in (claim.better, claim.worse)} <= labels
