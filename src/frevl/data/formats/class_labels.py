"""Names of classes that a table of Hugging Face's datasets stores as numbers (``ClassLabel``)."""

from __future__ import annotations

import json

import pyarrow as pa

__all__ = ["class_names_of", "named_classes", "with_named_classes"]


def class_names_of(schema: pa.Schema) -> dict[str, list[str]]:
    """Return the names of the classes of each column of numbers whose names the table's metadata gives."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        found = {name: one["names"] for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}
    return {
        name: names
        for name, names in found.items()
        if isinstance(names, list)
        and all(isinstance(one, str) and one.strip() for one in names)
        and len(set(names)) == len(names)
        and schema.names.count(name) == 1
        and pa.types.is_integer(schema.field(name).type)
    }


def with_named_classes(schema: pa.Schema, names: dict[str, list[str]]) -> pa.Schema:
    """Return the schema of a table after `named_classes`."""
    return pa.schema([pa.field(one.name, pa.string()) if one.name in names else one for one in schema])


def named_classes(batch: pa.RecordBatch, names: dict[str, list[str]]) -> pa.RecordBatch:
    """Replace numbers of classes by their names; -1, which marks a missing label, and nothing become null.

    A number without a name stays, as text.
    """
    columns = [
        _named(column, names[name]) if name in names else column
        for name, column in zip(batch.schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _named(column: pa.Array, names: list[str]) -> pa.Array:
    of = dict(enumerate(names))
    values = (None if value is None or value == -1 else of.get(value, str(value)) for value in column.to_pylist())
    return pa.array(values, pa.string())
