"""Fixtures of the search tests."""

import pytest
from made_for_search import make_folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("made") / "data")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    import torch

    torch.set_num_threads(1)
