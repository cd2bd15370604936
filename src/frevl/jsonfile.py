"""Writing JSON so that a reader never sees half a file, reading untrusted files, and flushing what must survive.

A file and its name survive a power failure only once they have been flushed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable
from datetime import date, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # no such module on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "LARGEST_RECORD",
    "flush_file",
    "flush_folder",
    "plain",
    "read_record",
    "replace_file",
    "write_json",
    "write_lines",
]

LARGEST_RECORD = 32 << 20
"""Most bytes of a record that is read. A million class names take as much."""


def read_record(path: Path) -> dict[str, Any]:
    """Read an untrusted file of settings.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than `LARGEST_RECORD`, no JSON, nested too deep, or no object.
    """
    size = path.stat().st_size
    if size > LARGEST_RECORD:
        raise ValueError(f"'{path.name}' has {size:,} bytes, expected at most {LARGEST_RECORD:,}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"'{path.name}' is nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object in '{path.name}', found {type(record).__name__}")
    return record


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically, in UTF-8; numbers that are not finite become null."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON objects atomically, one a line, as `write_json` would."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(plain(one), ensure_ascii=False, allow_nan=False) + "\n" for one in records)

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, a failure leaves the old one.

    File and name are on the disk when this returns.

    A link stays a link, and the file that it leads to is replaced. What is no file (a terminal, a pipe) is written to.

    Args:
        path: The file; its folder must be there.
        write: Called with the path to write to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(temporary)
        flush_file(temporary)
        if target.is_file():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        flush_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # the error of the write is the one to tell
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn numpy numbers, paths, tuples and times into JSON types; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    numpy = sys.modules.get("numpy")  # not imported: a command that has no arrays would pay for it
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date | clock):
        return value.isoformat()
    return str(value) if isinstance(value, Path | timedelta) else value


# What file systems say that cannot flush a folder (some network file systems); they keep names by other means.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def flush_file(path: str | Path) -> None:
    """Wait until the content of a file is on disk.

    Raises:
        OSError: The disk failed, or the file is missing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on disk: new, renamed and deleted ones.

    Raises:
        OSError: The disk failed, or the folder is missing.
    """
    if os.name == "nt":  # a folder cannot be opened there; renames are on the disk when they return
        return
    try:
        flush_file(path)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _flush(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves the data in the drive's own cache
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError:  # not every file system there has it
            pass
    os.fsync(descriptor)
