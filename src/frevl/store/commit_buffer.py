"""Embedded items that wait for the next commit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from frevl.encoders.interface import Embeddings, ImageTower, TextTower, stack
from frevl.rejects import Reject
from frevl.store.towers import Modality
from frevl.store.writer import Item, StoreWriter

__all__ = ["Pending", "Work"]

_COMMIT_BYTES = 16 << 20  # token embeddings of 1,024 images would be 128 MB, several times on their way to the disk


@dataclass(frozen=True)
class Work:
    """One item on its way: what the store knows of it decides what has to be done.

    Attributes:
        item: Identity of the item.
        way: ``append`` (new), ``replace`` (changed) or ``fill`` (further towers): the method of `StoreWriter`.
        prepared: Input of every tower that has to see it, by the tower's name.
    """

    item: Item
    way: str
    prepared: dict[str, np.ndarray | str]


class Pending:
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
        self.embedded = 0
        self.rejected: list[Reject] = []
        self._rows: list[tuple[Work, dict[str, np.ndarray]]] = []
        self._bytes = self._rejects_written = 0
        self._since = time.monotonic()
        self._known = writer.store.positions(modality)
        self._states = writer.store.states(modality)

    def state(self, id_: str) -> dict[str, Any] | None:
        """Return what the store knew of an item when this began: hash, bytes, time, ``lacking`` towers; or None."""
        row = self._known.get(id_)
        if row is None:
            return None
        return {
            "content_hash": self._states["content_hash"][row].decode(),
            "bytes": self._states["bytes"][row],
            "modified_ns": self._states["modified_ns"][row],
            "lacking": [tower.name for tower in self._towers if not self._states[f"has:{tower.name}"][row]],
        }

    def reject(self, reject: Reject) -> None:
        """Keep what cannot be used; written with the next commit, found again if the process dies before."""
        self.rejected.append(reject)
        self._commit_if_due()

    def add(self, work: Sequence[Work]) -> None:
        """Embed a batch, and commit if it is time to."""
        rows: list[dict[str, np.ndarray]] = [{} for _ in work]
        refused: dict[int, str] = {}
        for tower in self._towers:
            dtype = self.writer.store.towers[tower.name].identity["dtype"]
            needing = [i for i, one in enumerate(work) if tower.name in one.prepared]
            if not needing:
                continue
            embedded = tower.embed([work[i].prepared[tower.name] for i in needing])  # type: ignore[misc]
            with np.errstate(over="ignore"):  # what overflows is refused below
                items = [item.astype(dtype) for item in embedded.items]
            for i, values in zip(needing, items, strict=True):
                rows[i][tower.name] = values
                if not np.isfinite(values).all() or not values.any():
                    refused[i] = f"the tower '{tower.name}' gives it no finite embedding that differs from zero"
        self.rejected += [Reject(self._modality, work[i].item.id, reason) for i, reason in refused.items()]
        self._rows += [pair for i, pair in enumerate(zip(work, rows, strict=True)) if i not in refused]
        self._bytes += sum(values.nbytes for row in rows for values in row.values())
        self.embedded += len(work) - len(refused)
        self._commit_if_due()

    def commit(self) -> None:
        """Write what waits; items that need the same treatment go in one commit."""
        write = {"append": self.writer.append, "replace": self.writer.replace, "fill": self.writer.fill}

        def treatment(entry: tuple[Work, dict[str, np.ndarray]]) -> tuple[str, tuple[str, ...]]:
            return entry[0].way, tuple(entry[1])

        for (way, names), group in groupby(sorted(self._rows, key=treatment), key=treatment):
            entries = list(group)
            columns = {name: Embeddings(*stack([row[name] for _, row in entries])) for name in names}
            write[way](self._modality, [work.item for work, _ in entries], columns)
        self.writer.reject(self.rejected[self._rejects_written :])
        self._rejects_written = len(self.rejected)
        self._rows, self._bytes, self._since = [], 0, time.monotonic()

    def _commit_if_due(self) -> None:
        waiting = len(self._rows) + len(self.rejected) - self._rejects_written
        waited = time.monotonic() - self._since
        if waiting >= self._rows_limit or self._bytes >= _COMMIT_BYTES or waited >= self._seconds_limit:
            self.commit()
