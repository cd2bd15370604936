"""Repair a store in an object store by Lance commits, so that others can keep reading."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from frevl.errors import StoreError
from frevl.store.commits.failures import reading
from frevl.store.commits.record import Commit, manifest_name, manifest_names, read_commit
from frevl.store.commits.soundness import file_problems, wrong_ids
from frevl.store.lance_tables import ALL_TABLES, open_table
from frevl.store.reader import TABLES
from frevl.store.remote.objects import Objects
from frevl.store.remote.shared_tables import SharedTables
from frevl.store.upkeep.repair_report import RepairReport
from frevl.store.writer import StoreWriter

if TYPE_CHECKING:
    import lance

__all__ = ["repair_remote"]


def repair_remote(store: Path, report: RepairReport) -> None:
    """Recover a store in an object store as far as possible.

    Manifests and towers are restored from their records. Parts of a table whose file is missing or damaged, and rows
    that differ from their checksums, are removed from the table; so is a part whose list of deleted rows is lost or
    damaged, because these rows would otherwise reappear. Whether a file is damaged is decided on a complete local copy,
    so a network failure ends the repair without changing anything.

    Args:
        store: Address of the store.
        report: Report to fill in.

    Raises:
        StoreError: There is no store, it cannot be reached, or nothing can be recovered.
    """
    objects = Objects(store)
    names = objects.names()
    recorded = {name: read_commit(store, name) for name in ALL_TABLES}
    if not any(name.startswith(("towers.lance/", "commits/")) for name in names):
        raise StoreError(f"{store}: expected a store there, found none")
    for name in ALL_TABLES:
        _bring_back_manifest(name, recorded[name], objects, report)
    with SharedTables(store, ALL_TABLES) as tables:
        _bring_back_towers(store, recorded["towers"], objects, tables, report)
        for name in ALL_TABLES:
            _leave_out_lost_parts(store, name, objects, tables)
    with StoreWriter(store) as writer:
        for modality, name in TABLES.items():
            table, wrong = open_table(store, name), set[str]()
            for tower in writer.store.select_towers(modality):
                for part in [] if table is None or tower.name not in table.schema.names else table.get_fragments():
                    with reading(store, name):
                        wrong.update(wrong_ids(part, tower))
            if wrong:
                report.removed[name] = writer.remove(modality, wrong)
    for name, commit in recorded.items():
        table = open_table(store, name)
        lacking = 0 if commit is None else commit.rows - (0 if table is None else table.count_rows())
        if lacking > 0:
            report.missing[name] = lacking


def _bring_back_manifest(name: str, commit: Commit | None, objects: Objects, report: RepairReport) -> None:
    """Restore the recorded manifest if the newest one is older, or is the recorded one and damaged."""
    if commit is None:
        return
    folder = f"{name}.lance/_versions/"
    names = [file.removeprefix(folder) for file in objects.names() if file.startswith(folder)]
    newest = next(iter(manifest_names(names)), 0)
    place = f"{name}.lance/_versions/{manifest_name(commit.version)}"
    if newest > commit.version or (newest == commit.version and objects.read(place) == commit.manifest):
        return
    objects.write(place, commit.manifest)
    report.versions[name] = commit.version


def _bring_back_towers(
    store: Path, commit: Commit | None, objects: Objects, tables: SharedTables, report: RepairReport
) -> None:
    """Rewrite the towers from the rows in the table's record if their data file is lost."""
    table = open_table(store, "towers")
    if table is not None and not _lost_parts(store, "towers", table, objects):
        return
    if commit is None or not commit.content or (table is not None and table.version != commit.version):
        raise StoreError(
            f"{store}: the table 'towers', which states what made the embeddings, is lost, and so is its record in "
            f"{store}/commits; restore towers.lance from a copy, and repair again"
        )
    with pa.ipc.open_stream(commit.content) as stream:
        rows = stream.read_all()
    tables.has_moved()  # from here on, another writer's change of the towers is noticed
    tables.replace("towers", rows)
    report.versions["towers"] = commit.version


def _leave_out_lost_parts(store: Path, name: str, objects: Objects, tables: SharedTables) -> None:
    table = open_table(store, name)
    lost = [] if table is None else _lost_parts(store, name, table, objects)
    if lost:
        tables.remove_parts(name, lost)


def _lost_parts(store: Path, name: str, table: lance.LanceDataset, objects: Objects) -> list[int]:
    """Return the numbers of parts that have lost a file, or one of whose files is damaged."""
    names = objects.names()
    lost = []
    for part in table.get_fragments():
        deleted = part.deletion_file()
        files = [f"data/{file.path}" for file in part.data_files()] + ([] if deleted is None else [deleted])
        if not {f"{name}.lance/{file}" for file in files} <= names:
            lost.append(part.fragment_id)
            continue
        try:
            with reading(store, name):
                for _ in part.to_batches(batch_size=1024):
                    pass
        except StoreError:
            if not _is_damaged(name, part, table.version, objects):
                raise
            lost.append(part.fragment_id)
    return lost


def _is_damaged(name: str, part: lance.LanceFragment, version: int, objects: Objects) -> bool:
    """Return whether a part cannot be read even from complete local copies of its files.

    Its files are those with its rows and the list of its deleted rows, if any.

    Raises:
        StoreError: A file cannot be downloaded.
    """
    deleted = part.deletion_file()
    manifest = manifest_names(file.rpartition("/")[2] for file in objects.names(f"{name}.lance/_versions"))[version]
    files = [f"data/{file.path}" for file in part.data_files()] + ([] if deleted is None else [deleted])
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder) / f"{name}.lance"
        for file in (f"_versions/{manifest}", *files):
            (here / file).parent.mkdir(parents=True, exist_ok=True)
            objects.fetch(f"{name}.lance/{file}", here / file)
        if file_problems(here.parent, name, part):
            return True
        try:
            table = open_table(here.parent, name, version=version)
            with reading(here.parent, name):
                for own in [] if table is None else table.get_fragments():
                    if own.fragment_id == part.fragment_id:
                        for _ in own.to_batches(batch_size=1024):
                            pass
        except StoreError:
            return True
    return False
