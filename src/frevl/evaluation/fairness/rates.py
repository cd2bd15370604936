"""Rates by group and the gaps between them. Pure numpy.

Definitions follow fairlearn 0.15, against which a test checks them: the rate of a group is the mean over its items
(``MetricFrame.by_group``), the gap is the largest rate minus the smallest (``difference(method="between_groups")``),
the worst group has the smallest (``group_min``), and the equal-opportunity difference is the gap of the
true-positive rates (Hardt et al. 2016).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frevl.errors import UsageError
from frevl.evaluation.intervals import Interval, bootstrap_rates

__all__ = ["Cells", "equal_opportunity_difference", "gap", "rates_by_group"]

Floats = NDArray[np.float64]


class Cells:
    """Item values summed by cell (groups, or groups and classes) and cluster.

    Args:
        values: ``(n,)`` finite numbers, such as hits.
        cells: ``(n,)`` cell of every item, from 0; items of cell -1 are left out.
        clusters: ``(n,)`` image of every item, or another key that groups the items.
        count: Number of cells.

    Raises:
        UsageError: Lengths differ.
    """

    def __init__(self, values: ArrayLike, cells: ArrayLike, clusters: Sequence[Hashable], count: int) -> None:
        numbers, at = np.asarray(values, np.float64), np.asarray(cells, np.int64)
        if not len(numbers) == len(at) == len(clusters):
            raise UsageError(
                f"Groups: expected one cell and one cluster for each of {len(numbers)} values, found {len(at)} and "
                f"{len(clusters)}."
            )
        kept = at >= 0
        codes: dict[Hashable, int] = {}
        of_cluster = np.array(
            [codes.setdefault(name, len(codes)) for name, use in zip(clusters, kept.tolist(), strict=True) if use],
            np.int64,
        )
        flat = of_cluster * count + at[kept]
        shape = (max(1, len(codes)), count)
        self.sums: Floats = np.bincount(flat, numbers[kept], shape[0] * count).reshape(shape).astype(np.float64)
        self.counts: Floats = np.bincount(flat, minlength=shape[0] * count).reshape(shape).astype(np.float64)

    @property
    def rates(self) -> Floats:
        """``(cells,)``; NaN for a cell without items."""
        return _ratio(self.sums.sum(axis=0), self.counts.sum(axis=0))

    def gap(self, shape: tuple[int, int] | None = None) -> Interval:
        """Return the gap with its interval by bootstrap over clusters.

        A gap is never below 0, and neither is its interval; use `chance` to test whether groups differ at all.

        Args:
            shape: ``(groups, classes)`` of the cells; if given, the result is the largest gap between groups over the
                classes.
        """
        several = shape or (self.sums.shape[1], 1)
        return bootstrap_rates(
            self.sums, self.counts, lambda rates: gap(rates.reshape(len(rates), *several)).max(axis=1)
        )

    def difference(self, above: int, below: int) -> Interval:
        """Return the rate of one cell minus that of another, with its interval."""
        return bootstrap_rates(self.sums, self.counts, lambda rates: rates[:, above] - rates[:, below])

    def chance(self, *, permutations: int = 2_000, seed: int = 0) -> float | None:
        """Return how often a gap this large arises by chance if groups do not matter (a permutation test).

        Groups are permuted over clusters, so clusters stay whole.

        Args:
            permutations: Number of permutations.
            seed: Random seed for the permutations.

        Returns:
            p in (0, 1]; None if a cluster has items of several groups and so cannot be permuted.
        """
        occupied = self.counts > 0
        if not (occupied.sum(axis=1) == 1).all():
            return None
        sums, counts, own = self.sums.sum(axis=1), self.counts.sum(axis=1), occupied.argmax(axis=1)
        observed = float(gap(self.rates[None, :, None])[0, 0])
        random, hits, cells = np.random.default_rng(seed), 0, self.sums.shape[1]
        for _ in range(permutations):
            mixed = random.permutation(own)
            rates = _ratio(
                np.bincount(mixed, sums, cells).astype(np.float64), np.bincount(mixed, counts, cells).astype(np.float64)
            )
            hits += bool(np.max(rates) - np.min(rates) >= observed - 1e-12)
        return (1 + hits) / (1 + permutations)


def rates_by_group(values: ArrayLike, groups: Sequence[Any]) -> dict[Any, float]:
    """Return the mean of ``(n,)`` values by group, groups in their order of appearance.

    Raises:
        UsageError: Lengths differ, or there are no items.
    """
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or len(groups) != len(numbers):
        raise UsageError(f"Groups: expected one group for each value, found {numbers.shape} and {len(groups)}.")
    names = {name: code for code, name in enumerate(dict.fromkeys(groups))}
    codes = np.array([names[name] for name in groups])
    means = np.bincount(codes, numbers) / np.bincount(codes)
    return dict(zip(names, means.tolist(), strict=True))


def gap(rates: Floats) -> Floats:
    """Return the largest minus the smallest over groups of ``(n, groups, classes)`` rates, ``(n, classes)``.

    A class with a missing rate gives NaN.
    """
    found: Floats = rates.max(axis=1) - rates.min(axis=1)
    return found


def equal_opportunity_difference(truth: ArrayLike, said: ArrayLike, groups: Sequence[Any]) -> float:
    """Return the gap between groups in the true-positive rate, in [0, 1].

    Args:
        truth: ``(n,)`` of 0 and 1, the right answers.
        said: ``(n,)`` of 0 and 1, the given answers.
        groups: ``(n,)`` group of each item.

    Raises:
        UsageError: No item is true, or lengths differ. A group without a true item is skipped.
    """
    positive = np.flatnonzero(np.asarray(truth, np.float64) > 0.5).tolist()
    if not len(positive):
        raise UsageError("Groups: equal opportunity needs items that are true, found none.")
    rates = rates_by_group(np.asarray(said, np.float64)[positive], [groups[row] for row in positive])
    return max(rates.values()) - min(rates.values())


def _ratio(sums: Floats, counts: Floats) -> Floats:
    rates: Floats = np.full(sums.shape, np.nan)
    np.divide(sums, counts, out=rates, where=counts > 0)
    return rates
