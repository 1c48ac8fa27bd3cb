"""Scores against human judgments: how many of the answers that recall counts as wrong do people call right?

Recall@K knows one photograph for a caption, the one that the caption was written for. Flickr8k has judgments by people of other pairs, too
(:mod:`itm_lib.data.judgments`). Three things are measured with them:

* **top answers**: of the first answers that recall counts as wrong, how many were judged, and how many of those were called right: by
  the experts (mean mark of 3 or more) or by the crowd (more yes than no). Few answers are judged, so both counts belong together.
* **rank correlation** (Spearman) of a model's scores with the experts' mean marks over all pairs that they judged. It needs no top answers.
* **area under the ROC curve** of a model's scores for the crowd's yes: the chance that a pair with yes has a higher score than one with no.

For comparison: the correlation of one expert's mark with the mean of the two others' (``*_ceiling``). It is a reference, not a strict limit, since a model is
compared with the mean of three experts, which has less noise. ``*_others``: the same without the pairs of a photograph and a caption that was written for it, the
kind of pair that models are trained to find.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor

from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.data.judgments import CrowdJudgment, ExpertJudgment, Judgments
from itm_lib.evaluation.ranking import score_array

RIGHT = 3.0  # the experts' mean from which on a caption describes the photograph, "almost, with minor mistakes"
TOP = (1, 10)  # how many answers of a query are looked up


@dataclass(frozen=True)
class JudgedPairs:
    """The judged pairs of a split: rows and columns (n,) of the score matrix, ``values`` (n,), the experts' means or the crowd's majority, and
    ``own`` (n,) bool, whether the caption was written for the photograph."""

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    own: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def judged_pairs(judgments: Iterable[ExpertJudgment | CrowdJudgment], dataset: ImageCaptionDataset) -> tuple[JudgedPairs, list]:
    """The pairs of ``judgments`` whose photograph and caption are both in ``dataset``, and those judgments."""
    row_of = {str(image_id).rpartition("/")[2]: row for row, image_id in enumerate(dataset.regions.image_ids)}
    column_of = {str(caption_id): column for column, caption_id in enumerate(dataset.caption_ids)}
    found = [each for each in judgments if each.image_id in row_of and each.caption_id in column_of]
    rows = np.array([row_of[each.image_id] for each in found], dtype=np.int64)
    columns = np.array([column_of[each.caption_id] for each in found], dtype=np.int64)
    values = np.array([each.mean if isinstance(each, ExpertJudgment) else each.majority for each in found], dtype=np.float64)
    return JudgedPairs(rows, columns, values, np.asarray(dataset.caption_to_image)[columns] == rows), found


def human_metrics(scores: Tensor | np.ndarray, dataset: ImageCaptionDataset, judgments: Judgments) -> dict[str, float]:
    """What people say of ``scores`` (I, C); empty where no judged pair is in the split.

    Correlations and areas in percent: ``human_expert_correlation``, ``human_expert_ceiling`` and ``human_crowd_auc``, each also ``*_others``; the
    area is left out where the crowd said the same of all pairs. Counts of :func:`top_answers` as ``human_<what>``.
    """
    values = score_array(scores)
    experts, marked = judged_pairs(judgments.experts, dataset)
    crowd, _ = judged_pairs(judgments.crowd, dataset)
    result: dict[str, float] = {}
    if len(experts):
        given = values[experts.rows, experts.columns]
        marks = np.array([each.marks for each in marked], dtype=np.float64)
        for name, chosen in (("", np.ones(len(experts), bool)), ("_others", ~experts.own)):
            if not chosen.any():
                continue
            result[f"human_expert_correlation{name}"] = 100 * spearman(given[chosen], experts.values[chosen])
            result[f"human_expert_ceiling{name}"] = 100 * expert_ceiling(marks[chosen])
    if len(crowd):
        given = values[crowd.rows, crowd.columns]
        for name, chosen in (("", np.ones(len(crowd), bool)), ("_others", ~crowd.own)):
            yes = crowd.values[chosen] > 0
            if yes.any() and not yes.all():
                result[f"human_crowd_auc{name}"] = 100 * float(roc_auc_score(yes, given[chosen]))
    if len(experts) or len(crowd):
        result.update({f"human_{name}": float(count) for name, count in top_answers(values, dataset, experts, crowd).items()})
    return result


def top_answers(scores: np.ndarray, dataset: ImageCaptionDataset, experts: JudgedPairs, crowd: JudgedPairs) -> dict[str, int]:
    """Counts of the answers that recall counts as wrong among the first 1 and 10 of each query, and of what people said of them.

    Keys ``<queries>_top<k>_<what>``. Queries: ``i2t``, every photograph against all captions; ``i2t_judged``, every photograph against the captions
    that were judged at all; ``t2i_judged``, every caption that was judged, against all photographs. What: ``wrong`` (not the answer that
    recall asks for), ``seen`` (judged by anybody), ``right`` (called right by anybody), and ``experts_seen``, ``experts_right``, ``crowd_seen``,
    ``crowd_right``. Equal scores are taken in the order of the split.
    """
    owner = np.asarray(dataset.caption_to_image)
    judged_columns = np.union1d(experts.columns, crowd.columns)
    everything = np.arange(len(owner))
    verdicts = {"experts": _verdicts(experts, experts.values >= RIGHT, scores.shape), "crowd": _verdicts(crowd, crowd.values > 0, scores.shape)}
    counts: dict[str, int] = {}
    for queries, columns in (("i2t", everything), ("i2t_judged", judged_columns), ("t2i_judged", judged_columns)):
        part = scores[:, columns]
        for k in TOP:
            if queries.startswith("i2t"):
                best = np.argsort(-part, axis=1, kind="stable")[:, :k]
                rows, found = np.repeat(np.arange(len(part)), best.shape[1]), columns[best.ravel()]
            else:
                best = np.argsort(-part, axis=0, kind="stable")[:k]
                rows, found = best.T.ravel(), np.repeat(columns, best.shape[0])
            wrong = owner[found] != rows
            rows, found = rows[wrong], found[wrong]
            said = {kind: table[rows, found] for kind, table in verdicts.items()}  # 0: not judged, 1: wrong, 2: right
            own = {"wrong": len(rows), "seen": int((np.maximum(*said.values()) > 0).sum()), "right": int((np.maximum(*said.values()) == 2).sum())}
            for kind, values in said.items():
                own |= {f"{kind}_seen": int((values > 0).sum()), f"{kind}_right": int((values == 2).sum())}
            counts |= {f"{queries}_top{k}_{what}": count for what, count in own.items()}
    return counts


def _verdicts(pairs: JudgedPairs, right: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(I, C) of 0 where nobody judged, 1 where the judgment is wrong, 2 where it is right."""
    table = np.zeros(shape, np.int8)
    table[pairs.rows, pairs.columns] = 1 + right
    return table


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two series (n,); equal values share the mean of their ranks. 0 where one is constant."""
    x, y = (_mean_ranks(values) - (len(values) + 1) / 2 for values in (first, second))
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    return float((x * y).sum() / spread) if spread else 0.0


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[group]


def expert_ceiling(marks: np.ndarray) -> float:
    """Spearman's correlation of one expert's mark with the mean of the others', over all experts and pairs: ``marks`` (n, 3).

    The file lists the three marks of a pair in ascending order, so a column is no person, and correlations by column would be of order statistics.
    Over all experts together the order within a row does not matter.
    """
    others = (marks.sum(1, keepdims=True) - marks) / (marks.shape[1] - 1)
    return spearman(marks.ravel(), others.ravel())
