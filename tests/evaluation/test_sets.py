"""What is measured of sets: circular variance, its logarithm, and retrieval by the centres alone."""

import math

import pytest
import torch
from made_for_evaluation import DIM, WORDS

from itm_lib.data.captions import Vocabulary
from itm_lib.evaluation import (
    centre_scores,
    circular_variance,
    encode_dataset,
    evaluate,
    evaluate_scores,
    open_split,
    set_statistics,
)
from itm_lib.evaluation.report import Metric, metric_label
from itm_lib.models import build_model

SIZES = {"embed_dim": 6, "word_dim": 5, "num_heads": 2, "head_dim": 3}


def dive(**settings):
    torch.manual_seed(0)
    return build_model("dive", {**SIZES, **settings}, DIM, len(Vocabulary.build(WORDS)))


def test_variance_is_0_for_equal_elements_and_1_for_opposite_ones():
    x = torch.nn.functional.normalize(torch.randn(3, 1, 5, dtype=torch.float64), dim=-1)
    assert circular_variance(x.expand(-1, 4, -1)).abs().max() < 1e-12
    assert (circular_variance(torch.cat([x, -x], 1)) - 1).abs().max() < 1e-12
    right = torch.eye(2, dtype=torch.float64)[None]
    assert circular_variance(right).item() == pytest.approx(1 - math.sqrt(0.5))


def test_centre_scores_forget_how_wide_a_set_is():
    wide = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    narrow = torch.nn.functional.normalize(torch.tensor([[[1.0, 0.9], [0.9, 1.0]]]), dim=-1)
    assert centre_scores(wide, narrow).item() == pytest.approx(1.0)
    assert centre_scores(wide, torch.tensor([[[1.0, -1.0]]])).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("slots", [1, 3])
def test_evaluate_measures_sets(folder, slots):
    model, dataset = dive(num_slots=slots), open_split(folder, "test")
    images, captions = encode_dataset(model, dataset)
    got = evaluate(model, folder)
    literal = [1 - torch.stack(list(one)).mean(0).norm().item() for one in captions.embedding]
    assert got["caption_circular_variance"] == pytest.approx(sum(literal) / len(literal), abs=1e-6)
    if slots == 1:  # a lone element is its own centre
        assert got["image_circular_variance"] == pytest.approx(0, abs=1e-6)
        assert got["image_log_circular_variance"] == pytest.approx(math.log(1e-7), abs=1.5)
        assert (got["centre_rsum"], got["centre_t2i_map_at_r"]) == pytest.approx((got["rsum"], got["t2i_map_at_r"]))
        return
    logs = [math.log(value) for value in literal]
    assert got["caption_log_circular_variance"] == pytest.approx(sum(logs) / len(logs), abs=1e-3)
    centres = evaluate_scores(centre_scores(images.embedding, captions.embedding), dataset)
    assert (got["centre_rsum"], got["centre_i2t_map_at_r"]) == pytest.approx((centres["rsum"], centres["i2t_map_at_r"]))


def test_models_without_sets_have_no_such_numbers(folder):
    torch.manual_seed(0)
    dataset = open_split(folder, "test")
    model = build_model("vse", {"embed_dim": 6, "word_dim": 5}, DIM, len(Vocabulary.build(WORDS)))
    assert set_statistics(*encode_dataset(model, dataset), dataset) == {}
    assert not any("circular" in name or "centre" in name for name in evaluate(model, folder))


def test_tables_show_variances_as_fractions_and_name_what_is_of_the_centres():
    assert Metric.of([0.0625, 0.0825]).shown_as("caption_circular_variance") == "0.073 ± 0.014"
    assert Metric.of([-2.5]).shown_as("caption_log_circular_variance") == "-2.5"
    assert (metric_label("centre_rsum"), metric_label("centre_t2i_map_at_r")) == ("centre rSum", "centre t2i mAP@R")
