"""load_official: every form in which the authors' weights come, and a line for what is not theirs."""

import argparse

import pytest
import torch

from itm_lib.files import InputError
from itm_lib.models import SCAN
from itm_lib.models.official import load_official

OPTIONS = {"cross_attn": "i2t", "agg_func": "LogSumExp", "lambda_lse": 20.0, "lambda_softmax": 4.0,
           "raw_feature_norm": "l2norm", "no_imgnorm": True, "max_violation": True, "margin": 0.3, "embed_size": 12, "learning_rate": 2e-4,
           "data_path": "anywhere", "logger_name": "runs"}


def states(layers=1, both=True, weight_norm=False):
    """The two state dicts as SCAN's code has them."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    image = {"fc.weight_g": draw(), "fc.weight_v": draw(12, 10)} if weight_norm else {"fc.weight": draw(12, 10)}
    text = {"embed.weight": draw(30, 8)}
    for layer in range(layers):
        for suffix in ("", "_reverse") if both else ("",):
            width = 8 if layer == 0 else 12 * (1 + both)
            text |= {f"rnn.weight_ih_l{layer}{suffix}": draw(36, width), f"rnn.weight_hh_l{layer}{suffix}": draw(36, 12),
                     f"rnn.bias_ih_l{layer}{suffix}": draw(36), f"rnn.bias_hh_l{layer}{suffix}": draw(36)}
    return [{**image, "fc.bias": draw(12)}, text]


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_sizes_come_from_the_shapes(layers, both, weight_norm):
    config = load_official(states(layers, both, weight_norm), "scan").config
    assert (config.region_dim, config.embed_dim, config.vocab_size, config.word_dim) == (10, 12, 30, 8)
    assert (config.gru_layers, config.bidirectional, config.image_projection) == (
        layers, both, "weight_norm" if weight_norm else "linear")
    assert (config.compat, config.reduction, config.same_image_negatives) == ("official", "sum", True)


def as_list(parts):
    return parts


def as_checkpoint(parts):
    return {"epoch": 3, "model": parts, "best_rsum": 400.0, "Eiters": 10}


def as_parallel(parts):
    return {"model": [{f"module.{key}": value for key, value in part.items()} for part in parts]}


def as_flat(parts):
    return {f"{part}/{key}": value for part, state in zip(("img_enc", "txt_enc"), parts) for key, value in state.items()}


def as_arrays(parts):
    return [{key: value.numpy() for key, value in part.items()} for part in parts]


@pytest.mark.parametrize("form", [as_list, as_checkpoint, as_parallel, as_flat, as_arrays])
def test_every_form_gives_the_same_model(form):
    parts = states()
    model = load_official(form(parts), "scan")
    assert isinstance(model, SCAN) and not model.training
    assert torch.equal(model.image.fc.weight, parts[0]["fc.weight"])
    assert torch.equal(model.text.rnn.weight_hh_l0_reverse, parts[1]["rnn.weight_hh_l0_reverse"])


def test_a_file_with_the_authors_options_needs_no_config(tmp_path):
    torch.save({**as_checkpoint(states()), "opt": argparse.Namespace(**OPTIONS)}, tmp_path / "model_best.pth.tar")
    config = load_official(tmp_path / "model_best.pth.tar", "scan").config
    assert (config.direction, config.aggregation, config.lambda_lse, config.raw_feature_norm) == ("i2t", "lse", 20, "l2norm")
    assert (config.image_norm, config.negatives, config.margin, config.bidirectional) == (False, "hardest", 0.3, True)
    override = load_official(tmp_path / "model_best.pth.tar", "scan", {"aggregation": "mean", "reduction": "mean"}).config
    assert (override.aggregation, override.reduction, override.direction) == ("mean", "mean", "i2t")


@pytest.mark.parametrize("config", [
    {"direction": "i2t", "aggregation": "lse", "lambda_lse": 20.0, "image_norm": False, "margin": 0.3},
    OPTIONS])
def test_config_takes_our_names_and_the_authors(config):
    ours = load_official(states(), "scan", config).config
    assert (ours.direction, ours.aggregation, ours.lambda_lse) == ("i2t", "lse", 20)
    assert (ours.image_norm, ours.margin) == (False, 0.3)


def test_a_scalar_gain_may_come_as_a_vector_of_one():
    image, text = states(weight_norm=True)
    model = load_official([{**image, "fc.weight_g": image["fc.weight_g"].reshape(1)}, text], "scan")
    assert model.image.fc.parametrizations.weight.original0 == image["fc.weight_g"]


def test_weights_keep_their_dtype():
    doubles = [{key: value.double() for key, value in part.items()} for part in states()]
    assert load_official(doubles, "scan").image.fc.weight.dtype == torch.float64
    assert load_official(states(), "scan").image.fc.weight.dtype == torch.float32


def line_of(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 500
    return text


class Hostile:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_file_that_holds_code_is_not_run(tmp_path, capsys):
    torch.save({"model": states(), "opt": Hostile()}, tmp_path / "model.pth")
    with pytest.raises(InputError) as error:
        load_official(tmp_path / "model.pth", "scan")
    assert "cannot be read as a torch checkpoint" in line_of(error)
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("kept", [0, 100, 3000])
def test_a_damaged_file_is_named(tmp_path, kept):
    torch.save(states(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:kept])
    with pytest.raises(InputError) as error:
        load_official(tmp_path / "cut.pth", "scan")
    assert "cannot be read as a torch checkpoint" in line_of(error)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint .*nowhere.pth"):
        load_official(tmp_path / "nowhere.pth", "scan")


@pytest.mark.parametrize(("state", "expected"), [
    ([], "holds no model"), ({}, "holds no model"), ({"epoch": 3}, "belongs to no part"), (7, "holds no model"),
    ([*states(), {"fc_1.0.weight": torch.zeros(2)}], "is not a SCAN checkpoint"),
    ([states()[0]], "is not a SCAN checkpoint"),
    ([states()[0], {"bert.embeddings.word_embeddings.weight": torch.zeros(3, 3)}], "is not a SCAN checkpoint"),
    ([{**states()[0], "mlp.fc1.weight": torch.zeros(2)}, states()[1]], "does not fit the settings"),
    ([states()[0], {k: v for k, v in states()[1].items() if k != "rnn.bias_hh_l0"}], "does not fit the settings"),
])
def test_a_state_of_something_else_is_named(state, expected):
    with pytest.raises(InputError) as error:
        load_official(state, "scan")
    assert expected in line_of(error)


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="does not fit the settings"):
        load_official(states(), "scan", {"embed_dim": 16})
    with pytest.raises(InputError, match="unknown setting 'cross_atn'; did you mean cross_attn"):
        load_official(states(), "scan", {"cross_atn": "i2t"})


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(InputError, match="no loader for official checkpoints of 'blip': supported are scan"):
        load_official(states(), "blip")
