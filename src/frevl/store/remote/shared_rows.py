"""Rows for tables of a store in an object store: with a primary key, and with the columns that a table has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lance
import lance.fragment
import pyarrow as pa
from lance.commit import CommitConflictError

from frevl.store.remote.address import storage_options
from frevl.store.towers import checksum

__all__ = ["PRIMARY", "PRIMARY_NAME", "checksum_there", "create_table", "fitting", "keyed"]

PRIMARY_NAME = b"lance-schema:unenforced-primary-key"
PRIMARY = {PRIMARY_NAME.decode(): "true"}
"""Metadata of a column of a primary key."""


def create_table(place: str, rows: pa.Table) -> None:
    """Make a table.

    Not with Lance's own mode "create": where another writer makes the table while the rows are written, that puts them
    in the place of its rows. A commit that was made from version 0 is refused then.

    Raises:
        FileExistsError: There is one, from another writer maybe.
        OSError, ValueError: It cannot be written.
    """
    options = storage_options()
    new = lance.fragment.write_fragments(rows, place, mode="overwrite", storage_options=options)
    operation = lance.LanceOperation.Overwrite(rows.schema, new)
    try:
        lance.LanceDataset.commit(place, operation, read_version=0, max_retries=0, storage_options=options)
    except (OSError, ValueError, CommitConflictError) as error:
        try:
            lance.dataset(place, storage_options=options)
        except ValueError:
            raise error from None
        raise FileExistsError(place) from error


def keyed(schema: pa.Schema, key: Sequence[str]) -> pa.Schema:
    """Return a schema whose key is marked: never null, and named as Lance wants it."""
    fields: list[Any] = [
        field.with_nullable(False).with_metadata(PRIMARY) if field.name in key else field for field in schema
    ]
    return pa.schema(fields)


def checksum_there(row: pa.Table, tower: str, there: dict[str, Any]) -> int:
    """Return the checksum of one embedding under the content that the store knows of its item."""
    values = row[tower][0].values
    flat = values.flatten() if pa.types.is_nested(values.type) else values
    return checksum(there["id"], there["content_hash"], flat.to_numpy(zero_copy_only=False))


def fitting(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with the columns of a table: what only they have is null in them, and the other way round."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
