"""A metric together with what is needed to recompute it on resampled images, as means over seeds require."""

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
        values: ``(n,)`` numbers whose mean is the metric; None for a metric that is not a mean.
        statistic: From item numbers, with repetitions, to the metric of these items; used where ``values`` is None.
        resamples: Draws of the bootstrap.
    """

    clusters: Sequence[str]
    values: NDArray[np.float64] | None = None
    statistic: Statistic | None = None
    resamples: int = 1000

    def interval(self) -> Interval:
        """Return the metric with its 95 % interval by bootstrap over clusters.

        Raises:
            UsageError: There is neither ``values`` nor ``statistic``, or no item.
        """
        if self.values is not None:
            return bootstrap_interval(self.values, self.clusters, resamples=self.resamples)
        if self.statistic is None:
            raise UsageError("Measure: expected values or a statistic, found neither")
        return bootstrap_statistic(self.statistic, self.clusters, resamples=self.resamples)


def mean_measure(measures: Sequence[Measure]) -> Measure:
    """Return the mean of a metric over seeds, measured on the same items.

    Its bootstrap draws images once and averages what all seeds say of the draw: exact for means and for other
    statistics, and narrower than the interval of a single seed where seeds err on different pairs.

    Args:
        measures: One a seed, of the same metric and the same items.

    Raises:
        UsageError: There is none, or they do not belong to the same items.
    """
    if not measures:
        raise UsageError("mean_measure: expected at least one measure, found none")
    first = measures[0]
    if any(list(one.clusters) != list(first.clusters) for one in measures):
        raise UsageError("mean_measure: the runs were not evaluated on the same items; evaluate all on one pairs file")
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
