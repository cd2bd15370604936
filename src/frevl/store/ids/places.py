"""Locate the rows of ids in a large table's files, so that a writer need not read all ids for a commit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import write_fragments
from numpy.typing import NDArray

from frevl.store.commits.failures import writing
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.lance_tables import Snapshot, existing_table

__all__ = ["Places", "exchange_rows"]


class Places:
    """A table at one version, and which of its rows have since been replaced or deleted.

    A part of a Lance table keeps its number, and a row keeps its position in the part, until the whole part is
    rewritten. An unchanged row can therefore be read from the old version and marked as deleted in the newest.

    Args:
        store: Folder of the store.
        name: Name of the table being written.
    """

    def __init__(self, store: Path, name: str) -> None:
        self._at, self._name = Snapshot(store, (name,)), name
        self._changed = np.zeros(self._at.count(name), bool)
        self.version = self._at.versions[name]

    def find(self, ids: pa.Array) -> NDArray[np.int64] | None:
        """Return the ``(n,)`` rows of ids in the old version; None unless all exist, unchanged and distinct."""
        rows = find_rows(self._at.rows(self._name), ids)
        same = len(rows) > 0 and rows.min() >= 0 and not self._changed[rows].any()
        return rows if same and len(np.unique(rows)) == len(rows) else None

    def take(self, rows: NDArray[np.int64]) -> pa.Table:
        """Return whole rows of the old version, in any order."""
        ordered, at = np.unique(rows, return_inverse=True)
        return self._at.take_rows(self._name, ordered).take(pa.array(at))

    def places(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield the number of every part with some of these rows, and their positions in it."""
        parts = self._at.take(self._name, "_rowaddr", np.sort(rows), rows_at_once=65_536)
        addresses = pa.concat_arrays([*parts]).to_numpy().astype(np.int64)
        numbers = addresses >> 32
        for number in np.unique(numbers).tolist():
            yield number, addresses[numbers == number] & 0xFFFFFFFF

    def mark(self, ids: pa.Array) -> None:
        """Record that the rows of these ids have changed."""
        rows = find_rows(self._at.rows(self._name), ids)
        self._changed[rows[rows >= 0]] = True


def exchange_rows(
    store: Path, name: str, rows: pa.Table, places: Iterable[tuple[int, np.ndarray]]
) -> lance.LanceDataset | None:
    """Replace rows in one atomic commit without reading ids.

    Args:
        store: Folder of the store.
        name: Name of the table.
        rows: Rows with all columns of the table.
        places: The rows to replace: numbers of parts of the table, and positions in each.

    Returns:
        The table; None if one of the parts has been rewritten, in which case nothing was done.

    Raises:
        StoreError: The table is missing, or cannot be written.
    """
    table = existing_table(store, name)
    with writing(store, name):
        updated, removed = [], []
        for number, those in places:
            part = table.get_fragment(number)
            if part is None:
                return None
            left = part.delete_rows(those.tolist())
            if left is None:
                removed.append(number)
            else:
                updated.append(left)
        rows = rows.select(table.schema.names).cast(table.schema)
        new = write_fragments(rows, table, max_rows_per_file=max(len(rows), 1))
        operation = lance.LanceOperation.Update(
            removed_fragment_ids=removed, updated_fragments=updated, new_fragments=new
        )
        return lance.LanceDataset.commit(table, operation, read_version=table.version)
