"""Nearest neighbours among many vectors, by inner product: exactly with torch alone, or through faiss.

=========  ==================================================================================================================
kind       how
=========  ==================================================================================================================
torch      every product, block by block; exact, equal products in the order of the rows
flat       faiss, every product; exact
hnsw       faiss, a graph that a query walks: ``M`` links a vector, ``ef_construction`` and ``ef_search`` vectors kept in sight
ivfpq      faiss, ``nlist`` cells of which a query reads ``nprobe``; a vector is ``m`` codes of ``nbits``, the centres of which are
           learned from a sample
=========  ==================================================================================================================

The approximate kinds are for vectors of one length. Where lengths differ, every vector gets one more coordinate that makes them
equal and that a query does not have: products stay as they are (Bachrach et al., Speeding Up the Xbox Recommender System, 2014).

A picture may have several vectors, one after another: :class:`PictureVectors`. A query of several vectors then has the score
mean over its vectors of the largest product with one of the picture's.

faiss builds on one thread, so that the same vectors make the same index whatever the number of threads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Literal, get_args

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError
from torch import Tensor

from itm_lib.files import InputError, nearest, one_line, validation_line

Kind = Literal["torch", "flat", "hnsw", "ivfpq"]
KINDS: tuple[str, ...] = get_args(Kind)
BLOCK_BYTES = 2**26     # of products held at once
PER_CENTRE = 39         # vectors that k-means wants to see a centre: below it faiss warns
UNIT = 1e-3             # lengths that differ by less count as equal
DEPTH = 4               # rows a vector looks up for each picture that is wanted, at most: neighbours may be of one picture
INSTALL = 'faiss is not installed: pip install -e ".[search]", or take kind "torch", which needs none'


class VectorSettings(BaseModel):
    """How neighbours are found. What is None is chosen by the number of vectors and their size."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind = "torch"
    M: PositiveInt = 32
    ef_construction: PositiveInt = 80
    ef_search: PositiveInt = 128
    nlist: PositiveInt | None = None
    m: PositiveInt | None = None
    nbits: int = Field(8, ge=4, le=8)
    nprobe: PositiveInt = 32
    train_sample: PositiveInt = 2**18
    seed: int = Field(0, ge=0)

    @classmethod
    def checked(cls, kind: str, **settings: object) -> VectorSettings:
        """The settings of ``kind``; what is wrong is one line."""
        if kind not in KINDS:
            raise InputError(f"no index is of kind {kind!r}; {nearest(kind, KINDS)}")
        try:
            return cls(kind=kind, **settings)
        except ValidationError as error:
            raise InputError(f"index of kind {kind}: {validation_line(error, cls.model_fields)}") from None


def load_faiss() -> ModuleType:
    """The faiss module; without it, one line that says how to get it."""
    try:
        import faiss
    except ImportError:
        raise InputError(INSTALL) from None
    return faiss


@contextlib.contextmanager
def one_thread(faiss: ModuleType) -> Iterator[None]:
    """faiss on one thread while inside."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


# --- Exact, in torch --------------------------------------------------------------------------------------------------------


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of each row of ``scores`` (q, n), falling, and their columns; of equal ones the first columns first.

    >>> top(torch.tensor([[0.5, 0.9, 0.9, 0.9]]), 2)
    (tensor([[0.9000, 0.9000]]), tensor([[1, 2]]))
    """
    count = min(count, scores.shape[1])
    values, columns = scores.topk(count, dim=1)
    least = values[:, -1:]
    crowded = (scores >= least).sum(1) > count  # topk chose any of those that are equal to the last
    for row in crowded.nonzero()[:, 0].tolist():
        above = (scores[row] > least[row]).nonzero()[:, 0]
        equal = (scores[row] == least[row]).nonzero()[:, 0]
        columns[row] = torch.cat([above, equal])[:count]
        values[row] = scores[row, columns[row]]
    columns, order = columns.sort(dim=1)
    values, again = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, columns.gather(1, again)


