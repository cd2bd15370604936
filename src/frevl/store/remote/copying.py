"""Copy a whole store between a folder and an object store: referring files come last, and the copy is verified."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from filelock import Timeout

from frevl.errors import StoreError, UsageError, counted
from frevl.files import flush_file, flush_folder, read_record, write_json
from frevl.store.commits.failures import reading
from frevl.store.commits.record import manifest_names
from frevl.store.commits.soundness import ROWS_AT_ONCE, sound_rows
from frevl.store.commits.table_writer import lock_store, make_store_folder
from frevl.store.commits.unfinished import UNFINISHED, forget_work, unfinished_work
from frevl.store.lance_tables import ALL_TABLES, open_committed
from frevl.store.reader import TABLES, Store
from frevl.store.remote.address import is_remote, place_of
from frevl.store.remote.objects import Objects
from frevl.store.remote.shared_lines import SharedLines
from frevl.terminal import ProgressLine

__all__ = ["CopyReport", "copy_store"]

_LABELS = "labels/labels.jsonl"
_BESIDE = (_LABELS, "shard.json")  # files of a store besides its tables


@dataclass
class CopyReport:
    """The result of a copy.

    Attributes:
        source: Location of the original.
        target: Location of the copy.
        files: Number of files copied.
        files_kept: Number of files that were already there.
        images: Number of images in the copy.
        texts: Number of texts in the copy.
        notes: Notes for the user.
        seconds: Wall time in seconds.
    """

    source: str
    target: str
    files: int = 0
    files_kept: int = 0
    images: int = 0
    texts: int = 0
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl store copy --json` writes."""
        return dict(vars(self))

    def sentence(self) -> str:
        """Return a one-line summary."""
        done = (
            f"Copied {self.source} to {self.target} in {self.seconds:.1f} s: {counted(self.files, 'file')}, "
            f"{self.files_kept:,} already there; {counted(self.images, 'image')} and {counted(self.texts, 'text')}, "
            "verified against their checksums."
        )
        return " ".join([done, *self.notes])


class _Common:
    """The states that a folder and an address have in common: hashes of manifests in the folder's ``copies.json``.

    Args:
        folder: Folder of a store, locked.
        address: Address of its copy, or of its original.
    """

    def __init__(self, folder: Path, address: str) -> None:
        self._path, self._address = folder / "commits" / "copies.json", address
        try:
            self._all: dict[str, list[str]] = read_record(self._path)
            self._known = set(self._all.get(address, []))
        except (OSError, ValueError, TypeError):
            self._all, self._known = {}, set()

    def __contains__(self, manifest: bytes) -> bool:
        return _hash(manifest) in self._known

    def add(self, manifests: Iterable[bytes]) -> None:
        """Record manifests that both now have."""
        self._known.update(map(_hash, manifests))
        with contextlib.suppress(OSError):  # a read-only folder; a later copy is then refused
            self._path.parent.mkdir(exist_ok=True)
            write_json(self._path, {**self._all, self._address: sorted(self._known)})


def _hash(manifest: bytes) -> str:
    return hashlib.sha256(manifest).hexdigest()[:32]


@dataclass(frozen=True)
class _Table:
    """The files of a table's newest version.

    Attributes:
        name: Name of the table.
        version: Version of the table.
        rows: Number of rows.
        files: Data files and lists of deleted rows, as paths below the store.
        manifest: The file that lists them.
    """

    name: str
    version: int
    rows: int
    files: list[str]
    manifest: str


