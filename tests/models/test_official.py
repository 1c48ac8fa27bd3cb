"""load_official: every form in which the authors' weights come, and a line for what is not theirs."""

import argparse
import sys
import types

import pytest
import torch

from itm_lib.files import InputError
from itm_lib.models import CAMP, SCAN
from itm_lib.models.official import load_official

SCAN_OPTIONS = {"cross_attn": "i2t", "agg_func": "LogSumExp", "lambda_lse": 20.0, "lambda_softmax": 4.0,
           "raw_feature_norm": "l2norm", "no_imgnorm": True, "max_violation": True, "margin": 0.3,
                "embed_size": 12, "learning_rate": 2e-4, "data_path": "anywhere", "logger_name": "runs"}
CAMP_OPTIONS = {"measure": "gate_fusion_new", "fusion_func": "concat", "self_attention": False, "no_imgnorm": True, "no_txtnorm": True,
                "bi_gru": True, "num_layers": 1, "max_violation": True, "margin": 0.3, "loss_func": "ranking", "max_length": 9,
                "grad_clip": 2, "learning_rate": 0.01, "word_embed": False, "embed_mask": False, "val_epoc": 1,
                "optimizer": {"type": "SGD", "momentum": 0.9, "nesterov": True}}


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


def camp_states(fusion="concat", summary=True, heads=4):
    """The three state dicts as CAMP's code has them; ``fusion="none"`` is the measure cross_attention_new."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    sim = {f"{weighted}{side}_{kind}_fc.weight": draw(12, 12) for weighted in ("", "weighted_") for side in ("img", "txt")
           for kind in ("key", "query")}
    wide = 24 if fusion == "concat" else 12
    if fusion != "none":
        sim |= {"fc_1.0.weight": draw(12, wide), "fc_2.0.weight": draw(12, wide), "fc_out.0.weight": draw(12, wide),
                "fc_out.0.bias": draw(12), "fc_out.3.weight": draw(1, 12), "fc_out.3.bias": draw(1)}
    if summary:
        for layer in ("reduce_layer_1", "reduce_layer_2") if fusion == "none" else ("final_reduce_1", "final_reduce_2"):
            sim |= {f"{layer}.linear.0.weight": draw(12, 12), f"{layer}.linear.0.bias": draw(12),
                    f"{layer}.linear.2.weight": draw(heads, 12), f"{layer}.linear.2.bias": draw(heads)}
    return [*states(), sim]


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
    return {f"{part}/{key}": value for part, state in zip(("img_enc", "txt_enc", "sim"), parts) for key, value in state.items()}


def as_arrays(parts):
    return [{key: value.numpy() for key, value in part.items()} for part in parts]


@pytest.mark.parametrize("form", [as_list, as_checkpoint, as_parallel, as_flat, as_arrays])
def test_every_form_gives_the_same_model(form):
    parts = states()
    model = load_official(form(parts), "scan")
    assert isinstance(model, SCAN) and not model.training
    assert torch.equal(model.image.fc.weight, parts[0]["fc.weight"])
    assert torch.equal(model.text.rnn.weight_hh_l0_reverse, parts[1]["rnn.weight_hh_l0_reverse"])


@pytest.mark.parametrize("form", [as_list, as_checkpoint, as_parallel, as_flat, as_arrays])
def test_every_form_gives_the_same_camp(form):
    parts = camp_states()
    model = load_official(form(parts), "camp")
    assert isinstance(model, CAMP) and not model.training
    sim, ours = parts[2], dict(model.named_parameters())
    assert torch.equal(ours["text.embed.weight"], parts[1]["embed.weight"])
    for theirs, name in (("img_query_fc", "attention.image_query"), ("weighted_txt_key_fc", "attention.text_message_key"),
                         ("fc_2.0", "fusion.words"), ("fc_out.3", "head.2"), ("final_reduce_1.linear.2", "summary.regions.2")):
        assert torch.equal(ours[f"{name}.weight"], sim[f"{theirs}.weight"])


@pytest.mark.parametrize(("fusion", "summary", "heads", "expected"), [
    ("concat", True, 4, ("concat", "mlp", "attention", True)), ("sum", True, 2, ("sum", "mlp", "attention", True)),
    ("none", True, 3, ("none", "cosine", "attention", False)), ("none", False, 4, ("none", "cosine", "mean", False))])
def test_the_measure_of_camp_comes_from_names_and_shapes(fusion, summary, heads, expected):
    config = load_official(camp_states(fusion, summary, heads), "camp").config
    assert (config.fusion, config.score, config.aggregation, config.message_norm) == expected
    assert (config.num_heads, config.gate, config.residual, config.second_attention) == (heads, "scalar", True, True)
    assert (config.compat, config.reduction, config.mean_over, config.pad_to) == ("official", "sum", "pad_to", 50)
    assert (config.objective, config.negatives, config.image_norm, config.text_norm) == ("bce", "hardest", False, False)


def test_camp_takes_the_authors_options_and_ours_over_them():
    official = {**as_checkpoint(camp_states()), "opt": CAMP_OPTIONS}
    config = load_official(official, "camp").config
    assert (config.objective, config.margin, config.pad_to, config.image_norm) == ("ranking", 0.3, 12, False)
    assert load_official(camp_states(), "camp", CAMP_OPTIONS).config == config
    ours = load_official(official, "camp", {"loss_func": "BCE", "max_violation": False, "pad_to": 20, "no_txtnorm": False}).config
    assert (ours.objective, ours.negatives, ours.pad_to, ours.text_norm, ours.margin) == ("bce", "all", 20, True, 0.3)


@pytest.mark.parametrize("zipped", [True, False])
def test_camps_files_hold_an_easydict(tmp_path, monkeypatch, zipped):
    class EasyDict(dict):
        """As the package's: a dict whose items are attributes too."""

        def __init__(self, items):
            super().__init__(items)
            self.__dict__.update(items)

    module = types.ModuleType("easydict")
    module.EasyDict, EasyDict.__module__, EasyDict.__qualname__ = EasyDict, "easydict", "EasyDict"
    monkeypatch.setitem(sys.modules, "easydict", module)
    content = {**as_checkpoint(camp_states()), "opt": EasyDict({**CAMP_OPTIONS, "optimizer": EasyDict(CAMP_OPTIONS["optimizer"])})}
    torch.save(content, tmp_path / "checkpoint_150.pth.tar", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "easydict")
    config = load_official(tmp_path / "checkpoint_150.pth.tar", "camp").config
    assert (config.objective, config.margin, config.pad_to) == ("ranking", 0.3, 12)


