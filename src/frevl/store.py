"""Embeddings on disk with their identity: four Lance tables in a folder (see docs/store.md).

``images`` and ``texts`` hold one row an item and one column a tower, ``towers`` holds the identity of every
column, ``rejects`` what could not be used. Every write is one atomic Lance commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.embeddings import pool
from frevl.errors import StoreError, UsageError, nearest
from frevl.rejects import Reject
from frevl.tables import open_table, reading
from frevl.towers import Modality, Tower, fingerprint_of, from_rows

if TYPE_CHECKING:
    import lance

__all__ = ["TABLES", "Store"]

TABLES: dict[Modality, str] = {"image": "images", "text": "texts"}

_SCAN_BYTES = 32 << 20  # read ahead of a scan: Lance's own 2 GB would decide the memory of a process
_ROWS_AT_ONCE = {True: 8192, False: 256}  # pooled embeddings, tokens


class Store:
    """A store opened at one version: what is written later is seen after `Store.open` is called again.

    An older version outlives a change by ten minutes; a store that was open for longer goes on with the newest one.
    Open one with `Store.open`; `frevl.extract` writes to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables = self._open_tables()
        self._positions: dict[Modality, dict[str, int]] = {}
        self.towers: dict[str, Tower] = {tower.name: tower for tower in self._read_towers()}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store for reading.

        Raises:
            StoreError: There is no store at this path, it is damaged, or it was written by a newer frevl.
        """
        path = Path(path)
        if not (path / "towers.lance").is_dir():
            found = "a file" if path.is_file() else "none in that folder" if path.is_dir() else "no such folder"
            raise StoreError(
                f"{path}: expected a store (a folder with 'towers.lance'), found {found}; make one with: "
                f"frevl extract --images DIR --pairs FILE --encoder packaged --store {path}"
            )
        return cls(path)

    # ---- what is in it

    @property
    def image_ids(self) -> list[str]:
        """Ids of all images, in the order in which they were stored."""
        return list(self.positions("image"))

    @property
    def texts(self) -> list[str]:
        """All texts, in the order in which they were stored."""
        return list(self.positions("text"))

    @property
    def encoders(self) -> list[str]:
        """Names of the encoders whose towers are in the store, in the order in which they came."""
        return list(dict.fromkeys(name for tower in self.towers.values() for name in tower.encoders))

    @property
    def fingerprint(self) -> str:
        """Hash over the fingerprints of all towers."""
        return fingerprint_of({name: tower.fingerprint for name, tower in sorted(self.towers.items())})

    def positions(self, modality: Modality) -> dict[str, int]:
        """Return the row of every id. About 120 bytes an id of memory; read once."""
        if modality not in self._positions:
            self._positions[modality] = {id_: row for row, id_ in enumerate(self.ids(modality))}
        return self._positions[modality]

    def ids(self, modality: Modality) -> list[str]:
        """Return the id of every row."""
        ids: list[str] = []
        for batch in self._scan(TABLES[modality], ["id"]):
            ids += batch["id"].to_pylist()
        return ids

    def rejects(self) -> list[Reject]:
        """Return what could not be used, with reasons."""
        batches = self._scan("rejects", ["kind", "id", "reason"])
        return [Reject(**row) for batch in batches for row in batch.to_pylist()]

    def states(self, modality: Modality) -> dict[str, np.ndarray]:
        """Return what is known of every item, in the order of its rows.

        Returns:
            ``content_hash`` (n,) bytes, ``bytes`` (n,) int64, ``modified_ns`` (n,) int64, and for every tower
            of this modality ``has:NAME`` (n,) bool, False where the item still lacks that embedding.
        """
        towers = [tower.name for tower in self.towers.values() if tower.modality == modality]
        parts: dict[str, list[np.ndarray]] = {
            "content_hash": [np.zeros(0, "S32")],
            "bytes": [np.zeros(0, np.int64)],
            "modified_ns": [np.zeros(0, np.int64)],
            **{f"has:{name}": [np.zeros(0, bool)] for name in towers},
        }
        # The column 'filled' is there to be asked: looking for nulls would read every embedding.
        for batch in self._scan(TABLES[modality], ["content_hash", "bytes", "modified_ns", "filled"]):
            parts["content_hash"].append(batch["content_hash"].to_numpy(zero_copy_only=False).astype("S32"))
            for name in ("bytes", "modified_ns"):
                parts[name].append(batch[name].to_numpy())
            rows = pc.list_parent_indices(batch["filled"]).to_numpy()
            names = batch["filled"].flatten().field("tower")
            for name in towers:
                has = np.zeros(len(batch), bool)
                has[rows[pc.equal(names, name).to_numpy(zero_copy_only=False)]] = True
                parts[f"has:{name}"].append(has)
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}

    def select_towers(self, modality: Modality, encoders: Sequence[str] | None = None) -> list[Tower]:
        """Return the towers of some encoders, in the order of the store.

        Args:
            modality: ``image`` or ``text``.
            encoders: Names of encoders; None takes all in the store.

        Raises:
            UsageError: An encoder is not in the store.
        """
        for name in encoders or []:
            if name not in self.encoders:
                raise UsageError(
                    f"{self.path}: the store has no embeddings of the encoder '{name}'. " + nearest(name, self.encoders)
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
            encoders: Names of encoders; None takes all in the store.
            tokens: Ask for tokens. A pooled store gives one token an item.

        Returns:
            ``(n, dim)`` float32, each tower of unit length (stored tokens are averaged, then scaled to it); with
            ``tokens=True`` a pair of ``(n, tokens, dim)`` float32, as stored, and a ``(n, tokens)`` bool mask.

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
        """Read text embeddings; as `read_images`, with the texts themselves as ids."""
        return self._read_as("text", texts, self.select_towers("text", encoders), tokens)

    def read(self, modality: Modality, ids: Sequence[str], towers: Sequence[Tower]) -> tuple[np.ndarray, np.ndarray]:
        """Read embeddings as they are stored.

        Args:
            modality: ``image`` or ``text``.
            ids: Ids, repeats allowed.
            towers: At least one tower of this modality; several are concatenated along the width.

        Returns:
            ``(n, tokens, dim)`` in the stored type and a ``(n, tokens)`` bool mask.

        Raises:
            StoreError: An id or an embedding is missing, or the towers do not have the same tokens.
        """
        if not towers:
            raise StoreError(f"{self.path}: the store has no {modality} embeddings; run frevl extract first")
        known = self.positions(modality)
        missing = [id_ for id_ in ids if id_ not in known]
        if missing:
            flag = "--images DIR" if modality == "image" else "--pairs FILE"
            raise StoreError(
                f"{self.path}: {len(missing):,} of {len(ids):,} {modality} ids are not in the store, the first is "
                f"'{missing[0]:.80}'; add them with: frevl extract {flag} --store {self.path}"
            )
        rows = np.fromiter((known[id_] for id_ in ids), np.int64, len(ids))
        unique, inverse = np.unique(rows, return_inverse=True)
        try:
            parts = [self._read_column(modality, unique, tower) for tower in towers]
        except StoreError:
            if not self._renew():
                raise
            return self.read(modality, ids, towers)
        masks = [mask for _, mask in parts]
        if not all(np.array_equal(masks[0], mask) for mask in masks[1:]):
            found = ", ".join(f"{t.name}: up to {mask.shape[1]}" for t, mask in zip(towers, masks, strict=True))
            raise StoreError(
                f"{self.path}: the towers have different numbers of tokens ({found}) and cannot be concatenated; "
                "choose one encoder with --encoder"
            )
        values = parts[0][0] if len(parts) == 1 else np.concatenate([v for v, _ in parts], axis=2)
        if np.array_equal(inverse, np.arange(len(unique))):  # a copy may be gigabytes
            return values, masks[0]
        return values[inverse], masks[0][inverse]

    def content_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these images that is in the store."""
        known = self.positions("image")
        wanted = {known[id_]: id_ for id_ in dict.fromkeys(ids) if id_ in known}
        rows = np.array(sorted(wanted), np.int64)
        hashes = (hash_ for part in self._take("image", rows, "content_hash", 8192) for hash_ in part.to_pylist())
        return {wanted[row]: hash_ for row, hash_ in zip(rows.tolist(), hashes, strict=True)}

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
            if not tower.pooled:  # the mean of a coarse grid is only close to unit length
                part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
            start += tower.dim
        return pooled

    def _read_column(self, modality: Modality, rows: np.ndarray, tower: Tower) -> tuple[np.ndarray, np.ndarray]:
        """Read one tower at rows that ascend: ``(n, tokens, dim)`` in the stored type, and the mask."""
        values = np.zeros((len(rows), 1, tower.dim), tower.identity["dtype"])
        mask = np.zeros((len(rows), 1), bool)
        start = lacking = 0
        for column in self._take(modality, rows, tower.name, _ROWS_AT_ONCE[tower.pooled]):
            lacking += column.null_count
            if lacking:
                continue
            lengths = np.ones(len(column), int) if tower.pooled else column.value_lengths().to_numpy()
            flat = column.flatten() if tower.pooled else column.flatten().flatten()
            wider = int(lengths.max(initial=1)) - values.shape[1]
            if wider > 0:
                values = np.pad(values, ((0, 0), (0, wider), (0, 0)))
                mask = np.pad(mask, ((0, 0), (0, wider)))
            part = slice(start, start + len(column))
            mask[part] = np.arange(mask.shape[1]) < lengths[:, None]
            values[part][mask[part]] = flat.to_numpy().reshape(-1, tower.dim)
            start += len(column)
        if lacking:
            raise StoreError(
                f"{self.path}: {lacking:,} of {len(rows):,} {modality}s have no embedding of the tower '{tower.name}'; "
                f"extract them again with --encoder {tower.encoders[0]}, or choose other encoders with --encoder"
            )
        return values, mask

    # ---- tables

    def _open_tables(self) -> dict[str, lance.LanceDataset | None]:
        return {name: open_table(self.path, name) for name in ("towers", "rejects", *TABLES.values())}

    def _renew(self) -> bool:
        """Go on with the newest version if there is one; older ones are cleaned up after some time."""
        tables = self._open_tables()
        if {n: t and t.version for n, t in tables.items()} == {n: t and t.version for n, t in self._tables.items()}:
            return False
        self._tables, self._positions = tables, {}
        return True

    def _scan(self, name: str, columns: list[str] | None, rows_at_once: int = 8192) -> Iterator[pa.RecordBatch]:
        table = self._tables[name]
        if table is None:
            return
        with reading(self.path, name):
            yield from table.scanner(columns=columns, batch_size=rows_at_once, io_buffer_size=_SCAN_BYTES).to_batches()

    def _take(self, modality: Modality, rows: np.ndarray, column: str, rows_at_once: int) -> Iterator[pa.Array]:
        """Yield a column at rows that ascend, in pieces."""
        name = TABLES[modality]
        table = self._tables[name]
        if table is None or column not in table.schema.names:
            if len(rows):
                yield pa.nulls(len(rows))
            return
        with reading(self.path, name):
            scan = 2 * len(rows) > table.count_rows()
            if not scan:
                for start in range(0, len(rows), rows_at_once):
                    yield from table.take(rows[start : start + rows_at_once], columns=[column])[column].chunks
        if scan:  # sequential reading is faster than a take as soon as most rows are wanted
            first = 0
            for batch in self._scan(name, [column], rows_at_once):
                low, high = np.searchsorted(rows, (first, first + len(batch)))
                yield (
                    batch[column] if high - low == len(batch) else batch[column].take(pa.array(rows[low:high] - first))
                )
                first += len(batch)

    def _read_towers(self) -> list[Tower]:
        rows = [row for batch in self._scan("towers", None) for row in batch.to_pylist()]
        return from_rows(rows, str(self.path))
