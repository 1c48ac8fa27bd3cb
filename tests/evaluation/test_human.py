"""Human judgments against loops and other libraries, on a small matrix whose answers are known."""

from __future__ import annotations

import made_flickr8k as made
import numpy as np
import pytest
import torch
from scipy import stats

from itm_lib.data.flickr8k import prepare_flickr8k
from itm_lib.data.judgments import CrowdJudgment, ExpertJudgment, Judgments, read_judgments
from itm_lib.evaluation import evaluate, evaluate_ensemble, open_split
from itm_lib.evaluation.human import expert_ceiling, human_metrics, judged_pairs, spearman, top_answers
from itm_lib.evaluation.mistakes import KINDS, content_words, group_of, kind_of_mistake, mistake_metrics
from itm_lib.models import build_model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    made.small_sizes(monkeypatch)
    return prepare_flickr8k(made.write_text_archive(tmp_path / "raw"), tmp_path / "out", made.write_regions(tmp_path / "regions.h5"), progress=False)


@pytest.fixture
def test_split(folder):
    return open_split(folder, "test")


def judgments_of(dataset, experts=(), crowd=()):
    """Judgments of (row, column, marks) and (row, column, yes, no)."""
    image, caption = dataset.regions.image_ids, dataset.caption_ids
    return Judgments(tuple(ExpertJudgment(image[row], caption[column], marks) for row, column, marks in experts),
                     tuple(CrowdJudgment(image[row], caption[column], yes, no) for row, column, yes, no in crowd))


def test_judgments_are_read_as_they_are_published(folder):
    judgments = read_judgments(folder)
    assert len(judgments.experts) == len(judgments.crowd) == 16
    own, other = judgments.experts[0], judgments.experts[1]
    assert own.marks == (4, 3, 4) and own.mean == pytest.approx(11 / 3) and other.mean == pytest.approx(4 / 3)
    assert own.image_id == made.names()["test"][0].removesuffix(".jpg") and own.caption_id.endswith(".jpg#2")
    assert (judgments.crowd[0].majority, judgments.crowd[1].majority) == (True, False)
    assert CrowdJudgment("a", "b", 2, 2).majority is False


def test_correlation_and_area_are_those_of_scipy_and_of_a_loop(test_split):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 20)).round(1)  # with equal scores
    experts = [(row, column, tuple(int(mark) for mark in rng.integers(1, 5, 3))) for row in range(4) for column in range(0, 20, 2)]
    crowd = [(row, column, int(yes), 3 - int(yes)) for row in range(4) for column, yes in zip(range(1, 20, 2), rng.integers(0, 4, 10))]
    found = human_metrics(scores, test_split, judgments_of(test_split, experts, crowd))
    given, means = zip(*((scores[row, column], np.mean(marks)) for row, column, marks in experts))
    assert found["human_expert_correlation"] == pytest.approx(100 * stats.spearmanr(given, means).statistic)
    other = [place for place, (row, column, _) in enumerate(experts) if test_split.caption_to_image[column] != row]
    assert found["human_expert_correlation_others"] == pytest.approx(100 * stats.spearmanr(np.array(given)[other], np.array(means)[other]).statistic)
    marks = np.array([each[2] for each in experts])
    one = [(row[k], (sum(row) - row[k]) / 2) for row in marks.tolist() for k in range(3)]
    assert found["human_expert_ceiling"] == pytest.approx(100 * stats.spearmanr(*zip(*one)).statistic)
    yes = [scores[row, column] for row, column, yes, no in crowd if yes > no]
    no = [scores[row, column] for row, column, yes, no in crowd if yes <= no]
    area = np.mean([(a > b) + (a == b) / 2 for a in yes for b in no])
    assert found["human_crowd_auc"] == pytest.approx(100 * area) and "human_crowd_auc_others" in found


def test_agreement_of_experts_does_not_depend_on_the_order_of_their_marks():
    """The file of Flickr8k lists the marks of a pair in ascending order, so that its columns are no persons."""
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 5, 400)
    marks = np.clip(truth[:, None] + rng.integers(-1, 2, (400, 3)), 1, 4)
    assert expert_ceiling(np.sort(marks, axis=1)) == pytest.approx(expert_ceiling(marks))
    by_person = np.mean([stats.spearmanr(marks[:, k], np.delete(marks, k, 1).mean(1)).statistic for k in range(3)])
    assert expert_ceiling(marks) == pytest.approx(by_person, abs=0.02)


