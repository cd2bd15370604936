"""Read tables of vectors and lists of ids block by block, so that memory does not grow with the file.

Tables (Parquet, Arrow, Lance) have ids, vectors and possibly further columns; `frevl.store.importing.arrays` reads
files with vectors only.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frevl.data.formats.json_rows import json_value
from frevl.data.formats.parquet_batches import check_growth, check_names, parquet_batches
from frevl.errors import FrevlError, InputError, UsageError, nearest
from frevl.files import decoded
from frevl.store.lance_tables import read_lance

__all__ = [
    "BLOCK_BYTES",
    "WIDEST",
    "VectorBlock",
    "as_input_error",
    "column_named",
    "is_table",
    "named_id",
    "parquet_shape",
    "read_ids",
    "read_table",
]

BLOCK_BYTES = 64 << 20
"""Maximum bytes of the vectors in a block."""

WIDEST = 1 << 20
"""Maximum width of a vector."""

_EXACT = 2.0**53  # from here on, float64 skips whole numbers
_VECTOR_NAMES = ("vector", "embedding", "emb", "image_embedding", "text_embedding", "embeddings", "features")
_TABLES = (".parquet", ".arrow", ".feather", ".ipc", ".lance")
_TEXT_TABLES = (".csv", ".tsv", ".tab")


@dataclass
class VectorBlock:
    """Some rows of a file.

    Attributes:
        place: The file, for messages.
        first: Number of the first row, counted from 0.
        vectors: ``(n, dim)`` float16, float32 or float64.
        columns: The other columns, ``n`` rows; None for arrays.
        problems: By row of this block, the reason why its vector cannot be read; such vectors are zero.
    """

    place: str
    first: int
    vectors: np.ndarray
    columns: pa.Table | None = None
    problems: dict[int, str] = field(default_factory=dict)


def is_table(path: Path) -> bool:
    """Return whether a file is a table rather than an array, by its suffix."""
    return path.suffix.lower() in _TABLES


def read_table(path: Path, *, vector_column: str | None = None) -> tuple[pa.Schema, str, Callable[[int], Any]]:
    """Open a table with a column of vectors.

    Args:
        path: A Parquet or Arrow file (``.feather`` and ``.ipc`` too), or a Lance table.
        vector_column: Name of the column; by default the only one with lists of floats.

    Returns:
        The schema without vectors, the name of the vector column, and a function that yields `VectorBlock` objects of
            at most a given number of rows.

    Raises:
        InputError: The table is missing or damaged, or has no column of vectors.
        UsageError: There is no column with this name, or no name was given and there are several.
    """
    with as_input_error(path):
        schema, batches = _open_table(path)
        check_names(schema)
    vectors = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_vector(kind)]
    if not vectors:
        whole = [one.name for one in schema if _is_list(one.type) and pa.types.is_integer(one.type.value_type)]
        raise InputError(
            f"{path}: expected a column with one list of floats per row, found {', '.join(schema.names) or 'none'}"
            + (f"; '{whole[0]:.80}' holds whole numbers: if these are embeddings, save them as floats" if whole else "")
        )
    known = [name for name in vectors if name in _VECTOR_NAMES]
    name = column_named(path, vector_column, vectors, known if len(vectors) > 1 else vectors, "--vector-column")

    def read(rows: int) -> Iterator[VectorBlock]:
        first = 0
        dim: int | None = None
        with as_input_error(path):
            for batch in batches(rows):
                others = pa.Table.from_batches([batch]).drop_columns(vectors)
                values, problems, dim = _vectors_of(batch[name], dim)
                yield VectorBlock(str(path), first, values, others, problems)
                first += len(batch)

    return pa.schema([f for f in schema if f.name not in vectors]), name, read


def read_ids(path: Path, *, id_column: str | None, usual: tuple[str, ...], flag: str = "--id-column") -> pa.Table:
    """Read the ids for an array, or those of items to remove.

    Args:
        path: Text, one id per line; JSON, a list; JSON lines, or a CSV, Parquet or Arrow table with a column of ids. A
            CSV file of one column that is not named as usual has no header: every line is an id.
        id_column: Name of that column.
        usual: Names to look for if none was given.
        flag: The flag that names the column; empty if the command has none.

    Returns:
        A table with the ids in the column ``id``; other columns of the file are kept.

    Raises:
        InputError: The file is missing, damaged or of another kind.
        UsageError: There is no column of this name.
    """
    with as_input_error(path):
        suffix = path.suffix.lower()
        if is_table(path):
            schema, batches = _open_table(path)
            table = pa.Table.from_batches(list(batches(65_536)), schema=schema)
            return named_id(path, table, id_column, usual, flag)
        text = decoded(path.read_bytes())
        # Not splitlines: a caption may contain a form feed, or a Unicode line separator.
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
        if suffix == ".json":
            rows = _json_of(f"{path}", text)
        elif suffix in (".jsonl", ".ndjson"):
            rows = [_json_of(f"{path}:{n}", line) for n, line in enumerate(lines, start=1) if line.strip()]
        else:
            written = _text_table(path, text) if suffix in _TEXT_TABLES else None
            if written is not None and (written.num_columns > 1 or {*written.column_names} & {*usual, id_column}):
                return named_id(path, written, id_column, usual, flag)
            return pa.table({"id": pa.array(lines, pa.string())})
        if not isinstance(rows, list):
            raise InputError(f"{path}: expected a JSON list of ids, found {type(rows).__name__}")
        if rows and all(isinstance(row, dict) for row in rows):
            return named_id(path, _table_of(path, rows), id_column, usual, flag)
        for number, row in enumerate(rows, start=1):
            if isinstance(row, bool) or not isinstance(row, str | int | None):
                raise InputError(f"{path}, id {number:,}: expected text or a whole number, found {json.dumps(row):.60}")
        return pa.table({"id": pa.array([None if row is None else str(row) for row in rows], pa.string())})


def _json_of(place: str, text: str) -> Any:
    value, problem = json_value(text.encode())
    if problem:
        raise InputError(f"{place}: {problem}")
    return value


def _text_table(path: Path, text: str) -> pa.Table | None:
    """Return a CSV or tab-separated table, all of it as strings; None without a header of different names."""
    first, _, _ = text.partition("\n")
    found = {mark: next(csv.reader([first.removesuffix("\r")], delimiter=mark), []) for mark in ",\t;|"}
    mark = max(found, key=lambda one: len(found[one]))  # of equal ones the first, a comma
    names = found[mark]
    if not names or len({*names}) < len(names):
        return None
    columns: list[list[str]] = [[] for _ in names]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
    next(reader)
    for row in reader:
        if not row:
            continue
        if len(row) != len(names):
            raise InputError(f"{path}, line {reader.line_num:,}: expected {len(names)} columns, found {len(row)}")
        for column, value in zip(columns, row, strict=True):
            column.append(value)
    return pa.table({name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=True)})


def _table_of(path: Path, rows: list[dict[str, Any]]) -> pa.Table:
    """Return the rows of a JSON file as a table, with every key that any of them has."""
    columns = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        try:
            columns[name] = pa.array([row.get(name) for row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise InputError(
                f"{path}: the values of '{name:.80}' are of different kinds, or too large "
                f"({' '.join(str(error).split()):.80}); give it one kind of value, or leave it out"
            ) from error
    return pa.table(columns)


def parquet_shape(path: Path) -> tuple[int, pa.Schema]:
    """Return the number of rows and the columns of a Parquet file, without reading them.

    Raises:
        InputError: The file is missing or damaged.
    """
    with as_input_error(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        check_names(schema)
        return file.metadata.num_rows, schema


def named_id(
    path: Path, table: pa.Table, id_column: str | None, usual: tuple[str, ...], flag: str = "--id-column"
) -> pa.Table:
    """Return a table with its ids in the column ``id``, as strings."""
    usual_here = [name for name in usual if name in table.column_names][:1]
    if not flag and not usual_here:
        raise InputError(f"{path}: expected a column of ids named 'id', found {', '.join(table.column_names)}")
    name = column_named(path, id_column, table.column_names, usual_here, flag)
    with as_input_error(path):
        ids = table[name]
        if pa.types.is_floating(ids.type):  # whole numbers of a column that lacks some, which pandas marks by NaN
            ids = _whole_numbers(path, name, pc.if_else(pc.is_nan(ids), None, ids))
        ids = pc.cast(ids, pa.string())
        others = _without_views(table.drop_columns([name]))
    # Another column with that name is metadata.
    others = others.rename_columns(["metadata_id" if column == "id" else column for column in others.column_names])
    return others.append_column("id", ids)


def _whole_numbers(path: Path, name: str, ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ids as integers, because Arrow spells large floats with an exponent.

    Raises:
        InputError: They are fractions, or so large that floats no longer tell neighbours apart.
    """
    ids = pc.cast(ids, pa.float64())
    wrong = ids.filter(pc.or_(pc.not_equal(pc.floor(ids), ids), pc.greater_equal(pc.abs(ids), _EXACT)))
    if len(wrong):
        raise InputError(
            f"{path}: the ids in '{name:.80}' are floats, and {wrong[0].as_py()!r} is no exact whole number; write "
            "them as text or integers"
        )
    return pc.cast(ids, pa.int64())


