"""Turn the page's column filters into one SQL condition with every name and value quoted."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, TypeAdapter, ValidationError

from frevl.deployment.service.explorer.searching.times import ON_TIMES, of_day_or_time
from frevl.deployment.service.schemas import Body
from frevl.errors import UsageError, nearest
from frevl.store.reader import Store

__all__ = ["MOST_FILTERS", "Filter", "columns_of", "condition", "is_rounded", "kind_of", "read_filters"]

MOST_FILTERS = 20
_Is = Literal[
    "is", "is not", "contains", "begins with", "at least", "at most", "on", "from", "before", "missing", "there"
]
Kind = Literal["text", "number", "flag", "date", "time", "other"]

_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "text": ("is", "is not", "contains", "begins with", "missing", "there"),
    "number": ("is", "is not", "at least", "at most", "missing", "there"),
    "flag": ("is", "missing", "there"),
    "date": (*ON_TIMES, "missing", "there"),
    "time": (*ON_TIMES, "missing", "there"),
    "other": ("missing", "there"),
}


class Filter(Body):
    """A condition on one column."""

    column: Annotated[str, Field(min_length=1, max_length=200, examples=["id"])]
    test: Annotated[_Is, Field(examples=["begins with"])] = "is"
    value: Annotated[
        str | bool | int | float | None,
        Field(
            description="A text, number (above 2^53 also as a text of its digits), truth value, day (`2024-05-31`) or "
            "time (`2024-05-31T18:30:00`; in the zone of the column if it has one, or with an offset such as `Z`).",
            examples=["kitchen/"],
        ),
    ] = None


_MANY = TypeAdapter(Annotated[list[Filter], Field(max_length=MOST_FILTERS)])


def read_filters(given: str | None) -> list[Filter]:
    """Read filters from the JSON list in a link.

    Raises:
        UsageError: The text is not such a list.
    """
    if not given:
        return []
    try:
        return _MANY.validate_json(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise UsageError(
            f'filters: expected a list such as [{{"column": "id", "test": "is", "value": "0.png"}}], found '
            f"{first['msg'].removeprefix('Value error, ').lower()} at {place or 'the beginning'}"
        ) from None


def columns_of(store: Store) -> dict[str, pa.DataType]:
    """Return the image columns that can be filtered, with their types."""
    return {"id": pa.string(), "bytes": pa.int64(), **store.metadata("image")}


def kind_of(type_: pa.DataType) -> Kind:
    """Return the kind of tests that a column of this type supports."""
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return "text"
    if pa.types.is_boolean(type_):
        return "flag"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return "number"
    if pa.types.is_date(type_):
        return "date"
    return "time" if pa.types.is_timestamp(type_) else "other"


def is_rounded(value: object) -> bool:
    """Return whether a browser would round this integer, so that it must be sent as a string."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53


def condition(filters: Sequence[Filter], where: str | None, columns: Mapping[str, pa.DataType]) -> str | None:
    """Combine all filters and a user's SQL into one condition; None if there are none.

    Args:
        filters: Conditions that must all hold.
        where: A condition in SQL, or None.
        columns: The available columns.

    Raises:
        UsageError: An unknown column, or a value or test that does not suit it.
    """
    if not filters:
        return where
    parts = [] if where is None else [f"({where})"]
    for one in filters:
        if one.column not in columns:
            raise UsageError(
                f"There is no column {one.column!r:.80} to filter by. {nearest(one.column, list(columns))}"
            )
        parts.append(_sql(one, columns[one.column]))
    return " AND ".join(parts)


def _sql(one: Filter, type_: pa.DataType) -> str:
    if "`" in one.column:
        raise UsageError(f"The column {one.column!r:.80} cannot be used in a filter because of the ` in its name.")
    name, kind = f"`{one.column}`", kind_of(type_)
    if one.test not in _OF_KIND[kind]:
        raise UsageError(
            f"The column {one.column!r:.80} ({type_}) does not support the test {one.test!r}; use one of "
            f"{', '.join(_OF_KIND[kind])}."
        )
    if one.test == "missing":
        return f"{name} IS NULL"
    if one.test == "there":
        return f"{name} IS NOT NULL"
    if kind in ("date", "time"):
        return of_day_or_time(one.column, type_, one.test, one.value)
    if kind == "text":
        text = _text(one)
        if one.test == "contains":
            return f"contains({name}, {text})"
        if one.test == "begins with":
            return f"starts_with({name}, {text})"
        return f"{name} = {text}" if one.test == "is" else f"({name} <> {text} OR {name} IS NULL)"
    if kind == "flag":
        if not isinstance(one.value, bool):
            raise UsageError(f"The column {one.column!r:.80} holds true or false, found {one.value!r:.80}.")
        return f"{name} = {'true' if one.value else 'false'}"
    number = _number(one, type_)
    if one.test == "is not":
        return f"({name} <> {number} OR {name} IS NULL)"
    return f"{name} {({'is': '=', 'at least': '>=', 'at most': '<='})[one.test]} {number}"


def _text(one: Filter) -> str:
    if not isinstance(one.value, str) or not one.value:
        raise UsageError(
            f"The column {one.column!r:.80} holds texts, so a filter needs a text, found {one.value!r:.80}."
        )
    if "\0" in one.value:
        raise UsageError(f"The filter on {one.column!r:.80} contains a null character; remove it.")
    quoted = one.value.replace("'", "''")
    return f"'{quoted}'"


def _number(one: Filter, type_: pa.DataType) -> str:
    value = one.value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{16,400}", value) and is_rounded(int(value)):
        value = int(value)
    # Compare without conversion, as an integer of 400 digits exceeds any float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise UsageError(f"The column {one.column!r:.80} holds numbers, so a filter needs one, found {value!r:.80}.")
    if not pa.types.is_integer(type_):
        return repr(float(value))
    if one.test in ("is", "is not") and value != int(value):
        raise UsageError(f"The column {one.column!r:.80} holds whole numbers, found {value!r:.80}.")
    whole = math.ceil(value) if one.test == "at least" else math.floor(value)
    if abs(whole) >= 2**63:
        raise UsageError(f"The column {one.column!r:.80} holds whole numbers below 2^63, found {value!r:.80}.")
    return str(whole)
