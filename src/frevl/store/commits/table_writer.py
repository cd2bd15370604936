"""Write to the tables of a store: every call is one commit, on disk and recorded when it returns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from frevl.errors import StoreError, counted
from frevl.files import flush_folder
from frevl.store.commits.failures import writing
from frevl.store.commits.record import Commit, flush_table, manifests, table_folder, write_commit
from frevl.store.commits.session import begin_writing, end_writing, unclaimed_files
from frevl.store.ids.hashing import as_arrow
from frevl.store.ids.places import Places, exchange_rows
from frevl.store.lance_tables import (
    append_rows,
    delete_rows,
    existing_table,
    open_table,
    replace_rows,
)

if TYPE_CHECKING:
    import lance

__all__ = [
    "ITEM_FIELDS",
    "UNREAD_SCHEMA",
    "TableWriter",
    "as_stream",
    "embedding_column",
    "in_utf8",
    "lock_store",
    "make_store_folder",
    "reject_rows",
]

ITEM_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("modified_ns", pa.int64()),
    pa.field("filled", pa.list_(pa.struct([pa.field("tower", pa.string()), pa.field("crc32", pa.uint32())]))),
]
UNREAD_SCHEMA = pa.schema([("tower", pa.string()), ("text", pa.string()), ("share", pa.float64())])
REJECT_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("kind", "id", "reason")])


def in_utf8(text: str) -> str:
    """Escape invalid UTF-8 (file names may contain anything)."""
    return text.encode("utf-8", "backslashreplace").decode()


def reject_rows(rejects: dict[tuple[str, str], str]) -> pa.Table:
    """Return the rows of the table of rejects; `rejects` maps kind and id to the reason."""
    columns = list(zip(*((kind, id_, reason) for (kind, id_), reason in rejects.items()), strict=True)) or [()] * 3
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=REJECT_SCHEMA)


def embedding_column(values: np.ndarray, mask: np.ndarray, *, pooled: bool) -> pa.Array:
    """Convert ``(n, tokens, dim)`` embeddings in the stored type to a column of vectors, or of lists of vectors."""
    dim = values.shape[-1]
    if pooled:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), dim)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values[mask].reshape(-1)), dim)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)


def as_stream(rows: pa.Table) -> bytes:
    """Return rows as an Arrow stream, as stored in the record of a commit."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content


A = TypeVar("A")

_SMALL_FRAGMENTS = 64  # number of commits merged into larger files at a time
_FRAGMENT_BYTES = 64 << 20  # maximum size, because merging may need several times as much memory
_FRAGMENT_ROWS = 65_536
_LARGE = 500_000  # rows above which no commit reads all ids of a table
_KEEP_VERSIONS = timedelta(minutes=10)  # for readers that opened an older version
_UNTIDY = "The store is complete, but could not be tidied up"


