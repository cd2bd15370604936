"""The images of one version of a store as rows: ids, metadata and memory-mapped vectors."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from frevl.files import replace_file
from frevl.store.ids.rows_of_ids import RowsOfIds, find_rows
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["Rows"]

_AT_ONCE = 16_384


class Rows:
    """All images of a version of a store, in store order.

    Args:
        store: The store.
        tower: Image tower whose vectors are read.
        keep: Cache the vectors in ``STORE/explore``, so that the next start only maps them into memory.

    Attributes:
        ids: Ids of the images.
        usable: ``(n,)`` bool, False for images without an embedding by this tower.
        key: Changes whenever a vector or a row can change.
    """

    def __init__(self, store: Store, tower: Tower, *, keep: bool) -> None:
        self.store, self.tower, self._keep = store, tower, keep
        self.ids = store.ids("image")
        self.positions = store.positions("image")
        if isinstance(self.positions, RowsOfIds):  # remains readable when another process deletes that version
            self.positions = self.positions.in_memory()[0]
            find_rows(self.positions, [""])  # builds the id lookup now
        states = store.states("image")
        self.usable: np.ndarray = states[f"has:{tower.name}"]
        self.picture_bytes = int(states["bytes"].sum())
        known = f"{tower.fingerprint}\n{tower.name}\n{store.version('image')}\n{len(self.ids)}"
        self.key = hashlib.sha256(known.encode()).hexdigest()[:16]
        self._guard = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def copies(self) -> dict[str, str]:
        """Map every image whose content has several ids to the first of them."""
        return self.store.copies("image")

    @property
    def vectors(self) -> np.ndarray:
        """``(n, dim)`` float16 of unit length, zero where missing; read from the store on first use."""
        with self._guard:
            return self._vectors

    @cached_property
    def _vectors(self) -> np.ndarray:
        path = self.kept("vectors", ".npy")
        shape = (len(self.ids), self.tower.dim)
        with contextlib.suppress(OSError, ValueError):
            found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
            if found.shape == shape and found.dtype == np.float16:
                return found
        if self._keep:
            with contextlib.suppress(OSError, ValueError):  # disk full, or a store without images
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, lambda temporary: self._write(temporary, shape))
                self._sweep(path)
                mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
                return mapped
        made = np.zeros(shape, np.float16)
        for rows, values in self._blocks():
            made[rows] = values
        return made

    def kept(self, what: str, suffix: str) -> Path:
        """Return the file that caches something for these rows."""
        return self.store.path / "explore" / f"{what}-{self.key}{suffix}"

    def _write(self, path: Path, shape: tuple[int, int]) -> None:
        mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        for rows, values in self._blocks():
            mapped[rows] = values
        mapped.flush()

    def _blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        usable = np.flatnonzero(self.usable)
        for start in range(0, len(usable), _AT_ONCE):
            rows = usable[start : start + _AT_ONCE]
            found = self.store.read_images([self.ids[row] for row in rows.tolist()], encoders=self.tower.encoders[:1])
            yield rows, found.astype(np.float16)

    @staticmethod
    def _sweep(path: Path) -> None:
        """Delete cached files of other versions; processes that mapped them can still read them."""
        for other in path.parent.glob("*-*"):
            if other.is_file() and other.stem.rpartition("-")[2] != path.stem.rpartition("-")[2]:
                other.unlink(missing_ok=True)
