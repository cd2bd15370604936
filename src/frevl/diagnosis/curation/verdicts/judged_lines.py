"""The lines of a pairs file with their verdicts, created on access."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.diagnosis.curation.lines import NOT_LOOKED_AT
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.diagnosis.curation.verdicts.values import AT_ONCE

__all__ = ["JudgedLines"]


class JudgedLines(Sequence[dict[str, Any]]):
    """Every usable line as in the file, with its findings in the key ``curate``; a new object on every access.

    Args:
        read: The pairs as read from the file.
        rows: ``(n,)`` row in ``read`` of every usable line.
        values: The filters' findings, ``n`` each.
        why: The filters that drop each line.
    """

    def __init__(
        self,
        read: Pairs,
        rows: NDArray[np.int64],
        values: Sequence[Sequence[Mapping[str, Any]]],
        why: Reasons,
    ) -> None:
        self._read, self._rows, self._values, self._why = read, rows, list(values), why

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, position: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, position: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, position: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        lines = range(len(self))[position]
        if isinstance(lines, int):
            return self._part(lines, lines + 1)[0]
        if lines.step != 1:
            return [self[line] for line in lines]
        return self._part(lines.start, max(lines.start, lines.stop))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), AT_ONCE):
            yield from self._part(start, min(start + AT_ONCE, len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return False
        return all(one == its for one, its in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def kept(self) -> Iterator[dict[str, Any]]:
        """Yield the lines that are kept."""
        return (line for line in self if line["curate"]["kept"])

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Yield the others."""
        return (line for line in self if not line["curate"]["kept"])

    def _part(self, start: int, stop: int) -> list[dict[str, Any]]:
        rows, why = self._rows[start:stop], self._why[start:stop]
        found = [values[start:stop] for values in self._values]
        judged = []
        for at, (row, line) in enumerate(zip(rows.tolist(), self._read.select(rows).as_rows(), strict=True)):
            verdict = dict(NOT_LOOKED_AT)
            for one in found:
                verdict |= one[at]
            judged.append({**line, "curate": {**verdict, "kept": not why[at], "why": why[at], "row": row}})
        return judged
