"""Check which rows of a table match their checksums, and which parts are missing a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from frevl.store.commits.record import table_folder
from frevl.store.towers import Tower, checksum

if TYPE_CHECKING:
    import lance

__all__ = ["ROWS_AT_ONCE", "checksums_of", "file_problems", "sound_rows", "wrong_ids"]

ROWS_AT_ONCE = {True: 4096, False: 128}
"""Rows to read at once, for pooled towers and for towers that keep tokens."""


def sound_rows(batch: pa.RecordBatch, towers: Sequence[Tower]) -> np.ndarray:
    """Compare embeddings with their stored checksums.

    Args:
        batch: Rows of ``images`` or ``texts``: ``id``, ``content_hash``, ``filled`` and columns of towers.
        towers: Towers of this modality to check; a column missing from the batch counts as empty.

    Returns:
        ``(n,)`` bool, False where an embedding differs from its checksum, or exists although none is expected.
    """
    known = {tower.name for tower in towers}
    sound = np.ones(len(batch), bool)
    for row, (found, filled) in enumerate(zip(checksums_of(batch, towers), batch["filled"].to_pylist(), strict=True)):
        sound[row] = found == {entry["tower"]: entry["crc32"] for entry in filled or () if entry["tower"] in known}
    return sound


def checksums_of(batch: pa.RecordBatch, towers: Sequence[Tower]) -> Iterator[dict[str, int]]:
    """Yield the checksums of every row's embeddings, by tower.

    Args:
        batch: Rows of ``images`` or ``texts``: ``id``, ``content_hash`` and columns of towers.
        towers: Towers of this modality to check; a column missing from the batch counts as empty.
    """
    columns = [(tower, batch[tower.name]) for tower in towers if tower.name in batch.schema.names]
    for row, (id_, content_hash) in enumerate(
        zip(batch["id"].to_pylist(), batch["content_hash"].to_pylist(), strict=True)
    ):
        sums = {}
        for tower, column in columns:
            if column[row].is_valid:
                values = column[row].values if tower.pooled else column[row].values.flatten()
                sums[tower.name] = checksum(id_, content_hash, values.to_numpy(zero_copy_only=False))
        yield sums


def wrong_ids(fragment: lance.LanceFragment, tower: Tower) -> Iterator[str]:
    """Yield the ids in a table part whose embedding by a tower differs from its checksum."""
    columns = ["id", "content_hash", "filled", tower.name]
    for batch in fragment.to_batches(columns=columns, batch_size=ROWS_AT_ONCE[tower.pooled]):
        yield from (batch["id"][int(row)].as_py() for row in np.flatnonzero(~sound_rows(batch, [tower])))


def file_problems(store: Path, name: str, fragment: lance.LanceFragment) -> list[str]:
    """List the files of a table part that are missing or have changed in size."""
    problems = []
    for file in fragment.data_files():
        place = table_folder(store, name) / "data" / file.path
        if not place.is_file():
            problems.append(f"The table '{name}' has lost its file {place}.")
        elif file.file_size_bytes not in (None, place.stat().st_size):
            problems.append(
                f"The table '{name}' has a damaged file, {place}: expected {file.file_size_bytes:,} bytes, found "
                f"{place.stat().st_size:,}."
            )
    removed = fragment.deletion_file()
    if removed is not None and not (table_folder(store, name) / removed).is_file():
        problems.append(f"The table '{name}' has lost its file {table_folder(store, name) / removed}.")
    return problems
