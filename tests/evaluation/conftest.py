"""Fixtures of the evaluation tests."""

import pytest
from made_for_evaluation import WORDS, WordRegionModel, make_folder

from itm_lib.data.captions import Vocabulary


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "made")


@pytest.fixture
def model():
    return WordRegionModel(len(Vocabulary.build(WORDS)))
