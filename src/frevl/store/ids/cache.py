"""Sorted id hashes of a table, cached in memory-mapped files ``STORE/rows/TABLE.KEY.rows``, which may be deleted.

A file covers consecutive parts of the table, up to about 16 million rows. KEY is a hash of these parts and their
deletions, so a file either stays valid or is unused, and a grown table rebuilds only its last file.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from frevl.files import replace_file
from frevl.store.ids.hashing import id_hashes
from frevl.store.ids.rows_of_ids import Segment

if TYPE_CHECKING:
    from collections.abc import Callable

    import lance

__all__ = ["segments_of"]

_ROWS = 1 << 24  # rows per segment; sorting it takes 0.5 GB temporarily
_LEAST_KEPT = 500_000  # rows of a table; smaller tables use a dictionary
_HEADER = struct.Struct("<12sQI")  # magic bytes, number of rows, checksum
_MAGIC = b"frevl rows 1"
_BLOCK = 4 << 20  # bytes


def segments_of(
    name: str,
    fragments: Sequence[lance.LanceFragment],
    folder: Path | None,
    ids_of: Callable[[Sequence[lance.LanceFragment]], Iterator[pa.Array]],
) -> list[Segment]:
    """Return the segments of a table, from the cache or newly built and cached.

    Args:
        name: Name of the table.
        fragments: Fragments of the table, in order.
        folder: Folder for the segments; None does not store them.
        ids_of: Yields the ids of some parts in row order.
    """
    total = sum(one.metadata.num_rows for one in fragments)
    folder = folder if total >= _LEAST_KEPT else None
    found, used, first = [], set(), 0
    for some in _divided(fragments):
        rows = sum(one.metadata.num_rows for one in some)
        file = None if folder is None else folder / f"{name}.{_key(some)}.rows"
        segment = None if file is None else _opened(file, rows, first)
        if segment is None:
            hashes, at = _sorted(ids_of(some), rows)
            segment = Segment(hashes, at, first)
            if file is not None and _written(file, hashes, at):
                del hashes, at
                segment = _opened(file, rows, first) or segment
        found.append(segment)
        used |= set() if file is None else {file.name}
        first += rows
    if folder is not None:
        with contextlib.suppress(OSError):
            for old in folder.glob(f"{name}.*.rows"):
                if old.name not in used:
                    old.unlink()  # processes that have mapped it can still read it
    return found


def _divided(fragments: Sequence[lance.LanceFragment]) -> Iterator[list[lance.LanceFragment]]:
    some: list[lance.LanceFragment] = []
    rows = 0
    for one in fragments:
        if some and rows + one.metadata.physical_rows > _ROWS:
            yield some
            some, rows = [], 0
        some.append(one)
        rows += one.metadata.physical_rows  # physical rows, so that deletions do not change which parts stay together
    if some:
        yield some


def _key(fragments: Sequence[lance.LanceFragment]) -> str:
    parts = [
        (*(file.path for file in one.data_files()), one.metadata.num_rows, one.deletion_file()) for one in fragments
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


def _sorted(ids: Iterator[pa.Array], rows: int) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    hashes: NDArray[np.uint64] = np.empty(rows, np.uint64)
    done = 0
    for some in ids:
        hashes[done : done + len(some)] = id_hashes(some)
        done += len(some)
    if done != rows:
        raise ValueError(f"expected {rows:,} rows, found {done:,}")
    order = np.argsort(hashes, kind="stable")
    return hashes[order], order.astype(np.uint32)


def _opened(file: Path, rows: int, first: int) -> Segment | None:
    """Memory-map a file; None if missing or truncated."""
    try:
        with file.open("rb") as source:
            size = os.fstat(source.fileno()).st_size
            magic, count, checksum = _HEADER.unpack(source.read(_HEADER.size))
            if magic != _MAGIC or count != rows or size != _HEADER.size + 12 * rows:
                return None
            found = 0
            while part := source.read(_BLOCK):  # not through the map, whose pages would count as memory
                found = zlib.crc32(part, found)
            if found != checksum:
                return None
            mapped = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError, struct.error):
        return None
    hashes: NDArray[np.uint64] = np.frombuffer(mapped, "<u8", rows, _HEADER.size)
    at: NDArray[np.uint32] = np.frombuffer(mapped, "<u4", rows, _HEADER.size + 8 * rows)
    return Segment(hashes, at, first)


def _written(file: Path, hashes: NDArray[np.uint64], rows: NDArray[np.uint32]) -> bool:
    def write(path: Path) -> None:
        with path.open("wb") as target:
            target.write(_HEADER.pack(_MAGIC, len(hashes), zlib.crc32(rows.data, zlib.crc32(hashes.data))))
            target.write(hashes.data)
            target.write(rows.data)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_file(file, write)
    except OSError:  # no permission, or a full disk: rebuilt by the next process
        return False
    return True