class TableWriter:
    """The only writer of a store's tables; a context manager that holds the store's lock.

    Args:
        path: Folder of the store, which must exist.
        names: Names of its tables, that of the towers first, because it describes columns of the others.

    Attributes:
        notes: Notes for the user.

    Raises:
        StoreError: Another process is writing, or a table is damaged or has lost commits.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self.notes: list[str] = []
        self._commits: dict[str, int] = dict.fromkeys(names, 0)
        self._flushed: dict[str, set[str]] = {name: set() for name in self._commits}
        self._kept: dict[str, int | None] = {}
        self._places: dict[str, Places] = {}
        self._lock = lock_store(path)

    def __enter__(self) -> TableWriter:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(f"{self.path}: another process is writing to this store; wait for it to finish") from error
        except OSError as error:
            raise StoreError(f"{self.path}: the store cannot be locked for writing ({error.strerror})") from error
        try:
            self._unclaimed = begin_writing(self.path, self._commits, self._remember)
            for name in self._commits:
                self._tidy(name)
        except OSError as error:
            self._lock.release()
            raise StoreError(
                f"{self.path}: the store cannot be written ({error.strerror or error}); everything committed before is "
                "kept: free some space or fix the permissions, and run the same command again to continue"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        for name, files in self._unclaimed.items():
            if files:
                self.notes.append(
                    f"The table '{name}' has {counted(len(files), 'data file')} of none of its versions, left "
                    f"alone: run frevl store verify {self.path}."
                )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for name, commits in self._commits.items():
                    if commits:
                        self._tidy(name, at_end=True)
                end_writing(self.path)
        finally:
            self._lock.release()

    def append(self, name: str, rows: pa.Table) -> None:
        """Add rows to a table, creating it if missing.

        Raises:
            StoreError: The rows cannot be written; likewise for the methods below.
        """
        append_rows(self.path, name, rows)
        self._committed(name)

    def replace(self, name: str, rows: pa.Table) -> None:
        """Replace all rows of a table."""
        replace_rows(self.path, name, rows)
        self._committed(name)

    def merge(self, name: str, rows: pa.Table) -> None:
        """Replace the rows with the same ``id``; the new ones have all columns of the table."""
        ids = as_arrow(rows["id"])
        places = self._places_in(name)
        known = None if places is None else places.find(ids)
        done = places is not None and known is not None and exchange_rows(self.path, name, rows, places.places(known))
        if not done:
            table = existing_table(self.path, name)
            with writing(self.path, name):
                # If the source has every column, Lance reads only the ids, but those of all rows.
                table.merge_insert("id").when_matched_update_all().execute(rows)
        if places is not None:
            places.mark(ids)
        self._committed(name)

    def find(self, name: str, ids: pa.Array) -> pa.Table | None:
        """Return the rows of some ids of a large table, in order; None if all ids must be read to find them."""
        places = self._places_in(name)
        rows = None if places is None else places.find(ids)
        return None if places is None or rows is None else places.take(rows)

    def _places_in(self, name: str) -> Places | None:
        if name not in self._places and existing_table(self.path, name).count_rows() > _LARGE:
            self._places[name] = Places(self.path, name)
        return self._places.get(name)

    def delete(self, name: str, ids: pa.Array) -> int:
        """Delete the rows of some ids; return how many existed."""
        count = delete_rows(self.path, name, ids)
        if name in self._places:
            self._places[name].mark(ids)
        self._committed(name)
        return count

    def exchange(self, name: str, rows: pa.Table, left: pa.Array) -> None:
        """Add rows and delete others by id, in one commit.

        Args:
            name: Name of the table.
            rows: Rows with all columns of the table, whose ids are not in it.
            left: Ids to delete, which are in it.
        """
        fields = [pa.nulls(len(left), field.type) if field.name != "id" else left for field in rows.schema]
        both = pa.concat_tables([rows, pa.Table.from_arrays(fields, schema=rows.schema)])
        if not len(both):
            return
        table = existing_table(self.path, name)
        with writing(self.path, name):
            table.merge_insert("id").when_matched_delete().when_not_matched_insert_all().execute(both)
        if name in self._places:
            self._places[name].mark(left)
        self._committed(name)

    def compact(self, name: str) -> None:
        """Rewrite a table without deleted rows, in full-size files, and delete everything older at once.

        Readers of older versions continue with the newest.
        """
        table = open_table(self.path, name)
        if table is None:
            return
        with writing(self.path, name):
            target = rows_a_file(table)
            table.optimize.compact_files(
                target_rows_per_fragment=target,
                materialize_deletions_threshold=0.0,
                compaction_mode="try_binary_copy",
                batch_size=max(1, target // 16),
                num_threads=1,
            )
        self._committed(name)
        if not self._unclaimed[name]:
            with writing(self.path, name):
                table.cleanup_old_versions(older_than=timedelta())
                self._delete_left_files(name)

    def update_rejects(self, changed: pa.Table, gone: pa.Table, whole: pa.Table, *, again: bool) -> None:
        """Add or replace some rejects and delete others.

        Args:
            changed: Rejects to add or replace.
            gone: Rejects to delete.
            whole: All rejects after the change.
            again: Whether a changed reject already exists.
        """
        if again or len(gone):
            self.replace("rejects", whole)
        else:
            self.append("rejects", changed)

    def retried(self, change: Callable[[], A]) -> A:
        """Make a change; in a folder there is no competing writer."""
        return change()

    def newest(self, name: str) -> lance.LanceDataset:
        """Return the newest version of a table that must exist."""
        return existing_table(self.path, name)

    def has_moved(self) -> bool:
        """Return False, because no other process can change the towers."""
        return False

    @contextmanager
    def keep_version(self, name: str, version: int | None) -> Iterator[None]:
        """Keep a version of a table on disk, regardless of age."""
        self._kept = {**self._kept, name: version}
        try:
            yield
        finally:
            self._kept = {**self._kept, name: None}

    def add_columns(self, name: str, columns: list[pa.Field]) -> None:
        """Add null columns to an existing table, without writing a data file."""
        table = existing_table(self.path, name)
        with writing(self.path, name):
            table.add_columns(pa.schema(columns))
        self._committed(name)

    def _committed(self, name: str) -> None:
        self._remember(name)
        self._commits[name] += 1
        if self._commits[name] % _SMALL_FRAGMENTS == 0:
            self._tidy(name)

    def _remember(self, name: str) -> None:
        """Wait until the newest version of a table is on disk, then record it outside the table."""
        table = existing_table(self.path, name)
        with writing(self.path, name):
            flush_table(self.path, name, self._flushed[name])
            content = as_stream(table.to_table()) if name == "towers" else b""
            manifest = manifests(self.path, name)[table.version].read_bytes()
            write_commit(self.path, name, Commit(table.version, table.count_rows(), manifest, content))

    def _tidy(self, name: str, *, at_end: bool = False) -> None:
        """Merge small files when there are many, and delete what no reader still needs."""
        table = open_table(self.path, name)
        if table is None:
            return
        try:
            with writing(self.path, name):
                target = rows_a_file(table)
                if sum(fragment.metadata.num_rows < target for fragment in table.get_fragments()) >= _SMALL_FRAGMENTS:
                    # A binary copy where no row was deleted takes half the time and a sixth of the memory.
                    table.optimize.compact_files(
                        target_rows_per_fragment=target,
                        # Parts whose rows are being replaced one by one keep their place until all rows are replaced.
                        materialize_deletions=at_end or name not in self._places,
                        compaction_mode="try_binary_copy",
                        batch_size=max(1, target // 16),
                        num_threads=1,
                    )
                    self._remember(name)  # must be on disk before the files that it replaces are deleted
                if not self._unclaimed[name]:  # Lance would delete unclaimed files after a week
                    places = None if at_end else self._places.get(name)
                    base = None if places is None else places.version
                    if self._delete_old_versions(table, {self._kept.get(name), base} - {None}):
                        self._delete_left_files(name)
        except StoreError as error:
            # Nothing is lost: tidying up, which a full disk may have prevented, is repeated next time.
            if not any(note.startswith(_UNTIDY) for note in self.notes):
                self.notes.append(f"{_UNTIDY}: {error}.")

    @staticmethod
    def _delete_old_versions(table: lance.LanceDataset, kept: set[int | None]) -> int:
        """Delete versions that no reader needs any more, and return how many."""
        if not kept:
            return int(table.cleanup_old_versions(older_than=_KEEP_VERSIONS).old_versions)
        before = datetime.now() - _KEEP_VERSIONS
        versions: list[Any] = list(table.versions())
        old = [one["version"] for one in versions if one["timestamp"] < before and one["version"] not in kept]
        return int(table.cleanup_old_versions(versions=old).old_versions) if old else 0

    def _delete_left_files(self, name: str) -> None:
        """Delete data files of deleted versions that Lance kept because they look newer than the versions.

        In a copy of a store, every file is as new as the copy. Without this, such files belong to no version, and look
        like data that lost its manifest.
        """
        for file in unclaimed_files(self.path, name):
            (table_folder(self.path, name) / "data" / file).unlink(missing_ok=True)


def lock_store(path: Path) -> FileLock:
    """Return the lock of a store, not yet acquired; every writer holds it."""
    return FileLock(path / ".lock")


def make_store_folder(path: Path) -> None:
    """Create the folder of a store, unless it contains something else.

    Raises:
        StoreError: It contains something else, or cannot be written.
    """
    try:
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path}: expected a store, or an empty or new folder for one, found a file")
        if path.is_dir() and not any((path / known).is_dir() for known in ("towers.lance", "commits")):
            entries = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
            if entries:
                raise StoreError(
                    f"{path}: expected a store, or an empty or new folder for one, found '{entries[0]}' in it; "
                    "choose another folder"
                )
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        (path / ".lock").touch()
        for folder in new:
            flush_folder(folder.parent)
    except OSError as error:
        raise StoreError(
            f"{path}: the store cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error


def rows_a_file(table: lance.LanceDataset) -> int:
    """Return the number of rows per data file of a table."""
    fragments = [fragment.metadata for fragment in table.get_fragments()]
    rows = sum(fragment.num_rows for fragment in fragments)
    size = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
    return int(min(max(_FRAGMENT_BYTES * rows // max(size, 1), 1), _FRAGMENT_ROWS))
