"""Write to a store: every call is one atomic Lance commit, on disk before the call returns.

A killed process or a power failure loses only the commit in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.encoders.interface import Embeddings
from frevl.errors import Reject, StoreError
from frevl.store.commits.failures import reading
from frevl.store.commits.rows import Item, TakeOver, rows_with
from frevl.store.commits.soundness import checksums_of
from frevl.store.commits.table_writer import (
    ITEM_FIELDS,
    UNREAD_SCHEMA,
    TableWriter,
    embedding_column,
    in_utf8,
    make_store_folder,
    reject_rows,
)
from frevl.store.commits.unfinished import Work
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.lance_tables import ALL_TABLES, open_table
from frevl.store.reader import TABLES, Store
from frevl.store.remote.address import is_remote, place_of
from frevl.store.remote.shared_tables import SharedTables
from frevl.store.towers import Modality, Tower, check_same, checksum, to_rows

__all__ = ["Item", "StoreWriter", "TakeOver"]

Combine = Callable[[pa.Table, pa.Table], Iterable[pa.Table]]


class StoreWriter:
    """The only writer of a store; a context manager that holds the store's lock.

    Args:
        path: Folder of the store; created if missing.
        work: The call that fills it, the same for every repetition. Until the writer ends normally, the store says that
            it has not finished; None: it says nothing.

    Attributes:
        store: The store as it was when this writer began.
        notes: Notes for the user.

    Raises:
        StoreError: The folder cannot be written, holds something else, has lost commits, or another process is writing.
    """

    def __init__(self, path: str | Path, *, work: str | None = None) -> None:
        self.path = place_of(path)
        self._work = Work(self.path, work)
        self.notes: list[str] = []
        self._tables: TableWriter | SharedTables
        if is_remote(self.path):
            self._tables = SharedTables(self.path, ALL_TABLES)
        else:
            make_store_folder(self.path)
            self._tables = TableWriter(self.path, ALL_TABLES)

    def __enter__(self) -> StoreWriter:
        self._tables.__enter__()
        try:
            self.store = Store(self.path)
            self._metadata = {modality: self.store.metadata(modality) for modality in TABLES}
            self._rejects = {(reject.kind, reject.id): reject.reason for reject in self.store.rejects()}
        except BaseException as error:
            self._tables.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tables.__exit__(kind, error, trace)
        if kind is None:
            self._work.end()
        self.notes = list(dict.fromkeys([*self.notes, *self._tables.notes]))

    def rows(self) -> dict[str, int]:
        """Return the current number of rows of every table."""
        tables = {name: open_table(self.path, name) for name in ALL_TABLES}
        return {name: 0 if table is None else int(table.count_rows()) for name, table in tables.items()}

    def metadata_types(self, modality: Modality) -> dict[str, pa.DataType]:
        """Return the names and types of the metadata columns of images or texts."""
        return dict(self._metadata[modality])

    def describe(self, modality: Modality, fields: Sequence[pa.Field]) -> None:
        """Add metadata columns; existing ones keep their type.

        Raises:
            StoreError: A tower has such a name.
        """
        taken = [field.name for field in fields if field.name in self.store.towers]
        if taken:
            raise StoreError(f"{self.path}: '{taken[0]}' is the name of a tower; rename this metadata column")
        new = [field for field in fields if field.name not in self._metadata[modality]]
        self._metadata[modality].update({field.name: field.type for field in new})
        if new and open_table(self.path, TABLES[modality]) is not None:
            self._tables.add_columns(TABLES[modality], new)

    def register(self, towers: Sequence[Tower]) -> None:
        """Register towers, or check that they match the store's. Writes nothing if one is refused.

        Raises:
            FingerprintError: The store holds embeddings that another encoder made under the same name.
        """
        self._tables.retried(lambda: self._register(towers))

    def _register(self, towers: Sequence[Tower]) -> None:
        known = dict(self._towers())
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
            self._tables.replace("towers", to_rows(list(known.values())))
            self.store.towers = known
        for modality, name in TABLES.items():
            table = open_table(self.path, name)
            columns = [
                pa.field(tower.name, tower.column_type)
                for tower in known.values()
                if tower.modality == modality and table is not None and tower.name not in table.schema.names
            ]
            if columns:  # of nulls, which is metadata only; rows are filled as they are embedded
                self._tables.add_columns(name, columns)

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
            embeddings: One row per item, by tower name. Towers that are not given stay empty for these items.
            metadata: One value per item, by column name (see `describe`); columns that are not given stay empty.
        """
        self._tables.append(TABLES[modality], self._rows(modality, items, embeddings, metadata))

    def replace(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        """Replace items whose content has changed; towers that are not given become empty for these items."""
        self._tables.retried(lambda: self._replace(modality, items, embeddings))

    def _replace(self, modality: Modality, items: Sequence[Item], embeddings: dict[str, Embeddings]) -> None:
        self._towers()
        rows = self._rows(modality, items, embeddings)
        self._tables.merge(TABLES[modality], self._with_own_metadata(modality, rows, np.ones(len(rows), bool)))

    def _with_own_metadata(self, modality: Modality, rows: pa.Table, own: np.ndarray) -> pa.Table:
        """Return rows of items in the table; those marked by ``(n,)`` keep their metadata."""
        if self._metadata[modality] and own.any():
            there = self._find(modality, rows["id"].combine_chunks())
            for name in self._metadata[modality]:
                values = pc.if_else(pa.array(own), there[name], rows[name])
                rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
        return rows

    def fill(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        *,
        metadata: Mapping[str, pa.Array] | None = None,
    ) -> None:
        """Add embeddings by further towers, and metadata, to items in the store."""
        self._tables.retried(lambda: self._fill(modality, items, embeddings, metadata))

    def _fill(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        metadata: Mapping[str, pa.Array] | None,
    ) -> None:
        self._towers()
        new = self._rows(modality, items, embeddings, metadata)
        old = self._find(modality, new["id"].combine_chunks())
        filled = [[*a, *b] for a, b in zip(old["filled"].to_pylist(), new["filled"].to_pylist(), strict=True)]
        kept = self.store.towers.keys() - embeddings.keys()
        columns = {name: (old if name in kept else new)[name] for name in new.column_names}
        columns["filled"] = pa.array(filled, new.schema.field("filled").type)
        columns.update({name: pc.coalesce(new[name], old[name]) for name in self._metadata[modality]})
        self._tables.merge(TABLES[modality], pa.table(columns, schema=new.schema))

    @contextmanager
    def keep_version(self, modality: Modality) -> Iterator[None]:
        """Keep the table version read by `StoreWriter.store` on disk, regardless of age."""
        with self._tables.keep_version(TABLES[modality], self.store.version(modality)):
            yield

    def take_over(self, modality: Modality, taken: Sequence[TakeOver]) -> None:
        """Let items take over the embeddings that others had when this writer began; requires `keep_version`.

        Args:
            modality: ``image`` or ``text``.
            taken: Items to write; their ids are distinct.
        """
        self._tables.retried(lambda: self._take_over(modality, taken))

    def _take_over(self, modality: Modality, taken: Sequence[TakeOver]) -> None:
        self._towers()
        rows = self._rows(modality, [one.item for one in taken], {})
        old = self.store.rows(modality, [one.source for one in taken])
        towers = [tower for tower in self.store.towers.values() if tower.modality == modality]
        columns = {name: rows[name] for name in rows.column_names}
        columns.update({tower.name: old[tower.name] for tower in towers if tower.name in old.column_names})
        columns.update(self._metadata_taken_over(modality, taken, rows.schema))
        found = pa.table(columns, schema=rows.schema)
        filled = [
            [{"tower": tower, "crc32": crc32} for tower, crc32 in sums.items()]
            for batch in found.to_batches(max_chunksize=1024)
            for sums in checksums_of(batch, towers)
        ]
        column = found.schema.get_field_index("filled")
        found = found.set_column(column, found.schema.field(column), pa.array(filled, found.schema.field(column).type))
        there = find_rows(self.store.positions(modality), [one.item.id for one in taken]) >= 0
        left = [one.source for one in taken if one.moved]
        if there.any():
            own = np.array([not one.moved for one in taken])[there]
            self._tables.merge(TABLES[modality], self._with_own_metadata(modality, found.filter(pa.array(there)), own))
        self._tables.exchange(TABLES[modality], found.filter(pa.array(~there)), pa.array(left, pa.string()))

    def _metadata_taken_over(
        self, modality: Modality, taken: Sequence[TakeOver], schema: pa.Schema
    ) -> dict[str, pa.Array]:
        """Return metadata columns: the source's if it moved, else nulls."""
        moved = [one.source for one in taken if one.moved]
        values = iter(self.store.read_metadata(modality, moved))
        owned = [next(values) if one.moved else {} for one in taken]
        names = self._metadata[modality]
        return {name: pa.array([one.get(name) for one in owned], schema.field(name).type) for name in names}

    def remove(self, modality: Modality, ids: Collection[str]) -> int:
        """Remove items with all their embeddings and metadata; unknown ids are ignored.

        Returns:
            The number of removed items.
        """
        if not ids or open_table(self.path, TABLES[modality]) is None:
            return 0
        return self._tables.delete(TABLES[modality], pa.array(list(dict.fromkeys(ids)), pa.string()))

    def compact(self) -> None:
        """Rewrite all tables without removed or replaced rows, and free their space at once."""
        for name in ALL_TABLES:
            self._tables.compact(name)

    def bring_back(self, modality: Modality, rows: pa.Table, *, known: bool) -> None:
        """Add rows recovered from a data file of this table; columns that the table lacks are left out.

        Args:
            modality: ``image`` or ``text``.
            rows: Rows with correct checksums.
            known: Whether their ids are in the table; if so, they replace its rows.
        """
        write = self._tables.merge if known else self._tables.append
        write(TABLES[modality], self._as_here(modality, rows))

    def renew(self, modality: Modality, rows: pa.Table, combine: Combine) -> None:
        """Combine recovered rows, as in `bring_back`, with the table's current rows of the same ids.

        Args:
            modality: ``image`` or ``text``.
            rows: Rows with correct checksums. Those whose ids the table lacks are added.
            combine: Function from the other rows, and the table's rows of the same ids in the same order, to complete
                rows that replace the table's. In an object store, it is called again if another writer was faster.
        """
        self._tables.retried(lambda: self._renew(modality, rows, combine))

    def _renew(self, modality: Modality, rows: pa.Table, combine: Combine) -> None:
        self._towers()
        ids = rows["id"].combine_chunks()
        former = self._those_there(modality, ids)
        there = pc.is_in(ids, value_set=former["id"].combine_chunks())
        made = [self._as_here(modality, some) for some in combine(rows.filter(there), former)]
        if any(map(len, made)):
            self._tables.merge(TABLES[modality], pa.concat_tables(made))
        if len(former) < len(rows):
            self._tables.append(TABLES[modality], self._as_here(modality, rows.filter(pc.invert(there))))

    def _as_here(self, modality: Modality, rows: pa.Table) -> pa.Table:
        """Return rows with the columns of the table."""
        schema = self._rows(modality, [], {}).schema
        columns = [
            rows[field.name].cast(field.type) if field.name in rows.schema.names else pa.nulls(len(rows), field.type)
            for field in schema
        ]
        towers = {field.name for field in schema}
        filled = [[entry for entry in entries if entry["tower"] in towers] for entries in rows["filled"].to_pylist()]
        columns[schema.get_field_index("filled")] = pa.array(filled, schema.field("filled").type)
        return pa.Table.from_arrays(columns, schema=schema)

    def reject(self, rejects: Sequence[Reject]) -> None:
        """Record rejects; one with the same kind and id replaces the earlier one."""
        latest = {(in_utf8(reject.kind), in_utf8(reject.id)): in_utf8(reject.reason) for reject in rejects}
        changed = {key: reason for key, reason in latest.items() if self._rejects.get(key) != reason}
        if not changed:
            return
        again = not changed.keys().isdisjoint(self._rejects)
        self._rejects.update(changed)
        self._tables.update_rejects(reject_rows(changed), reject_rows({}), reject_rows(self._rejects), again=again)

    def note_unread(self, tower: str, shares: Mapping[str, float]) -> None:
        """Record texts that a tower cannot read, with the share of unknown letters."""
        known = set(self.store.unread_texts(list(shares), [self.store.towers[tower]]))
        new = [text for text in shares if text not in known]
        if new:
            columns = [[tower] * len(new), new, [shares[text] for text in new]]
            self._tables.append("unread", pa.Table.from_arrays(list(map(pa.array, columns)), schema=UNREAD_SCHEMA))

    def clear_rejects(self, kind: str, ids: Collection[str]) -> None:
        """Clear the rejects of items that have become usable."""
        keys = {(kind, id_) for id_ in ids}.intersection(self._rejects)
        if keys:
            gone = reject_rows({key: self._rejects.pop(key) for key in keys})
            self._tables.update_rejects(reject_rows({}), gone, reject_rows(self._rejects), again=False)

    def _towers(self) -> dict[str, Tower]:
        """Return the towers of the store, including those added by other writers in an object store.

        Metadata columns that these have added are recorded, too.
        """
        if self._tables.has_moved():
            newest = Store(self.path)
            self.store.towers = newest.towers
            self._metadata = {kind: {**newest.metadata(kind), **known} for kind, known in self._metadata.items()}
        return self.store.towers

    def _rows(
        self,
        modality: Modality,
        items: Sequence[Item],
        embeddings: dict[str, Embeddings],
        metadata: Mapping[str, pa.Array] | None = None,
    ) -> pa.Table:
        self._work.begin()
        towers = [tower for tower in self.store.towers.values() if tower.modality == modality]
        filled: list[list[dict[str, str | int]]] = [[] for _ in items]
        columns: list[pa.Array] = []
        for tower in towers:
            if tower.name not in embeddings:
                columns.append(pa.nulls(len(items), tower.column_type))
                continue
            found = embeddings[tower.name]
            values = found.values.astype(tower.identity["dtype"], copy=False)
            columns.append(embedding_column(values, found.mask, pooled=tower.pooled))
            for entries, item, value, mask in zip(filled, items, values, found.mask, strict=True):
                entries.append({"tower": tower.name, "crc32": checksum(item.id, item.content_hash, value[mask])})
        described = [pa.array([getattr(item, field.name) for item in items], field.type) for field in ITEM_FIELDS[:-1]]
        fields = [*ITEM_FIELDS, *(pa.field(tower.name, tower.column_type) for tower in towers)]
        for name, kind in self._metadata[modality].items():
            fields.append(pa.field(name, kind))
            given = (metadata or {}).get(name)
            columns.append(pa.nulls(len(items), kind) if given is None else given)
        columns = [*described, pa.array(filled, ITEM_FIELDS[-1].type), *columns]
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _find(self, modality: Modality, ids: pa.Array) -> pa.Table:
        """Return the rows of some items, in the order of the ids."""
        found, name = self._those_there(modality, ids), TABLES[modality]
        if len(found) < len(ids):
            raise StoreError(f"{self.path}: {len(ids) - len(found):,} items have disappeared from the table '{name}'")
        return found

    def _those_there(self, modality: Modality, ids: pa.Array) -> pa.Table:
        """Return the rows of those items that the table has, in the order of the ids."""
        name = TABLES[modality]
        if (at_once := self._tables.find(name, ids)) is not None:
            return at_once
        dataset = self._tables.newest(name)
        with reading(self.path, name):
            return rows_with(dataset, ids)
