"""What a model of sets makes of its sets: how far their elements lie apart, and what is left of retrieval without that."""

from __future__ import annotations

import torch
from torch import Tensor

from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.evaluation.ranking import RetrievalMetrics, map_at_r
from itm_lib.models.base import Encoding

SMALLEST = 1e-7  # a variance of float32 unit vectors below this is rounding: logarithms start here


def circular_variance(sets: Tensor) -> Tensor:
    """1 - ‖mean of the elements‖ (n,) of sets (n,K,d) of unit vectors: 0 where all elements are the same, at most 1.

    >>> circular_variance(torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]]))
    tensor([0., 1.])
    """
    return 1 - torch.linalg.vector_norm(sets.mean(1), dim=-1)


def centre_scores(images: Tensor, captions: Tensor) -> Tensor:
    """Cosines (I, C) of the means of sets (I,K,d) and (C,K',d): scores as if every set had collapsed to its centre."""
    rows, columns = (torch.nn.functional.normalize(side.mean(1), dim=-1) for side in (images, captions))
    return rows @ columns.T


def set_statistics(images: Encoding, captions: Encoding, dataset: ImageCaptionDataset) -> dict[str, float]:
    """Of Encodings whose ``embedding`` is a set (n,K,d), in dataset order; {} for all others.

    ``{image,caption}_circular_variance``: mean over samples, 0 to 1; ``{image,caption}_log_circular_variance``: mean of its natural
    logarithm, which a few wide sets do not hide; ``centre_rsum`` and, where the exact truth is known, ``centre_{i2t,t2i}_map_at_r``:
    retrieval by :func:`centre_scores`, in percent.
    """
    sides = {"image": images.embedding, "caption": captions.embedding}
    if any(sets is None or sets.dim() != 3 for sets in sides.values()):
        return {}
    result: dict[str, float] = {}
    for side, sets in sides.items():
        variance = circular_variance(sets.double()).clamp(min=0)
        result[f"{side}_circular_variance"] = float(variance.mean())
        result[f"{side}_log_circular_variance"] = float(variance.clamp(min=SMALLEST).log().mean())
    scores = centre_scores(sides["image"], sides["caption"])
    result["centre_rsum"] = RetrievalMetrics.from_scores(scores, dataset.caption_to_image).rsum
    if dataset.truth is not None:
        exact = map_at_r(scores, dataset.truth)
        result.update({f"centre_{way}_map_at_r": exact[f"{way}_map_at_r"] for way in ("i2t", "t2i")})
    return result
