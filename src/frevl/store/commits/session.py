"""Start a writer: check for lost commits, and for unfinished work of a killed writer.

While a process is writing, or after it was killed, ``STORE/commits/writing.json`` exists. It lists the data files to
which no table version referred when the writer started. A later writer can thus distinguish a killed writer's
leftovers, which may be deleted, from data that lost its manifest, which no writer may touch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from frevl.errors import StoreError
from frevl.files import write_json
from frevl.store.commits.failures import reading
from frevl.store.commits.record import (
    check_not_lost,
    commits_folder,
    data_files,
    manifests,
    read_commit,
    table_folder,
    writer_at_work,
)
from frevl.store.commits.soundness import ROWS_AT_ONCE, file_problems, sound_rows
from frevl.store.lance_tables import open_table
from frevl.store.towers import Tower, from_rows

__all__ = ["begin_writing", "drop_unfinished", "end_writing", "read_session", "towers_of_table", "unclaimed_files"]

_MODALITIES = {"images": "image", "texts": "text"}


def begin_writing(store: Path, names: Iterable[str], remember: Callable[[str], None]) -> dict[str, set[str]]:
    """Clean up after a killed writer and mark the store as being written. Requires the store's lock.

    A commit in progress during a power failure may be partly present: it is rolled back and its files are deleted. Data
    files that belong to no version, and that no killed writer explains, are left untouched.

    Args:
        store: Folder of the store.
        names: Names of its tables, that of the towers first.
        remember: Records the newest version of a table; called if there is no record of it, as in a store of frevl
            before 0.2 or after a writer was killed.

    Returns:
        By table, the unexplained data files; usually none.

    Raises:
        StoreError: A table has lost commits, or is damaged.
        OSError: The folder cannot be read or written.
    """
    former = read_session(store)
    names = list(names)
    for name in names:  # check all before writing anything
        if former is not None:
            drop_unfinished(store, name)
        check_not_lost(store, name, read_commit(store, name))
        if former is not None and not manifests(store, name) and former.get(name):
            raise StoreError(
                f"{store}: the table '{name}' has data files without a manifest; nothing is deleted: run frevl store "
                f"repair {store}"
            )
    commits_folder(store).mkdir(exist_ok=True)
    unclaimed: dict[str, set[str]] = {}
    for name in names:
        newest, commit = next(iter(manifests(store, name)), None), read_commit(store, name)
        if newest is not None and (commit is None or commit.version < newest):
            remember(name)
        unclaimed[name] = unclaimed_files(store, name)
        if former is not None:
            left = unclaimed[name] - former.get(name, set())
            for file in left:
                (table_folder(store, name) / "data" / file).unlink(missing_ok=True)
            unclaimed[name] -= left
    write_json(writer_at_work(store), {"unclaimed": {name: sorted(files) for name, files in unclaimed.items()}})
    return unclaimed


def end_writing(store: Path) -> None:
    """Remove the mark of `begin_writing`: everything is committed and cleaned up."""
    with contextlib.suppress(OSError):  # then the next writer cleans up as after a killed one
        writer_at_work(store).unlink(missing_ok=True)


def drop_unfinished(store: Path, name: str) -> list[int]:
    """Remove incomplete versions newer than the recorded one, as after a power failure.

    Returns:
        The versions that were rolled back.

    Raises:
        StoreError, OSError: The table cannot be read.
    """
    commit = read_commit(store, name)
    recorded = 0 if commit is None else commit.version
    dropped = []
    for version, path in manifests(store, name).items():  # newest first
        if version <= recorded or _complete(store, name, version, recorded):
            break
        path.unlink()
        dropped.append(version)
    return dropped


def unclaimed_files(store: Path, name: str) -> set[str]:
    """Return the data files of a table that belong to none of its versions.

    Raises:
        StoreError: The table is damaged.
        OSError: The folder cannot be read.
    """
    files = set(data_files(store, name))
    table = open_table(store, name) if files else None
    if table is None:
        return files
    files -= {file.path for fragment in table.get_fragments() for file in fragment.data_files()}
    if files:
        with reading(store, name):
            tracked = table.tracked_files().read_all()["path"].to_pylist()
        files -= {path.removeprefix("data/") for path in tracked}
    return files


def towers_of_table(store: Path, name: str) -> list[Tower]:
    """Return the towers that have a column in a table; empty for tables of other kinds.

    Raises:
        StoreError: The table of towers is damaged.
    """
    table = open_table(store, "towers") if name in _MODALITIES else None
    if table is None:
        return []
    with reading(store, "towers"):
        rows = table.to_table().to_pylist()
    return [tower for tower in from_rows(rows, str(store)) if tower.modality == _MODALITIES[name]]


def _complete(store: Path, name: str, version: int, recorded: int) -> bool:
    """Return whether everything added since the recorded version exists and matches its checksums."""
    try:
        old = open_table(store, name, version=recorded) if recorded in manifests(store, name) else None
        known = set() if old is None else {_key(fragment) for fragment in old.get_fragments()}
        table = open_table(store, name, version=version)
        towers = towers_of_table(store, name)
        for fragment in [] if table is None else table.get_fragments():
            if file_problems(store, name, fragment):
                return False
            if _key(fragment) in known:
                continue
            rows = min([ROWS_AT_ONCE[tower.pooled] for tower in towers], default=ROWS_AT_ONCE[True])
            with reading(store, name):
                for batch in fragment.to_batches(batch_size=rows):
                    if towers and not sound_rows(batch, towers).all():
                        return False
    except StoreError:
        return False
    return True


def _key(fragment: Any) -> tuple[str, ...]:
    return (*(file.path for file in fragment.data_files()), str(fragment.deletion_file()))


def read_session(store: Path) -> dict[str, set[str]] | None:
    """Return, for each table, the data files that were unclaimed when the current or killed writer began.

    Returns:
        None if nobody is writing and the last writer finished normally.

    Raises:
        StoreError: The record of the last writer is damaged.
    """
    path = writer_at_work(store)
    try:
        session = json.loads(path.read_text(encoding="utf-8"))
        return {name: set(files) for name, files in session["unclaimed"].items()}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"{path}: expected the record of the last writer, found a damaged file ({type(error).__name__}); run frevl "
            f"store repair {store}"
        ) from error
