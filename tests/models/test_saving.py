"""Saved models: the same scores when read again, and one line for everything that can be wrong with a folder."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError

from itm_lib.data.captions import SPECIAL, Vocabulary
from itm_lib.files import InputError
from itm_lib.models import MODELS, SCAN, VSE, Encoding, Ensemble, build_model, load_model

VOCABULARY = Vocabulary((*SPECIAL, *(f"word{number}" for number in range(26))))
FILES = ["README.md", "config.json", "model.safetensors", "vocabulary.json"]
SETTINGS = {
    "vse": {"text_pooling": "last"},
    "scan": {"direction": "i2t", "image_projection": "weight_norm", "gru_layers": 2, "compat": "official"},
    "camp": {"num_heads": 2, "gate": "elementwise"},
    "hrem": {"num_heads": 2, "sampling_dim": 4, "topk": 2},
    "dive": {"num_heads": 2, "head_dim": 4, "num_slots": 3},
}


def make(name, **more):
    torch.manual_seed(0)
    config = {"embed_dim": 12, "word_dim": 8, **SETTINGS.get(name, {}), **more}
    return build_model(name, config, region_dim=10, vocabulary_size=len(VOCABULARY)).eval()


def same_weights(first, second):
    """Parameters and buffers, to the bit."""
    other = second.state_dict()
    return first.state_dict().keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


def scores(model):
    generator = torch.Generator().manual_seed(1)
    regions = torch.randn(4, 5, 10, generator=generator)
    tokens = torch.randint(4, 30, (3, 6), generator=generator)
    token_mask = torch.ones_like(tokens, dtype=torch.bool)
    return model.similarity(model.encode_images(regions, None), model.encode_captions(tokens, token_mask))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_saved_model_reads_back_the_same(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path / "model", VOCABULARY, {"epoch": 3})
    content = json.loads((tmp_path / "model" / "config.json").read_text())
    assert content["method"] == name and content["config"]["region_dim"] == 10 and content["metadata"] == {"epoch": 3}
    found, vocabulary = load_model(tmp_path / "model")
    assert type(found) is type(model) and found.config == model.config and vocabulary == VOCABULARY
    assert found.metadata == {"epoch": 3} and not found.training
    assert same_weights(found, model) and torch.equal(scores(found), scores(model))
    assert torch.equal(scores(MODELS[name][0].from_pretrained(tmp_path / "model")), scores(model))
    assert not [path.name for path in (tmp_path / "model").iterdir() if path.name.startswith(".")]


def test_saving_again_replaces_the_model_and_forgets_another_vocabulary(tmp_path):
    make("vse").save_pretrained(tmp_path, VOCABULARY)
    scan = make("scan")
    scan.save_pretrained(tmp_path)
    found, vocabulary = load_model(tmp_path)
    assert vocabulary is None and torch.equal(scores(found), scores(scan))


def test_a_failed_save_leaves_the_old_model(tmp_path, monkeypatch):
    model = make("vse")
    model.save_pretrained(tmp_path, VOCABULARY)
    other = make("vse", margin=0.5)
    with pytest.raises(ValueError):
        other.save_pretrained(tmp_path, metadata={"loss": float("nan")})
    found, vocabulary = load_model(tmp_path)
    assert found.config.margin == 0.2 and vocabulary == VOCABULARY
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES


class Hub:
    """Stands in for the Hub's client: keeps what would be uploaded in a folder, and how it was asked for."""

    place: Path
    asked: list[dict]

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, **options):
        if repo_id.startswith("nobody/"):
            raise HfHubHTTPError("403 Forbidden:\nyou may not write here", response=SimpleNamespace(headers={}, request=None))
        self.asked.append({"repo_id": repo_id, "token": self.token, **options})
        return type("Repo", (), {"repo_id": repo_id})

    def upload_folder(self, folder_path, repo_id, **options):
        shutil.copytree(folder_path, self.place / repo_id)
        self.asked.append({name: value for name, value in options.items() if value is not None})
        return "https://hub/commit"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub in a folder: what is pushed can be read again from there."""

    def snapshot(name, revision=None, token=None, allow_patterns=()):
        if not (tmp_path / "hub" / name).is_dir():
            raise FileNotFoundError(f"404:\nno repository {name}")
        Hub.asked.append({"read": name, "revision": revision, "token": token})
        kept = tmp_path / "cache" / name
        for path in (tmp_path / "hub" / name).rglob("*"):
            if path.is_file() and any(fnmatch(path.relative_to(tmp_path / "hub" / name).as_posix(), pattern) for pattern in allow_patterns):
                (kept / path.relative_to(tmp_path / "hub" / name)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, kept / path.relative_to(tmp_path / "hub" / name))
        return str(kept)

    Hub.place, Hub.asked = tmp_path / "hub", []
    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    monkeypatch.setattr("itm_lib.models.saving.snapshot_download", snapshot)
    return Hub


def names_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_what_is_pushed_to_the_hub_is_complete(hub, tmp_path):
    model = make("scan")
    model.save_pretrained(tmp_path / "model", VOCABULARY, {"val": {"rsum": 300.0}})
    told = SCAN.from_pretrained(tmp_path / "model").push_to_hub("owner/name", private=True, token="hf_secret", commit_message="First", license="mit")
    assert told == "https://hub/commit" and names_in(hub.place / "owner" / "name") == FILES
    assert hub.asked[0] == {"repo_id": "owner/name", "token": "hf_secret", "private": True, "exist_ok": True}
    assert hub.asked[1]["commit_message"] == "First" and hub.asked[1]["repo_type"] == "model"
    found, vocabulary = load_model("hf://owner/name", revision="main", token="hf_secret")
    assert hub.asked[2] == {"read": "owner/name", "revision": "main", "token": "hf_secret"}
    assert same_weights(found, model) and vocabulary == VOCABULARY and found.metadata == {"val": {"rsum": 300.0}}
    assert torch.equal(scores(SCAN.from_pretrained("hf://owner/name")), scores(model))
    card = ModelCard.load(hub.place / "owner" / "name" / "README.md")
    assert card.data.license == "mit" and 'load_model("hf://owner/name")' in card.text and "| val | 300.0 |" in card.text
    assert not any("hf_secret" in path.read_text(errors="ignore") for path in (hub.place / "owner" / "name").iterdir())


def test_an_ensemble_is_pushed_with_its_members(hub):
    ensemble = Ensemble([make("scan"), make("vse")]).eval()
    ensemble.vocabulary = VOCABULARY
    ensemble.push_to_hub("owner/both")
    assert names_in(hub.place / "owner" / "both") == ["0/README.md", "0/config.json", "0/model.safetensors", "0/vocabulary.json", "1/README.md",
                                                      "1/config.json", "1/model.safetensors", "1/vocabulary.json", "README.md", "config.json"]
    assert torch.equal(scores(load_model("hf://owner/both")[0]), scores(ensemble))
    assert 'load_model("hf://owner/both")' in (hub.place / "owner" / "both" / "README.md").read_text()


def test_what_the_hub_refuses_is_one_line(hub, tmp_path):
    with pytest.raises(InputError) as error:
        make("vse").push_to_hub("nobody/name")
    assert "the Hugging Face Hub does not take nobody/name (403 Forbidden: you may not write here" in line_of(error)
    with pytest.raises(InputError) as error:
        make("vse").push_to_hub("not/a/name")
    assert "does not take not/a/name" in line_of(error)
    with pytest.raises(InputError) as error:
        load_model("hf://owner/absent")
    assert "the Hugging Face Hub does not give owner/absent (404: no repository owner/absent): check the name" in line_of(error)
    with pytest.raises(InputError) as error:
        load_model("owner/name")
    assert line_of(error).endswith("train and save a model first; one of the Hugging Face Hub is hf://owner/name")


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


def test_a_folder_of_another_method_is_named(tmp_path):
    make("vse").save_pretrained(tmp_path)
    with pytest.raises(InputError) as error:
        SCAN.from_pretrained(tmp_path)
    assert "holds a model of method 'vse', not 'scan'" in line_of(error)


def break_missing_folder(folder):
    return folder / "nowhere"


def break_missing_config(folder):
    (folder / "config.json").unlink()
    return folder


def break_cut_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text()[:40])
    return folder


def break_other_config(folder):
    (folder / "config.json").write_text('{"hidden_size": 3}')
    return folder


def break_unknown_method(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"vse"', '"vsee"'))
    return folder


def break_unknown_setting(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"margin"', '"margins"'))
    return folder


def break_missing_weights(folder):
    (folder / "model.safetensors").unlink()
    return folder


def break_cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def break_other_sizes(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"embed_dim": 12', '"embed_dim": 16'))
    return folder


@pytest.mark.parametrize(("damage", "expected"), [
    (break_missing_folder, "no model folder"), (break_missing_config, "no file"), (break_cut_config, "is not valid JSON"),
    (break_other_config, "is not of a saved model"), (break_unknown_method, "no model is called 'vsee'; did you mean 'vse'?"),
    (break_unknown_setting, "no setting 'margins'; did you mean 'margin'?"), (break_missing_weights, "no weights"),
    (break_cut_weights, "cannot be read"), (break_other_sizes, "does not fit the config.json beside it"),
])
def test_what_is_wrong_with_a_folder_is_one_line(damage, expected, tmp_path):
    make("vse").save_pretrained(tmp_path, VOCABULARY)
    folder = damage(tmp_path)
    with pytest.raises(InputError) as error:
        load_model(folder)
    assert expected in line_of(error)


def test_an_unknown_model_or_a_size_that_contradicts_the_data_is_refused():
    with pytest.raises(InputError, match="no model is called 'scam'; did you mean 'scan'"):
        build_model("scam", {}, 10, 30)
    with pytest.raises(InputError, match="region_dim is set to 2048 but the data has 134"):
        build_model("scan", {"region_dim": 2048}, 134, 30)
    with pytest.raises(InputError, match="setting 'vocab_size' of SCANConfig: Field required"):
        build_model("scan", {}, region_dim=134)


def test_an_ensemble_averages_scores_and_reads_back(tmp_path):
    members = [make("scan"), make("vse")]
    ensemble = Ensemble(members).eval()
    expected = (scores(members[0]) + scores(members[1])) / 2
    torch.testing.assert_close(scores(ensemble), expected)
    ensemble.save_pretrained(tmp_path, VOCABULARY)
    found, vocabulary = load_model(tmp_path)
    assert isinstance(found, Ensemble) and vocabulary == VOCABULARY
    assert torch.equal(scores(found), scores(ensemble))
    with pytest.raises(InputError, match="is not trained as one"):
        ensemble.loss(Encoding(), Encoding(), torch.arange(2), torch.arange(2))


def test_encodings_of_an_ensemble_select_and_join(tmp_path):
    ensemble = Ensemble([make("scan"), make("vse")])
    regions, tokens = torch.randn(4, 5, 10), torch.randint(4, 30, (3, 6))
    mask = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    images, captions = ensemble.encode_images(regions, None), ensemble.encode_captions(tokens, mask)
    whole = ensemble.similarity(images, captions)
    short = ensemble.encode_captions(tokens[1:, :4], mask[1:, :4])
    joined = Encoding.cat([captions.select(slice(0, 1)), short.map(lambda value: value)])
    assert len(joined) == 3 and len(images.select([2, 0])) == 2
    torch.testing.assert_close(ensemble.similarity(images, joined), whole)
    torch.testing.assert_close(ensemble.similarity(images.select([2, 0]), captions), whole[[2, 0]])
    assert ensemble.pair_bytes(images, captions) >= ensemble.models[0].pair_bytes(images.members[0], captions.members[0])


def test_an_ensemble_refuses_models_of_different_vocabularies():
    members = [make("scan"), make("vse")]
    members[0].vocabulary, members[1].vocabulary = VOCABULARY, Vocabulary((*SPECIAL, "other"))
    with pytest.raises(InputError, match="different vocabularies"):
        Ensemble(members)
    with pytest.raises(InputError, match="at least one model"):
        Ensemble([])
    assert isinstance(members[1], VSE)
