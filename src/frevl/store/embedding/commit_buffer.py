"""Embedded items waiting for the next commit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np

from frevl.encoders.interface import Embeddings, ImageTower, TextTower, stack
from frevl.errors import Reject
from frevl.store.towers import Modality
from frevl.store.writer import Item, StoreWriter, TakeOver

__all__ = ["CommitBuffer", "PendingItem", "Row", "embed_items"]

_COMMIT_BYTES = 16 << 20  # token embeddings of 1,024 images would be 128 MB, several times on their way to the disk


@dataclass(frozen=True)
class PendingItem:
    """One item that has to be embedded, or that takes over the embeddings of another one.

    Attributes:
        item: Identity of the item.
        action: ``append`` (new), ``replace`` (changed) or ``fill`` (further towers): the method of `StoreWriter`.
        prepared: Input of every tower that has to see it, by the tower's name.
        source: Id of an item of the same content whose embeddings it takes over before; None to embed it.
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
    """Embed a batch, each item with the towers that it has an input for.

    Args:
        items: The batch.
        towers: All towers.
        dtypes: The stored type, by the name of a tower.

    Returns:
        One row an item; and, by the place of an item, why it cannot be used.
    """
    rows: list[Row] = [{} for _ in items]
    refused: dict[int, str] = {}
    for tower in towers:
        needing = [i for i, one in enumerate(items) if tower.name in one.prepared]
        if not needing:
            continue
        embedded = tower.embed([items[i].prepared[tower.name] for i in needing])  # type: ignore[misc]
        with np.errstate(over="ignore"):  # what overflows is refused below
            converted = [one.astype(dtypes[tower.name]) for one in embedded.items]
        for i, values in zip(needing, converted, strict=True):
            rows[i][tower.name] = values
            if not np.isfinite(values).all() or not values.any():
                refused[i] = f"the tower '{tower.name}' gives it no finite embedding that differs from zero"
    return rows, refused


class CommitBuffer:
    """Embeds items batch by batch and commits them by number, bytes or time, whichever comes first.

    Args:
        writer: An entered writer.
        modality: Of the items.
        towers: Towers that embed them.
        rows: Commit after this many items,
        seconds: or after this many seconds.

    Attributes:
        writer: The writer.
        size: How many items to hand over at once.
        embedded: How many items were embedded by at least one tower.
        moved: How many items had another id before.
        copied: How many items took over the embeddings of another one that stays.
        rejected: What could not be used.
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
        """Record what cannot be used: written with the next commit, and found again if the process dies first."""
        self.rejected.append(reject)
        self._commit_if_due()

    def add(self, items: Sequence[PendingItem]) -> None:
        """Embed a batch, and commit if it is time."""
        self.keep(items, *embed_items(items, self._towers, self.dtypes))

    def keep(self, items: Sequence[PendingItem], rows: Sequence[Row], refused: Mapping[int, str]) -> None:
        """Take a batch that is embedded, and commit if it is time.

        Args:
            items: They.
            rows: What `embed_items` says of each.
            refused: By the place of an item, why it cannot be used.
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
        """The stored type of every tower, by its name."""
        return {tower.name: self.writer.store.towers[tower.name].identity["dtype"] for tower in self._towers}

    def commit(self) -> None:
        """Write the pending items; those that need the same treatment share a commit."""
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