class TorchVectors:
    """Every product of a query with the vectors (n, d), in blocks of ``block_bytes``."""

    def __init__(self, vectors: Tensor, block_bytes: int = BLOCK_BYTES):
        self.vectors, self.block_bytes = vectors, block_bytes

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Products (q, k) with the nearest vectors, falling, and their rows (q, k), for queries (q, d); k is ``count`` at most."""
        height = min(len(queries), 256)
        width = max(count, self.block_bytes // (4 * max(1, height)))
        found = [self._search(part, count, width) for part in queries.split(height)]
        return torch.cat([scores for scores, _ in found]), torch.cat([rows for _, rows in found])

    def _search(self, queries: Tensor, count: int, width: int) -> tuple[Tensor, Tensor]:
        best, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for first in range(0, len(self.vectors), width):
            values, columns = top(queries @ self.vectors[first : first + width].T, count)
            best, rows = torch.cat([best, values], 1), torch.cat([rows, columns + first], 1)  # earlier rows come first
            best, place = top(best, count)
            rows = rows.gather(1, place)
        return best, rows


# --- faiss ------------------------------------------------------------------------------------------------------------------


class FaissVectors:
    """The vectors in an index of faiss. ``lifted``: whether it holds one more coordinate, see the module."""

    def __init__(self, index, settings: VectorSettings, lifted: bool = False):
        self.index, self.settings, self.lifted = index, settings, lifted
        if settings.kind == "hnsw":
            index.hnsw.efSearch = settings.ef_search
        if settings.kind == "ivfpq":
            index.nprobe = settings.nprobe

    @classmethod
    def build(cls, vectors: Tensor, settings: VectorSettings) -> FaissVectors:
        """The index of ``vectors`` (n, d) float32."""
        faiss = load_faiss()
        values = np.ascontiguousarray(vectors.numpy(), dtype=np.float32)
        lifted = settings.kind in ("hnsw", "ivfpq") and not _equally_long(values)
        values = _lift(values) if lifted else values
        with one_thread(faiss):
            if settings.kind == "ivfpq":
                index = _trained_ivfpq(faiss, values, settings)
            elif settings.kind == "hnsw":
                index = faiss.IndexHNSWFlat(values.shape[1], settings.M, faiss.METRIC_INNER_PRODUCT)
                index.hnsw.efConstruction = settings.ef_construction
            else:
                index = faiss.IndexFlatIP(values.shape[1])
            index.add(values)
        return cls(index, settings, lifted)

    def __len__(self) -> int:
        return self.index.ntotal

    def search(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """As :meth:`TorchVectors.search`. Where an approximate index finds fewer than ``count``, the row is -1."""
        count = min(count, len(self))
        values = np.ascontiguousarray(queries.numpy(), dtype=np.float32)
        if self.lifted:
            values = np.pad(values, ((0, 0), (0, self.index.d - values.shape[1])))
        if self.settings.kind == "hnsw":
            self.index.hnsw.efSearch = max(self.settings.ef_search, count)
        scores, rows = self.index.search(values, count)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def save(self, path: Path) -> None:
        faiss = load_faiss()
        try:
            faiss.write_index(self.index, str(path))
        except RuntimeError as error:
            raise InputError(f"{path.parent} cannot be written ({one_line(error)}): make room, and index again") from None

    @classmethod
    def load(cls, path: Path, settings: VectorSettings, dim: int, count: int) -> FaissVectors:
        """The index in ``path``, of ``count`` vectors of ``dim`` numbers."""
        faiss = load_faiss()
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise InputError(f"{path} cannot be read ({one_line(error)}): it is damaged or cut short, index again") from None
        if index.ntotal != count or index.d < dim:
            raise InputError(f"{path} holds {index.ntotal} vectors of {index.d} numbers, not {count} of {dim}: index again")
        return cls(index, settings, index.d > dim)


def _equally_long(values: np.ndarray) -> bool:
    lengths = np.sqrt(_squares(values))
    return float(lengths.max() - lengths.min()) <= UNIT * float(lengths.max())


def _squares(values: np.ndarray) -> np.ndarray:
    """(n,) squared lengths, without a second array of all values."""
    return np.einsum("ij,ij->i", values, values)


def _lift(values: np.ndarray) -> np.ndarray:
    """(n, d) -> (n, d'), all of the largest vector's length, with as many zeros as make d' a multiple of 8."""
    squares = _squares(values)
    width = -(-(values.shape[1] + 1) // 8) * 8
    wide = np.zeros((len(values), width), np.float32)
    wide[:, : values.shape[1]] = values
    wide[:, values.shape[1]] = np.sqrt(np.maximum(squares.max() - squares, 0))
    return wide


def least_to_train(settings: VectorSettings) -> int:
    """Vectors that an ivfpq index needs to learn its codes' centres from."""
    return PER_CENTRE * 2**settings.nbits


def _trained_ivfpq(faiss: ModuleType, values: np.ndarray, settings: VectorSettings):
    count, dim = values.shape
    nlist = settings.nlist or max(1, min(2 ** round(math.log2(4 * math.sqrt(count))), count // PER_CENTRE))
    m = settings.m or max(each for each in range(1, max(1, min(64, dim // 4)) + 1) if dim % each == 0)
    if dim % m:
        raise InputError(f"index of kind ivfpq: m = {m} codes do not divide {dim} numbers evenly; leave it out, or take a divisor")
    if nlist * PER_CENTRE > count:
        raise InputError(f"index of kind ivfpq: nlist = {nlist} cells need {nlist * PER_CENTRE:,} vectors to learn from and there are "
                         f"{count:,}: take at most {max(1, count // PER_CENTRE)}")
    index = faiss.index_factory(dim, f"IVF{nlist},PQ{m}x{settings.nbits}np", faiss.METRIC_INNER_PRODUCT)
    index.cp.seed = settings.seed + 1234  # 1234 is what faiss takes where none is set
    sample = values
    wanted = max(settings.train_sample, PER_CENTRE * max(nlist, 2**settings.nbits))
    if wanted < count:
        sample = values[np.sort(np.random.default_rng(settings.seed).choice(count, wanted, replace=False))]
    index.train(sample)
    return index


# --- Pictures of one or several vectors -----------------------------------------------------------------------------------------


def make_vectors(vectors: Tensor, settings: VectorSettings) -> TorchVectors | FaissVectors:
    """The vectors (n, d) float32, made ready for search."""
    return TorchVectors(vectors) if settings.kind == "torch" else FaissVectors.build(vectors, settings)


class PictureVectors:
    """The vectors of all pictures: ``vectors`` (V, d), ``starts`` (N + 1,): picture i has rows starts[i] to starts[i + 1].

    ``found`` answers which rows are near a vector; :meth:`nearest`, which pictures are near a query.
    """

    def __init__(self, vectors: Tensor, starts: Tensor, found: TorchVectors | FaissVectors):
        self.vectors, self.starts, self.found = vectors, starts, found
        counts = starts.diff()
        self.width = int(counts.max())
        self.even = bool((counts == self.width).all())

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def single(self) -> bool:
        """Whether every picture has one vector."""
        return self.even and self.width == 1

    def nearest(self, queries: Sequence[Tensor], count: int) -> list[tuple[Tensor, Tensor]]:
        """For each query (Q, d): scores (k,) of the nearest pictures, falling, and the pictures (k,); k is ``count`` at most.

        The score is the mean over the query's vectors of the largest product with one of the picture's. With torch these are the
        nearest of all. Through faiss each vector looks up its nearest rows, and of the pictures that these are of, the
        likeliest get their scores.
        """
        if self.single and all(len(query) == 1 for query in queries):
            scores, rows = self.found.search(torch.cat(list(queries)), count)
            return [(own[place >= 0], place[place >= 0]) for own, place in zip(scores, rows)]
        if isinstance(self.found, TorchVectors):
            return [self._every(query, count) for query in queries]
        return [self._looked_up(query, count) for query in queries]

    def _every(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        pictures = max(1, self.found.block_bytes // (4 * len(query) * self.width))
        means = []
        for first in range(0, len(self), pictures):
            last = min(first + pictures, len(self))
            means.append(self._means(self.vectors[self.starts[first] : self.starts[last]], self.starts[first : last + 1].diff(), query))
        scores, rows = top(torch.cat(means)[None], count)
        return scores[0], rows[0]

    def _means(self, vectors: Tensor, counts: Tensor, query: Tensor) -> Tensor:
        """Scores (n,) of n pictures that have ``counts`` of the ``vectors``, one after another."""
        products = vectors @ query.T
        if self.even:
            best = products.view(len(counts), self.width, -1).amax(1)
        else:
            owner = torch.repeat_interleave(torch.arange(len(counts)), counts)[:, None].expand_as(products)
            best = products.new_full((len(counts), len(query)), -torch.inf).scatter_reduce(0, owner, products, "amax")
        return best.mean(1)

    def _looked_up(self, query: Tensor, count: int) -> tuple[Tensor, Tensor]:
        depth = min(len(self.vectors), count * min(self.width, DEPTH))
        scores, rows = (value.numpy() for value in self.found.search(query, depth))
        vector, place = np.nonzero(rows >= 0)
        owner = np.searchsorted(self.starts.numpy(), rows[vector, place], side="right") - 1
        pictures, column = np.unique(owner, return_inverse=True)
        lowest = np.where(rows >= 0, scores, np.inf).min(1)
        best = np.repeat(lowest[:, None], len(pictures), 1)  # at most that is what a vector has with a picture it did not find
        np.maximum.at(best, (vector, column), scores[vector, place])
        likely = top(torch.from_numpy(best[np.isfinite(lowest)].mean(0))[None], 2 * count)[1][0]
        pictures = torch.from_numpy(pictures)[likely].sort().values
        counts = self.starts.diff()[pictures]
        every = torch.cat([torch.arange(first, last) for first, last in zip(self.starts[pictures].tolist(), self.starts[pictures + 1].tolist())])
        values, places = top(self._means(self.vectors[every], counts, query)[None], count)
        return values[0], pictures[places[0]]
