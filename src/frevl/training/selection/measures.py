"""Measures by which ``auto`` compares candidates: one number per pair, averaged, with its standard error.

The same rule then works for all measures, since means, paired differences and their standard errors by cluster are
computed from these numbers. For a measure that is not a mean over pairs (macro F1, balanced accuracy) the numbers are
pseudo-values (measure plus influence): their mean is the measure, and their standard error that of the infinitesimal
jackknife (Jaeckel 1972), with whole clusters as units.

The one-standard-error rule chooses the simplest candidate that is not measurably worse than the best, in both tasks. If
two estimates of the same accuracy, on given development pairs and on held-out training pairs, differ by more than
chance, one of them is misleading: dependent training pairs make cross-validation too optimistic, and development pairs
that resemble the training pairs do the same to the other estimate. The lower estimate is trusted (ours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import UsageError
from frevl.runs.targets import Answers

__all__ = [
    "UNITS",
    "Compared",
    "Gap",
    "check_measure",
    "earned",
    "gap_between",
    "in_nats",
    "one_standard_error",
    "shown",
    "standard_error",
    "table_row",
]

UNITS = {"nll": "hundredths of a nat"}
"""The name of a difference of one hundredth, if it is not a percentage point."""

_SMALLEST = 1e-7  # minimum probability


def check_measure(choose_by: str, truth: Answers) -> None:
    """Refuse a measure that the targets do not support.

    Args:
        choose_by: An option of `frevl.training.options.AutoOptions`.
        truth: The answers of all pairs.

    Raises:
        UsageError: The answers are weighted, which supports only accuracy, or a pair has several right answers, for
            which F1 is not defined.
    """
    several = bool(((truth.weights > 0).sum(dim=1) > 1).any())
    if choose_by != "accuracy" and (truth.soft or (several and choose_by != "nll")):
        found = "weights of answers" if truth.soft else "pairs with several right answers"
        raise UsageError(f"choose_by={choose_by} needs one right class per pair, found {found}; use choose_by=accuracy")


def earned(choose_by: str, probabilities: Tensor, truth: Answers) -> Tensor:
    """Return an ``(n,)`` score of each prediction; the mean is the measure, and higher is better.

    Args:
        choose_by: ``accuracy``, ``balanced_accuracy`` (mean recall of the classes that occur), ``macro_f1`` (as in
            `frevl.evaluation.metrics.macro_f1`), or ``nll`` (the log-likelihood in nats).
        probabilities: ``(n, outputs)`` predicted probabilities.
        truth: Answers of the same pairs. Classes without a training pair count as one more class, which is never
            predicted.
    """
    hits = truth.hits(probabilities.argmax(dim=1))
    if choose_by == "accuracy" or not len(hits):
        return hits
    outputs = probabilities.shape[1]
    if choose_by == "nll":
        right = (truth.dense(torch.arange(len(hits)), outputs) > 0) * probabilities
        return right.sum(dim=1).clamp(min=_SMALLEST).log()
    known = truth.classes.max(dim=1).values
    actual = F.one_hot(known.where(known >= 0, outputs), outputs + 1).double()
    predicted = F.one_hot(probabilities.argmax(dim=1), outputs + 1).double()
    both = actual * predicted
    if choose_by == "balanced_accuracy":
        top, bottom = both, actual
    else:
        top, bottom = 2 * both, actual + predicted
    occurs = bottom.sum(dim=0) > 0
    top, bottom = top[:, occurs], bottom[:, occurs]
    size = bottom.mean(dim=0)
    ratio = top.mean(dim=0) / size
    influence = (top - ratio * bottom) / size  # influence of a pair on the ratio of every class; its mean is 0
    return (ratio + influence).mean(dim=1).to(hits.dtype)


def shown(choose_by: str, mean: float) -> str:
    """Format a measure for display."""
    return f"{-mean:6.3f} nats" if choose_by == "nll" else f"{100 * mean:6.2f} %"


def in_nats(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of a table with the negative log-likelihood as metric, and all values in nats."""
    keys = ("standard_error", "behind_best", "standard_error_of_difference")
    return [
        {**row, "metric": -row["metric"] / 100, **{key: row[key] / 100 for key in keys}} if "metric" in row else row
        for row in rows
    ]


class Compared(Protocol):
    """A candidate with its scores in the comparison."""

    @property
    def name(self) -> str:
        """Name of the candidate in the table."""

    @property
    def hits(self) -> Tensor:
        """``(n,)``, usually in [0, 1]: the score on each pair, or on each image."""

    @property
    def fit_seconds(self) -> float:
        """Duration of the longest fit, in seconds."""

    @property
    def seeds(self) -> int:
        """Number of seeds tried."""


