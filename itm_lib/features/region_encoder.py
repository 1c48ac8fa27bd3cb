"""Region features: a small CNN that learned to name the object and the colour in crops of pictures.

Bottom-up attention (Anderson et al., CVPR 2018) trains a detector on the objects and attributes of Visual Genome and
hands its pooled region features to the matching models. Here the same idea fits a laptop: :class:`RegionEncoder` is
trained on crops of scenes that belong to no dataset split, and its 128-d hidden layer, with the geometry of the box,
is what the models see of a picture. Taught in notebooks/01_feature_extraction.

Letters: B pictures or crops, R regions a picture, S = 32 pixels a crop's side, D = 128 + 6.
Boxes are x0 y0 x1 y1 in [0, 1] of the picture's width and height.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from itm_lib.data import scenes
from itm_lib.data.regions import RegionStore, RegionWriter
from itm_lib.data.scene_pictures import choose, shuffled
from itm_lib.features.pretrained import fingerprint
from itm_lib.files import InputError, replace_atomically

NUM_REGIONS = 12
CROP_PIXELS = 32
FEATURE_DIM = 128
GEOMETRY_DIM = 6
WEIGHTS = Path(__file__).resolve().parent.parent / "assets" / "region_encoder.safetensors"
IGNORE = -1  # a label that no loss and no accuracy counts: a box that shows neither one object nor plain background


# ------------------------------------------------------------------------------------------------ boxes

def box_geometry(boxes: np.ndarray) -> np.ndarray:
    """(..., 4) boxes to (..., 6): centre x, centre y, width, height, area, log(width / height); float32."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(boxes, dtype=np.float32), -1, 0)
    width, height = x1 - x0, y1 - y0
    return np.stack([(x0 + x1) / 2, (y0 + y1) / 2, width, height, width * height, np.log(width / height)], axis=-1)


