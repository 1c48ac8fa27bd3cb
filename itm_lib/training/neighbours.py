"""Neighbour batches: clusters of pictures that look alike to the model, so that a batch holds hard negatives.

Of HREM (CVPR 2023): in the later epochs a batch is P clusters × K images, by k-means of the images' embeddings.
"""

from __future__ import annotations

import numpy as np
from sklearn.cluster import MiniBatchKMeans
from threadpoolctl import threadpool_limits

from itm_lib.data.dataset import ImageCaptionDataset
from itm_lib.evaluation.scoring import encode_images, evaluating
from itm_lib.files import InputError
from itm_lib.models.base import MatchingModel
from itm_lib.processes import from_main, is_main

PICTURES_A_CLUSTER = 4  # in multiples of what a batch takes of one: the others of a cluster change from batch to batch


def number_of_clusters(images: int, size: int) -> int:
    """How many clusters ``images`` pictures make, if a batch takes ``size`` of each: at least 2."""
    return max(2, images // (PICTURES_A_CLUSTER * size))


def cluster_images(model: MatchingModel, dataset: ImageCaptionDataset, clusters: int, seed: int = 0) -> np.ndarray:
    """The cluster (I,) int64 of each image, by k-means of the embeddings that ``model`` gives them now.

    A set of embeddings counts with its mean. The same model and seed give the same clusters: one thread, a fixed start. Of
    several processes all must call it; the main one finds the clusters for all.
    Raises :class:`InputError` for a model without embeddings of pictures alone, and for more clusters than pictures.
    """
    if clusters > dataset.num_images:
        raise InputError(f"{clusters} clusters of {dataset.num_images} pictures: neighbour_clusters can be {dataset.num_images} at most")
    check_embeddings(model, dataset)
    embedding = encode_images(model, dataset).embedding
    embedding = embedding.mean(1) if embedding.dim() == 3 else embedding
    with threadpool_limits(1):
        means = MiniBatchKMeans(clusters, batch_size=1024, n_init=3, random_state=seed)
        found = from_main(means.fit_predict(embedding.float().numpy()) if is_main() else None)
    return found.astype(np.int64)


def check_embeddings(model: MatchingModel, dataset: ImageCaptionDataset) -> None:
    """Raise :class:`InputError` if ``model`` has no embedding of a picture that depends on the picture alone."""
    with evaluating(model) as device:
        regions, mask = (None if part is None else part.to(device) for part in dataset.image_tensors([0]))
        if model.encode_images(regions, mask).embedding is None:
            raise InputError(f"neighbour_images needs an embedding of each picture, and the model {model.name!r} has none: leave it out")
