"""The Lance tables of a store: opening, reading and writing them, with plain error messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.errors import StoreError, UsageError
from frevl.store.commits.failures import brief, is_lance_failure, reading, writing
from frevl.store.commits.record import check_not_lost, manifests, read_commit, table_folder, writer_at_work
from frevl.store.ids.cache import segments_of
from frevl.store.ids.live_rows import LiveRows
from frevl.store.ids.rows_of_ids import RowsOfIds, Segment, ascending
from frevl.store.remote.address import cache_of, is_remote, storage_options

__all__ = [
    "ALL_TABLES",
    "ITEM_COLUMNS",
    "Snapshot",
    "append_rows",
    "delete_rows",
    "existing_table",
    "open_committed",
    "open_table",
    "read_data_file",
    "read_lance",
    "remove_parts",
    "replace_rows",
]

ALL_TABLES = ("towers", "images", "texts", "rejects", "unread")
"""Names of a store's tables; towers first, because the columns of the others depend on them."""

ITEM_COLUMNS = ("id", "content_hash", "bytes", "modified_ns", "filled")
"""Columns of the item tables that are neither embeddings nor metadata."""

_SCAN_BYTES = 32 << 20  # read-ahead of a scan: Lance's default of 2 GB would dominate the memory of a process
_ADDRESS = "_rowaddr"  # Lance's own column: part of the table, and position in it
_MOST_IN_MEMORY = 500_000  # ids of a table that are kept as Python objects: 150 bytes each
_IDS_AT_ONCE = 65_536
_LEAST_FILE = 40  # bytes of the footer of a data file
_OF_CONDITION = "Error applying filter expression"  # identifies a condition that failed on a row, as opposed to a file

# Lance's wording of problems with a condition, and ours.
_CONDITION_REASONS = (
    (r'No field named "?(\w+)', "there is no column '{0}'"),
    (r"sql parser error: ([^()]*)", "{0}"),
    (r"Received literal \w+\((.*?)\) and could not convert to literal of type '(\w+)", "{0} is not of the type {1}"),
    (r"Cast error: ([^,)]*)", "{0}"),
    (r"Invalid function ('\w+')", "there is no function {0}"),
)


