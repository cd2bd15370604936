"""Files of vectors that somebody else made, read block by block: memory does not grow with the file.

Arrays (``.npy``, ``.npz``, safetensors) hold vectors only and need a list of ids; tables (Parquet, Arrow, Lance)
hold ids, vectors and maybe further columns. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frevl.errors import InputError, UsageError, nearest
from frevl.store.lance_tables import read_lance

__all__ = [
    "VectorBlock",
    "column_named",
    "is_table",
    "named_id",
    "parquet_shape",
    "read_arrays",
    "read_ids",
    "read_table",
]

_FLOATS = ("float16", "float32", "float64")
_VECTOR_NAMES = ("vector", "embedding", "emb", "image_embedding", "text_embedding", "embeddings", "features")
_TABLES = (".parquet", ".arrow", ".feather", ".ipc", ".lance")

Blocks = Callable[[int], Iterator[np.ndarray]]


@dataclass
class VectorBlock:
    """Some rows of a file.

    Attributes:
        place: The file, for messages.
        first: Number of the first row, counted from 0.
        vectors: ``(n, dim)`` float16, float32 or float64.
        columns: ``n`` rows of everything else; None for arrays.
        problems: Reason by row of this block, for rows whose vector cannot be read; their vectors are zero.
    """

    place: str
    first: int
    vectors: np.ndarray
    columns: pa.Table | None = None
    problems: dict[int, str] = field(default_factory=dict)


def is_table(path: Path) -> bool:
    """Tell tables from arrays, by the ending of the name."""
    return path.suffix.lower() in _TABLES


def read_arrays(path: Path, *, array: str | None = None) -> tuple[int, int, Blocks]:
    """Open a file of one ``(n, dim)`` array.

    Args:
        path: ``.npy``, ``.npz`` or ``.safetensors``.
        array: Name of the array, where the file holds several.

    Returns:
        ``n``, ``dim``, and a function that yields the array in blocks of so many rows.

    Raises:
        InputError: The file is missing, damaged, of another kind, or its array is not ``(n, dim)`` floats.
        UsageError: There is no array of this name, or none was named and there are several.
    """
    readers = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: expected vectors in a .npy, .npz, .safetensors, .parquet, .arrow, .feather or .lance file, or a "
            "clip-retrieval folder (with 'img_emb' or 'text_emb' in it)"
        )
    with _as_input_error(path):
        shape, dtype, blocks = readers[path.suffix.lower()](path, array)
    if len(shape) != 2 or not shape[1] or dtype not in (*_FLOATS, "bfloat16"):
        raise InputError(
            f"{path}: expected one vector a row, an array of shape (n, dim) of float16, float32 or float64; "
            f"found shape {tuple(shape)} of {dtype}"
        )

    def read(rows: int) -> Iterator[np.ndarray]:
        with _as_input_error(path):
            yield from blocks(rows)

    return shape[0], shape[1], read


def read_table(path: Path, *, vector_column: str | None = None) -> tuple[pa.Schema, str, Callable[[int], Any]]:
    """Open a table that has a column of vectors.

    Args:
        path: A Parquet or Arrow file (``.feather`` and ``.ipc`` too), or a Lance table.
        vector_column: Name of the column; by default the only one that holds lists of floats.

    Returns:
        The schema without vectors, the name of the vector column, and a function that yields one `VectorBlock` after
        the other, of at most so many rows.

    Raises:
        InputError: The table is missing or damaged, or has no column of vectors.
        UsageError: There is no column of this name, or none was named and there are several.
    """
    with _as_input_error(path):
        schema, batches = _open_table(path)
    vectors = [name for name, kind in zip(schema.names, schema.types, strict=True) if _is_vector(kind)]
    if not vectors:
        raise InputError(
            f"{path}: expected a column that holds one list of floats a row, found {', '.join(schema.names) or 'none'}"
        )
    known = [name for name in vectors if name in _VECTOR_NAMES]
    name = column_named(path, vector_column, vectors, known if len(vectors) > 1 else vectors, "--vector-column")

    def read(rows: int) -> Iterator[VectorBlock]:
        first = 0
        dim: int | None = None
        with _as_input_error(path):
            for batch in batches(rows):
                others = pa.Table.from_batches([batch]).drop_columns(vectors)
                values, problems, dim = _vectors_of(batch[name], dim)
                yield VectorBlock(str(path), first, values, others, problems)
                first += len(batch)

    return pa.schema([f for f in schema if f.name not in vectors]), name, read


def read_ids(path: Path, *, id_column: str | None, usual: tuple[str, ...]) -> pa.Table:
    """Read the ids that belong to an array.

    Args:
        path: Text, one id a line; JSON, a list; JSON lines, or a Parquet or Arrow table with a column of ids.
        id_column: Name of that column.
        usual: Names to look for if none was given.

    Returns:
        A table whose column ``id`` holds the ids; other columns of the file are kept.

    Raises:
        InputError: The file is missing, damaged or of another kind.
        UsageError: There is no column of this name.
    """
    with _as_input_error(path):
        suffix = path.suffix.lower()
        if is_table(path):
            schema, batches = _open_table(path)
            table = pa.Table.from_batches(list(batches(65_536)), schema=schema)
            return named_id(path, table, id_column, usual)
        text = path.read_text(encoding="utf-8-sig")  # Windows editors put a mark first
        # Not splitlines: a caption may hold a form feed, or a line separator of Unicode.
        lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")] if text else []
        if suffix == ".json":
            rows = json.loads(text)
        elif suffix == ".jsonl":
            rows = [json.loads(line) for line in lines if line.strip()]
        else:
            return pa.table({"id": pa.array(lines, pa.string())})
        if not isinstance(rows, list):
            raise InputError(f"{path}: expected a JSON list of ids, found {type(rows).__name__}")
        if rows and all(isinstance(row, dict) for row in rows):
            return named_id(path, pa.Table.from_pylist(rows), id_column, usual)
        return pa.table({"id": pa.array([None if row is None else str(row) for row in rows], pa.string())})


def parquet_shape(path: Path) -> tuple[int, pa.Schema]:
    """Return the number of rows and the columns of a Parquet file, without reading them.

    Raises:
        InputError: The file is missing or damaged.
    """
    with _as_input_error(path), pq.ParquetFile(path) as file:
        return file.metadata.num_rows, file.schema_arrow


def named_id(path: Path, table: pa.Table, id_column: str | None, usual: tuple[str, ...]) -> pa.Table:
    """Return a table whose ids stand in the column ``id``, as strings."""
    usual_here = [name for name in usual if name in table.column_names][:1]
    name = column_named(path, id_column, table.column_names, usual_here, "--id-column")
    with _as_input_error(path):
        ids = pc.cast(table[name], pa.string())
    others = table.drop_columns([name])
    # Another column of that name is metadata.
    others = others.rename_columns(["metadata_id" if column == "id" else column for column in others.column_names])
    return others.append_column("id", ids)


def column_named(path: Path, asked: str | None, names: list[str], usual: list[str], flag: str) -> str:
    """Return the column that was asked for, or the only usual one.

    Raises:
        UsageError: It is not there, or it is not clear which is meant.
    """
    if asked is not None:
        if asked not in names:
            raise UsageError(f"{path}: there is no such column as '{asked}'. {nearest(asked, names)}")
        return asked
    if len(usual) != 1:
        raise UsageError(f"{path}: name the column to use with {flag}; there are: {', '.join(names)}")
    return usual[0]


# ---- arrays


def _open_npy(path: Path, array: str | None) -> tuple[tuple[int, ...], str, Blocks]:
    if array is not None:
        raise UsageError(f"{path}: a .npy file holds one array without a name; leave --array out")
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    return (
        values.shape,
        str(values.dtype),
        lambda rows: _slices(lambda a, b: np.asarray(values[a:b]), len(values), rows),
    )


def _open_npz(path: Path, array: str | None) -> tuple[tuple[int, ...], str, Blocks]:
    with zipfile.ZipFile(path) as archive:
        name = _array_named(path, array, [entry.removesuffix(".npy") for entry in archive.namelist()])
        with archive.open(f"{name}.npy") as stream:
            shape, fortran, dtype = _npy_header(stream)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            _npy_header(stream)
            width = shape[1] * dtype.itemsize
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                raw = stream.read(count * width)
                if len(raw) != count * width:
                    raise InputError(f"{path}: the array '{name}' is cut short at row {start:,}; copy the file again")
                yield np.frombuffer(raw, dtype).reshape(count, shape[1])

    if fortran:
        raise InputError(f"{path}: the array '{name}' is stored column by column; save it again in C order")
    return shape, str(dtype), blocks


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _open_safetensors(path: Path, array: str | None) -> tuple[tuple[int, ...], str, Blocks]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as tensors:
        name = _array_named(path, array, list(tensors.keys()))
        part = tensors.get_slice(name)
        shape, kind = tuple(part.get_shape()), part.get_dtype()
    dtype = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}.get(kind, kind)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        # numpy has no bfloat16; torch does, and turns it into float32 without loss.
        with safe_open(path, framework="pt" if dtype == "bfloat16" else "numpy") as tensors:
            part = tensors.get_slice(name)
            for start in range(0, shape[0], rows):
                block = part[start : min(start + rows, shape[0])]
                yield block.float().numpy() if dtype == "bfloat16" else block

    return shape, dtype, blocks


def _array_named(path: Path, asked: str | None, names: list[str]) -> str:
    if asked is None and len(names) == 1:
        return names[0]
    if asked not in names:
        raise UsageError(
            f"{path}: name one of its arrays with --array: {', '.join(names)}"
            if asked is None
            else f"{path}: there is no such array as '{asked}'. {nearest(asked, names)}"
        )
    return asked


def _slices(read: Callable[[int, int], np.ndarray], total: int, rows: int) -> Iterator[np.ndarray]:
    for start in range(0, total, rows):
        yield read(start, min(start + rows, total))


# ---- tables


def _open_table(path: Path) -> tuple[pa.Schema, Callable[[int], Iterator[pa.RecordBatch]]]:
    suffix = path.suffix.lower()
    if suffix == ".lance":
        return read_lance(path)
    if suffix == ".parquet":
        file = pq.ParquetFile(path)
        return file.schema_arrow, lambda rows: file.iter_batches(batch_size=rows)
    return _arrow_reader(path)[0], lambda rows: (
        batch.slice(a, rows) for batch in _arrow_reader(path)[1] for a in range(0, len(batch), rows)
    )


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
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(lists and pa.types.is_floating(kind.value_type))


def _vectors_of(column: pa.Array, dim: int | None) -> tuple[np.ndarray, dict[int, str], int | None]:
    """Read a column of vectors.

    Args:
        column: Lists of floats.
        dim: Their width, None if it is not known yet: then it is the most frequent one.

    Returns:
        ``(n, dim)`` values, the reason by row where there is no vector of that width, and the width if it is known.
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
    # `flatten` passes over nulls; a null inside a list becomes NaN, which is refused like any other.
    flat = column.filter(pa.array(good)).flatten()
    values[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, dim or 1)
    return values, problems, dim


@contextmanager
def _as_input_error(path: Path) -> Iterator[None]:
    """Turn what libraries raise over a bad file into one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{path}: expected a file of vectors or ids, found none; check the path") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, pa.ArrowException, SafetensorError) as error:
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror
        else:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: the file cannot be read ({reason}); it is damaged or of another kind") from error
