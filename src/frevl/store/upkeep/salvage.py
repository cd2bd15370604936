"""Salvage rows from data files that belong to no table version, and add those that the store lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from frevl.errors import Reject, StoreError
from frevl.store.commits.failures import reading
from frevl.store.commits.soundness import ROWS_AT_ONCE, sound_rows, wrong_ids
from frevl.store.lance_tables import ALL_TABLES, ITEM_COLUMNS, open_table, read_data_file
from frevl.store.reader import TABLES, Store
from frevl.store.towers import Modality, Tower, from_rows
from frevl.store.writer import StoreWriter

__all__ = ["Salvaged", "salvage", "unclaimed_folder"]


@dataclass
class Salvaged:
    """The salvaged rows.

    Attributes:
        rows: By table, the number of rows added, or substituted for rows with fewer embeddings.
        removed: By table, the number of its own rows removed because they differ from their checksums.
        unread: Files that could not be read in full; they are kept.
    """

    rows: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


class _Found(NamedTuple):
    """An intact row in a file, and what decides between rows with the same id."""

    file: int
    row: int
    content_hash: str
    embeddings: int
    modified_ns: int
    written_ns: int

    def is_better_than(self, other: _Found) -> bool:
        if self.content_hash == other.content_hash:
            return (self.embeddings, self.written_ns) > (other.embeddings, other.written_ns)
        return (self.modified_ns, self.written_ns) > (other.modified_ns, other.written_ns)


def unclaimed_folder(store: Path, name: str) -> Path:
    """Return the folder for data files that belong to no table version, set aside by a repair."""
    return store / "unclaimed" / name


def salvage(store: Path) -> Salvaged:
    """Add the rows of files in ``STORE/unclaimed`` to a store that is otherwise intact.

    Files whose rows are all intact are deleted once their rows are committed; others are kept.

    Raises:
        StoreError: The store cannot be read or written.
    """
    said = Salvaged()
    _towers(store, said)
    with StoreWriter(store) as writer:
        _rejects(store, writer, said)
        _unread(store, writer, said)
        for modality in TABLES:
            _remove_damaged(writer, modality, said)
            _items(store, writer, modality, said)
    for name in ALL_TABLES:
        for folder in (unclaimed_folder(store, name), unclaimed_folder(store, name).parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return said


def _towers(store: Path, said: Salvaged) -> None:
    """Recover towers; every file of their table contains all towers known when it was written."""
    towers: dict[str, Tower] = {}
    read: list[Path] = []
    for file in _files(store, "towers"):
        try:
            rows = [row for batch in _read(store, "towers", file) for row in batch.to_pylist()]
            found = from_rows(rows, str(file))
        except (StoreError, KeyError, ValueError):
            said.unread.append(str(file))
            continue
        read.append(file)
        for tower in found:
            known = towers.get(tower.name)
            if known is None or len(tower.encoders) > len(known.encoders):
                towers[tower.name] = tower
    if not read:
        return
    with StoreWriter(store) as writer:
        new = [tower for name, tower in towers.items() if name not in writer.store.towers]
        writer.register(new)
        if new:
            said.rows["towers"] = len(new)
    _delete(read)


def _rejects(store: Path, writer: StoreWriter, said: Salvaged) -> None:
    known = {(reject.kind, reject.id) for reject in writer.store.rejects()}
    new: dict[tuple[str, str], Reject] = {}
    read: list[Path] = []
    for file in _files(store, "rejects"):
        try:
            rows = [row for batch in _read(store, "rejects", file) for row in batch.to_pylist()]
            new.update({(row["kind"], row["id"]): Reject(row["kind"], row["id"], row["reason"]) for row in rows})
        except (StoreError, KeyError):
            said.unread.append(str(file))
            continue
        read.append(file)
    added = [reject for key, reject in new.items() if key not in known]
    writer.reject(added)
    if added:
        said.rows["rejects"] = len(added)
    _delete(read)


def _unread(store: Path, writer: StoreWriter, said: Salvaged) -> None:
    read: list[Path] = []
    for file in _files(store, "unread"):
        try:
            rows = [row for batch in _read(store, "unread", file) for row in batch.to_pylist()]
            for tower in writer.store.towers:
                writer.note_unread(tower, {row["text"]: row["share"] for row in rows if row["tower"] == tower})
        except (StoreError, KeyError):
            said.unread.append(str(file))
            continue
        read.append(file)
    _delete(read)


def _remove_damaged(writer: StoreWriter, modality: Modality, said: Salvaged) -> None:
    """Remove rows that differ from their checksums, so that the next extraction embeds them again."""
    name = TABLES[modality]
    table = open_table(writer.path, name)
    wrong: list[str] = []
    for tower in writer.store.select_towers(modality):
        for part in [] if table is None or tower.name not in table.schema.names else table.get_fragments():
            with reading(writer.path, name):
                wrong += wrong_ids(part, tower)
    if wrong:
        said.removed[name] = writer.remove(modality, wrong)


def _items(store: Path, writer: StoreWriter, modality: Modality, said: Salvaged) -> None:
    name = TABLES[modality]
    files = _files(store, name)
    towers = writer.store.select_towers(modality)
    found: dict[str, _Found] = {}
    whole: list[Path] = []
    columns: dict[str, pa.Field] = {}
    for number, file in enumerate(files):
        sound = True
        written = file.stat().st_mtime_ns
        try:
            for first, batch in _numbered(_read(store, name, file)):
                sound &= _look(batch, towers, number, first, written, found)
                columns.update({field.name: field for field in batch.schema if _is_metadata(field)})
        except (StoreError, KeyError):
            sound = False
        if sound:
            whole.append(file)
        else:
            said.unread.append(str(file))
    if found:
        writer.describe(modality, list(columns.values()))
    now = Store.open(store)
    there, states = now.positions(modality), now.states(modality)
    counts = np.zeros(len(there), np.int64) + sum(states[f"has:{tower.name}"] for tower in towers)
    added = 0
    for number, file in enumerate(files):
        chosen: dict[int, bool] = {}  # maps a row to whether the table has its id
        for id_, one in found.items():
            if one.file != number:
                continue
            at = there.get(id_)
            if at is None:
                chosen[one.row] = False
            elif states["content_hash"][at].decode() == one.content_hash and one.embeddings > counts[at]:
                chosen[one.row] = True
        for first, batch in _numbered(_read(store, name, file)) if chosen else ():
            for known in (False, True):
                rows = [row - first for row, has in chosen.items() if has == known and 0 <= row - first < len(batch)]
                if rows:
                    writer.bring_back(modality, pa.Table.from_batches([batch]).take(sorted(rows)), known=known)
        added += len(chosen)
    if added:
        said.rows[name] = added
    _delete(whole)


def _look(
    batch: pa.RecordBatch, towers: Sequence[Tower], file: int, first: int, written: int, found: dict[str, _Found]
) -> bool:
    """Keep the best intact row of every id; return whether all rows are intact and all their towers known."""
    sound = sound_rows(batch, towers)
    known = {tower.name for tower in towers}
    described = (batch[name].to_pylist() for name in ("id", "content_hash", "modified_ns", "filled"))
    complete = bool(sound.all())
    for row, (id_, content_hash, modified_ns, filled) in enumerate(zip(*described, strict=True)):
        complete &= known.issuperset(entry["tower"] for entry in filled)
        if not sound[row]:
            continue
        embeddings = sum(entry["tower"] in known for entry in filled)
        one = _Found(file, first + row, content_hash, embeddings, modified_ns, written)
        if embeddings and (id_ not in found or one.is_better_than(found[id_])):
            found[id_] = one
    return complete


def _numbered(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    for batch in batches:
        yield first, batch
        first += len(batch)


def _read(store: Path, name: str, file: Path) -> Iterator[pa.RecordBatch]:
    with reading(store, name):
        yield from read_data_file(file, ROWS_AT_ONCE[False])


def _is_metadata(field: pa.Field) -> bool:
    return field.name not in ITEM_COLUMNS and not pa.types.is_nested(field.type)


def _files(store: Path, name: str) -> list[Path]:
    folder = unclaimed_folder(store, name)
    return sorted(path for path in folder.glob("*.lance") if path.is_file()) if folder.is_dir() else []


def _delete(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)
