"""Plain-text tables for the terminal."""

from __future__ import annotations

from collections.abc import Collection, Sequence

__all__ = ["table"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> str:
    """Return a plain-text table.

    Args:
        header: Names of the columns.
        rows: Cells, as many a row as there are columns.
        left: Numbers of the columns that are aligned left, words mostly; the others are aligned right.
    """
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join([line(header), "  ".join("-" * width for width in widths), *map(line, rows)])
