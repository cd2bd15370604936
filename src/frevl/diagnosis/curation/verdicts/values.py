"""A filter's findings as one JSON object per line, created on access."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

__all__ = ["AT_ONCE", "Values"]

AT_ONCE = 4_096
"""Number of lines that are Python objects at a time."""


class Values(Sequence[Mapping[str, Any]]):
    """One mapping per line, created from a filter's arrays whenever it is read.

    Ten million dictionaries would take gigabytes; the arrays behind them take a few bytes per line.

    Args:
        count: Number of lines.
        make: Returns the mappings of some consecutive lines. A slice has a start, an end within ``count`` and no step.
    """

    def __init__(self, count: int, make: Callable[[slice], Iterable[Mapping[str, Any]]]) -> None:
        self._count, self._make = count, make

    @classmethod
    def same(cls, count: int, value: Mapping[str, Any]) -> Values:
        """Return the same mapping for every line."""
        return cls(count, lambda part: [dict(value) for _ in range(part.start, part.stop)])

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, position: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, position: slice) -> list[Mapping[str, Any]]: ...
    def __getitem__(self, position: int | slice) -> Mapping[str, Any] | list[Mapping[str, Any]]:
        rows = range(self._count)[position]
        if isinstance(rows, int):
            return next(iter(self._make(slice(rows, rows + 1))))
        if rows.step != 1:
            return [self[row] for row in rows]
        return list(self._make(slice(rows.start, max(rows.start, rows.stop))))

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for start in range(0, self._count, AT_ONCE):
            yield from self._make(slice(start, min(start + AT_ONCE, self._count)))
