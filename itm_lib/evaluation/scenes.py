"""What only the embedded dataset can ask, because its generator knows what is true: foils and pointing.

A foil differs from what is true in one thing, an object, an attribute or a relation. It shows whether a score rests on
that thing or on the rest of the picture. Pointing asks whether the region that a word attends to most is the object
that the word names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from itm_lib.data.dataset import ImageCaptionDataset, open_images
from itm_lib.data.pictures import PictureStore
from itm_lib.data.regions import RegionStore
from itm_lib.data.scene_pictures import Scene
from itm_lib.evaluation.scoring import encode_images, encode_tokens, evaluating, open_for, pair_scores, paired_blocks
from itm_lib.files import InputError, read_jsonl
from itm_lib.models.base import Encoding, MatchingModel

KINDS = ("object", "attribute", "relation")
SIDES = ("caption", "picture")


def foil_accuracy(model: MatchingModel, folder: str | Path, split: str = "test", batch_size: int = 256,
                  device: torch.device | str | None = None) -> dict[str, float]:
    """How often the true pair scores above the pair with one thing changed, in percent; chance is 50, a tie is wrong.

    Reads foils/<split>.jsonl and regions/foils_<split>.h5, or the pictures in images/. Side "caption": S(image, caption) > S(image, foil caption).
    Side "picture": S(image, caption) > S(foil picture, caption). Keys: foil_<kind>_<side>, foil_<kind> (the mean of its
    sides) and foil_mean (the mean of the kinds). Only the pairs asked about are scored.
    """
    folder = Path(folder)
    rows = _read_foils(folder / "foils" / f"{split}.jsonl")
    dataset = open_for(model, folder, split)
    images = encode_images(model, dataset, batch_size, device)
    pictures = dataset.regions
    if any(row["side"] == "picture" for row in rows):
        shown = list(dict.fromkeys(row["foil_image_id"] for row in rows if row["side"] == "picture"))
        foils = open_images(folder, f"foils_{split}", shown, model.pixels)
        images = Encoding.cat([images, encode_images(model, _pictures_of(foils, dataset), batch_size, device)])
    texts = list(dict.fromkeys(text for row in rows for text in (row["caption"], row.get("foil_caption")) if text))
    column = {text: number for number, text in enumerate(texts)}
    captions = encode_tokens(model, [dataset.vocabulary.encode(text) for text in texts], batch_size, device)
    true, false = [], []
    for row in rows:
        image, caption = pictures.row(row["image_id"]), column[row["caption"]]
        true.append((image, caption))
        if row["side"] == "caption":
            false.append((image, column[row["foil_caption"]]))
        else:
            false.append((len(pictures) + foils.row(row["foil_image_id"]), caption))
    scores = pair_scores(model, images, captions, *map(list, zip(*(true + false))), device=device)
    if not torch.isfinite(scores).all():
        raise InputError(f"{int((~torch.isfinite(scores)).sum())} scores of foils are NaN or infinite: look into the model")
    return _summary(rows, (scores[: len(rows)] > scores[len(rows) :]).numpy())


def _read_foils(path: Path) -> list[dict]:
    rows = read_jsonl(path)
    if not rows:
        raise InputError(f"{path} lists no foils; build the dataset again")
    for number, row in enumerate(rows, 1):
        side = row.get("side")
        needed = ["kind", "side", "image_id", "caption", "foil_caption" if side == "caption" else "foil_image_id"]
        lacking = [key for key in needed if not row.get(key)]
        if lacking or side not in SIDES or row["kind"] not in KINDS:
            why = f"lacks {', '.join(lacking)}" if lacking else f"has the kind {row['kind']!r} and the side {side!r}"
            raise InputError(f"{path} line {number} {why}; build the dataset again")
    return rows


def _pictures_of(store: RegionStore | PictureStore, dataset: ImageCaptionDataset) -> ImageCaptionDataset:
    """The pictures of ``store`` as a dataset, to be encoded; its one caption is never used."""
    return ImageCaptionDataset(store, dataset.texts[:1], [0], dataset.vocabulary, dataset.split, name=dataset.name)


def _summary(rows: Sequence[dict], right: np.ndarray) -> dict[str, float]:
    result: dict[str, float] = {}
    for kind in KINDS:
        sides = []
        for side in SIDES:
            chosen = np.array([row["kind"] == kind and row["side"] == side for row in rows])
            if chosen.any():
                sides.append(100.0 * float(right[chosen].mean()))
                result[f"foil_{kind}_{side}"] = sides[-1]
        if sides:
            result[f"foil_{kind}"] = float(np.mean(sides))
    result["foil_mean"] = float(np.mean([result[f"foil_{kind}"] for kind in KINDS if f"foil_{kind}" in result]))
    return result


def pointing_accuracy(model: MatchingModel, folder: str | Path, split: str = "test", batch_size: int = 256,
                      device: torch.device | str | None = None) -> dict[str, float]:
    """How often a noun's most attended region is the object it names, in percent, and what chance gives.

    For every mention of a caption, on the caption's own picture: the attention of the noun's last token over the
    regions, from ``model.explain``. A region counts if its box and one of the mentioned objects' boxes have an
    intersection over union of at least 0.5; where several regions share the highest attention all must count. The
    chance is the mean share of regions that count. Keys: pointing, pointing_chance; nothing if the model has
    no attention, or reads pixels and no regions. Mentions that no proposed region covers stay in, as misses.
    """
    if model.pixels is not None:
        return {}
    folder = Path(folder)
    dataset = open_for(model, folder, split)
    mentions = _mentions(read_jsonl(folder / "captions.jsonl"), dataset)
    if not mentions:
        return {}
    scenes = {row["image_id"]: Scene.from_json(row) for row in read_jsonl(folder / "scenes.jsonl")}
    columns = sorted(mentions)
    captions = encode_tokens(model, [dataset.tokens[column] for column in columns], batch_size, device)
    images = encode_images(model, dataset, batch_size, device)
    hits, chances = [], []
    image_rows = dataset.caption_to_image[columns].tolist()
    with evaluating(model, device) as where:
        for block in paired_blocks(captions, list(range(len(columns))), size=8):
            rows = [image_rows[pair] for pair in block]
            attention = model.explain(images.select(rows).to(where), captions.select(block).to(where)).get("attention")
            if attention is None:
                return {}
            attention = attention.diagonal(dim1=0, dim2=1).permute(2, 0, 1).float().cpu()  # (pairs, W, R)
            for pair, row, weights in zip(block, rows, attention):
                boxes = dataset.regions.boxes([row])[0][: dataset.regions.num_regions[row]]
                objects = scenes[dataset.regions.image_ids[row]].objects
                for token, named in mentions[columns[pair]]:
                    counts = _overlap(boxes, np.array([objects[index].box for index in named])).max(1) >= 0.5
                    hits.append(_all_tops_count(weights[token, : len(boxes)], counts))
                    chances.append(counts.mean())
    return {"pointing": 100.0 * float(np.mean(hits)), "pointing_chance": 100.0 * float(np.mean(chances))}


def _mentions(rows: Sequence[dict], dataset: ImageCaptionDataset) -> dict[int, list[tuple[int, list]]]:
    """{caption column: [(token, object indices), ...]}: the last token of each mention, a word or a piece of one."""
    column_of = {caption_id: column for column, caption_id in enumerate(dataset.caption_ids)}
    found: dict[int, list[tuple[int, list]]] = {}
    for row in rows:
        if row["split"] != dataset.split:
            continue
        column = column_of[row["caption_id"]]
        tokens = dataset.vocabulary.spans(dataset.texts[column])
        for mention in row.get("mentions") or []:
            inside = [number for number, (start, end) in enumerate(tokens)
                      if start < end and start < mention["end"] and end > mention["start"]]
            if not inside:
                raise InputError(f"caption {row['caption_id']}: no word at characters {mention['start']}-{mention['end']}; "
                                 "build the dataset again")
            found.setdefault(column, []).append((inside[-1], mention["objects"]))
    return found


def _all_tops_count(weights: Tensor, counts: np.ndarray) -> bool:
    return bool(counts[(weights == weights.max()).numpy()].all())


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union (R, O) of boxes (R, 4) and (O, 4), x0 y0 x1 y1."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    area = lambda each: np.clip(each[:, 2:] - each[:, :2], 0, None).prod(-1)
    return common / np.maximum(area(boxes)[:, None] + area(others)[None] - common, 1e-12)
