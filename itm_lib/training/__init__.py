"""Training: recipes, the trainer with exact resume, and sweeps of many runs."""

from itm_lib.training.config import TrainConfig
from itm_lib.training.state import History, seed_everything
from itm_lib.training.trainer import Trainer

__all__ = ["History", "TrainConfig", "Trainer", "seed_everything"]
