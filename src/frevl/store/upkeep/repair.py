"""Recover what is possible from a damaged or partly copied store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from filelock import Timeout

from frevl.errors import StoreError
from frevl.store.commits.failures import reading, writing
from frevl.store.commits.record import (
    Commit,
    commits_folder,
    data_files,
    manifest_name,
    manifests,
    read_commit,
    table_folder,
    writer_at_work,
)
from frevl.store.commits.session import drop_unfinished, unclaimed_files
from frevl.store.commits.soundness import file_problems
from frevl.store.commits.table_writer import lock_store
from frevl.store.commits.unfinished import forget_work
from frevl.store.lance_tables import ALL_TABLES, open_table, remove_parts, replace_rows
from frevl.store.reader import TABLES
from frevl.store.remote.address import is_remote, place_of
from frevl.store.upkeep.repair_report import RepairReport
from frevl.store.upkeep.salvage import salvage, unclaimed_folder
from frevl.store.upkeep.shared_repair import repair_remote

if TYPE_CHECKING:
    import lance

__all__ = ["RepairReport", "repair"]


def repair(store: str | Path) -> RepairReport:
    """Recover a store that has lost files or manifests, as far as possible; nothing readable is deleted.

    Manifests are restored from the copies that the store keeps elsewhere. Parts of a table whose file is missing or
    truncated are removed from the table. Data files without a version are set aside in ``STORE/unclaimed``; rows in
    them that match their checksums and are missing from the table are added to it. If an id occurs in several such
    files, the row with more embeddings counts, or, if the content differs, the row in the newer file. Removed rows may
    reappear if a table has lost its manifests and their copies.

    In an object store, only manifests, towers, lost parts and damaged rows are repaired, because data files without a
    version may belong to an active writer. If manifests were lost, no other process should write during the repair.

    Args:
        store: Folder or URL of the store.

    Returns:
        A report of what was done.

    Raises:
        StoreError: There is no store, another process is writing, or nothing can be recovered.
    """
    path = place_of(store)
    report = RepairReport(str(path))
    if is_remote(path):
        repair_remote(path, report)
        forget_work(path)
        return report
    if not any((path / known).is_dir() for known in ("towers.lance", "commits")):
        raise StoreError(f"{path}: expected a store (a folder with 'towers.lance'), found none")
    recorded = {name: read_commit(path, name) for name in ALL_TABLES}
    with _locked(path):
        for name in ALL_TABLES:
            with writing(path, name):
                _bring_back_manifest(path, name, recorded[name], report)
                if name == "towers":
                    _bring_back_towers(path, recorded[name], report)
                _leave_out_lost_parts(path, name)
                _put_aside(path, name)
        with writing(path, "commits"):
            writer_at_work(path).unlink(missing_ok=True)
    _check_towers(path)
    salvaged = salvage(path)
    forget_work(path)
    report.rows, report.removed, report.unread = salvaged.rows, salvaged.removed, salvaged.unread
    for name, commit in recorded.items():
        table = open_table(path, name)
        lacking = 0 if commit is None else commit.rows - (0 if table is None else table.count_rows())
        if lacking > 0:
            report.missing[name] = lacking
    return report


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    try:
        held = lock_store(path).acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"{path}: another process is writing to this store; wait for it to finish") from error
    except OSError as error:
        raise StoreError(
            f"{path}: a repair writes, and the store cannot be written ({error.strerror or error}); copy it to a "
            "folder that you may write to, and repair the copy"
        ) from error
    with held:
        yield


def _bring_back_manifest(path: Path, name: str, commit: Commit | None, report: RepairReport) -> None:
    """Restore the recorded manifest if the newest readable one is older, or there is none."""
    drop_unfinished(path, name)
    for version, file in manifests(path, name).items():  # newest first
        if _readable(path, name, version):
            break
        file.rename(_aside(path, name) / file.name)
    found = manifests(path, name)
    if commit is not None and commit.version in found and found[commit.version].read_bytes() != commit.manifest:
        found[commit.version].rename(_aside(path, name) / found[commit.version].name)
    newest = next(iter(manifests(path, name)), 0)
    if commit is None or newest >= commit.version:
        return
    folder = table_folder(path, name) / "_versions"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / manifest_name(commit.version)
    file.write_bytes(commit.manifest)
    if _readable(path, name, commit.version):
        report.versions[name] = commit.version
    else:  # the record is damaged, too; the data files are examined below
        file.unlink()


def _bring_back_towers(path: Path, commit: Commit | None, report: RepairReport) -> None:
    """Rewrite the table of towers from the rows in its record if its data file is lost."""
    if commit is None or not commit.content:
        return
    try:
        table = open_table(path, "towers")
        whole = table is not None and not _lost_parts(path, "towers", table) and table.count_rows() == commit.rows
    except StoreError:
        whole = False
    if whole:
        return
    with pa.ipc.open_stream(commit.content) as stream:
        rows = stream.read_all()
    replace_rows(path, "towers", rows)
    report.versions["towers"] = commit.version


def _leave_out_lost_parts(path: Path, name: str) -> None:
    """Commit a version without parts whose files are missing, truncated or unreadable; set their remains aside."""
    table = open_table(path, name)
    lost = [] if table is None else _lost_parts(path, name, table)
    if table is None or not lost:
        return
    files = {file.path for part in lost for file in part.data_files()}
    remove_parts(path, name, table, [part.fragment_id for part in lost])
    for version, manifest in list(manifests(path, name).items())[1:]:
        former = open_table(path, name, version=version)
        # Former versions with such a file cannot be read either.
        if former and not files.isdisjoint(file.path for part in former.get_fragments() for file in part.data_files()):
            manifest.unlink()
    for file in files.intersection(data_files(path, name)):
        (table_folder(path, name) / "data" / file).rename(_aside(path, name) / file)


def _lost_parts(path: Path, name: str, table: lance.LanceDataset) -> list[lance.LanceFragment]:
    lost = []
    for part in table.get_fragments():
        try:
            if not file_problems(path, name, part):
                with reading(path, name):
                    for _ in part.to_batches(batch_size=1024):
                        pass
                continue
        except StoreError:
            pass
        lost.append(part)
    return lost


def _put_aside(path: Path, name: str) -> None:
    files = data_files(path, name)
    for file in unclaimed_files(path, name):
        files[file].rename(_aside(path, name) / file)


def _aside(path: Path, name: str) -> Path:
    folder = unclaimed_folder(path, name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _readable(path: Path, name: str, version: int) -> bool:
    try:
        return open_table(path, name, version=version) is not None
    except StoreError:
        return False


def _check_towers(path: Path) -> None:
    """Refuse to continue if it is unknown which encoders made the embeddings."""
    if open_table(path, "towers") is None and not unclaimed_folder(path, "towers").is_dir():
        held = [name for name in TABLES.values() if data_files(path, name) or unclaimed_folder(path, name).is_dir()]
        if held:
            raise StoreError(
                f"{path}: the table 'towers', which states what made the embeddings, is lost, and so is its record in "
                f"{commits_folder(path)}; restore the folder towers.lance from a copy, and repair again"
            )
