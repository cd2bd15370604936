"""Translate Lance's read and write errors into plain messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from frevl.errors import StoreError
from frevl.store.remote.address import is_remote, remote_failure

__all__ = ["brief", "is_lance_failure", "reading", "writing"]

# The system's messages for a failed write, which Lance buries in long text.
_SYSTEM_REASONS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Permission denied",
    "Read-only file system",
    "Too many open files",
)


@contextmanager
def reading(store: Path, name: str) -> Iterator[None]:
    """Turn Lance's errors while reading a table into a `StoreError`."""
    try:
        yield
    except BaseException as error:
        if not is_lance_failure(error):
            raise
        if is_remote(store):
            raise remote_failure(store, f"reading the table '{name}'", error) from None
        if isinstance(error, PermissionError):
            raise StoreError(f"{store}: no permission to read the table '{name}'; ask its owner") from error
        raise StoreError(
            f"{store}: the table '{name}' cannot be read ({brief(error)}); files of the store are damaged or "
            f"missing: run frevl store verify {store}, then restore them from a copy, or extract into a new store"
        ) from error


@contextmanager
def writing(store: Path, name: str) -> Iterator[None]:
    """Turn Lance's errors while writing a table into a `StoreError`."""
    try:
        yield
    except BaseException as error:
        if not is_lance_failure(error):
            raise
        raise StoreError(
            f"{store}: writing the table '{name}' failed ({brief(error)}); everything committed before is kept: "
            "free some space or fix the permissions, and run the same command again to continue"
        ) from error


def is_lance_failure(error: BaseException) -> bool:
    """Return whether an error comes from Lance."""
    # A panic in Lance's Rust code (a damaged file can cause one) derives from BaseException, in a class of its own.
    return isinstance(error, OSError | ValueError | RuntimeError | pa.ArrowException) or (
        type(error).__name__ == "PanicException"
    )


def brief(error: BaseException) -> str:
    """Return the readable part of a Lance error: one line, without locations in Lance's own source."""
    text = " ".join(str(error).split())
    for words in _SYSTEM_REASONS:
        if words in text:
            return words
    return text.partition(", /")[0][:200] or type(error).__name__
