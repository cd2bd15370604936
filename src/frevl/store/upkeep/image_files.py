"""Comparing the images of a store with the files that they were made from."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from frevl.errors import ImageError, InputError
from frevl.store.image_folder.listing import read_regular_file
from frevl.store.reader import Store
from frevl.store.stored_items import IN_A_TABLE

__all__ = ["image_problems"]


def image_problems(store: Store, folder: str | Path) -> list[str]:
    """Read the files of all images in a store and report those whose content has changed.

    Args:
        store: The store; images that were imported or came inside a table have no file to compare with.
        folder: The folder that the ids are paths below.

    Returns:
        One sentence a kind of difference; empty if all files are as they were embedded.

    Raises:
        InputError: There is no such folder.
    """
    if not Path(folder).is_dir():
        raise InputError(
            f"{folder}: expected a folder of images, found {'a file' if Path(folder).exists() else 'none'}"
        )
    states = store.states("image")
    silent: list[str] = []
    changed: list[str] = []
    gone: list[str] = []
    unread: list[str] = []
    described = (states[name].tolist() for name in ("content_hash", "bytes", "modified_ns"))
    for id_, content_hash, size, modified_ns in zip(store.ids("image"), *described, strict=True):
        if not size or modified_ns == IN_A_TABLE:
            continue
        path = f"{os.fspath(folder)}/{id_}"
        try:
            status = os.stat(path)  # noqa: PTH116 - as in `list_folder`
            same = size == status.st_size and _hash(path, status) == content_hash
        except (FileNotFoundError, NotADirectoryError):
            gone.append(id_)
            continue
        except (ImageError, OSError):
            unread.append(id_)
            continue
        if not same:
            (silent if (size, modified_ns) == (status.st_size, status.st_mtime_ns) else changed).append(id_)
    said = [
        (silent, "changed with the same size and time after they were embedded", "run frevl extract --check-content"),
        (changed, "changed after they were embedded", "run frevl extract again"),
        (gone, "have no file there", "frevl extract --prune removes them from the store"),
        (unread, "cannot be read", "fix the permissions, or run frevl extract to see why"),
    ]
    return [
        f"{len(ids):,} images of {folder} {what}, the first is '{ids[0]:.200}': {remedy}."
        for ids, what, remedy in said
        if ids
    ]


def _hash(path: str, status: os.stat_result) -> bytes:
    return hashlib.sha256(read_regular_file(path, status)).hexdigest()[:32].encode()