class Snapshot:
    """The tables of a store, each at the version last committed when this was created.

    Args:
        store: Folder of the store.
        names: Names of the tables.

    Attributes:
        versions: Version of every table by name; None if it was never written.

    Raises:
        StoreError: A table is damaged, has lost commits, or may not be read.
    """

    def __init__(self, store: Path, names: Iterable[str]) -> None:
        self._store = store
        self._tables = {name: open_committed(store, name) for name in names}
        self._live = {name: LiveRows(table) for name, table in self._tables.items() if table is not None}
        self._rows: dict[str, Mapping[str, int]] = {}
        self.versions = {name: None if table is None else int(table.version) for name, table in self._tables.items()}

    def scan(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield some or all columns of a table in pieces; nothing if it was never written."""
        table = self._tables[name]
        if table is None:
            return
        with reading(self._store, name):
            yield from table.scanner(columns=columns, batch_size=8192, io_buffer_size=_SCAN_BYTES).to_batches()

    def take(self, name: str, column: str, rows: np.ndarray, *, rows_at_once: int) -> Iterator[pa.Array]:
        """Yield one column at ascending rows, in pieces; nulls if the table has no such column yet."""
        table = self._tables[name]
        if table is None or column not in (*table.schema.names, _ADDRESS):
            if len(rows):
                yield pa.nulls(len(rows))
            return
        with reading(self._store, name):
            # Small pieces were measured to be three times as fast as scanning the column, with no more memory.
            for start in range(0, len(rows), rows_at_once):
                yield from self._live[name].take(rows[start : start + rows_at_once], [column])[column].chunks

    def take_rows(self, name: str, rows: np.ndarray) -> pa.Table:
        """Return all columns of an existing table at ascending rows."""
        self._table(name)
        with reading(self._store, name):
            return self._live[name].take(rows)

    def _table(self, name: str) -> lance.LanceDataset:
        table = self._tables[name]
        if table is None:
            raise StoreError(f"{self._store}: the table '{name}' was never written")
        return table

    def count(self, name: str) -> int:
        """Return the number of rows of a table; 0 if it was never written."""
        table = self._tables[name]
        return 0 if table is None else int(table.count_rows())

    def data_bytes(self, name: str) -> int:
        """Return the size in bytes of a table's data files."""
        table = self._tables[name]
        fragments = [] if table is None else table.get_fragments()
        return sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.data_files())

    def columns(self, name: str) -> pa.Schema:
        """Return the columns of a table; empty if it was never written."""
        table = self._tables[name]
        return pa.schema([]) if table is None else table.schema

    def states(self, name: str, towers: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the states of the rows in an item table: see `frevl.store.reader.Store.states`."""
        parts: dict[str, list[np.ndarray]] = {
            "content_hash": [np.zeros(0, "S32")],
            "bytes": [np.zeros(0, np.int64)],
            "modified_ns": [np.zeros(0, np.int64)],
            **{f"has:{tower}": [np.zeros(0, bool)] for tower in towers},
        }
        # The column 'filled' exists for this query, because looking for nulls would read every embedding.
        for batch in self.scan(name, ["content_hash", "bytes", "modified_ns", "filled"]):
            parts["content_hash"].append(batch["content_hash"].to_numpy(zero_copy_only=False).astype("S32"))
            for column in ("bytes", "modified_ns"):
                parts[column].append(batch[column].to_numpy())
            rows = pc.list_parent_indices(batch["filled"]).to_numpy()
            names = batch["filled"].flatten().field("tower")
            for tower in towers:
                has = np.zeros(len(batch), bool)
                has[rows[pc.equal(names, tower).to_numpy(zero_copy_only=False)]] = True
                parts[f"has:{tower}"].append(has)
        return {column: np.concatenate(parts.pop(column)) for column in list(parts)}  # only one is in memory twice

    def ids(self, name: str, rows: np.ndarray | None = None) -> list[str]:
        """Return the ids of all rows, or of some rows in any order."""
        if rows is not None:
            ordered, at = np.unique(rows, return_inverse=True)
            parts = self.take(name, "id", ordered, rows_at_once=_IDS_AT_ONCE)
            return [*pa.concat_arrays([*parts]).take(pa.array(at)).to_pylist()] if len(rows) else []
        return [id_ for batch in self.scan(name, ["id"]) for id_ in batch["id"].to_pylist()]

    def contents(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return ``(n,)``: the content hashes of rows, in any order, as bytes of 32 letters."""
        ordered, at = ascending(rows)
        hashes, end = np.zeros(len(ordered), "S32"), 0
        for part in self.take(name, "content_hash", ordered, rows_at_once=_IDS_AT_ONCE):
            end += len(part)
            hashes[end - len(part) : end] = part.to_numpy(zero_copy_only=False).astype("S32")
        return hashes if at is None else hashes[at]

    def filled(self, name: str, tower: str) -> int:
        """Count the rows with an embedding by a tower."""
        names = (batch["filled"].flatten().field("tower") for batch in self.scan(name, ["filled"]))
        return sum(int(pc.sum(pc.equal(some, tower)).as_py() or 0) for some in names)

    def matching(self, name: str, where: str) -> list[str]:
        """Return the ids of the rows that meet an SQL condition.

        Raises:
            UsageError: The condition is invalid, or fails on a row (division by zero, a cast).
        """
        if not where.strip():
            raise UsageError("The condition is empty; write one such as id LIKE 'kitchen/%', or leave it out")
        outside = re.sub(r"'[^']*'", "", where)
        if ";" in outside:  # Lance reads up to it and silently drops the rest
            raise UsageError(f"The condition {where!r} must be a single condition, found ';'; join with AND or OR")
        table = self._tables[name]
        if table is None:
            return []
        quoted = [column for column in re.findall(r'"([^"]*)"', outside) if column in table.schema.names]
        if quoted:  # Lance treats it as text, so the condition would hold for no row
            raise UsageError(
                f"The condition {where!r} has a column name in double quotes; write {quoted[0]} without quotes, "
                "and texts in single quotes"
            )
        try:
            scanner = table.scanner(columns=["id"], filter=where)
            scanner.explain_plan()  # only parses it, so that a damaged file is not mistaken for a wrong condition
        except BaseException as error:
            if not is_lance_failure(error):
                raise
            raise UsageError(f"The condition {where!r} cannot be understood ({_condition_reason(error)})") from error
        with reading(self._store, name):
            try:
                return [id_ for batch in scanner.to_batches() for id_ in batch["id"].to_pylist()]
            except pa.ArrowException as error:
                if _OF_CONDITION not in str(error):
                    raise
                said = brief(error).rpartition("Arrow error: ")[2]
                raise UsageError(f"The condition {where!r} fails on a row ({said})") from error

    def rows(self, name: str) -> Mapping[str, int]:
        """Return the row of every id of a table: read once or, in a large table, looked up on disk.

        `frevl.store.ids.rows_of_ids.find_rows` looks up many ids at once.
        """
        if name not in self._rows:
            count = self.count(name)
            if count <= _MOST_IN_MEMORY:
                self._rows[name] = {id_: row for row, id_ in enumerate(self.ids(name))}
            else:
                self._rows[name] = self._looked_up(name, count)
        return self._rows[name]

    def positions(self, name: str) -> Mapping[str, int]:
        """Return `rows`; raise `StoreError` if they would be read from a deleted version."""
        rows = self.rows(name)
        if isinstance(rows, RowsOfIds):
            with reading(self._store, name):
                options = storage_options() if is_remote(self._store) else None
                lance.dataset(self._table(name).uri, version=self.versions[name], storage_options=options)
        return rows

    def _looked_up(self, name: str, count: int) -> RowsOfIds:
        table = self._table(name)
        folder = cache_of(self._store) if is_remote(self._store) else self._store

        def ids_of(fragments: Sequence[lance.LanceFragment]) -> Iterator[pa.Array]:
            with reading(self._store, name):
                scanner = table.scanner(["id"], fragments=[*fragments], batch_size=8192, io_buffer_size=_SCAN_BYTES)
                yield from (batch["id"] for batch in scanner.to_batches())

        def segments() -> Sequence[Segment]:
            with reading(self._store, name):
                fragments = table.get_fragments()
            return segments_of(name, fragments, folder / "rows", ids_of)

        def read(rows: np.ndarray) -> pa.Array:
            return pa.concat_arrays([*self.take(name, "id", rows, rows_at_once=_IDS_AT_ONCE)])

        return RowsOfIds(count, segments, read, lambda: (batch["id"] for batch in self.scan(name, ["id"])))


def open_table(store: Path, name: str, version: int | None = None) -> lance.LanceDataset | None:
    """Open a table.

    Args:
        store: Folder of the store.
        name: ``images``, ``texts``, ``towers`` or ``rejects``.
        version: Version to open; None opens the newest.

    Returns:
        The table; None if it was never committed (a killed first commit leaves a folder without a manifest).

    Raises:
        StoreError: The table is damaged, or may not be read.
    """
    if is_remote(store):
        return _open_remote(store, name)
    with reading(store, name):
        return lance.dataset(str(table_folder(store, name)), version=version) if manifests(store, name) else None


def open_committed(store: Path, name: str) -> lance.LanceDataset | None:
    """Open a table for reading, at the last version known to be on disk.

    While a process writes, and after it was killed or lost power, a newer version may be only partly present.

    Raises:
        StoreError: The table is damaged, has lost commits, or may not be read.
    """
    if is_remote(store):
        return _open_remote(store, name)
    with reading(store, name):
        # In this order, because a writer may start in the meantime and extend the table.
        in_flight = writer_at_work(store).exists()
        commit = read_commit(store, name)
        check_not_lost(store, name, commit)
        if in_flight:
            return None if commit is None else open_table(store, name, commit.version)
    return open_table(store, name)


def _open_remote(store: Path, name: str) -> lance.LanceDataset | None:
    """Open the newest version of a table in an object store, where every file is complete."""
    commit = read_commit(store, name)
    with reading(store, name):
        try:
            table = lance.dataset(f"{store}/{name}.lance", storage_options=storage_options())
        except ValueError as error:
            if "was not found" not in str(error):
                raise
            table = None
    if commit is not None and (table is None or table.version < commit.version):
        found = "none" if table is None else f"version {table.version}"
        raise StoreError(
            f"{store}: the table '{name}' has lost its last commits (expected version {commit.version} with "
            f"{commit.rows:,} rows, found {found}), as after an incomplete copy; copy again, or run frevl store repair"
        )
    return table


def read_lance(path: Path) -> tuple[pa.Schema, Callable[[int], Iterator[pa.RecordBatch]]]:
    """Open any Lance table, including foreign ones.

    Returns:
        Its schema, and a function that yields its rows in batches of at most a given number.

    Raises:
        OSError, ValueError: The table is missing or damaged.
    """
    table = lance.dataset(str(path))
    return table.schema, lambda rows: table.scanner(batch_size=rows, io_buffer_size=_SCAN_BYTES).to_batches()


def existing_table(store: Path, name: str) -> lance.LanceDataset:
    """Open a table that must exist, at its newest version.

    Raises:
        StoreError: The table is missing or damaged.
    """
    table = open_table(store, name)
    if table is None:
        raise StoreError(f"{store}: the table '{name}' disappeared while in use; do not modify a store by hand")
    return table


def append_rows(store: Path, name: str, rows: pa.Table) -> None:
    """Add rows to a table, creating it if missing; one atomic commit.

    Raises:
        StoreError: The rows cannot be written.
    """
    with writing(store, name):
        lance.write_dataset(rows, str(table_folder(store, name)), mode="append")


def replace_rows(store: Path, name: str, rows: pa.Table) -> None:
    """Replace all rows of a table; one atomic commit.

    Raises:
        StoreError: The rows cannot be written.
    """
    with writing(store, name):
        lance.write_dataset(rows, str(table_folder(store, name)), mode="overwrite")


def delete_rows(store: Path, name: str, ids: pa.Array) -> int:
    """Delete the rows of some ids; one atomic commit.

    Returns:
        The number of deleted rows.

    Raises:
        StoreError: The table is missing, or cannot be written.
    """
    table = existing_table(store, name)
    with writing(store, name):
        # A join rather than a filter, because an id may be any text and would have to be written as SQL.
        done = table.merge_insert("id").when_matched_delete().execute(pa.table({"id": ids}))
    return int(done["num_deleted_rows"])


def remove_parts(store: Path, name: str, table: lance.LanceDataset, parts: list[int]) -> None:
    """Commit a version of a table without some of its fragments, whose files may be missing.

    Raises:
        StoreError: The version cannot be written.
    """
    with writing(store, name):
        operation = lance.LanceOperation.Delete([], parts, "files are lost")
        lance.LanceDataset.commit(str(table_folder(store, name)), operation, read_version=table.version)


def read_data_file(file: Path, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield all rows in a data file of a table, deleted ones included, in batches.

    Raises:
        OSError, ValueError: The file is damaged.
    """
    from lance.file import LanceFileReader

    if file.stat().st_size < _LEAST_FILE:  # Lance would panic and print on standard error
        raise ValueError("the file is too short")
    yield from LanceFileReader(str(file)).read_all(batch_size=rows).to_batches()


def _condition_reason(error: BaseException) -> str:
    """Return what is wrong with a condition, without Lance's surrounding text."""
    text = " ".join(str(error).split())
    for pattern, said in _CONDITION_REASONS:
        if found := re.search(pattern, text):
            return said.format(*found.groups())
    return brief(error).removeprefix("Invalid user input: ")
