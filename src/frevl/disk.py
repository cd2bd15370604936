"""Durable files: a file and its name survive a power failure only once they have been flushed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such module on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["flush_file", "flush_folder"]

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
