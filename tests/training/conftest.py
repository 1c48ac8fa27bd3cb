"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_for_training import write_dataset

from itm_lib.data import open_split


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("world"), {"train": 60, "val": 30, "test": 30})


@pytest.fixture(scope="session")
def splits(folder):
    """(train, val) of the small world."""
    return open_split(folder, "train"), open_split(folder, "val")
