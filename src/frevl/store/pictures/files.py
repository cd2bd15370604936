"""List a folder's image files and decide what to do with each: nothing, embed it, or reuse embeddings."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np

from frevl.encoders.images import GUESSED_WHITE, read_image
from frevl.encoders.interface import ImageTower
from frevl.errors import ImageError, InputError, Reject
from frevl.store.extraction.embedder import GUESSED, IN_SILENCE, MakePictures, remarks
from frevl.store.extraction.items import KnownItem, KnownItems, PendingItem
from frevl.store.writer import Item

__all__ = [
    "MAX_BYTES",
    "Choice",
    "FolderFile",
    "ImageFiles",
    "PicturesToPrepare",
    "list_folder",
    "read_regular_file",
    "reason_of",
]

MAX_BYTES = 1 << 30
"""Maximum size of a file; 100 million pixels, the most that is decoded, need less in any usual format."""

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
# Folders that programs fill with thumbnails or deleted files: Synology, QNAP, macOS, Windows, GNOME.
_MADE_BY_PROGRAMS = frozenset(
    ("@eaDir", "@__thumb", "@Recycle", "#recycle", "__MACOSX", "$RECYCLE.BIN", ".thumbnails", ".Trashes", ".Trash")
)
_HIDDEN = "hidden folders"
_FORK = "._"  # prefix of files in which macOS stores what does not fit into the neighbouring file


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One file of an image folder, or a folder that could not be entered.

    Attributes:
        id: Path below the image folder, with ``/``; bytes that are not UTF-8 are escaped.
        path: Path of the file.
        problem: Why it cannot be used; empty if it can.
    """

    id: str
    path: str
    problem: str = ""


@dataclass(frozen=True)
class Choice:
    """Selects which files of a folder count as images.

    Patterns are shell patterns (``*``, ``?``, ``[...]``) for an id, for the id of a folder above, or, without ``/``,
    for a name alone.

    Attributes:
        include: Only files that match one of these; empty takes all.
        exclude: No files that match one of these.
        left_aside: Number of files and folders excluded by the patterns, by ``"files"`` and ``"folders"``; of hidden
            folders, by ``"hidden folders"``; and of folders of thumbnails and the like that were not entered, by name.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    left_aside: Counter[str] = field(default_factory=Counter)

    def sentences(self) -> list[str]:
        """Return notes on what was skipped."""
        made = {name: n for name, n in sorted(self.left_aside.items()) if name in _MADE_BY_PROGRAMS}
        files, folders = (_count(self.left_aside[kind], kind) for kind in ("files", "folders"))
        said = []
        if made:
            folders_made = _count(sum(made.values()), "folders")
            said.append(
                f"Skipped: {folders_made} of thumbnails or deleted files ({', '.join(made)}); --include "
                f"'{next(iter(made))}' includes them."
            )
        if hidden := self.left_aside[_HIDDEN]:
            said.append(
                f"Skipped: {_count(hidden, _HIDDEN)} (with a dot before the name); rename one to embed its images."
            )
        if self.left_aside["files"] or self.left_aside["folders"]:
            said.append(f"--include and --exclude left out {files} and {folders}.")
        return said

    def takes(self, id_: str, kind: str) -> bool:
        """Decide on a folder entry, and count what is skipped."""
        name = id_.rpartition("/")[2]
        if kind != "file" and name in _MADE_BY_PROGRAMS and not any(name in pattern for pattern in self.include):
            self.left_aside[name] += 1
            return False
        if not self.include and not self.exclude:
            return True
        if _fits(id_, self.exclude) or (kind == "file" and self.include and not _fits(id_, self.include)):
            self.left_aside["files" if kind == "file" else "folders"] += 1
            return False
        return True


def _fits(id_: str, patterns: Sequence[str]) -> bool:
    while id_:
        name = id_.rpartition("/")[2]
        for pattern in patterns:
            plain = pattern.removeprefix("./").rstrip("/")
            if fnmatchcase(id_, plain) or ("/" not in plain and fnmatchcase(name, plain)):
                return True
        id_ = id_.rpartition("/")[0]
    return False


def _count(number: int, kind: str) -> str:
    return f"{number:,} {kind if number != 1 else kind.removesuffix('s')}"


# From here on, plain strings and functions of `os`: for millions of files, making a `Path` each takes longer than the
# work itself.
def list_folder(
    folder: str | Path, *, leave_out: str | Path | None = None, choice: Choice | None = None
) -> Iterator[FolderFile]:
    """List the files below a folder, in a fixed order.

    Links are followed, and no folder is entered twice. Hidden folders, and hidden files not named like an image, are
    ignored. Anything that cannot be entered is listed with its problem.

    Args:
        folder: The folder.
        leave_out: A folder below it that does not belong to the images: the store.
        choice: Decides what else to skip, and counts it; None skips only folders of thumbnails and the like.

    Raises:
        InputError: The folder itself is missing or cannot be read.
    """
    root, choice = os.fspath(folder), choice or Choice()
    try:
        os.scandir(root).close()
    except OSError as error:
        found = "none" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InputError(f"{root}: expected a folder of images that can be read, found: {found}") from error
    outside = None
    if leave_out is not None and os.path.isdir(leave_out):  # noqa: PTH112
        outside = _identity(os.fspath(leave_out))
    entered: set[tuple[int, int]] = set()
    # Linked folders come last, so that a file with a name without links has it as its id.
    waiting = deque([("", root, "folder")])
    while waiting:
        stack = [iter([waiting.popleft()])]  # no recursion: folders may be nested deeper than Python's recursion limit
        while stack:
            id_, path, kind = next(stack[-1], ("", "", "end"))
            printable = id_.encode("utf-8", "backslashreplace").decode()
            if kind == "end":
                stack.pop()
            elif kind == "link":
                waiting.append((id_, path, "folder"))
            elif kind == "file":
                yield FolderFile(printable, path, "" if printable == id_ else "the file name is not UTF-8; rename it")
            else:
                names, problem = _enter(path, entered, outside)
                if problem:
                    yield FolderFile(printable, path, problem)
                stack.append(_below(id_, path, names, choice))


def read_regular_file(path: str, status: os.stat_result) -> bytes:
    """Read a whole file, but never a pipe or device that would not end.

    Args:
        path: The file.
        status: Result of `os.stat` for the file.

    Raises:
        ImageError: It is not a regular file, or it is too large.
        OSError: The file cannot be read.
    """
    # Opening a named pipe would block forever, and reading a device might never end.
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is not a regular file but a pipe, a device or the like")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"it has {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,}")
    with open(path, "rb") as stream:  # noqa: PTH123
        return stream.read()


def _identity(folder: str) -> tuple[int, int]:
    """Return an identity that is the same for a folder under every name, and shared with no other."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _enter(path: str, entered: set[tuple[int, int]], outside: tuple[int, int] | None) -> tuple[list[str], str]:
    """Return the sorted names of a folder's entries, each with a zero and its kind, and why it cannot be entered."""
    try:
        identity = _identity(path)
        if identity == outside:
            return [], ""
        if identity in entered:
            return [], "it is a folder that is read under another name"
        entered.add(identity)
        with os.scandir(path) as entries:
            # One text for each: the entries of a folder with millions of files would be large, and so would pairs. No
            # name holds a zero, which comes before every letter, so the order is that of the names.
            found = sorted(f"{entry.name}\0{_kind(entry)}" for entry in entries)
    except OSError as error:
        return [], f"the folder cannot be read ({error.strerror})"
    if not found and path.lower().endswith(_PICTURE_SUFFIXES):
        return [], "it is named like an image but is an empty folder"
    return found, ""


