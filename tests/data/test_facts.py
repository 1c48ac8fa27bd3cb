"""Facts of a dataset: counted by hand on a few captions, and written by the command line."""

from __future__ import annotations

import made_flickr8k as made
import pytest
from typer.testing import CliRunner

from itm_lib.cli import app
from itm_lib.data.facts import dataset_facts
from itm_lib.data.flickr8k import prepare_flickr8k
from itm_lib.files import project_root, read_json


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made.small_sizes(monkeypatch)
    raw = made.write_text_archive(tmp_path / "raw")
    images = [name.partition(".")[0] for own in made.names().values() for name in own]
    return prepare_flickr8k(raw, tmp_path / "flickr8k", made.write_regions(tmp_path / "regions.h5", images), progress=False)


def test_they_are_counted_on_training_captions(folder):
    facts = dataset_facts(folder)
    # eight nouns, each once in "A x is running", "The x near a y plays", "A sign says x", "Two xs are jumping", "A x and a y"
    assert facts["caption_length"] == {"4": 24, "5": 8, "6": 8}
    assert facts["pictures"] == {"train": 8, "val": 3} and facts["captions"] == {"train": 40, "val": 15}
    assert facts["regions"]["least"] == facts["regions"]["most"] >= 1
    assert facts["vocabulary"]["1"]["training"] == 0 < facts["vocabulary"]["4"]["training"]
    assert facts["vocabulary"]["1"]["words"] == facts["words"] and facts["word_ranks"]["1"] >= facts["word_ranks"]["2"]
    assert facts["shared_words"]["own"] > facts["shared_words"]["others"] > 0
    assert facts == dataset_facts(folder)  # the same every time


def test_the_command_prints_them_or_writes_them(folder, tmp_path):
    printed = CliRunner().invoke(app, ["data", "facts", str(folder)])
    assert printed.exit_code == 0 and '"words_once"' in printed.output
    assert CliRunner().invoke(app, ["data", "facts", str(folder), "--out", str(tmp_path / "facts.json")]).exit_code == 0
    assert read_json(tmp_path / "facts.json") == dataset_facts(folder)


def test_the_committed_facts_are_of_the_whole_flickr8k():
    facts = read_json(project_root() / "data" / "flickr8k_facts.json")
    assert facts["pictures"] == {"train": 6000, "val": 1000} and facts["captions"] == {"train": 30000, "val": 5000}
    assert sum(facts["caption_length"].values()) == 30000