def copy_store(source: str | Path, target: str | Path, *, progress: bool = False) -> CopyReport:
    """Copy a store from a folder to an object store, or vice versa.

    A new copy becomes visible when complete, with the identities last. A killed copy continues when called again. If
    the target has an earlier state of the store, only new files are copied.

    Args:
        source: Folder or URL of a store.
        target: URL, or new folder, for the copy.
        progress: Show progress.

    Returns:
        A report of what was done.

    Raises:
        UsageError: Both are folders, or both are addresses.
        StoreError: There is no store, the target has another one, a newer state or labels that the source lacks,
            something cannot be read or written, or the copy differs.
    """
    started = time.monotonic()
    here, there = place_of(source), place_of(target)
    if is_remote(here) == is_remote(there):
        kind = "addresses; copy to a folder first" if is_remote(here) else "folders; copy it like any other folder"
        raise UsageError(f"{here} and {there} are both {kind}")
    report = CopyReport(str(here), str(there))
    with contextlib.ExitStack() as locks:
        if is_remote(there):
            Store.open(here)
            _lock(here, locks)
            ends: _Ends = _Up(here, there)
        else:
            make_store_folder(there)
            (there / "commits").mkdir(exist_ok=True)  # so that a later call recognises a copy in progress
            _lock(there, locks)
            ends = _Down(here, there)
        store = Store.open(here)
        found = [_table(here, name, ends.source_names) for name in reversed(ALL_TABLES)]  # towers last
        tables = [table for table in found if table is not None]
        folder, address = (here, there) if is_remote(there) else (there, here)
        common = _Common(folder, str(address))
        _check_target(there, tables, ends, common)
        _copy_files(there, ends, tables, report, common, progress=progress)
    report.images, report.texts = (store.count(modality) for modality in ("image", "text"))
    _check_copy(store, there, tables)
    unfinished = unfinished_work(here)
    if not unfinished:
        forget_work(there)  # of a copy made while the original was incomplete
    report.notes += unfinished
    report.seconds = time.monotonic() - started
    return report


def _table(store: Path, name: str, names: set[str]) -> _Table | None:
    table = open_committed(store, name)
    if table is None:
        return None
    data, deleted = set(), set()
    with reading(store, name):
        version, rows = int(table.version), int(table.count_rows())
        for fragment in table.get_fragments():
            data |= {f"{name}.lance/data/{file.path}" for file in fragment.data_files()}
            removed = fragment.deletion_file()
            deleted |= set() if removed is None else {f"{name}.lance/{removed}"}
    manifest = manifest_names(entry.rpartition("/")[2] for entry in names if _is_manifest(entry, name)).get(version)
    if manifest is None:
        raise StoreError(f"{store}: the table '{name}' changed while being copied; run the same command again")
    manifest = f"{name}.lance/_versions/{manifest}"
    return _Table(name, version, rows, sorted(data | deleted), manifest)


def _is_manifest(entry: str, table: str) -> bool:
    return entry.startswith(f"{table}.lance/_versions/")


def _check_target(target: Path, tables: Sequence[_Table], ends: _Ends, common: _Common) -> None:
    """Refuse a target with other files, another store, or a state that did not come from here."""
    names, wanted = ends.target_names, f"{target}: expected nothing, or an earlier state of the same store, found"
    beside = ("commits/", "vectors/", "rows/", "unclaimed/", "labels/", "explore/", "runs/", "shard.json", ".")
    foreign = sorted(name for name in names if not name.startswith((*(f"{t}.lance/" for t in ALL_TABLES), *beside)))
    if foreign:
        raise StoreError(f"{wanted} '{foreign[0]:.200}'; choose another place")
    own = {table.name: table for table in tables}
    for name in ALL_TABLES:
        there = manifest_names(entry.rpartition("/")[2] for entry in names if _is_manifest(entry, name))
        if not there:
            continue
        version, file = next(iter(there.items()))
        content = ends.read_target(f"{name}.lance/_versions/{file}")
        of_source = own[name].version if name in own else 0
        if version > of_source:
            raise StoreError(
                f"{wanted} a newer one (version {version} of the table '{name}', the source has {of_source}); choose "
                "another place, or delete it there"
            )
        if content not in common and content != ends.read_source(own[name].manifest):
            raise StoreError(
                f"{wanted} another store, or a state of this one that was not copied from or to this folder; choose "
                "another place, or delete it there"
            )
    _check_labels(target, ends)


def _check_labels(target: Path, ends: _Ends) -> None:
    """Refuse a target with labels that the source lacks: labels are only added, so its file must start with them.

    Raises:
        StoreError: The target has further labels.
    """
    try:
        there = ends.read_target(_LABELS)
    except FileNotFoundError:
        return
    whole = there[: there.rfind(b"\n") + 1]  # a truncated last line was never confirmed, and may be set aside
    if whole and not (ends.read_source(_LABELS) if _LABELS in ends.source_names else b"").startswith(whole):
        raise StoreError(
            f"{target}: {_LABELS} holds labels that the source lacks, and a copy would lose them; choose another "
            "place, or put that file aside and import its labels into the source"
        )


