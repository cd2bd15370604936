"""A metric that can be recomputed on resampled images, as needed for means over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.errors import UsageError
from frevl.evaluation.intervals import Interval, bootstrap_interval, bootstrap_statistic

__all__ = ["Measure", "mean_measure"]

Statistic = Callable[[NDArray[np.int64]], float]


@dataclass(frozen=True)
class Measure:
    """A metric of one run, or the mean of the same metric over runs.

    Attributes:
        clusters: ``(n,)`` image of every item (pair, query or group).
        values: ``(n,)`` numbers whose mean is the metric; None if the metric is not a mean.
        statistic: Maps item numbers, with repetitions, to the metric of these items; used if ``values`` is None.
        resamples: Number of bootstrap draws.
    """

    clusters: Sequence[str]
    values: NDArray[np.float64] | None = None
    statistic: Statistic | None = None
    resamples: int = 1000

    def interval(self) -> Interval:
        """Return the metric with its 95 % interval by bootstrap over clusters.

        Raises:
            UsageError: Neither ``values`` nor ``statistic`` is given, or there are no items.
        """
        if self.values is not None:
            return bootstrap_interval(self.values, self.clusters, resamples=self.resamples)
        if self.statistic is None:
            raise UsageError("Measure: expected values or a statistic, found neither")
        return bootstrap_statistic(self.statistic, self.clusters, resamples=self.resamples)


def mean_measure(measures: Sequence[Measure]) -> Measure:
    """Return the mean of a metric over seeds, measured on the same items.

    The bootstrap draws images once and averages all seeds on each draw: exact for means and other statistics, and
    narrower than a single seed's interval if seeds err on different pairs.

    Args:
        measures: One per seed, for the same metric and items.

    Raises:
        UsageError: There are none, or they are for different items.
    """
    if not measures:
        raise UsageError("mean_measure: expected at least one measure, found none")
    first = measures[0]
    if any(list(one.clusters) != list(first.clusters) for one in measures):
        raise UsageError(
            "mean_measure: the runs were not evaluated on the same items; evaluate all on the same pairs file"
        )
    values = [one.values for one in measures if one.values is not None]
    if len(values) == len(measures):
        return Measure(first.clusters, np.mean(values, axis=0), resamples=first.resamples)
    statistics = [one.statistic for one in measures if one.statistic is not None]
    if len(statistics) < len(measures):
        raise UsageError("mean_measure: some measures are means and some are not; give one metric at a time")
    return Measure(
        first.clusters,
        statistic=lambda items: float(np.mean([statistic(items) for statistic in statistics])),
        resamples=first.resamples,
    )
