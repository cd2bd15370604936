"""Intervals and paired tests that respect clusters, because rows about one image are not independent.

Everything resamples whole clusters (images) with replacement, never rows. All functions are deterministic for a seed
and hold only one block of draws in memory. More than 200,000 clusters are first joined at random into that many groups
(`drawn_together`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frevl.data.packed.columns import Coded, joined
from frevl.errors import UsageError

__all__ = [
    "Interval",
    "bootstrap_interval",
    "bootstrap_rates",
    "bootstrap_statistic",
    "certain_interval",
    "drawn_counts",
    "drawn_together",
    "hit_interval",
    "hit_record",
    "numbered_clusters",
    "paired_difference",
    "paired_test",
]

Clusters = Sequence[Hashable] | NDArray[Any] | None
Floats = NDArray[np.float64]

DRAWS_IN_MEMORY = 1_000_000
_Z = 1.959964  # the 97.5 % quantile of the normal distribution
MOST_DRAWN = 200_000  # clusters: drawing ten million takes a second, and an interval takes a thousand draws


class Interval(NamedTuple):
    """A value with its interval; ``low`` and ``high`` are NaN if undetermined."""

    value: float
    low: float
    high: float

    def percent(self) -> list[float] | None:
        """Return low and high in percent, as stored in results; None if undetermined."""
        return None if np.isnan(self.low) else [100 * self.low, 100 * self.high]


def bootstrap_interval(
    values: ArrayLike,
    clusters: Clusters = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of per-item values with its percentile interval by cluster bootstrap.

    Clusters are drawn with replacement; the mean of a draw is the ratio of the drawn sums to the drawn counts, so
    clusters of different sizes keep their weight (Davison and Hinkley 1997, section 3.8).

    With one cluster there is nothing to resample, so low and high are NaN ("unknown"). If every item has the same
    value, the interval has zero width, because the bootstrap knows only the sample (see `hit_interval`). With fewer
    than about 20 clusters the interval is too narrow, as for every percentile bootstrap.

    Args:
        values: ``(n,)`` finite numbers, for example hits.
        clusters: ``(n,)`` hashable keys, for example image ids; by default every item is its own cluster.
        resamples: Number of draws.
        seed: Random seed for the draws.
        level: Confidence level, between 0 and 1.

    Raises:
        UsageError: No items, lengths differ, a value is not finite, or the level is not between 0 and 1.
    """
    items = _finite(values)
    sums, counts = _cluster_sums(items, clusters)
    mean = float(items.mean())
    if len(sums) < 2:
        return Interval(mean, float("nan"), float("nan"))
    sums, counts = _added_up(sums), _added_up(counts)
    drawn = [
        sums[chosen].sum(axis=1) / counts[chosen].sum(axis=1)
        for chosen in _draws(len(sums), resamples, np.random.default_rng(seed))
    ]
    return Interval(mean, *_quantiles(np.concatenate(drawn), level))


def hit_interval(hits: ArrayLike, clusters: Clusters = None, *, resamples: int = 1000) -> Interval:
    """Return the mean of hits with its 95 % interval: that of `bootstrap_interval`, unless all are 0 or all are 1.

    Equal values have a bootstrap interval of zero width, which would claim certainty, however few they are. Theirs is
    the interval of Wilson (1927) for a share of as many independent items as there are clusters.

    Args:
        hits: ``(n,)`` numbers from 0 to 1.
        clusters: As in `bootstrap_interval`.
        resamples: As in `bootstrap_interval`.

    Raises:
        UsageError: As in `bootstrap_interval`.
    """
    items = _finite(hits)
    found = bootstrap_interval(items, clusters, resamples=resamples)
    if found.value not in (0.0, 1.0) or found.low != found.high:
        return found
    return certain_interval(found.value, int(_cluster_numbers(clusters, len(items)).max()) + 1)


def certain_interval(share: float, count: int) -> Interval:
    """Return the 95 % interval of Wilson (1927) of a share that is 0 or 1, of ``count`` independent items."""
    width = _Z**2 / (count + _Z**2)
    return Interval(share, max(0.0, share - width), min(1.0, share + width))


def hit_record(hits: ArrayLike, clusters: Clusters) -> dict[str, Any]:
    """Return how many hits there are, and their mean with its interval in percent, as runs keep it.

    Args:
        hits: ``(n,)`` numbers from 0 to 1.
        clusters: As in `bootstrap_interval`, but None means that they are unknown, and so is the interval.
    """
    items = _finite(hits)
    bounds = None if clusters is None else hit_interval(items, clusters).percent()
    return {"n": len(items), "accuracy": 100 * float(items.mean()), "interval": bounds}


