"""Writing to a store: every call is one atomic Lance commit, so a killed process loses only what was in flight."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import lance
import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from frevl.encoders import Embeddings
from frevl.errors import StoreError
from frevl.rejects import Reject
from frevl.store import TABLES, Store
from frevl.towers import Modality, Tower, check_same, to_rows

__all__ = ["Item", "StoreWriter"]

_ITEM_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("modified_ns", pa.int64()),
]
_REJECT_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("kind", "id", "reason")])
_SMALL_FRAGMENTS = 64  # this many commits are merged into larger files at a time
_KEEP_VERSIONS = timedelta(minutes=10)  # a reader that is open on an older version goes on for that long


@dataclass(frozen=True)
class Item:
    """What the store keeps of an item beside its embeddings.

    Attributes:
        id: Image path below its folder, or the text itself.
        content_hash: 32 hexadecimal digits of the SHA-256 of the file or the text.
        bytes: Size of the content.
        modified_ns: Modification time of the file in nanoseconds, 0 for a text.
    """

    id: str
    content_hash: str
    bytes: int
    modified_ns: int = 0


class StoreWriter:
    """The only one that writes to a store; use it as a context manager, it holds the store's lock.

    Args:
        path: Folder of the store; made if it is missing.

    Raises:
        StoreError: The folder cannot be written, holds something else, or another process is writing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._commits = dict.fromkeys(TABLES, 0)
        _make_folder(self.path)
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> StoreWriter:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(f"{self.path}: another process is writing to this store; wait for it to end") from error
        self.store = Store(self.path)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Compaction only tidies; after an error (a full disk) it would fail for the same reason.
        if kind is None:
            for modality in TABLES:
                self._compact(modality, at_least=2)
        self._lock.release()

    def register(self, tower: Tower) -> None:
        """Make a tower known, or check that it is the one that the store knows.

        Raises:
            FingerprintError: The store holds embeddings that another encoder made under this name.
        """
        stored = self.store.towers.get(tower.name)
        if stored is not None:
            check_same(stored, tower, str(self.path))
            tower = replace(stored, encoders=tuple(dict.fromkeys([*stored.encoders, *tower.encoders])))
        if stored is None or tower.encoders != stored.encoders:
            towers = {**self.store.towers, tower.name: tower}
            with self._explained("towers"):
                lance.write_dataset(to_rows(list(towers.values())), self._uri("towers"), mode="overwrite")
            self.store.towers = towers
        table = self._dataset(TABLES[tower.modality])
        if table is not None and tower.name not in table.schema.names:
            # An all-null column is metadata only; rows are filled as they are embedded.
            with self._explained(TABLES[tower.modality]):
                table.add_columns(pa.schema([pa.field(tower.name, tower.column_type)]))

    def append(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        """Add new items.

        Args:
            modality: ``image`` or ``text``.
            items: Items whose ids are not in the store.
            embeddings: By tower name, one row an item. Towers that are not named stay empty for these items.
        """
        name = TABLES[modality]
        table = self._rows(modality, items, embeddings)
        exists = self._dataset(name) is not None
        with self._explained(name):
            lance.write_dataset(table, self._uri(name), mode="append" if exists else "create")
        self._committed(modality)

    def replace(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        """Replace items whose content changed; towers that are not named become empty for these items."""
        self._merge(modality, self._rows(modality, items, embeddings))

    def fill(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        """Add embeddings of further towers to items that are in the store."""
        columns: dict[str, pa.Array] = {"id": pa.array([item.id for item in items], pa.string())}
        for name, values in embeddings.items():
            columns[name] = _to_arrow(values, self.store.towers[name])
        self._merge(modality, pa.table(columns))

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Keep what could not be used; a reject of the same kind and id takes the place of the former one."""
        if not rejects:
            return
        latest = {(reject.kind, reject.id): reject for reject in rejects}
        table = pa.Table.from_pylist([vars(reject) for reject in latest.values()], schema=_REJECT_SCHEMA)
        dataset = self._dataset("rejects")
        with self._explained("rejects"):
            if dataset is None:
                lance.write_dataset(table, self._uri("rejects"), mode="create")
            else:
                merge = dataset.merge_insert(["kind", "id"])
                merge.when_matched_update_all().when_not_matched_insert_all().execute(table)

    def forgive(self, kind: str, ids: Collection[str]) -> None:
        """Take back rejects of things that have become usable."""
        dataset = self._dataset("rejects")
        if dataset is None or not ids:
            return
        known = set(dataset.to_table(columns=["id"], filter=f"kind = '{kind}'")["id"].to_pylist())
        for id_ in known.intersection(ids):
            with self._explained("rejects"):
                quoted = id_.replace("'", "''")
                self._dataset("rejects").delete(f"kind = '{kind}' AND id = '{quoted}'")  # type: ignore[union-attr]

    def _rows(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> pa.Table:
        towers = [tower for tower in self.store.towers.values() if tower.modality == modality]
        fields = [*_ITEM_FIELDS, *(pa.field(tower.name, tower.column_type) for tower in towers)]
        columns: list[pa.Array] = [
            pa.array([getattr(item, field.name) for item in items], field.type) for field in _ITEM_FIELDS
        ]
        for tower in towers:
            values = embeddings.get(tower.name)
            columns.append(pa.nulls(len(items), tower.column_type) if values is None else _to_arrow(values, tower))
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _merge(self, modality: Modality, table: pa.Table) -> None:
        name = TABLES[modality]
        dataset = self._dataset(name)
        if dataset is None:
            raise StoreError(f"{self.path}: the table '{name}' has vanished while it was written")
        with self._explained(name):
            dataset.merge_insert("id").when_matched_update_all().execute(table)
        self._committed(modality)

    def _committed(self, modality: Modality) -> None:
        self._commits[modality] += 1
        if self._commits[modality] % _SMALL_FRAGMENTS == 0:
            self._compact(modality, at_least=_SMALL_FRAGMENTS)

    def _compact(self, modality: Modality, *, at_least: int) -> None:
        dataset = self._dataset(TABLES[modality])
        if dataset is None or self._commits[modality] == 0 or len(dataset.get_fragments()) < at_least:
            return
        with self._explained(TABLES[modality]):
            dataset.optimize.compact_files(target_rows_per_fragment=65_536)
            dataset.cleanup_old_versions(older_than=_KEEP_VERSIONS)

    def _uri(self, name: str) -> str:
        return str(self.path / f"{name}.lance")

    def _dataset(self, name: str) -> lance.LanceDataset | None:
        """Return a table at its newest version."""
        if not list((self.path / f"{name}.lance").glob("_versions/*.manifest")):
            return None
        with self._explained(name):
            return lance.dataset(self._uri(name))

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(
                f"{self.path}: writing the table '{name}' failed ({_cause(reason)}); everything committed before "
                "is kept: make room or mend the permission, and run the same command again to go on"
            ) from error


def _make_folder(path: Path) -> None:
    try:
        if path.is_dir() and not (path / "towers.lance").is_dir():
            entries = sorted(entry.name for entry in path.iterdir() if entry.name != ".lock")
            if entries:
                raise StoreError(
                    f"{path}: expected a store, or an empty or new folder for one, found '{entries[0]}' in it; "
                    "choose another folder"
                )
        path.mkdir(parents=True, exist_ok=True)
        (path / ".lock").touch()
    except OSError as error:
        raise StoreError(
            f"{path}: the store cannot be written ({error.strerror}); choose a folder that you may write to"
        ) from error


def _cause(reason: str) -> str:
    """Return the operating system's words out of a Lance error, if they are in it."""
    for words in ("No space left on device", "Permission denied", "File too large", "Read-only file system"):
        if words in reason:
            return words
    return reason[:200]


def _to_arrow(embeddings: Embeddings, tower: Tower) -> pa.Array:
    """Turn embeddings into a column of a tower's type."""
    dtype = np.dtype(tower.identity["dtype"])
    values = embeddings.values.astype(dtype)
    if tower.pooled:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), tower.dim)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values[embeddings.mask].reshape(-1)), tower.dim)
    offsets = np.concatenate([[0], np.cumsum(embeddings.mask.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)
