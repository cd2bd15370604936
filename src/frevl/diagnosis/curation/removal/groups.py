"""Share of lines kept in every group, compared with removing as many at random. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import has_value, number_of, value_name
from frevl.evaluation.slices import range_names

__all__ = ["FEWEST_LINES", "WORTH_SAYING", "GroupShare", "Groups", "columns_of_keys", "quarters", "shares_kept"]

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


class Groups(Sequence[str | None]):
    """The group of every line, None if it is in no group; a few bytes per line.

    Attributes:
        codes: ``(n,)`` int32, the number of every line's group, -1 for none.
        names: Names of the groups.
    """

    def __init__(self, codes: NDArray[np.int32], names: Sequence[str]) -> None:
        self.codes, self.names = codes, list(names)

    @classmethod
    def of(cls, values: Sequence[str | None]) -> Groups:
        """Number the values in order of first appearance."""
        if isinstance(values, Groups):
            return values
        known: dict[str, int] = {}
        codes = (-1 if value is None else known.setdefault(value, len(known)) for value in values)
        return cls(np.fromiter(codes, np.int32, len(values)), list(known))

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, position: int) -> str | None: ...
    @overload
    def __getitem__(self, position: slice) -> list[str | None]: ...
    def __getitem__(self, position: int | slice) -> str | list[str | None] | None:
        if isinstance(position, slice):
            return [None if code < 0 else self.names[code] for code in self.codes[position].tolist()]
        code = int(self.codes[position])
        return None if code < 0 else self.names[code]


class _Key:
    """The values of one key: numbers, also those written as text, and the first distinct values."""

    def __init__(self, lines: int) -> None:
        self.numbers: NDArray[np.float64] = np.full(lines, np.nan)
        self.codes: NDArray[np.int32] = np.full(lines, -1, np.int32)
        self.known: dict[str, int] = {}
        self.words = False
        self.digits = True  # whether all values are whole numbers written as text

    def put(self, row: int, value: str | float) -> None:
        number = float(value) if isinstance(value, bool) else number_of(value)
        if number is None:
            self.words = True
        else:
            self.numbers[row] = number
        self.digits &= isinstance(value, str) and value.strip().isdecimal()
        if len(self.known) <= _MOST_VALUES:
            self.codes[row] = self.known.setdefault(value_name(value), len(self.known))

    def groups(self) -> Groups | None:
        if 2 <= len(self.known) <= _MOST_VALUES:
            return Groups(self.codes, list(self.known))
        if self.words or len(self.known) < 2:
            return None
        given = self.numbers[~np.isnan(self.numbers)]
        if self.digits and 2 * len(np.unique(given)) > len(given):  # ids, as in `frevl.data.names.are_ids`
            return None
        return quarters(self.numbers)


def columns_of_keys(extras: Iterable[Mapping[str, Any]], lines: int) -> dict[str, Groups]:
    """Return the keys whose values form groups, with the group of every line.

    Strings and booleans form groups if there are 2 to 50 of them; more numbers than that, also those written as text,
    are cut into quartiles, unless they are ids. Values are named as in `frevl.evaluation.slices`; empty ones are
    missing.

    Args:
        extras: The keys of every line.
        lines: Number of lines.
    """
    keys: dict[str, _Key] = {}
    for row, extra in enumerate(extras):
        for key, value in extra.items():
            known = keys.get(key) or keys.setdefault(key, _Key(lines))
            if has_value(value):
                known.put(row, value)
    found = {key: one.groups() for key, one in keys.items()}
    return {key: groups for key, groups in found.items() if groups is not None}


def quarters(numbers: NDArray[np.floating]) -> Groups:
    """Return for every number the range of its quartile, such as ``3 to 7``; none for those that are not finite."""
    finite = np.isfinite(numbers)
    codes: NDArray[np.int32] = np.full(len(numbers), -1, np.int32)
    known = numbers[finite]
    if not len(known):
        return Groups(codes, [])
    bounds = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="lower"))
    found, parts = np.unique(np.searchsorted(bounds, known, side="left"), return_inverse=True)
    ends = [(known[parts == part].min(), known[parts == part].max()) for part in range(len(found))]
    codes[finite] = parts
    return Groups(codes, range_names(ends))


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
    chosen: list[tuple[Groups, NDArray[np.int64]]] = []
    lines: list[int] = []
    for key, values in columns.items():
        own = Groups.of(values)
        sizes = _counts(own, np.ones(len(kept), bool))
        first = np.unique(own.codes[own.codes >= 0], return_index=True)[1]
        large = np.flatnonzero(sizes > 0)[np.argsort(first)]  # in order of appearance
        large = large[sizes[large] >= FEWEST_LINES]
        if (sizes > 0).sum() >= 2 and len(large):
            groups += [(key, own.names[code]) for code in large.tolist()]
            chosen.append((own, large))
            lines += sizes[large].tolist()
    if not groups:
        return []
    size = np.array(lines)

    def shares(remaining: NDArray[np.bool_]) -> NDArray[np.float64]:
        share: NDArray[np.float64] = np.concatenate([_counts(own, remaining)[large] for own, large in chosen]) / size
        return share

    found = shares(kept)
    drawn = np.stack([shares(one) for one in _random_removals(kept, clusters, seed)])
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
            lines=lines[at],
            kept=float(found[at]),
            low=float(low[at]),
            high=float(high[at]),
            beyond=bool(scores[at] < worst),
        )
        for at in order
    ]


def _counts(groups: Groups, rows: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many of some lines are in every group, ``(groups,)``."""
    return np.bincount(groups.codes[rows] + 1, minlength=len(groups.names) + 1)[1:]


def _random_removals(kept: NDArray[np.bool_], clusters: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    counts = np.bincount(clusters)
    gone = np.bincount(clusters, ~kept, minlength=len(counts)) / np.maximum(counts, 1)
    draws = min(_DRAWS, max(100, _NUMBERS_AT_ONCE // max(1, len(kept))))
    sizes = np.frexp(np.maximum(counts, 1) - 1)[1]  # 1, 2, 3 to 4, 5 to 8, ... lines
    alike = [np.flatnonzero(sizes == size) for size in np.unique(sizes)]
    for _ in range(draws):
        shares = np.empty(len(gone))
        for own in alike:
            shares[own] = random.permutation(gone[own])
        yield random.random(len(kept)) >= shares[clusters]
