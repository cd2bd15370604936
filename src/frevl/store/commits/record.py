"""The last commit of every table, recorded outside the table: ``STORE/commits/NAME.json``.

A Lance table is defined by its manifests. Copies can lose them (a tool skips names that begin with an underscore, a
copy is interrupted), and the table then looks as if it had never been written, or as it was some commits ago. The
record holds the version and number of rows, to detect a loss, and the manifest itself, to restore it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frevl.errors import StoreError, counted
from frevl.files import flush_file, flush_folder, write_json
from frevl.store.remote.address import is_remote
from frevl.store.remote.objects import Objects

__all__ = [
    "Commit",
    "check_not_lost",
    "commits_folder",
    "data_files",
    "flush_table",
    "lost_commits",
    "manifest_name",
    "manifest_names",
    "manifests",
    "read_commit",
    "record_of",
    "table_folder",
    "write_commit",
    "writer_at_work",
]

FORMAT = 1
_NEWEST_FIRST = 2**64 - 1  # Lance names the manifest of version v so that the newest sorts first: 2^64 - 1 - v
_FLUSHED = ("data", "_deletions", "_versions")  # files needed to read a version; data before its manifest


@dataclass(frozen=True)
class Commit:
    """The record of a table's last commit.

    Attributes:
        version: Version of the table.
        rows: Number of rows in that version.
        manifest: Content of the manifest file of that version.
        content: The rows themselves as an Arrow stream, for the small table of towers only; empty for other tables.
    """

    version: int
    rows: int
    manifest: bytes
    content: bytes = b""


def table_folder(store: Path, name: str) -> Path:
    """Return the folder of a table."""
    return store / f"{name}.lance"


def commits_folder(store: Path) -> Path:
    """Return the folder of the records."""
    return store / "commits"


def read_commit(store: Path, name: str) -> Commit | None:
    """Return the record of a table; None if there is none, as in stores of frevl before 0.2, or if it is damaged."""
    try:
        record = json.loads(_written(store, f"commits/{name}.json"))
        return Commit(
            version=int(record["version"]),
            rows=int(record["rows"]),
            manifest=base64.b64decode(record["manifest"], validate=True),
            content=base64.b64decode(record.get("content", ""), validate=True),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _written(store: Path, name: str) -> str:
    if not is_remote(store):
        return (store / name).read_text(encoding="utf-8")
    content = Objects(store).read(name)
    if content is None:
        raise FileNotFoundError(name)
    return content.decode()


def write_commit(store: Path, name: str, commit: Commit) -> None:
    """Write the record of a table; it is on disk when this returns.

    Raises:
        OSError: The record cannot be written.
    """
    write_json(commits_folder(store) / f"{name}.json", record_of(commit))


def record_of(commit: Commit) -> dict[str, Any]:
    """Return the record of a table as stored in its file."""
    record = {
        "format": FORMAT,
        "version": commit.version,
        "rows": commit.rows,
        "manifest": base64.b64encode(commit.manifest).decode(),
    }
    if commit.content:
        record["content"] = base64.b64encode(commit.content).decode()
    return record


def manifests(store: Path, name: str) -> dict[int, Path]:
    """Return the manifest files of a table by version, newest first; empty if there are none.

    Raises:
        OSError: The folder cannot be read.
    """
    folder = table_folder(store, name) / "_versions"
    return {version: folder / file for version, file in manifest_names(_names(folder)).items()}


def manifest_names(files: Iterable[str]) -> dict[int, str]:
    """Return the manifests among some file names, by version, newest first."""
    found = {}
    for file in files:
        stem, _, ending = file.partition(".")
        if ending == "manifest" and stem.isdecimal():
            number = int(stem)
            found[_NEWEST_FIRST - number if number > _NEWEST_FIRST // 2 else number] = file
    return dict(sorted(found.items(), reverse=True))


def manifest_name(version: int) -> str:
    """Return the file name of the manifest of a version."""
    return f"{_NEWEST_FIRST - version:020d}.manifest"


def data_files(store: Path, name: str) -> dict[str, Path]:
    """Return the data files of a table that are on disk, by name.

    Raises:
        OSError: The folder cannot be read.
    """
    folder = table_folder(store, name) / "data"
    return {file: folder / file for file in _names(folder)}


def writer_at_work(store: Path) -> Path:
    """Return the file that exists while a process is writing, or after a writer was killed (see `session`)."""
    return commits_folder(store) / "writing.json"


def lost_commits(store: Path, name: str, commit: Commit | None) -> str:
    """Check whether a table has lost its newest manifests, or all of them.

    Args:
        store: Folder of the store.
        name: Name of the table.
        commit: Record of the table, read before anything else of it, because a writer may be active.

    Returns:
        A sentence without its full stop; empty if nothing is missing.

    Raises:
        OSError: The folder of the table cannot be read.
    """
    newest = next(iter(manifests(store, name)), None)
    if commit is not None and (newest is None or newest < commit.version):
        found = "no manifest" if newest is None else f"version {newest}"
        expected = f"version {commit.version} with {counted(commit.rows, 'row')}"
    elif newest is None and data_files(store, name) and not writer_at_work(store).exists():
        if manifests(store, name):  # a writer has finished in the meantime
            return ""
        found, expected = "data files without a manifest", "a manifest next to them"
    else:
        return ""
    return (
        f"{store}: the table '{name}' has lost its last commits (expected {expected}, found {found}), as after an "
        f"incomplete copy; nothing is deleted: copy again, or run frevl store repair {store}"
    )


def check_not_lost(store: Path, name: str, commit: Commit | None) -> None:
    """Refuse a table that has lost commits, as `lost_commits` finds them.

    Raises:
        StoreError: The table has lost commits.
        OSError: The folder of the table cannot be read.
    """
    lost = lost_commits(store, name, commit)
    if lost:
        raise StoreError(lost)


def flush_table(store: Path, name: str, flushed: set[str]) -> None:
    """Wait until all files of a table and their directory entries are on disk.

    Args:
        store: Folder of the store.
        name: Name of the table.
        flushed: Files known to be on disk, by path below the table; extended by those flushed now.

    Raises:
        OSError: Writing to the disk failed.
    """
    folder = table_folder(store, name)
    for below in _FLUSHED:
        new = {f"{below}/{file}" for file in _names(folder / below) if not file.startswith("latest")} - flushed
        for entry in sorted(new):
            with contextlib.suppress(FileNotFoundError):  # old versions may be deleted in the meantime
                flush_file(folder / entry)
        if new:
            flush_folder(folder / below)
        flushed |= new
    names = {f"{below}/" for below in _FLUSHED if (folder / below).is_dir()}
    if names - flushed:  # the first commit of a table, or its first deletion
        flush_folder(folder)
        flush_folder(store)
        flushed |= names


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - thousands of names at every commit: a `Path` each would cost
    except (FileNotFoundError, NotADirectoryError):
        return []
