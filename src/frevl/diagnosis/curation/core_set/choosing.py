"""Choose test items that preserve the order of runs and their differences. Pure numpy.

The choice starts from a random subset. Then, 30 times, a random unit (an image with all its lines) is replaced by the
one that brings the differences between runs closest to those on the whole set; among equals, by the most
discriminating one, i.e. with the highest point-biserial correlation with the whole set's score over runs and their
bootstrap replicas. So most of the subset stays random, which keeps it fair to runs not used in the choice. Choosing
every unit, by differences, by discrimination, or both, with or without mixtures of the runs, was no better for those
and sometimes worse (ours; measured in research/experiments/log.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_units", "discrimination", "distance_change", "kendall_tau", "random_units"]

_REPLICAS = 100
_BONUS = 0.01  # share of the spread of the runs within which the most discriminating unit is chosen
_SWAPS = 30

Floats = NDArray[np.float64]


def discrimination(sums: Floats, counts: Floats, *, seed: int = 0) -> Floats:
    """Return every unit's point-biserial correlation with the whole set's score, over runs and replicas.

    Args:
        sums: ``(runs, units)`` hits of every run in every unit.
        counts: ``(units,)`` number of lines in every unit.
        seed: Random seed for the replicas, which draw whole units with replacement.

    Returns:
        ``(units,)`` in [-1, 1]; 0 if all runs agree.
    """
    random = np.random.default_rng(seed)
    units = len(counts)
    draws = np.stack([np.bincount(random.integers(0, units, units), minlength=units) for _ in range(_REPLICAS)])
    scores = (sums @ draws.T) / (draws @ counts)  # (runs, replicas)
    means = sums / counts
    centred = means - means.mean(axis=0)
    around = scores - scores.mean()
    covariance = centred.T @ around.mean(axis=1) / len(sums)
    deviations = means.std(axis=0) * around.std()
    found: Floats = np.divide(covariance, deviations, out=np.zeros(units), where=deviations > 1e-12)
    return found


def choose_units(
    sums: Floats, counts: Floats, lines: float, *, allowed: NDArray[np.bool_] | None = None, seed: int = 0
) -> NDArray[np.int64]:
    """Choose units with at most a given number of lines.

    Args:
        sums: ``(runs, units)`` hits of every run in every unit.
        counts: ``(units,)`` number of lines in every unit.
        lines: Maximum total lines of the chosen units.
        allowed: ``(units,)`` units that may be chosen; None allows all. The scores to preserve are those on all units.
        seed: Random seed.

    Returns:
        Unit numbers, ascending; empty if every unit has more lines.
    """
    random = np.random.default_rng(seed)
    chosen = np.zeros(len(counts), bool)
    allowed = np.ones(len(counts), bool) if allowed is None else allowed
    chosen[random_units(counts, lines, allowed=allowed, seed=seed)] = True
    whole = sums.sum(axis=1) / counts.sum()
    wanted = (whole - whole.mean())[:, None]
    apart = discrimination(sums, counts, seed=seed) * counts / max(lines, 1)
    apart *= _BONUS * float((wanted**2).mean())

    def costs(units: NDArray[np.int64], others: Floats, taken: float) -> Floats:
        scores = (others[:, None] + sums[:, units]) / (taken + counts[units])
        found: Floats = ((scores - scores.mean(axis=0) - wanted) ** 2).mean(axis=0) - apart[units]
        return found

    for _ in range(_SWAPS if chosen.any() else 0):
        goes = int(random.choice(np.flatnonzero(chosen)))
        chosen[goes] = False
        others, taken = sums[:, chosen].sum(axis=1), float(counts[chosen].sum())
        fits = np.flatnonzero(allowed & ~chosen & (counts + taken <= lines + 1e-9))
        # The removed unit may be chosen again if none is better.
        chosen[fits[int(np.argmin(costs(fits, others, taken)))]] = True
    return np.flatnonzero(chosen)


def random_units(
    counts: Floats, lines: float, *, allowed: NDArray[np.bool_] | None = None, seed: int
) -> NDArray[np.int64]:
    """Return as many random units as fit into a given number of lines.

    Args:
        counts: ``(units,)`` number of lines in every unit.
        lines: Maximum total lines; a unit with more on its own is left out.
        allowed: ``(units,)`` units that may be drawn; None allows all.
        seed: Random seed for the order in which they are tried.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    fits = counts <= lines + 1e-9
    order = order[(fits if allowed is None else fits & allowed)[order]]
    return order[np.cumsum(counts[order]) <= lines + 1e-9]


def distance_change(whole: Floats, part: Floats) -> float:
    """Return the mean change in pairwise differences between runs, from the whole set to a part.

    Args:
        whole: ``(runs,)`` scores on the whole set.
        part: ``(runs,)`` scores on the part.
    """
    first, second = np.triu_indices(len(whole), 1)
    return float(np.abs((part[first] - part[second]) - (whole[first] - whole[second])).mean())


def kendall_tau(one: Floats, other: Floats) -> float:
    """Return Kendall's tau-b of two lists of scores: 1 for identical order; NaN if one is constant.

    Args:
        one: ``(n,)`` scores.
        other: ``(n,)`` scores of the same items.
    """
    first, second = np.triu_indices(len(one), 1)
    # Sums of the same numbers in a different order differ only by rounding, which must not count.
    a = np.sign(np.round(one[first] - one[second], 12))
    b = np.sign(np.round(other[first] - other[second], 12))
    pairs = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / pairs if pairs else float("nan")
