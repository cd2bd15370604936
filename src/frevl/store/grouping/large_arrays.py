"""Arrays of vectors that may not fit in memory: beyond a limit they are in an unnamed file, which is mapped."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from frevl.errors import StoreError
from frevl.files import user_cache
from frevl.machine import memory_limit

__all__ = ["gathered"]

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
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    if size <= min(_MOST_IN_MEMORY, memory_limit() / _SHARE_OF_MEMORY):
        vectors, start = np.empty(shape, dtype), 0
        for part in parts:
            vectors[start : start + len(part)] = part
            start += len(part)
        return vectors
    try:
        folder = user_cache() / "vectors"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            for part in parts:
                file.write(np.ascontiguousarray(part, dtype).data)
            file.flush()
            # Shared with a file that nobody else has: a private copy would count where `ulimit -d` bounds the process.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"the vectors of {shape[0]:,} items do not fit in memory and cannot be written to the cache "
            f"({getattr(error, 'strerror', None) or error}); free some space, or set FREVL_CACHE to another folder"
        ) from error
    return np.frombuffer(mapped, dtype).reshape(shape)
