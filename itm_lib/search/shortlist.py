"""How candidates are found: vectors of all pictures and of a query, made by the model that searches or by another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from itm_lib.evaluation.runs import model_folders
from itm_lib.evaluation.scoring import encode_images
from itm_lib.files import InputError
from itm_lib.models import DivE, Ensemble, load_model
from itm_lib.models.base import Encoding, MatchingModel
from itm_lib.models.layers import masked_mean
from itm_lib.search.gallery import Gallery
from itm_lib.search.vectors import PictureVectors, VectorSettings, make_vectors

FRAGMENT_KINDS = ("mean", "words")
DEFAULT = "words"  # for SCAN and CAMP: what keeps most on the embedded validation split, tests/benchmarks/bench_shortlist.py
CHUNK = 1024       # pictures that are encoded before their vectors are put away


@dataclass
class Shortlist:
    """``model`` makes vectors of pictures and of queries; ``how``: which, see :func:`vectors_of`.

    ``folder``: where the model is, if it is another one than that which searches. ``sets``: whether embeddings are (I, K, d).
    """

    how: str
    model: MatchingModel
    folder: str | None = None
    pictures: PictureVectors | None = None
    sets: bool = False

    def count(self, gallery: Gallery) -> int:
        """How many vectors the pictures of ``gallery`` will have."""
        if self.how == "words":
            return int(gallery.num_regions.sum())
        return len(gallery) * (self.model.config.slots[0] if self.how == "embedding" and isinstance(self.model, DivE) else 1)

    def queries(self, encoding: Encoding) -> list[Tensor]:
        """The vectors (Q, d) of each encoded query."""
        vectors, counts = vectors_of(encoding, self.how)
        return list(vectors.split(counts.tolist()))

    def embeddings(self, rows: Tensor) -> Encoding:
        """The Encoding of pictures ``rows``, of a shortlist of embeddings: what the model's similarity needs of it."""
        pictures = self.pictures
        sets = pictures.vectors.view(len(pictures), pictures.width, -1)[rows]
        return Encoding(embedding=sets if self.sets else sets.squeeze(1))

    def means(self) -> Tensor:
        """(N, d) of length 1: the mean of each picture's vectors."""
        counts = self.pictures.starts.diff()
        owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
        total = torch.zeros(len(counts), self.pictures.vectors.shape[1]).index_add_(0, owner, self.pictures.vectors)
        return nn.functional.normalize(total, dim=-1)


def vectors_of(encoding: Encoding, how: str) -> tuple[Tensor, Tensor]:
    """The vectors (V, d) float32 of n encoded pictures or captions, one after another, and how many each has (n,).

    ``how``: "embedding", "mean" (of the fragments: the product of two means is the mean product of all words and regions) or
    "words" (all fragments: as late interaction, the mean over words of the largest product with a region).
    """
    if how == "embedding":
        sets = encoding.embedding if encoding.embedding.dim() == 3 else encoding.embedding[:, None]
        return sets.flatten(0, 1).float(), torch.full((len(sets),), sets.shape[1])
    if how == "mean":
        mean = masked_mean(encoding.fragments, encoding.mask).float()
        return mean, torch.ones(len(mean), dtype=torch.int64)
    return encoding.fragments[encoding.mask].float(), encoding.mask.sum(1)


def plan(model: MatchingModel, gallery: Gallery, shortlist: str | Path | None) -> list[Shortlist]:
    """The shortlists that a search with ``model`` takes candidates from, still without vectors: one, or one a member."""
    if shortlist is not None and str(shortlist) not in FRAGMENT_KINDS:
        return [_of_other(gallery, shortlist)]
    first = encode_images(model, gallery, rows=[0])
    members = list(zip(model.models, first.members)) if isinstance(model, Ensemble) else [(model, first)]
    lists = [Shortlist("embedding" if encoded.embedding is not None else str(shortlist or DEFAULT), member) for member, encoded in members]
    if shortlist is not None and all(each.how == "embedding" for each in lists):
        raise InputError(f"shortlist {shortlist!r} is for SCAN and CAMP, which compare regions with words: {model.name} searches by its "
                         "own embeddings, leave shortlist out")
    return lists


