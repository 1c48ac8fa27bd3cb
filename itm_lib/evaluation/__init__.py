"""Measuring: ranks, protocols, foils, pointing, gates, sets, and the one door to the test split.

Results on disk and their tables are in :mod:`itm_lib.evaluation.report`.
"""

from itm_lib.evaluation.gates import gate_statistics
from itm_lib.evaluation.protocols import (
    PROTOCOLS,
    coco_1k_fivefold,
    coco_5k,
    coco_file_metrics,
    coco_test_ids,
    eccv_caption_metrics,
    evaluate,
    evaluate_ensemble,
    evaluate_scores,
    f30k_1k,
    protocol_metrics,
)
from itm_lib.evaluation.ranking import RetrievalMetrics, ceiling, map_at_r, retrieval_ranks
from itm_lib.evaluation.runs import evaluate_ensemble_runs, evaluate_runs, model_folders, record_results
from itm_lib.evaluation.scenes import foil_accuracy, pointing_accuracy
from itm_lib.evaluation.score_files import ScoreFile, read_scores, save_scores
from itm_lib.evaluation.scoring import describe, encode_dataset, open_split, similarity_matrix
from itm_lib.evaluation.sets import centre_scores, circular_variance, set_statistics

__all__ = [
    "PROTOCOLS", "RetrievalMetrics", "ScoreFile", "ceiling", "centre_scores", "circular_variance", "coco_1k_fivefold",
    "coco_5k", "coco_file_metrics", "coco_test_ids", "describe", "eccv_caption_metrics", "encode_dataset", "evaluate",
    "evaluate_ensemble", "evaluate_ensemble_runs", "evaluate_runs", "evaluate_scores", "f30k_1k", "foil_accuracy",
    "gate_statistics", "map_at_r", "model_folders", "open_split", "pointing_accuracy", "protocol_metrics", "read_scores",
    "record_results", "retrieval_ranks", "save_scores", "set_statistics", "similarity_matrix",
]
