"""Items being extracted: the store's records of them, items waiting for the next commit, and the report."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from frevl.encoders.interface import Embeddings, ImageTower, TextTower, stack
from frevl.errors import Reject, counted, rejects_sentence
from frevl.store.ids.rows_of_ids import RowsOfIds, find_rows
from frevl.store.reader import Store
from frevl.store.towers import Modality
from frevl.store.writer import Item, StoreWriter, TakeOver

__all__ = [
    "IN_A_TABLE",
    "CommitBuffer",
    "ExtractionReport",
    "KnownItem",
    "KnownItems",
    "PendingItem",
    "Row",
    "StoredItems",
    "embed_items",
]

IN_A_TABLE = -1
"""Modification time of an image from a table, which has no file that could disappear."""


@dataclass(frozen=True)
class KnownItem:
    """The store's record of an item before the extraction.

    Attributes:
        id: Id of the item.
        content_hash: Hash of its content.
        bytes: Size of the content; 0 for an imported image, whose file was never seen.
        modified_ns: Modification time of its file, or `IN_A_TABLE`.
        lacking: Towers of this extraction for which it has no embedding.
    """

    id: str
    content_hash: str
    bytes: int
    modified_ns: int
    lacking: tuple[str, ...]


class KnownItems(Protocol):
    """A store's records of items."""

    def get(self, id_: str) -> KnownItem | None:
        """Return the record of an item; None if the store had no such item."""

    def take_over(self, content_hash: str, is_gone: Callable[[str], bool]) -> tuple[KnownItem, bool] | None:
        """Find an item with this content whose embeddings another item can take over."""


class StoredItems:
    """The images, or the texts, of a store. Thread-safe. About 80 bytes per item, besides the ids.

    Args:
        store: A store; later writes do not change the answers.
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
        """Return whether there are no items."""
        return len(self._ids) == 0

    @property
    def count(self) -> int:
        """Return the number of items."""
        return len(self._ids)

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return ``(n,)`` int64: the row of each of some ids; -1 for ids that the store does not have."""
        return find_rows(self._rows, ids)

    @property
    def with_file(self) -> int:
        """Return how many items came from a file of their own, unlike imported ones and those inside tables."""
        return int(np.count_nonzero(self._has_file()))

    def get(self, id_: str) -> KnownItem | None:
        """Return the record of an item; None if the store had no such item."""
        row = self._rows.get(id_)
        return None if row is None else self._known(row)

    def lacking(self, ids: Sequence[str]) -> np.ndarray:
        """Return ``(n,)`` bool: whether an item lacks an embedding of one of the towers."""
        if not self._towers:
            return np.zeros(len(ids), bool)
        complete = np.logical_and.reduce([self._states[f"has:{name}"] for name in self._towers])
        rows = self.rows_of(ids)
        there = rows >= 0
        lacking = ~there
        lacking[there] = ~complete[rows[there]]
        return lacking

    def take_over(self, content_hash: str, is_gone: Callable[[str], bool]) -> tuple[KnownItem, bool] | None:
        """Find an item with this content whose embeddings another item can take over.

        Args:
            content_hash: Hash of the content.
            is_gone: Returns whether the file of an id no longer exists.

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

    def gone(self, seen: np.ndarray, is_gone: Callable[[str], bool]) -> np.ndarray:
        """Return ``(n,)`` int64, the rows of items neither seen nor moved whose file is gone; ascending.

        Imported items have no file.

        Args:
            seen: ``(n,)`` bool, by row.
            is_gone: Returns whether the file of an id no longer exists.
        """
        unseen = map(int, np.flatnonzero(self._has_file() & ~seen))
        named = ((row, self._id(row)) for row in unseen)  # not a list, as it may hold every image of another folder
        return np.fromiter((row for row, id_ in named if id_ not in self._moved and is_gone(id_)), np.int64)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows."""
        return [self._id(row) for row in rows.tolist()]

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


_COMMIT_BYTES = 16 << 20  # token embeddings of 1,024 images would take 128 MB, several times over


@dataclass(frozen=True)
class PendingItem:
    """An item to embed, or one that takes over the embeddings of another.

    Attributes:
        item: Identity of the item.
        action: The method of `StoreWriter` to call: ``append`` (new), ``replace`` (changed) or ``fill`` (more towers).
        prepared: Input of every tower that must embed it, by the tower's name.
        source: Id of an item with the same content whose embeddings it takes over first; None to embed it.
        moved: Whether the source leaves the store, because its file is now this one.
    """

    item: Item
    action: Literal["append", "replace", "fill"]
    prepared: dict[str, np.ndarray | str]
    source: str | None = None
    moved: bool = False


Row = dict[str, np.ndarray]
"""The embeddings of one item, ``(tokens, dim)`` in the stored type, by the name of the tower."""


def embed_items(
    items: Sequence[PendingItem], towers: Sequence[ImageTower] | Sequence[TextTower], dtypes: Mapping[str, str]
) -> tuple[list[Row], dict[int, str]]:
    """Embed a batch, each item with the towers for which it has an input.

    Args:
        items: The batch.
        towers: All towers.
        dtypes: Stored number type by name of the tower.

    Returns:
        One row per item, and, by position of the item, why it cannot be used.
    """
    rows: list[Row] = [{} for _ in items]
    refused: dict[int, str] = {}
    for tower in towers:
        needing = [i for i, one in enumerate(items) if tower.name in one.prepared]
        if not needing:
            continue
        embedded = tower.embed([items[i].prepared[tower.name] for i in needing])  # type: ignore[misc]
        with np.errstate(over="ignore"):  # overflows are refused below
            converted = [one.astype(dtypes[tower.name]) for one in embedded.items]
        for i, values in zip(needing, converted, strict=True):
            rows[i][tower.name] = values
            if not np.isfinite(values).all() or not values.any():
                refused[i] = f"its embedding by the tower '{tower.name}' is zero or not finite"
    return rows, refused


