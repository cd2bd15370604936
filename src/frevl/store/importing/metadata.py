"""Metadata columns that an import keeps for filtering searches: their names and types."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from frevl.errors import InputError
from frevl.store.lance_tables import ITEM_COLUMNS

__all__ = ["columns_left_out", "metadata_fields", "named_metadata"]


def metadata_fields(schemas: Sequence[pa.Schema]) -> list[pa.Field]:
    """Return the columns of several files that can be kept, with one type per name: numbers, strings, booleans, times.

    Raises:
        InputError: A column has incompatible types in different files.
    """
    try:
        schema = pa.unify_schemas(list(schemas), promote_options="permissive")
    except pa.ArrowException as error:
        raise InputError(
            f"The files have incompatible metadata ({' '.join(str(error).split()):.200}); give columns with the "
            "same name the same type"
        ) from error
    fields: dict[str, pa.Field] = {}
    for field in schema:
        name, kind = column_name(field.name), _kept_type(field.type)
        if kind is not None and name not in fields and not field.name.startswith("__index_level_"):
            fields[name] = pa.field(name, kind)
    return list(fields.values())


def columns_left_out(schemas: Sequence[pa.Schema]) -> list[str]:
    """Return the names of the columns that cannot be kept; empty columns are not worth naming."""
    named = {field.name: field.type for schema in schemas for field in schema}
    return [name for name, kind in named.items() if _kept_type(kind) is None and not pa.types.is_null(kind)]


def named_metadata(table: pa.Table, types: dict[str, pa.DataType]) -> dict[str, pa.Array]:
    """Return the kept columns, with their names and types in the store.

    Args:
        table: Metadata as in the file.
        types: Metadata columns of the store.

    Raises:
        InputError: A value does not have the type of its column in the store.
    """
    columns: dict[str, pa.Array] = {}
    for original in table.column_names:
        name = column_name(original)
        if name not in types or name in columns:
            continue
        try:
            columns[name] = pc.cast(table[original], types[name]).combine_chunks()
        except pa.ArrowException as error:
            raise InputError(
                f"The metadata column '{original}' has the type {types[name]} in the store and does not match it "
                f"({' '.join(str(error).split()):.200}); rename it in the file"
            ) from error
    return columns


def column_name(name: str) -> str:
    """Return a column's name in the store, as dots would be paths in a filter, and some names are reserved."""
    plain = re.sub(r"\W", "_", name.strip()) or "_"
    return f"metadata_{plain}" if plain in ITEM_COLUMNS else plain


def _kept_type(kind: pa.DataType) -> pa.DataType | None:
    if pa.types.is_dictionary(kind):
        return _kept_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    kept = (pa.types.is_string, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_temporal)
    return kind if any(test(kind) for test in kept) else None
