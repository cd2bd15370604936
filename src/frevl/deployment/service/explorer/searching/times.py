"""Filters on dates and times: convert a typed day or moment into a number comparable with the column's.

The numbers that a column holds (days, or seconds, milli-, micro- or nanoseconds since 1970 in UTC) are compared,
because SQL reads a time that names an offset as if it stood in the time zone of the column.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow as pa

from frevl.errors import UsageError

__all__ = ["ON_TIMES", "of_day_or_time", "shown_time", "zone_of"]

ON_TIMES = ("on", "from", "before")
"""Tests of dates and times that need a value. A range uses two filters: from one moment, and before another."""

_UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}  # units per second
_MOST = 2**63 - 1


def zone_of(type_: pa.DataType) -> str | None:
    """Return the time zone of a column as the store names it; None for dates, and for times without one."""
    return type_.tz if pa.types.is_timestamp(type_) else None


def of_day_or_time(column: str, type_: pa.DataType, test: str, value: object) -> str:
    """Return the condition in SQL.

    Args:
        column: Name of a column of dates or timestamps.
        type_: Type of the column.
        test: One of `ON_TIMES`.
        value: A day such as ``2024-05-31``; for timestamps also a moment as ``2024-05-31T18:30:00``. It may have an
            offset (``Z``, ``+02:00``) only if the column has a time zone; without an offset, it is read in that zone.
            ``on`` requires a day.

    Raises:
        UsageError: The value is neither, or does not suit the column.
    """
    name = f"`{column}`"
    if pa.types.is_date(type_):
        day = _day(column, value)
        number = (day - date(1970, 1, 1)).days * (1 if pa.types.is_date32(type_) else 86_400_000)
        whole = f"CAST({name} AS {'INT' if pa.types.is_date32(type_) else 'BIGINT'})"
        return f"{whole} {({'on': '=', 'from': '>=', 'before': '<'})[test]} {number}"
    whole = f"CAST({name} AS BIGINT)"
    if test == "on":
        day = min(_day(column, value), date.max - timedelta(days=1))  # the next day must exist
        first, after = (datetime.combine(one, time.min) for one in (day, day + timedelta(days=1)))
        return f"({whole} >= {_number(column, type_, first)} AND {whole} < {_number(column, type_, after)})"
    return f"{whole} {'>=' if test == 'from' else '<'} {_number(column, type_, _moment(column, type_, value))}"


def shown_time(value: object) -> str | None:
    """Return a date or time of a column in readable form, in the column's time zone; None for any other value."""
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(" ", "seconds")
    return value.isoformat() if isinstance(value, date) else None


def _day(column: str, value: object) -> date:
    try:
        if isinstance(value, str):
            return date.fromisoformat(value)
    except ValueError:
        pass
    raise UsageError(f"The filter of {column!r:.80} needs a day such as 2024-05-31, found {value!r:.80}.")


def _moment(column: str, type_: pa.DataType, value: object) -> datetime:
    try:
        found = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        found = None
    if found is None:
        raise UsageError(
            f"The filter of {column!r:.80} needs a day or time such as 2024-05-31 or 2024-05-31T18:30:00, found "
            f"{value!r:.80}."
        )
    if found.tzinfo is not None and zone_of(type_) is None:
        raise UsageError(
            f"The times of {column!r:.80} have no time zone, so a filter must have none either, found {value!r:.80}."
        )
    return found


def _number(column: str, type_: pa.DataType, moment: datetime) -> int:
    """Return the first number of the column that is not before a moment."""
    if moment.tzinfo is None:
        name = zone_of(type_)
        moment = moment.replace(tzinfo=UTC if name is None else _zone(column, name))
    try:
        passed = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except OverflowError:  # an offset can move a moment outside the calendar
        passed = timedelta.max if moment.year > 1 else timedelta.min
    micro = passed // timedelta(microseconds=1)
    number = -(-micro * _UNITS[type_.unit] // 1_000_000)  # rounded up: whole units only
    return max(-_MOST, min(_MOST, number))


def _zone(column: str, name: str) -> tzinfo:
    """Return the time zone of a column, which may be a name or an offset."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    try:
        return datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo or UTC
    except ValueError:
        raise UsageError(
            f"The time zone {name!r:.80} of {column!r:.80} is not known on this machine (the package tzdata has them "
            "all); give times with an offset, such as 2024-05-31T18:30:00Z."
        ) from None
