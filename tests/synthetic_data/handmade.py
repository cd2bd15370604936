"""Stores made by hand, so that every number in them is known."""

import zlib
from contextlib import contextmanager, suppress

import numpy as np

from frevl.encoders.interface import Embeddings
from frevl.store.reader import Store
from frevl.store.towers import Tower
from frevl.store.writer import Item, StoreWriter

IDENTITY = {
    "tower": "eye",
    "weights": "w1",
    "revision": "1",
    "preprocessing": "p",
    "tokens": "pooled",
    "normalisation": "unit",
    "dtype": "float16",
}


def tower(name="eye", *, modality="image", dim=3, encoders=("one",), canaries=None, **identity):
    if canaries is None:
        canaries = np.eye(3, dim, dtype=np.float32) + 0.1
    return Tower(name, modality, tuple(encoders), {**IDENTITY, "tower": name, **identity}, dim, canaries)


def pooled(*rows):
    values = np.array(rows, np.float32)[:, None]
    return Embeddings(values, np.ones(values.shape[:2], bool))


def ragged(*items, dim=3):
    return Embeddings.of([np.array(item, np.float32).reshape(-1, dim) for item in items], dim)


def item(id_, content=None):
    return Item(id_, f"{zlib.crc32((content or id_).encode()):032x}", 5, 7)


def made_of(path, towers, rows, modality="image"):
    """Write a store of these towers with ``rows``: id to embeddings by tower."""
    with StoreWriter(path) as writer:
        writer.register(towers)
        for id_, embeddings in rows.items():
            writer.append(modality, [item(id_)], embeddings)
    return Store.open(path)


@contextmanager
def killed(path):
    """A writer that ends as a killed process does: nothing is tidied, and what it left word of stays."""
    with suppress(ZeroDivisionError), StoreWriter(path) as writer:
        yield writer
        raise ZeroDivisionError
