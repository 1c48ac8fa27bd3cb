"""Pictures for tests, good and broken, and a process that permissions stop."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def ramp(width: int, height: int) -> Image.Image:
    """Red grows to the right and green downwards."""
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    picture[..., 0], picture[..., 1] = np.linspace(0, 255, width)[None], np.linspace(0, 255, height)[:, None]
    return Image.fromarray(picture)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """Every pixel of its own, so that files are long."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def oriented(number: int) -> Image.Exif:
    """EXIF that says how the picture lies; 6: to be turned by 90 degrees, clockwise."""
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def cut_short(path: Path, by: int = 200) -> Path:
    """Take the last bytes off a file."""
    path.write_bytes(path.read_bytes()[:-by])
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def turned_at_its_end(path: Path, picture: Image.Image) -> Path:
    """Save a PNG whose EXIF, orientation 6, comes after its pixels: the header gives the size as it is stored."""
    picture.save(path)
    content = path.read_bytes()
    path.write_bytes(content[:-12] + chunk(b"eXIf", oriented(6).tobytes()[6:]) + content[-12:])
    return path


def bomb() -> bytes:
    """A PNG of 300,000 by 300,000 pixels, in a hundred bytes."""
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 300_000, 300_000, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def as_nobody(function: Callable[[], Any]) -> str:
    """What ``function`` returns in a process of its own that is not the administrator, whom no permission stops."""
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            os.write(theirs, str(function()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said
