"""Pictures as pixels, for models that have an image backbone of their own: images/<image_id>.png or .jpg of a dataset folder.

In evaluation: the largest square in the middle of the picture, resized. In training: a square anywhere in it, whose side is the
picture's shorter side times a number drawn from ``crop`` to 1, resized, and mirrored every other time. VSE++ draws a share of the
area from 0.08 and an aspect, and resizes to 256 before it cuts 224 from the middle; VSE∞ draws a share of both sides from 0.6 and
squeezes the rectangle, and the whole picture in evaluation, into a square. Where pictures are square, ours is the one of VSE∞.

A mirrored picture makes "left of" false: ``flip`` is to be off for data whose captions say such things.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from itm_lib.files import InputError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class Pixels:
    """Pictures of ``size`` × ``size`` pixels; in training, squares of at least ``crop`` of the shorter side, mirrored or not."""

    size: int = 224
    crop: float = 0.6
    flip: bool = True


class PictureStore:
    """The pictures ``image_ids`` in ``folder``, row by row, as a RegionStore holds their regions. Each is read when asked for.

    A picture that is missing is told at once, a broken one when it is read (:class:`InputError`).
    """

    dim = None  # pixels have no number of features

    def __init__(self, folder: str | Path, image_ids: Sequence[str], pixels: Pixels):
        self.path, self.image_ids, self.pixels = Path(folder), list(image_ids), pixels
        if not self.path.is_dir():
            raise InputError(f"no folder of pictures {self.path}: a model of pixels needs images/<image_id>.png or .jpg")
        found = {path.stem: path for path in self.path.iterdir() if path.suffix.lower() in SUFFIXES}
        lacking = [image_id for image_id in self.image_ids if image_id not in found]
        if lacking:
            raise InputError(f"{self.path} lacks {len(lacking)} of {len(self.image_ids)} pictures, {lacking[0]}.png or .jpg among them: "
                             "put them there")
        self._files = [found[image_id] for image_id in self.image_ids]
        self._row = {image_id: row for row, image_id in enumerate(self.image_ids)}

    def __len__(self) -> int:
        return len(self.image_ids)

    def row(self, image_id: str) -> int:
        """The row of ``image_id``."""
        if image_id not in self._row:
            raise InputError(f"{self.path} has no image {image_id} of this split: captions and pictures are of different datasets")
        return self._row[image_id]

    def tensors(self, rows: Sequence[int], augment: tuple[int, int] | None = None) -> Tensor:
        """Pictures (n, 3, size, size) float32 of ``rows``, red, green and blue from 0 to 1; repeats allowed.

        ``augment``: seed and epoch, where they are for training. What is drawn depends on them and on the image's id alone.
        """
        return torch.stack([self._tensor(row, augment) for row in rows])

    def _tensor(self, row: int, augment: tuple[int, int] | None) -> Tensor:
        picture = self.picture(row)
        if augment is None:
            picture = cut(picture, self.pixels.size)
        else:
            picture = cut_at_random(picture, self.pixels, random.Random(f"{augment[0]}/{augment[1]}/{self.image_ids[row]}"))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255

    def picture(self, row: int) -> Image.Image:
        """The picture as RGB, the right way up."""
        path = self._files[row]
        try:
            with Image.open(path) as picture:
                return ImageOps.exif_transpose(picture).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # PNG's reader raises SyntaxError
            why = one_line(str(error).replace(str(path), "it"), 100)
            raise InputError(f"{path} cannot be read as a picture ({why}): it is damaged or cut short, fetch it again") from None


def cut(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized to ``size`` × ``size``."""
    side = min(picture.size)
    return _square(picture, (picture.width - side) // 2, (picture.height - side) // 2, side, size)


def cut_at_random(picture: Image.Image, pixels: Pixels, rng: random.Random) -> Image.Image:
    """A random square of at least ``pixels.crop`` of the shorter side, resized, and mirrored every other time."""
    side = max(1, round(min(picture.size) * rng.uniform(pixels.crop, 1)))
    left, top = rng.randint(0, picture.width - side), rng.randint(0, picture.height - side)
    part = _square(picture, left, top, side, pixels.size)
    return ImageOps.mirror(part) if pixels.flip and rng.random() < 0.5 else part


def _square(picture: Image.Image, left: int, top: int, side: int, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