C = TypeVar("C", bound=Compared)


def one_standard_error(
    candidates: Sequence[C], clusters: Tensor, *, worthwhile: float = 0.0, unit: str = "points"
) -> tuple[C, str, list[dict[str, Any]]]:
    """Choose the simplest candidate whose paired difference from the best is within one standard error.

    Args:
        candidates: Candidates, simplest first.
        clusters: ``(n,)`` int64, the unit of resampling: pairs in one cluster are not independent.
        worthwhile: Minimum gain in [0, 1] that justifies a more complex candidate, however certain the gain is.
        unit: Name of a difference of one hundredth.

    Returns:
        The choice, the reason, and the table.
    """
    best = max(candidates, key=lambda one: float(one.hits.mean()))
    rows = []
    for one in candidates:
        row = table_row(one, best, clusters)
        within = one is best or row["behind_best"] <= max(row["standard_error_of_difference"], 100 * worthwhile)
        rows.append({**row, "within_one_standard_error": within})
    winner = next(one for one, row in zip(candidates, rows, strict=True) if row["within_one_standard_error"])
    if winner is best:
        reason = "the best, and no simpler candidate within one standard error of it"
    else:
        gap = 100 * float(best.hits.mean() - winner.hits.mean())
        reason = f"the simplest within one standard error of the best ({best.name}, {gap:+.2f} {unit})"
    return winner, reason, rows


def table_row(one: Compared, best: Compared, clusters: Tensor) -> dict[str, Any]:
    """Return the row of a candidate: its metric in percent, and its difference from the best in points.

    Args:
        one: The candidate.
        best: The candidate to compare with.
        clusters: ``(n,)`` int64, the unit of resampling.
    """
    return {
        "name": one.name,
        "metric": 100 * float(one.hits.mean()),
        "standard_error": 100 * standard_error(one.hits, clusters),
        "behind_best": 100 * float((best.hits - one.hits).mean()),
        "standard_error_of_difference": 100 * standard_error(best.hits - one.hits, clusters),
        "within_one_standard_error": False,
        "fit_seconds": one.fit_seconds,
        "seeds": one.seeds,
    }


def standard_error(values: Tensor, clusters: Tensor) -> float:
    """Return the standard error of a mean whose clusters are the independent units (ratio estimator)."""
    deviations = torch.zeros(int(clusters.max()) + 1, dtype=torch.double)
    deviations.index_add_(0, clusters, (values - values.mean()).double())
    return float(deviations.square().sum().sqrt() / len(values))


_Z = 2.58  # standard errors: exceeded by chance in one case in a hundred, in either direction
_FEWEST_CLUSTERS = 10  # with fewer, the standard errors mean little


@dataclass(frozen=True)
class Gap:
    """Two estimates of the accuracy of the candidate that won the comparison.

    Attributes:
        compared: Accuracy in percent on the pairs of the comparison.
        checked: Accuracy in percent on the pairs of the check.
        error: Standard error of their difference in points.
        beyond_chance: Whether they differ by more than chance.
    """

    compared: float
    checked: float
    error: float
    beyond_chance: bool

    def sentence(self, compared_on: str, checked_on: str) -> str:
        """Return a sentence that can come first in a report."""
        high, low = (compared_on, checked_on) if self.compared > self.checked else (checked_on, compared_on)
        best, worst = max(self.compared, self.checked), min(self.compared, self.checked)
        return (
            f"Two estimates differ by more than chance: {worst:.1f} % on {low}, {best:.1f} % on {high}. The "
            "lower one counts, and the model was chosen by it. Pairs that belong together on both sides of a split, "
            "or development pairs of another kind, cause this; name such groups with --group-by."
        )


def gap_between(hits: Tensor, clusters: Tensor, other_hits: Tensor, other_clusters: Tensor) -> Gap:
    """Compare the mean of two independent sets of pairs.

    Args:
        hits: ``(n,)`` in [0, 1], a candidate's score on each pair.
        clusters: ``(n,)`` int64, the unit of resampling.
        other_hits: ``(m,)`` in [0, 1], its scores on the other pairs.
        other_clusters: ``(m,)`` int64, their clusters.
    """
    errors = standard_error(hits, clusters), standard_error(other_hits, other_clusters)
    error = (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    difference = abs(float(hits.mean() - other_hits.mean()))
    enough = min(len(torch.unique(clusters)), len(torch.unique(other_clusters))) >= _FEWEST_CLUSTERS
    return Gap(
        compared=100 * float(hits.mean()),
        checked=100 * float(other_hits.mean()),
        error=100 * error,
        beyond_chance=enough and difference > _Z * error,
    )
