"""Thumbnails of a store's images, each made once and cached on disk."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from pathlib import Path, PurePosixPath

from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import ImageError
from frevl.files import replace_file
from frevl.runs.search.thumbnails import thumbnail

__all__ = ["SIDES", "Thumbnails"]

SIDES = (160, 320, 960)
"""Pixels of the longer side."""
_LEAST_FREE = 1 << 30  # bytes of disk space left free


class Thumbnails:
    """Make thumbnails and cache them below ``STORE/explore/thumbnails``, which may be deleted at any time.

    Args:
        store: Folder of the store.
        pictures: Folder of the images, or None if unknown.
        max_pixels: Maximum size of an image to decode.
        keep: False writes nothing to disk.
    """

    def __init__(self, store: Path, pictures: Path | None, *, max_pixels: int, keep: bool) -> None:
        self.pictures = pictures
        self._place = store / "explore" / "thumbnails"
        self._max_pixels = max_pixels
        self._keep = keep

    def read(self, image: str, side: int) -> bytes:
        """Return a thumbnail as a JPEG.

        Args:
            image: Id of an image of the store.
            side: One of `SIDES`.

        Raises:
            RefusedError: The image no longer exists, or cannot be read.
        """
        path = PurePosixPath(image)
        if self.pictures is None:
            raise RefusedError(
                404, "no_pictures", "The folder of the images is unknown; start the service with --images DIR."
            )
        if path.is_absolute() or ".." in path.parts:
            raise RefusedError(404, "no_picture", "This image is not in the folder of the images.")
        source = self.pictures / path
        try:
            status = source.stat()
        except (OSError, ValueError):
            raise RefusedError(
                404, "no_picture", f"The file of {image[:80]!r} is not in the folder of the images; was it moved?"
            ) from None
        known = f"{image}\n{status.st_mtime_ns}\n{status.st_size}\n{side}"
        name = hashlib.sha256(known.encode("utf-8", "surrogatepass")).hexdigest()
        kept = self._place / name[:2] / f"{name}.jpg"
        with contextlib.suppress(OSError):
            return kept.read_bytes()
        try:
            made = thumbnail(source, side, max_pixels=self._max_pixels)
        except ImageError as error:
            reason = str(error).rpartition(": ")[2]
            raise RefusedError(422, "bad_image", f"The image {image[:80]!r} cannot be read: {reason}") from None
        if self._keep:
            with contextlib.suppress(OSError):  # it can be shown without being cached
                self._write(kept, made)
        return made

    def _write(self, kept: Path, made: bytes) -> None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(kept.parent).free > _LEAST_FREE:
            replace_file(kept, lambda path: path.write_bytes(made))
