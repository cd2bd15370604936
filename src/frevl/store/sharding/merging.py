"""Merge parts into one store; a killed merge continues where it stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.errors import Reject, StoreError, UsageError, counted, rejects_sentence
from frevl.store.commits.soundness import checksums_of, sound_rows
from frevl.store.commits.unfinished import call_of
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.lance_tables import ALL_TABLES, Snapshot
from frevl.store.pictures.extract_tars import in_a_tar
from frevl.store.reader import TABLES
from frevl.store.remote.address import place_of
from frevl.store.sharding.parts import OpenPart, opened
from frevl.store.towers import Modality, Tower
from frevl.store.writer import StoreWriter
from frevl.terminal import ProgressLine

__all__ = ["MergeReport", "combined", "merge"]

_COMMIT_BYTES = 64 << 20  # maximum size of a table's file, so that no files have to be merged later
_COMMIT_ROWS = 65_536
_ROWS_AT_ONCE = 4096  # rows read at random from a part

# Actions for an item of a part.
_NEW, _KEPT, _FILL, _REPLACE = range(4)


@dataclass
class MergeReport:
    """The result of a merge.

    Attributes:
        store: Path of the store.
        parts: Number of parts merged.
        images: Number of images new to the store.
        texts: Number of texts new to the store.
        images_kept: Number of images that the store already had, with all embeddings.
        texts_kept: Number of texts that the store already had, with all embeddings.
        filled: Number of items in the store that got embeddings of further towers.
        replaced: Number of images in the store whose content had changed.
        rejects: Items left out by the parts.
        notes: Notes for the user.
        seconds: Wall time in seconds.
    """

    store: str
    parts: int
    images: int = 0
    texts: int = 0
    images_kept: int = 0
    texts_kept: int = 0
    filled: int = 0
    replaced: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl store merge --json` writes."""
        return {**vars(self), "rejects": [vars(reject) for reject in self.rejects]}

    def sentence(self) -> str:
        """Return a one-line summary."""
        done = (
            f"Merged {counted(self.images, 'image')} and {counted(self.texts, 'text')} of "
            f"{counted(self.parts, 'part')} in {self.seconds:.1f} s; {counted(self.images_kept, 'image')} and "
            f"{counted(self.texts_kept, 'text')} were already in the store."
        )
        changed = [f"{self.filled:,} items got further embeddings."] if self.filled else []
        changed += [f"{self.replaced:,} images had changed and were replaced."] if self.replaced else []
        return " ".join([done, *changed, *self.notes, rejects_sentence(self.rejects)]).rstrip()


def merge(parts: Sequence[str | Path], *, into: str | Path, progress: bool = False) -> MergeReport:
    """Merge all parts of an extraction into one store.

    Ids, embeddings, rejects, identities and canaries are those that a single process would have stored, for any number
    of parts. Rows are added in ascending byte order of ids. Items already in the store are kept; those with different
    content are replaced, as by an extraction. Every commit is atomic, so a killed merge continues when called again.
    The parts are not changed.

    Args:
        parts: Folders of the parts, in any order.
        into: Folder or URL of the store; created if missing.
        progress: Show progress.

    Returns:
        A report of what was done.

    Raises:
        UsageError: A part is given twice, or is the store itself.
        StoreError: A part is missing, incomplete or damaged, or does not belong with the others.
        FingerprintError: The encoders of the parts, or of the store, differ.
    """
    started = time.monotonic()
    if isinstance(parts, str | Path):
        raise UsageError("parts: expected a list of folders, found one path")
    with opened(parts, place_of(into)) as (several, notes):
        report = MergeReport(str(into), len(several), notes=notes)
        with StoreWriter(into, work=call_of("frevl store merge", parts, {})) as writer:
            writer.register(list(several[0].towers.values()))
            for modality in TABLES:
                _merge_items(writer, modality, several, report, progress=progress)
            _merge_unread(writer, several)
            report.rejects = _merge_rejects(writer, several)
    report.notes += writer.notes
    report.seconds = time.monotonic() - started
    return report


@dataclass(frozen=True)
class _Items:
    """The items of all parts in ascending id order.

    Attributes:
        ids: The ids.
        part: ``(n,)``, the part of each item, counted from 0.
        row: ``(n,)``, its row in that part.
        content: ``(n,)``, its content hash.
        has: By tower, ``(n,)`` bool: whether the item has an embedding.
    """

    ids: pa.Array
    part: np.ndarray
    row: np.ndarray
    content: np.ndarray
    has: dict[str, np.ndarray]


