"""Every recipe of the papers' tables, at reduced width on generated data: starts, trains, saves, resumes, evaluates.

tests/benchmarks/bench_recipes.py does the same at full width, and bench_gpu.py, of which a part is run here, measures on a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from itm_lib.training.recipe import paper_recipe_names

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from bench_gpu import bench_evaluation, bench_steps  # noqa: E402
from bench_recipes import try_recipe  # noqa: E402
from recipe_world import TINY  # noqa: E402


@pytest.mark.parametrize("name", paper_recipe_names())
def test_a_recipe_starts_trains_saves_resumes_and_evaluates(name, tmp_path):
    row = try_recipe(name, tmp_path, TINY, batch=4)
    assert row["step_s"] > 0 and row["peak_mib"] > 0 and row["used"] == 4 < row["batch"] and row["parameters"] < 10**5


def test_the_benchmark_for_a_gpu_runs_at_reduced_width(capsys):
    rows, problems = bench_steps(["flickr30k/scan_it_avg", "flickr30k/dive_grid_bert", "coco/hrem_bigru"], TINY, tiny=True)
    assert problems == [] and len(rows) == 6 and all(row["tflop"] > 0 and row["pairs_per_s"] > 0 and 0 < row["percent_of_peak"] < 100 for row in rows)
    rows, problems = bench_evaluation(tiny=True)
    assert problems == [] and all(row["difference"] < 1e-4 and row["score_ratio"] > 0 for row in rows) and len(rows) == 3
    assert "pairs/s" in capsys.readouterr().out
