"""Prepare rows for tables of a store in an object store: with a primary key, and with the columns of the table."""

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
"""Metadata key of primary-key columns."""


def create_table(place: str, rows: pa.Table) -> None:
    """Create a table.

    Lance's own mode "create" is not used: if another writer created the table while the rows are written, it would
    replace that writer's rows. A commit based on version 0 is refused in that case.

    Raises:
        FileExistsError: The table exists, perhaps from another writer.
        OSError, ValueError: The table cannot be written.
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
    """Return a schema with the key marked as Lance expects: primary and never null."""
    fields: list[Any] = [
        field.with_nullable(False).with_metadata(PRIMARY) if field.name in key else field for field in schema
    ]
    return pa.schema(fields)


def checksum_there(row: pa.Table, tower: str, there: dict[str, Any]) -> int:
    """Return the checksum of one embedding for the content recorded in the store for its item."""
    values = row[tower][0].values
    flat = values.flatten() if pa.types.is_nested(values.type) else values
    return checksum(there["id"], there["content_hash"], flat.to_numpy(zero_copy_only=False))


def fitting(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return rows with the columns of a table, filling missing columns with null on either side."""
    columns = [
        rows[field.name].cast(field.type) if field.name in rows.column_names else pa.nulls(len(rows), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
