"""Rows of the tables of a store: the columns that they all have, how embeddings become one, and rows as bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from frevl.store.towers import Tower

__all__ = ["ITEM_FIELDS", "UNREAD_SCHEMA", "as_stream", "embedding_column", "in_utf8", "reject_rows"]

ITEM_FIELDS = [
    pa.field("id", pa.string()),
    pa.field("content_hash", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("modified_ns", pa.int64()),
    pa.field("filled", pa.list_(pa.struct([pa.field("tower", pa.string()), pa.field("crc32", pa.uint32())]))),
]
UNREAD_SCHEMA = pa.schema([("tower", pa.string()), ("text", pa.string()), ("share", pa.float64())])
REJECT_SCHEMA = pa.schema([pa.field(name, pa.string()) for name in ("kind", "id", "reason")])


def in_utf8(text: str) -> str:
    """Escape what is not UTF-8 (a file name may hold anything)."""
    return text.encode("utf-8", "backslashreplace").decode()


def reject_rows(rejects: dict[tuple[str, str], str]) -> pa.Table:
    """Return rows of the table of rejects: from kind and id to the reason."""
    columns = list(zip(*((kind, id_, reason) for (kind, id_), reason in rejects.items()), strict=True)) or [()] * 3
    return pa.Table.from_arrays([pa.array(column, pa.string()) for column in columns], schema=REJECT_SCHEMA)


def embedding_column(values: np.ndarray, mask: np.ndarray, tower: Tower) -> pa.Array:
    """Turn ``(n, tokens, dim)`` embeddings in the stored type into a column of a tower's type."""
    if tower.pooled:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), tower.dim)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(values[mask].reshape(-1)), tower.dim)
    offsets = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), vectors)


def as_stream(rows: pa.Table) -> bytes:
    """Return rows as a stream of Arrow, which the record of a commit keeps."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    content: bytes = sink.getvalue().to_pybytes()
    return content
