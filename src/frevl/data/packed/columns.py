"""Columns of pairs without Python objects: every distinct value once, as an Arrow string, and a code per pair."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "Chained",
    "Coded",
    "Places",
    "WithCluster",
    "by_value",
    "chosen",
    "coded_values",
    "different",
    "in_order",
    "is_given",
    "joined",
    "joined_codes",
    "one_column",
    "ranks",
    "rows_at",
]

V = TypeVar("V")

_AT_ONCE = 65_536  # values that are Python objects at a time


class Coded(Sequence[V], Generic[V]):
    """A sequence that stores each distinct value once.

    It behaves like a list and creates values on access. Code that handles many pairs uses ``codes`` and processes each
    of the ``values`` once.

    Attributes:
        codes: ``(n,)`` int32, the number of each position's value.
        values: Arrow array of the distinct strings; after a selection, some may no longer be used.
    """

    def __init__(self, codes: np.ndarray, values: pa.Array, decode: Callable[[str], V] | None = None) -> None:
        """Create a column; strings that are not the values themselves need a decoder (such as JSON's)."""
        self.codes, self.values, self._decode = codes, values, decode

    @classmethod
    def of(cls, codes: np.ndarray, values: Sequence[str]) -> Coded[str]:
        """Create a column of texts from codes and the distinct texts."""
        import pyarrow as pa

        if isinstance(values, Coded) and values.plain:  # without creating a Python object for each
            texts = values.values.take(pa.array(values.codes)).cast(pa.large_string())
            return Coded(codes.astype(np.int32), texts)
        return Coded(codes.astype(np.int32), pa.array(values, pa.large_string()))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, position: int) -> V: ...
    @overload
    def __getitem__(self, position: slice) -> Coded[V]: ...
    def __getitem__(self, position: int | slice) -> V | Coded[V]:
        if isinstance(position, slice):
            return self.with_codes(self.codes[position])
        return self.value(int(self.codes[position]))

    def __iter__(self) -> Iterator[V]:
        for start in range(0, len(self), _AT_ONCE):
            texts = self.values.take(self._indices(self.codes[start : start + _AT_ONCE])).to_pylist()
            yield from texts if self._decode is None else map(self._decode, texts)

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[V]) -> list[V]:
        return [*self, *other]

    def __radd__(self, other: Sequence[V]) -> list[V]:
        return [*other, *self]

    def __repr__(self) -> str:
        return f"<{len(self):,} values, {len(self.values):,} different>"

    @property
    def plain(self) -> bool:
        """Return whether the strings are the values themselves."""
        return self._decode is None

    def with_codes(self, codes: np.ndarray) -> Coded[V]:
        """Return a column with the same values and other codes."""
        return Coded(codes, self.values, self._decode)

    def value(self, code: int) -> V:
        """Return the value of a code."""
        text = self.values[code].as_py()
        return text if self._decode is None else self._decode(text)

    def used(self) -> np.ndarray:
        """Return the codes that occur, ascending."""
        there = np.zeros(len(self.values), bool)
        there[self.codes] = True
        return np.flatnonzero(there)

    def used_values(self) -> Coded[V]:
        """Return every value that occurs, once, in the order of codes."""
        return self.with_codes(self.used())

    @staticmethod
    def _indices(codes: np.ndarray) -> pa.Array:
        import pyarrow as pa

        return pa.array(codes, pa.int32())


class Places(Sequence[str]):
    """Locations of pairs: ``file:line``.

    Attributes:
        path: The file, or the table in parts, as it was given.
        lines: ``(n,)`` line of each pair, counted from 1.
        place: Maps a line to its place.
    """

    def __init__(self, path: str, lines: np.ndarray, place: Callable[[int], str]) -> None:
        self.path, self.lines, self.place = path, lines, place

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> Places: ...
    def __getitem__(self, position: int | slice) -> str | Places:
        if isinstance(position, slice):
            return self.select(position)
        return self.place(int(self.lines[position]))

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[str]) -> list[str]:
        return [*self, *other]

    def select(self, rows: np.ndarray | slice) -> Places:
        """Return the places of selected pairs."""
        return Places(self.path, self.lines[rows], self.place)


