"""Calibration and selective prediction: are probabilities reliable, and what remains without doubtful answers?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.gaps import edges
from frevl.diagnosis.model_comparison import ModelComparison, Predictions
from frevl.evaluation.intervals import Interval, bootstrap_interval, hit_interval
from frevl.evaluation.measures import calibration_interval
from frevl.evaluation.metrics import calibration_gaps, expected_calibration_error

__all__ = [
    "abstention_claim",
    "abstention_finding",
    "calibration_claim",
    "calibration_finding",
    "reliability",
    "risk_coverage",
    "selective_prediction_findings",
    "threshold_for",
]

_BINS = 15
_PRECISIONS = (0.8, 0.9, 0.95, 0.99)
_SIMULATIONS = 200
_FEWEST_ANSWERED = 20  # a threshold that leaves fewer development pairs is meaningless
_HARDLY_ANY = 5.0  # percent of the test pairs


def selective_prediction_findings(comparison: ModelComparison, *, precision: float | None = None) -> list[Finding]:
    """Report whether the probabilities of the recommended model can be trusted.

    Args:
        comparison: The trained models.
        precision: Target share of right answers among those given, in (0, 1); None takes the first of 80, 90, 95 and 99
            % that the model does not reach anyway.
    """
    model = comparison.recommended
    return [
        calibration_finding(model.title, model.test, comparison.clusters),
        abstention_finding(model.title, model.dev, model.test, comparison.clusters, precision=precision),
    ]


def reliability(confidence: np.ndarray, hits: np.ndarray, bins: int = _BINS) -> list[dict[str, Any]]:
    """Return the rows of a reliability plot: bins of equal width, as in `expected_calibration_error`.

    Args:
        confidence: ``(n,)`` in [0, 1], calibrated probability of each answer.
        hits: ``(n,)`` in [0, 1], whether each answer is right.
        bins: Number of bins.

    Returns:
        ``bin``, ``pairs``, ``confidence %`` and ``right %`` of every bin that is not empty.
    """
    bin_of = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side="left")
    return [
        {
            "bin": f"{100 * b / bins:.0f} to {100 * (b + 1) / bins:.0f} %",
            "pairs": int(inside.sum()),
            "confidence %": 100 * float(confidence[inside].mean()),
            "right %": 100 * float(hits[inside].mean()),
        }
        for b in range(bins)
        if (inside := bin_of == b).any()
    ]


def calibration_finding(name: str, predictions: Predictions, clusters: Sequence[str]) -> Finding:
    """Compare a model's confidence with its share of right answers.

    Even for a perfectly calibrated model, the expected calibration error is above 0 on a finite sample, so it is
    compared with the value that perfectly calibrated answers of the same confidences reach by chance, and corrected
    (`frevl.evaluation.measures.calibration_interval`); over- or under-confidence is claimed by the mean of confidence
    minus hit, whose interval resamples images.
    """
    confidence, hits = predictions.confidence, predictions.hits
    gaps = [calibration_gaps(confidence, hits)]
    after, corrected = (calibration_interval(gaps, clusters, debiased=one, resamples=300) for one in (False, True))
    before = expected_calibration_error(predictions.raw, hits)
    random = np.random.default_rng(0)
    by_chance = [
        expected_calibration_error(confidence, (random.random(len(confidence)) < confidence).astype(float))
        for _ in range(_SIMULATIONS)
    ]
    limit = float(np.quantile(by_chance, 0.95))
    gap = bootstrap_interval(confidence - hits, clusters)
    word, advice = calibration_claim(gap, miscalibrated=after.value > limit)
    rows = reliability(confidence, hits)
    raw = reliability(predictions.raw, hits)
    return Finding(
        name="calibration",
        section="calibration",
        claim=(
            f"{name[0].upper()}{name[1:]} is {word}: expected calibration error {100 * after.value:.1f} % "
            f"({100 * before:.1f} % before the "
            f"temperature{_direction(bootstrap_interval(predictions.raw - hits, clusters))})."
        ),
        value=100 * after.value,
        ci95=after.percent(),
        how=(
            f"Expected calibration error on {len(hits):,} test pairs in {_BINS} bins, in percent; temperature fitted "
            "on development pairs. Perfectly calibrated answers of these confidences stay below "
            f"{100 * limit:.1f} % in 95 % of simulations. Without what chance adds, the error is about "
            f"{100 * corrected.value:.1f} %; the 95 % interval, by bootstrap over images, is that of the true error."
        ),
        advice=advice,
        table=[{**row, "temperature": "after"} for row in rows] + [{**row, "temperature": "before"} for row in raw],
        plot=chart(
            "lines",
            "confidence, %",
            "right answers, %",
            series("after temperature", *_xy(rows)),
            series("before", *_xy(raw)),
            series("perfect", [0.0, 100.0], [0.0, 100.0], dashed=True),
        ),
    )


def calibration_claim(gap: Interval, *, miscalibrated: bool) -> tuple[str, str]:
    """Return a description of a model's calibration, and advice.

    Args:
        gap: Mean of confidence minus hit, as a share of 1, with its interval.
        miscalibrated: Whether the expected calibration error exceeds what chance explains.
    """
    if not miscalibrated:
        return (
            "as calibrated as can be measured here",
            "Probabilities can be read as the share of right answers among pairs like these.",
        )
    if gap.low > 0:
        return (
            f"over-confident by {100 * gap.value:.1f} points ({100 * gap.low:.1f} to {100 * gap.high:.1f})",
            "Do not act on its probabilities as they are: they were calibrated on the development pairs, and the test "
            "pairs differ from those; calibrate on pairs like those of the test.",
        )
    if gap.high < 0:
        return (
            f"under-confident by {-100 * gap.value:.1f} points ({-100 * gap.high:.1f} to {-100 * gap.low:.1f})",
            "Its probabilities are too low: calibrate on pairs like those of the test before acting on them.",
        )
    return (
        "not calibrated bin by bin, though right on average",
        "Use its probabilities to rank answers; calibrate on more development pairs before acting on their size.",
    )


def _direction(gap: Interval) -> str:
    """Return the direction of the miscalibration; empty if the model is right on average as far as can be measured."""
    if gap.low > 0:
        return f", over-confident by {100 * gap.value:.1f} points"
    return f", under-confident by {-100 * gap.value:.1f} points" if gap.high < 0 else ""


def _xy(rows: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [row["confidence %"] for row in rows], [row["right %"] for row in rows]


def risk_coverage(confidence: np.ndarray, hits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coverage and share of right answers if only the surest answers are given (El-Yaniv and Wiener 2010).

    Answers of equal confidence are given or withheld together.

    Returns:
        ``(k,)`` coverage in (0, 1], ascending to 1, and ``(k,)`` share of right answers among those given.
    """
    order = np.argsort(-confidence, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(confidence[order])), len(order) - 1)
    return (ends + 1) / len(order), np.cumsum(hits[order])[ends] / (ends + 1)


