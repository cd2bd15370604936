"""The files of an image folder: listing them with their ids, and reading one safely."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from frevl.errors import ImageError, InputError

__all__ = ["MAX_BYTES", "FolderFile", "list_folder", "read_regular_file"]

MAX_BYTES = 1 << 30
"""Largest file that is read; 100 million pixels, the most that is decoded, need less in any usual format."""

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class FolderFile:
    """One file of an image folder, or a folder that could not be entered.

    Attributes:
        id: Path below the image folder, with ``/``; bytes that are not UTF-8 are escaped.
        path: Where it is.
        problem: Why it cannot be used, or an empty string.
    """

    id: str
    path: str
    problem: str = ""


# Here and below plain strings and calls of `os`: for millions of files a `Path` each costs more than the work.
def list_folder(folder: str | Path, *, leave_out: str | Path | None = None) -> Iterator[FolderFile]:
    """List the files below a folder, in a fixed order.

    Links are followed, and no folder is entered twice. Hidden folders, and hidden files that are not named like a
    picture, are no part of the images. What cannot be entered is listed with its problem.

    Args:
        folder: The folder.
        leave_out: A folder below it that does not belong to the images: the store.

    Raises:
        InputError: The folder itself is missing or cannot be read.
    """
    root = os.fspath(folder)
    try:
        os.scandir(root).close()
    except OSError as error:
        found = "none" if isinstance(error, FileNotFoundError) else str(error.strerror)
        raise InputError(f"{root}: expected a folder of images that can be read, found: {found}") from error
    outside = None
    if leave_out is not None and os.path.isdir(leave_out):  # noqa: PTH112
        outside = _identity(os.fspath(leave_out))
    entered: set[tuple[int, int]] = set()
    # Linked folders come last, so that a file that has a name without links has it as its id.
    waiting = deque([("", root, "folder")])
    while waiting:
        stack = [iter([waiting.popleft()])]  # no recursion: folders may lie deeper than Python's calls may
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
                stack.append(_below(id_, path, names))


def read_regular_file(path: str, status: os.stat_result) -> bytes:
    """Read a whole file, but never a pipe or device that would not end.

    Args:
        path: The file.
        status: What `os.stat` says of it.

    Raises:
        ImageError: It is not a regular file, or too large.
        OSError: It cannot be read.
    """
    # Opening a named pipe would wait for ever, and reading a device might never end.
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("it is not a regular file but a pipe, a device or the like")
    if status.st_size > MAX_BYTES:
        raise ImageError(f"it has {status.st_size:,} bytes, more than the limit of {MAX_BYTES:,}")
    with open(path, "rb") as stream:  # noqa: PTH123
        return stream.read()


def _identity(folder: str) -> tuple[int, int]:
    """Return an identity that a folder keeps under every name and shares with no other folder."""
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _enter(
    path: str, entered: set[tuple[int, int]], outside: tuple[int, int] | None
) -> tuple[list[tuple[str, str]], str]:
    """Return names and kinds of a folder's entries, and why it cannot be entered."""
    try:
        identity = _identity(path)
        if identity == outside:
            return [], ""
        if identity in entered:
            return [], "it is a folder that is read under another name"
        entered.add(identity)
        with os.scandir(path) as entries:
            # Only names and kinds are kept: the entries of a folder with millions of files would be large.
            found = sorted((entry.name, _kind(entry)) for entry in entries)
    except OSError as error:
        return [], f"the folder cannot be read ({error.strerror})"
    if not found and path.lower().endswith(_PICTURE_SUFFIXES):
        return [], "it is named like a picture but is an empty folder"
    return found, ""


def _below(id_: str, path: str, names: list[tuple[str, str]]) -> Iterator[tuple[str, str, str]]:
    for name, kind in names:
        if not name.startswith(".") or (kind == "file" and name.lower().endswith(_PICTURE_SUFFIXES)):
            yield f"{id_}/{name}" if id_ else name, f"{path}/{name}", kind


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
    except OSError:  # a link that leads to itself, or to where one may not look: reading it will say why
        pass
    return "file"
