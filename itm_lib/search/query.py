"""A query: candidates from the shortlist, scored by the model itself, and what it attends to in them.

The scores are those of :func:`itm_lib.evaluation.similarity_matrix`, for the candidates alone. With as many candidates as
there are pictures, the ranking is the whole one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from itm_lib.data import pictures
from itm_lib.data.captions import UNKNOWN, Vocabulary, WordPieces
from itm_lib.evaluation.scoring import encode_tokens, evaluating, similarity_matrix
from itm_lib.files import InputError
from itm_lib.models.base import Encoding
from itm_lib.search.attended import Region, attended
from itm_lib.search.shortlist import vectors_of
from itm_lib.search.vectors import top as top_of

if TYPE_CHECKING:
    from itm_lib.search.index import SearchIndex

UNION_BYTES = 2**28  # of candidates' fragments that are held at once where many queries are asked


@dataclass(frozen=True)
class Hit:
    """A picture found. ``shortlist_score``: None where there was no shortlist, or several. ``path``: None where it is not known.

    ``regions``: what the model looks at, with weights, which ``Result.weights`` explains; empty for models that do not say.
    """

    rank: int
    image_id: str
    score: float
    shortlist_score: float | None = None
    path: Path | None = None
    regions: tuple[Region, ...] = ()


@dataclass(frozen=True)
class Result:
    """What a query found, best first.

    ``words``: the query's, in the order of ``Region.words``. ``unknown``: those that are not in the model's vocabulary.
    ``scored``: how many of the ``pictures`` the model itself scored. ``weights``: what a region's weight is. ``notes``: lines for
    the reader.
    """

    query: str
    hits: tuple[Hit, ...]
    words: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    scored: int = 0
    pictures: int = 0
    weights: str = ""
    notes: tuple[str, ...] = ()
    picture: Path | None = field(default=None)

    @property
    def exact(self) -> bool:
        """Whether every picture was scored."""
        return self.scored == self.pictures

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        values = asdict(self)
        values["picture"] = None if self.picture is None else str(self.picture)
        for hit in values["hits"]:
            hit["path"] = None if hit["path"] is None else str(hit["path"])
        return {**values, "exact": self.exact}


@dataclass(frozen=True)
class TextQuery:
    """A query's text, its token ids, which of them are words of the text, and the words."""

    text: str
    ids: list[int]
    said: list[bool]
    words: tuple[str, ...]
    unknown: tuple[str, ...]

    @classmethod
    def read(cls, text: str, vocabulary: Vocabulary | WordPieces) -> TextQuery:
        """``text`` as ``vocabulary`` cuts it. Without a word, or with unknown ones alone, it is one line (:class:`InputError`)."""
        if not text.strip():
            raise InputError("the query is empty: write a caption, for example \"a dog left of a red car\"")
        try:
            ids = vocabulary.encode(text)
        except InputError:
            raise InputError(f"the query {text!r} has no word in it: write a caption, for example \"a dog left of a red car\"") from None
        spans = vocabulary.spans(text)
        said = [end > start for start, end in spans]
        words = tuple(text[start:end] for (start, end), real in zip(spans, said) if real)
        name = vocabulary.unknown if isinstance(vocabulary, WordPieces) else UNKNOWN
        strange = {vocabulary.id(name)} if name is not None else set()
        unknown = tuple(dict.fromkeys(word.lower() for word, place in zip(words, (i for i, real in zip(ids, said) if real))
                                      if place in strange))
        if {word.lower() for word in words} <= set(unknown):
            raise InputError(f"no word of the query {text!r} is in the model's vocabulary: use words of the captions it was trained on")
        return cls(text, ids, said, words, unknown)


def search_texts(index: SearchIndex, texts: Sequence[str], top: int = 10, candidates: int = 100, explain: bool = True) -> list[Result]:
    """A :class:`Result` of each of ``texts``."""
    _check_sizes(top, candidates)
    if isinstance(texts, str) or not texts:
        raise InputError("give a list of queries, one at least")
    read = [TextQuery.read(text, index.vocabulary) for text in texts]
    captions = encode_tokens(index.model, [query.ids for query in read], device=index.device)
    found = _candidates(index, captions, texts, candidates)
    results = []
    for first, last in _together(index, [len(rows) for rows, _ in found]):
        own, place = _encoded(index, [rows for rows, _ in found[first:last]])
        for number in range(first, last):
            query, (rows, shortlist) = read[number], found[number]
            images = own.select(torch.searchsorted(place, rows)) if place is not None else index.candidate_images(rows)
            hits = _ranked(index, images, captions.select([number]), rows, shortlist, top)
            notes = (f"not in the vocabulary: {', '.join(query.unknown)}",) if query.unknown else ()
            results.append(Result(query.text, hits, query.words, query.unknown, len(rows), len(index), notes=notes))
            if explain:
                results[-1] = _explained(index, results[-1], captions.select([number]), query.said)
    return results


