"""Groups of pairs that share the value of an extra key, for tables of results by group. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.evaluation.intervals import bootstrap_interval

__all__ = ["group_rows", "has_value", "slice_rows", "slice_table", "value_name"]

_MOST_VALUES = 50  # a key with more names than this names items, not groups ...
_MOST_LARGE_GROUPS, _LARGE = 200, 20  # ... unless each is shared by many pairs: VQA v2 has 65 types of questions
# What the readers of published sets call one item, or the pairs that belong together.
_NOT_GROUPS = frozenset(("cluster", "group", "identifier", "pair_id", "question_id"))
_MOST_NUMBERS = 10  # a key with more numbers than this is cut into ranges
_RANGES = 4


def slice_rows(extras: Sequence[dict[str, Any]]) -> dict[str, dict[str, list[int]]]:
    """Find the groups.

    Args:
        extras: Further keys of every pair.

    Returns:
        By key, then value, the rows of the group. Names, truth values and numbers make groups, where there are 2 to 50
        of them, or up to 200 of 20 pairs on average. A key with more than 10 different numbers makes up to four ranges
        of about equally many pairs. ``cluster``, ``group`` and ids make none.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for key in dict.fromkeys(key for extra in extras for key in extra):
        if key in _NOT_GROUPS:
            continue
        groups = group_rows(extras, key)
        pairs = sum(len(rows) for rows in groups.values())
        if 2 <= len(groups) <= max(_MOST_VALUES, min(_MOST_LARGE_GROUPS, pairs // _LARGE)):
            found[key] = groups
    return found


def group_rows(extras: Sequence[dict[str, Any]], key: str) -> dict[str, list[int]]:
    """Return the rows of every value of one key, values in their order: the groups of tables and of fairness.

    Args:
        extras: Further keys of every pair.
        key: Names, truth values and numbers of it make groups; more than 10 different numbers make up to four ranges
            of about equally many pairs. Pairs without it, or with an empty or missing value, belong to no group.
    """
    values = {row: extra[key] for row, extra in enumerate(extras) if has_value(extra.get(key))}
    numbers = [value for value in values.values() if not isinstance(value, str | bool)]
    if len(numbers) == len(values) and len(set(numbers)) > _MOST_NUMBERS and np.isfinite(numbers).all():
        return _ranges(values)
    groups: dict[str, list[int]] = {}
    for row, value in values.items():
        groups.setdefault(value_name(value), []).append(row)
    return dict(sorted(groups.items()))


def has_value(value: Any) -> bool:
    """Whether it names a group: a word, a truth value or a number, not an empty cell of a table or "not a number"."""
    return isinstance(value, str | int | float) and value == value and bool(str(value).strip())


def value_name(value: str | float) -> str:
    """Return the name of a group: 1, 1.0 and "1" are one, and so are words with blanks around them."""
    whole = isinstance(value, float) and value.is_integer()
    return str(int(value)) if whole else str(value).strip()


def slice_table(
    rows: dict[str, dict[str, list[int]]], metric: str, values: NDArray[Any], clusters: Sequence[str]
) -> dict[str, Any]:
    """Evaluate every group.

    Args:
        rows: From `slice_rows`.
        metric: Name of what the values average.
        values: ``(n,)`` per pair, in [0, 1].
        clusters: ``(n,)`` image of every pair.

    Returns:
        By key, then value: ``{"n", metric, "ci95"}``, in percent; ``ci95`` is None for a group of one image.
    """
    table: dict[str, Any] = {}
    for key, groups in rows.items():
        table[key] = {}
        for value, members in groups.items():
            interval = bootstrap_interval(values[members], [clusters[i] for i in members])
            table[key][value] = {"n": len(members), metric: 100 * interval.value, "ci95": interval.percent()}
    return table


def _ranges(values: dict[int, Any]) -> dict[str, list[int]]:
    """Cut numbers into ranges of about equally many pairs; equal numbers stay together."""
    numbers = np.array(list(values.values()), float)
    edges = np.unique(np.quantile(numbers, np.arange(1, _RANGES) / _RANGES, method="lower"))
    bins = np.searchsorted(edges, numbers, side="left")  # a number equal to an edge falls below it
    groups: dict[str, list[int]] = {}
    for number in np.unique(bins):
        inside = bins == number
        low, high = numbers[inside].min(), numbers[inside].max()
        groups[f"{low:g} to {high:g}" if low < high else f"{low:g}"] = [
            row for row, kept in zip(values, inside, strict=True) if kept
        ]
    return groups
