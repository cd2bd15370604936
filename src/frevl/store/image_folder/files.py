"""One file of an image folder -> what to do with it: nothing, embed it, or reuse embeddings."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from frevl.encoders.images import GUESSED_WHITE, read_image
from frevl.encoders.interface import ImageTower
from frevl.errors import ImageError, Reject
from frevl.store.embedding.commit_buffer import PendingItem
from frevl.store.embedding.pictures import GUESSED, IN_SILENCE, MakePictures, remarks
from frevl.store.image_folder.listing import FolderFile, read_regular_file
from frevl.store.stored_items import KnownItem, KnownItems
from frevl.store.writer import Item

__all__ = ["ImageFiles", "PicturesToPrepare", "reason_of"]


class PicturesToPrepare:
    """What all kinds of pictures have in common; see `frevl.store.embedding.pictures.Pictures`.

    Args:
        towers: Image towers that shall have seen every image.
        stored: The images of the store.

    Attributes:
        in_memory: Yes: the bytes of a picture are there before it is prepared.
        remarks: See `frevl.store.embedding.pictures`.
    """

    in_memory = True

    def __init__(self, towers: Sequence[ImageTower], stored: KnownItems) -> None:
        self._towers, self._stored = towers, stored
        self.remarks = remarks()

    def is_gone(self, id_: str) -> bool:  # noqa: ARG002
        """Return False: what came inside a tar or a table has no file."""
        return False

    def _inputs(self, id_: str, content: bytes, names: Sequence[str]) -> dict[str, np.ndarray | str]:
        """Decode a picture for some towers; each gets the pixels that its identity names, whatever the others need.

        Raises:
            ImageError: It cannot be read.
        """
        towers = [tower for tower in self._towers if tower.name in names]
        pictures = {target: read_image(content, target=target) for target in {tower.target for tower in towers}}
        if any(GUESSED_WHITE in picture.info for picture in pictures.values()):
            self.remarks[GUESSED].append(id_)
        return {tower.name: tower.prepare(pictures[tower.target]) for tower in towers}


class ImageFiles(PicturesToPrepare):
    """The files of a folder, compared with the images of a store. Several threads may prepare files.

    Args:
        folder: The folder of images.
        towers: Image towers that shall have seen every image.
        stored: The images of the store.
        check_content: Compare the content of files whose size and modification time are those of the store.

    Attributes:
        in_memory: No: a file is read when it is prepared.
    """

    in_memory = False

    def __init__(
        self, folder: Path, towers: Sequence[ImageTower], stored: KnownItems, *, check_content: bool = False
    ) -> None:
        super().__init__(towers, stored)
        self._folder, self._check_content = folder, check_content

    def id_of(self, file: FolderFile) -> str:
        """Return the id of a file."""
        return file.id

    def bytes_of(self, _: FolderFile) -> int:
        """Return 0: a file is read when it is prepared."""
        return 0

    def is_settled(self, _: FolderFile) -> bool:
        """Return False: a file has to be looked at."""
        return False

    def elsewhere(self) -> MakePictures[FolderFile]:
        """Return what makes their like on another machine, where the folder has the same path."""
        return partial(ImageFiles, self._folder, check_content=self._check_content)

    def prepare(self, file: FolderFile) -> tuple[str, PendingItem | Reject | None]:
        """Read, hash and decode one file, unless the store holds it unchanged.

        Returns:
            Its id, and what has to be done; None for nothing.
        """
        if file.problem:
            return file.id, Reject("image", file.id, file.problem)
        known = self._stored.get(file.id)
        try:
            return file.id, self._prepare(file, known)
        except ImageError as error:
            reason = reason_of(error)
        except OSError as error:
            reason = f"the file cannot be read ({error.strerror or error})"
        kept = "; the store keeps the embedding of its former content" if known else ""
        return file.id, Reject("image", file.id, reason + kept)

    def is_gone(self, id_: str) -> bool:
        """Tell whether the folder has no file with this id; one that cannot be inspected may exist."""
        try:
            os.stat(f"{os.fspath(self._folder)}/{id_}")  # noqa: PTH116 - as in `list_folder`
        except (FileNotFoundError, NotADirectoryError):
            return True
        except (OSError, ValueError):
            return False
        return False

    def _prepare(self, file: FolderFile, known: KnownItem | None) -> PendingItem | None:
        status = os.stat(file.path)  # noqa: PTH116
        unchanged = known is not None and (known.bytes, known.modified_ns) == (status.st_size, status.st_mtime_ns)
        imported = known is not None and not known.bytes  # its file was never seen, so nothing says that it changed
        if known and not known.lacking and (imported or (unchanged and not self._check_content)):
            return None
        content = read_regular_file(file.path, status)
        item = Item(file.id, hashlib.sha256(content).hexdigest()[:32], len(content), status.st_mtime_ns)
        if known and imported:
            item = Item(file.id, known.content_hash, 0)
        if known and known.content_hash == item.content_hash:
            if not known.lacking:
                return None
            return PendingItem(item, "fill", self._inputs(file.id, content, known.lacking))
        if unchanged:
            self.remarks[IN_SILENCE].append(file.id)
        taken = self._stored.take_over(item.content_hash, self.is_gone)
        if taken is not None:
            source, moved = taken
            return PendingItem(item, "fill", self._inputs(file.id, content, source.lacking), source.id, moved)
        names = [tower.name for tower in self._towers]
        return PendingItem(item, "replace" if known else "append", self._inputs(file.id, content, names))


def reason_of(error: ImageError) -> str:
    """Return why a picture cannot be read, without the words for bytes whose file is named anyway."""
    return str(error).rpartition("the given bytes: ")[2].rstrip(".")
