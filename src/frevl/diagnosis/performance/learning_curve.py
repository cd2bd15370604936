"""Learning curves: how much ten times the data would gain, and for which model.

Errors at five sizes follow ``e(n) = c + a * n**-b`` with ``a, c >= 0`` (Hestness et al. 2017, "Deep Learning Scaling is
Predictable, Empirically"). The interval covers the test sample and the scatter of the points around the law; that the
law continues to hold is an assumption, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from frevl.diagnosis.findings import Finding, chart, series
from frevl.diagnosis.model_comparison import ComparedModel, ModelComparison, fit, predict_all, seen_by
from frevl.diagnosis.model_specs import SMALL
from frevl.diagnosis.splits import share_of_clusters
from frevl.errors import PairsError
from frevl.terminal import print_progress

__all__ = ["Law", "curve_claim", "fit_law", "law_interval", "learning_curve_findings"]

POINTS = 5
_FEWEST_POINTS = 4  # the law has three parameters
_FEWEST = 40  # pairs at the smallest point
_SMALLEST_SHARE = 1 / 16
_SHARES_OF_MANY = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1.0)  # a half and a quarter take longer than all others together
_EXPONENTS = np.concatenate([np.arange(0.05, 1.0, 0.05), np.arange(1.0, 2.01, 0.1)])
_DRAWS = 400
_WORTH = 0.5  # points from which a change is called a gain
_TIMES = 10  # factor by which the data would grow


@dataclass(frozen=True)
class Law:
    """``error(n) = floor + factor * n**-exponent``, all in shares of 1."""

    floor: float
    factor: float
    exponent: float

    def at(self, n: float) -> float:
        """Return the error at this number of training pairs, in [0, 1]."""
        return float(min(self.floor + self.factor * n**-self.exponent, 1.0))


def fit_law(sizes: np.ndarray, errors: np.ndarray) -> Law:
    """Fit the law by least squares of relative errors: exactly for every exponent of a grid; the best exponent wins.

    Relative errors weight a half and a hundredth alike: the late, small errors show where the curve is going.

    Args:
        sizes: ``(k,)`` numbers of training pairs.
        errors: ``(k,)`` errors at these sizes, in (0, 1].
    """
    weights = errors**-2 / (errors**-2).sum()
    mean = float(weights @ errors)
    x = sizes ** -_EXPONENTS[:, None]  # one row per exponent
    centred = x - (x @ weights)[:, None]
    factors = (centred * weights) @ errors / (np.square(centred) @ weights)
    floors = mean - factors * (x @ weights)
    # If the floor would fall below 0, the best solution has the floor 0.
    factors = np.where(floors < 0, (x * weights) @ errors / (np.square(x) @ weights), factors)
    floors = np.maximum(floors, 0.0)
    losses = np.square(floors[:, None] + factors[:, None] * x - errors) @ weights
    losses[factors <= 0] = np.inf
    best = int(losses.argmin())
    if not losses[best] < float(weights @ np.square(errors - mean)) * (1 - 1e-9):
        return Law(mean, 0.0, 1.0)
    return Law(float(floors[best]), float(factors[best]), float(_EXPONENTS[best]))


def law_interval(
    sizes: np.ndarray, hits: np.ndarray, clusters: Sequence[str], n: float, seed: int
) -> tuple[float, float]:
    """Return the 95 % interval of the law's error at n, in [0, 1].

    Test clusters are resampled with replacement, the same for all sizes, and every error is multiplied by a log-normal
    number with the relative deviation of the points around the law (five points leave two degrees of freedom).

    Args:
        sizes: ``(k,)`` numbers of training pairs.
        hits: ``(k, pairs)`` test hits at every size.
        clusters: Image of every test pair.
        n: Number of training pairs to extrapolate to.
        seed: Random seed for the resampling.
    """
    random = np.random.default_rng(seed)
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    number_of = np.array([names[name] for name in clusters])
    wrong = np.stack([np.bincount(number_of, weights=1 - row, minlength=len(names)) for row in hits])
    counts = np.bincount(number_of).astype(float)
    least = 0.5 / counts.sum()  # observing no error does not mean that the error is 0
    errors = np.maximum(wrong.sum(axis=1) / counts.sum(), least)
    law = fit_law(sizes, errors)
    residuals = np.log(errors / np.array([law.at(size) for size in sizes]))
    deviation = float(np.sqrt(np.square(residuals).sum() / max(len(sizes) - 3, 1)))
    drawn = np.empty(_DRAWS)
    for draw in range(_DRAWS):
        chosen = random.integers(0, len(names), len(names))
        resampled = wrong[:, chosen].sum(axis=1) / counts[chosen].sum()
        moved = np.clip(resampled * np.exp(random.normal(0.0, deviation, len(sizes))), least, 1)
        drawn[draw] = fit_law(sizes, moved).at(n)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def learning_curve_findings(
    comparison: ModelComparison, *, folder: Path, time_limit: float, progress: bool = False
) -> list[Finding]:
    """Train models on growing parts of the training images.

    They are the best fusion, the linear probe (or the best baseline), the best text-only model, and the recommended
    one; if the pairs have one side only, the linear probe and the recommended model.

    Args:
        comparison: The comparison; its models are the last point of each curve.
        folder: Folder for the runs.
        time_limit: Total seconds for all trainings.
        progress: Show progress.
    """
    train = comparison.splits.train
    smallest = max(_SMALLEST_SHARE, min(1.0, _FEWEST / len(train)))
    if smallest > 0.25:
        return [_too_few(len(train))]
    shares = np.geomspace(smallest, 1.0, POINTS) if len(train) <= SMALL else np.array(_SHARES_OF_MANY)
    linear = [model for model in comparison.models if model.name == "linear"]
    chosen = linear
    if len(comparison.splits.train.sides) == 2:
        chosen = [comparison.best("fusion"), *(linear or [comparison.best("baseline")]), comparison.best("text")]
    models = list({model.name: model for model in [*chosen, comparison.recommended]}.values())
    cost = sum(model.seconds for model in models) * float(shares[:-1].sum())
    slower = min(1.0, time_limit / max(cost, 1e-9))
    curves = []
    for model in models:
        curve = _Curve(model)
        for number, share in enumerate(shares[:-1]):
            part = share_of_clusters(train, float(share), seed=comparison.splits.seed)
            limit = max(2 * model.seconds * share * slower, 2.0)
            place = folder / model.name / str(number)
            try:
                scorer = fit(comparison.splits, model.spec, folder=place, time_limit=limit, pairs=part)
            except PairsError:  # so few pairs may have a single class: then the curve starts later
                continue
            tested = seen_by(model.spec, comparison.splits.test, comparison.splits)
            curve.add(len(part), predict_all(scorer, tested).hits)
        curve.add(len(train), model.test.hits)
        shown = ", ".join(f"{100 * row.mean():.1f}" for row in curve.hits)
        print_progress(f"  {model.name:<18} {shown} %", enabled=progress)
        if len(curve.sizes) >= _FEWEST_POINTS:
            curves.append(curve)
    return _findings(curves, comparison) if curves else [_too_few(len(train))]


@dataclass
class _Curve:
    """Test hits of one model at growing sizes."""

    model: ComparedModel
    sizes: list[int] = field(default_factory=list)
    hits: list[np.ndarray] = field(default_factory=list)

    def add(self, size: int, hits: np.ndarray) -> None:
        self.sizes.append(size)
        self.hits.append(hits)


def _findings(curves: list[_Curve], comparison: ModelComparison) -> list[Finding]:
    n = len(comparison.splits.train)
    findings: list[Finding] = []
    lines, table = [], []
    for curve in curves:
        name, sizes = curve.model.name, np.array(curve.sizes, float)
        scores = [100 * float(row.mean()) for row in curve.hits]
        law = fit_law(sizes, np.maximum(1 - np.array(scores) / 100, 0.5 / len(comparison.clusters)))
        low, high = law_interval(sizes, np.stack(curve.hits), comparison.clusters, _TIMES * n, comparison.splits.seed)
        then, bounds = 100 * (1 - law.at(_TIMES * n)), [100 * (1 - high), 100 * (1 - low)]
        bounds = [min(bounds[0], then), max(bounds[1], then)]
        table += [
            {"model": name, "training pairs": size, "accuracy %": score, "low": None, "high": None, "from": "measured"}
            for size, score in zip(curve.sizes, scores, strict=True)
        ]
        table.append(
            {
                "model": name, "training pairs": _TIMES * n, "accuracy %": then, "low": bounds[0], "high": bounds[1],
                "from": "extrapolated",
            }
        )  # fmt: skip
        lines.append(series(name, curve.sizes, scores))
        ahead = np.geomspace(sizes[0], _TIMES * n, 25)
        lines.append(
            series(
                f"{name}, law", [float(x) for x in ahead], [100 * (1 - law.at(float(x))) for x in ahead], dashed=True
            )
        )
        findings.append(_finding(curve, law, then, bounds, n))
    plot = chart("lines", "training pairs", "right answers, %", *lines, log_x=True)
    first = findings[0]
    return [replace(first, table=table, plot=plot), *findings[1:]]


def _finding(curve: _Curve, law: Law, then: float, bounds: list[float], n: int) -> Finding:
    name, now = curve.model.name, 100 * float(curve.hits[-1].mean())
    # The law at the current size counts too: a last point below the law is not a gain to come.
    claim, advice = curve_claim(curve.model.title, now, max(now, 100 * (1 - law.at(n))), then, bounds)
    return Finding(
        name=f"ten-times-data-{name.replace(' ', '-')}",
        section="curve",
        claim=claim,
        value=then,
        ci95=bounds,
        how=(
            f"{name} trained on {len(curve.sizes)} nested parts of the training images "
            f"({curve.sizes[0]:,} to {n:,} pairs), compared on the same test pairs; error = {law.floor:.3f} + "
            f"{law.factor:.3g} n^-{law.exponent:.2f}. "
            "Percent at ten times the pairs; the 95 % interval covers test images and scatter around the law, not that "
            "the law may cease to hold."
        ),
        advice=advice,
    )


def curve_claim(name: str, now: float, reached: float, then: float, bounds: Sequence[float]) -> tuple[str, str]:
    """Return claim and advice on the gain from ten times the data; all numbers in percent.

    Args:
        name: Name of the model.
        now: Accuracy of the model with all training pairs.
        reached: The same, or the value of the law at that size if larger; gains are measured from here.
        then: The value of the law at ten times the pairs.
        bounds: The 95 % interval of `then`.
    """
    range_ = f"{then:.1f} % ({bounds[0]:.1f} to {bounds[1]:.1f})"
    if bounds[0] > reached + _WORTH:
        return (
            f"Ten times the data would bring {name} from {now:.1f} to about {range_}.",
            "More pairs of the same kind are worth their cost for this model, if the law continues to hold.",
        )
    if bounds[1] < reached + _WORTH:
        return (
            f"Ten times the data would leave {name} at about {range_}; with the pairs of today it reaches {now:.1f} %.",
            "Do not label more pairs for this model; another encoder or other information comes first.",
        )
    return (
        f"It is uncertain whether ten times the data would help {name}: from {now:.1f} to about {range_}.",
        "Before labelling many pairs, label some more and diagnose again: a longer curve, or more test pairs, may "
        "settle it.",
    )


def _too_few(n: int) -> Finding:
    return Finding(
        name="ten-times-data",
        section="curve",
        claim=f"{n:,} training pairs are too few for a learning curve, or too uneven.",
        value=None,
        ci95=None,
        how=f"{POINTS} points from {_FEWEST} pairs up to all of them, spanning at least a factor of four.",
        advice=f"Come back with {4 * _FEWEST:,} training pairs or more.",
    )