def search_picture(index: SearchIndex, picture: str | Path, top: int = 10, candidates: int = 100, explain: bool = True) -> Result:
    """The pictures that are nearest to ``picture``, a file. One of the indexed pictures' files has the regions that it has there."""
    _check_sizes(top, candidates)
    row = index.gallery.find(Path(picture))
    regions, mask, notes = index.read_picture(pictures.read_picture(Path(picture))) if row is None else (*index.gallery.image_tensors([row]), ())
    first = index.shortlists[0]
    model = first.model if first.folder is not None else index.model
    with evaluating(model, index.device) as device:
        query = model.encode_images(regions.to(device), None if mask is None else mask.to(device)).to("cpu")
    if all(each.how == "embedding" for each in index.shortlists):
        if first.folder is not None:
            notes += (f"compared by {model.name}, whose embeddings the candidates come from",)
        rows, shortlist = _candidates(index, query, None, candidates)[0]
        images = first.embeddings(rows) if first.folder is not None else index.candidate_images(rows)
        hits = _ranked(index, images, query, rows, shortlist, top, model)
    else:
        if len(index.shortlists) > 1:
            raise InputError("this ensemble has a member that compares regions with words and cannot compare pictures: index its other "
                             "members, or ask with words")
        notes += (f"compared by the mean of their encoded regions: {model.name} itself compares pictures with words alone",)
        scores, rows = top_of(nn.functional.normalize(vectors_of(query, "mean")[0]) @ first.means().T, top)
        hits = tuple(_hit(index, rank, row, score, None) for rank, (row, score) in enumerate(zip(rows[0].tolist(), scores[0].tolist()), 1))
        explain, candidates = False, len(index)
    result = Result(Path(picture).name, hits, scored=min(candidates, len(index)), pictures=len(index), notes=tuple(notes),
                    picture=Path(picture))
    return _explained(index, result, query, None) if explain and model is index.model else result


def _check_sizes(top: int, candidates: int) -> None:
    if top < 1 or candidates < 1:
        raise InputError(f"top is {top} and candidates {candidates}: both must be 1 at least")
    if candidates < top:
        raise InputError(f"{candidates} candidates are fewer than the {top} pictures that are asked for: take more candidates")


def _candidates(index: SearchIndex, queries: Encoding, texts: Sequence[str] | None, count: int) -> list[tuple[Tensor, Tensor | None]]:
    """For each query the candidates' rows, rising, and their scores in the shortlist, if there is one alone."""
    if count >= len(index):
        return [(torch.arange(len(index)), None)] * len(queries)
    each = []
    for number, shortlist in enumerate(index.shortlists):
        encoding = queries.members[number] if queries.members else queries
        if shortlist.folder is not None and texts is not None:
            vocabulary = index.other_vocabulary
            encoding = encode_tokens(shortlist.model, [vocabulary.encode(text) for text in texts], device=index.device)
        each.append(shortlist.pictures.nearest(shortlist.queries(encoding), count))
    if len(each) == 1:
        return [(rows[order], scores[order]) for scores, rows in each[0] for order in [rows.argsort()]]
    return [(torch.cat([rows for _, rows in lists]).unique(), None) for lists in zip(*each)]


def _together(index: SearchIndex, counts: list[int]) -> list[tuple[int, int]]:
    """Runs of queries, first and one past last, whose candidates are encoded together."""
    size = len(counts) if index.keeps_encodings else max(1, UNION_BYTES // (max(counts) * index.picture_bytes))
    return [(first, min(first + size, len(counts))) for first in range(0, len(counts), size)]


def _encoded(index: SearchIndex, rows: list[Tensor]) -> tuple[Encoding | None, Tensor | None]:
    """All candidates of several queries, encoded once, and their rows; None where the index keeps the encodings."""
    if index.keeps_encodings or len(rows) == 1:
        return None, None
    union = torch.cat(rows).unique()
    return index.candidate_images(union), union


def _ranked(index: SearchIndex, images: Encoding, query: Encoding, rows: Tensor, shortlist: Tensor | None, count: int,
            model: Any = None) -> tuple[Hit, ...]:
    scores = similarity_matrix(model or index.model, images, query, device=index.device)[:, 0]
    if scores.isnan().any():
        raise InputError("the model's scores are NaN: look for infinite losses in its training")
    best, places = top_of(scores[None], count)
    return tuple(_hit(index, rank, int(rows[place]), score, None if shortlist is None else float(shortlist[place]))
                 for rank, (place, score) in enumerate(zip(places[0].tolist(), best[0].tolist()), 1))


def _hit(index: SearchIndex, rank: int, row: int, score: float, shortlist: float | None) -> Hit:
    return Hit(rank, index.gallery.image_ids[row], score, shortlist, index.gallery.path(row))


def _explained(index: SearchIndex, result: Result, query: Encoding, said: list[bool] | None) -> Result:
    """``result`` with the regions of its hits."""
    rows = [index.gallery.row(hit.image_id) for hit in result.hits]
    regions, weights = attended(index.model, index.gallery, rows, query, said, index.device)
    hits = tuple(Hit(**{**vars(hit), "regions": each}) for hit, each in zip(result.hits, regions))
    return Result(**{**vars(result), "hits": hits, "weights": weights})