def test_top_answers_against_a_loop(test_split):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(4, 20))
    experts = [(row, 2 + 5 * image, (int(mark),) * 3) for (row, image), mark in zip([(0, 1), (0, 2), (1, 0), (2, 3), (3, 3)], (4, 2, 3, 1, 4))]
    crowd = [(row, 2 + 5 * image, yes, 3 - yes) for (row, image), yes in zip([(0, 1), (0, 3), (1, 2), (2, 1), (3, 0), (3, 1)], (0, 3, 3, 1, 2, 0))]
    judgments = judgments_of(test_split, experts, crowd)
    owner, verdict = test_split.caption_to_image.tolist(), {}
    for row, column, marks in experts:
        verdict.setdefault((row, column), {})["experts"] = np.mean(marks) >= 3
    for row, column, yes, no in crowd:
        verdict.setdefault((row, column), {})["crowd"] = yes > no
    judged = sorted({column for _, column in verdict})
    found = top_answers(scores, test_split, judged_pairs(judgments.experts, test_split)[0], judged_pairs(judgments.crowd, test_split)[0])
    for queries in ("i2t", "i2t_judged", "t2i_judged"):
        for k in (1, 10):
            pairs = []
            if queries.startswith("i2t"):
                gallery = range(20) if queries == "i2t" else judged
                for row in range(4):
                    pairs += [(row, column) for column in sorted(gallery, key=lambda column: -scores[row, column])[:k]]
            else:
                pairs = [(row, column) for column in judged for row in sorted(range(4), key=lambda row: -scores[row, column])[:k]]
            wrong = [pair for pair in pairs if owner[pair[1]] != pair[0]]
            said = [verdict[pair] for pair in wrong if pair in verdict]
            assert found[f"{queries}_top{k}_wrong"] == len(wrong) and found[f"{queries}_top{k}_seen"] == len(said)
            assert found[f"{queries}_top{k}_right"] == sum(any(each.values()) for each in said)
            for kind in ("experts", "crowd"):
                assert found[f"{queries}_top{k}_{kind}_seen"] == sum(kind in each for each in said)
                assert found[f"{queries}_top{k}_{kind}_right"] == sum(each.get(kind, False) for each in said)


def test_a_perfect_judge_and_a_split_without_judgments(folder, test_split):
    judgments = read_judgments(folder)
    scores = np.full((4, 20), -1.0)
    scores[test_split.caption_to_image, np.arange(20)] = 1
    found = human_metrics(scores, test_split, judgments)
    assert "human_crowd_auc_others" not in found  # the crowd said no to all of them
    assert found["human_expert_correlation"] == pytest.approx(100) and found["human_crowd_auc"] == 100 and found["human_i2t_top1_wrong"] == 0
    assert human_metrics(np.zeros((3, 15)), open_split(folder, "val"), judgments) == {}
    assert human_metrics(scores, test_split, Judgments()) == {}


def test_constant_scores_have_no_correlation():
    assert spearman(np.ones(5), np.arange(5)) == 0 and spearman(np.arange(5), -np.arange(5)) == pytest.approx(-1)
    assert expert_ceiling(np.array([[1, 1, 1], [2, 2, 2], [4, 4, 4]])) == pytest.approx(1)


# --- kinds of mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("caption", "said", "kind"), [
    ("A dog is running .", ["A man is running ."], "subject"),
    ("A dog is running .", ["The dogs are jumping .", "A dog ."], "action"),
    ("Two dogs .", ["A dog ."], "number"),
    ("A gray dog .", ["A black dog ."], "colour"),
    ("A gray dog .", ["A grey dog runs ."], "none"),
    ("A dog on the beach .", ["A dog in the grass ."], "setting"),
    ("The children are playing .", ["A kid is playing ."], "none"),
    ("A dog .", [], "subject"),
])
def test_the_first_kind_that_applies_counts(caption, said, kind):
    assert kind_of_mistake(caption, said) == kind


def test_words_and_groups():
    assert content_words("Two dogs , glass and grass .") == {"two", "dog", "glass", "grass"}
    assert content_words("People wearing reds") == {"person", "red"}
    assert [group_of(word) for word in ("dog", "jumping", "two", "red", "beach", "ring")] == ["subject", "action", "number", "colour", "setting", "setting"]


def test_mistakes_add_up_to_what_recall_misses(test_split):
    scores = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
    found = mistake_metrics(scores, test_split)
    for way, axis in (("i2t", 1), ("t2i", 0)):
        best = scores.argmax(axis)
        right = [(test_split.caption_to_image[column] == row) for row, column in enumerate(best)] if axis else [
            test_split.caption_to_image[column] == row for column, row in enumerate(best)]
        assert sum(found[f"mistake_{way}_{kind}"] for kind in KINDS) == pytest.approx(100 - 100 * float(np.mean(right)))
    known = [test_split.texts[caption] for caption in test_split.captions_of_image[0]]
    assert sum(kind_of_mistake(text, known) == "none" for text in known) == 5


# --- all of it in one evaluation ------------------------------------------------------------------------------------------------


def test_evaluate_has_the_human_numbers_of_the_test_split_alone(folder, test_split, monkeypatch):
    torch.manual_seed(0)
    model = build_model("vse", {"embed_dim": 8, "word_dim": 8}, 6, len(test_split.vocabulary))
    model.vocabulary = test_split.vocabulary
    test, val = evaluate(model, folder, "test"), evaluate(model, folder, "val")
    assert {"human_expert_correlation", "human_crowd_auc", "human_t2i_judged_top1_wrong", "mistake_i2t_subject"} <= set(test)
    assert not any(name.startswith("human") for name in val) and "mistake_t2i_none" in val
    both = evaluate_ensemble([model, model], folder, "test")
    assert both["human_expert_correlation"] == pytest.approx(test["human_expert_correlation"]) and set(both) <= set(test)
