"""Which of a few reasons apply to each line, such as the filters that drop it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

__all__ = ["Reasons"]


class Reasons(Sequence[list[str]]):
    """For every line, the names of the reasons that apply to it, in a fixed order.

    Args:
        names: At most 16 names, in the order in which they are listed.
        lines: Number of lines; at first, no reason applies to any of them.

    Attributes:
        names: The names.
        bits: ``(n,)`` uint16; bit ``i`` is set if reason ``i`` applies.
    """

    def __init__(self, names: Sequence[str], lines: int) -> None:
        self.names = list(names)
        self.bits: NDArray[np.uint16] = np.zeros(lines, np.uint16)
        self._lists: dict[int, list[str]] = {}

    def add(self, name: str, rows: NDArray[np.bool_] | NDArray[np.int64]) -> None:
        """Let a reason apply to lines, given by a mask or by their numbers (each at most once)."""
        self.bits[rows] |= self._bit(name)

    @property
    def clear(self) -> NDArray[np.bool_]:
        """To which lines no reason applies, ``(n,)`` bool."""
        return np.asarray(self.bits == 0)

    def by(self, name: str) -> NDArray[np.bool_]:
        """Return to which lines this reason applies, ``(n,)`` bool."""
        return (self.bits & self._bit(name)) > 0

    def by_alone(self, name: str) -> NDArray[np.bool_]:
        """Return to which lines this reason applies and no other, ``(n,)`` bool."""
        return np.asarray(self.bits == self._bit(name))

    def _bit(self, name: str) -> np.uint16:
        return np.uint16(1 << self.names.index(name))

    def __len__(self) -> int:
        return len(self.bits)

    @overload
    def __getitem__(self, position: int) -> list[str]: ...
    @overload
    def __getitem__(self, position: slice) -> list[list[str]]: ...
    def __getitem__(self, position: int | slice) -> list[str] | list[list[str]]:
        if isinstance(position, slice):
            return [self._list(bits) for bits in self.bits[position].tolist()]
        return self._list(int(self.bits[position]))

    def __iter__(self) -> Iterator[list[str]]:
        return map(self._list, self.bits.tolist())

    def _list(self, bits: int) -> list[str]:
        if bits not in self._lists:
            self._lists[bits] = [name for number, name in enumerate(self.names) if bits >> number & 1]
        return list(self._lists[bits])
