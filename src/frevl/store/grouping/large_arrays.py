"""Large arrays that may not fit in memory: beyond a limit they are in an unnamed file, which is mapped."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frevl.errors import StoreError
from frevl.files import user_cache
from frevl.machine import memory_limit

__all__ = ["blank", "gathered"]

_MOST_IN_MEMORY = 3 << 29  # bytes: 1.5 GiB ...
_SHARE_OF_MEMORY = 8  # ... and no more than an eighth of what the process may use


def gathered(parts: Iterable[NDArray[np.floating]], shape: tuple[int, int], dtype: DTypeLike) -> NDArray[np.floating]:
    """Join consecutive rows, in memory or in an unnamed file, which disappears with the array.

    Args:
        parts: ``(m, d)`` each, ``n`` rows in total.
        shape: ``(n, d)``.
        dtype: Type of the result.

    Raises:
        StoreError: The file cannot be written.
    """
    if _fits(shape, dtype):
        vectors, start = np.empty(shape, dtype), 0
        for part in parts:
            vectors[start : start + len(part)] = part
            start += len(part)
        return vectors
    with _unnamed_file("vectors", shape[0]) as file:
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).data)
        file.flush()
        return _mapped(file, shape, dtype)


def blank(shape: tuple[int, int], dtype: DTypeLike) -> NDArray[np.floating]:
    """Return an array of zeros, in memory or in an unnamed file, which disappears with the array.

    Args:
        shape: ``(n, d)``, one row per item.
        dtype: Its type.

    Raises:
        StoreError: The disk has no room for the file.
    """
    if _fits(shape, dtype):
        return np.zeros(shape, dtype)
    with _unnamed_file("probabilities", shape[0]) as file:
        os.posix_fallocate(file.fileno(), 0, _size(shape, dtype))  # a page without room would end the process later
        return _mapped(file, shape, dtype)


def _size(shape: tuple[int, int], dtype: DTypeLike) -> int:
    return shape[0] * shape[1] * np.dtype(dtype).itemsize


def _fits(shape: tuple[int, int], dtype: DTypeLike) -> bool:
    return _size(shape, dtype) <= min(_MOST_IN_MEMORY, memory_limit() / _SHARE_OF_MEMORY)


@contextmanager
def _unnamed_file(content: str, items: int) -> Iterator[IO[bytes]]:
    try:
        folder = user_cache() / "vectors"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"the {content} of {items:,} items do not fit in memory and cannot be written to the cache "
            f"({getattr(error, 'strerror', None) or error}); free some space, or set FREVL_CACHE to another folder"
        ) from error


def _mapped(file: IO[bytes], shape: tuple[int, int], dtype: DTypeLike) -> NDArray[np.floating]:
    # Shared with a file that nobody else has: a private copy would count where `ulimit -d` bounds the process.
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE), dtype).reshape(shape)
