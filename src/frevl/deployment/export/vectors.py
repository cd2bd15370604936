"""Write a run's search vectors as a table for vector databases: LanceDB reads it directly, others in batches.

A row has ``id``, ``vector`` (float16 of unit length, so dot product and cosine give the same ranking) and the metadata
columns of the store. Memory use does not grow with the number of rows.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from frevl.data.outputs import refuse_inputs
from frevl.errors import InputError, UsageError
from frevl.files import flush_folder, replace_file
from frevl.runs.scorer import Scorer
from frevl.runs.search.searching import check_searchable
from frevl.runs.search.vectors import Shortlist
from frevl.store.commits.failures import brief
from frevl.store.towers import Modality

__all__ = ["ExportedVectors", "export_vectors"]

_ROWS_AT_ONCE = 8_192
_ROW_GROUP = 65_536  # rows per group of a Parquet file
_FIND: dict[str, Modality] = {"images": "image", "texts": "text"}


@dataclass(frozen=True)
class ExportedVectors:
    """The written table.

    Attributes:
        path: The table.
        find: ``images`` or ``texts``.
        rows: Number of vectors.
        width: Length of a vector.
        columns: Names of all columns.
        notes: Sentences for the user.
    """

    path: Path
    find: str
    rows: int
    width: int
    columns: list[str]
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl export --vectors --json` writes."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in vars(self).items()}

    def sentence(self) -> str:
        """Return the text that the command prints."""
        kept = ", ".join(self.columns)
        line = f"Wrote {self.rows:,} vectors ({self.find}, {self.width:,} numbers each) to {self.path} ({kept})."
        return "\n".join([line, *self.notes])


def export_vectors(
    run: str | Path, out: str | Path, *, store: str | Path | None, find: str = "images", progress: bool = False
) -> ExportedVectors:
    """Write the first stage's vectors of all images, or texts, of a store.

    Args:
        run: Folder of a matching run with a first stage.
        out: ``NAME.lance``, a table that LanceDB opens from its folder, or ``NAME.parquet``. Written completely or not
            at all.
        store: Store with the embeddings.
        find: ``images`` or ``texts``.
        progress: Show progress while vectors are computed.

    Returns:
        The number of rows and their width.

    Raises:
        UsageError: An unknown suffix, a run that cannot search, nothing to write, or a Lance table that already exists.
        InputError: The table cannot be written.
    """
    out = Path(out)
    if store is None:
        raise UsageError("--vectors needs the store whose vectors to write; add --store STORE")
    if find not in _FIND:
        raise UsageError(f"What to export must be 'images' or 'texts', found '{find}'")
    if out.suffix not in (".lance", ".parquet"):
        raise UsageError(f"--vectors {out}: expected a name ending in .lance or .parquet, found '{out.suffix}'")
    refuse_inputs({"--vectors": out}, {"--run": run, "--store": store})
    if out.suffix == ".lance" and out.exists():
        raise UsageError(f"--vectors {out} already exists; choose another name, or remove it first")
    scorer = Scorer.open(run, store=store)
    check_searchable(scorer)
    shortlist = Shortlist(scorer, _FIND[find], progress=progress)
    if not shortlist.usable:
        raise UsageError(f"{store}: found no {find} with embeddings for this run; nothing to export")
    width = shortlist.blocks[0].shape[1]
    schema = _schema(scorer, _FIND[find], width)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        (_write_lance if out.suffix == ".lance" else _write_parquet)(out, schema, _batches(shortlist, schema))
    except (OSError, RuntimeError, pa.ArrowException) as error:
        raise InputError(
            f"{out}: the vectors cannot be written ({brief(error)}); free some disk space and try again"
        ) from error
    return ExportedVectors(out, find, shortlist.usable, width, schema.names, list(shortlist.notes))


def _schema(scorer: Scorer, modality: Modality, width: int) -> pa.Schema:
    own = [pa.field("id", pa.string()), pa.field("vector", pa.list_(pa.float16(), width))]
    kept = [pa.field(name, type_) for name, type_ in scorer.store.metadata(modality).items()]
    return pa.schema(
        [*own, *(field.with_name(f"{field.name}_") if field.name == "vector" else field for field in kept)]
    )


def _batches(shortlist: Shortlist, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    names = list(shortlist.scorer.store.metadata(shortlist.modality))
    alive, start = shortlist.alive(), 0
    for block in shortlist.blocks:
        for first in range(0, len(block), _ROWS_AT_ONCE):
            rows = np.arange(first, min(first + _ROWS_AT_ONCE, len(block)))
            if alive is not None:
                rows = rows[alive[start + rows]]
            if len(rows):
                ids = shortlist.ids(start + rows)
                vectors = pa.FixedSizeListArray.from_arrays(pa.array(block[rows].reshape(-1)), block.shape[1])
                described = shortlist.scorer.store.read_metadata(shortlist.modality, ids) if names else []
                columns = [
                    pa.array([one[name] for one in described], type_)
                    for name, type_ in zip(names, schema.types[2:], strict=True)
                ]
                yield pa.RecordBatch.from_arrays([pa.array(ids, pa.string()), vectors, *columns], schema=schema)
        start += len(block)


def _write_parquet(out: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow.parquet as pq

    def write(path: Path) -> None:
        with pq.ParquetWriter(path, schema) as file:
            held: list[pa.RecordBatch] = []
            for batch in batches:
                held.append(batch)
                if sum(map(len, held)) >= _ROW_GROUP:
                    file.write_table(pa.Table.from_batches(held))
                    held = []
            if held:
                file.write_table(pa.Table.from_batches(held))

    replace_file(out, write)


def _write_lance(out: Path, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    import lance

    beside = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches), str(beside))
        beside.rename(out)
        flush_folder(out.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
