"""Thumbnails as small JPEGs, for contact sheets, reports and the service."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image

from frevl.encoders.images import MAX_PIXELS, read_image

__all__ = ["QUALITY", "thumbnail", "thumbnail_address"]

QUALITY = 85  # JPEG quality, 1 to 95


def thumbnail_address(source: str | Path | bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> str:
    """Return a downscaled image as a ``data:`` URL for the ``src`` of an ``img``.

    Args:
        source: A file, or its bytes.
        side: Length of the longer side in pixels; smaller images keep their size.
        max_pixels: As in `frevl.encoders.images.read_image`.

    Raises:
        ImageError: The image cannot be decoded.
    """
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(source, side, max_pixels=max_pixels)).decode("ascii")


def thumbnail(source: str | Path | bytes, side: int, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """Return a downscaled image as a JPEG; arguments and errors as in `thumbnail_address`."""
    picture = read_image(source, target=side, max_pixels=max_pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()