def _merge_items(
    writer: StoreWriter, modality: Modality, parts: Sequence[OpenPart], report: MergeReport, *, progress: bool
) -> None:
    towers = [tower for tower in parts[0].towers.values() if tower.modality == modality]
    items = _items_of(modality, parts, [tower.name for tower in towers])
    if not len(items.ids):
        return
    store = Snapshot(writer.path, ALL_TABLES)
    actions = _compare(store, modality, items)
    size = _rows_a_commit(towers, parts, modality)
    with writer.keep_version(modality), ProgressLine(f"{modality}s", len(actions), enabled=progress) as line:
        line.advance(int(np.count_nonzero(actions == _KEPT)))
        for action in (_NEW, _FILL, _REPLACE):
            chosen = np.flatnonzero(actions == action)
            for start in range(0, len(chosen), size):
                some = chosen[start : start + size]
                rows = _read(parts, modality, items, some, towers)
                if action == _NEW:
                    writer.bring_back(modality, rows, known=False)
                else:
                    writer.renew(modality, rows, partial(combined, towers))
                line.advance(len(some))
    counts = np.bincount(actions, minlength=4)
    if modality == "image":
        report.images, report.images_kept = int(counts[_NEW]), int(counts[_KEPT])
    else:
        report.texts, report.texts_kept = int(counts[_NEW]), int(counts[_KEPT])
    report.filled += int(counts[_FILL])
    report.replaced += int(counts[_REPLACE])


def _items_of(modality: Modality, parts: Sequence[OpenPart], towers: Sequence[str]) -> _Items:
    """List the items of all parts; the same text may be a caption in several parts' tars.

    Raises:
        StoreError: Two parts have the same id with different content.
    """
    ids: list[pa.Array] = []
    states = []
    kept = ["content_hash", *(f"has:{tower}" for tower in towers)]
    for part in parts:
        own = [batch["id"].cast(pa.large_string()) for batch in part.at.scan(TABLES[modality], ["id"])]
        ids += own
        found = part.at.states(TABLES[modality], towers)
        states.append((sum(map(len, own)), {name: found[name] for name in kept}))
    counts = [count for count, _ in states]
    owner = np.repeat(np.arange(len(parts)), counts)
    content = np.concatenate([state.pop("content_hash") for _, state in states])
    names = pa.chunked_array(ids, pa.large_string())
    order = pc.sort_indices(names).to_numpy()  # equal ids in the order of their parts
    ordered = names.take(pa.array(order)).combine_chunks()
    del names, ids  # with many millions of items, nothing is kept twice
    if len(ordered) > 1:
        same = np.concatenate([[False], pc.equal(ordered[1:], ordered[:-1]).to_numpy(zero_copy_only=False)])
        again = np.flatnonzero(same[1:])
        other = again[content[order[again + 1]] != content[order[again]]]
        if len(other):
            one, two = (parts[owner[order[other[0] + k]]].path for k in (0, 1))
            raise StoreError(
                f"{two}: the {modality} '{ordered[int(other[0])].as_py()!s:.80}' has different content in {one}; "
                "extract both parts again, into new folders"
            )
        if len(again):
            order, ordered = order[~same], ordered.filter(pa.array(~same))
    return _Items(
        ids=ordered,
        part=owner[order],
        row=np.concatenate([np.arange(count) for count in counts])[order],
        content=content[order],
        has={name: np.concatenate([state[f"has:{name}"] for _, state in states])[order] for name in towers},
    )


def _compare(store: Snapshot, modality: Modality, items: _Items) -> np.ndarray:
    """Return the action for every item."""
    actions, name = np.full(len(items.ids), _NEW, np.int8), TABLES[modality]
    if not store.count(name):
        return actions
    rows = find_rows(store.rows(name), items.ids)
    known = np.flatnonzero(rows >= 0)
    rows = rows[known]
    states = store.states(name, list(items.has))
    lacking = np.zeros(len(known), bool)
    for tower, has in items.has.items():
        lacking |= has[known] & ~states[f"has:{tower}"][rows]
    # The content of an imported image was never seen.
    same = (states["content_hash"][rows] == items.content[known]) | (states["bytes"][rows] == 0)
    actions[known] = np.where(same, np.where(lacking, _FILL, _KEPT), _REPLACE)
    return actions


