"""Every recipe of the papers' tables, at reduced width on generated data: starts, trains, saves, resumes, evaluates.

tests/benchmarks/bench_recipes.py does the same at full width.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from itm_lib.training import recipe_names

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_recipes import try_recipe  # noqa: E402
from recipe_world import TINY  # noqa: E402


@pytest.mark.parametrize("name", [name for name in recipe_names() if not name.startswith("embedded/")])
def test_a_recipe_starts_trains_saves_resumes_and_evaluates(name, tmp_path):
    row = try_recipe(name, tmp_path, TINY, batch=4)
    assert row["step_s"] > 0 and row["peak_mib"] > 0 and row["used"] == 4 < row["batch"] and row["parameters"] < 10**5
