"""Ranks, recall, mAP@R, R-Precision and ceilings, against the authors' numbers, a package and simulation."""

import numpy as np
import pytest
import torch
from eccv_caption import _metrics as package

from itm_lib.evaluation import RetrievalMetrics, ceiling, map_at_r, retrieval_ranks
from itm_lib.evaluation.ranking import chance
from itm_lib.files import InputError, project_root

GOLDEN = project_root() / "tests" / "golden" / "scan_rank_metrics_20x100.npz"


def slow_ranks(scores, caption_to_image):
    """Ranks read off a sorted list in which, of equal scores, the non-match stands first."""
    i2t, t2i = [], []
    for image, row in enumerate(scores):
        order = sorted(range(len(row)), key=lambda c: (-row[c], caption_to_image[c] == image))
        own = [place for place, caption in enumerate(order) if caption_to_image[caption] == image]
        i2t += own[:1]
    for caption, column in enumerate(scores.T):
        order = sorted(range(len(column)), key=lambda i: (-column[i], i == caption_to_image[caption]))
        t2i.append(order.index(caption_to_image[caption]))
    return i2t, t2i


def test_golden():
    """Scores and metrics of SCAN's own evaluation: 20 images, 100 captions."""
    with np.load(GOLDEN) as golden:
        scores, owner = golden["in/sims"], np.arange(100) // 5
        i2t, t2i = retrieval_ranks(scores, owner)
        assert np.array_equal(i2t, golden["out/i2t_ranks"]) and np.array_equal(t2i, golden["out/t2i_ranks"])
        got = RetrievalMetrics.from_scores(torch.from_numpy(scores), torch.from_numpy(owner))
        assert np.allclose([got.i2t_r1, got.i2t_r5, got.i2t_r10, got.i2t_median_rank, got.i2t_mean_rank], golden["out/i2t"])
        assert np.allclose([got.t2i_r1, got.t2i_r5, got.t2i_r10, got.t2i_median_rank, got.t2i_mean_rank], golden["out/t2i"])
        assert got.rsum == pytest.approx(float(golden["out/rsum"]))


@pytest.mark.parametrize("seed", range(6))
def test_ranks_with_many_ties_and_any_number_of_captions(seed, monkeypatch):
    monkeypatch.setattr("itm_lib.evaluation.ranking._BLOCK", 40)  # several blocks of rows
    rng = np.random.default_rng(seed)
    owner = rng.integers(0, 9, 23)
    scores = rng.integers(0, 4, (9, 23)).astype(np.float32)
    scores[0, :3] = -np.inf
    i2t, t2i = retrieval_ranks(scores, owner)
    assert (i2t.tolist(), t2i.tolist()) == slow_ranks(scores, owner)


def test_constant_scorer_gets_nothing():
    got = RetrievalMetrics.from_scores(torch.ones(20, 40), torch.arange(40) // 2)
    assert got.rsum == 0.0 and got.i2t_mean_rank == 39 and got.t2i_mean_rank == 20


def test_image_without_captions_is_no_query_but_stays_in_the_gallery():
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.95, 0.0]])
    got = RetrievalMetrics.from_scores(scores, np.array([0, 1]))
    assert got.i2t_r1 == 100.0
    assert got.t2i_r1 == 50.0  # caption 0 is taken by the picture nobody described