def _rows_a_commit(towers: Sequence[Tower], parts: Sequence[OpenPart], modality: Modality) -> int:
    """Return the number of rows that make a file of the usual size."""
    table = TABLES[modality]
    size = sum(part.at.data_bytes(table) for part in parts) / max(sum(part.at.count(table) for part in parts), 1)
    return int(min(max(_COMMIT_BYTES // max(size, 1), 1), _COMMIT_ROWS)) if towers else _COMMIT_ROWS


def _read(
    parts: Sequence[OpenPart], modality: Modality, items: _Items, chosen: np.ndarray, towers: Sequence[Tower]
) -> pa.Table:
    """Read whole rows of the parts, in the order of the items.

    Raises:
        StoreError: An embedding differs from its checksum.
    """
    read: list[pa.Table] = []
    at: list[np.ndarray] = []
    for number, part in enumerate(parts):
        own = chosen[items.part[chosen] == number]
        own = own[np.argsort(items.row[own], kind="stable")]
        for start in range(0, len(own), _ROWS_AT_ONCE):
            some = own[start : start + _ROWS_AT_ONCE]
            rows = part.at.take_rows(TABLES[modality], items.row[some])
            for batch in rows.to_batches():
                sound = sound_rows(batch, towers)
                if not sound.all():
                    damaged = batch["id"][int(np.flatnonzero(~sound)[0])].as_py()
                    raise StoreError(
                        f"{part.path}: the {modality} '{damaged!s:.80}' differs from its checksum: the part is "
                        "damaged; extract this shard again, into a new folder"
                    )
            read.append(rows)
            at.append(some)
    order = np.argsort(np.concatenate(at), kind="stable")
    return pa.concat_tables(read, promote_options="default").take(pa.array(order))


def combined(towers: Sequence[Tower], rows: pa.Table, former: pa.Table) -> Iterator[pa.Table]:
    """Yield whole rows for items in the store: with added embeddings, or with new content."""
    if not len(rows):
        return
    seen = pc.and_(pc.not_equal(former["bytes"], 0), pc.not_equal(former["content_hash"], rows["content_hash"]))
    changed = rows.filter(seen)
    for one in former.schema:  # metadata are kept
        if one.name not in rows.column_names and not pa.types.is_nested(one.type):
            changed = changed.append_column(one, former[one.name].filter(seen))
    yield changed
    rows, former = rows.filter(pc.invert(seen)), former.filter(pc.invert(seen))
    needs = np.stack([_has(rows, tower.name) & ~_has(former, tower.name) for tower in towers], axis=1)
    for need in np.unique(needs[needs.any(axis=1)], axis=0):
        group = pa.array(np.flatnonzero((needs == need).all(axis=1)))
        new, old = rows.take(group), former.take(group)
        wanted = [tower for tower, needed in zip(towers, need.tolist(), strict=True) if needed]
        for tower in wanted:
            if tower.name in old.column_names:
                old = old.drop_columns([tower.name])
            old = old.append_column(tower.name, new[tower.name])
        # Checksums cover the content hash recorded in the store: for an imported image, that of its embedding.
        sums = [found for batch in old.to_batches(max_chunksize=1024) for found in checksums_of(batch, wanted)]
        filled = [
            [*before, *({"tower": name, "crc32": crc32} for name, crc32 in found.items())]
            for before, found in zip(old["filled"].to_pylist(), sums, strict=True)
        ]
        index = old.schema.get_field_index("filled")
        yield old.set_column(index, old.schema.field(index), pa.array(filled, old.schema.field(index).type))


def _has(rows: pa.Table, tower: str) -> np.ndarray:
    entries = rows["filled"].to_pylist()
    return np.array([any(entry["tower"] == tower for entry in row) for row in entries], bool)


def _merge_unread(writer: StoreWriter, parts: Sequence[OpenPart]) -> None:
    shares: dict[str, dict[str, float]] = {}
    for part in parts:
        for batch in part.at.scan("unread"):
            for row in batch.to_pylist():
                shares.setdefault(row["tower"], {})[row["text"]] = row["share"]
    for tower, found in sorted(shares.items()):
        writer.note_unread(tower, dict(sorted(found.items())))


def _merge_rejects(writer: StoreWriter, parts: Sequence[OpenPart]) -> list[Reject]:
    """Record the parts' rejects, and clear those that are now usable; return the former, each once."""
    found: dict[tuple[str, str], Reject] = {}
    for part in parts:
        for batch in part.at.scan("rejects", ["kind", "id", "reason"]):
            for row in batch.to_pylist():
                found.setdefault((row["kind"], row["id"]), Reject(**row))
    rejects = [found[key] for key in sorted(found)]
    files = {name for part in parts for name in part.record.pairs}
    former = [one for one in writer.store.rejects() if (one.kind, one.id) not in found]
    lines = [one.id for one in former if one.kind == "pair"]
    writer.clear_rejects("pair", [id_ for id_ in lines if id_.rpartition(":")[0] in files or in_a_tar(id_, files)])
    writer.clear_rejects("image", [one.id for one in former if one.kind == "image" and one.id in files])
    for modality, name in TABLES.items():
        wanted = pa.array([one.id for one in former if one.kind == modality], pa.string())
        if len(wanted):
            batches = [batch["id"] for part in parts for batch in part.at.scan(name, ["id"])]
            usable = {id_ for ids in batches for id_ in ids.filter(pc.is_in(ids, value_set=wanted)).to_pylist()}
            writer.clear_rejects(modality, usable)
    writer.reject(rejects)
    return rejects
