"""Metrics that are more than a mean of hits, and the coverage of prediction sets."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frevl.data.benchmarks.vqa_answers import vqa_accuracy
from frevl.data.packed.columns import coded_values
from frevl.data.pairs import Pairs, Target
from frevl.errors import UsageError
from frevl.evaluation.intervals import (
    Interval,
    bootstrap_interval,
    bootstrap_statistic,
    certain_interval,
    drawn_counts,
    hit_interval,
    numbered_clusters,
    paired_difference,
)
from frevl.evaluation.metrics import calibration_gaps, mean_of_f1
from frevl.evaluation.slices import Rows, slice_table
from frevl.runs.prediction_sets import conformal_scores, right_classes, set_probabilities
from frevl.runs.scorer import Scorer

__all__ = [
    "Measure",
    "accepted_answers",
    "best_answers",
    "calibration_interval",
    "calibration_measures",
    "evaluate_sets",
    "few_each_note",
    "macro_f1_measure",
    "macro_f1_of",
    "mean_measure",
    "single_answer",
    "vqa_weights",
]

Statistic = Callable[[NDArray[np.int64]], float]
Gaps = tuple[NDArray[np.int64], NDArray[np.float64]]

_FEWEST_EACH = 5  # with two rows per class, macro-F1 was 7 points below that of many rows
_MOST_FACTOR = 8.0  # of the observed gaps: beyond it, they were so small by chance that they say nothing


@dataclass(frozen=True)
class Measure:
    """A metric of one run, or the mean of the same metric over runs.

    Attributes:
        clusters: ``(n,)`` image of every item (pair, query or group).
        values: ``(n,)`` numbers from 0 to 1 whose mean is the metric; None if the metric is not a mean.
        statistic: Maps item numbers, with repetitions, to the metric of these items; used if ``values`` is None.
        resamples: Number of bootstrap draws.
        biased: Whether the statistic, between 0 and 1, is that of `bootstrap_statistic` with ``biased``.
        gaps: If the metric is a calibration error: `frevl.evaluation.metrics.calibration_gaps` of every run.
        debiased: Whether to subtract what chance adds to this error; see `calibration_interval`.
        random: ``(n,)`` expected values if scores were drawn at random; None if unknown.
    """

    clusters: Sequence[str]
    values: NDArray[np.float64] | None = None
    statistic: Statistic | None = None
    resamples: int = 1000
    biased: bool = False
    gaps: tuple[Gaps, ...] = ()
    debiased: bool = False
    random: NDArray[np.float64] | None = None

    def at_chance(self) -> Interval | None:
        """Return the difference from random scores if it is not measurably above zero, else None."""
        if self.values is None or self.random is None:
            return None
        gap = paired_difference(self.values, self.random, self.clusters)
        return None if gap.low > 0 else gap

    def interval(self) -> Interval:
        """Return the metric with its 95 % interval by bootstrap over clusters.

        Raises:
            UsageError: Neither ``values`` nor ``statistic`` nor ``gaps`` is given, or there are no items.
        """
        if self.gaps:
            return calibration_interval(self.gaps, self.clusters, debiased=self.debiased, resamples=self.resamples)
        if self.values is not None:
            return hit_interval(self.values, self.clusters, resamples=self.resamples)
        if self.statistic is None:
            raise UsageError("Measure: expected values or a statistic, found neither")
        found = bootstrap_statistic(self.statistic, self.clusters, resamples=self.resamples, biased=self.biased)
        if not self.biased or np.isnan(found.low):  # `max(0.0, NaN)` would be 0
            return found
        if found.value in (0.0, 1.0) and found.low == found.high:
            return certain_interval(found.value, len(set(self.clusters)))
        return Interval(found.value, max(0.0, found.low), min(1.0, found.high))


def mean_measure(measures: Sequence[Measure]) -> Measure:
    """Return the mean of a metric over seeds, measured on the same items.

    The bootstrap draws images once and averages all seeds on each draw, which is exact for means and other statistics,
    and gives a narrower interval than a single seed if seeds err on different pairs.

    Args:
        measures: One measure per seed, for the same metric and items.

    Raises:
        UsageError: There are no measures, or they are for different items.
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
    gaps = [one.gaps for one in measures if one.gaps]
    if len(gaps) == len(measures):
        return Measure(first.clusters, resamples=first.resamples, gaps=sum(gaps, ()), debiased=first.debiased)
    statistics = [one.statistic for one in measures if one.statistic is not None]
    if len(statistics) < len(measures):
        raise UsageError("mean_measure: some measures are means and some are not; give one metric at a time")
    return Measure(
        first.clusters,
        statistic=lambda items: float(np.mean([statistic(items) for statistic in statistics])),
        resamples=first.resamples,
        biased=first.biased,
    )


