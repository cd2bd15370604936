"""An append-only file of lines in an object store, implemented as a table, because files there cannot grow."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lance
import pyarrow as pa
from lance.commit import CommitConflictError

from frevl.store.commits.failures import is_lance_failure
from frevl.store.remote.address import remote_failure, storage_options
from frevl.store.remote.objects import Objects
from frevl.store.remote.shared_rows import create_table

__all__ = ["SharedLines"]

_TIMES = 10  # attempts of a writer that loses to others
_SMALL_FRAGMENTS = 64
_KEEP_VERSIONS = timedelta(days=1)


class SharedLines:
    """Lines to which several processes append; every addition is a Lance commit, which gives their order.

    A file of that name, put there by a copy of the store, comes first.

    Args:
        store: Address of the store.
        name: Name of the file in a folder, such as ``labels/labels.jsonl``; the table is then ``labels/labels.lance``.

    Raises:
        StoreError: The object store cannot be reached or written; likewise for all methods.
    """

    def __init__(self, store: Path, name: str) -> None:
        self._path, self._name = (store / name).with_suffix(".lance"), name
        self._store, self._objects = store, Objects(store)

    def first(self) -> bytes:
        """Return the whole lines that came with a copy."""
        content = self._objects.read(self._name) or b""
        return content[: content.rfind(b"\n") + 1]

    def since(self, rows: int) -> list[bytes] | None:
        """Return the lines added after this many rows of the table; None if it has fewer."""
        with self._trying("reading"):
            table = self._open()
            there = 0 if table is None else int(table.count_rows())
            if there < rows:
                return None
            if table is None or there == rows:
                return []
            lines = table.scanner(columns=["line"], offset=rows).to_table()["line"]
            return [line.encode() for line in lines.to_pylist()]

    def all(self) -> bytes:
        """Return everything, as the file in a folder would hold it."""
        first = self.first()
        known = set(first.splitlines(keepends=True))
        return first + b"".join(line for line in self.since(0) or () if line not in known)

    def add(self, content: bytes) -> None:
        """Append whole lines, all or none of them."""
        rows = pa.table({"line": pa.array(content.decode().splitlines(keepends=True), pa.string())})
        with self._trying("writing"):
            for left in reversed(range(_TIMES)):
                try:
                    if self._open() is None:
                        create_table(str(self._path), rows)
                    else:
                        lance.write_dataset(rows, str(self._path), mode="append", storage_options=storage_options())
                    break
                except (CommitConflictError, FileExistsError):
                    if not left:
                        raise
                    time.sleep(random.uniform(0.0, 0.3))  # noqa: S311 - two writers must not stay in step
        self._tidy()

    def _tidy(self) -> None:
        """Merge small files, in order, if there are many; failures are retried the next time."""
        with contextlib.suppress(Exception):
            table = self._open()
            if table is not None and len(table.get_fragments()) >= _SMALL_FRAGMENTS:
                table.optimize.compact_files(target_rows_per_fragment=65_536, num_threads=1)
                table.cleanup_old_versions(older_than=_KEEP_VERSIONS)

    def _open(self) -> lance.LanceDataset | None:
        try:
            return lance.dataset(str(self._path), storage_options=storage_options())
        except ValueError as error:
            if "was not found" not in str(error):
                raise
            return None

    @contextmanager
    def _trying(self, what: str) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not is_lance_failure(error):
                raise
            raise remote_failure(self._store, f"{what} {self._name}", error) from None