def _of_other(gallery: Gallery, run: str | Path) -> Shortlist:
    """Candidates by the embeddings of the model in ``run``."""
    if not str(run).startswith("hf://") and not Path(run).is_dir():
        raise InputError(f"shortlist {str(run)!r} is none of {', '.join(FRAGMENT_KINDS)} and no model folder: check the path")
    folder = one_folder(run)
    other = load_model(folder)[0]
    check_fits(other, gallery)
    if isinstance(other, Ensemble) or encode_images(other, gallery, rows=[0]).embedding is None:
        raise InputError(f"shortlist {run}: {other.name} has no embeddings; give a model of VSE++, HREM or DivE")
    return Shortlist("embedding", other, str(folder))


def one_folder(run: str | Path) -> str | Path:
    """The one model folder that ``run`` means."""
    folders = model_folders(run)
    if len(folders) > 1:
        raise InputError(f"{run} has models of {len(folders)} seeds: choose one, for example {folders[0]}")
    return folders[0]


def check_fits(model: MatchingModel, gallery: Gallery) -> None:
    """Raise :class:`InputError` where ``model`` reads other pictures or regions than the gallery has."""
    for member in getattr(model, "models", [model]):
        if (member.pixels is None) != (gallery.pixels is None) or (member.pixels and member.pixels.size != gallery.pixels.size):
            raise InputError("the two models read pictures differently, one regions and one pixels, or pixels of another size: they "
                             "cannot search together")
        wanted = getattr(member.config, "region_dim", gallery.dim)
        if gallery.dim is not None and wanted != gallery.dim:
            raise InputError(f"this model was made for regions of {wanted} numbers, {gallery.source} has regions of {gallery.dim}: "
                             "index pictures whose regions were extracted as those it was trained on")


def fill(lists: Sequence[Shortlist], model: MatchingModel, gallery: Gallery, settings: VectorSettings, device: Any = None,
         batch_size: int = 256, progress: bool = False) -> None:
    """Encode all pictures and put their vectors into ``lists``."""
    stores = [_Growing(each.count(gallery), len(gallery)) for each in lists]
    with tqdm(total=len(gallery), desc="encode pictures", unit="picture", disable=not progress) as bar:
        for first in range(0, len(gallery), CHUNK):
            rows = range(first, min(first + CHUNK, len(gallery)))
            own = None
            for number, (each, store) in enumerate(zip(lists, stores)):
                if each.folder is not None:
                    encoded = encode_images(each.model, gallery, batch_size, device, rows=rows)
                else:
                    own = encode_images(model, gallery, batch_size, device, rows=rows) if own is None else own
                    encoded = own.members[number] if own.members else own
                store.add(*vectors_of(encoded, each.how))
                each.sets = each.how == "embedding" and encoded.embedding.dim() == 3
            bar.update(len(rows))
    for each, store in zip(lists, stores):
        each.pictures = PictureVectors(store.vectors, store.starts, make_vectors(store.vectors, settings))


class _Growing:
    """Vectors in one tensor of the final size, so that they are never there twice."""

    def __init__(self, total: int, pictures: int):
        self.total, self.vectors = total, None
        self.starts = torch.zeros(pictures + 1, dtype=torch.int64)
        self.pictures = self.rows = 0

    def add(self, vectors: Tensor, counts: Tensor) -> None:
        if self.vectors is None:
            self.vectors = torch.empty(self.total, vectors.shape[1])
        if not torch.isfinite(vectors).all():
            raise InputError("the model makes NaN of these pictures: look for infinite losses in its training, or for broken regions")
        self.vectors[self.rows : self.rows + len(vectors)] = vectors
        self.starts[self.pictures + 1 : self.pictures + 1 + len(counts)] = self.rows + counts.cumsum(0)
        self.rows, self.pictures = self.rows + len(vectors), self.pictures + len(counts)
