"""Mean gates of pairs that match and of pairs that do not."""

from __future__ import annotations

import pytest
import torch
from made_for_evaluation import DIM, WORDS, WordRegionModel, make_folder

from itm_lib.data.captions import Vocabulary
from itm_lib.evaluation import encode_dataset, evaluate, gate_statistics, open_split
from itm_lib.files import InputError
from itm_lib.models import build_model
from itm_lib.models.camp import ABLATIONS

SIZE = len(Vocabulary.build(WORDS))


class GatedModel(WordRegionModel):
    """Gates are a function of the pair's own fragments; ``pairs_seen`` are the sizes of the blocks."""

    def explain(self, images, captions):
        products = torch.einsum("ire,cwe->icwr", images.fragments, captions.fragments)
        words = products.masked_fill(~images.mask[:, None, None, :], -9).amax(-1)
        regions = products.masked_fill(~captions.mask[None, :, :, None], 9).amin(-2)
        self.pairs_seen = [*getattr(self, "pairs_seen", []), products.shape[0] * products.shape[1]]
        return {"word_gates": words.sigmoid(), "region_gates": regions.sigmoid() * 1e-9}  # not 0 on padding


def literal(model, images, captions, positives) -> dict[str, float]:
    """Pair by pair, fragment by fragment."""
    found: dict[str, list[float]] = {}
    for row in range(len(images)):
        for column in range(len(captions)):
            image, caption = images.select([row]), captions.select([column])
            seen = model.explain(image, caption)
            regions = seen["region_gates"][0, 0][image.mask[0]].tolist()
            words = seen["word_gates"][0, 0][caption.mask[0]].tolist()
            kind = "positive" if positives[row, column] else "negative"
            for side, values in (("", regions + words), ("regions_", regions), ("words_", words)):
                found.setdefault(f"gate_{side}{kind}", []).append(sum(values) / len(values))
    return {key: sum(values) / len(values) for key, values in found.items()}


@pytest.fixture
def encoded(folder):
    dataset = open_split(folder, "test")
    return lambda model: (*encode_dataset(model, dataset), dataset.truth)


def camp(**settings):
    torch.manual_seed(0)
    return build_model("camp", {"embed_dim": 6, "word_dim": 5, "num_heads": 2, **settings}, DIM, SIZE)


@pytest.mark.parametrize("settings", [None, {}, {"gate": "elementwise", "fusion": "sum", "second_attention": False},
                                      {"messages": "average"}, {"compat": "official"}])
def test_the_mean_over_fragments_and_then_over_pairs(settings, encoded):
    model = GatedModel(SIZE) if settings is None else camp(**settings)
    images, captions, truth = encoded(model)
    expected = literal(model.eval(), images, captions, truth)
    assert len(expected) == 6 and all(0 <= value <= 1 for value in expected.values())
    for block_bytes in (1, 3000, 2**24):
        assert gate_statistics(model, images, captions, truth, block_bytes) == pytest.approx(expected, rel=1e-5, abs=0)
    if settings is None:
        assert expected["gate_regions_negative"] < 1e-9 < 0.1 < expected["gate_words_negative"]
        assert expected["gate_positive"] != pytest.approx((expected["gate_regions_positive"] + expected["gate_words_positive"]) / 2)


def test_blocks_stay_within_their_bytes(encoded):
    model = GatedModel(SIZE)
    images, captions, truth = encoded(model)
    gate_statistics(model, images, captions, truth, 5 * model.pair_bytes(images, captions))
    assert max(model.pairs_seen) <= 5 and sum(model.pairs_seen) == truth.numel()


def test_open_and_shut_gates_are_told_apart(encoded):
    """Gates that know the truth: no pair of one kind is counted with the other."""
    model = GatedModel(SIZE)
    images, captions, truth = encoded(model)
    for side in (images, captions):
        side.extra["row"] = torch.arange(len(side))

    def explain(images, captions):
        gates = torch.where(truth[images.extra["row"]][:, captions.extra["row"]], 0.75, 2.0**-30)[..., None]
        return {"region_gates": gates.expand(-1, -1, images.mask.shape[1]), "word_gates": gates.expand(-1, -1, captions.mask.shape[1])}

    model.explain = explain
    got = gate_statistics(model, images, captions, truth, 500)
    assert {got[key] for key in got if key.endswith("positive")} == {0.75}
    assert {got[key] for key in got if key.endswith("negative")} == {2.0**-30}


@pytest.mark.parametrize("name", ["base", "no_fusion", "no_gates"])
def test_a_model_without_gates_has_none(name, encoded):
    model = camp(**ABLATIONS[name])
    assert gate_statistics(model, *encoded(model)) == {}


def test_without_pairs_of_a_kind_its_means_are_left_out(encoded):
    model = GatedModel(SIZE)
    images, captions, truth = encoded(model)
    got = gate_statistics(model, images, captions, torch.ones_like(truth))
    assert set(got) == {"gate_positive", "gate_regions_positive", "gate_words_positive"}
    with pytest.raises(InputError, match=f"^positives are 2 x 3 for {len(images)} images and {len(captions)} captions$"):
        gate_statistics(model, images, captions, torch.ones(2, 3, dtype=torch.bool))


@pytest.mark.parametrize("truth", [True, False])
def test_evaluate_has_the_gates_of_what_is_true_or_listed(truth, tmp_path):
    folder, model = make_folder(tmp_path, truth=truth), camp()
    dataset = open_split(folder, "test")
    listed = torch.zeros(dataset.num_images, dataset.num_captions, dtype=torch.bool)
    listed[dataset.caption_to_image, range(dataset.num_captions)] = True
    assert (dataset.truth is None) == (not truth) and (not truth or dataset.truth.sum() > listed.sum())
    got = evaluate(model, folder)
    expected = gate_statistics(model, *encode_dataset(model, dataset), dataset.truth if truth else listed)
    assert expected and {key: got[key] for key in expected} == pytest.approx(expected)
    assert not [key for key in evaluate(WordRegionModel(SIZE), folder) if key.startswith("gate")]
