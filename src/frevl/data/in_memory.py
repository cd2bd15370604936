"""Read pairs from memory: tables (pandas, polars, Arrow, datasets), rows, arrays, a single pair."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frevl.data.columns import Columns, choose_columns
from frevl.data.formats.json_rows import HALF_PAIR, has_half_pair
from frevl.data.formats.pair_rows import in_fields
from frevl.errors import UsageError
from frevl.files import plain

__all__ = ["PLACE", "rows_in_memory", "table_of"]

PLACE = "pairs in memory"
"""Stands in for a file name in the places of such pairs."""

Row = tuple[int, Any, str]

_EXPECTED = (
    "pairs: expected a pairs file, a table (pandas, polars, Arrow, datasets), or a list of pairs such as "
    '{"image": "a.jpg", "text": "a dog"} or ("a.jpg", "a dog"), found '
)


def rows_in_memory(source: Any, given: Mapping[str, str], notes: list[str]) -> Iterator[Row]:
    """Yield ``(number, row, problem)`` as `frevl.data.formats.pair_rows.rows_of` does, rows counted from 1.

    Args:
        source: A table, a mapping of columns, rows as mappings or as ``(image, text)`` or ``(image, text, target)``, or
            one such row.
        given: Columns that the caller named.
        notes: Receives sentences on renamed columns and on what was not read.

    Raises:
        UsageError: The value cannot be pairs.
        PairsError: The columns of image and text in a table cannot be determined.
    """
    table = table_of(source)
    if table is not None:
        from frevl.data.formats.arrow_rows import arrow_rows
        from frevl.data.formats.arrow_tables import table_source

        yield from in_fields(arrow_rows(table_source(PLACE, table), given, notes), notes)
    else:
        yield from in_fields(_with_columns(_rows(source), given), notes)


def table_of(source: Any) -> Any:
    """Return a table of pandas, polars, Arrow or datasets as an Arrow table; None for anything else."""
    library = type(source).__module__.partition(".")[0]
    if library not in ("pandas", "polars", "pyarrow", "datasets"):
        return None
    import pyarrow as pa

    if isinstance(source, pa.Table):
        return source
    if isinstance(source, pa.RecordBatch):
        return pa.Table.from_batches([source])
    if library == "polars":
        frame = source.collect() if hasattr(source, "collect") else source
        return frame.to_arrow()
    if library == "datasets":
        if isinstance(source, Mapping):
            raise UsageError(
                f"pairs: found a dataset with several splits; choose one of {sorted(source)}, as in data['train']"
            )
        return source.with_format("arrow")[:] if hasattr(source, "__len__") else None
    if hasattr(source, "columns"):
        try:
            return pa.Table.from_pandas(source, preserve_index=False)
        except (pa.ArrowException, TypeError, ValueError):  # a column of mixed types: the rows are read one by one
            return None
    return None


def _rows(source: Any) -> Iterator[Any]:
    if hasattr(source, "to_dict") and hasattr(source, "columns"):
        source = source.to_dict("records")
    elif isinstance(source, Mapping):
        source = _columns_as_rows(source)
    elif _is_pair(source):
        source = [source]
    elif isinstance(source, str | bytes) or not isinstance(source, Iterable):
        raise UsageError(f"{_EXPECTED}{type(source).__name__}")
    for row in source:
        yield _named(row)


def _named(row: Any) -> Any:
    """Name the fields of a row with two or three values."""
    if isinstance(row, Mapping):
        return {str(key): plain(value) for key, value in row.items()}
    if isinstance(row, Sequence | np.ndarray) and not isinstance(row, str | bytes) and len(row) in (2, 3):
        return dict(zip(("image", "text", "target"), map(plain, row), strict=False))
    return row


def _is_pair(source: Any) -> bool:
    """Return whether a value is a single pair, not a list of pairs: two or three values, the first two texts."""
    flat = isinstance(source, tuple | list) or (isinstance(source, np.ndarray) and source.ndim == 1)
    return flat and len(source) in (2, 3) and all(isinstance(value, str) for value in source[:2])


def _columns_as_rows(source: Mapping[Any, Any]) -> list[dict[str, Any]]:
    """Convert a mapping of columns to rows; a mapping of values is one row."""
    columns = {str(key): list(value) for key, value in source.items() if _is_column(value)}
    lengths = {len(value) for value in columns.values()}
    image_or_text = [key for key in columns if key.strip().lower() not in ("target", "answers")]
    if len(columns) < len(source) or len(lengths) != 1 or not image_or_text:
        return [{str(key): value for key, value in source.items()}]
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_column(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray) or type(value).__module__.startswith(("pandas", "polars"))


def _with_columns(rows: Iterator[Any], given: Mapping[str, str]) -> Iterator[tuple[Columns, Row]]:
    columns: Columns | None = None
    for number, row in enumerate(rows, start=1):
        if columns is None and isinstance(row, Mapping):
            columns = choose_columns(f"{PLACE}:{number}", row, given)
        yield columns or {}, (number, row, HALF_PAIR if has_half_pair(row) else "")
