"""Group pairs by the value of an extra key, for tables of results by group. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import are_ids, has_value, number_of, value_name
from frevl.data.packed.columns import Coded, WithCluster, chosen, coded_values, different
from frevl.evaluation.intervals import hit_interval

__all__ = ["Rows", "group_rows", "range_names", "rows_by_group", "slice_rows", "slice_table"]

Rows = NDArray[np.int64]

_MOST_VALUES = 50  # a key with more values than this identifies items, not groups ...
_MOST_LARGE_GROUPS, _LARGE = 200, 20  # ... unless each is shared by many pairs: VQA v2 has 65 question types
# Keys with which readers of published data sets mark single items, or pairs that belong together.
_NOT_GROUPS = frozenset(("cluster", "group", "identifier", "pair_id", "question_id"))
_MOST_NUMBERS = 10  # a key with more distinct numbers than this is cut into ranges
_RANGES = 4
_DIGITS = range(6, 18)  # 17 digits distinguish any two numbers


def slice_rows(extras: Sequence[dict[str, Any]]) -> dict[str, dict[str, Rows]]:
    """Find the groups.

    Args:
        extras: Extra keys of every pair.

    Returns:
        The rows of each group, ``(members,)`` int64 ascending, by key, then value. Names, booleans and numbers form
        groups if there are 2 to 50 of them, or up to 200 with 20 pairs on average. A key with more than 10 distinct
        numbers is cut into up to four ranges with about equal numbers of pairs. ``cluster``, ``group`` and ids form no
        groups (`frevl.data.names.are_ids`).
    """
    found: dict[str, dict[str, Rows]] = {}
    each = different(extras.extras if isinstance(extras, WithCluster) else extras)
    for key in dict.fromkeys(key for extra in each for key in extra):
        if key in _NOT_GROUPS:
            continue
        groups = group_rows(extras, key)
        pairs = sum(len(rows) for rows in groups.values())
        if 2 <= len(groups) <= max(_MOST_VALUES, min(_MOST_LARGE_GROUPS, pairs // _LARGE)):
            found[key] = groups
    return found


def group_rows(extras: Sequence[dict[str, Any]], key: str, *, asked: bool = False) -> dict[str, Rows]:
    """Return the rows of every value of a key, in value order: the groups used in tables and fairness.

    Args:
        extras: Extra keys of every pair.
        key: Its names, booleans and numbers form groups; more than 10 distinct numbers, also those written as text, as
            in a CSV file, are cut into up to four ranges with about equal numbers of pairs. Pairs without the key, or
            with an empty or missing value, belong to no group.
        asked: Whether somebody named this key: its numbers are then cut into ranges even if they look like ids.
    """
    codes, values = _values_of(extras, key)
    there = np.array([has_value(value) for value in values], bool)
    known = [value for value in values if has_value(value)]
    rows = np.flatnonzero(there[codes])
    numbers = [number for number in map(number_of, known) if number is not None]
    if (
        len(numbers) == len(known)
        and len(set(numbers)) > _MOST_NUMBERS
        and np.isfinite(numbers).all()
        and (asked or not are_ids(set(known), len(rows)))
    ):
        of_value = np.zeros(len(values))
        of_value[there] = numbers
        return _ranges(rows, of_value[codes[rows]])
    names = sorted({value_name(value) for value in known})
    number = {name: place for place, name in enumerate(names)}
    group = np.array([number[value_name(value)] if has_value(value) else -1 for value in values], np.int64)
    return rows_by_group(group[codes], names)


def rows_by_group(groups: Rows, names: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of every named group from the ``(n,)`` number of each row's group, below 0 for none."""
    order = np.argsort(groups, kind="stable")
    ends = np.searchsorted(groups[order], np.arange(len(names) + 1))
    return {name: order[ends[place] : ends[place + 1]] for place, name in enumerate(names)}


def _values_of(extras: Sequence[dict[str, Any]], key: str) -> tuple[Rows, list[Any]]:
    """Return the number of every pair's value of a key, and the values; coded pairs are not looked at one by one."""
    if isinstance(extras, WithCluster) and key != "cluster":
        extras = extras.extras
    if isinstance(extras, Coded):
        codes, each = coded_values(extras)
        return codes.astype(np.int64), [extra.get(key) for extra in each]
    return np.arange(len(extras)), [extra.get(key) for extra in extras]


def slice_table(
    rows: Mapping[str, Mapping[str, Sequence[int] | Rows]],
    metric: str,
    values: NDArray[Any],
    clusters: Sequence[str],
) -> dict[str, Any]:
    """Evaluate every group.

    Args:
        rows: From `slice_rows`.
        metric: Name of the metric that the values average to.
        values: ``(n,)`` per pair, in [0, 1].
        clusters: ``(n,)`` image of every pair.

    Returns:
        By key, then value: ``{"n", metric, "ci95"}``, in percent; ``ci95`` is None for a group with a single image.
    """
    table: dict[str, Any] = {}
    for key, groups in rows.items():
        table[key] = {}
        for value, members in groups.items():
            interval = hit_interval(values[members], chosen(clusters, members))
            table[key][value] = {"n": len(members), metric: 100 * interval.value, "ci95": interval.percent()}
    return table


def _ranges(rows: Rows, numbers: NDArray[np.float64]) -> dict[str, Rows]:
    """Cut numbers into ranges with about equal numbers of pairs; equal numbers stay together."""
    edges = np.unique(np.quantile(numbers, np.arange(1, _RANGES) / _RANGES, method="lower"))
    bins = np.searchsorted(edges, numbers, side="left")  # a number equal to an edge falls below it
    inside = [bins == number for number in np.unique(bins)]
    names = range_names([(numbers[one].min(), numbers[one].max()) for one in inside])
    return {name: rows[one] for name, one in zip(names, inside, strict=True)}


def range_names(ranges: Sequence[tuple[float, float]]) -> list[str]:
    """Return a name such as ``3 to 7`` for each range of numbers, with enough digits to distinguish all ends.

    Six digits are usual, but times in seconds, or numbers close together, would then share a name and become one group.

    Args:
        ranges: Smallest and largest number of each; no two ranges are equal.
    """
    ends = {float(end) for one in ranges for end in one}
    digits = next((n for n in _DIGITS if len({f"{end:.{n}g}" for end in ends}) == len(ends)), _DIGITS[-1])
    return [f"{low:.{digits}g} to {high:.{digits}g}" if low < high else f"{low:.{digits}g}" for low, high in ranges]