def _without_views(table: pa.Table) -> pa.Table:
    """Return a table whose texts are plain strings: of the views that polars writes, Arrow takes no rows."""
    views = [one.name for one in table.schema if pa.types.is_string_view(one.type)]
    for name in views:
        at = table.column_names.index(name)
        table = table.set_column(at, name, table[name].cast(pa.string()))
    return table


def column_named(path: Path, asked: str | None, names: list[str], usual: list[str], flag: str) -> str:
    """Return the requested column, or the only one with a common name.

    Raises:
        UsageError: The column does not exist, or it is unclear which is meant.
    """
    if asked is not None:
        if asked not in names:
            raise UsageError(f"{path}: there is no column '{asked}'. {nearest(asked, names)}")
        return asked
    if len(usual) != 1:
        raise UsageError(f"{path}: name the column to use with {flag}; there are: {', '.join(names)}")
    return usual[0]


# ---- tables


def _open_table(path: Path) -> tuple[pa.Schema, Callable[[int], Iterator[pa.RecordBatch]]]:
    suffix = path.suffix.lower()
    if suffix == ".lance":
        return read_lance(path)
    if suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
        return schema, lambda rows: parquet_batches(path, rows)
    return _arrow_reader(path)[0], lambda rows: (
        batch.slice(a, rows) for batch in _sound(path) for a in range(0, len(batch), rows)
    )


