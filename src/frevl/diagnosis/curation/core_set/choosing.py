"""Which items of a test set to keep so that runs keep order and distance. Pure numpy.

A random part is the start. Then, a few times, a random unit (an image with all its lines) goes, and the one comes that
brings the distances between the runs nearest to those of the whole set; among those that do equally well, the one that
tells runs apart best: by its point-biserial correlation with the score of the whole set, over the runs and bootstrap
replicas of them. So nearly all of the part stays random, which keeps it fair to runs that did not choose. Choosing
every unit, by distances, by what tells runs apart, or both, with or without mixtures of the runs, was no better for
those and sometimes worse (ours; measured in research/experiments/log.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose_units", "discrimination", "distance_change", "kendall_tau", "random_units"]

_REPLICAS = 100
_BONUS = 0.01  # of the spread of the runs, for what tells them apart best
_SWAPS = 30

Floats = NDArray[np.float64]


def discrimination(sums: Floats, counts: Floats, *, seed: int = 0) -> Floats:
    """Return the point-biserial correlation of every unit with the score of the whole set, over runs and replicas.

    Args:
        sums: ``(runs, units)`` hits of every run in every unit.
        counts: ``(units,)`` lines of every unit.
        seed: Of the replicas: whole units are drawn with replacement.

    Returns:
        ``(units,)`` in [-1, 1]; 0 where all runs say the same.
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
    """Choose units of at most so many lines.

    Args:
        sums: ``(runs, units)`` hits of every run in every unit.
        counts: ``(units,)`` lines of every unit.
        lines: Most lines of the chosen units together.
        allowed: ``(units,)`` those that may be chosen; None allows all. The scores to keep are those of all units.
        seed: Of every random choice.

    Returns:
        Numbers of the units, ascending; none where every one has more lines.
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
        # What goes may come back: then nothing was better.
        chosen[fits[int(np.argmin(costs(fits, others, taken)))]] = True
    return np.flatnonzero(chosen)


def random_units(
    counts: Floats, lines: float, *, allowed: NDArray[np.bool_] | None = None, seed: int
) -> NDArray[np.int64]:
    """Return random units, as many as fit into so many lines.

    Args:
        counts: ``(units,)`` lines of every unit.
        lines: Most lines of them together; a unit that has more by itself is left out.
        allowed: ``(units,)`` those that may be drawn; None allows all.
        seed: Of the order in which they are tried.
    """
    order = np.random.default_rng(seed).permutation(len(counts))
    fits = counts <= lines + 1e-9
    order = order[(fits if allowed is None else fits & allowed)[order]]
    return order[np.cumsum(counts[order]) <= lines + 1e-9]


def distance_change(whole: Floats, part: Floats) -> float:
    """Return by how much the distance between two runs differs between the whole and a part, on average over pairs.

    Args:
        whole: ``(runs,)`` scores on the whole set.
        part: ``(runs,)`` scores on the part.
    """
    first, second = np.triu_indices(len(whole), 1)
    return float(np.abs((part[first] - part[second]) - (whole[first] - whole[second])).mean())


def kendall_tau(one: Floats, other: Floats) -> float:
    """Return Kendall's tau-b of two lists of scores: 1 if they order all alike; NaN where one of them is constant.

    Args:
        one: ``(n,)``.
        other: ``(n,)``.
    """
    first, second = np.triu_indices(len(one), 1)
    # Sums of the same numbers in another order differ by rounding, which is no order.
    a = np.sign(np.round(one[first] - one[second], 12))
    b = np.sign(np.round(other[first] - other[second], 12))
    pairs = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / pairs if pairs else float("nan")