def overlap(boxes: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of every box (n, 4) with every other (m, 4): intersection over union, and the share of ``boxes`` covered; (n, m)."""
    boxes, others = np.asarray(boxes, dtype=np.float32)[:, None], np.asarray(others, dtype=np.float32)[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    shared = np.prod(np.clip(sides, 0, None), axis=-1)
    area, other_area = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1), np.prod(others[..., 2:] - others[..., :2], axis=-1)
    return shared / (area + other_area - shared), shared / area


def propose_regions(scene: scenes.Scene, rng: random.Random, num_regions: int = NUM_REGIONS) -> np.ndarray:
    """(num_regions, 4) float32 boxes in random order: what an imperfect detector would propose for ``scene``.

    Every object once, each edge moved by up to 10 % of the box's side; then distractors, by turns a part of an object
    and a piece of background. A scene with more objects than ``num_regions`` keeps its first ones.
    """
    objects = [scene_object.box for scene_object in scene.objects][:num_regions]
    boxes = [_jittered(box, rng) for box in objects]
    for number in range(num_regions - len(boxes)):
        boxes.append(_part(choose(rng, objects), rng) if objects and number % 2 else _background_box(objects, rng))
    return np.array(shuffled(rng, boxes), dtype=np.float32)


def _uniform(rng: random.Random, low: float, high: float) -> float:
    return low + (high - low) * rng.random()  # random() alone has a sequence that Python guarantees


def _jittered(box: Sequence[float], rng: random.Random, share: float = 0.1) -> tuple[float, ...]:
    width, height = box[2] - box[0], box[3] - box[1]
    return tuple(min(1.0, max(0.0, edge + _uniform(rng, -share, share) * side))
                 for edge, side in zip(box, (width, height, width, height)))


def _part(box: Sequence[float], rng: random.Random) -> tuple[float, ...]:
    """A piece of ``box`` with 45 to 75 % of its width and of its height."""
    width, height = (_uniform(rng, 0.45, 0.75) * (box[2] - box[0]), _uniform(rng, 0.45, 0.75) * (box[3] - box[1]))
    x0, y0 = _uniform(rng, box[0], box[2] - width), _uniform(rng, box[1], box[3] - height)
    return max(0.0, x0), max(0.0, y0), min(1.0, x0 + width), min(1.0, y0 + height)


def _background_box(objects: Sequence[Sequence[float]], rng: random.Random, tries: int = 24) -> tuple[float, ...]:
    """A box that objects cover little: the first below 5 % of ``tries`` ever smaller ones, else the least covered."""
    best, best_cover = None, np.inf
    for number in range(tries):
        largest = 0.35 - 0.2 * number / tries
        width, height = _uniform(rng, 0.12, largest), _uniform(rng, 0.12, largest)
        x0, y0 = _uniform(rng, 0, 1 - width), _uniform(rng, 0, 1 - height)
        box = (x0, y0, x0 + width, y0 + height)
        cover = float(overlap([box], objects)[1].max()) if objects else 0.0
        if cover < best_cover:
            best, best_cover = box, cover
        if cover < 0.05:
            break
    return best


# ------------------------------------------------------------------------------------------------ labels

def object_labels() -> tuple[str, ...]:
    """The object classes: every noun of the drawings, then every kind of background (as Visual Genome has "grass")."""
    return (*scenes.NOUNS, *(f"{name} (background)" for name in scenes.BACKGROUNDS))


def colour_labels() -> tuple[str, ...]:
    """The colour classes; the first is "own": the drawing's own colours."""
    return ("own", *scenes.COLOURS)


def label_regions(scene: scenes.Scene, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Object and colour labels (R,) of ``boxes``, as numbers of the two label lists; IGNORE where there is none.

    A box with IoU of at least 0.4 with an object carries that object's labels; one that objects cover by less than
    5 % is background; anything between is IGNORE. Background has no colour.
    """
    object_number = {name: number for number, name in enumerate(object_labels())}
    colour_number = {name: number for number, name in enumerate(colour_labels())}
    background = object_number[f"{scene.background} (background)"]
    iou, cover = overlap(boxes, [scene_object.box for scene_object in scene.objects])
    objects, colours = np.full(len(boxes), IGNORE), np.full(len(boxes), IGNORE)
    objects[cover.max(1) < 0.05] = background
    for row in np.flatnonzero(iou.max(1) >= 0.4):
        shown = scene.objects[int(iou[row].argmax())]
        objects[row], colours[row] = object_number[shown.noun], colour_number[shown.colour or "own"]
    return objects, colours


# ------------------------------------------------------------------------------------------------ the encoder

def crop_regions(pictures: np.ndarray, boxes: np.ndarray, pixels: int = CROP_PIXELS) -> Tensor:
    """uint8 pictures (B, H, W, 3) and boxes (B, R, 4) to crops (B, R, 3, S, S), float32 in [0, 1].

    Bilinear, with four samples a pixel averaged, so that large boxes shrink without jagged edges.
    """
    images = torch.tensor(np.asarray(pictures)).permute(0, 3, 1, 2).float() / 255
    boxes = torch.as_tensor(np.asarray(boxes, dtype=np.float32))
    count, regions = boxes.shape[:2]
    steps = (torch.arange(2 * pixels) + 0.5) / (2 * pixels)
    x = boxes[..., 0:1] + steps * (boxes[..., 2:3] - boxes[..., 0:1])  # (B, R, 2S)
    y = boxes[..., 1:2] + steps * (boxes[..., 3:4] - boxes[..., 1:2])
    grid = torch.stack([x[:, :, None, :].expand(-1, -1, 2 * pixels, -1), y[:, :, :, None].expand(-1, -1, -1, 2 * pixels)], -1)
    grid = grid.reshape(count, regions * 2 * pixels, 2 * pixels, 2) * 2 - 1
    samples = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    crops = F.avg_pool2d(samples, 2)  # (B, 3, R * S, S)
    return crops.reshape(count, 3, regions, pixels, pixels).transpose(1, 2)


class RegionOutput(NamedTuple):
    """``features`` (n, 128), ``objects`` (n, number of object labels) and ``colours`` (n, number of colours): logits."""

    features: Tensor
    objects: Tensor
    colours: Tensor


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class RegionEncoder(nn.Module):
    """Crops (n, 3, 32, 32) in [0, 1] to features and logits. The features are layer-normalised: mean 0, variance 1.

    ``objects`` and ``colours`` are the label lists, in the order of the logits.
    """

    def __init__(self, objects: Sequence[str], colours: Sequence[str]):
        super().__init__()
        self.object_names, self.colour_names = tuple(objects), tuple(colours)
        self.trunk = nn.Sequential(             # (n, 3, 32, 32)
            _convolution(3, 32, 5, stride=2),   # (n, 32, 16, 16)
            _convolution(32, 64, stride=2),     # (n, 64, 8, 8)
            _convolution(64, 128, stride=2),    # (n, 128, 4, 4)
            _convolution(128, 96),              # (n, 96, 4, 4)
        )
        self.project = nn.Sequential(nn.Flatten(), nn.Linear(96 * 16, FEATURE_DIM), nn.LayerNorm(FEATURE_DIM))
        self.object_head = nn.Linear(FEATURE_DIM, len(self.object_names))
        self.colour_head = nn.Linear(FEATURE_DIM, len(self.colour_names))

    def forward(self, crops: Tensor) -> RegionOutput:
        """Crops (n, 3, 32, 32) in [0, 1] to a :class:`RegionOutput`."""
        features = self.project(self.trunk(crops * 2 - 1))
        return RegionOutput(features, self.object_head(features), self.colour_head(features))

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits of a hash of all weights: which encoder made these features."""
        return fingerprint(self)


def save_region_encoder(encoder: RegionEncoder, path: str | Path, **facts: Any) -> None:
    """Write the weights as safetensors, atomically; label lists and ``facts`` (JSON values) go into the metadata."""
    names = {"objects": list(encoder.object_names), "colours": list(encoder.colour_names)}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in {**names, **facts}.items()}
    state = {name: value.detach().cpu().contiguous() for name, value in encoder.state_dict().items()}
    with replace_atomically(path) as part:
        save_file(state, part, metadata)


def load_region_encoder(path: str | Path = WEIGHTS) -> RegionEncoder:
    """The encoder in ``path`` (default: the shipped weights), in eval mode, on the CPU.

    Raises :class:`InputError` if the file is missing or cut short, or was trained on other nouns or colours than
    the table of drawings has now.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no region encoder {path}: check the path, or train one with train_region_encoder(out=...)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read as safetensors, perhaps cut short ({error}); train or fetch it again") from None
    if "objects" not in metadata or "colours" not in metadata:
        raise InputError(f"{path} is no region encoder, it names no labels: train one with train_region_encoder(out=...)")
    for kind, current in (("objects", object_labels()), ("colours", colour_labels())):
        stored = tuple(json.loads(metadata[kind]))
        if stored != current:
            raise InputError(f"{path} was trained on other {kind} than the table has now ({_difference(stored, current)}); "
                             "train it again with train_region_encoder(out=...)")
    encoder = RegionEncoder(object_labels(), colour_labels())
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} holds weights of another network ({str(error).splitlines()[1].strip()[:80]}); "
                         "train it again with train_region_encoder(out=...)") from None
    return encoder.eval()


def _difference(stored: Sequence[str], current: Sequence[str]) -> str:
    gone, new = sorted(set(stored) - set(current)), sorted(set(current) - set(stored))
    if not gone and not new:
        return "another order"
    return ", ".join([f"{len(stored)} then, {len(current)} now", *(f"-{n}" for n in gone[:2]), *(f"+{n}" for n in new[:2])])


# ------------------------------------------------------------------------------------------------ training

@dataclass(frozen=True)
class EncoderTraining:
    """Settings of the encoder's training; the defaults are those of the shipped weights.

    ``num_crops`` labelled crops are drawn from scenes of their own, ``held_out`` more measure the result.
    """

    num_crops: int = 40_000
    epochs: int = 6
    seed: int = 0
    held_out: int = 2_000
    batch_size: int = 128
    lr: float = 4e-3
    weight_decay: float = 0.05
    colour_weight: float = 0.5
    label_smoothing: float = 0.1


class LabelledCrops(NamedTuple):
    """``crops`` uint8 (n, 3, 32, 32), ``objects`` and ``colours`` int64 (n,): numbers of the label lists or IGNORE."""

    crops: Tensor
    objects: Tensor
    colours: Tensor


def draw_crops(count: int, seed: int, stream: str = "train", progress: bool = False) -> LabelledCrops:
    """``count`` labelled crops of freshly drawn scenes, about six in ten of them objects; the nouns are those of both variants.

    The scenes come from a random stream of their own, named ``stream`` and ``seed``: no dataset's split draws from it.
    """
    labelled = _labelled_crops(seed, stream)
    crops = torch.empty(count, 3, CROP_PIXELS, CROP_PIXELS, dtype=torch.uint8)
    objects, colours = torch.empty(count, dtype=torch.int64), torch.empty(count, dtype=torch.int64)
    for row in tqdm(range(count), desc=f"drawing {stream} crops", disable=not progress, unit="crop"):
        crops[row], objects[row], colours[row] = next(labelled)
    return LabelledCrops(crops, objects, colours)


def _labelled_crops(seed: int, stream: str) -> Iterator[tuple[Tensor, int, int]]:
    number = 0
    while True:
        rng = random.Random(f"region encoder {stream} {seed} {number}")  # text seeds are the same on every system
        scene = scenes.sample_scene(rng, f"{stream}{number}")
        boxes = propose_regions(scene, rng, len(scene.objects) + 3)
        objects, colours = label_regions(scene, boxes)
        crops = crop_regions(scenes.render(scene)[None], boxes[None])[0]
        for row in np.flatnonzero(objects != IGNORE):
            yield (crops[row] * 255).round().byte(), int(objects[row]), int(colours[row])
        number += 1


@torch.no_grad()
def measure_encoder(encoder: RegionEncoder, labelled: LabelledCrops, batch_size: int = 256) -> dict[str, float]:
    """Accuracies in percent: ``object`` (crops of objects), ``background`` (of background), ``colour`` (recoloured objects)."""
    encoder.eval()
    device = encoder.object_head.weight.device
    outputs = [encoder(part.to(device).float() / 255) for part in labelled.crops.split(batch_size)]
    objects = torch.cat([output.objects for output in outputs]).argmax(1).cpu() == labelled.objects
    colours = torch.cat([output.colours for output in outputs]).argmax(1).cpu() == labelled.colours
    is_background = labelled.objects >= len(encoder.object_names) - len(scenes.BACKGROUNDS)
    kinds = {"object": objects[~is_background], "background": objects[is_background], "colour": colours[labelled.colours > 0]}
    return {kind: 100 * float(right.float().mean()) for kind, right in kinds.items()}


def train_region_encoder(num_crops: int = EncoderTraining.num_crops, epochs: int = EncoderTraining.epochs, seed: int = 0,
                         out: str | Path | None = None, progress: bool = True, settings: EncoderTraining | None = None,
                         on_epoch: Callable[[dict[str, float]], None] | None = None,
                         ) -> tuple[RegionEncoder, list[dict[str, float]]]:
    """Train an encoder; returns it (eval mode, CPU) and one row an epoch: epoch, loss, held-out accuracies, seconds.

    ``on_epoch`` sees each row as it is made. ``out`` saves the weights there. ``settings`` gives the other settings;
    ``num_crops``, ``epochs`` and ``seed`` win over it. The same seed gives the same weights on the same machine with the
    same number of threads.
    """
    settings = replace(settings or EncoderTraining(), num_crops=num_crops, epochs=epochs, seed=seed)
    if num_crops < settings.batch_size or epochs < 1:
        raise InputError(f"num_crops is {num_crops}, epochs is {epochs}: need at least {settings.batch_size} crops and 1 epoch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train = draw_crops(num_crops, seed, "train", progress)
    held_out = draw_crops(settings.held_out, seed, "held-out", progress)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = RegionEncoder(object_labels(), colour_labels()).to(device)
    history = []
    for row in _epochs(encoder, train, settings, progress):
        history.append({**row, **measure_encoder(encoder, held_out)})
        if on_epoch is not None:
            on_epoch(history[-1])
    encoder = encoder.cpu().eval()
    if out is not None:
        save_region_encoder(encoder, out, settings=asdict(settings), held_out=history[-1])
    return encoder, history


def _epochs(encoder: RegionEncoder, train: LabelledCrops, settings: EncoderTraining, progress: bool) -> Iterator[dict[str, float]]:
    """Train epoch by epoch with AdamW and a one-cycle rate; yields epoch, mean loss and seconds."""
    device = encoder.object_head.weight.device
    steps = len(train.crops) // settings.batch_size
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=steps * settings.epochs)
    shuffle = torch.Generator().manual_seed(settings.seed)
    for epoch in range(settings.epochs):
        start, total = time.perf_counter(), 0.0
        encoder.train()
        order = torch.randperm(len(train.crops), generator=shuffle)[: steps * settings.batch_size]
        for rows in tqdm(order.view(steps, -1), desc=f"epoch {epoch + 1}", disable=not progress, leave=False):
            crops, objects, colours = (part[rows].to(device) for part in train)
            output = encoder(crops.float() / 255)
            loss = F.cross_entropy(output.objects, objects, label_smoothing=settings.label_smoothing)
            loss = loss + settings.colour_weight * F.cross_entropy(output.colours, colours, ignore_index=IGNORE)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        yield {"epoch": epoch + 1, "loss": total / steps, "seconds": time.perf_counter() - start}


# ------------------------------------------------------------------------------------------------ extraction

class RegionExtractor(Protocol):
    """What turns a picture and its boxes into region features; the seam for other backbones.

    ``name`` and ``settings`` (text and numbers) become attributes of the region file; ``dim`` is D.
    """

    name: str
    dim: int
    settings: dict[str, Any]

    def __call__(self, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """Picture uint8 (H, W, 3) and boxes (R, 4) to float32 (R, dim)."""


@torch.no_grad()
def region_features(encoder: RegionEncoder, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Picture uint8 (H, W, 3) and boxes (R, 4) to float32 (R, 134): the encoder's 128 features, then the box geometry."""
    boxes = np.asarray(boxes, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not len(boxes):
        raise InputError(f"boxes have shape {boxes.shape}: need (R, 4) with at least one box, x0 y0 x1 y1")
    if not (np.isfinite(boxes).all() and boxes.min() >= 0 and boxes.max() <= 1 and (boxes[:, 2:] > boxes[:, :2]).all()):
        raise InputError("a box is not x0 < x1, y0 < y1 within [0, 1]: divide pixel positions by the picture's width and height")
    features = encoder(crop_regions(picture[None], boxes[None])[0]).features.numpy()
    return np.concatenate([features, box_geometry(boxes)], axis=1)


class CourseExtractor:
    """:class:`RegionExtractor` of the course: the region CNN and the box geometry."""

    name = "region_encoder"
    dim = FEATURE_DIM + GEOMETRY_DIM

    def __init__(self, encoder: RegionEncoder | None = None):
        self.encoder = (encoder or load_region_encoder()).eval()
        self.settings = {"weights": self.encoder.fingerprint(), "crop_pixels": CROP_PIXELS}

    def __call__(self, picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        return region_features(self.encoder, picture, boxes)


def extract_scenes(folder: str | Path, encoder: RegionEncoder | RegionExtractor | None = None, progress: bool = True,
                   seed: int = 0, num_regions: int = NUM_REGIONS) -> None:
    """Write regions/<split>.h5 and regions/foils_<split>.h5 of an OpenMoji Scenes folder, features in float16.

    ``encoder``: a RegionEncoder, any :class:`RegionExtractor`, or None for the shipped weights. The boxes of a picture
    depend on its image id and ``seed`` alone. A file that the same extractor wrote with the same settings is kept.
    """
    folder = scenes.SceneFolder(folder)
    extractor = CourseExtractor(encoder) if encoder is None or isinstance(encoder, RegionEncoder) else encoder
    settings = {**extractor.settings, "num_regions": num_regions, "seed": seed}
    for name in (*scenes.SPLITS, *(f"foils_{split}" for split in scenes.FOIL_SPLITS)):
        path, image_ids = folder.folder / "regions" / f"{name}.h5", folder.image_ids(name)
        if _is_current(path, image_ids, {**settings, "extractor": extractor.name}):
            continue
        with RegionWriter(path, image_ids, num_regions, extractor.dim, extractor.name, **settings) as writer:
            for row, image_id in enumerate(tqdm(image_ids, desc=f"regions of {name}", disable=not progress, unit="picture")):
                boxes = propose_regions(folder.scene(image_id), random.Random(f"regions {seed} {image_id}"), num_regions)
                writer.write(row, extractor(np.asarray(folder.picture(image_id)), boxes), boxes)


def _is_current(path: Path, image_ids: Sequence[str], attributes: dict[str, Any]) -> bool:
    """Whether ``path`` is a region file of just these pictures, made with just these attributes."""
    try:
        store = RegionStore(path)
    except InputError:  # missing or damaged: write it again
        return False
    return store.image_ids == list(image_ids) and store.attrs == attributes