def test_a_file_with_the_authors_options_needs_no_config(tmp_path):
    torch.save({**as_checkpoint(states()), "opt": argparse.Namespace(**SCAN_OPTIONS)}, tmp_path / "model_best.pth.tar")
    config = load_official(tmp_path / "model_best.pth.tar", "scan").config
    assert (config.direction, config.aggregation, config.lambda_lse, config.raw_feature_norm) == ("i2t", "lse", 20, "l2norm")
    assert (config.image_norm, config.negatives, config.margin, config.bidirectional) == (False, "hardest", 0.3, True)
    override = load_official(tmp_path / "model_best.pth.tar", "scan", {"aggregation": "mean", "reduction": "mean"}).config
    assert (override.aggregation, override.reduction, override.direction) == ("mean", "mean", "i2t")


@pytest.mark.parametrize("config", [
    {"direction": "i2t", "aggregation": "lse", "lambda_lse": 20.0, "image_norm": False, "margin": 0.3},
    SCAN_OPTIONS])
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


@pytest.mark.parametrize(("state", "expected"), [
    (states(), "is not a CAMP checkpoint of measure gate_fusion_new or cross_attention_new"),
    ([*states(), {"fc.weight": torch.zeros(2)}], "is not a CAMP checkpoint"),
    ([*states(), {k: v for k, v in camp_states()[2].items() if "weighted" not in k}], "is not a CAMP checkpoint"),
    ([*camp_states(), {}], "is not a CAMP checkpoint"),
    (camp_states()[1:], "is not a CAMP checkpoint"),
    ([*states(), {**camp_states()[2], "fc_gate_1.weight": torch.zeros(2)}], "does not fit the settings: .*sim.fc_gate_1.weight"),
    ([*states(), {k: v for k, v in camp_states()[2].items() if k != "fc_2.0.weight"}], "does not fit the settings"),
    ([*states(), {k: v for k, v in camp_states()[2].items() if k != "txt_query_fc.weight"}], "attention.text_query.weight"),
    ([*states(), {k: v for k, v in camp_states()[2].items() if "final" not in k}], "does not fit the settings"),
    ([*states(), {**camp_states()[2], "fc_1.0.weight": torch.zeros(2)}], "does not fit the settings"),
])
def test_a_state_that_is_not_camps_is_named(state, expected):
    with pytest.raises(InputError, match=expected) as error:
        load_official(state, "camp")
    line_of(error)


def test_a_camp_checkpoint_is_no_scan():
    with pytest.raises(InputError, match="is not a SCAN checkpoint"):
        load_official(camp_states(), "scan")


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(InputError, match="does not fit the settings"):
        load_official(camp_states(), "camp", {"fusion": "sum"})
    with pytest.raises(InputError, match="unknown setting 'los_func'; did you mean loss_func"):
        load_official(camp_states(), "camp", {"los_func": "BCE"})
    with pytest.raises(InputError, match="does not fit the settings"):
        load_official(states(), "scan", {"embed_dim": 16})
    with pytest.raises(InputError, match="unknown setting 'cross_atn'; did you mean cross_attn"):
        load_official(states(), "scan", {"cross_atn": "i2t"})


def test_an_unknown_method_names_those_there_are():
    with pytest.raises(InputError, match="no loader for official checkpoints of 'blip': supported are scan"):
        load_official(states(), "blip")