class WithCluster(Sequence[dict[str, Any]]):
    """Extra keys of pairs, with a separately stored key ``cluster``.

    Attributes:
        extras: The other keys of each pair.
        clusters: Cluster of each pair.
    """

    def __init__(self, extras: Sequence[dict[str, Any]], clusters: Coded[str]) -> None:
        self.extras, self.clusters = extras, clusters

    def __len__(self) -> int:
        return len(self.clusters)

    @overload
    def __getitem__(self, position: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, position: slice) -> WithCluster: ...
    def __getitem__(self, position: int | slice) -> dict[str, Any] | WithCluster:
        if isinstance(position, slice):
            return WithCluster(self.extras[position], self.clusters[position])
        return {**self.extras[position], "cluster": self.clusters[position]}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for extra, cluster in zip(self.extras, self.clusters, strict=True):
            yield {**extra, "cluster": cluster}

    def __eq__(self, other: object) -> bool:
        return _equal(self, other)

    __hash__ = None  # type: ignore[assignment]


class Chained(Sequence[V], Generic[V]):
    """Several columns, concatenated.

    Attributes:
        parts: The columns.
    """

    def __init__(self, parts: Sequence[Sequence[V]]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    @overload
    def __getitem__(self, position: int) -> V: ...
    @overload
    def __getitem__(self, position: slice) -> list[V]: ...
    def __getitem__(self, position: int | slice) -> V | list[V]:
        if isinstance(position, slice):
            return list(self)[position]
        position = range(len(self))[position]
        for part in self.parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise IndexError(position)

    def __iter__(self) -> Iterator[V]:
        for part in self.parts:
            yield from part


def _equal(one: Sequence[object], other: object) -> bool:
    if not isinstance(other, Sequence) or isinstance(other, str) or len(one) != len(other):
        return False
    return all(a == b for a, b in zip(one, other, strict=True))


def coded_values(column: Sequence[V]) -> tuple[np.ndarray, Sequence[V]]:
    """Return the number of each position's value, ``(n,)``, and the values: each once, in any order; all occur.

    Args:
        column: Hashable values, as a list or `Coded`.
    """
    if isinstance(column, Coded):
        used = column.used()
        if len(used) == len(column.values):
            return column.codes, column.used_values()
        number = np.zeros(len(column.values), np.int32)
        number[used] = np.arange(len(used), dtype=np.int32)
        return number[column.codes], column.used_values()
    numbers: dict[V, int] = {}
    codes = np.fromiter((numbers.setdefault(value, len(numbers)) for value in column), np.int64, len(column))
    return codes, list(numbers)


def chosen(column: Sequence[V], rows: Sequence[int] | np.ndarray) -> Sequence[V]:
    """Return the values at given positions, as a column of the same kind."""
    if isinstance(column, Coded):
        return column.with_codes(column.codes[np.asarray(rows, np.int64)])
    if isinstance(column, Places):
        return column.select(np.asarray(rows, np.int64))  # type: ignore[return-value]
    if isinstance(column, WithCluster):
        clusters = column.clusters.with_codes(column.clusters.codes[np.asarray(rows, np.int64)])
        return WithCluster(chosen(column.extras, rows), clusters)  # type: ignore[return-value]
    return [column[i] for i in rows]


def rows_at(places: Sequence[str], some: Sequence[str]) -> np.ndarray:
    """Return the row of each of some places among all places, ``(n,)`` int64; every place occurs once."""
    if isinstance(places, Places) and isinstance(some, Places) and places.path == some.path:
        order = np.argsort(places.lines, kind="stable")
        found: np.ndarray = order[np.searchsorted(places.lines, some.lines, sorter=order)]
        return found
    row_of = {place: row for row, place in enumerate(places)}
    return np.fromiter((row_of[place] for place in some), np.int64, len(some))


def by_value(column: Sequence[V], function: Callable[[V], Any], dtype: type) -> np.ndarray:
    """Return a function's result for each value, ``(n,)``; for a `Coded`, it is called once per distinct value."""
    if not isinstance(column, Coded):
        return np.array([function(value) for value in column], dtype)
    used = column.used()
    answers: np.ndarray = np.zeros(len(column.values), dtype)
    answers[used] = [function(value) for value in column.with_codes(used)]
    found: np.ndarray = answers[column.codes]
    return found


def is_given(column: Sequence[object]) -> np.ndarray:
    """Return whether each value is not None, ``(n,)`` bool."""
    return by_value(column, lambda value: value is not None, bool)


def different(column: Sequence[V]) -> Sequence[V]:
    """Return every distinct value of a `Coded`; all values of another column."""
    return column.used_values() if isinstance(column, Coded) else column


def joined(columns: Sequence[Sequence[V]]) -> tuple[list[np.ndarray], Sequence[V]]:
    """Number the values of several columns together, in the order in which they first appear.

    Returns:
        ``(n,)`` int64 numbers for each column, and the distinct values: a list, or `Coded` if the columns are codes.
    """
    first = columns[0]
    if isinstance(first, Coded) and all(isinstance(one, Coded) and one.values is first.values for one in columns):
        codes = [one.codes for one in columns if isinstance(one, Coded)]
        at, end = np.full(len(first.values), -1, np.int64), sum(map(len, codes))
        for one in reversed(codes):  # the last write wins: the first position of a value
            end -= len(one)
            at[one[::-1]] = np.arange(end + len(one) - 1, end - 1, -1)
        used = np.flatnonzero(at >= 0)
        used = used[np.argsort(at[used], kind="stable")]
        number = np.zeros(len(first.values), np.int64)
        number[used] = np.arange(len(used))
        return [number[one] for one in codes], first.with_codes(used)
    numbers: dict[V, int] = {}
    found = [np.fromiter((numbers.setdefault(v, len(numbers)) for v in one), np.int64, len(one)) for one in columns]
    return found, list(numbers)


def one_column(columns: Sequence[Sequence[V]]) -> Sequence[V]:
    """Concatenate columns; the result is coded if all have the same values."""
    first = columns[0]
    if isinstance(first, Coded) and all(isinstance(one, Coded) and one.values is first.values for one in columns):
        return first.with_codes(np.concatenate([one.codes for one in columns if isinstance(one, Coded)]))
    return [value for column in columns for value in column]


def in_order(values: Sequence[str]) -> np.ndarray:
    """Return the positions of distinct texts in ascending order of code points."""
    if isinstance(values, Coded) and values.plain:
        import pyarrow as pa
        from pyarrow import compute as pc

        # UTF-8 preserves code point order, so bytes can be compared.
        found: np.ndarray = pc.sort_indices(values.values.take(pa.array(values.codes))).to_numpy().astype(np.int64)
        return found
    listed = list(values)
    return np.array(sorted(range(len(listed)), key=listed.__getitem__), np.int64)


def ranks(column: Sequence[str]) -> np.ndarray:
    """Return for each text the number of distinct smaller ones in the column, ``(n,)`` int64."""
    codes, values = coded_values(column)
    rank = np.empty(len(values), np.int64)
    rank[in_order(values)] = np.arange(len(values))
    found: np.ndarray = rank[codes]
    return found


_MANY = 1 << 20  # distinct values: finding duplicates takes four times their memory, so it is done in portions
_SHARES = 8  # an eighth at a time: those whose byte sums have the same remainder


def joined_codes(parts: list[pa.DictionaryArray]) -> pa.DictionaryArray:
    """Return the codes of all parts, in one numbering of their values.

    Args:
        parts: Dictionary-encoded large strings, without nulls; the list is emptied.
    """
    import pyarrow as pa

    values, codes = [part.dictionary for part in parts], [part.indices.to_numpy() for part in parts]
    parts.clear()
    shares = _SHARES if sum(map(len, values)) > _MANY else 1
    share_of = [_byte_sums(one) % shares for one in values]
    numbers = [np.empty(len(one), np.int32) for one in values]
    found, count = [], 0
    for share in range(shares):
        rows = [np.flatnonzero(one == share) for one in share_of]
        some = pa.chunked_array(
            [one.take(pa.array(at)) for one, at in zip(values, rows, strict=True)], pa.large_string()
        )
        encoded = some.combine_chunks().dictionary_encode()
        new, start = encoded.indices.to_numpy() + count, 0
        for own, at in zip(numbers, rows, strict=True):
            own[at] = new[start : start + len(at)]
            start += len(at)
        found.append(encoded.dictionary)
        count += len(encoded.dictionary)
        del some, encoded, new
    values.clear()
    pa.default_memory_pool().release_unused()
    whole = np.concatenate([own[code] for own, code in zip(numbers, codes, strict=True)])
    return pa.DictionaryArray.from_arrays(pa.array(whole), pa.concat_arrays(found))


def _byte_sums(values: pa.LargeStringArray) -> np.ndarray:
    """Return the sum of the bytes of each text."""
    _, at, data = values.buffers()
    places = np.frombuffer(at, np.int64)[values.offset : values.offset + len(values) + 1]
    if data is None:
        return np.zeros(len(values), np.uint32)
    sums = np.concatenate([np.zeros(1, np.uint32), np.cumsum(np.frombuffer(data, np.uint8), dtype=np.uint32)])
    difference: np.ndarray = sums[places[1:]] - sums[places[:-1]]
    return difference
