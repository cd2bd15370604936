"""Open Arrow tables: Parquet, Arrow and Feather files, several of them as one table, and tables in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from frevl.data.formats.class_labels import class_names_of, named_classes, with_named_classes
from frevl.data.formats.parquet_batches import check_growth, check_names, parquet_batches
from frevl.data.formats.table_parts import is_in_parts, parts_of
from frevl.errors import PairsError

__all__ = ["ArrowSource", "open_arrow", "table_source", "unreadable"]

Read = Callable[[list[str], int], Iterator[pa.RecordBatch]]


@dataclass(frozen=True)
class ArrowSource:
    """A table whose columns can be read one by one.

    Attributes:
        place: Name of the table in messages: the file or folder.
        schema: Schema of the table.
        read: Maps column names (or ``column.child`` for a part of a struct) and a number of rows to batches.
    """

    place: str
    schema: pa.Schema
    read: Read = field(repr=False)


def open_arrow(path: Path) -> ArrowSource:
    """Open a Parquet, Arrow or Feather file, or a table in several of them; only its schema is read.

    Raises:
        PairsError: The file cannot be read, or the files of a table have different columns.
    """
    if is_in_parts(path):
        return _joined(path, [open_arrow(part) for part in parts_of(path)])
    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path, memory_map=True) as file:
                schema = file.schema_arrow
            check_names(schema)
            return _with_class_names(str(path), schema, lambda names, rows: parquet_batches(path, rows, names))
        mapped = pa.memory_map(str(path))
        try:
            table = pa.ipc.open_file(mapped).read_all()  # memory-mapped, not copied
        except pa.ArrowInvalid:
            mapped.seek(0)
            table = pa.ipc.open_stream(mapped).read_all()
        check_names(table.schema)
        table.validate(full=True)  # an untrusted table may point outside its own memory
        check_growth(path, table.nbytes)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise unreadable(str(path), 0, error) from error
    return table_source(str(path), table)


def _joined(path: Path, sources: list[ArrowSource]) -> ArrowSource:
    """Return several tables as one; where a type differs, such as that of a column without values, it is converted."""
    first = sources[0]
    for source in sources:
        if set(source.schema.names) != set(first.schema.names):
            other = sorted({*source.schema.names} ^ {*first.schema.names})
            raise PairsError(
                f"{source.place}: expected the columns of {first.place}, found a difference in '{other[0]:.80}'; the "
                "files of a folder are read as one table: give one of them, or make their columns equal"
            )
    try:
        schema = pa.unify_schemas([source.schema for source in sources], promote_options="permissive")
    except pa.ArrowException as error:
        raise PairsError(
            f"{path}: expected the same columns in all files, found different types ({error}); give one of the files"
        ) from error

    def read(names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        for source in sources:
            number = 0
            try:
                for batch in source.read(names, rows):
                    yield _with_types(batch, schema)
                    number += len(batch)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise unreadable(source.place, number, error) from error

    return ArrowSource(str(path), schema, read)


def _with_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    kinds = [schema.field(name).type for name in batch.schema.names]
    flat = [one.num_fields == 0 for one in kinds]  # of a struct, only the part that is needed was read
    columns = [
        column.cast(kind) if plain and column.type != kind else column
        for column, kind, plain in zip(batch.columns, kinds, flat, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def table_source(place: str, table: pa.Table) -> ArrowSource:
    """Read from a table in memory."""

    def read(names: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        known = set(table.column_names)
        whole = dict.fromkeys(name if name in known else name.rpartition(".")[0] for name in names)
        yield from table.select(list(whole)).to_batches(max_chunksize=rows)

    return _with_class_names(place, table.schema, read)


def _with_class_names(place: str, schema: pa.Schema, read: Read) -> ArrowSource:
    """Return a table in which classes have the names that its metadata gives to their numbers."""
    names = class_names_of(schema)
    if not names:
        return ArrowSource(place, schema, read)

    def renamed(columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        return (named_classes(batch, names) for batch in read(columns, rows))

    return ArrowSource(place, with_named_classes(schema, names), renamed)


def unreadable(place: str, row: int, error: Exception) -> PairsError:
    """Return the error that a table cannot be read after a row."""
    reason = " ".join(str(error).split())[:200]
    return PairsError(f"{place}, after row {row:,}: the table cannot be read ({reason})")
