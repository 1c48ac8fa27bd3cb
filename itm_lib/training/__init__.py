"""Training: recipes, the trainer with exact resume, and sweeps of many runs."""

from itm_lib.training.config import TrainConfig
from itm_lib.training.dry_run import DryRun, dry_run
from itm_lib.training.recipe import Recipe, Run, load_recipe, recipe_names, run_recipe, run_seeds
from itm_lib.training.state import History, seed_everything
from itm_lib.training.sweep import Sweep, load_sweep, run_sweep
from itm_lib.training.trainer import Trainer

__all__ = ["DryRun", "History", "Recipe", "Run", "Sweep", "TrainConfig", "Trainer", "dry_run", "load_recipe", "load_sweep", "recipe_names",
           "run_recipe", "run_seeds", "run_sweep", "seed_everything"]
