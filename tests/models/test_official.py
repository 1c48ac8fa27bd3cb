"""load_official: every form in which the authors' weights come, and a line for what is not theirs."""

import argparse
import sys
import types

import pytest
import torch
from official_states import (
    CAMP_OPTIONS,
    DIVE_OPTIONS,
    HREM_OPTIONS,
    SCAN_OPTIONS,
    as_arrays,
    as_checkpoint,
    as_flat,
    as_list,
    as_parallel,
    camp_states,
    dive_states,
    hrem_states,
    states,
)

from itm_lib.files import InputError
from itm_lib.models import CAMP, HREM, SCAN, DivE
from itm_lib.models.official import load_official


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("weight_norm", [True, False])
def test_sizes_come_from_the_shapes(layers, both, weight_norm):
    config = load_official(states(layers, both, weight_norm), "scan").config
    assert (config.region_dim, config.embed_dim, config.vocab_size, config.word_dim) == (10, 12, 30, 8)
    assert (config.gru_layers, config.bidirectional, config.image_projection) == (
        layers, both, "weight_norm" if weight_norm else "linear")
    assert (config.compat, config.reduction, config.same_image_negatives) == ("official", "sum", True)


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


@pytest.mark.parametrize("form", [as_list, as_checkpoint, as_parallel, as_flat, as_arrays])
def test_every_form_gives_the_same_hrem(form):
    parts = hrem_states()
    model = load_official(form(parts), "hrem", {"num_heads": 4})
    assert isinstance(model, HREM) and not model.training
    config, ours = model.config, model.state_dict()
    assert (config.region_dim, config.embed_dim, config.vocab_size, config.text_encoder) == (10, 12, 30, "bert")
    assert (config.compat, config.reduction, config.mask_adjacency, config.masked_batch_norm) == ("official", "sum", False, False)
    assert config.bert_config["num_hidden_layers"] == 2 and config.bert_config["intermediate_size"] == 16
    for number, theirs, name in ((0, "fc.mlp.layers.1.weight", "image.out.weight"), (0, "fc.mlp.bns.0.running_var", "image.norm.running_var"),
                                 (0, "aggr.layers.0.linear2.weight", "image_relations.feed.second.weight"),
                                 (1, "aggr.layers.0.self_attn.out_proj.bias", "text_relations.attend.attention.out_proj.bias"),
                                 (1, "linear.weight", "text.linear.weight"),
                                 (1, "bert.encoder.layer.1.output.dense.bias", "text.bert.encoder.layer.1.output.dense.bias")):
        assert torch.equal(ours[name], parts[number][theirs])
    tokens = torch.tensor([[2, 7, 9, 3], [2, 8, 3, 0]])
    captions = model.encode_captions(tokens, tokens != 0)
    assert model.similarity(model.encode_images(torch.randn(3, 4, 10), None), captions).isfinite().all()


def test_hrems_relation_modules_are_taken_where_they_are():
    state = hrem_states(criterion=True)
    model = load_official(state, "hrem", {"nhead": 3})
    assert (model.config.topk, model.config.num_layers, model.config.num_heads) == (7, 2, 3)
    assert torch.equal(model.graph[1].feed.first.weight, state["criterion.gnn.layers.1.linear1.weight"])
    assert torch.equal(model.relevance["t2i"][2].bias, state["criterion.adj_model.adj_learning.mlp_t2i.3.bias"])
    assert load_official(hrem_states(), "hrem", {"nhead": 3, "num_layers": 2}).graph[1].feed.first.weight.shape == (12, 12)


def test_hrem_takes_the_authors_options_and_ours_over_them():
    model = load_official({**as_checkpoint(hrem_states()), "opt": HREM_OPTIONS}, "hrem", {"reg_weight": 2.0, "bert_config": {"num_attention_heads": 2}})
    config = model.config
    assert (config.num_heads, config.dropout, config.relation_weight, config.threshold, config.topk) == (4, 0.2, 1.5, 0.4, 7)
    assert (config.reg_weight, config.relation_warmup, config.normalise_nodes, config.cross_loss, config.beta) == (2, 8000, False, True, 0.7)
    assert (config.same_image_negatives, config.matching_loss, config.negatives, config.distance_cutoff) == (False, "hinge", "hardest", 1.9)
    assert (config.graph_lr_scale, config.num_layers, config.mask_id, config.word_dropping) == (2.0, 2, None, 0)
    assert config.bert_config["num_attention_heads"] == 2 and config.bert_config["hidden_size"] == 8
    assert load_official(hrem_states(vocab=200), "hrem", {"nhead": 4}).config.mask_id == 103


@pytest.mark.parametrize(("state", "expected"), [
    (states(), "is not an HREM checkpoint"), (hrem_states()[:1], "is not an HREM checkpoint"),
    ([hrem_states()[0], {k: v for k, v in hrem_states()[1].items() if "position_emb" not in k}], "is not an HREM checkpoint"),
    ([*hrem_states(), {"fc_1.0.weight": torch.zeros(2)}], "is not an HREM checkpoint"),
    ([hrem_states()[0], {k: v for k, v in hrem_states()[1].items() if k != "linear.bias"}], "does not fit the settings: .*text.linear.bias"),
    ([{**hrem_states()[0], "fc.gate.weight": torch.zeros(2)}, hrem_states()[1]], "does not fit the settings: .*fc.gate.weight"),
    ({k: v for k, v in hrem_states(True).items() if "gnn.layers.1.norm2" not in k}, "does not fit the settings"),
])
def test_a_state_that_is_not_hrems_is_named(state, expected):
    with pytest.raises(InputError, match=expected) as error:
        load_official(state, "hrem", {"nhead": 4})
    line_of(error)


