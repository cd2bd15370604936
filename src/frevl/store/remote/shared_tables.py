"""Write to the tables of a store in an object store, concurrently with other writers: every call is one Lance commit.

A bucket cannot be locked. Instead, a commit states the version on which it was based, and Lance refuses or repeats it
if another writer has since changed the same rows. Rows are identified by their table's primary key, named in the
schema, so if two writers add the same id, the second one finds it present.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import lance
import lance.fragment
import pyarrow as pa
import pyarrow.compute as pc
from lance.commit import CommitConflictError

from frevl.errors import StoreError
from frevl.store.commits.failures import is_lance_failure
from frevl.store.commits.record import Commit, manifest_name, record_of
from frevl.store.commits.table_writer import as_stream, rows_a_file
from frevl.store.remote.address import CUT_OFF, remote_failure, storage_options
from frevl.store.remote.objects import Objects
from frevl.store.remote.shared_rows import PRIMARY, PRIMARY_NAME, checksum_there, create_table, fitting, keyed

__all__ = ["SharedTables"]

A = TypeVar("A")

_KEYS = {"images": ["id"], "texts": ["id"], "rejects": ["kind", "id"], "unread": ["tower", "text"]}
_TIMES = 30  # attempts of a writer that loses to others
# Lance raises a plain OSError if another writer was faster and it does not retry by itself.
_FASTER = ("Too many concurrent writers", "Retryable commit conflict")
_CUTS = 5  # attempts of a repeatable operation if an answer was cut off
_SMALL_FRAGMENTS = 64
_KEEP_VERSIONS = timedelta(days=1)  # for readers and writers that started with an older version


class SharedTables:
    """The tables of a store in an object store; a context manager that corresponds to `TableWriter` for a folder.

    Args:
        path: Address of the store.
        names: Names of its tables, that of the towers first.

    Attributes:
        notes: Notes for the user.

    Raises:
        StoreError: The object store cannot be reached or written, or has other contents; likewise for all methods.
    """

    def __init__(self, path: Path, names: Iterable[str]) -> None:
        self.path = path
        self.notes: list[str] = []
        self._commits = dict.fromkeys(names, 0)
        self._found: dict[str, lance.LanceDataset] = {}
        self._towers_at: int | None = None
        self._columns_came = False
        if self._open("towers") is None:
            there = Objects(path).names()
            others = sorted(
                name for name in there if not name.startswith((*(f"{name}.lance/" for name in names), "commits/"))
            )
            if others:
                raise StoreError(
                    f"{path}: expected a store, or nothing, found '{others[0]:.200}'; choose another address"
                )

    def __enter__(self) -> SharedTables:
        for name, key in _KEYS.items():
            self.retried(lambda name=name, key=key: self._make_key(name, key))  # type: ignore[misc]
        towers = self._open("towers")
        self._towers_at = None if towers is None else int(towers.version)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, commits in self._commits.items():
            if commits and kind is None:
                self._tidy(name)
                self._record(name)

    def retried(self, change: Callable[[], A]) -> A:
        """Make a change, retrying from the newest state if another writer was faster."""
        for left in reversed(range(_TIMES)):
            try:
                return change()
            except CommitConflictError:
                if not left:
                    break
                time.sleep(random.uniform(0.0, 0.3))  # noqa: S311 - two writers must not stay in step
        raise StoreError(
            f"{self.path}: other processes keep writing to the same rows; everything committed before is kept: run "
            "the same command again to continue"
        )

    def append(self, name: str, rows: pa.Table) -> None:
        """Add rows; if another writer has since added the same key, only missing embeddings are added."""
        rows = rows.cast(keyed(rows.schema, _KEYS[name]))
        if self._create(name, rows):
            self._committed(name)
            return

        def add() -> int:
            table = self._existing(name)
            if not set(rows.column_names) <= set(table.schema.names):
                # The table was created by another writer after this one had registered its towers.
                self.add_columns(name, list(rows.schema))
                table = self._existing(name)
            with self._writing(name):
                new = fitting(rows, table.schema)
                done = table.merge_insert(_KEYS[name]).when_not_matched_insert_all().execute(new)
            return int(done["num_inserted_rows"])

        inserted = self.retried(add)
        self._committed(name)
        if inserted < len(rows) and "filled" in rows.column_names:
            self.retried(lambda: self._add_to_there(name, rows))

    def replace(self, name: str, rows: pa.Table) -> None:
        """Replace all rows of the table of towers, as last seen by this writer.

        Raises:
            CommitConflictError: Another writer has changed it since; `has_moved` then returns True.
        """
        if self._towers_at is None:
            if not self._create(name, rows):
                raise CommitConflictError("another writer has created the table")
            self._towers_at = 1
        else:
            with self._writing(name):
                table = lance.dataset(self._uri(name), version=self._towers_at, storage_options=storage_options())
                new = lance.fragment.write_fragments(rows, table, storage_options=storage_options())
                operation = lance.LanceOperation.Overwrite(table.schema, new)
                made = lance.LanceDataset.commit(
                    table, operation, read_version=self._towers_at, max_retries=0, storage_options=storage_options()
                )
            # The version just made, because the newest may already be another writer's.
            self._towers_at = int(made.version)
        self._committed(name)

    def update_rejects(self, changed: pa.Table, gone: pa.Table, whole: pa.Table, *, again: bool) -> None:  # noqa: ARG002
        """Add, replace or delete rejects by ``kind`` and ``id``; those of other writers stay."""
        self.retried(lambda: self._update_rejects(changed, gone))
        self._committed("rejects")

    def _update_rejects(self, changed: pa.Table, gone: pa.Table) -> None:
        key = _KEYS["rejects"]
        changed = changed.cast(keyed(changed.schema, key))
        if len(changed) and not self._create("rejects", changed):
            with self._writing("rejects"):
                merge = self._existing("rejects").merge_insert(key)
                merge.when_matched_update_all().when_not_matched_insert_all().execute(changed)
        if len(gone) and self._open("rejects") is not None:
            gone = gone.cast(keyed(gone.schema, key))
            with self._writing("rejects"):
                self._existing("rejects").merge_insert(key).when_matched_delete().execute(gone)

    def find(self, name: str, ids: pa.Array) -> pa.Table | None:  # noqa: ARG002
        """Return None: rows are found by reading all ids of the version from which `merge` then starts."""
        self._found[name] = self._existing(name)
        return None

    def newest(self, name: str) -> lance.LanceDataset:
        """Return the table read by `find`."""
        return self._found.get(name) or self._existing(name)

    def has_moved(self) -> bool:
        """Return whether another writer has changed the towers, or added columns, since the last call."""
        seen, table = self._towers_at, self._open("towers")
        self._towers_at = None if table is None else int(table.version)
        came, self._columns_came = self._columns_came, False
        return came or self._towers_at != seen

    def merge(self, name: str, rows: pa.Table) -> None:
        """Replace the rows with the same ``id``, as seen by `find`.

        Raises:
            CommitConflictError: Another writer has changed one of them since; see `retried`.
        """
        table = self._found.pop(name, None) or self._existing(name)
        with self._writing(name):
            if not set(table.schema.names) <= set(rows.column_names):
                self._columns_came = True
                raise CommitConflictError("another writer has added a column")
            rows = fitting(rows, table.schema)
            table.merge_insert("id").when_matched_update_all().conflict_retries(0).execute(rows)
        self._committed(name)

    def delete(self, name: str, ids: pa.Array) -> int:
        """Delete the rows of some ids; return how many existed."""

        def delete() -> int:
            with self._writing(name):
                done = self._existing(name).merge_insert("id").when_matched_delete().execute(pa.table({"id": ids}))
            return int(done["num_deleted_rows"])

        deleted = self.retried(delete)
        self._committed(name)
        return deleted

    def exchange(self, name: str, rows: pa.Table, left: pa.Array) -> None:
        """Add rows, then delete others by id."""
        if len(rows):
            self.append(name, rows)
        if len(left):
            self.delete(name, left)

    def compact(self, name: str) -> None:
        """Rewrite a table without deleted rows, in full-size files, and delete versions that are a day old.

        Other writers can continue: the slower writer of the same rows tries again. Readers keep their versions.
        """
        for left in reversed(range(_CUTS)):
            try:
                self._compact_once(name)
                return
            except StoreError as error:
                if not left or CUT_OFF not in str(error):
                    raise

    def _compact_once(self, name: str) -> None:
        if self._open(name) is None:
            return
        self.retried(lambda: self._compact(name))
        self._committed(name)
        with self._writing(name):
            self._existing(name).cleanup_old_versions(older_than=_KEEP_VERSIONS)

    def _compact(self, name: str) -> None:
        with self._writing(name):
            table = self._existing(name)
            target = rows_a_file(table)
            table.optimize.compact_files(
                target_rows_per_fragment=target,
                materialize_deletions_threshold=0.0,
                batch_size=max(1, target // 16),
                num_threads=1,
            )

    def remove_parts(self, name: str, parts: Collection[int]) -> None:
        """Commit a version of a table without some of its parts, whose files are lost."""

        def remove() -> None:
            table = self._existing(name)
            gone = [part.fragment_id for part in table.get_fragments() if part.fragment_id in parts]
            operation = lance.LanceOperation.Delete([], gone, "files are lost")
            if gone:
                with self._writing(name):
                    lance.LanceDataset.commit(
                        table, operation, read_version=table.version, storage_options=storage_options()
                    )

        self.retried(remove)
        self._committed(name)

    @contextmanager
    def keep_version(self, name: str, version: int | None) -> Iterator[None]:  # noqa: ARG002
        """Do nothing: versions are kept for a day."""
        yield

    def add_columns(self, name: str, columns: list[pa.Field]) -> None:
        """Add null columns that the table does not have yet."""

        def add() -> bool:
            table = self._existing(name)
            new = [field for field in columns if field.name not in table.schema.names]
            if new:
                with self._writing(name):
                    table.add_columns(pa.schema(new))
            return bool(new)

        if self.retried(add):
            self._committed(name)

    # ---- single steps

    def _uri(self, name: str) -> str:
        return f"{self.path}/{name}.lance"

    def _open(self, name: str) -> lance.LanceDataset | None:
        with self._writing(name, "reading"):
            try:
                return lance.dataset(self._uri(name), storage_options=storage_options())
            except ValueError as error:
                if "was not found" not in str(error):
                    raise
                return None

    def _existing(self, name: str) -> lance.LanceDataset:
        table = self._open(name)
        if table is None:
            raise StoreError(f"{self.path}: the table '{name}' disappeared while in use")
        return table

    def _create(self, name: str, rows: pa.Table) -> bool:
        """Create a table; False if it exists, perhaps from another writer."""
        if self._open(name) is not None:
            return False
        with self._writing(name):
            try:
                create_table(self._uri(name), rows)
            except FileExistsError:
                return False
        return True

    def _make_key(self, name: str, key: list[str]) -> None:
        table = self._open(name)
        if table is None or all((table.schema.field(one).metadata or {}).get(PRIMARY_NAME) for one in key):
            return
        with self._writing(name):
            for one in key:
                never_null: Any = {"path": one, "nullable": False}
                self._existing(name).alter_columns(never_null)
            self._existing(name).update_field_metadata({one: dict[str, str | None](PRIMARY) for one in key})

    def _add_to_there(self, name: str, rows: pa.Table) -> None:
        """Add embeddings to rows that another writer has since added for the same items."""
        table = self._existing(name)
        with self._writing(name, "reading"):
            found = [
                batch.filter(pc.is_in(batch["id"], value_set=rows["id"].combine_chunks()))
                for batch in table.scanner(batch_size=1024).to_batches()
            ]
        own = {id_: row for row, id_ in enumerate(rows["id"].to_pylist())}
        changed = []
        for batch in found:
            for number, there in enumerate(batch.select(["id", "content_hash", "bytes", "filled"]).to_pylist()):
                given = rows.slice(own[there["id"]], 1)
                has = {entry["tower"] for entry in there["filled"]}
                new = [entry for entry in given["filled"][0].as_py() if entry["tower"] not in has]
                same = given["content_hash"][0].as_py() == there["content_hash"]
                if not new or not (same or 0 in (there["bytes"], given["bytes"][0].as_py())):
                    continue  # the content differs: the first one stays, and the next extraction will check it
                entries = [{**entry, "crc32": checksum_there(given, entry["tower"], there)} for entry in new]
                one = pa.Table.from_batches([batch.slice(number, 1)])
                for entry in entries:
                    at = one.schema.get_field_index(entry["tower"])
                    one = one.set_column(at, one.schema.field(at), given[entry["tower"]])
                at = one.schema.get_field_index("filled")
                filled = pa.array([[*there["filled"], *entries]], one.schema.field(at).type)
                changed.append(one.set_column(at, one.schema.field(at), filled))
        if changed:
            self._found[name] = table
            self.merge(name, pa.concat_tables(changed))

    def _committed(self, name: str) -> None:
        self._commits[name] += 1
        if self._commits[name] % _SMALL_FRAGMENTS == 0:
            self._tidy(name)

    def _tidy(self, name: str) -> None:
        """Merge small files, unless another writer is doing so."""
        table = self._open(name)
        if table is None or len(table.get_fragments()) < _SMALL_FRAGMENTS:
            return
        try:
            with self._writing(name):
                table.optimize.compact_files(target_rows_per_fragment=65_536, num_threads=1)
                self._existing(name).cleanup_old_versions(older_than=_KEEP_VERSIONS)
        except (StoreError, CommitConflictError) as error:
            self.notes.append(f"The store is complete, but could not be tidied up: {error}.")

    def _record(self, name: str) -> None:
        """Record the last commit outside the table, as in a folder; an outdated record does no harm."""
        table, objects = self._existing(name), Objects(self.path)
        with self._writing(name):
            manifest = objects.read(f"{name}.lance/_versions/{manifest_name(table.version)}")
            content = as_stream(table.to_table()) if name == "towers" else b""
            rows = table.count_rows()
        if manifest is not None:
            record = record_of(Commit(int(table.version), rows, manifest, content))
            objects.write(f"commits/{name}.json", json.dumps(record).encode())

    @contextmanager
    def _writing(self, name: str, what: str = "writing") -> Iterator[None]:
        try:
            yield
        except CommitConflictError:
            raise
        except BaseException as error:
            if isinstance(error, StoreError) or not is_lance_failure(error):
                raise
            if any(words in str(error) for words in _FASTER):
                raise CommitConflictError(f"another writer has changed the table '{name}'") from error
            raise remote_failure(self.path, f"{what} the table '{name}'", error) from None
