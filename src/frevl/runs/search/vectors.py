"""The first stage's vectors of all items in a store, cached there and memory-mapped: nothing is projected twice.

``STORE/vectors/KEY/images`` holds parts of up to 65,536 rows (``.npy``, float16, and ``.arrow`` with ids and content
hashes) and ``state.json``, which is written last and names the valid parts, so that a killed process loses no committed
part. KEY is a hash of the run's network and towers. Rows are only appended, so row numbers stay valid.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from frevl.errors import StoreError
from frevl.files import replace_file, write_json
from frevl.runs.scorer import Scorer
from frevl.store.commits.unfinished import unfinished_work
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import TABLES, Store
from frevl.store.remote.address import cache_of, is_remote
from frevl.store.towers import Modality
from frevl.terminal import ProgressLine

__all__ = ["PART_ROWS", "Shortlist"]

PART_ROWS = 65_536
FORMAT = 1
_MOST_DEAD = 0.1  # share of outdated rows above which everything is recomputed


@dataclass(frozen=True)
class _Part:
    """One file of vectors, memory-mapped."""

    name: str
    vectors: np.ndarray = field(repr=False)
    described: pa.Table = field(repr=False)


class Shortlist:
    """The vectors by which a run's first stage ranks all images, or all texts, of a store.

    Args:
        scorer: A run with a first stage, and its store.
        modality: ``image`` or ``text``.
        progress: Show a progress line while vectors are computed.

    Attributes:
        folder: Folder of the vectors.
        generation: Changes whenever rows are renumbered.
        notes: Notes for the user.

    Raises:
        UsageError: The run has no first stage.
        StoreError: The store or the vectors are damaged.
    """

    def __init__(self, scorer: Scorer, modality: Modality, *, progress: bool = False) -> None:
        self.scorer, self.modality = scorer, modality
        place = scorer.store.path
        self.folder = (cache_of(place) if is_remote(place) else place) / "vectors" / key_of(scorer) / TABLES[modality]
        self.notes = unfinished_work(place)
        self._parts: list[_Part] = []
        self._dead: set[int] = set()
        self._load()
        if self._version != scorer.store.version(modality):
            # The scorer may have opened the store long ago, and another process may have added vectors since.
            newest = Store.open(scorer.store.path)
            if self._version != newest.version(modality):
                self._catch_up(newest, progress=progress)

    def __len__(self) -> int:
        """Count the rows, including outdated ones."""
        return sum(len(part.vectors) for part in self._parts)

    @property
    def blocks(self) -> list[np.ndarray]:
        """Return blocks of ``(rows, d)`` float16 that together hold all rows in order."""
        return [part.vectors for part in self._parts]

    @property
    def usable(self) -> int:
        """Count the searchable rows."""
        return len(self) - len(self._dead)

    def ids(self, rows: np.ndarray) -> list[str]:
        """Return the ids of some rows."""
        found = self._described("id").take(pa.array(rows, pa.int64()))
        ids: list[str] = found.to_pylist()
        return ids

    def contents(self, rows: np.ndarray) -> list[str]:
        """Return the content hashes of some rows at the time their vectors were computed."""
        found = self._described("content_hash").take(pa.array(rows, pa.int64()))
        contents: list[str] = found.to_pylist()
        return contents

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Return ``(rows,)`` bool: True for the rows of these ids, False for outdated rows."""
        chosen: np.ndarray = pc.is_in(self._described("id"), value_set=pa.array(ids, pa.string())).to_numpy()
        chosen[list(self._dead)] = False
        return chosen

    def alive(self) -> np.ndarray | None:
        """Return ``(rows,)`` bool, False for outdated rows; None if there are none."""
        if not self._dead:
            return None
        alive = np.ones(len(self), bool)
        alive[list(self._dead)] = False
        return alive

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return the ``(n, d)`` float16 vectors of some rows."""
        starts = np.cumsum([0, *(len(part.vectors) for part in self._parts)])
        of = np.searchsorted(starts, rows, side="right") - 1
        taken = np.empty((len(rows), self._parts[0].vectors.shape[1] if self._parts else 0), np.float16)
        for number in np.unique(of):
            taken[of == number] = self._parts[number].vectors[rows[of == number] - starts[number]]
        return taken

    def _described(self, column: str) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for part in self._parts for chunk in part.described[column].chunks], pa.string())

    # ---- on disk

    def _load(self) -> None:
        self._forget()
        if not (self.folder / "state.json").is_file():
            return
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
            if state["format"] != FORMAT:
                raise ValueError("another format")
            self._parts = [self._open(name, rows) for name, rows in state["parts"]]
            self._dead, self._version = set(state["dead"]), state["version"]
            self.generation = state["generation"]
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
            self.notes.append(f"{self.folder} was damaged; the vectors were recomputed.")
            self._forget()

    def _forget(self) -> None:
        self._parts, self._dead, self._version = [], set(), None
        self.generation = uuid.uuid4().hex  # rows get new numbers, so an index of the old ones is invalid

    def _open(self, name: str, rows: int) -> _Part:
        vectors = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        with pa.memory_map(str(self.folder / f"{name}.arrow")) as source:
            described = pa.ipc.open_file(source).read_all()
        if not len(vectors) == len(described) == rows:
            raise ValueError("a part was truncated")
        return _Part(name, vectors, described)

    def _save(self) -> None:
        parts = [(part.name, len(part.vectors)) for part in self._parts]
        state = {"parts": parts, "dead": sorted(self._dead), "version": self._version, "generation": self.generation}
        write_json(self.folder / "state.json", {"format": FORMAT, **state})

    # ---- new, changed and lost items

    def _catch_up(self, store: Store, *, progress: bool) -> None:
        """Compute missing vectors, in one process at a time."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock")
            lock.acquire()
        except OSError as error:
            self.notes.append(
                f"{self.folder} cannot be written ({error.strerror or error}), so every process recomputes the "
                "vectors of the first stage."
            )
            self._add_missing(store, keep=False, progress=progress)
            return
        try:
            self._load()  # another process may have done so in the meantime
            if self._version != store.version(self.modality):
                self._add_missing(store, keep=True, progress=progress)
        except OSError as error:
            raise StoreError(
                f"{self.folder}: the vectors of the first stage cannot be written ({error.strerror or error}); "
                "free some space or correct the permissions, and try again"
            ) from error
        finally:
            lock.release()

    def _add_missing(self, store: Store, *, keep: bool, progress: bool) -> None:
        states = store.states(self.modality)
        towers = [states[f"has:{name}"] for name in self.scorer.run.towers[self.modality]]
        complete = np.logical_and.reduce(towers)
        known = store.positions(self.modality)
        there = self._mark_outdated(known, states["content_hash"], complete)
        if len(self._dead) > _MOST_DEAD * len(self):
            self._forget()
            there[:] = False
        missing = np.flatnonzero(complete & ~there)
        title = f"vectors of {TABLES[self.modality]}"
        with ProgressLine(title, len(missing), enabled=progress and len(missing) > 10_000) as line:
            for start in range(0, len(missing), PART_ROWS):
                rows = missing[start : start + PART_ROWS]
                ids = store.ids(self.modality, rows)
                self._add(ids, states["content_hash"][rows].astype(str).tolist(), keep=keep)
                line.advance(len(ids), note=f"{line.rate:.0f}/s")
        self._version = store.version(self.modality)
        if keep:
            self._save()
            self._sweep()

    def _mark_outdated(self, known: Mapping[str, int], hashes: np.ndarray, complete: np.ndarray) -> np.ndarray:
        """Mark rows whose item was removed or changed; return which rows of the store have vectors.

        Args:
            known: The row of every id of the store.
            hashes: ``(n,)`` content hash of every row of the store.
            complete: ``(n,)`` bool, whether the row has the embeddings that the first stage reads.
        """
        there = np.zeros(len(complete), bool)
        first = 0
        for part in self._parts:
            rows = find_rows(known, part.described["id"].combine_chunks())
            own = np.array(part.described["content_hash"].to_pylist(), hashes.dtype)
            same = rows >= 0
            same[same] = complete[rows[same]] & (hashes[rows[same]] == own[same])
            self._dead.update((first + np.flatnonzero(~same)).tolist())
            living = [row for row in np.flatnonzero(same).tolist() if first + row not in self._dead]
            there[rows[living]] = True
            first += len(rows)
        return there

    def _add(self, ids: list[str], hashes: list[str], *, keep: bool) -> None:
        """Compute the vectors of up to 65,536 items; the last part grows until it is full."""
        of = self.scorer.image_vectors if self.modality == "image" else self.scorer.text_vectors
        blocks = (ids[start : start + 8192] for start in range(0, len(ids), 8192))
        vectors = np.concatenate([of(block).astype(np.float16) for block in blocks])
        described = pa.table({"id": pa.array(ids, pa.string()), "content_hash": pa.array(hashes, pa.string())})
        last = self._parts[-1] if self._parts else None
        if last is not None and len(last.vectors) + len(ids) <= PART_ROWS:
            vectors = np.concatenate([last.vectors, vectors])
            described = pa.concat_tables([last.described, described])
            self._parts.pop()
        name = hashlib.sha256("\n".join([*described["id"].to_pylist(), *hashes]).encode()).hexdigest()[:16]
        part = _Part(name, vectors, described.combine_chunks())
        if keep:
            replace_file(self.folder / f"{name}.npy", lambda path: _write_npy(path, vectors))
            replace_file(self.folder / f"{name}.arrow", lambda path: _write_arrow(path, part.described))
            part = self._open(name, len(vectors))
        self._parts.append(part)
        if keep:
            self._save()

    def _sweep(self) -> None:
        """Delete outdated parts; processes that have mapped them can still read them."""
        kept = {part.name for part in self._parts}
        for path in self.folder.iterdir():
            if path.suffix in (".npy", ".arrow") and path.stem not in kept:
                path.unlink(missing_ok=True)


def key_of(scorer: Scorer) -> str:
    """Return a hash of everything in a run that can change a first-stage vector."""
    run = scorer.run
    known: dict[str, Any] = {"network": run.network_name, "settings": run.network_settings, "towers": run.towers}
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode())
    for name, value in sorted(run.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _write_npy(path: Path, vectors: np.ndarray) -> None:
    with path.open("wb") as file:
        np.save(file, np.ascontiguousarray(vectors))


def _write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
