"""Compare the images of a store with their files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from frevl.encoders.images import is_deep_grey
from frevl.encoders.registry import load_encoder
from frevl.errors import FrevlError, ImageError, InputError, counted
from frevl.store.extraction.items import IN_A_TABLE
from frevl.store.pictures.files import read_regular_file
from frevl.store.reader import Store

__all__ = ["image_problems"]

_LOOKED_AT = 256  # maximum number of grey images over 8 bits to embed again
_SAME_PICTURE = 0.99  # cosine between the old and new embeddings


def image_problems(store: Store, folder: str | Path) -> list[str]:
    """Read the files of all stored images and report those with changed content.

    Earlier versions of frevl read grey images of 10 and 12 bits as nearly black. Some images with more than 8 bits are
    therefore embedded again and compared, if an encoder of the store can be loaded here.

    Args:
        store: The store; images that were imported or came from a table have no file to compare with.
        folder: The folder to which the ids are relative.

    Returns:
        One sentence per kind of difference; empty if all files are unchanged.

    Raises:
        InputError: The folder does not exist.
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
    deep: list[str] = []
    # Arrays rather than lists, because for many millions of images their objects would take gigabytes.
    described = [states[name] for name in ("content_hash", "bytes", "modified_ns")]
    for id_, content_hash, size, modified_ns in zip(store.ids("image"), *described, strict=True):
        if not size or modified_ns == IN_A_TABLE:
            continue
        path = f"{os.fspath(folder)}/{id_}"
        try:
            status = os.stat(path)  # noqa: PTH116 - as in `list_folder`
            content = read_regular_file(path, status) if size == status.st_size else b""
            same = size == status.st_size and _hash(content) == content_hash
        except (FileNotFoundError, NotADirectoryError):
            gone.append(id_)
            continue
        except (ImageError, OSError):
            unread.append(id_)
            continue
        if same and is_deep_grey(content):
            deep.append(id_)
        if not same:
            (silent if (size, modified_ns) == (status.st_size, status.st_mtime_ns) else changed).append(id_)
    said = [
        (
            silent,
            "changed since being embedded, although size and modification time are the same",
            "run frevl extract --check-content",
        ),
        (changed, "changed since being embedded", "run frevl extract again"),
        (gone, "no file there", "frevl extract --prune removes them from the store"),
        (unread, "unreadable", "fix the permissions, or run frevl extract to see why"),
        (
            _embedded_otherwise(store, folder, deep),
            "grey of more than 8 bits, which an earlier version of frevl read as nearly black, so that the embedding "
            "would now be different",
            "extract into a new store",
        ),
    ]
    return [
        f"{counted(len(ids), 'image')} of {folder}: {what} (the first is '{ids[0]:.200}'): {remedy}."
        for ids, what, remedy in said
        if ids
    ]


def _embedded_otherwise(store: Store, folder: str | Path, ids: list[str]) -> list[str]:
    """Return images (from a sample if there are many) that an encoder of the store now embeds differently."""
    some = ids[:: max(1, -(-len(ids) // _LOOKED_AT))]
    found: dict[str, None] = {}
    for name in store.encoders if some else ():
        try:
            (tower,) = store.select_towers("image", [name])
            encoder = load_encoder(name, tokens=tower.identity["tokens"])
            now = encoder.embed_images([Path(folder) / id_ for id_ in some])
            then = store.read_images(some, encoders=[name])
        except (FrevlError, ValueError):  # a text encoder, one that is not installed, or one without all of them
            continue
        lengths = np.linalg.norm(now, axis=1) * np.linalg.norm(then, axis=1)
        cosines = (now * then).sum(axis=1) / np.maximum(lengths, 1e-12)
        found |= dict.fromkeys(
            id_ for id_, cosine in zip(some, cosines.tolist(), strict=True) if cosine < _SAME_PICTURE
        )
    return list(found)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:32].encode()
