"""Read arrays of vectors (``.npy``, ``.npz``, safetensors) block by block.

They contain only vectors and need a list of ids. Nothing is ever unpickled, and a header's claims are checked against
the file size before allocation.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from frevl.errors import InputError, UsageError, nearest
from frevl.store.importing.formats import BLOCK_BYTES, WIDEST, as_input_error

__all__ = ["read_arrays"]

_FLOATS = ("float16", "float32", "float64")
_LONGEST_HEADER = 1 << 16  # bytes; numpy writes 128
# The kinds that numpy writes; a few bytes of other kinds may expand to gigabytes.
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}

Blocks = Callable[[int], Iterator[np.ndarray]]


def read_arrays(path: Path, *, array: str | None = None) -> tuple[int, int, Blocks]:
    """Open a file of one ``(n, dim)`` array.

    Args:
        path: ``.npy``, ``.npz`` or ``.safetensors``.
        array: Name of the array, if the file has several.

    Returns:
        ``n``, ``dim``, and a function that yields the array in blocks of a given number of rows.

    Raises:
        InputError: The file is missing, damaged, of another kind, or its array is not ``(n, dim)`` floats.
        UsageError: There is no array with this name, or no name was given and there are several.
    """
    readers = {".npy": _open_npy, ".npz": _open_npz, ".safetensors": _open_safetensors}
    if path.suffix.lower() not in readers:
        raise InputError(
            f"{path}: expected vectors in a .npy, .npz, .safetensors, .parquet, .arrow, .feather or .lance file, or a "
            "clip-retrieval folder (with 'img_emb' or 'text_emb' in it)"
        )
    with as_input_error(path):
        shape, dtype, blocks = readers[path.suffix.lower()](path, array)
    if len(shape) != 2 or not shape[1] or dtype not in (*_FLOATS, "bfloat16"):
        whole = len(shape) == 2 and bool(shape[1])
        remedy = "; if these are embeddings, save them as floats, with numpy: values.astype('float32')" if whole else ""
        raise InputError(
            f"{path}: expected one vector per row, an array of shape (n, dim) of float16, float32 or float64; "
            f"found shape {tuple(shape)} of {dtype}{remedy}"
        )

    if shape[1] > WIDEST:
        raise InputError(f"{path}: expected vectors of at most {WIDEST:,} numbers, found {shape[1]:,}")
    widest = max(1, BLOCK_BYTES // (shape[1] * 8))

    def read(rows: int) -> Iterator[np.ndarray]:
        with as_input_error(path):
            yield from blocks(min(rows, widest))

    return shape[0], shape[1], read


def _open_npy(path: Path, array: str | None) -> tuple[tuple[int, ...], str, Blocks]:
    if array is not None:
        raise UsageError(f"{path}: a .npy file holds a single unnamed array; leave out --array")
    with path.open("rb") as stream:
        shape, fortran, dtype, start = _npy_header(stream)
    _check_size(path, "the array", shape, dtype, path.stat().st_size - start)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        if not math.prod(shape):  # nothing to map
            return
        values = np.memmap(path, dtype, "r", start, shape, "F" if fortran else "C")
        yield from _slices(lambda a, b: np.asarray(values[a:b], dtype.newbyteorder("=")), len(values), rows)

    return shape, dtype.name, blocks


def _open_npz(path: Path, array: str | None) -> tuple[tuple[int, ...], str, Blocks]:
    with zipfile.ZipFile(path) as archive:
        name = _array_named(path, array, [entry.removesuffix(".npy") for entry in archive.namelist()])
        entry = archive.getinfo(f"{name}.npy")
        if entry.compress_type not in _COMPRESSIONS:
            raise InputError(f"{path}: the array '{name:.80}' uses a compression that numpy does not")
        with archive.open(entry) as stream:
            shape, fortran, dtype, header = _npy_header(stream)
    if fortran:
        raise InputError(
            f"{path}: the array '{name:.80}' is stored column by column; save numpy.ascontiguousarray of it instead"
        )
    _check_size(path, f"the array '{name:.80}'", shape, dtype, entry.file_size - header)

    def blocks(rows: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as stream:
            stream.read(header)
            width = shape[1] * dtype.itemsize
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                raw = stream.read(count * width)
                if len(raw) != count * width:
                    raise InputError(f"{path}: the array '{name}' is truncated at row {start:,}; copy the file again")
                yield np.frombuffer(raw, dtype).reshape(count, shape[1]).astype(dtype.newbyteorder("="), copy=False)

    return shape, dtype.name, blocks


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether the order is column-major, type, and header length in bytes."""
    head = io.BytesIO(stream.read(_LONGEST_HEADER))  # numpy would read as much as the header claims to have
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(head)
    if dtype.hasobject:
        raise ValueError("its array contains Python objects, which are never read")
    return shape, fortran, dtype, head.tell()


def _check_size(path: Path, what: str, shape: tuple[int, ...], dtype: np.dtype[Any], size: int) -> None:
    expected = math.prod(shape) * dtype.itemsize
    if size != expected:
        raise InputError(
            f"{path}: {what} of shape {shape!s:.80} and type {dtype!s:.80} needs {expected:,} bytes, found {size:,}; "
            "the file is truncated or damaged, copy it again"
        )


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
            else f"{path}: there is no array '{asked}'. {nearest(asked, names)}"
        )
    return asked


def _slices(read: Callable[[int, int], np.ndarray], total: int, rows: int) -> Iterator[np.ndarray]:
    for start in range(0, total, rows):
        yield read(start, min(start + rows, total))