def test_median_of_an_even_number_of_ranks_is_rounded_down():
    scores = np.array([[1.0, 2.0], [0.0, 1.0]])  # ranks i2t 1, 0 and t2i 0, 1: median 0.5
    got = RetrievalMetrics.from_scores(scores, np.array([0, 1]))
    assert (got.i2t_median_rank, got.t2i_median_rank, got.i2t_mean_rank) == (1.0, 1.0, 1.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_any_float_type(dtype):
    scores = torch.tensor([[3.0, 1.0], [1.0, 2.0]], dtype=dtype, requires_grad=True)
    assert RetrievalMetrics.from_scores(scores, torch.tensor([0, 1])).rsum == 600.0


@pytest.mark.parametrize("change, line", [
    (lambda s, o: (np.where(np.eye(4, 6) > 0, np.nan, s), o), "4 of 24 scores are NaN: look for infinite losses or empty inputs in the model"),
    (lambda s, o: (s, o[:-1]), "caption_to_image has the shape (5,) for 6 captions; one image a caption is needed"),
    (lambda s, o: (s, o + 1), "caption_to_image names image row 4, but the rows are 0..3"),
    (lambda s, o: (s, o - 1), "caption_to_image names image row -1, but the rows are 0..3"),
    (lambda s, o: (s, o * 1.0), "caption_to_image is of type float64; row numbers of images are needed"),
    (lambda s, o: (s[0], o), "scores have the shape (6,); a matrix of images x captions is needed"),
    (lambda s, o: (s[:, :0], o[:0]), "scores have the shape (4, 0); a matrix of images x captions is needed"),
    (lambda s, o: (s > 0, o), "scores are of type bool; floating-point numbers are needed"),
])
def test_bad_scores_are_one_line(change, line):
    scores, owner = change(np.random.default_rng(0).random((4, 6)), np.array([0, 0, 1, 2, 3, 3]))
    with pytest.raises(InputError) as error:
        RetrievalMetrics.from_scores(scores, owner)
    assert str(error.value) == line


def package_numbers(scores, truth):
    """The package's mAP@R, R-Precision and R@1, in percent, from full ranked lists without ties."""
    ranked = {query: np.argsort(-row).tolist() for query, row in enumerate(scores)}
    wanted = {query: np.nonzero(row)[0].tolist() for query, row in enumerate(truth) if row.any()}
    result = package.compute_eccv_metrics(ranked, wanted)
    return [100 * result[name] for name in ("eccv_map_at_r", "eccv_rprecision", "eccv_r1")]


@pytest.mark.parametrize("seed", range(4))
def test_map_at_r_is_the_packages(seed):
    rng = np.random.default_rng(seed)
    scores, truth = rng.permutation(12 * 30).reshape(12, 30).astype(np.float32), rng.random((12, 30)) < 0.2
    truth[3], truth[:, 5] = False, False  # a picture and a caption that nothing is true of
    got = map_at_r(torch.from_numpy(scores), torch.from_numpy(truth))
    for way, expected in (("i2t", package_numbers(scores, truth)), ("t2i", package_numbers(scores.T, truth.T))):
        assert [got[f"{way}_{name}"] for name in ("map_at_r", "r_precision", "exact_r1")] == pytest.approx(expected)
    assert len(got) == 6


def test_map_at_r_by_hand():
    """R = 3 and the true ones at ranks 1, 3, 4: AP@R = (1/1 + 2/3) / 3, R-Precision = 2/3."""
    got = map_at_r(np.array([[9.0, 8, 7, 6, 5]]), np.array([[True, False, True, True, False]]))
    assert got["i2t_map_at_r"] == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert got["i2t_r_precision"] == pytest.approx(200 / 3)
    assert got["i2t_exact_r1"] == 100.0
    assert got["t2i_map_at_r"] == 100.0  # with one picture every caption that has a true one finds it


def test_map_at_r_does_not_depend_on_the_block_and_ties_count_against(monkeypatch):
    rng = np.random.default_rng(1)
    scores, truth = rng.integers(0, 3, (10, 14)).astype(float), rng.random((10, 14)) < 0.3
    whole = map_at_r(scores, truth)
    monkeypatch.setattr("itm_lib.evaluation.ranking._BLOCK", 30)
    assert map_at_r(scores, truth) == whole
    lowered = map_at_r(scores - 1e-6 * truth, truth)  # every true one just below what it tied with
    assert whole == pytest.approx(lowered)
    assert set(map_at_r(np.zeros((10, 14)), np.eye(10, 14) > 0).values()) == {0.0}


def test_exact_r1_takes_any_true_candidate():
    """Of 3 captions, each written for a picture of its own, the first is true of picture 1 too and scores best there."""
    scores, truth = np.array([[5.0, 1, 2], [4, 3, 0], [0, 1, 1]]), np.eye(3, dtype=bool)
    assert map_at_r(scores, truth)["i2t_exact_r1"] == pytest.approx(100 / 3)
    assert map_at_r(scores, truth)["i2t_exact_r1"] == RetrievalMetrics.from_scores(scores, np.arange(3)).i2t_r1
    truth[1, 0] = True
    assert map_at_r(scores, truth)["i2t_exact_r1"] == pytest.approx(200 / 3)  # the last row's tie counts against it


@pytest.mark.parametrize("truth, line", [
    (np.zeros((4, 6), dtype=bool), "truth marks no pair as true: there is nothing to rank"),
    (np.zeros((4, 5), dtype=bool), "scores are (4, 6) but truth is (4, 5); both are images x captions"),
    (np.zeros((4, 6)), "truth is float64 of shape (4, 6); a bool matrix of images x captions is needed"),
])
def test_bad_truth_is_one_line(truth, line):
    with pytest.raises(InputError) as error:
        map_at_r(np.ones((4, 6)), truth)
    assert str(error.value) == line


def test_ceiling_is_what_a_perfect_matcher_reaches_on_average():
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(12), 3))
    truth = (rng.random((12, 36)) < 0.35) | (np.arange(12)[:, None] == owner)
    truth[:2] = np.arange(12)[:2, None] == owner  # two pictures of which only their own captions are true
    expected = ceiling(torch.from_numpy(truth), torch.from_numpy(owner))
    runs = [RetrievalMetrics.from_scores(truth + 0.5 * rng.random(truth.shape), owner).to_dict() for _ in range(1500)]
    for name, value in expected.items():
        drawn = np.array([run[name] for run in runs])
        assert abs(drawn.mean() - value) <= 5 * drawn.std() / np.sqrt(len(drawn)) + 1e-9, name
    assert 30 < expected["t2i_r1"] < 50 and expected["i2t_r10"] <= 100.0


def test_ceiling_of_one_to_one_truth_is_all():
    owner = np.arange(10) // 2
    assert ceiling(np.arange(5)[:, None] == owner, owner)["rsum"] == 600.0


def test_ceiling_refuses_a_truth_that_denies_a_caption_its_own_image():
    truth = np.eye(3, dtype=bool)
    with pytest.raises(InputError, match="^truth says that 2 captions are false of their own image; build the dataset again$"):
        ceiling(truth, np.array([0, 2, 1]))


def test_chance_is_what_a_random_order_gets():
    """Of 40 pictures with 3 captions: the closed form, and the mean over random scores."""
    owner, rng = np.arange(120) // 3, np.random.default_rng(0)
    found = [RetrievalMetrics.from_scores(rng.random((40, 120)), owner).to_dict() for _ in range(300)]
    expected = chance(40, 3)
    assert expected["t2i_r5"] == pytest.approx(12.5) and expected["i2t_r1"] == pytest.approx(2.5)
    for name, value in expected.items():
        assert np.mean([each[name] for each in found]) == pytest.approx(value, abs=1.0), name
    assert chance(1000)["rsum"] == pytest.approx(3.2, abs=0.01)