def _sound(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of an Arrow file after checking them, as an untrusted file may point outside its own memory."""
    seen = 0
    for batch in _arrow_reader(path)[1]:
        batch.validate(full=True)
        seen += batch.nbytes
        check_growth(path, seen)
        yield batch


def _arrow_reader(path: Path) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    source = pa.memory_map(str(path))
    try:
        reader = pa.ipc.open_file(source)
    except pa.ArrowInvalid:  # the streaming format, which Hugging Face datasets use
        source.seek(0)
        stream = pa.ipc.open_stream(source)
        return stream.schema, iter(stream)
    return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))


def _is_vector(kind: pa.DataType) -> bool:
    return _is_list(kind) and bool(pa.types.is_floating(kind.value_type))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _vectors_of(column: pa.Array, dim: int | None) -> tuple[np.ndarray, dict[int, str], int | None]:
    """Read a column of vectors.

    Args:
        column: Lists of floats.
        dim: Width of the vectors; None if not yet known, in which case it is the most frequent width.

    Returns:
        ``(n, dim)`` values, the reason by row if there is no vector of that width, and the width if known.
    """
    lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy(zero_copy_only=False)
    if dim is None and (lengths > 0).any():
        dim = int(np.bincount(lengths[lengths > 0]).argmax())
    good = lengths == dim
    problems = {
        int(row): "it has no vector" if lengths[row] < 0 else f"expected {dim} numbers, found {lengths[row]}"
        for row in np.flatnonzero(~good)
    }
    values = np.zeros((len(column), dim or 1), column.type.value_type.to_pandas_dtype())
    # `flatten` skips nulls; a null inside a list becomes NaN, which is refused like any other NaN.
    flat = column.filter(pa.array(good)).flatten()
    values[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, dim or 1)
    return values, problems, dim


@contextmanager
def as_input_error(path: Path) -> Iterator[None]:
    """Turn any library error about a bad file into one sentence.

    The file may be untrusted, and libraries react to damaged files with all kinds of errors: their own, recursion,
    overflow, memory, type and index errors.
    """
    try:
        yield
    except FrevlError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file of vectors or ids; check the path") from error
    except MemoryError as error:
        raise InputError(f"{path}: the file cannot be read: it requires more memory than is available") from error
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{path}: the file cannot be read ({reason}); it is damaged or of a different format"
        ) from error
