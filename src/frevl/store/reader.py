"""Read stores: embeddings with their identity, in Lance tables in a folder or an object store (see docs/store.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import numpy as np
import pyarrow as pa

from frevl.data.names import as_list, list_or_none
from frevl.encoders.interface import pool
from frevl.errors import Reject, StoreError, UsageError, nearest
from frevl.store.commits.record import check_not_lost, read_commit
from frevl.store.ids.hashing import id_hashes, repeated
from frevl.store.ids.rows_of_ids import ascending, find_rows
from frevl.store.lance_tables import ALL_TABLES, ITEM_COLUMNS, Snapshot
from frevl.store.remote.address import is_remote, place_of
from frevl.store.towers import Modality, Tower, fingerprint_of, from_rows

__all__ = ["TABLES", "Store"]

TABLES: dict[Modality, str] = {"image": "images", "text": "texts"}

A = TypeVar("A")

_ROWS_AT_ONCE = {True: 1024, False: 256}  # pooled embeddings, tokens
_NUMBERS_AT_ONCE = 1 << 21  # numbers of pooled embeddings at once; narrow ones are read faster with more rows


class Store:
    """A store, read at the version that was newest when it was opened.

    If data are missing there, or that version was deleted, reading continues with the newest version. Open a store with
    `Store.open`; `frevl.extract` writes to it. Several threads may read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = Snapshot(self.path, ALL_TABLES)
        rows = [row for batch in self._at.scan("towers") for row in batch.to_pylist()]
        self.towers: dict[str, Tower] = {tower.name: tower for tower in from_rows(rows, str(path))}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store for reading.

        Raises:
            StoreError: There is no store at this path, it is damaged, or it was written by a newer frevl.
        """
        path = place_of(path)
        if not is_remote(path) and not (path / "towers.lance").is_dir():
            check_not_lost(path, "towers", read_commit(path, "towers"))
            found = "a file" if path.is_file() else "none in that folder" if path.is_dir() else "no such folder"
            other = "OTHER" if path.is_file() else path  # a store cannot be made where a file is
            raise StoreError(
                f"{path}: expected a store (a folder with 'towers.lance'), found {found}; make one with: "
                f"frevl extract --images DIR --pairs FILE --encoder packaged --store {other}"
            )
        store = cls(path)
        if store._at.versions["towers"] is None and is_remote(path):
            raise StoreError(f"{path}: expected a store there, found none; copy one: frevl store copy FOLDER {path}")
        return store

    # ---- what is in it

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images, in storage order."""
        return self.ids("image")

    @property
    def texts(self) -> list[str]:
        """All texts, in storage order."""
        return self.ids("text")

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders with towers in the store, in the order they were added."""
        return list(dict.fromkeys(name for tower in self.towers.values() for name in tower.encoders))

    @property
    def fingerprint(self) -> str:
        """Hash over the fingerprints of all towers."""
        return fingerprint_of({name: tower.fingerprint for name, tower in sorted(self.towers.items())})

    def positions(self, modality: Modality) -> Mapping[str, int]:
        """Return the row of every id: a dictionary or, for large tables, an index for `find_rows`.

        The latter reads the store, and raises `StoreError` once that version is deleted; call this again then.
        """
        return self._read(lambda at: at.positions(TABLES[modality]))

    def count(self, modality: Modality) -> int:
        """Return the number of items."""
        return self._read(lambda at: at.count(TABLES[modality]))

    def ids(self, modality: Modality, rows: np.ndarray | None = None) -> list[str]:
        """Return the id of every row, or of some rows in any order."""
        return self._read(lambda at: at.ids(TABLES[modality], rows))

    def filled(self, tower: Tower) -> int:
        """Count the items with an embedding by a tower."""
        return self._read(lambda at: at.filled(TABLES[tower.modality], tower.name))

    def rejects(self) -> list[Reject]:
        """Return the rejected items, with reasons."""
        kept = ["kind", "id", "reason"]
        return self._read(lambda at: [Reject(**row) for some in at.scan("rejects", kept) for row in some.to_pylist()])

    def states(self, modality: Modality) -> dict[str, np.ndarray]:
        """Return the state of every item, in row order.

        Returns:
            ``content_hash`` (n,) bytes, ``bytes`` (n,) int64, ``modified_ns`` (n,) int64, and for every tower of this
                modality ``has:NAME`` (n,) bool, False if the item lacks that embedding.
        """
        towers = [tower.name for tower in self.towers.values() if tower.modality == modality]
        return self._read(lambda at: at.states(TABLES[modality], towers))

    def unread_texts(self, texts: Sequence[str], towers: Sequence[Tower]) -> list[str]:
        """Return the texts of which each of these towers reads less than half, as recorded by the extraction."""
        unread = self._read(lambda at: [row for batch in at.scan("unread") for row in batch.to_pylist()])
        if not unread or not towers:
            return []
        by_tower = [{row["text"] for row in unread if row["tower"] == tower.name} for tower in towers]
        return [text for text in texts if all(text in known for known in by_tower)]

    def version(self, modality: Modality) -> int | None:
        """Return the version of a table of items, which identifies its rows; None if there is no table."""
        return self._read(lambda at: at.versions[TABLES[modality]])

    def metadata(self, modality: Modality) -> dict[str, pa.DataType]:
        """Return the names and types of metadata columns from an import."""
        columns = self._read(lambda at: at.columns(TABLES[modality]))
        # Lists are embeddings, including those of towers added after this store was opened.
        return {f.name: f.type for f in columns if f.name not in ITEM_COLUMNS and not pa.types.is_nested(f.type)}

    def read_metadata(self, modality: Modality, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the metadata of some items, one dictionary each; empty if the store has none."""
        names = list(self.metadata(modality))

        def read(at: Snapshot) -> list[dict[str, Any]]:
            of_ids = self._rows_of(at, modality, ids)
            rows = np.unique(of_ids)
            parts = [at.take(TABLES[modality], name, rows, rows_at_once=8192) for name in names]
            taken = [[value for part in column for value in part.to_pylist()] for column in parts]
            found = {int(row): dict(zip(names, values, strict=True)) for row, *values in zip(rows, *taken, strict=True)}
            return [found[row] for row in of_ids.tolist()]

        return self._read(read) if names else [{} for _ in ids]

    def rows(self, modality: Modality, ids: Sequence[str]) -> pa.Table:
        """Return whole rows with all columns, in the order of the ids, which may repeat.

        Raises:
            StoreError: An id is not in the store.
        """

        def read(at: Snapshot) -> pa.Table:
            unique, inverse = np.unique(self._rows_of(at, modality, ids), return_inverse=True)
            return at.take_rows(TABLES[modality], unique).take(inverse)

        return self._read(read)

    def matching(self, modality: Modality, where: str) -> list[str]:
        """Return the ids of the items that meet an SQL condition.

        Args:
            modality: ``image`` or ``text``.
            where: A condition over ``id``, ``bytes`` and metadata columns, such as
                ``id LIKE 'kitchen/%' AND width >= 640``.

        Raises:
            UsageError: The condition is invalid, or names an unknown column.
        """
        try:
            return self._read(lambda at: at.matching(TABLES[modality], where))
        except UsageError as error:
            names = ", ".join(["id", "bytes", *self.metadata(modality)])
            raise UsageError(f"{error}. Columns of the {modality}s of {self.path}: {names}") from error

    def select_towers(self, modality: Modality, encoders: Sequence[str] | None = None) -> list[Tower]:
        """Return the towers of some encoders, in store order.

        Args:
            modality: ``image`` or ``text``.
            encoders: Names of encoders; None uses all in the store.

        Raises:
            UsageError: An encoder is not in the store.
        """
        encoders = list_or_none(encoders, "encoder")
        for name in encoders or []:
            if name not in self.encoders:
                raise UsageError(
                    f"{self.path}: the store has no embeddings by the encoder '{name}'. " + nearest(name, self.encoders)
                )
        wanted = set(self.encoders if encoders is None else encoders)
        return [
            tower
            for tower in self.towers.values()
            if tower.modality == modality and wanted.intersection(tower.encoders)
        ]

    # ---- reading

    @overload
    def read_images(
        self, ids: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: Literal[False] = False
    ) -> np.ndarray: ...
    @overload
    def read_images(
        self, ids: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: Literal[True]
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def read_images(
        self, ids: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Read image embeddings; the towers of several encoders are concatenated along the width.

        Args:
            ids: Image ids, repeats allowed.
            encoders: Names of encoders; None uses all in the store.
            tokens: Return tokens. A pooled store has one token per item.

        Returns:
            ``(n, dim)`` float32, each tower of unit length (stored tokens are averaged, then normalised); with
                ``tokens=True`` a pair of ``(n, tokens, dim)`` float32, as stored, and a ``(n, tokens)`` bool mask, True
                where a token exists.

        Raises:
            StoreError: An id is not in the store, or lacks an embedding of one of the towers.
            UsageError: An encoder is not in the store.
        """
        return self._read_as("image", ids, self.select_towers("image", encoders), tokens)

    @overload
    def read_texts(
        self, texts: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: Literal[False] = False
    ) -> np.ndarray: ...
    @overload
    def read_texts(
        self, texts: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: Literal[True]
    ) -> tuple[np.ndarray, np.ndarray]: ...
    def read_texts(
        self, texts: Sequence[str], *, encoders: Sequence[str] | None = None, tokens: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Read text embeddings as in `read_images`, with the texts themselves as ids."""
        return self._read_as("text", texts, self.select_towers("text", encoders), tokens)

    def read(self, modality: Modality, ids: Sequence[str], towers: Sequence[Tower]) -> tuple[np.ndarray, np.ndarray]:
        """Read embeddings as stored.

        Args:
            modality: ``image`` or ``text``.
            ids: Ids, repeats allowed.
            towers: At least one tower of this modality; several are concatenated along the width.

        Returns:
            ``(n, tokens, dim)`` in the stored type and a ``(n, tokens)`` bool mask, True where a token exists.

        Raises:
            StoreError: An id or an embedding is missing, or the towers do not have the same tokens.
        """
        ids = as_list(ids, f"{modality} ids")
        if not towers:
            raise StoreError(f"{self.path}: the store has no {modality} embeddings; run frevl extract first")
        parts, inverse = self._read(lambda at: self._read_towers(at, modality, ids, towers))
        masks = [mask for _, mask in parts]
        if not all(np.array_equal(masks[0], mask) for mask in masks[1:]):
            found = ", ".join(f"{t.name}: up to {mask.shape[1]}" for t, mask in zip(towers, masks, strict=True))
            raise StoreError(
                f"{self.path}: the towers have different numbers of tokens ({found}) and cannot be concatenated; "
                "choose one encoder with --encoder"
            )
        values = parts[0][0] if len(parts) == 1 else np.concatenate([v for v, _ in parts], axis=2)
        if inverse is None:  # a copy may be gigabytes
            return values, masks[0]
        return values[inverse], masks[0][inverse]

    def content_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content hashes of some images, leaving out those that are not in the store."""

        def read(at: Snapshot) -> dict[str, str]:
            different = list(dict.fromkeys(ids))
            found = find_rows(at.rows("images"), different)
            there = np.flatnonzero(found >= 0)
            hashes = at.contents("images", found[there]).astype(str).tolist()
            return {different[i]: hash_ for i, hash_ in zip(there.tolist(), hashes, strict=True)}

        return self._read(read)

    def content_column(self, ids: Sequence[str]) -> np.ndarray:
        """Return ``(n,)``: the content hashes of some images, all in the store, as bytes of 32 letters."""
        return self._read(lambda at: at.contents("images", self._rows_of(at, "image", ids)))

    def copies(self, modality: Modality) -> dict[str, str]:
        """Return the items whose content has several ids, mapping each such id to the first."""

        def read(at: Snapshot) -> dict[str, str]:
            name = TABLES[modality]
            hashes = [id_hashes(some["content_hash"]) for some in at.scan(name, ["content_hash"])]
            rows = repeated(np.concatenate([np.zeros(0, np.uint64), *hashes]))
            contents, first = at.contents(name, rows).tolist(), dict[bytes, str]()
            named = zip(at.ids(name, rows), contents, strict=True)
            often = Counter(contents)  # a hash alone is not proof
            return {id_: first.setdefault(content, id_) for id_, content in named if often[content] > 1}

        return self._read(read)

    def _rows_of(self, at: Snapshot, modality: Modality, ids: Sequence[str]) -> np.ndarray:
        rows = find_rows(at.rows(TABLES[modality]), ids)
        if (rows < 0).any():
            missing = ids[int(np.argmax(rows < 0))]
            raise StoreError(f"{self.path}: there is no {modality} '{missing!s:.80}' in the store")
        return rows

    def _read_as(
        self, modality: Modality, ids: Sequence[str], towers: Sequence[Tower], tokens: bool
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        values, mask = self.read(modality, ids, towers)
        if tokens:
            return values.astype(np.float32), mask
        pooled = pool(values, mask)
        start = 0
        for tower in towers:
            part = pooled[:, start : start + tower.dim]
            if not tower.pooled:  # the mean of a coarse grid has only approximately unit length
                part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
            start += tower.dim
        return pooled

    def _read_towers(
        self, at: Snapshot, modality: Modality, ids: Sequence[str], towers: Sequence[Tower]
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray | None]:
        """Read towers at the distinct ids among some; the second result maps back to the given ids, if they differ."""
        rows = find_rows(at.rows(TABLES[modality]), ids)
        missing = np.flatnonzero(rows < 0)
        if len(missing):
            flag = "--images DIR" if modality == "image" else "--pairs FILE"
            imported = next((tower for tower in towers if tower.imported), None)
            remedy = imported.remedy if imported else f"add them with: frevl extract {flag} --store {self.path}"
            raise StoreError(
                f"{self.path}: {len(missing):,} of {len(ids):,} {modality} ids are not in the store (the first is "
                f"'{ids[missing[0]]!s:.80}'); {remedy}"
            )
        unique, inverse = ascending(rows)
        return [self._read_tower(at, modality, unique, tower) for tower in towers], inverse

    def _read_tower(
        self, at: Snapshot, modality: Modality, rows: np.ndarray, tower: Tower
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read one tower at ascending rows: ``(n, tokens, dim)`` in the stored type, and the mask."""
        values = np.zeros((len(rows), 1, tower.dim), tower.identity["dtype"])
        mask = np.zeros((len(rows), 1), bool)
        start = lacking = 0
        rows_at_once = max(_ROWS_AT_ONCE[tower.pooled], tower.pooled * _NUMBERS_AT_ONCE // tower.dim)
        for column in at.take(TABLES[modality], tower.name, rows, rows_at_once=rows_at_once):
            lacking += column.null_count
            if lacking:
                continue
            part = slice(start, start + len(column))
            start += len(column)
            if tower.pooled:
                values[part, 0] = column.flatten().to_numpy().reshape(-1, tower.dim)
                mask[part] = True
                continue
            lengths = column.value_lengths().to_numpy()
            wider = int(lengths.max(initial=1)) - values.shape[1]
            if wider > 0:
                values = np.pad(values, ((0, 0), (0, wider), (0, 0)))
                mask = np.pad(mask, ((0, 0), (0, wider)))
            mask[part] = np.arange(mask.shape[1]) < lengths[:, None]
            values[part][mask[part]] = column.flatten().flatten().to_numpy().reshape(-1, tower.dim)
        if lacking:
            raise StoreError(
                f"{self.path}: {lacking:,} of {len(rows):,} {modality}s have no embedding by the tower "
                f"'{tower.name}'; {tower.remedy}, or choose other encoders with --{modality}-encoder"
            )
        return values, mask

    # ---- versions

    def _read(self, read: Callable[[Snapshot], A]) -> A:
        """Read from the opened versions of the tables or, if that fails, from newer ones.

        Old versions are deleted after a while. Related data are read from one snapshot, because rows move between
        versions and several threads may read.
        """
        at = self._at
        try:
            return read(at)
        except StoreError:
            newest = Snapshot(self.path, ALL_TABLES)
            if newest.versions == at.versions:
                raise
            self._at = newest
            return read(newest)