def calibration_measures(clusters: Sequence[str], confidence: ArrayLike, hits: ArrayLike) -> dict[str, Measure]:
    """Return the measures of the calibration error: ``ece``, as it is published, and ``ece_debiased``.

    Args:
        clusters: ``(n,)`` image of every item.
        confidence: ``(n,)`` confidence of the predicted label, in ``[0, 1]``.
        hits: ``(n,)`` 1 if the label was right, else 0.
    """
    gaps = (calibration_gaps(confidence, hits),)
    return {
        "ece": Measure(clusters, resamples=200, gaps=gaps),
        "ece_debiased": Measure(clusters, resamples=200, gaps=gaps, debiased=True),
    }


def calibration_interval(
    gaps: Sequence[Gaps], clusters: Sequence[Hashable], *, debiased: bool, resamples: int = 200, seed: int = 0
) -> Interval:
    """Return the expected calibration error of a run, or its mean over runs, with the interval of the true error.

    On few items chance alone separates confidence and hit rate in every bin, so the error of a perfectly calibrated run
    is above 0 (3.3 % on 736 images at a mean confidence of 85 %), and draws with replacement overstate it once more.
    Kumar et al. 2019 ("Verified Uncertainty Calibration") subtract the excess of the draws, which removes less than
    half of this bias where the true error is 0. Here (ours) all gaps are multiplied by the one factor in [0, 1] at
    which, with the deviations of the draws added, the mean error is the one observed. The bounds are the smallest and
    largest factor whose draws do not exclude the observed error at 2.5 %.

    In simulations with 100 to 736 items and true errors from 0 to 6.7 %, the bias was 1.1 points on average (3.5
    without correction, 2.0 by the excess), and the interval held the true error in 90 % of them, in 96 % if it was 0.

    Args:
        gaps: `frevl.evaluation.metrics.calibration_gaps` of every run, for the same items.
        clusters: ``(n,)`` hashable keys, for example image ids; whole clusters are drawn.
        debiased: Whether the value is the corrected error. Otherwise it is the mean of
            `frevl.evaluation.metrics.expected_calibration_error`, and an interval without it is extended to hold it.
        resamples: Number of draws.
        seed: Random seed for the draws.

    Returns:
        The error in [0, 1] and its interval; NaN bounds if there is one cluster.
    """
    number_of = numbered_clusters(clusters, len(clusters))
    counts = np.bincount(number_of).astype(np.float64)
    sums = np.concatenate([_cell_sums(number_of, len(counts), *one) for one in gaps], axis=1)
    own = sums.sum(axis=0) / counts.sum()
    observed = float(np.abs(own).sum()) / len(gaps)
    if len(sums) < 2:
        return Interval(observed, float("nan"), float("nan"))
    drawn = [(block @ sums) / (block @ counts)[:, None] for block in drawn_counts(len(sums), resamples, seed)]
    noise = np.concatenate(drawn) - own

    def largest(reached: Callable[[NDArray[np.float64]], float], most: float) -> float:
        """Return the largest factor, at most ``most``, at which a summary of the draws is below the observed error."""
        low, high = 0.0, most
        for _ in range(40):
            middle = (low + high) / 2
            errors = np.abs(middle * own + noise).sum(axis=1) / len(gaps)
            low, high = (middle, high) if reached(errors) < observed else (low, middle)
        return low

    corrected = observed * largest(lambda errors: float(errors.mean()), 1.0)
    low = observed * largest(lambda errors: float(np.quantile(errors, 0.975)), 1.0)
    high = observed * largest(lambda errors: float(np.quantile(errors, 0.025)), _MOST_FACTOR)
    value = corrected if debiased else observed
    return Interval(value, min(low, corrected), max(high, value))


