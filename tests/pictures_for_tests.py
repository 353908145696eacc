"""Picture files that tests make."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy
from PIL import Image


def picture(path: Path, size=(20, 16), mode="RGB", value=100, **options) -> Path:
    """Write an image file of one value, with a brighter top left pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, (value, value // 2, 10)).convert(mode)
    image.putpixel(
        (0, 0),
        image.getpixel((1, 1)) if mode == "P" else Image.new("RGB", (1, 1), "white").convert(mode).getpixel((0, 0)),
    )
    image.save(path, **options)
    return path


def classes(root: Path, names: Iterable[str], count: int = 3, **options) -> Path:
    """A folder per name, with pictures of different values."""
    for k, name in enumerate(names):
        for n in range(count):
            picture(root / name / f"{n}.png", value=20 + 30 * k + n, **options)
    return root


def array_picture(path: Path, pixels: numpy.ndarray, **options) -> Path:
    """Write an image file of these pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def deep_png(path: Path, pixels: numpy.ndarray) -> Path:  # uint16 [H, W, C], C of 1 to 4
    """Write a PNG of 16 bits a channel, which Pillow cannot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    H, W, C = pixels.shape

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", W, H, 16, (0, 4, 2, 6)[C - 1], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path
