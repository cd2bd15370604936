"""Items as passed to a writer, and the rows of a table with given ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from frevl.store.ids.live_rows import LiveRows

if TYPE_CHECKING:
    import lance

__all__ = ["Item", "TakeOver", "rows_with"]


@dataclass(frozen=True)
class Item:
    """An item as stored, without its embeddings.

    Attributes:
        id: Image path below its folder, or the text itself.
        content_hash: 32 hexadecimal digits of the SHA-256 of the file or the text.
        bytes: Size of the content.
        modified_ns: Modification time of the file in nanoseconds; 0 for a text.
    """

    id: str
    content_hash: str
    bytes: int
    modified_ns: int = 0


@dataclass(frozen=True)
class TakeOver:
    """An item that takes over the embeddings of another.

    Attributes:
        source: Id of the other item; it is in the writer's `StoreWriter.store`, with the same content.
        item: The item; it may be in the store with different content.
        moved: Whether the source leaves the store; the item then takes over its metadata, too.
    """

    source: str
    item: Item
    moved: bool


def rows_with(table: lance.LanceDataset, ids: pa.Array) -> pa.Table:
    """Return the rows of a table with given ids, in their order; missing ids are left out.

    All ids of the table are read, because a filter of Lance would need the ids, which may be any text, written as SQL.
    """
    rows, first = [np.zeros(0, np.int64)], 0
    for batch in table.scanner(columns=["id"]).to_batches():
        rows.append(first + np.flatnonzero(pc.is_in(batch["id"], value_set=ids).to_numpy(zero_copy_only=False)))
        first += len(batch)
    found: pa.Table = LiveRows(table).take(np.concatenate(rows))
    return found.take(pc.drop_null(pc.index_in(ids, value_set=found["id"].combine_chunks())))
