"""Image files drawn for tests, and what is read of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from frevl.encoders.images import read_image


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pixels(source: object, **options: object) -> list[list[tuple[int, ...]]]:
    image = read_image(source, **options)
    assert image.mode == "RGB"
    return [[tuple(pixel) for pixel in row] for row in np.asarray(image).tolist()]


def photo(width: int = 61, height: int = 43, seed: int = 0) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(seed).normal(0, 8, (height, width, 3))
    base = np.stack([255 * x / width, 255 * y / height, 127 + 100 * np.sin(x / 9 + y / 7)], axis=2)
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), body) for name, body in chunks.items())
    data = chunk(b"IDAT", zlib.compress(rows)) if rows else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")
