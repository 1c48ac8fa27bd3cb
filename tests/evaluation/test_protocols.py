"""The published protocols, ECCV Caption and CxC, and the flat dict of everything."""

import numpy as np
import pytest
import torch

from itm_lib.evaluation import (
    PROTOCOLS,
    RetrievalMetrics,
    coco_1k_fivefold,
    coco_5k,
    coco_test_ids,
    eccv_caption_metrics,
    encode_dataset,
    evaluate,
    evaluate_scores,
    f30k_1k,
    open_split,
    protocols,
    similarity_matrix,
)
from itm_lib.files import InputError


def test_fivefold_is_the_mean_of_five_small_galleries():
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(50), 5))  # captions in any order
    scores = rng.random((50, 250)).astype(np.float32)
    folds = []
    for first in range(0, 50, 10):
        columns = [c for c in range(250) if first <= owner[c] < first + 10]
        folds.append(RetrievalMetrics.from_scores(scores[first : first + 10][:, columns], owner[columns] - first))
    got = coco_1k_fivefold(torch.from_numpy(scores), torch.from_numpy(owner), fold_images=10)
    assert got.i2t_r1 == pytest.approx(np.mean([fold.i2t_r1 for fold in folds]))
    assert got.t2i_mean_rank == pytest.approx(np.mean([fold.t2i_mean_rank for fold in folds]))
    assert got.rsum == pytest.approx(got.i2t_r1 + got.i2t_r5 + got.i2t_r10 + got.t2i_r1 + got.t2i_r5 + got.t2i_r10)
    assert got.rsum > RetrievalMetrics.from_scores(scores, owner).rsum  # a smaller gallery is easier


def test_f30k_is_the_plain_metrics_of_its_size():
    scores = np.random.default_rng(0).random((1000, 5000), dtype=np.float32)
    owner = np.arange(5000) // 5
    scores[owner, np.arange(5000)] += 0.5
    assert f30k_1k(scores, owner) == RetrievalMetrics.from_scores(scores, owner)


@pytest.mark.parametrize("protocol, images", [("f30k_1k", 1000), ("coco_1k_fivefold", 5000), ("coco_5k", 5000)])
@pytest.mark.parametrize("shape", [(200, 1000), (1000, 5010), (5000, 5000), (1014, 5070)])
def test_scores_of_another_size_are_refused_in_one_line(protocol, images, shape):
    with pytest.raises(InputError) as error:
        PROTOCOLS[protocol](torch.empty(shape, device="meta"), torch.empty(shape[1], device="meta"))
    assert str(error.value) == (f"{protocol} is defined on {images} images and {5 * images} captions; "
                                f"these scores are {shape[0]} x {shape[1]}")


def test_a_caption_of_no_fold_is_refused():
    with pytest.raises(InputError, match=r"^caption_to_image names image row 50, but the rows are 0..49$"):
        coco_1k_fivefold(np.zeros((50, 250)), np.repeat(np.arange(1, 51), 5), fold_images=10)
    with pytest.raises(InputError, match=r"^coco_1k_fivefold: no caption belongs to image rows 10..19$"):
        coco_1k_fivefold(np.zeros((50, 250)), np.repeat(np.arange(50), 5) // 10 % 2, fold_images=10)


@pytest.fixture(scope="module")
def coco():
    """COCO's test ids in a shuffled order, and the package with its ground truth."""
    images, captions = coco_test_ids()
    rng = np.random.default_rng(0)
    return rng.permutation(images), rng.permutation(captions), protocols._eccv_caption()


@pytest.fixture
def noise():
    return np.random.default_rng(1).random((5000, 25000), dtype=np.float32)


def positives(coco, truth):
    """(rows, columns) of all pairs that a ground truth of the package marks, within the gallery."""
    images, captions, _ = coco
    row, column = {i: n for n, i in enumerate(images.tolist())}, {c: n for n, c in enumerate(captions.tolist())}
    pairs = [(row[i], column[c]) for i, cs in truth["i2t"].items() for c in cs if c in column]
    pairs += [(row[i], column[c]) for c, rows in truth["t2i"].items() for i in rows]
    return tuple(np.array(pairs).T)


def test_eccv_caption_of_a_perfect_matcher(coco, noise):
    """What each ground truth marks scores above the rest. Two ECCV positives are no test captions, hence 99.9."""
    images, captions, metrics = coco
    scores = noise
    for height, truth in enumerate((metrics.cxc_gts, metrics.eccv_gts, metrics.coco_gts), 1):
        scores[positives(coco, truth)] += height
    got = eccv_caption_metrics(scores, images, captions)
    assert got["coco_5k_rsum"] == got["coco_1k_rsum"] == 600.0
    assert got["cxc_i2t_r1"] > 99 and got["cxc_t2i_r1"] > 99
    assert 99.8 < got["eccv_i2t_map_at_r"] < 100 and got["eccv_t2i_map_at_r"] > 99.9
    assert got["eccv_i2t_r1"] == 100.0 and got["eccv_t2i_r1"] > 99.9
    assert len(got) == 22


def test_eccv_caption_of_a_constant_matcher_is_zero(coco):
    """A constant scorer ties everything: the package alone would rank by position and hand out luck."""
    images, captions, _ = coco
    got = eccv_caption_metrics(np.broadcast_to(np.float32(0.5), (5000, 25000)), images, captions)
    assert set(got.values()) == {0.0}


def test_ranked_ids_are_the_sorted_ids_with_ties_against_the_query():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 40, (6, 300)).astype(np.float32)
    queries, candidates = np.arange(10, 16), rng.permutation(300) + 1000
    truth = {int(q): rng.choice(candidates, 7, replace=False).tolist() + [5] for q in queries[:4]}  # 5: not in the gallery
    ranked = protocols._ranked_ids(scores, queries, candidates, truth, 50)
    assert set(ranked) == set(truth)
    for query, row in zip(queries[:4], scores):
        true = set(truth[query])
        order = sorted(range(300), key=lambda c: (-row[c], int(candidates[c]) in true))
        best = [int(candidates[c]) in true for c in order[:50]]
        assert [item in true for item in ranked[query]] == best