def threshold_for(precision: float, confidence: np.ndarray, hits: np.ndarray) -> float | None:
    """Return the smallest confidence above which the answers reach a precision; None if none does.

    Args:
        precision: Target share of right answers, in (0, 1).
        confidence: ``(n,)`` confidence on development pairs.
        hits: ``(n,)`` in [0, 1], whether each answer is right.
    """
    coverage, right = risk_coverage(confidence, hits)
    enough = (right >= precision) & (coverage * len(hits) >= min(_FEWEST_ANSWERED, len(hits)))
    if not enough.any():
        return None
    given = round(float(coverage[np.flatnonzero(enough)[-1]]) * len(hits))
    return float(np.sort(confidence)[::-1][given - 1])


def abstention_finding(
    name: str, dev: Predictions, test: Predictions, clusters: Sequence[str], *, precision: float | None = None
) -> Finding:
    """Choose thresholds on development pairs, and report their effect on test pairs."""
    overall = float(dev.hits.mean())
    wanted = precision if precision is not None else next((p for p in _PRECISIONS if p > overall), _PRECISIONS[-1])
    table = [
        _threshold_row(one, dev, test, clusters)
        for one in sorted({*_PRECISIONS, wanted})
        if one > overall or one == wanted
    ]
    row = next(line for line in table if line["wanted %"] == 100 * wanted)
    claim, advice = abstention_claim(name, wanted, row)
    bounds = None if row["low"] is None else [row["low"], row["high"]]
    coverage, right = risk_coverage(test.confidence, test.hits)
    shown = np.unique(np.linspace(0, len(coverage) - 1, 60).astype(int))
    return Finding(
        name="abstention",
        section="calibration",
        claim=claim,
        value=row["right %"],
        ci95=bounds,
        how=(
            f"The threshold is the smallest that reaches the target precision on {len(dev.hits):,} development pairs "
            f"(at least {_FEWEST_ANSWERED} answered); coverage and percent right are those of the test pairs, 95 % "
            "bootstrap over images."
        ),
        advice=advice,
        table=table,
        plot=chart(
            "lines",
            "test pairs answered, %",
            "right among them, %",
            series(name, [100 * float(coverage[i]) for i in shown], [100 * float(right[i]) for i in shown]),
        ),
    )


