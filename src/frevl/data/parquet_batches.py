"""Batches of a Parquet file that may come from a stranger: none is much larger than the file gives reason to expect.

A few bytes of Parquet can stand for gigabytes: a text of a megabyte that every row refers to, or a list of a billion
zeros. So sizes are taken from the file's own description before anything is read, texts that rows share are split up
before they are written out, and a file that grows beyond all measure is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["check_growth", "parquet_batches"]

_BATCH_BYTES = 256 << 20
_MOST_GROWTH = 200  # times the size of the file; captions shrink to a twentieth at best
_HARMLESS = 512 << 20  # bytes, whatever the file
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}


def parquet_batches(path: Path, rows: int, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a file in batches of at most so many rows.

    Args:
        path: The file.
        rows: Most rows of a batch.
        names: Columns to read, or ``column.child``; None reads all.

    Raises:
        pa.ArrowException: The file is damaged, or holds much more than its size gives reason to expect.
        OSError: The file cannot be read.
    """
    with pq.ParquetFile(path, memory_map=True) as file:
        shared, width = _described(path, file)
    seen = 0
    with pq.ParquetFile(path, memory_map=True, read_dictionary=shared) as file:
        for batch in file.iter_batches(batch_size=max(1, min(rows, _BATCH_BYTES // max(width, 1))), columns=names):
            for part in _parts(batch):
                seen += part.nbytes + _size_of_texts(part)
                check_growth(path, seen)
                whole = _written_out(part, shared)
                whole.validate(full=True)  # texts of a damaged file may be none
                yield whole


def check_growth(path: Path, size: int) -> None:
    """Refuse a file that holds many times its own size.

    Args:
        path: The file.
        size: Bytes that were read from it, or that it says it holds.

    Raises:
        pa.ArrowInvalid: It does.
    """
    if size > max(_HARMLESS, _MOST_GROWTH * path.stat().st_size):
        raise pa.ArrowInvalid(f"it holds over {size >> 20:,} MiB, more than {_MOST_GROWTH} times its size")


def _described(path: Path, file: pq.ParquetFile) -> tuple[list[str], int]:
    """Return the columns of texts that rows share, and the bytes of a row, as the file describes itself."""
    meta, shared, total = file.metadata, set(), 0
    flat = {one.name for one in file.schema_arrow if _is_text(one.type)}
    for group in range(meta.num_row_groups):
        for number in range(meta.num_columns):
            column = meta.row_group(group).column(number)
            total += max(column.num_values * _WIDTHS.get(column.physical_type, 1), column.total_uncompressed_size)
            if column.path_in_schema in flat and _DICTIONARIES & set(column.encodings):
                shared.add(column.path_in_schema)
    check_growth(path, total)
    return sorted(shared), total // max(meta.num_rows, 1)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split a batch until the texts that its rows share, written out in every row, are not too large."""
    if len(batch) > 1 and _size_of_texts(batch) > _BATCH_BYTES:
        half = len(batch) // 2
        yield from _parts(batch.slice(0, half))
        yield from _parts(batch.slice(half))
    else:
        yield batch


def _size_of_texts(batch: pa.RecordBatch) -> int:
    shared = [one for one in batch.columns if pa.types.is_dictionary(one.type) and _is_text(one.type.value_type)]
    return sum(pc.sum(pc.binary_length(one.dictionary).take(one.indices)).as_py() or 0 for one in shared)


def _written_out(batch: pa.RecordBatch, names: list[str]) -> pa.RecordBatch:
    columns = [
        one.dictionary_decode() if name in names and pa.types.is_dictionary(one.type) else one
        for name, one in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