def paired_difference(
    a: ArrayLike,
    b: ArrayLike,
    clusters: Clusters = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return the mean of ``a`` minus the mean of ``b`` over the same items, with its interval by cluster bootstrap.

    Args:
        a: ``(n,)`` per-item values of one run.
        b: ``(n,)`` per-item values of the other, of the same items in the same order.
        clusters: As in `bootstrap_interval`.
        resamples: As in `bootstrap_interval`.
        seed: As in `bootstrap_interval`.
        level: As in `bootstrap_interval`.

    Raises:
        UsageError: As in `bootstrap_interval`.
    """
    difference = _difference(a, b)
    return bootstrap_interval(difference, clusters, resamples=resamples, seed=seed, level=level)


def paired_test(
    a: ArrayLike, b: ArrayLike, clusters: Clusters = None, *, permutations: int = 10_000, seed: int = 0
) -> float:
    """Return the two-sided p-value of "a and b are equally good", by flipping the signs of cluster differences.

    If the runs were equal, exchanging them on any image would change nothing, so every pattern of signs is equally
    likely (Fisher's randomisation test, with clusters as units). All patterns are enumerated if there are at most
    `permutations`; otherwise that many are drawn, and p is ``(1 + hits) / (1 + permutations)``.

    Args:
        a: ``(n,)`` per-item values of one run.
        b: ``(n,)`` per-item values of the other, of the same items in the same order.
        clusters: As in `bootstrap_interval`.
        permutations: Number of sign patterns.
        seed: Random seed for the signs.

    Returns:
        p in ``(0, 1]``.

    Raises:
        UsageError: No items, lengths differ, or a value is not finite.
    """
    sums, _ = _cluster_sums(_difference(a, b), clusters)
    # Clusters on which the runs agree have no sign to flip.
    sums = sums[sums != 0]
    if len(sums) == 0:
        return 1.0
    # Equal sums must count as equal even if added in a different order.
    sums = _added_up(sums)
    observed = abs(float(sums.sum())) - 1e-9 * float(np.abs(sums).sum())
    if len(sums) < 40 and 2 ** len(sums) <= permutations:
        patterns = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float(np.mean(np.abs((1.0 - 2.0 * patterns) @ sums) >= observed))
    random = np.random.default_rng(seed)
    hits = 0
    for size in _block_sizes(len(sums), permutations):
        bits = np.unpackbits(random.integers(0, 256, (size, -(-len(sums) // 8)), dtype=np.uint8), axis=1)
        flipped = sums.sum() - 2.0 * (bits[:, : len(sums)].astype(np.float64) @ sums)
        hits += int(np.count_nonzero(np.abs(flipped) >= observed))
    return (1 + hits) / (1 + permutations)


def bootstrap_statistic(
    statistic: Callable[[NDArray[np.int64]], float],
    clusters: Sequence[Hashable] | NDArray[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    biased: bool = False,
) -> Interval:
    """Return a statistic that is not a mean (macro-F1, median rank) with its interval by cluster bootstrap.

    Args:
        statistic: Maps item numbers, with repetitions, to the statistic of these items, for example ``lambda items:
            median_rank(ranks[items])``. Draws with a non-finite result are left out.
        clusters: ``(n,)`` hashable keys, for example image ids.
        resamples: Number of draws; the statistic is called once for each.
        seed: Random seed for the draws.
        level: Confidence level, between 0 and 1.
        biased: Draws give another statistic than the items, as these may than all there are: from the bounds of the
            draws their mean excess is subtracted once or twice, whichever makes the interval longer (ours).

    Returns:
        The statistic of all items and its interval; NaN bounds if there is one cluster or no finite draw.

    Raises:
        UsageError: No items, or the level is not between 0 and 1.
    """
    number_of = numbered_clusters(clusters, len(clusters))
    whole = float(statistic(np.arange(len(number_of))))
    if len(sizes := np.bincount(number_of)) < 2:
        return Interval(whole, float("nan"), float("nan"))
    # Items are sorted by cluster, so a cluster is a range and a draw a sequence of ranges.
    small = np.int32 if len(number_of) < 2**31 else np.int64  # of ten million items, every array counts
    order: NDArray[Any] = np.argsort(number_of, kind="stable").astype(small)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    del number_of
    drawn = []
    for block in _draws(len(sizes), resamples, np.random.default_rng(seed)):
        for chosen in block:
            ends = np.cumsum(lengths := sizes[chosen])
            items = np.repeat((starts[chosen] - (ends - lengths)).astype(small), lengths)
            items += np.arange(ends[-1], dtype=small)
            drawn.append(float(statistic(order[items])))
    low, high = _quantiles(np.asarray(drawn), level)
    excess = float(np.mean(drawn, where=np.isfinite(drawn))) - whole if biased and np.isfinite(low) else 0.0
    return Interval(whole, low - max(excess, 2 * excess), high - min(excess, 2 * excess))


def bootstrap_rates(
    sums: Floats,
    counts: Floats,
    statistic: Callable[[Floats], Floats],
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Return a statistic of several rates (a gap, a difference) with its interval by cluster bootstrap.

    Args:
        sums: ``(clusters, cells)`` sums of the values of every cluster in every cell.
        counts: ``(clusters, cells)`` numbers of these values.
        statistic: Maps ``(draws, cells)`` rates, NaN where a draw has no value, to ``(draws,)``. Draws with a
            non-finite result are left out.
        resamples: Number of draws.
        seed: Random seed for the draws; the same clusters are drawn as in `bootstrap_interval`.
        level: Confidence level, between 0 and 1.

    Returns:
        The statistic of all clusters and its interval; NaN bounds if there is one cluster or no finite draw.
    """

    def of(added: Floats, numbers: Floats) -> Floats:
        return statistic(np.divide(added, numbers, out=np.full(added.shape, np.nan), where=numbers > 0))

    whole = float(of(sums.sum(axis=0)[None], counts.sum(axis=0)[None])[0])
    if len(sums) < 2:
        return Interval(whole, float("nan"), float("nan"))
    sums, counts = _added_up(sums), _added_up(counts)
    drawn = [of(block @ sums, block @ counts) for block in drawn_counts(len(sums), resamples, seed)]
    return Interval(whole, *_quantiles(np.concatenate(drawn), level))


def drawn_counts(clusters: int, resamples: int, seed: int = 0) -> Iterator[Floats]:
    """Yield blocks ``(draws, clusters)`` of how often each cluster occurs in a draw with replacement."""
    for block in _draws(clusters, resamples, np.random.default_rng(seed)):
        yield np.stack([np.bincount(chosen, minlength=clusters) for chosen in block]).astype(np.float64)


def _finite(values: ArrayLike) -> Floats:
    items = np.asarray(values, dtype=np.float64)
    if items.ndim != 1 or len(items) == 0:
        raise UsageError(f"Interval: expected at least one value in shape (n,), found shape {items.shape}.")
    if not np.isfinite(items).all():
        where = int(np.flatnonzero(~np.isfinite(items))[0])
        raise UsageError(f"Interval: value {where} is {items[where]}; only finite values can be averaged.")
    return items


def _difference(a: ArrayLike, b: ArrayLike) -> Floats:
    first, second = _finite(a), _finite(b)
    if len(first) != len(second):
        raise UsageError(f"Paired comparison: expected the same items, found {len(first)} and {len(second)}.")
    return first - second


def _cluster_numbers(clusters: Clusters, n: int) -> NDArray[np.int64]:
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n or n == 0:
        raise UsageError(f"Interval: expected one cluster for each of {n} items, found {len(clusters)}.")
    if isinstance(clusters, Coded):
        return joined([clusters])[0][0]
    # A dict rather than np.unique: any hashable works, and long paths are not copied into a fixed-width array.
    numbers: dict[Hashable, int] = {}
    keys = clusters.tolist() if isinstance(clusters, np.ndarray) else clusters
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _cluster_sums(values: Floats, clusters: Clusters) -> tuple[Floats, Floats]:
    number_of = _cluster_numbers(clusters, len(values))
    sums = np.bincount(number_of, weights=values)
    return np.asarray(sums, np.float64), np.asarray(np.bincount(number_of), np.float64)


def numbered_clusters(clusters: Clusters, n: int) -> NDArray[np.int64]:
    """Return the ``(n,)`` number of the cluster of each item, after joining as in `drawn_together`."""
    number_of = _cluster_numbers(clusters, n)
    return number_of if (together := drawn_together(int(number_of.max()) + 1)) is None else together[number_of]


def drawn_together(clusters: int) -> NDArray[np.int64] | None:
    """Return the ``(clusters,)`` one of `MOST_DRAWN` random groups that each is drawn in; None if they are no more.

    The standard error is that of the clusters, give or take 0.2 % (ours); a thousand draws leave 2 % to chance.
    """
    return np.random.default_rng(0).permutation(clusters) % MOST_DRAWN if clusters > MOST_DRAWN else None


def _added_up(sums: Floats) -> Floats:
    """Add up the sums of clusters, ``(clusters,)`` or ``(clusters, cells)``, that are drawn together."""
    if (together := drawn_together(len(sums))) is None:
        return sums
    added = [np.bincount(together, weights=cell) for cell in sums.reshape(len(sums), -1).T]
    return np.stack(added, axis=1).reshape(-1, *sums.shape[1:]).astype(np.float64)


def _block_sizes(clusters: int, total: int) -> Iterator[int]:
    block = max(1, DRAWS_IN_MEMORY // clusters)
    for start in range(0, total, block):
        yield min(block, total - start)


def _draws(clusters: int, resamples: int, random: np.random.Generator) -> Iterator[NDArray[np.int32]]:
    """Yield blocks ``(draws, clusters)`` of cluster numbers, drawn with replacement."""
    for size in _block_sizes(clusters, resamples):
        yield random.integers(0, clusters, (size, clusters), dtype=np.int32)


def _quantiles(drawn: Floats, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise UsageError(f"Interval: the level must lie between 0 and 1, found {level}.")
    finite = drawn[np.isfinite(drawn)]
    if len(finite) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
