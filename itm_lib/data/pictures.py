"""Pictures: those of any folder found and read, and as pixels for models that have an image backbone of their own.

A picture's id is its path below the folder without suffix, with "/": cats/001. However it is stored, it is read as RGB of 8 bits,
the way up that its EXIF orientation says, anything transparent on white, an animation by its first frame.

:class:`PictureStore` reads images/<image_id>.* of a dataset folder for training and evaluation. In evaluation: the largest square in the middle of the picture, resized. In training: a square anywhere in it, whose side is the
picture's shorter side times a number drawn from ``crop`` to 1, resized, and mirrored every other time. VSE++ draws a share of the
area from 0.08 and an aspect, and resizes to 256 before it cuts 224 from the middle; VSE∞ draws a share of both sides from 0.6 and
squeezes the rectangle, and the whole picture in evaluation, into a square. Where pictures are square, ours is the one of VSE∞.

A mirrored picture makes "left of" false: ``flip`` is to be off for data whose captions say such things.
"""

from __future__ import annotations

import contextlib
import os
import random
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from itm_lib.files import InputError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_BAD_EXIF = (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, struct.error)  # what Pillow raises of it


# ------------------------------------------------------------------------------------------------ any folder of pictures

class BrokenPicture(InputError):
    """A picture that cannot be read; ``why``, without the picture's path."""

    why = ""


def find_pictures(folder: str | Path) -> dict[str, Path]:
    """The pictures in ``folder`` and the folders in it, by image id, sorted; what is hidden (.name) is passed over.

    :class:`InputError` if there is none, if two have one id (a.png and a.jpg), or if a folder may not be read.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: give the folder that the pictures are in" if os.path.isfile(folder) else
                         f"no folder of pictures {folder}: check the path")
    found: dict[str, Path] = {}
    for path in _files(folder):
        if path.suffix.lower() not in SUFFIXES:
            continue
        image_id = path.relative_to(folder).with_suffix("").as_posix()
        if image_id in found:
            raise InputError(f"{found[image_id]} and {path.name} would both be image {image_id}: rename or remove one of them")
        try:
            image_id.encode()
        except UnicodeEncodeError:
            raise InputError(f"the name of picture {str(path)!r} is not UTF-8: rename it") from None
        found[image_id] = path
    if not found:
        raise InputError(f"{folder} has no pictures ({', '.join(SUFFIXES)}): check the path")
    return dict(sorted(found.items()))


def _files(folder: Path) -> Iterator[Path]:
    """The files in ``folder``; links to folders are followed, but not in circles."""
    def refuse(error: OSError) -> None:
        raise InputError(f"folder {error.filename} cannot be read ({one_line(error.strerror or error)}): change its permissions")

    seen = {os.path.realpath(folder)}
    for parent, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = {name: os.path.realpath(os.path.join(parent, name)) for name in sorted(folders) if not name.startswith(".")}
        folders[:] = [name for name, place in real.items() if place not in seen]
        seen.update(real.values())
        yield from (Path(parent, name) for name in sorted(names) if not name.startswith("."))


def read_picture(path: str | Path) -> Image.Image:
    """The picture as RGB, the right way up; :class:`BrokenPicture` if it cannot be read.

    Of 16 bits the upper 8 are kept; 32-bit and floating-point grey, for which no white is agreed on, becomes black to white from
    the picture's lowest value to its highest.
    """
    with _reading(Path(path)), Image.open(path) as picture:
        return as_rgb(picture)


def as_rgb(picture: Image.Image) -> Image.Image:
    """``picture`` as :func:`read_picture` gives it, whatever its mode and orientation."""
    picture.load()
    with contextlib.suppress(*_BAD_EXIF):  # EXIF that is damaged does not say which way is up
        picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(picture))).convert("RGB")
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


def picture_size(path: str | Path) -> tuple[int, int]:
    """(width, height) that :func:`read_picture` gives, from the file's header alone; :class:`BrokenPicture` if that is broken."""
    with _reading(Path(path)), Image.open(path) as picture:
        turned = 1
        if picture.format != "TIFF":  # Pillow has turned that already
            with contextlib.suppress(*_BAD_EXIF):
                turned = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)  # a PNG's own getexif reads all of it
        return picture.size if turned not in (5, 6, 7, 8) else picture.size[::-1]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong inside becomes a :class:`BrokenPicture`; warnings, of large pictures or odd palettes, are not shown."""
    advice = "it is damaged or cut short, fetch it again"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
        return
    except (PermissionError, FileNotFoundError, IsADirectoryError) as error:
        why, advice = error.strerror.lower(), "check the path and its permissions"
    except UnidentifiedImageError:
        why = "no kind of picture that is known" if path.stat().st_size else "the file is empty"
    except Image.DecompressionBombError as error:
        why, advice = one_line(error).rstrip("."), "make it smaller, or remove it"
    except MemoryError:
        raise  # says nothing of the picture
    except Exception as error:  # damaged data may raise anything in a decoder
        why = one_line(str(error).replace(str(path), "it"), 100) or type(error).__name__
    broken = BrokenPicture(f"{path} cannot be read as a picture ({why}): {advice}")
    broken.why = why
    raise broken


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Grey values (H, W) of 16 or 32 bits to uint8."""
    if values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("pixels are NaN or infinite")
    return np.rint((values - low) * (255 / (high - low) if high > low else 0)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ pixels of a dataset


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
        found = find_pictures(self.path)
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
        return read_picture(self._files[row])


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
