"""The items of a store as they were when an extraction began, by id and by content."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from frevl.store.ids.rows_of_ids import RowsOfIds
from frevl.store.reader import Store
from frevl.store.towers import Modality

__all__ = ["IN_A_TABLE", "KnownItem", "KnownItems", "StoredItems"]

IN_A_TABLE = -1
"""Stands for the modification time of an image that came inside a table: it has no file that could be gone."""


@dataclass(frozen=True)
class KnownItem:
    """What the store knew about an item.

    Attributes:
        id: Its id.
        content_hash: Of its content.
        bytes: Size of the content; 0 for an imported image, whose file was never seen.
        modified_ns: Modification time of its file, or `IN_A_TABLE`.
        lacking: Towers of this extraction that it has no embedding of.
    """

    id: str
    content_hash: str
    bytes: int
    modified_ns: int
    lacking: tuple[str, ...]


class KnownItems(Protocol):
    """What a store knew about items."""

    def get(self, id_: str) -> KnownItem | None:
        """Return what is known about an item; None if the store had no such item."""

    def take_over(self, content_hash: str, is_gone: Callable[[str], bool]) -> tuple[KnownItem, bool] | None:
        """Find an item with this content whose embeddings another item can take over."""


class StoredItems:
    """The images, or the texts, of a store. Thread-safe. About 80 bytes per item, besides the ids.

    Args:
        store: A store; what is written later does not change the answers.
        modality: ``image`` or ``text``.
        towers: Names of the towers of this extraction.
    """

    def __init__(self, store: Store, modality: Modality, towers: Sequence[str]) -> None:
        rows = store.positions(modality)
        self._rows: Mapping[str, int] = rows
        self._ids: Sequence[str] | pa.Array = list(rows) if isinstance(rows, dict) else []
        if isinstance(rows, RowsOfIds):
            self._rows, self._ids = rows.in_memory()
        self._states = store.states(modality)
        self._towers = towers
        self._by_content: np.ndarray | None = None
        self._moved: set[str] = set()
        self._lock = threading.Lock()

    @property
    def empty(self) -> bool:
        """Whether there is none."""
        return len(self._ids) == 0

    @property
    def with_file(self) -> int:
        """How many items came from a file of their own; imported ones and those inside a table did not."""
        return int(np.count_nonzero(self._has_file()))

    def get(self, id_: str) -> KnownItem | None:
        """Return what is known about an item; None if the store had no such item."""
        row = self._rows.get(id_)
        return None if row is None else self._known(row)

    def take_over(self, content_hash: str, is_gone: Callable[[str], bool]) -> tuple[KnownItem, bool] | None:
        """Find an item with this content whose embeddings another item can take over.

        Args:
            content_hash: Of the other item.
            is_gone: Whether the file of an id is no longer there.

        Returns:
            The item, and whether it has moved: its file is gone, and nothing else has taken its place. None if the
            store had no such content.
        """
        with self._lock:
            same = [self._known(row) for row in self._rows_of_content(content_hash)]
            if not same:
                return None
            of_files = (one for one in same if one.modified_ns != IN_A_TABLE)
            gone = (one for one in of_files if one.id not in self._moved and is_gone(one.id))
            moved = next(gone, None)
            if moved is None:
                return min(same, key=lambda one: len(one.lacking)), False
            self._moved.add(moved.id)
            return moved, True

    def gone(self, seen: Collection[str], is_gone: Callable[[str], bool]) -> list[str]:
        """Return the ids of items that were neither seen nor moved and whose file is gone; imported ones have none."""
        with_file = (self._id(row) for row in np.flatnonzero(self._has_file()).tolist())
        return [id_ for id_ in with_file if id_ not in seen and id_ not in self._moved and is_gone(id_)]

    def _id(self, row: int) -> str:
        id_ = self._ids[row]
        return id_ if isinstance(id_, str) else str(id_.as_py())

    def _has_file(self) -> np.ndarray:
        has_file: np.ndarray = (self._states["bytes"] > 0) & (self._states["modified_ns"] != IN_A_TABLE)
        return has_file

    def _known(self, row: int) -> KnownItem:
        return KnownItem(
            id=self._id(row),
            content_hash=self._states["content_hash"][row].decode(),
            bytes=int(self._states["bytes"][row]),
            modified_ns=int(self._states["modified_ns"][row]),
            lacking=tuple(name for name in self._towers if not self._states[f"has:{name}"][row]),
        )

    def _rows_of_content(self, content_hash: str) -> list[int]:
        hashes = self._states["content_hash"]
        if self._by_content is None:
            self._by_content = np.argsort(hashes, kind="stable")
        order, wanted = self._by_content, np.array(content_hash, hashes.dtype)
        first, last = (int(np.searchsorted(hashes, wanted, side=side, sorter=order)) for side in ("left", "right"))
        return [int(row) for row in order[first:last] if self._states["bytes"][row]]
