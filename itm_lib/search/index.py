"""An index: the vectors of all pictures of a gallery, made by a trained model, and the folder that holds them.

What a picture's vectors are, ``shortlist``:

=============  ==============================================================================================================
embedding      the model's own: one of VSE++ and HREM, the K elements of DivE
words          of SCAN and CAMP, the default: every encoded region; each word of a query looks for its nearest ones
mean           of SCAN and CAMP: the mean of its encoded regions, compared with the mean of the query's words
a folder       of another model, VSE++ for example: that model's embeddings
=============  ==============================================================================================================

They find candidates; the model itself then scores those: :mod:`itm_lib.search.query`. An ensemble takes the candidates of all
its members.

The folder::

    index.json                     what was indexed, by which model, how: with fingerprints, which are checked
    vectors-<tag>.safetensors      the vectors, and where each picture's start
    found-<tag>-<k>.faiss          faiss' own file, of the kinds hnsw and ivfpq
    model/                         the model, where it was given as an object and not as a folder

index.json is written last and names the others, so a build that is killed leaves the index that was there before.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from itm_lib.data.captions import Vocabulary, WordPieces
from itm_lib.data.pictures import cut
from itm_lib.evaluation.scoring import encode_images
from itm_lib.files import InputError, held, one_line, read_json, replace_atomically, write_json
from itm_lib.models import load_model
from itm_lib.models.base import Encoding, MatchingModel, vocabulary_for
from itm_lib.models.ensemble import Ensemble
from itm_lib.models.saving import VOCABULARY, WEIGHTS, read_config, resolve_folder
from itm_lib.search.gallery import Gallery
from itm_lib.search.query import Result, search_picture, search_texts
from itm_lib.search.shortlist import Shortlist, check_fits, fill, one_folder, plan
from itm_lib.search.vectors import (
    FaissVectors,
    PictureVectors,
    VectorSettings,
    least_to_train,
    load_faiss,
    make_vectors,
)

FORMAT = 1
INDEX, MODEL, LOCK = "index.json", "model", ".lock"
OURS = re.compile(r"(vectors-[0-9a-f]{12}\.safetensors|found-[0-9a-f]{12}-\d+\.faiss|\.(vectors|found|index).*\.part)")
ON_DISK = ("hnsw", "ivfpq")  # kinds whose building takes long: the others are made of the vectors when the index is opened


def build_index(model: str | Path | MatchingModel, source: str | Path, out: str | Path | None = None, kind: str = "auto",
                shortlist: str | Path | None = None, images: str | Path | None = None, progress: bool = True,
                split: str | None = None, device: torch.device | str | None = None, batch_size: int = 256,
                **vectors: Any) -> SearchIndex:
    """Index the pictures of ``source`` with ``model`` and write the index into the folder ``out``; None keeps it in memory alone.

    ``model``: a run's folder, a model folder, or a model that carries its vocabulary. ``source``: a file of regions, or a dataset
    folder, of which all splits are taken or ``split`` alone; for a model of pixels also a folder of pictures. ``kind``: "torch"
    (which "auto" takes), "flat", "hnsw" or "ivfpq"; ``vectors`` are more fields of VectorSettings. ``shortlist``: for SCAN and CAMP
    "words", "mean" or the folder of an embedding model. ``images``: the folder of the picture files, where ``source`` does not say.
    """
    start = time.monotonic()
    settings = VectorSettings.checked("torch" if kind == "auto" else kind, **vectors)
    if settings.kind != "torch":
        load_faiss()
    folder = None
    if not isinstance(model, MatchingModel):
        folder = one_folder(model)
        model = load_model(folder)[0]
    vocabulary = _vocabulary(model, folder)
    gallery = Gallery(source, split, images, model.pixels)
    check_fits(model, gallery)
    lists = plan(model, gallery, shortlist)
    settings, notes = _trainable(settings, lists, gallery)
    fill(lists, model, gallery, settings, device, batch_size, progress)
    index = SearchIndex(model, vocabulary, gallery, lists, settings, device, folder, notes)
    if out is not None:
        index.save(out)
    index.seconds = time.monotonic() - start
    return index


def _vocabulary(model: MatchingModel, where: str | Path | None) -> Vocabulary | WordPieces:
    found = model.vocabulary if model.vocabulary is not None else vocabulary_for(getattr(model, "models", [model])[0].config)
    if found is None:
        raise InputError(f"{where or 'the model'} has no {VOCABULARY}, so queries cannot be read: save the model with its vocabulary")
    return found


def _trainable(settings: VectorSettings, lists: list[Shortlist], gallery: Gallery) -> tuple[VectorSettings, tuple[str, ...]]:
    """``settings``, or exact ones and a line that says so where there is too little to learn an ivfpq index from."""
    if settings.kind != "ivfpq":
        return settings, ()
    count, needed = min(each.count(gallery) for each in lists), least_to_train(settings)
    if count >= needed:
        return settings, ()
    return VectorSettings(kind="flat"), (f"an ivfpq index learns from {needed:,} vectors at least and there are {count:,}: kind flat, which is "
                                         "exact, is used",)


class SearchIndex:
    """What :func:`build_index` made, or :meth:`open` read: ask it with :meth:`query`.

    ``shortlists``: one, or one a member of an ensemble. ``notes``: lines for the user. ``seconds``: what building took.
    """

    def __init__(self, model: MatchingModel, vocabulary: Vocabulary | WordPieces, gallery: Gallery, shortlists: list[Shortlist],
                 settings: VectorSettings, device: torch.device | str | None = None, model_folder: str | Path | None = None,
                 notes: tuple[str, ...] = ()):
        self.model, self.vocabulary, self.gallery, self.shortlists = model.eval(), vocabulary, gallery, shortlists
        self.settings, self.device, self.model_folder, self.notes = settings, device, model_folder, tuple(notes)
        self.folder: Path | None = None
        self.seconds = 0.0
        if device is not None:
            model.to(device)

    def __len__(self) -> int:
        return len(self.gallery)

    def __repr__(self) -> str:
        return f"SearchIndex of {len(self):,} pictures, {self.model.name}, {self.shortlist}, {self.settings.kind}"

    @property
    def shortlist(self) -> str:
        """How candidates are found: "embedding", "mean", "words", or the other model's name; several of an ensemble."""
        return ", ".join(dict.fromkeys(each.how if each.folder is None else each.model.name for each in self.shortlists))

    # --- asking ---

    def query(self, text: str | None = None, image: str | Path | None = None, top: int = 10, candidates: int = 100,
              explain: bool = True) -> Result:
        """The ``top`` pictures for a caption, or those nearest to the picture file ``image``.

        ``candidates``: how many the model itself scores; as many as there are pictures give the whole ranking. ``explain``: with
        the regions it attends to.
        """
        if (text is None) == (image is None):
            raise InputError("ask with words or with a picture, one of the two")
        if image is not None:
            return search_picture(self, image, top, candidates, explain)
        return search_texts(self, [text], top, candidates, explain)[0]

    def query_many(self, texts: list[str], top: int = 10, candidates: int = 100, explain: bool = False) -> list[Result]:
        """:meth:`query` of each of ``texts``, together."""
        return search_texts(self, texts, top, candidates, explain)

    # --- what queries need ---

    @property
    def keeps_encodings(self) -> bool:
        """Whether the vectors are all that the model's scores need."""
        return all(each.how == "embedding" and each.folder is None for each in self.shortlists)

    @property
    def picture_bytes(self) -> int:
        """Bytes of one encoded picture whose fragments the scores need, about."""
        regions = 1 if self.gallery.pixels else int(self.gallery.num_regions.max())
        return 4 * regions * max(getattr(each.model.config, "embed_dim", 1024) for each in self.shortlists)

    def candidate_images(self, rows: Tensor) -> Encoding:
        """The Encoding of pictures ``rows``: from the vectors where they hold all of it, else read and encoded."""
        if not self.keeps_encodings:
            return encode_images(self.model, self.gallery, device=self.device, rows=rows.tolist())
        parts = tuple(each.embeddings(rows) for each in self.shortlists)
        return Encoding(members=parts) if isinstance(self.model, Ensemble) else parts[0]

    @cached_property
    def other_vocabulary(self) -> Vocabulary | WordPieces:
        """The words of the other model that finds candidates."""
        return _vocabulary(self.shortlists[0].model, self.shortlists[0].folder)

    @cached_property
    def backbone(self) -> Any:
        """What makes regions of a picture as those of the indexed ones were made."""
        from itm_lib.features.backbones import open_backbone, reopen_backbone  # transformers takes seconds to import

        if self.gallery.attrs.get("extractor") == "region_encoder":
            return open_backbone("region-encoder", device=self.device)
        return reopen_backbone(self.gallery.attrs, device=self.device)

    def read_picture(self, picture: Image.Image) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
        """A picture as the model reads it: regions (1, R, D) and their mask, or pixels (1, 3, H, W) and None; and notes."""
        if self.gallery.pixels is not None:
            square = torch.frombuffer(bytearray(cut(picture, self.gallery.pixels.size).tobytes()), dtype=torch.uint8)
            return square.view(1, self.gallery.pixels.size, -1, 3).permute(0, 3, 1, 2).float() / 255, None, ()
        from itm_lib.features.extract import extract_picture

        found = torch.from_numpy(extract_picture(self.backbone, picture).features)
        if found.shape[1] != self.gallery.dim:
            raise InputError(f"the regions of this picture have {found.shape[1]} numbers, those of the index {self.gallery.dim}: "
                             "extract the indexed pictures with a backbone, itm extract")
        notes = ()
        if self.gallery.attrs.get("extractor") == "region_encoder":
            notes = ("the indexed regions lie where the scenes' objects are; those of this picture were searched for in windows",)
        return found.half().float()[None], torch.ones(1, len(found), dtype=torch.bool), notes  # a file keeps halves

    # --- the folder ---

    def save(self, folder: str | Path) -> None:
        """Write the index into ``folder``. An index that is there is replaced when the new one is whole."""
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file: give a folder for the index")
        folder.mkdir(parents=True, exist_ok=True)
        with held(folder / LOCK, f"another process writes the index {folder}: wait for it, or give another folder"):
            try:
                self._write(folder)
            except (OSError, SafetensorError) as error:
                raise InputError(f"{folder} cannot be written ({one_line(error)}): make room, and index again") from None
        self.folder = folder

    def _write(self, folder: Path) -> None:
        if self.model_folder is None:
            self.model.save_pretrained(folder / MODEL, self.vocabulary)
            self.model_folder = folder / MODEL
        content = self._description(folder)
        tag = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        content["files"] = {"vectors": f"vectors-{tag}.safetensors", "found": []}
        tensors = {}
        for number, each in enumerate(self.shortlists):
            tensors |= {f"vectors.{number}": each.pictures.vectors.contiguous(), f"starts.{number}": each.pictures.starts}
            if self.settings.kind in ON_DISK:
                content["files"]["found"].append(f"found-{tag}-{number}.faiss")
                with replace_atomically(folder / content["files"]["found"][-1]) as part:
                    each.pictures.found.save(part)
        with replace_atomically(folder / content["files"]["vectors"]) as part:
            save_file(tensors, part)
        write_json(folder / INDEX, content)
        for path in folder.iterdir():  # of the index before, and of builds that were killed
            if OURS.fullmatch(path.name) and path.name not in {content["files"]["vectors"], *content["files"]["found"]}:
                path.unlink()

    def _description(self, folder: Path) -> dict[str, Any]:
        where = lambda path: {"path": str(path), "relative": _relative(path, folder)}  # noqa: E731
        return {
            "format": FORMAT, "pictures": len(self), "method": self.model.name, "settings": self.settings.model_dump(),
            "model": {**where(self.model_folder), "fingerprint": model_fingerprint(self.model_folder)},
            "source": {**where(self.gallery.source), "split": self.gallery.split, "fingerprint": self.gallery.fingerprint},
            "images": None if self.gallery.given_images is None else where(self.gallery.given_images),
            "shortlists": [{"how": each.how, "sets": each.sets, "other": None if each.folder is None else {
                **where(each.folder), "fingerprint": model_fingerprint(each.folder)}} for each in self.shortlists],
            "notes": list(self.notes),
        }

    @classmethod
    def open(cls, folder: str | Path, model: str | Path | None = None, source: str | Path | None = None,
             images: str | Path | None = None, device: torch.device | str | None = None) -> SearchIndex:
        """The index in ``folder``. ``model``, ``source`` and ``images`` say where those are, if they were moved.

        Raises :class:`InputError` where the model or the pictures are no longer those that were indexed.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no index: make one first, itm search index MODEL DATA --out {folder}")
        content = read_json(folder / INDEX)
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InputError(f"{folder / INDEX} is not of this version of itm_lib: index again")
        model_folder = _found(content["model"], folder, "model", model)
        searching = _same_model(model_folder, content["model"]["fingerprint"])
        pictures = None if content["images"] is None else _found(content["images"], folder, "folder of pictures", images)
        gallery = Gallery(_found(content["source"], folder, "source", source), content["source"]["split"],
                          images if images is not None else pictures, searching.pixels)
        if gallery.fingerprint != content["source"]["fingerprint"]:
            raise InputError(f"{gallery.source} is not what the index {folder} was made of: its pictures or regions changed, index again")
        settings = VectorSettings(**content["settings"])
        index = cls(searching, _vocabulary(searching, model_folder), gallery, _read_lists(folder, content, searching, settings),
                    settings, device, model_folder, tuple(content["notes"]))
        index.folder = folder
        return index


def _read_lists(folder: Path, content: dict[str, Any], model: MatchingModel, settings: VectorSettings) -> list[Shortlist]:
    path = folder / content["files"]["vectors"]
    try:
        tensors = load_file(path)  # mapped, not read
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({one_line(error)}): it is missing, damaged or cut short, index again") from None
    members = list(getattr(model, "models", [model]))
    lists = []
    for number, each in enumerate(content["shortlists"]):
        vectors, starts = tensors[f"vectors.{number}"], tensors[f"starts.{number}"]
        if settings.kind in ON_DISK:
            found = FaissVectors.load(folder / content["files"]["found"][number], settings, vectors.shape[1], len(vectors))
        else:
            found = make_vectors(vectors, settings)
        other = each["other"]
        where = None if other is None else _found(other, folder, "model", None)
        own = members[number] if other is None else _same_model(where, other["fingerprint"])
        lists.append(Shortlist(each["how"], own, None if other is None else str(where), PictureVectors(vectors, starts, found), each["sets"]))
    return lists


def _relative(path: str | Path, folder: Path) -> str | None:
    """``path`` as seen from ``folder``: the two may be moved together. None for a name on the Hub."""
    return None if str(path).startswith("hf://") else os.path.relpath(Path(path).resolve(), folder.resolve())


def _found(entry: dict[str, Any], folder: Path, what: str, given: str | Path | None) -> str | Path:
    """Where ``entry`` of an index in ``folder`` is now."""
    if given is not None:
        return one_folder(given) if what == "model" else given
    if entry["relative"] is None:
        return entry["path"]
    for path in (folder / entry["relative"], Path(entry["path"])):
        if path.exists():
            return path.resolve()
    raise InputError(f"the {what} {entry['path']} of the index {folder} is not there any more: put it back, or index again")


def _same_model(folder: str | Path, fingerprint: str) -> MatchingModel:
    if model_fingerprint(folder) != fingerprint:
        raise InputError(f"{folder} is not the model that the index was made by: it was trained again or replaced, index again")
    return load_model(folder)[0]


def model_fingerprint(folder: str | Path) -> str:
    """A hash of a model folder's settings, weights and words; of all members' where it is an ensemble."""
    folder = resolve_folder(folder)
    method, values = read_config(folder)
    digest = hashlib.sha256(json.dumps([method, values], sort_keys=True).encode())
    if method == Ensemble.name:
        for number in range(values["members"]):
            digest.update(model_fingerprint(folder / str(number)).encode())
        return digest.hexdigest()[:16]
    for name in (WEIGHTS, VOCABULARY):
        if (folder / name).is_file():
            with open(folder / name, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
