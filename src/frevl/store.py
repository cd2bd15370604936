"""Embeddings on disk with their identity: four Lance tables in a folder (see docs/store.md).

``images`` and ``texts`` hold one row an item and one column a tower, ``towers`` holds the identity of every
column, ``rejects`` what could not be used. Every write is one atomic Lance commit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

# Lance warns on standard error of what is normal here (a first commit makes its table).
os.environ.setdefault("LANCE_LOG", "error")

import lance
import numpy as np
import pyarrow as pa

from frevl.embeddings import pool
from frevl.errors import StoreError, UsageError, nearest
from frevl.rejects import Reject
from frevl.towers import Modality, Tower, fingerprint_of, from_rows

__all__ = ["TABLES", "Store"]

TABLES: dict[Modality, str] = {"image": "images", "text": "texts"}


class Store:
    """A store opened at one version: what is written later is seen after `Store.open` is called again.

    Open one with `Store.open`, or with `Store.create` to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tables: dict[str, lance.LanceDataset] = {}
        self._positions: dict[Modality, dict[str, int]] = {}
        self.towers: dict[str, Tower] = {tower.name: tower for tower in self._read_towers()}

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store for reading.

        Raises:
            StoreError: There is no store at this path, or it was written by a newer frevl.
        """
        path = Path(path)
        if not (path / "towers.lance").is_dir():
            raise StoreError(
                f"{path}: expected a store (a folder with 'towers.lance'), found "
                f"{'none in that folder' if path.is_dir() else 'no such folder'}; make one with: "
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
        table = self._table(TABLES[modality])
        if table is None:
            return []
        try:
            ids: list[str] = table.to_table(columns=["id"])["id"].to_pylist()
        except (OSError, ValueError) as error:
            raise self._damaged(modality, error) from error
        return ids

    def rejects(self) -> list[Reject]:
        """Return what could not be used, with reasons."""
        table = self._table("rejects")
        rows = [] if table is None else table.to_table().to_pylist()
        return [Reject(row["kind"], row["id"], row["reason"]) for row in rows]

    def states(self, modality: Modality) -> dict[str, np.ndarray]:
        """Return what is known of every item, in the order of its rows.

        Returns:
            ``content_hash`` (n,) bytes, ``bytes`` (n,) int64, ``modified_ns`` (n,) int64, and for every tower
            of this modality ``has:NAME`` (n,) bool, False where the item still lacks that embedding.
        """
        table = self._table(TABLES[modality])
        towers = [tower.name for tower in self.towers.values() if tower.modality == modality]
        if table is None:
            empty = np.zeros(0, np.int64)
            hashes = np.zeros(0, "S32")
            flags = {f"has:{name}": np.zeros(0, bool) for name in towers}
            return {"content_hash": hashes, "bytes": empty, "modified_ns": empty, **flags}
        plain = table.to_table(columns=["content_hash", "bytes", "modified_ns"])
        states = {
            "content_hash": np.array(plain["content_hash"].to_pylist(), dtype="S32"),
            "bytes": plain["bytes"].to_numpy(),
            "modified_ns": plain["modified_ns"].to_numpy(),
        }
        for name in towers:
            has = np.ones(len(plain), bool)
            if name not in table.schema.names:
                has[:] = False
            else:
                # Nulls are asked for by filter: reading the column would load every embedding.
                lacking = table.to_table(columns=["id"], filter=f"`{name}` IS NULL")["id"].to_pylist()
                rows = self.positions(modality)
                has[[rows[id_] for id_ in lacking]] = False
            states[f"has:{name}"] = has
        return states

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
            ``(n, dim)`` float32, each tower of unit length; with ``tokens=True`` a pair of ``(n, tokens, dim)``
            float32 and a ``(n, tokens)`` bool mask. Tokens are pooled by their mean if ``tokens=False``.

        Raises:
            StoreError: An id is not in the store, or lacks an embedding of one of the towers.
            UsageError: An encoder is not in the store.
        """
        values, mask = self.read("image", ids, self.select_towers("image", encoders))
        return (values.astype(np.float32), mask) if tokens else pool(values, mask)

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
        values, mask = self.read("text", texts, self.select_towers("text", encoders))
        return (values.astype(np.float32), mask) if tokens else pool(values, mask)

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
        table = self._take(modality, unique, [tower.name for tower in towers])
        parts = []
        for tower in towers:
            column = table[tower.name]
            if column.null_count:
                raise StoreError(
                    f"{self.path}: {column.null_count:,} of {len(unique):,} {modality}s have no embedding of the "
                    f"tower '{tower.name}'; an extraction was cut short: run frevl extract again with "
                    f"--encoder {tower.encoders[0]}"
                )
            parts.append(_to_numpy(column, tower.dim))
        if len({values.shape[1] for values, _ in parts}) > 1:
            found = ", ".join(f"{t.name}: {values.shape[1]}" for t, (values, _) in zip(towers, parts, strict=True))
            raise StoreError(
                f"{self.path}: the towers have different numbers of tokens ({found}) and cannot be concatenated; "
                "choose one encoder with --encoder"
            )
        values = parts[0][0] if len(parts) == 1 else np.concatenate([v for v, _ in parts], axis=2)
        return values[inverse], parts[0][1][inverse]

    def content_hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """Return the content hash of each of these images that is in the store."""
        known = self.positions("image")
        present = [id_ for id_ in dict.fromkeys(ids) if id_ in known]
        if not present:
            return {}
        rows = np.array([known[id_] for id_ in present])
        order = np.argsort(rows)
        hashes = self._take("image", rows[order], ["content_hash"])["content_hash"].to_pylist()
        return {present[i]: hash_ for i, hash_ in zip(order, hashes, strict=True)}

    # ---- tables

    def _table(self, name: str) -> lance.LanceDataset | None:
        if name not in self._tables:
            if not (self.path / f"{name}.lance").is_dir():
                return None
            try:
                self._tables[name] = lance.dataset(str(self.path / f"{name}.lance"))
            except (OSError, ValueError) as error:
                # A first commit that was killed leaves a folder without a manifest: the table does not exist yet.
                if not list((self.path / f"{name}.lance").glob("_versions/*.manifest")):
                    return None
                raise StoreError(f"{self.path}: the table '{name}' cannot be read ({_first_line(error)})") from error
        return self._tables[name]

    def _take(self, modality: Modality, rows: np.ndarray, columns: list[str]) -> pa.Table:
        table = self._table(TABLES[modality])
        if table is None:
            raise StoreError(f"{self.path}: the store has no {modality}s; run frevl extract first")
        try:
            # A scan reads sequentially and is faster than a take as soon as most rows are wanted.
            if 2 * len(rows) > table.count_rows():
                return table.to_table(columns=columns).take(pa.array(rows))
            return table.take(rows, columns=columns)
        except (OSError, ValueError) as error:
            raise self._damaged(modality, error) from error

    def _damaged(self, modality: Modality, error: Exception) -> StoreError:
        return StoreError(
            f"{self.path}: the table '{TABLES[modality]}' cannot be read ({_first_line(error)}); files of the "
            "store are damaged or missing: bring them back from a copy, or delete the store and extract again"
        )

    def _read_towers(self) -> list[Tower]:
        table = self._table("towers")
        return [] if table is None else from_rows(table.to_table().to_pylist(), str(self.path))


def _to_numpy(column: pa.ChunkedArray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn a column without nulls into ``(n, tokens, dim)`` and a mask ``(n, tokens)``."""
    array = column.combine_chunks()
    if pa.types.is_fixed_size_list(array.type):
        values = array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), 1, dim)
        return values, np.ones((len(array), 1), bool)
    lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    flat = array.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    longest = int(lengths.max(initial=1))
    mask = np.arange(longest) < lengths[:, None]
    if mask.all():
        return flat.reshape(len(array), longest, dim), mask
    values = np.zeros((len(array), longest, dim), flat.dtype)
    values[mask] = flat
    return values, mask


def _first_line(error: Exception) -> str:
    """Return the part of a Lance error that a user can read."""
    return str(error).splitlines()[0].partition(", /")[0][:200]