class CommitBuffer:
    """Embed items in batches and commit them by number, bytes or time, whichever comes first.

    Args:
        writer: An entered writer.
        modality: Modality of the items.
        towers: Towers that embed the items.
        rows: Number of items after which to commit.
        seconds: Number of seconds after which to commit.

    Attributes:
        writer: The writer.
        size: Number of items to pass at once.
        embedded: Number of items embedded by at least one tower.
        moved: Number of items that had another id before.
        copied: Number of items that took over the embeddings of another one that stays.
        rejected: Items that could not be used.
    """

    def __init__(
        self,
        writer: StoreWriter,
        modality: Modality,
        towers: Sequence[ImageTower] | Sequence[TextTower],
        *,
        rows: int,
        seconds: float,
    ) -> None:
        self.writer, self._modality, self._towers = writer, modality, towers
        self._rows_limit, self._seconds_limit = rows, seconds
        self.size = max(1, min(rows, max((tower.batch_size for tower in towers), default=1)))
        self.embedded = self.moved = self.copied = 0
        self.rejected: list[Reject] = []
        self._rows: list[tuple[PendingItem, Row]] = []
        self._bytes = self._rejects_written = 0
        self._since = time.monotonic()

    def reject(self, reject: Reject) -> None:
        """Record an unusable item, to be written with the next commit; found again if the process dies before that."""
        self.rejected.append(reject)
        self._commit_if_due()

    def add(self, items: Sequence[PendingItem]) -> None:
        """Embed a batch, and commit if due."""
        self.keep(items, *embed_items(items, self._towers, self.dtypes))

    def keep(self, items: Sequence[PendingItem], rows: Sequence[Row], refused: Mapping[int, str]) -> None:
        """Accept an embedded batch, and commit if due.

        Args:
            items: The items of the batch.
            rows: The rows returned by `embed_items`.
            refused: By position of an item, why it cannot be used.
        """
        self.rejected += [Reject(self._modality, items[i].item.id, reason) for i, reason in refused.items()]
        kept = [(one, row) for i, (one, row) in enumerate(zip(items, rows, strict=True)) if i not in refused]
        self._rows += kept
        self._bytes += sum(values.nbytes for row in rows for values in row.values())
        self.embedded += sum(bool(row) for _, row in kept)
        self.moved += sum(one.moved for one, _ in kept)
        self.copied += sum(one.source is not None and not one.moved for one, _ in kept)
        self._commit_if_due()

    @property
    def dtypes(self) -> dict[str, str]:
        """The stored number type of every tower, by name."""
        return {tower.name: self.writer.store.towers[tower.name].identity["dtype"] for tower in self._towers}

    def commit(self) -> None:
        """Write the pending items; those that need the same operation share a commit."""
        write = {"append": self.writer.append, "replace": self.writer.replace, "fill": self.writer.fill}
        taken = [TakeOver(one.source, one.item, one.moved) for one, _ in self._rows if one.source is not None]
        if taken:
            self.writer.take_over(self._modality, taken)

        def treatment(entry: tuple[PendingItem, Row]) -> tuple[str, tuple[str, ...]]:
            return entry[0].action, tuple(entry[1])

        waiting = sorted((entry for entry in self._rows if entry[1]), key=treatment)
        for (action, names), group in groupby(waiting, key=treatment):
            entries = list(group)
            columns = {name: Embeddings(*stack([row[name] for _, row in entries])) for name in names}
            write[action](self._modality, [one.item for one, _ in entries], columns)
        self.writer.reject(self.rejected[self._rejects_written :])
        self._rejects_written = len(self.rejected)
        self._rows, self._bytes, self._since = [], 0, time.monotonic()

    def _commit_if_due(self) -> None:
        waiting = len(self._rows) + len(self.rejected) - self._rejects_written
        waited = time.monotonic() - self._since
        if waiting >= self._rows_limit or self._bytes >= _COMMIT_BYTES or waited >= self._seconds_limit:
            self.commit()


@dataclass
class ExtractionReport:
    """The result of an extraction.

    Attributes:
        store: Path of the store.
        images: Number of images embedded by this call with at least one tower.
        texts: Number of texts embedded by this call.
        images_kept: Number of images that were already in the store, unchanged.
        texts_kept: Number of texts that were already in the store.
        texts_unread: Number of texts in this call of which the encoders cannot read most letters.
        images_moved: Number of images that the store had under another name, whose file is gone; nothing was embedded.
        images_copied: Number of images with the same content as another one in the store; nothing was embedded.
        images_gone: Number of stored images that have no file in the folder.
        images_pruned: How many of those were removed.
        rejects: Items left out by this call.
        notes: Notes for the user.
        seconds: Wall time in seconds.
    """

    store: str
    images: int = 0
    texts: int = 0
    images_kept: int = 0
    texts_kept: int = 0
    texts_unread: int = 0
    images_moved: int = 0
    images_copied: int = 0
    images_gone: int = 0
    images_pruned: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl extract --json` writes."""
        return {**vars(self), "rejects": [vars(reject) for reject in self.rejects]}

    def sentence(self) -> str:
        """Return a one-line summary."""
        done = (
            f"Embedded {counted(self.images, 'image')} and {counted(self.texts, 'text')} in {self.seconds:.1f} s; "
            f"{counted(self.images_kept, 'image')} and {counted(self.texts_kept, 'text')} were already in the store."
        )
        return " ".join([done, *self.notes, rejects_sentence(self.rejects)]).rstrip()