def test_coco_recalls_are_the_packages(coco, noise):
    """COCO 5K against the package's own function on top-10 lists; COCO 1K against the protocol on reordered scores."""
    images, captions, metrics = coco
    pairs = positives(coco, {"i2t": metrics.coco_gts["i2t"], "t2i": {}})
    raised = np.random.default_rng(3).random(len(pairs[0])) < 0.3  # 17 % of the images have none of their captions raised
    noise[pairs[0][raised], pairs[1][raised]] += 1
    got = protocols._coco_recalls(noise, images, captions)
    top = {"i2t": torch.from_numpy(noise).topk(10, dim=1).indices.numpy(),
           "t2i": torch.from_numpy(noise).topk(10, dim=0).indices.numpy().T}
    lists = {"i2t": dict(zip(images.tolist(), captions[top["i2t"]].tolist())),
             "t2i": dict(zip(captions.tolist(), images[top["t2i"]].tolist()))}
    for k in (1, 5, 10):
        for way, value in metrics.coco_5k_recalls(lists, "all", K=k).items():
            assert got[f"coco_5k_{way}_r{k}"] == pytest.approx(100 * value)
    assert 50 < got["coco_5k_i2t_r1"] < 95 and 5 < got["coco_5k_t2i_r1"] < 50

    test_images, test_captions = coco_test_ids()
    row, column = np.argsort(images)[np.argsort(np.argsort(test_images))], np.argsort(captions)[np.argsort(np.argsort(test_captions))]
    place = {image: number for number, image in enumerate(test_images)}
    owner = np.array([place[metrics.coco_gts["t2i"][caption][0]] for caption in test_captions])
    assert got["coco_1k_rsum"] == pytest.approx(coco_1k_fivefold(noise[np.ix_(row, column)], owner).rsum)


@pytest.mark.parametrize("change, line", [
    (lambda i, c: (i[:-1], c), "scores are 5000 x 25000 for 4999 image and 25000 caption ids"),
    (lambda i, c: (np.arange(5000), c), "these are not the 5000 image ids of COCO's test split: 5000 given, "),
    (lambda i, c: (i, np.where(c == c[0], c[1], c)), "these are not the 25000 caption ids of COCO's test split: 25000 given, 24999 of"),
])
def test_other_ids_than_cocos_are_one_line(coco, change, line):
    ids = change(*coco[:2])
    with pytest.raises(InputError) as error:
        eccv_caption_metrics(np.broadcast_to(np.float32(0), (5000, 25000)), *ids)
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_evaluate_is_the_parts_put_together(folder, model):
    dataset = open_split(folder, "test")
    scores = similarity_matrix(model, *encode_dataset(model, dataset))
    got = evaluate(model, folder)
    assert got == pytest.approx(evaluate_scores(scores, dataset))
    assert got["rsum"] == RetrievalMetrics.from_scores(scores, dataset.caption_to_image).rsum
    assert {"i2t_map_at_r", "t2i_r_precision", "i2t_exact_r1", "ceiling_t2i_r1", "ceiling_rsum"} <= set(got)
    assert all(type(value) is float for value in got.values())
    assert evaluate(model, folder, "val") != got


def test_without_exact_truth_there_are_recalls_alone(folder, model):
    (folder / "truth" / "test.json").unlink()
    assert set(evaluate(model, folder)) == set(RetrievalMetrics.__dataclass_fields__)


def test_scores_of_another_split_are_one_line(folder):
    with pytest.raises(InputError, match="^scores are 7 x 12, but the test split has 7 images and 13 captions$"):
        evaluate_scores(torch.zeros(7, 12), open_split(folder, "test"))


def test_coco_5k_is_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(protocols, "CAPTIONS_AN_IMAGE", 1)  # the rule is the size; a small file has the same code path
    scores = np.random.default_rng(0).random((5000, 5000), dtype=np.float32)
    assert coco_5k(scores, np.arange(5000)) == RetrievalMetrics.from_scores(scores, np.arange(5000))
