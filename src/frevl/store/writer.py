"""Writing to a store: every call is one atomic Lance commit, so a killed process loses only what was in flight."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from frevl.encoders.interface import Embeddings
from frevl.errors import StoreError
from frevl.rejects import Reject
from frevl.store.lance_tables import append_rows, existing_table, open_table, reading, replace_rows, writing
from frevl.store.reader import TABLES, Store
from frevl.store.towers import Modality, Tower, check_same, checksum, to_rows

__all__ = ["Item", "StoreWriter"]

_ITEM_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("modified_ns", pa.int64()),
    pa.field("filled", pa.list_(pa.struct([pa.field("tower", pa.string()), pa.field("crc32", pa.uint32())]))),
]
_REJECT_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("kind", "id", "reason")])
_SMALL_FRAGMENTS = 64  # this many commits are merged into larger files at a time
_FRAGMENT_BYTES = 64 << 20  # and no larger than that, because merging may hold several times so much in memory
_FRAGMENT_ROWS = 65_536
_KEEP_VERSIONS = timedelta(minutes=10)  # for readers that opened an older version


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

    Attributes:
        store: The store as it was when this writer began.
        notes: Sentences that a user should read.

    Raises:
        StoreError: The folder cannot be written, holds something else, or another process is writing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notes: list[str] = []
        self._commits: dict[str, int] = dict.fromkeys([*TABLES.values(), "towers", "rejects"], 0)
        _make_folder(self.path)
        self._lock = FileLock(self.path / ".lock")

    def __enter__(self) -> StoreWriter:
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(f"{self.path}: another process is writing to this store; wait for it to end") from error
        except OSError as error:
            raise StoreError(f"{self.path}: the store cannot be locked for writing ({error.strerror})") from error
        try:
            for name in self._commits:
                self._tidy(name)  # also what a killed process has left
            self.store = Store(self.path)
            self._metadata = {modality: self.store.metadata(modality) for modality in TABLES}
            self._rejects = {(reject.kind, reject.id): reject.reason for reject in self.store.rejects()}
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for name, commits in self._commits.items():
                    if commits:
                        self._tidy(name)
        finally:
            self._lock.release()

    def metadata_types(self, modality: Modality) -> dict[str, pa.DataType]:
        """Return name and type of the metadata columns of the images or texts."""
        return dict(self._metadata[modality])

    def describe(self, modality: Modality, fields: Sequence[pa.Field]) -> None:
        """Add metadata columns; those that the store has keep their type.

        Raises:
            StoreError: A tower has such a name.
        """
        taken = [field.name for field in fields if field.name in self.store.towers]
        if taken:
            raise StoreError(f"{self.path}: '{taken[0]}' is the name of a tower; rename this metadata column")
        new = [field for field in fields if field.name not in self._metadata[modality]]
        self._metadata[modality].update({field.name: field.type for field in new})
        table = open_table(self.path, TABLES[modality])
        if table is not None and new:
            with writing(self.path, TABLES[modality]):
                table.add_columns(pa.schema(new))

    def register(self, towers: Sequence[Tower]) -> None:
        """Make towers known, or check that they are those that the store knows. Writes nothing if one is refused.

        Raises:
            FingerprintError: The store holds embeddings that another encoder made under the same name.
        """
        known = dict(self.store.towers)
        for tower in towers:
            stored = known.get(tower.name)
            if stored is None:
                if tower.name in self._metadata[tower.modality]:
                    raise StoreError(f"{self.path}: '{tower.name}' is the name of a metadata column, not of a tower")
                known[tower.name] = tower
            else:
                check_same(stored, tower, str(self.path))
                encoders = tuple(dict.fromkeys([*stored.encoders, *tower.encoders]))
                known[tower.name] = replace(stored, encoders=encoders)
        if {name: tower.encoders for name, tower in known.items()} != {
            name: tower.encoders for name, tower in self.store.towers.items()
        }:
            replace_rows(self.path, "towers", to_rows(list(known.values())))
            self._committed("towers")
            self.store.towers = known
        for modality, name in TABLES.items():
            table = open_table(self.path, name)
            columns = [
                pa.field(tower.name, tower.column_type)
                for tower in known.values()
                if tower.modality == modality and table is not None and tower.name not in table.schema.names
            ]
            if table is not None and columns:
                # All-null columns are metadata only; rows are filled as they are embedded.
                with writing(self.path, name):
                    table.add_columns(pa.schema(columns))

    def append(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        *,
        metadata: Mapping[str, pa.Array] | None = None,
    ) -> None:
        """Add new items.

        Args:
            modality: ``image`` or ``text``.
            items: Items whose ids are not in the store.
            embeddings: By tower name, one row an item. Towers that are not named stay empty for these items.
            metadata: By column name (see `describe`), one value an item; columns that are not named stay empty.
        """
        self._append(TABLES[modality], self._rows(modality, items, embeddings, metadata))

    def replace(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        """Replace items whose content changed; towers that are not named become empty for these items."""
        rows = self._rows(modality, items, embeddings)
        if self._metadata[modality]:
            old = self._find(modality, rows["id"].combine_chunks())
            for name in self._metadata[modality]:
                rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), old[name])
        self._merge(modality, rows)

    def fill(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        *,
        metadata: Mapping[str, pa.Array] | None = None,
    ) -> None:
        """Add embeddings of further towers, and metadata, to items that are in the store."""
        new = self._rows(modality, items, embeddings, metadata)
        old = self._find(modality, new["id"].combine_chunks())
        filled = [[*a, *b] for a, b in zip(old["filled"].to_pylist(), new["filled"].to_pylist(), strict=True)]
        columns = {
            name: (old if name in self.store.towers and name not in embeddings else new)[name]
            for name in new.column_names
        }
        columns["filled"] = pa.array(filled, new.schema.field("filled").type)
        columns.update({name: pc.coalesce(new[name], old[name]) for name in self._metadata[modality]})
        self._merge(modality, pa.table(columns, schema=new.schema))

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Keep what could not be used; a reject of the same kind and id takes the place of the former one."""
        latest = {(_text(reject.kind), _text(reject.id)): _text(reject.reason) for reject in rejects}
        changed = {key: reason for key, reason in latest.items() if self._rejects.get(key) != reason}
        if not changed:
            return
        again = not changed.keys().isdisjoint(self._rejects)
        self._rejects.update(changed)
        if again:
            self._write_rejects()
        else:
            self._append("rejects", _reject_rows(changed))

    def forgive(self, kind: str, ids: Collection[str]) -> None:
        """Take back rejects of things that have become usable."""
        keys = {(kind, id_) for id_ in ids}.intersection(self._rejects)
        if keys:
            self._rejects = {key: reason for key, reason in self._rejects.items() if key not in keys}
            self._write_rejects()

    def _write_rejects(self) -> None:
        replace_rows(self.path, "rejects", _reject_rows(self._rejects))
        self._committed("rejects")

    def _rows(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        metadata: Mapping[str, pa.Array] | None = None,
    ) -> pa.Table:
        towers = [tower for tower in self.store.towers.values() if tower.modality == modality]
        filled: list[list[dict[str, str | int]]] = [[] for _ in items]
        columns: list[pa.Array] = []
        for tower in towers:
            if tower.name not in embeddings:
                columns.append(pa.nulls(len(items), tower.column_type))
                continue
            found = embeddings[tower.name]
            values = found.values.astype(tower.identity["dtype"], copy=False)
            columns.append(_to_arrow(values, found.mask, tower))
            for entries, item, value, mask in zip(filled, items, values, found.mask, strict=True):
                entries.append({"tower": tower.name, "crc32": checksum(item.id, item.content_hash, value[mask])})
        described = [pa.array([getattr(item, field.name) for item in items], field.type) for field in _ITEM_FIELDS[:-1]]
        fields = [*_ITEM_FIELDS, *(pa.field(tower.name, tower.column_type) for tower in towers)]
        for name, kind in self._metadata[modality].items():
            fields.append(pa.field(name, kind))
            given = (metadata or {}).get(name)
            columns.append(pa.nulls(len(items), kind) if given is None else given)
        return pa.Table.from_arrays(
            [*described, pa.array(filled, _ITEM_FIELDS[-1].type), *columns], schema=pa.schema(fields)
        )

    def _find(self, modality: Modality, ids: pa.Array) -> pa.Table:
        """Return the rows of some items, in the order of the ids."""
        name = TABLES[modality]
        dataset = existing_table(self.path, name)
        with reading(self.path, name):
            rows, first = [], 0
            # Found by reading all ids: with Lance's filters an id, which may be any text, would have to be SQL.
            for batch in dataset.scanner(columns=["id"]).to_batches():
                rows.append(first + np.flatnonzero(pc.is_in(batch["id"], value_set=ids).to_numpy(zero_copy_only=False)))
                first += len(batch)
            found = dataset.take(np.concatenate(rows))
        order = pc.index_in(ids, value_set=found["id"].combine_chunks())
        if order.null_count:
            raise StoreError(f"{self.path}: {order.null_count:,} items have vanished from the table '{name}'")
        return found.take(order)

    def _append(self, name: str, rows: pa.Table) -> None:
        append_rows(self.path, name, rows)
        self._committed(name)

    def _merge(self, modality: Modality, rows: pa.Table) -> None:
        # With every column in the source, Lance reads no column but the id.
        name = TABLES[modality]
        table = existing_table(self.path, name)
        with writing(self.path, name):
            table.merge_insert("id").when_matched_update_all().execute(rows)
        self._committed(name)

    def _committed(self, name: str) -> None:
        self._commits[name] += 1
        if self._commits[name] % _SMALL_FRAGMENTS == 0:
            self._tidy(name)

    def _tidy(self, name: str) -> None:
        """Merge small files when there are many, and delete what no version needs that a reader may hold."""
        table = open_table(self.path, name)
        if table is None:
            return
        try:
            with writing(self.path, name):
                fragments = [fragment.metadata for fragment in table.get_fragments()]
                rows = sum(fragment.num_rows for fragment in fragments)
                size = sum(file.file_size_bytes or 0 for fragment in fragments for file in fragment.files)
                target = int(min(max(_FRAGMENT_BYTES * rows // max(size, 1), 1), _FRAGMENT_ROWS))
                if sum(fragment.num_rows < target for fragment in fragments) >= _SMALL_FRAGMENTS:
                    # Copied as they are where no row was deleted: half the time, a sixth of the memory.
                    table.optimize.compact_files(
                        target_rows_per_fragment=target,
                        compaction_mode="try_binary_copy",
                        batch_size=max(1, target // 16),
                        num_threads=1,
                    )
                # Unverified files are those of a killed process: there is no other writer, we hold the lock.
                table.cleanup_old_versions(older_than=_KEEP_VERSIONS, delete_unverified=True)
        except StoreError as error:
            # Nothing is lost: what could not be tidied (a full disk) is tidied next time.
            self.notes = [f"The store is complete, but could not be tidied up: {error}."]


def _make_folder(path: Path) -> None:
    try:
        if path.exists() and not path.is_dir():
            raise StoreError(f"{path}: expected a store, or an empty or new folder for one, found a file")
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


def _text(text: str) -> str:
    """Escape what is not UTF-8 (a file name may hold anything)."""
    return text.encode("utf-8", "backslashreplace").decode()


def _reject_rows(rejects: dict[tuple[str, str], str]) -> pa.Table:
    columns = list(zip(*((kind, id_, reason) for (kind, id_), reason in rejects.items()), strict=True)) or [()] * 3
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=_REJECT_SCHEMA)


def _to_arrow(values: np.ndarray, mask: np.ndarray, tower: Tower) -> pa.Array:
    """Turn ``(n, tokens, dim)`` embeddings in the stored type into a column of a tower's type."""
    if tower.pooled:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), tower.dim)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values[mask].reshape(-1)), tower.dim)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)