class _Ends(Protocol):
    """Source and target of a copy; one of the two is a folder."""

    source_names: set[str]
    target_names: set[str]

    def copy(self, name: str) -> None:
        """Copy one file atomically."""

    def read_source(self, name: str) -> bytes:
        """Return the content of a small file of the source."""

    def read_target(self, name: str) -> bytes:
        """Return the content of a small file of the target."""


class _Up:
    def __init__(self, folder: Path, address: Path) -> None:
        self._folder, self._objects, self._labels = folder, Objects(address), SharedLines(address, _LABELS)
        self.source_names, self.target_names = _names(folder), self._objects.names()

    def copy(self, name: str) -> None:
        self._objects.put(self._folder / name, name)

    def read_source(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def read_target(self, name: str) -> bytes:
        return self._labels.all() if name == _LABELS else self._objects.read(name) or b""


class _Down:
    def __init__(self, address: Path, folder: Path) -> None:
        self._folder, self._objects, self._labels = folder, Objects(address), SharedLines(address, _LABELS)
        self.source_names, self.target_names = self._objects.names(), _names(folder)
        if any(name.startswith("labels/labels.lance/_versions/") for name in self.source_names):
            self.source_names.add(_LABELS)

    def read_source(self, name: str) -> bytes:
        return self._labels.all() if name == _LABELS else self._objects.read(name) or b""

    def read_target(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def copy(self, name: str) -> None:
        target = self._folder / name
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if name == _LABELS:
                temporary.write_bytes(self._labels.all())
            else:
                self._objects.fetch(name, temporary)
            flush_file(temporary)
            temporary.replace(target)
            for folder in (target.parent, target.parent.parent, self._folder):
                flush_folder(folder)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: {name} cannot be written ({error.strerror}); free some space or fix the permissions, "
                "and run the same command again to continue"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}


def _copy_files(
    target: Path, ends: _Ends, tables: Sequence[_Table], report: CopyReport, common: _Common, *, progress: bool
) -> None:
    wanted = [name for table in tables for name in table.files]
    missing = [name for name in wanted if name not in ends.target_names]
    # First files that are not visible yet, then those that make them visible.
    visible = [table.manifest for table in tables if table.manifest not in ends.target_names]
    beside = [f"commits/{table.name}.json" for table in tables] + list(_BESIDE)
    beside += [name for name in ends.source_names if name.startswith(f"{UNFINISHED}/")]
    last = [name for name in beside if name in ends.source_names]
    report.files_kept = len(wanted) - len(missing) + len(tables) - len(visible)
    report.files = len(missing) + len(visible) + len(last)
    with ProgressLine("files", report.files, enabled=progress) as line:
        for name in missing:
            ends.copy(name)
            line.advance()
        common.add(ends.read_source(table.manifest) for table in tables)  # before they become visible
        for name in (*visible, *last):
            if name == _LABELS:
                _check_labels(target, ends)  # again, because labels may have been added in the meantime
            ends.copy(name)
            line.advance()


def _check_copy(source: Store, target: Path, tables: Sequence[_Table]) -> None:
    """Read the copy back and compare it with the source.

    Raises:
        StoreError: The copy differs.
    """
    for table in tables:
        with reading(target, table.name):  # the whole loop, because reading continues with every batch
            there = open_committed(target, table.name)
            rows = 0 if there is None else int(there.count_rows())
            if there is None or rows != table.rows:
                raise StoreError(
                    f"{target}: the table '{table.name}' of the copy has {rows:,} rows, expected {table.rows:,}; "
                    "another process has written there: copy to another place"
                )
            modality = next((modality for modality, name in TABLES.items() if name == table.name), None)
            towers = [] if modality is None else [one for one in source.towers.values() if one.modality == modality]
            size = min([ROWS_AT_ONCE[tower.pooled] for tower in towers], default=ROWS_AT_ONCE[True])
            for batch in there.to_batches(batch_size=size):
                if towers and not sound_rows(batch, towers).all():
                    raise StoreError(
                        f"{target}: the table '{table.name}' of the copy differs from its checksums; see frevl store "
                        f"verify {source.path}, and copy to another place"
                    )


def _lock(folder: Path, locks: contextlib.ExitStack) -> None:
    lock = lock_store(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(f"{folder}: another process is writing to this store; wait for it to finish") from error
    except OSError:  # a read-only folder: nobody can write to it from here
        return
    locks.callback(lock.release)