def _cell_sums(
    number_of: NDArray[np.int64], clusters: int, bins: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the ``(clusters, bins)`` sums of values."""
    width = int(bins.max()) + 1
    sums = np.bincount(number_of * width + bins, weights=values, minlength=clusters * width)
    return np.asarray(sums.reshape(clusters, width), np.float64)


def macro_f1_measure(
    clusters: Sequence[str], predicted: NDArray[np.int64], labels: Sequence[str], targets: Sequence[Any]
) -> Measure:
    """Return the measure of `macro_f1_of` all rows.

    Classes drawn once or not at all make the draws smaller. In simulations with 3 to 100 classes and 5 to 200 rows per
    class, plain quantiles held the macro-F1 of many rows in 49 to 94 %, the bounds of this measure in 92 to 96 %.
    """
    return Measure(clusters, statistic=macro_f1_of(predicted, labels, targets), resamples=100, biased=True)


def few_each_note(targets: Sequence[Any]) -> list[str]:
    """Return a note if most classes have too few rows for an F1 of their own; none if a row has not one target."""
    if any(target is None for target in targets):
        return []
    counts = np.unique(coded_values(targets)[0], return_counts=True)[1]
    few = int((counts < _FEWEST_EACH).sum())
    if 2 * few <= len(counts):
        return []
    return [
        f"{few:,} of {len(counts):,} classes have fewer than {_FEWEST_EACH} pairs here, too few for the F1 of a class: "
        "macro_f1 may be several points too low, and its interval does not cover that."
    ]


def macro_f1_of(predicted: NDArray[np.int64], labels: Sequence[str], targets: Sequence[Any]) -> Statistic:
    """Return the statistic `frevl.evaluation.metrics.macro_f1` of some rows.

    Args:
        predicted: ``(n,)`` int64, the number of the predicted label.
        labels: Distinct names of the labels.
        targets: ``(n,)`` right label of each row, by name.
    """
    codes, different = coded_values(targets)
    numbers: dict[Hashable, int] = {label: number for number, label in enumerate(labels)}
    of_value = np.array([numbers.setdefault(value, len(numbers)) for value in different], np.int64)
    of_target = of_value[codes]

    def score(rows: NDArray[np.int64]) -> float:
        return mean_of_f1(of_target[rows], predicted[rows])

    return score


def evaluate_sets(
    scorer: Scorer, pairs: Pairs, level: float, calibrate: Any, slices: dict[str, dict[str, Rows]]
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate a run's prediction sets.

    Args:
        scorer: The run with its store.
        pairs: Test pairs with targets; intervals resample their ``clusters``.
        level: Target coverage: how often the right class should be in the set.
        calibrate: As in `frevl.runs.prediction_sets.conformal_scores`.
        slices: Rows of every group of the pairs.

    Returns:
        ``level``, ``kind``, ``set_coverage`` and ``single`` (sets of one class) in percent, ``set_size`` in classes,
        each with ``ci95``, the coverage by slice, and notes.

    Raises:
        UsageError: The run cannot give sets.
    """
    conformal, notes = conformal_scores(scorer, calibrate, evaluated=pairs)
    probabilities = set_probabilities(scorer, pairs)
    inside, right = conformal.sets(probabilities, level), right_classes(scorer, pairs)
    covered: NDArray[np.float64] = np.any(inside & right, axis=1).astype(np.float64)
    if scorer.run.task == "matching" and bool(right.all(axis=0).any()):
        notes.append(
            "All pairs are right pairs, or all are wrong pairs, but the sets were calibrated on both, so the coverage "
            "can differ from the level."
        )
    sizes = inside.sum(axis=1).astype(np.float64)
    measures = {"set_coverage": covered, "set_size": sizes, "single": (sizes == 1).astype(np.float64)}
    found: dict[str, Any] = {"level": level, "kind": conformal.kind, "ci95": {}}
    for name, values in measures.items():
        is_size = name == "set_size"
        interval = (bootstrap_interval if is_size else hit_interval)(values, pairs.clusters)
        scale = 1 if is_size else 100
        found[name] = scale * interval.value
        bounds = interval.percent()
        found["ci95"][name] = None if bounds is None else [scale * bound / 100 for bound in bounds]
    found["slices"] = slice_table(slices, "set_coverage", covered, pairs.clusters)
    return found, [*notes, *conformal.notes(level)]


def best_answers(target: Target | None) -> list[str]:
    """Return the answers that count as right: all of a list, or those with the highest weight; none if all are 0."""
    if isinstance(target, dict):
        most = max(target.values())
        return [answer for answer, weight in target.items() if weight == most > 0]
    return [target] if isinstance(target, str) else list(target or [])


def single_answer(target: Target | None) -> str | None:
    """Return the answer if there is exactly one, alone or in a list; weights are never a single answer."""
    if isinstance(target, list):
        return target[0] if len(set(target)) == 1 else None
    return target if isinstance(target, str) else None


def accepted_answers(pairs: Pairs) -> list[list[str]]:
    """Return `best_answers` of every pair; pairs with the same single answer share one list."""
    shared: dict[str, list[str]] = {}
    return [
        shared.setdefault(target, [target]) if isinstance(target, str) else best_answers(target)
        for target in pairs.targets
    ]


def vqa_weights(predicted: list[str], pairs: Pairs) -> NDArray[Any] | None:
    """Return the official VQA accuracy if every pair has ten answers, the soft weight if it has weights."""
    answers = [extra.get("answers") for extra in pairs.extras]
    if all(isinstance(ten, list) and len(ten) == 10 and all(isinstance(a, str) for a in ten) for ten in answers):
        return vqa_accuracy(predicted, answers)  # type: ignore[arg-type]
    if any(isinstance(target, dict) for target in pairs.targets):
        return np.array(
            [
                target.get(label, 0.0) if isinstance(target, dict) else float(label in best_answers(target))
                for label, target in zip(predicted, pairs.targets, strict=True)
            ]
        )
    return None
