"""Share of lines kept in every group, compared with removing as many at random. Pure numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import has_value, value_name
from frevl.evaluation.slices import range_names

__all__ = ["FEWEST_LINES", "WORTH_SAYING", "GroupShare", "columns_of_keys", "shares_kept"]

FEWEST_LINES = 20
"""Minimum number of lines for a group to be examined."""

WORTH_SAYING = 0.05
"""Excess share of lines that a group must lose to be reported."""

_MOST_VALUES = 50  # values of a key: with more, they are ids, or numbers to be cut into quartiles
_DRAWS = 400
_NUMBERS_AT_ONCE = 20_000_000


@dataclass(frozen=True)
class GroupShare:
    """The share of a group that is kept.

    Attributes:
        key: The key of the pairs, or another grouping.
        value: The group's value of the key.
        lines: Number of lines in the group.
        kept: Share of them kept, in [0, 1].
        low: 2.5th percentile of that share under random removal of as many lines.
        high: 97.5th percentile.
        beyond: Whether it loses more than the worst-hit group does in 95 % of random removals.
    """

    key: str
    value: str
    lines: int
    kept: float
    low: float
    high: float
    beyond: bool

    def record(self) -> dict[str, Any]:
        """Return the JSON record, in percent."""
        return {
            "key": self.key,
            "value": self.value,
            "lines": self.lines,
            "kept": 100 * self.kept,
            "at_random": [100 * self.low, 100 * self.high],
            "beyond_random": self.beyond,
        }


def columns_of_keys(extras: Sequence[Mapping[str, Any]]) -> dict[str, list[str | None]]:
    """Return the keys whose values form groups, with a value per line, None if missing.

    Strings and booleans form groups if there are 2 to 50 of them; more numbers than that are cut into quartiles. Values
    are named as in `frevl.evaluation.slices`; empty ones are missing.
    """
    columns: dict[str, list[str | None]] = {}
    for key in dict.fromkeys(key for extra in extras for key in extra):
        values = [_plain(extra.get(key)) for extra in extras]
        numbers = [float(value) if isinstance(value, int | float) else None for value in values]
        names = [None if value is None else value_name(value) for value in values]
        several = len({name for name in names if name is not None})
        if 2 <= several <= _MOST_VALUES:
            columns[key] = names
        elif several > _MOST_VALUES and not any(isinstance(value, str) for value in values):
            columns[key] = quarters(numbers)
    return columns


def _plain(value: Any) -> str | int | float | None:
    return value if has_value(value) else None


def quarters(values: Sequence[float | None]) -> list[str | None]:
    """Return for every number the range of its quartile, such as ``3 to 7``."""
    known = np.array([value for value in values if value is not None and np.isfinite(value)])
    if not len(known):
        return [None] * len(values)
    bounds = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="lower"))
    parts = np.searchsorted(bounds, known, side="left")
    found = np.unique(parts).tolist()
    ends = [(known[parts == part].min(), known[parts == part].max()) for part in found]
    names = dict(zip(found, range_names(ends), strict=True))
    return [
        None if value is None or not np.isfinite(value) else names[int(np.searchsorted(bounds, value, side="left"))]
        for value in values
    ]


def shares_kept(
    kept: NDArray[np.bool_],
    columns: Mapping[str, Sequence[str | None]],
    clusters: NDArray[np.int64],
    *,
    seed: int = 0,
) -> list[GroupShare]:
    """Return how much of every group is kept, and how much would be if as many lines were removed at random.

    Random removals follow the filter's pattern over clusters (images): the share removed from one cluster is applied
    to a random one of similar size, so about as many lines go. So a filter that removes whole images is compared with
    removing whole images, and one that removes single lines with single lines.

    Args:
        kept: ``(n,)`` bool, which lines are kept.
        columns: ``n`` values for each key; lines without a value are in no group.
        clusters: ``(n,)`` cluster numbers from 0.
        seed: Random seed for the removals.

    Returns:
        Groups with at least `FEWEST_LINES` lines, sorted by excess loss: the difference from the random mean in
        standard deviations.
    """
    groups: list[tuple[str, str]] = []
    rows: list[NDArray[np.int64]] = []
    for key, values in columns.items():
        members: dict[str, list[int]] = {}
        for row, value in enumerate(values):
            if value is not None:
                members.setdefault(value, []).append(row)
        large = {value: own for value, own in members.items() if len(own) >= FEWEST_LINES}
        if len(members) >= 2:
            groups += [(key, value) for value in large]
            rows += [np.array(own) for own in large.values()]
    if not groups:
        return []
    found = np.array([kept[own].mean() for own in rows])
    drawn = np.stack([[one[own].mean() for own in rows] for one in _random_removals(kept, clusters, seed)])
    mean, deviation = drawn.mean(axis=0), np.maximum(drawn.std(axis=0), 1e-9)
    scores = (found - mean) / deviation
    # Among many groups, some are hit hard by chance alone, so compare with the worst of all.
    worst = float(np.quantile(((drawn - mean) / deviation).min(axis=1), 0.05))
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    order = np.argsort(scores, kind="stable").tolist()
    return [
        GroupShare(
            key=groups[at][0],
            value=groups[at][1],
            lines=len(rows[at]),
            kept=float(found[at]),
            low=float(low[at]),
            high=float(high[at]),
            beyond=bool(scores[at] < worst),
        )
        for at in order
    ]


def _random_removals(kept: NDArray[np.bool_], clusters: NDArray[np.int64], seed: int) -> list[NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    counts = np.bincount(clusters)
    gone = np.bincount(clusters, ~kept, minlength=len(counts)) / np.maximum(counts, 1)
    draws = min(_DRAWS, max(100, _NUMBERS_AT_ONCE // max(1, len(kept))))
    sizes = np.frexp(np.maximum(counts, 1) - 1)[1]  # 1, 2, 3 to 4, 5 to 8, ... lines
    alike = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    removals = []
    for _ in range(draws):
        shares = np.empty(len(gone))
        for own in alike:
            shares[own] = random.permutation(gone[own])
        removals.append(random.random(len(kept)) >= shares[clusters])
    return removals
