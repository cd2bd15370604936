"""Files that frevl writes: a reader never sees half of one.

JSON is written atomically and read without trust. A file and its name survive a power failure only once they have been
flushed.
"""

from __future__ import annotations

import codecs
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

__all__ = [
    "LARGEST_RECORD",
    "decoded",
    "flush_file",
    "flush_folder",
    "plain",
    "read_record",
    "read_text",
    "replace_file",
    "user_cache",
    "write_json",
    "write_lines",
]

try:
    import fcntl
except ImportError:  # no such module on Windows
    fcntl = None  # type: ignore[assignment]


LARGEST_RECORD = 32 << 20
"""Maximum size in bytes of a record to read: as much as a million class names take."""


def read_record(path: Path) -> dict[str, Any]:
    """Read an untrusted settings file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is larger than `LARGEST_RECORD`, not JSON, nested too deep, or not an object.
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


def decoded(content: bytes) -> str:
    """Decode the text of a file that a person wrote: UTF-8, or UTF-16 with a byte order mark; the mark is left out.

    Editors on Windows put such a mark at the beginning, and some of them write UTF-16.

    Raises:
        UnicodeDecodeError: It is neither.
    """
    return content.decode("utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")


def read_text(path: Path) -> str:
    """Read a text file that a person wrote, as `decoded`; every kind of line end becomes a line feed.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: It is neither UTF-8 nor UTF-16.
    """
    return decoded(path.read_bytes()).replace("\r\n", "\n").replace("\r", "\n")


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically, in UTF-8; non-finite numbers become null."""
    text = _as_json(record, indent=2) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON objects atomically, one per line, as `write_json` would."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(_as_json(one) + "\n" for one in records)

    replace_file(path, write)


def _as_json(record: Any, indent: int | None = None) -> str:
    """Return JSON that UTF-8 can hold: half of a surrogate pair, as in a file name that is not UTF-8, stays escaped."""
    values = plain(record)
    text = json.dumps(values, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(values, indent=indent, allow_nan=False)
    return text


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write next to the target, then rename: a reader sees the old or the new file; a failure leaves the old one.

    File and name are on the disk when this returns.

    A link stays a link, and its target is replaced. A terminal or a pipe is written to directly.

    Args:
        path: The file; its folder must exist.
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
        with contextlib.suppress(OSError):  # report the error of the write
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Convert numpy numbers, paths, tuples and times to JSON types; non-finite numbers become None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    numpy = sys.modules.get("numpy")  # numpy is not imported here: a command without arrays would pay for it
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date | clock):
        return value.isoformat()
    return str(value) if isinstance(value, Path | timedelta) else value


# Errors of file systems that cannot flush a folder (some network ones); they keep names by other means.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def flush_file(path: str | Path) -> None:
    """Wait until a file's contents are on disk.

    Raises:
        OSError: The disk failed, or the file is missing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str | Path) -> None:
    """Wait until a folder's entries are on disk: new, renamed and deleted names.

    Raises:
        OSError: The disk failed, or the folder is missing.
    """
    if os.name == "nt":  # Windows cannot open a folder; renames are on disk when they return
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
        except OSError:  # not every file system on macOS supports it
            pass
    os.fsync(descriptor)


def user_cache() -> Path:
    """Return the user's cache folder: ``$FREVL_CACHE``, or a folder below the system's cache."""
    chosen = os.environ.get("FREVL_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frevl"
