"""Access single files of a store in an object store, through Lance."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lance.file import LanceFileSession

from frevl.store.remote.address import remote_failure, storage_options

__all__ = ["Objects"]

_FAILURES = (OSError, ValueError, RuntimeError)


class Objects:
    """The files below one address.

    Args:
        store: Address of a store.

    Raises:
        StoreError: The object store cannot be reached; likewise for all methods.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        try:
            self._session = LanceFileSession(str(store), storage_options=storage_options())
        except _FAILURES as error:
            raise remote_failure(store, "opening it", error) from None

    def names(self, folder: str = "") -> set[str]:
        """Return the names of all files below a folder, as paths below the store."""
        try:
            return set(self._session.list(folder or None))
        except _FAILURES as error:
            raise remote_failure(self._store, "listing its files", error) from None

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file; None if it does not exist."""
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "file"
            try:
                if not self._session.contains(name):
                    return None
                self._session.download_file(name, target)
            except _FAILURES as error:
                raise remote_failure(self._store, f"reading {name}", error) from None
            return target.read_bytes()

    def fetch(self, name: str, target: Path) -> None:
        """Download a file."""
        try:
            self._session.download_file(name, target)
        except _FAILURES as error:
            raise remote_failure(self._store, f"reading {name}", error) from None

    def write(self, name: str, content: bytes) -> None:
        """Write a small file atomically."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "file"
            source.write_bytes(content)
            self.put(source, name)

    def delete(self, name: str) -> None:
        """Delete a file."""
        try:
            self._session.delete_file(name)
        except _FAILURES as error:
            raise remote_failure(self._store, f"deleting {name}", error) from None

    def put(self, source: Path, name: str) -> None:
        """Upload a local file atomically."""
        try:
            self._session.upload_file(source, name)
        except _FAILURES as error:
            raise remote_failure(self._store, f"writing {name}", error) from None
