"""Remove items from a store, and free the disk space of removed and replaced ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from frevl.errors import UsageError, counted, nearest
from frevl.store.importing.formats import read_ids
from frevl.store.lance_tables import Snapshot
from frevl.store.reader import TABLES, Store
from frevl.store.remote.address import is_remote
from frevl.store.towers import Modality
from frevl.store.upkeep.verification import bytes_on_disk
from frevl.store.writer import StoreWriter

__all__ = ["CompactionReport", "RemovalReport", "compact", "remove"]

_BATCHES_AT_ONCE = 64
_KEPT_FOR_A_DAY = (
    "Versions of the last day are kept for processes that read them; a later compaction or extraction deletes them."
)
_OF: dict[str, Modality] = {"images": "image", "texts": "text"}


@dataclass
class RemovalReport:
    """The result of a removal.

    Attributes:
        store: Path of the store.
        of: ``images`` or ``texts``.
        removed: Number of items removed.
        left: Number of items that remain in the store.
        unknown: Ids that are not in the store.
    """

    store: str
    of: str
    removed: int = 0
    left: int = 0
    unknown: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl store remove --json` writes."""
        return dict(vars(self))

    def sentence(self) -> str:
        """Return a one-line summary."""
        said = [f"Removed {counted(self.removed, self.of.removesuffix('s'))}; {self.left:,} remain."]
        if self.unknown:
            unknown = counted(len(self.unknown), "id is", "ids are")
            said.append(f"{unknown} not in the store (the first is '{self.unknown[0]:.200}').")
        if self.removed:
            source = "files" if self.of == "images" else "lines of pairs files"
            said.append(
                f"An extraction will embed them again unless their {source} are removed, too. frevl store compact "
                f"{self.store} frees their space."
            )
        return " ".join(said)


@dataclass(frozen=True)
class CompactionReport:
    """The result of a compaction.

    Attributes:
        store: Path of the store.
        bytes_before: Size on disk before.
        bytes_after: Size on disk after. In an object store both are those of the newest version.
        notes: Notes for the user.
    """

    store: str
    bytes_before: int
    bytes_after: int
    notes: list[str] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl store compact --json` writes."""
        return dict(vars(self))

    def sentence(self) -> str:
        """Return a one-line summary."""
        done = f"{self.store}: {self.bytes_before / 1e6:,.1f} MB before, {self.bytes_after / 1e6:,.1f} MB after."
        return " ".join([done, *self.notes])


def remove(
    store: str | Path, *, ids: Sequence[str] | str | Path | None = None, where: str | None = None, of: str = "images"
) -> RemovalReport:
    """Remove images or texts with all their embeddings, in one atomic commit.

    Searches and a running service exclude them as soon as they next check the store.

    Args:
        store: Folder of the store.
        ids: Ids of the items, or a file of ids: text, one per line; a JSON list; JSON lines or a table with a column
            ``id``.
        where: Instead of ids, an SQL condition over ``id``, ``bytes`` and metadata columns.
        of: ``images`` or ``texts``.

    Returns:
        A report of what was removed.

    Raises:
        UsageError: Neither ids nor a condition is given, or both, or an invalid condition.
        InputError: The file of ids cannot be read.
        StoreError: There is no store, or it cannot be written.
    """
    if of not in _OF:
        raise UsageError(f"What to remove must be 'images' or 'texts', found '{of}'. {nearest(of, _OF)}")
    if (ids is None) == (where is None):
        raise UsageError("Specify what to remove: either a file with --ids, or a condition with --where")
    modality = _OF[of]
    Store.open(store)  # raises an error if there is none; a writer would create one
    wanted = None
    if isinstance(ids, str | Path):
        usual = ("id", of[:-1], "path", "url", "caption")
        listed = read_ids(Path(ids), id_column=None, usual=usual, flag="")["id"].to_pylist()
        wanted = [id_ for id_ in listed if id_]
    elif ids is not None:
        wanted = list(ids)
    with StoreWriter(store) as writer:
        if wanted is None:
            wanted = writer.store.matching(modality, where or "")
        there, total = _those_of(writer, modality, wanted)
        removed = writer.remove(modality, there)
        unknown = [id_ for id_ in dict.fromkeys(wanted) if id_ not in there]
        return RemovalReport(str(store), of, removed, total - removed, unknown)


def _those_of(writer: StoreWriter, modality: Modality, wanted: Sequence[str]) -> tuple[set[str], int]:
    """Return which of some ids a store has, and its total, without keeping the store's ids in memory."""
    given = pa.array(wanted, pa.string())
    tables = Snapshot(writer.path, (TABLES[modality],))
    there: set[str] = set()
    batches = (batch["id"] for batch in tables.scan(TABLES[modality], ["id"]))
    while some := list(islice(batches, _BATCHES_AT_ONCE)):  # every look-up builds a table of the given ids
        ids = pa.chunked_array(some)
        there.update(ids.filter(pc.is_in(ids, value_set=given)).to_pylist())
    return there, tables.count(TABLES[modality])


def compact(store: str | Path) -> CompactionReport:
    """Free the disk space of removed and replaced items, and of former versions, at once.

    Otherwise their space is freed gradually as later extractions merge files. Readers of a former version continue with
    the newest.

    Args:
        store: Folder of the store.

    Returns:
        A report of the size before and after.

    Raises:
        StoreError: There is no store, or it cannot be written.
    """
    place = Store.open(store).path
    before = bytes_on_disk(place)
    with StoreWriter(place) as writer:
        writer.compact()
    notes = [_KEPT_FOR_A_DAY] if is_remote(place) else []
    return CompactionReport(str(store), before, bytes_on_disk(place), notes + writer.notes)
