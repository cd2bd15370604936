"""Look up the row of an id in a large table: sorted hashes in a mapped file, verified against the ids themselves.

A dictionary of ids takes 150 bytes and half a microsecond per row before the first answer. Here, a row takes 12 bytes,
on disk if possible, and a look-up reads the ids of the rows found, so a match is always the id itself, never just its
hash.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frevl.data.packed.columns import Coded
from frevl.store.ids.hashing import as_arrow, id_hash, id_hashes

__all__ = ["KnownIds", "RowsOfIds", "Segment", "ascending", "find_rows", "ids_in_order", "rows_of_values"]

_AT_ONCE = 1 << 20  # ids looked up at a time


@dataclass(frozen=True)
class Segment:
    """Rows of some consecutive parts of a table.

    Attributes:
        hashes: ``(n,)`` hashes of the ids, ascending.
        rows: ``(n,)`` rows of these ids, counted from the first row of the segment.
        first: The first row of the segment.
    """

    hashes: NDArray[np.uint64]
    rows: NDArray[np.uint32]
    first: int


class RowsOfIds(Mapping[str, int]):
    """A mapping from id to row; use `find_rows` for many at once, as a single look-up takes a millisecond.

    Args:
        count: Number of rows.
        segments: Creates the segments when the first id is requested.
        read: Returns the ids of ascending rows.
        scan: Yields all ids in row order.
    """

    def __init__(
        self,
        count: int,
        segments: Callable[[], Sequence[Segment]],
        read: Callable[[NDArray[np.int64]], pa.Array],
        scan: Callable[[], Iterator[pa.Array]],
    ) -> None:
        self._count, self._make, self._read, self._scan = count, segments, read, scan
        self._segments: Sequence[Segment] | None = None

    @classmethod
    def of(cls, ids: pa.Array | pa.ChunkedArray) -> RowsOfIds:
        """Return a look-up of ids in memory: 12 bytes for each besides the ids themselves."""
        held = as_arrow(ids)

        def segments() -> list[Segment]:
            hashes = id_hashes(held)
            order = np.argsort(hashes, kind="stable")
            return [Segment(hashes[order], order.astype(np.uint32), 0)]

        return cls(len(held), segments, lambda rows: held.take(pa.array(rows)), lambda: iter([held]))

    def find(self, ids: Sequence[str] | pa.Array) -> NDArray[np.int64]:
        """Return ``(n,)``: the row of each id; -1 if there is none."""
        found = np.full(len(ids), -1, np.int64)
        for start in range(0, len(ids), _AT_ONCE):
            found[start : start + _AT_ONCE] = self._find(as_arrow(ids[start : start + _AT_ONCE]))
        return found

    def _find(self, ids: pa.Array) -> NDArray[np.int64]:
        found = np.full(len(ids), -1, np.int64)
        hashes = id_hashes(ids)
        order = np.argsort(hashes, kind="stable")  # neighbours are looked for in neighbouring pages
        ordered = hashes[order]
        for segment in self._all():
            begin = np.searchsorted(segment.hashes, ordered, side="left")
            counts = np.searchsorted(segment.hashes, ordered, side="right") - begin
            asked = np.repeat(order, counts)
            within = np.arange(len(asked)) - np.repeat(np.cumsum(counts) - counts, counts)
            rows = segment.rows[np.repeat(begin, counts) + within].astype(np.int64) + segment.first
            if len(rows):
                there, at = np.unique(rows, return_inverse=True)
                same = pc.equal(self._read(there).cast(pa.large_string()).take(pa.array(at)), ids.take(pa.array(asked)))
                right = pc.fill_null(same, fill_value=False).to_numpy(zero_copy_only=False)
                np.maximum.at(found, asked[right], rows[right])  # if an id occurs twice, the last row wins
        return found

    def in_memory(self) -> tuple[RowsOfIds, pa.Array]:
        """Return the same look-up over ids in memory, with these as one Arrow array: a single id takes 30 µs."""
        ids = pa.chunked_array([some.cast(pa.large_string()) for some in self._scan()], pa.large_string())
        held = ids.combine_chunks()
        held = held if isinstance(held, pa.Array) else pa.concat_arrays(held.chunks)
        return RowsOfIds(self._count, self._all, lambda rows: held.take(pa.array(rows)), lambda: iter([held])), held

    def _all(self) -> Sequence[Segment]:
        if self._segments is None:
            self._segments = self._make()
        return self._segments

    def _row_of(self, id_: str) -> int:
        """Return the row of one id, -1 for none."""
        try:
            hash_ = id_hash(id_)
        except UnicodeError:
            return -1
        found = -1
        for segment in self._all():
            hashes = memoryview(segment.hashes)  # type: ignore[arg-type]
            begin = bisect_left(hashes, hash_)
            end = begin
            while end < len(hashes) and hashes[end] == hash_:
                end += 1
            if end > begin:
                rows = np.sort(segment.rows[begin:end].astype(np.int64)) + segment.first
                there = self._read(rows).to_pylist()
                found = max([found, *(row for row, one in zip(rows.tolist(), there, strict=True) if one == id_)])
        return found

    def __getitem__(self, id_: str) -> int:
        row = self._row_of(id_) if isinstance(id_, str) else -1
        if row < 0:
            raise KeyError(id_)
        return row

    def __contains__(self, id_: object) -> bool:
        return isinstance(id_, str) and self._row_of(id_) >= 0

    def __iter__(self) -> Iterator[str]:
        for ids in self._scan():
            yield from ids.to_pylist()

    def __len__(self) -> int:
        return self._count


class KnownIds(Collection[str]):
    """The ids of a store plus some others that count as known.

    Args:
        known: `frevl.store.reader.Store.positions`.
        others: Further ids.
    """

    def __init__(self, known: Mapping[str, int], others: Collection[str]) -> None:
        self._known = known
        self._others = {id_: len(known) + row for row, id_ in enumerate(others)}

    def find(self, ids: Sequence[str] | pa.Array) -> NDArray[np.int64]:
        """Return ``(n,)``: a number for each id; -1 if unknown."""
        found = find_rows(self._known, ids)
        for row in np.flatnonzero(found < 0).tolist() if self._others else ():
            id_ = ids[row].as_py() if isinstance(ids, pa.Array) else ids[row]
            found[row] = self._others.get(id_, -1)
        return found

    def __contains__(self, id_: object) -> bool:
        return id_ in self._others or id_ in self._known

    def __iter__(self) -> Iterator[str]:
        yield from self._known
        yield from (id_ for id_ in self._others if id_ not in self._known)

    def __len__(self) -> int:
        return len(self._known) + sum(id_ not in self._known for id_ in self._others)


def find_rows(known: Mapping[str, int] | KnownIds, ids: Sequence[str] | pa.Array) -> NDArray[np.int64]:
    """Return the row of each of some ids.

    Args:
        known: `frevl.store.reader.Store.positions`, or a dictionary.
        ids: Any ids, repeats allowed.

    Returns:
        ``(n,)`` int64 rows, -1 for unknown ids.
    """
    if isinstance(known, RowsOfIds | KnownIds):
        return known.find(ids)
    names: Iterable[str] = ids
    if isinstance(ids, pa.Array):  # few objects at a time
        parts = (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))
        names = chain.from_iterable(part.to_pylist() for part in parts)
    return np.fromiter(map(known.get, names, repeat(-1)), np.int64, len(ids))


def rows_of_values(known: Mapping[str, int] | KnownIds, column: Sequence[str]) -> NDArray[np.int64]:
    """Return ``(n,)``: the row of each id in a column of pairs; distinct values of a `Coded` are looked up once."""
    if not isinstance(column, Coded):
        return find_rows(known, column)
    used = column.used()
    answers = np.full(len(column.values), -1, np.int64)
    for start in range(0, len(used), _AT_ONCE):
        some = used[start : start + _AT_ONCE]
        answers[some] = find_rows(known, column.values.take(pa.array(some)))
    found: NDArray[np.int64] = answers[column.codes]
    return found


def ascending(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
    """Return the distinct rows in ascending order, and indices that lead back to the given ones; None if identical."""
    if bool((rows[1:] > rows[:-1]).all()):
        return rows, None
    return np.unique(rows, return_inverse=True)


def ids_in_order(known: Mapping[str, int]) -> pa.Array:
    """Return the ids of `frevl.store.reader.Store.positions` in row order.

    They take a quarter of the memory of a list. All come from one version of the store, even if others write to it.
    """
    return known.in_memory()[1] if isinstance(known, RowsOfIds) else pa.array(list(known), pa.large_string())
