"""Cache the columns of a pairs file in an Arrow file next to it, keyed by a content hash and memory-mapped.

The cache can always be rebuilt: it may be deleted, and a damaged or outdated one is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frevl.data.formats.table_parts import is_in_parts, parts_of, place_of
from frevl.data.packed.columns import Coded, Places
from frevl.files import user_cache
from frevl.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Kept", "kept_columns"]

_FORMAT = 3  # 2 had numbers where a table names its classes
_ENDING = ".pairs.arrow"
_COLUMNS = ("images", "texts", "targets", "extras")
_ABANDONED = 3600.0  # seconds after which a partly written file counts as abandoned
_UNUSUAL = re.compile(r"[*?\[\]]")  # of a pattern
_ROWS_A_BATCH = 1 << 20


@dataclass(frozen=True)
class Kept:
    """A cached pairs file, in columns.

    Attributes:
        columns: ``images``, ``texts``, and as JSON ``targets`` and ``extras``: one code per pair, and the values.
        lines: ``(n,)`` line of each pair.
        rejected: Lines that are not pairs, with the reason, in line order.
        notes: Sentences on how columns were read.
    """

    columns: dict[str, pa.DictionaryArray]
    lines: np.ndarray
    rejected: list[tuple[int, str]]
    notes: list[str]

    def strings(self, name: str) -> Coded[str]:
        """Return a column of texts."""
        return Coded(self.columns[name].indices.to_numpy(), self.columns[name].dictionary)

    def objects(self, name: str) -> Coded[Any]:
        """Return a column of values stored as JSON."""
        return Coded(self.columns[name].indices.to_numpy(), self.columns[name].dictionary, json.loads)

    def places(self, path: Path) -> Places:
        """Return the places of the pairs of this file."""
        return Places(str(path), self.lines, place_of(path))


def kept_columns(path: Path, given: Mapping[str, str], read: Callable[[], Kept | None]) -> Kept | None:
    """Return a file's columns from the cache, or from ``read``, which are then cached.

    Args:
        path: The pairs file, or a table in parts.
        given: Columns that the user named, since they determine how the file is read.
        read: Reads the file.
    """
    files = parts_of(path) if is_in_parts(path) else [path]
    before = _state(files)
    content = hashlib.blake2b(json.dumps([_FORMAT, __version__, sorted(given.items())]).encode(), digest_size=16)
    for each in files:
        with each.open("rb") as file:
            while part := file.read(1 << 20):
                content.update(part)
    folders = [path.absolute().parent]
    with contextlib.suppress(RuntimeError):  # no home folder is known
        folders.append(user_cache() / "pairs")
    prefix = f".{_UNUSUAL.sub('_', path.name)}."
    name = f"{prefix}{content.hexdigest()}{_ENDING}"
    for folder in folders:
        found = _opened(folder / name)
        if found is not None:
            return found
    made = read()
    if made is None or _state(files) != before:  # if the file changes meanwhile, it is not cached under its old content
        return made
    for folder in folders:
        if _written(made, folder, name, prefix):
            return _opened(folder / name) or made
    return made


def _state(files: list[Path]) -> list[tuple[int, int]]:
    states = [file.stat() for file in files]
    return [(state.st_size, state.st_mtime_ns) for state in states]


def _opened(file: Path) -> Kept | None:
    """Memory-map cached columns; None if missing or invalid."""
    import pyarrow as pa

    if not file.is_file():
        return None
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        about = json.loads(table.schema.metadata[b"frevl"])
        columns = {name: table[name].combine_chunks() for name in _COLUMNS}
        lines = table["lines"].combine_chunks().to_numpy()
        table.validate()
        for column in columns.values():
            codes = column.indices.to_numpy()
            if not len(codes) or column.null_count or codes.min() < 0 or codes.max() >= len(column.dictionary):
                return None
            if not _sound(column.dictionary):
                return None
        kept = Kept(columns, lines, [(line, reason) for line, reason in about["rejected"]], about["notes"])
        return kept if about["digest"] == _digest(kept) else None
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        return None


def _digest(kept: Kept) -> str:
    """Return a hash of all cached values, independent of how Arrow's buffers are chunked."""
    content = hashlib.blake2b(json.dumps([kept.rejected, kept.notes]).encode(), digest_size=16)
    content.update(np.ascontiguousarray(kept.lines, np.int64).data)
    for name in _COLUMNS:
        column = kept.columns[name]
        places, data = _texts(column.dictionary)
        content.update(
            f"{name} {len(column)} {column.null_count} {column.dictionary.null_count} {len(places)}".encode()
        )
        content.update(np.ascontiguousarray(column.indices.to_numpy()).data)
        content.update((places - places[0] if places[0] else places).data)
        content.update(data[places[0] : places[-1]].data)
    return content.hexdigest()


def _texts(values: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets of all texts, including the end of the last, and their bytes."""
    _, at, data = values.buffers()
    places = np.frombuffer(at, np.int64)[values.offset : values.offset + len(values) + 1]
    return places, np.frombuffer(b"" if data is None else data, np.uint8)


def _sound(values: pa.LargeStringArray) -> bool:
    """Return whether every text lies within the buffer, which Arrow itself does not check."""
    places, data = _texts(values)
    size = len(data)
    return bool(len(places) and places[0] >= 0 and places[-1] <= size and (np.diff(places) >= 0).all())


def _written(made: Kept, folder: Path, name: str, prefix: str) -> bool:
    """Write the cache atomically and remove outdated ones; False on failure."""
    import pyarrow as pa

    about = json.dumps({"rejected": made.rejected, "notes": made.notes, "digest": _digest(made)}).encode()
    table = pa.table({**made.columns, "lines": made.lines}).replace_schema_metadata({b"frevl": about})
    part = folder / f"{name}.{os.getpid()}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as sink:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
            sink.flush()
            os.fsync(sink.fileno())  # otherwise a power failure could leave the final name with incomplete content
        part.replace(folder / name)
    except OSError:  # no permission, or a full disk: it is read again next time
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return False
    for old in folder.iterdir():
        ours = old.name.startswith(prefix) and old.name != name
        with contextlib.suppress(OSError):
            if ours and (
                old.name.endswith(_ENDING)
                or (old.name.endswith(".part") and time.time() - old.stat().st_mtime > _ABANDONED)
            ):
                old.unlink()
    return True
