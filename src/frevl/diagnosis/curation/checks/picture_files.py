"""Read images of a folder for curation: their size and 96 x 96 grey values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frevl.diagnosis.curation.copies.picture_match import SIDE
from frevl.encoders.images import quiet_pillow, read_image
from frevl.errors import ImageError, UsageError

__all__ = ["check_folder", "read_grey", "read_picture", "size_of"]


def check_folder(folder: Path) -> None:
    """Raise unless the path is a folder.

    Raises:
        UsageError: The path does not exist, or is a file.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise UsageError(f"--images {folder}: expected the folder of the images, found {found}")


def read_picture(folder: Path, image: str, *, target: int | None = None) -> Image.Image | None:
    """Read one image; None if it is missing or cannot be decoded.

    Args:
        folder: Folder of the images.
        image: Id of the image: its path below the folder.
        target: As in `frevl.encoders.images.read_image`.
    """
    if not _inside(image):
        return None
    try:
        return read_image(folder / image, target=target)
    except ImageError:
        return None


def size_of(folder: Path, image: str) -> tuple[int, int] | None:
    """Return the width and height stored in an image's file; None as in `read_picture`."""
    if not _inside(image) or not (folder / image).is_file():
        return None
    try:
        with quiet_pillow(), Image.open(folder / image) as picture:
            return picture.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        whole = read_picture(folder, image)  # formats that Pillow does not support by itself
        return None if whole is None else whole.size


def read_grey(folder: Path, image: str) -> NDArray[np.uint8] | None:
    """Return the ``(96, 96)`` grey values of an image; None as in `read_picture`."""
    picture = read_picture(folder, image, target=SIDE)
    if picture is None:
        return None
    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return np.asarray(grey, np.uint8)


def _inside(image: str) -> bool:
    return not Path(image).is_absolute() and ".." not in Path(image).parts
