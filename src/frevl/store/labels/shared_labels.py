"""The labels of a store in an object store: as in a folder, but in a table of lines instead of a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from frevl.store.labels.entries import Entry, now
from frevl.store.labels.labels_file import HEADER, LabelsFile
from frevl.store.remote.address import is_remote
from frevl.store.remote.shared_lines import SharedLines

__all__ = ["labels_of"]

_FRESH = 1.0  # seconds; a page makes many requests that a single read from the object store can answer


def labels_of(store: Path, *, writes: bool = True) -> LabelsFile:
    """Return the labels of a store.

    Args:
        store: Folder or URL of the store.
        writes: See `frevl.store.labels.labels_file.LabelsFile`.

    Raises:
        StoreError: The labels cannot be read.
    """
    return _SharedLabels(store) if is_remote(store) else LabelsFile(store, writes=writes)


class _SharedLabels(LabelsFile):
    """Labels in an object store, to which several processes may write and which cannot be locked.

    A label is saved when `label` returns, and others' changes are visible after a second. If two processes rename
    classes or withdraw labels at the same moment, the order of their commits decides for everyone.
    """

    def __init__(self, store: Path) -> None:
        self._lines_there = SharedLines(store, "labels/labels.jsonl")
        super().__init__(store, writes=False)

    def _start_over(self) -> None:
        super()._start_over()
        self._rows, self._first, self._looked = 0, b"", float("-inf")
        self._begun = False

    def _read(self) -> None:
        if time.monotonic() - self._looked < _FRESH:
            return
        first = b"" if self._begun else self._lines_there.first()
        added = self._lines_there.since(self._rows)
        if added is None:
            self._note(f"{self.path.name} was replaced by another file, which was read from the start.")
            self._start_over()
            first, added = self._lines_there.first(), self._lines_there.since(0) or []
        if not self._begun:
            self._begun, self._first = True, first
            self._take(first)
        known = set(self._first.splitlines(keepends=True)) if added else set()
        self._rows += len(added)
        self._take(b"".join(line for line in added if line not in known))
        self._looked = time.monotonic()

    def _write(self, entries: Sequence[Entry]) -> None:
        at = now()
        lines = b"".join(replace(entry, at=at).line() for entry in entries)
        self._lines_there.add((HEADER if self._offset == 0 else b"") + lines)
        self._looked = float("-inf")
        self._read()

    def _mend(self) -> None:
        """Do nothing: an addition is present as a whole or not at all."""

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._looked = float("-inf")
        yield
