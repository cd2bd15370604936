"""The parts of one extraction, checked together before any merging."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import Timeout

from frevl.errors import StoreError, UsageError
from frevl.store.commits.table_writer import lock_store
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.reader import Store
from frevl.store.remote.address import is_remote, place_of
from frevl.store.sharding.shares import Part, read_part
from frevl.store.towers import Tower, check_same

__all__ = ["OpenPart", "opened"]

_SHOWN = 8  # maximum number of missing shards that are listed


@dataclass(frozen=True)
class OpenPart:
    """A part that is locked against writing while open.

    Attributes:
        path: Folder of the part.
        record: Record of the part.
        towers: Towers of the part, by name.
        at: Tables of the part.
    """

    path: Path
    record: Part
    towers: dict[str, Tower]
    at: Snapshot


@contextlib.contextmanager
def opened(paths: Sequence[str | Path], into: Path) -> Iterator[tuple[list[OpenPart], list[str]]]:
    """Open all parts of an extraction in shard order, and check that they belong together.

    Args:
        paths: Folders of the parts, in any order.
        into: The store into which they are merged.

    Yields:
        The parts, and notes for the user.

    Raises:
        UsageError: A part is given twice, or is the store into which they are merged.
        StoreError: A part is missing, incomplete or damaged, or does not belong with the others.
        FingerprintError: Parts were made by different encoders.
    """
    places: dict[Path, Path] = {}
    for path in map(place_of, paths):
        if path.resolve() in places:
            raise UsageError(f"{path}: this part is given twice; give every part once")
        if path.resolve() == into.resolve():
            raise UsageError(f"{path}: a part cannot be merged into itself; give another folder with --into")
        places[path.resolve()] = path
    if not places:
        raise UsageError("Nothing to merge: name the folders of all parts")
    if (is_remote(into) or into.is_dir()) and read_part(into) is not None:
        raise UsageError(f"{into}: parts must be merged into a separate store, found a part; give another --into")
    with contextlib.ExitStack() as locks:
        parts = []
        for path in places.values():
            if not is_remote(path) and not path.is_dir():
                raise StoreError(
                    f"{path}: expected a part (a folder written by frevl extract --shard i/n), found "
                    f"{'a file' if path.exists() else 'no such folder'}; check the path, or extract that shard"
                )
            store = Store.open(path)
            _lock(path, locks)
            parts.append(OpenPart(path, _record(path), store.towers, Snapshot(path, ALL_TABLES)))
        parts.sort(key=lambda part: part.record.number)
        _check_numbers(parts)
        _check_alike(parts)
        for part in parts:
            _check_rows(part)
        yield parts, _differences(parts)


def _lock(path: Path, locks: contextlib.ExitStack) -> None:
    if is_remote(path):  # only a copy writes to it, and its last file is the record
        return
    lock = lock_store(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"{path}: another process is extracting or merging this part; wait for it to finish"
        ) from error
    except OSError:  # a read-only folder: nobody can write to it from here
        return
    locks.callback(lock.release)


def _record(path: Path) -> Part:
    record = read_part(path)
    if record is None:
        raise StoreError(
            f"{path}: expected a part, as written by frevl extract --shard i/n, found a complete store; extract its "
            "images and texts with --shard, or use it as it is"
        )
    if not record.complete:
        raise StoreError(
            f"{path}: the shard {record.number}/{record.of} is incomplete: its extraction did not finish; run the "
            f"same command with --shard {record.number}/{record.of} again"
        )
    return record


def _check_numbers(parts: Sequence[OpenPart]) -> None:
    first = parts[0]
    for before, part in pairwise(parts):
        if part.record.of != first.record.of:
            raise StoreError(
                f"{part.path}: this is a shard of {part.record.of}, {first.path} is one of {first.record.of}; extract "
                "all parts with the same number of shards"
            )
        if part.record.number == before.record.number:
            raise StoreError(
                f"{part.path}: the shard {part.record.number}/{part.record.of} is given twice, also as {before.path}; "
                "give every shard once"
            )
    there = {part.record.number for part in parts}
    missing = [number for number in range(1, first.record.of + 1) if number not in there]
    if missing:
        named = ", ".join(map(str, missing[:_SHOWN])) + (" and more" if len(missing) > _SHOWN else "")
        raise StoreError(
            f"{len(missing):,} of {first.record.of:,} shards are missing: {named}; extract them with --shard, and give "
            "all parts at once"
        )


def _check_alike(parts: Sequence[OpenPart]) -> None:
    """Refuse parts of different versions, lists or encoders."""
    first = parts[0]
    for part in parts[1:]:
        again = f"run frevl extract --shard {part.record.number}/{part.record.of} again, with the options of the others"
        if part.record.frevl != first.record.frevl:
            raise StoreError(
                f"{part.path}: frevl {part.record.frevl} made this part, frevl {first.record.frevl} made {first.path}; "
                "extract all parts with one version"
            )
        for what, digest in first.record.lists.items():
            found = part.record.lists.get(what, "")
            if found != digest:
                counts = [listed.partition(":")[0] for listed in (found, digest)]
                raise StoreError(
                    f"{part.path}: its extraction saw a different list of {what} ({counts[0]}) from that of "
                    f"{first.path} ({counts[1]}), as if files or lines were added or removed in between; {again}"
                )
        if part.towers.keys() != first.towers.keys():
            other = sorted(part.towers.keys() ^ first.towers.keys())
            raise StoreError(
                f"{part.path}: its encoders differ from those of {first.path}: only one of the two has "
                f"{', '.join(other)}; {again}"
            )
        for name, tower in part.towers.items():
            check_same(first.towers[name], tower, str(first.path))


def _check_rows(part: OpenPart) -> None:
    for name in ALL_TABLES:
        found, expected = part.at.count(name), part.record.rows.get(name, 0)
        if found != expected:
            raise StoreError(
                f"{part.path}: the table '{name}' has {found:,} rows, but had {expected:,} when its extraction ended; "
                f"run frevl extract --shard {part.record.number}/{part.record.of} again"
            )


def _differences(parts: Sequence[OpenPart]) -> list[str]:
    """Return notes on where parts with the same identity may differ in the last digits."""
    notes = []
    names = {name for part in parts for name in part.record.libraries}
    versions = {name: sorted({part.record.libraries.get(name, "none") for part in parts}) for name in sorted(names)}
    several = [f"{name} {' and '.join(found)}" for name, found in versions.items() if len(found) > 1]
    if several:
        notes.append(
            f"The parts were made with different versions of libraries ({'; '.join(several)}), so their embeddings may "
            "differ in the last digit."
        )
    first = parts[0].towers
    other = [n for n in first if any(not np.array_equal(part.towers[n].canaries, first[n].canaries) for part in parts)]
    if other:
        notes.append(
            f"The embeddings by {', '.join(other)} differ in the last digits between the machines of the parts; the "
            f"store keeps the canaries of the shard 1/{parts[0].record.of}."
        )
    return notes
