"""Verify a store by reading all of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from frevl.errors import StoreError, counted
from frevl.store.commits.failures import reading
from frevl.store.commits.record import commits_folder, lost_commits, manifests, read_commit, table_folder
from frevl.store.commits.session import read_session, unclaimed_files
from frevl.store.commits.soundness import file_problems, wrong_ids
from frevl.store.commits.unfinished import unfinished_work
from frevl.store.ids.hashing import id_hashes
from frevl.store.lance_tables import ALL_TABLES, Snapshot, open_committed
from frevl.store.reader import TABLES, Store
from frevl.store.remote.address import is_remote, place_of
from frevl.store.sharding.shares import read_part
from frevl.store.towers import Modality, Tower
from frevl.store.upkeep.image_files import image_problems

if TYPE_CHECKING:
    import lance

__all__ = ["bytes_on_disk", "describe", "repeated_ids", "verify"]


def describe(store: Store) -> dict[str, Any]:
    """Describe the contents of a store, as printed by `frevl store info`."""
    rejects, part = store.rejects(), read_part(store.path)
    return {
        "path": str(store.path),
        "unfinished": unfinished_work(store.path),
        **({} if part is None else {"shard": f"{part.number}/{part.of}", "complete": part.complete}),
        "fingerprint": store.fingerprint,
        "bytes": bytes_on_disk(store.path),
        "images": store.count("image"),
        "texts": store.count("text"),
        "rejects": dict(Counter(reject.kind for reject in rejects)),
        "rejected": [vars(reject) for reject in rejects],
        "encoders": store.encoders,
        "towers": [
            {
                "name": tower.name,
                "modality": tower.modality,
                "encoders": list(tower.encoders),
                "dim": tower.dim,
                "fingerprint": tower.fingerprint,
                "lacking": store.count(tower.modality) - store.filled(tower),
                "identity": tower.identity,
            }
            for tower in store.towers.values()
        ],
    }


def verify(path: str | Path, *, images: str | Path | None = None) -> list[str]:
    """Read every embedding and report all problems.

    Reports tables that lost commits, and files that are missing, truncated or belong to no version. Every embedding is
    compared with its stored checksum.

    Args:
        path: Folder of the store.
        images: Folder of its images, to compare the files with what was embedded.

    Returns:
        One sentence per problem; empty if the store is intact.

    Raises:
        StoreError: There is no store at this path.
        InputError: The folder of images does not exist.
    """
    path = place_of(path)
    of_files = [] if is_remote(path) else ALL_TABLES  # in an object store, a table that can be opened has its files
    damaged = {name: _file_problems(path, name) if name in of_files else [] for name in ALL_TABLES}
    # A table without its manifest is found by the record of its commits and by its files, and reported once.
    problems = list(dict.fromkeys(one for name in of_files for one in (*_commit_problems(path, name), *damaged[name])))
    try:
        store = Store.open(path)
    except StoreError as error:
        if not problems and (is_remote(path) or not (path / "towers.lance").is_dir()):
            raise
        return problems or [f"{error}."]
    for modality, name in TABLES.items():
        if damaged[name]:
            continue
        states = store.states(modality)
        repeated = repeated_ids(path, name)
        if repeated:
            said = counted(len(repeated), "id appears", "ids appear")
            problems.append(f"Table '{name}': {said} twice, the first is '{repeated[0]:.80}'.")
        for tower in store.select_towers(modality):
            has = states[f"has:{tower.name}"]
            if not has.all():
                problems.append(
                    f"Tower '{tower.name}': {int((~has).sum()):,} of {len(has):,} {modality}s lack an embedding; "
                    f"{tower.remedy}."
                )
            problems += _embedding_problems(store, modality, tower)
    if images is not None and not damaged["images"]:
        problems += image_problems(store, images)
    return problems


def repeated_ids(path: Path, name: str) -> list[str]:
    """Return ids that occur in several rows of a table, in order; candidates are found by hash."""
    at = Snapshot(path, (name,))
    hashes = np.concatenate([np.zeros(0, np.uint64), *(id_hashes(batch["id"]) for batch in at.scan(name, ["id"]))])
    order = np.argsort(hashes, kind="stable")
    same = hashes[order][1:] == hashes[order][:-1]
    if not same.any():
        return []
    rows = np.unique(np.concatenate([order[1:][same], order[:-1][same]]))
    return [id_ for id_, count in Counter(at.ids(name, rows)).items() if count > 1]


def _commit_problems(path: Path, name: str) -> list[str]:
    """Compare a table with the record of its last commit, and report data that belong to no version."""
    with reading(path, name):
        commit = read_commit(path, name)
        lost = lost_commits(path, name, commit)
    if lost:
        return [f"{lost}."]
    problems = []
    try:
        in_flight = read_session(path)  # before the files, because a writer may start meanwhile
        table = open_committed(path, name)
        if table is not None and commit is not None and commit.version in manifests(path, name):
            file = manifests(path, name)[commit.version]
            if file.read_bytes() != commit.manifest:
                problems.append(
                    f"The table '{name}' has a manifest, {file}, that differs from its copy in {commits_folder(path)}; "
                    f"run frevl store repair {path}."
                )
        unclaimed = unclaimed_files(path, name)
        if in_flight is not None:  # data being written, now or when a writer was killed, are not lost
            unclaimed &= in_flight.get(name, set())
    except StoreError:
        return []  # reported by `_file_problems`
    if unclaimed:
        first = table_folder(path, name) / "data" / min(unclaimed)
        problems.append(
            f"The table '{name}' has {counted(len(unclaimed), 'data file that belongs', 'data files that belong')} to "
            f"none of its versions, the first is {first}; nothing is deleted, and frevl store repair {path} recovers "
            "the rows."
        )
    return problems


def _file_problems(path: Path, name: str) -> list[str]:
    """List the files of a table that are missing, changed in size, or unreadable."""
    try:
        table = open_committed(path, name)
    except StoreError as error:
        return [f"{error}."]
    if table is None:
        return []
    problems: list[str] = []
    plain = [field.name for field in table.schema if not _is_embedding(field.type)]
    for fragment in table.get_fragments():
        lost = file_problems(path, name, fragment)
        problems += lost or _read_problems(path, name, fragment, lambda part: part.to_table(columns=plain))
    return problems


def _read_problems(
    path: Path, name: str, fragment: lance.LanceFragment, read: Callable[[lance.LanceFragment], object]
) -> list[str]:
    """Try to read a part of a table, and report its file if that fails."""
    try:
        with reading(path, name):
            read(fragment)
    except StoreError as error:
        files = ", ".join(f"{path}/{name}.lance/data/{file.path}" for file in fragment.data_files())
        cause = " ".join(str(error.__cause__ or error).split()).partition(", /")[0]
        return [f"The table '{name}' has a file that cannot be read, {files}: {cause:.200}."]
    return []


def _is_embedding(kind: pa.DataType) -> bool:
    vector: bool = pa.types.is_fixed_size_list(kind.value_type if pa.types.is_list(kind) else kind)
    return vector


def _embedding_problems(store: Store, modality: Modality, tower: Tower) -> list[str]:
    """Compare every embedding by a tower with its checksum, file by file."""
    name = TABLES[modality]
    table = open_committed(store.path, name)
    problems: list[str] = []
    wrong: list[str] = []
    for fragment in [] if table is None or tower.name not in table.schema.names else table.get_fragments():
        problems += _read_problems(store.path, name, fragment, lambda part: wrong.extend(wrong_ids(part, tower)))
    if wrong:
        problems.append(
            f"Tower '{tower.name}': "
            f"{counted(len(wrong), 'embedding differs from its checksum', 'embeddings differ from their checksums')}, "
            f"the first is of '{wrong[0]:.80}'."
        )
    return problems


def bytes_on_disk(path: Path) -> int:
    """Return a store's size on disk in bytes; in an object store, that of its data files."""
    if is_remote(path):
        tables = Snapshot(path, ALL_TABLES)
        return sum(tables.data_bytes(name) for name in ALL_TABLES)
    size = 0
    for file in path.rglob("*"):
        try:
            size += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # a writer has tidied up meanwhile
            continue
    return size
