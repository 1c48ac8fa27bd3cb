"""A small extractor whose numbers tell on it: which pictures it got, in which batches, and which way up."""

import os
import signal
import time

import numpy as np
import torch
from made_pictures import cut_short, noise
from PIL import Image
from torch.utils.data import get_worker_info

from itm_lib.features.extractor import Regions


class Toy:
    """As many regions as a picture is bright, none of a black one; boxes around what is brightest. The size of the batch is one of
    the numbers, so that another plan of batches makes another file. ``seconds``: what a batch takes."""

    name, dim, max_regions = "toy", 6, 8

    def __init__(self, weights="w0", seconds=0.0):
        self.settings = {"backbone": "toy", "weights": weights, "nms": 0.5}
        self.seconds, self.batches = seconds, []

    def input_size(self, size):
        width, height = size
        return 16 * -(-height // 16), 16 * -(-width // 16)

    def prepare(self, picture):
        height, width = self.input_size(picture.size)
        return torch.from_numpy(np.asarray(picture.resize((width, height)), np.float32).transpose(2, 0, 1) / 255)

    def __call__(self, pixels):
        self.batches.append(tuple(pixels.shape))
        time.sleep(self.seconds)
        return [self.regions(picture, len(pixels)) for picture in pixels]

    def regions(self, picture, together):
        bright = picture.mean(0) >= max(float(picture.max()) * 0.75, 1e-6)
        count = min(self.max_regions, int(np.ceil(float(picture.mean()) * 12)))
        y, x = (torch.nonzero(bright.any(axis)).flatten() for axis in (1, 0))
        height, width = bright.shape
        box = [float(x[0]) / width, float(y[0]) / height, float(x[-1] + 1) / width, float(y[-1] + 1) / height] if count and bright.any() else [0, 0, 1, 1]
        numbers = [*picture.mean((1, 2)).tolist(), float(picture.std()), together]
        features = np.array([[*numbers, number] for number in range(count)], np.float32).reshape(count, self.dim)
        return Regions(features, np.array([box] * count, np.float32).reshape(count, 4), np.ones(count, np.float32), ("",) * count)


class Stopping(Toy):
    """A Toy that raises ``error`` in place of its batch ``number``, from 0."""

    def __init__(self, number, error, **settings):
        super().__init__(**settings)
        self.number, self.error = number, error

    def __call__(self, pixels):
        if len(self.batches) == self.number:
            raise self.error
        return super().__call__(pixels)


class Deadly(Toy):
    """A Toy whose worker is killed at the first picture that it prepares."""

    def prepare(self, picture):
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(picture)


def write_pictures(folder, count=13, broken=True):
    """Pictures of three sizes in two folders; with ``broken``, p03 is cut short, p05 is empty and p06 black, of which Toy finds
    nothing."""
    for number in range(count):
        path = folder / ("even" if number % 2 == 0 else "odd") / f"p{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = ((40, 30), (20, 60), (64, 64))[number % 3]
        if broken and number == 6:
            Image.new("RGB", (width, height)).save(path)
        else:
            noise(width, height, number).save(path)
    if broken:
        cut_short(folder / "odd" / "p03.jpg")
        (folder / "odd" / "p05.jpg").write_bytes(b"")
    return folder
