"""Read an untrusted Parquet file in batches that are not much larger than its size suggests.

A few bytes of Parquet can represent gigabytes: a text of a megabyte to which every row refers, or a list of a billion
zeros. Sizes are therefore first taken from the file's own metadata, batches with shared texts are split before they are
expanded, and a file that expands excessively is refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["check_growth", "check_names", "parquet_batches"]

_BATCH_BYTES = 256 << 20
_MOST_GROWTH = 200  # times the size of the file; captions compress to a twentieth at best
_HARMLESS = 512 << 20  # bytes, whatever the file
_DEEPEST = 8  # nesting depth of the metadata; normally six


def check_names(schema: pa.Schema) -> None:
    """Refuse a damaged schema whose names, including nested fields and time zones, are not text.

    Raises:
        UnicodeDecodeError: A name is not UTF-8.
    """
    list(schema.names)
    for kind in schema.types:
        _check_names_within(kind, 0)


def _check_names_within(kind: pa.DataType, depth: int) -> None:
    if isinstance(kind, pa.TimestampType):
        str(kind.tz)
    for number in range(kind.num_fields if depth < _DEEPEST else 0):
        child = kind.field(number)
        str(child.name)
        _check_names_within(child.type, depth + 1)


def parquet_batches(path: Path, rows: int, names: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Read a file in batches of a limited number of rows.

    Args:
        path: The file.
        rows: Maximum number of rows per batch.
        names: Columns to read, or ``column.child``; None reads all.

    Raises:
        pa.ArrowException: The file is damaged, or contains far more than its size suggests.
        OSError: The file cannot be read.
    """
    with pq.ParquetFile(path, memory_map=True) as file:
        texts = {one.name: one.type for one in file.schema_arrow if _is_text(one.type)}
    shared, width = _described(path, {*texts})
    seen = 0
    with pq.ParquetFile(path, memory_map=True, read_dictionary=shared) as file:
        for batch in file.iter_batches(batch_size=max(1, min(rows, _BATCH_BYTES // max(width, 1))), columns=names):
            for part in _parts(batch):
                seen += part.nbytes + _size_of_texts(part)
                check_growth(path, seen)
                whole = _written_out(part, {name: texts[name] for name in shared})
                whole.validate(full=True)  # texts of a damaged file may be invalid
                yield whole


def check_growth(path: Path, size: int) -> None:
    """Refuse a file that expands to many times its size.

    Args:
        path: The file.
        size: Number of bytes read from it, or declared in its metadata.

    Raises:
        pa.ArrowInvalid: The file expands too much.
    """
    if size > max(_HARMLESS, _MOST_GROWTH * path.stat().st_size):
        raise pa.ArrowInvalid(f"it holds over {size >> 20:,} MiB, more than {_MOST_GROWTH} times its size")


def _described(path: Path, texts: set[str]) -> tuple[list[str], int]:
    """Return the columns with shared texts, and the bytes per row, according to the file's metadata."""
    shared, total, rows = set(), 0, 0
    try:
        for group in _footer(path).get(_GROUPS, []):
            rows += group.get(_GROUP_ROWS, 0)
            for chunk in group.get(_CHUNKS, []):
                column = chunk.get(_COLUMN, {})
                total += max(column.get(_VALUES, 0) * _WIDTHS.get(column.get(_TYPE, 0), 1), column.get(_UNPACKED, 0))
                name = b".".join(column.get(_PATH, [])).decode("utf-8", "replace")
                if name in texts and _DICTIONARIES & set(column.get(_ENCODINGS, [])):
                    shared.add(name)
    except (AttributeError, IndexError, TypeError, ValueError) as error:  # values of the wrong kind
        raise pa.ArrowInvalid("its metadata are damaged") from error
    check_growth(path, total)
    return sorted(shared), total // max(rows, 1)


# Field numbers in the metadata of a Parquet file (parquet.thrift of the Apache Parquet format, version 2).
_GROUPS = 4
_CHUNKS, _GROUP_ROWS = 1, 3
_COLUMN = 3
_TYPE, _ENCODINGS, _PATH, _VALUES, _UNPACKED = 1, 2, 3, 5, 6
_WIDTHS = {
    0: 1,
    1: 4,
    2: 8,
    3: 12,
    4: 4,
    5: 8,
}  # bytes of a value by type: boolean, three integer and two floating-point types
_DICTIONARIES = {2, 8}


def _footer(path: Path) -> dict[int, Any]:
    """Return the footer of a file, by field number.

    It is parsed here, because pyarrow crashes the whole process on damaged column metadata (seen with 26.0).
    """
    with path.open("rb") as file:
        end = file.seek(-8, os.SEEK_END)
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(end - length, 0))
        content = file.read(min(length, end))
    return _Compact(content).struct(0)


class _Compact:
    """Reads values in Thrift's compact protocol."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while True:
            head = self._byte()
            if not head:
                return fields
            number = number + (head >> 4) if head >> 4 else self._signed()
            fields[number] = self._value(head & 15, depth, alone=True)

    def _value(self, kind: int, depth: int, *, alone: bool = False) -> Any:
        if kind in (1, 2):
            return kind == 1 if alone else self._byte() == 1
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            return self._bytes(self._unsigned())
        if kind in (3, 7):
            return self._bytes(1 if kind == 3 else 8)
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        if kind in (9, 10):
            head = self._byte()
            count = self._unsigned() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(self._possible(count))]
        if kind == 11:
            count = self._possible(self._unsigned())
            kinds = self._byte() if count else 0
            return [(self._value(kinds >> 4, depth + 1), self._value(kinds & 15, depth + 1)) for _ in range(count)]
        if kind == 12:
            return self.struct(depth + 1)
        raise ValueError("an unknown kind of value")

    def _possible(self, count: int) -> int:
        if count > len(self._content) - self._at:  # a value takes at least one byte
            raise ValueError("more values than bytes")
        return count

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += self._possible(count)
        return self._content[self._at - count : self._at]

    def _unsigned(self) -> int:
        value = shift = 0
        while shift < 70:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
        raise ValueError("a number without end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Split a batch until its shared texts, expanded in every row, are not too large."""
    if len(batch) > 1 and _size_of_texts(batch) > _BATCH_BYTES:
        half = len(batch) // 2
        yield from _parts(batch.slice(0, half))
        yield from _parts(batch.slice(half))
    else:
        yield batch


def _size_of_texts(batch: pa.RecordBatch) -> int:
    shared = [one for one in batch.columns if pa.types.is_dictionary(one.type) and _is_text(one.type.value_type)]
    return sum(pc.sum(pc.binary_length(one.dictionary).take(one.indices)).as_py() or 0 for one in shared)


def _written_out(batch: pa.RecordBatch, shared: dict[str, pa.DataType]) -> pa.RecordBatch:
    # The values of a dictionary that pyarrow makes are never large strings, whatever the column's own type.
    columns = [
        one.dictionary_decode().cast(shared[name]) if name in shared and pa.types.is_dictionary(one.type) else one
        for name, one in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