def abstention_claim(name: str, wanted: float, row: dict[str, Any]) -> tuple[str, str]:
    """Return claim and advice on a threshold.

    Args:
        name: Name of the model.
        wanted: Share of right answers for which the threshold was chosen, in (0, 1).
        row: ``threshold`` (a confidence, or None if none reaches the target), ``answered %`` and ``right %`` of the
            test pairs (None if none reaches the threshold), and the interval ``low`` and ``high`` of the latter.
    """
    if row["threshold"] is None:
        return (
            f"No threshold gives {100 * wanted:.0f} % right answers of {name} on the development pairs.",
            "Do not automate at this precision; lower it, or improve the model first.",
        )
    if row["right %"] is None:
        return (
            f"Answers of {name} above {row['threshold']:.2f} were {100 * wanted:.0f} % right on the development pairs, "
            "but no test pair reaches that confidence.",
            "The test pairs differ from the development pairs; look at them.",
        )
    claim = (
        f"Answering only above a confidence of {row['threshold']:.2f}, chosen for {100 * wanted:.0f} % right "
        f"answers, {name} answers {row['answered %']:.1f} % of the test pairs, {row['right %']:.1f} % of them right"
    )
    if row["low"] is None:
        return f"{claim}.", "A single image shows nothing about the share of right answers: test on more images."
    claim += f" ({row['low']:.1f} to {row['high']:.1f})"
    if row["high"] < 100 * wanted:
        return (
            f"{claim}: fewer than the target.",
            "Do not use this threshold: the test pairs differ from the development pairs, or those were too few to "
            "choose it; choose it on pairs like those of the test.",
        )
    if row["answered %"] < _HARDLY_ANY:
        return (
            f"{claim}.",
            "So few pairs are answered that the threshold saves hardly any work: improve the model first.",
        )
    if row["answered %"] > 100 - _HARDLY_ANY:
        return f"{claim}.", "Nearly all answers may be given: a threshold is hardly needed at this precision."
    return f"{claim}.", f"Use {row['threshold']:.2f} as the threshold, and send the rest to a person."


def _threshold_row(precision: float, dev: Predictions, test: Predictions, clusters: Sequence[str]) -> dict[str, Any]:
    threshold = threshold_for(precision, dev.confidence, dev.hits)
    empty = {"wanted %": 100 * precision, "threshold": threshold, "answered %": None, "right %": None}
    if threshold is None:
        return {**empty, "low": None, "high": None}
    given = test.confidence >= threshold
    if not given.any():
        return {**empty, "answered %": 0.0, "low": None, "high": None}
    right = hit_interval(test.hits[given], [clusters[row] for row in np.flatnonzero(given).tolist()])
    bounds = edges(right.percent())
    shares = {"answered %": 100 * float(given.mean()), "right %": 100 * right.value}
    return {**empty, **shares, "low": bounds[0], "high": bounds[1]}