def test_hrem_has_one_matching_loss():
    with pytest.raises(InputError, match="base_loss and gnn_loss differ .trip, vse.: give one loss"):
        load_official(hrem_states(), "hrem", {"nhead": 4, "base_loss": "trip", "gnn_loss": "vse"})


@pytest.mark.parametrize("form", [as_list, as_checkpoint, as_parallel, as_flat, as_arrays])
def test_every_form_gives_the_same_dive(form):
    parts = dive_states(copies=4)
    model = load_official(form(parts), "dive", {"heads": 2})
    assert isinstance(model, DivE) and not model.training
    config, ours = model.config, model.state_dict()
    assert (config.region_dim, config.embed_dim, config.vocab_size, config.word_dim, config.slots) == (10, 12, 30, 8, (3, 2))
    assert (config.iterations, config.share_weights, config.num_heads, config.head_dim, config.feed_factor) == (4, True, 2, 4, 2)
    assert (config.compat, config.mask_before_slot_softmax, config.position_over, config.norm_position) == ("official", False, "padded", "pre")
    for number, theirs, name in ((0, "mlp.fc2.weight", "image.out.weight"), (0, "mlp.bn.bn.running_var", "image.norm.running_var"),
                                 (0, "spm.agg_block.latents", "image_set.aggregation.slots"), (1, "rnn.bias_hh_l0", "text.rnn.bias_hh_l0"),
                                 (1, "spm.agg_block.layers.0.0.fn.to_k.weight", "text_set.aggregation.steps.0.attention.key.weight"),
                                 (1, "spm.agg_block.layers.0.2.norm.bias", "text_set.aggregation.norms.0.feed.bias"),
                                 (1, "spm.residual_norm.weight", "text_set.global_norm.weight")):
        assert torch.equal(ours[name], torch.as_tensor(parts[number][theirs]))
    tokens = torch.tensor([[1, 7, 9, 2], [1, 8, 2, 0]])
    assert model.similarity(model.encode_images(torch.randn(3, 4, 10), None), model.encode_captions(tokens, tokens != 0)).isfinite().all()


@pytest.mark.parametrize(("copies", "own", "given", "expected"), [
    (1, 1, {}, (4, True, 1)), (1, 1, {"spm_depth": 6}, (6, True, 1)), (3, 1, {}, (3, True, 1)), (1, 3, {}, (3, False, 3)),
    (1, 1, {"spm_depth": 1, "spm_weight_sharing": False}, (1, False, 1))])
def test_whether_dives_layers_are_one_comes_from_the_tensors(copies, own, given, expected):
    model = load_official(dive_states(copies, own), "dive", {"heads": 2, **given})
    assert (model.config.iterations, model.config.share_weights, len(model.image_set.aggregation.steps)) == expected


def test_dive_takes_the_authors_options_and_ours_over_them():
    config = load_official({**as_checkpoint(dive_states()), "opt": DIVE_OPTIONS}, "dive", {"mmd_weight": 0.5}).config
    assert (config.num_heads, config.iterations, config.similarity, config.alpha, config.margin) == (2, 3, "mil", 8, 0.1)
    assert (config.text_local, config.text_global, config.position_code, config.dropout) == ("words", "max", False, 0.2)
    assert (config.mmd_weight, config.diversity_weight, config.word_dropping, config.region_dropping) == (0.5, 0.03, 0.1, 0.3)
    assert (config.image_lr_scale, config.negatives, config.diversity_of) == (0.5, "hardest", "slots")
    assert load_official(dive_states(), "dive", {"semi_hard_triplet": True}).config.negatives == "semi_hard"


@pytest.mark.parametrize(("state", "given", "expected"), [
    (states(), {}, "is not a DivE checkpoint of regions and a GRU"), (dive_states()[:1], {}, "is not a DivE checkpoint"),
    (hrem_states(), {}, "is not a DivE checkpoint"), (dive_states(), {"img_res_pool": "avg"}, "img_res_pool is 'avg'; only 'max' is there"),
    (dive_states(), {"query_slot": True}, "query_slot is True; only False is there"),
    (dive_states(), {"spm_dept": 3}, "unknown setting 'spm_dept'; did you mean spm_depth"),
    (dive_states(), {"num_slots": 4}, "does not fit the settings"), (dive_states(), {"loss": "dtw"}, "similarity"),
    ([dive_states()[0], {k: v for k, v in dive_states()[1].items() if "norm_context" not in k}], {}, "does not fit the settings: .*input_norm"),
    ([{**dive_states()[0], "cnn.weight": torch.zeros(2)}, dive_states()[1]], {}, "does not fit the settings: .*img_enc.cnn.weight"),
])
def test_a_state_that_is_not_dives_is_named(state, given, expected):
    with pytest.raises(InputError, match=expected) as error:
        load_official(state, "dive", {"heads": 2, **given})
    line_of(error)


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
    assert "model.pth holds print, which is not read, because a class in a file can run code" in line_of(error)
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