def _below(id_: str, path: str, names: list[str], choice: Choice) -> Iterator[tuple[str, str, str]]:
    for name, _, kind in (named.partition("\0") for named in names):
        hidden = name.startswith(".") and not (kind == "file" and name.lower().endswith(_PICTURE_SUFFIXES))
        if (hidden and name not in _MADE_BY_PROGRAMS) or name.startswith(_FORK):
            choice.left_aside[_HIDDEN] += kind != "file"
            continue
        below = f"{id_}/{name}" if id_ else name
        if choice.takes(below, kind):
            yield below, f"{path}/{name}", kind


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
    except OSError:  # a link to itself, or to an inaccessible place: reading it will report why
        pass
    return "file"


class PicturesToPrepare:
    """Common base of all kinds of images; see `frevl.store.extraction.embedder.Pictures`.

    Args:
        towers: Image towers that must have embedded every image.
        stored: The images of the store.

    Attributes:
        in_memory: True, because the bytes of an image are available before it is prepared.
        remarks: See `frevl.store.extraction.embedder`.
    """

    in_memory = True

    def __init__(self, towers: Sequence[ImageTower], stored: KnownItems) -> None:
        self._towers, self._stored = towers, stored
        self.remarks = remarks()

    def is_gone(self, id_: str) -> bool:  # noqa: ARG002
        """Return False: images inside tars or tables have no file."""
        return False

    def _inputs(self, id_: str, content: bytes, names: Sequence[str]) -> dict[str, np.ndarray | str]:
        """Decode an image for some towers, each with the pixels that its identity specifies.

        Raises:
            ImageError: The image cannot be read.
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
        towers: Image towers that must have embedded every image.
        stored: The images of the store.
        check_content: Compare the content of files even if size and modification time are unchanged.

    Attributes:
        in_memory: False, because a file is read when it is prepared.
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
        """Return False: a file must be inspected."""
        return False

    def elsewhere(self) -> MakePictures[FolderFile]:
        """Return a factory that recreates them on another machine, where the folder has the same path."""
        return partial(ImageFiles, self._folder, check_content=self._check_content)

    def prepare(self, file: FolderFile) -> tuple[str, PendingItem | Reject | None]:
        """Read, hash and decode one file, unless the store holds it unchanged.

        Returns:
            Its id, and what is to be done; None if nothing is.
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
        """Return whether the folder has no file with this id; one that cannot be inspected may exist."""
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
        imported = known is not None and not known.bytes  # its file was never seen, so there is no sign of a change
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
    """Return why an image cannot be read, without the placeholder name, since the file is named anyway."""
    return str(error).rpartition("the given bytes: ")[2].rstrip(".")
