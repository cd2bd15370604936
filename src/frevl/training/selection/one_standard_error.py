"""The one-standard-error rule: the simplest candidate that is not measurably worse than the best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frevl.training.selection.candidates import Candidate

__all__ = ["Judged", "one_standard_error", "standard_error"]


@dataclass
class Judged:
    """A candidate with what it said of held-out pairs.

    Attributes:
        candidate: The candidate.
        hits: ``(n,)`` float, weight of the predicted class, mean over seeds.
        probabilities: ``(n, outputs)`` calibrated.
        fit_seconds: Longest single fit.
        seeds: How many seeds were tried.
        check_hits: ``(m,)`` the same on the pairs that the comparison is checked on; empty where there are none.
        check_probabilities: ``(m, outputs)`` likewise.
    """

    candidate: Candidate
    hits: Tensor
    probabilities: Tensor
    fit_seconds: float
    seeds: int
    check_hits: Tensor
    check_probabilities: Tensor

    def on_the_other_side(self) -> Judged:
        """Return the same with the pairs of the check in place of those of the comparison."""
        return Judged(
            self.candidate,
            self.check_hits,
            self.check_probabilities,
            self.fit_seconds,
            self.seeds,
            self.hits,
            self.probabilities,
        )


def one_standard_error(judged: list[Judged], clusters: Tensor) -> tuple[Judged, str, list[dict[str, Any]]]:
    """Take the simplest candidate whose paired difference from the best is within one standard error.

    Args:
        judged: Simplest first.
        clusters: ``(n,)`` int64, the unit of resampling.

    Returns:
        The choice, the reason, and the table.
    """
    best = max(judged, key=lambda one: float(one.hits.mean()))
    rows = []
    winner = best
    for one in judged:
        error = standard_error(one.hits, clusters)
        gap = float(best.hits.mean() - one.hits.mean())
        gap_error = standard_error(best.hits - one.hits, clusters)
        within = gap <= gap_error or one is best
        if within and winner is best and judged.index(one) < judged.index(best):
            winner = one
        rows.append(
            {
                "name": one.candidate.name,
                "metric": 100 * float(one.hits.mean()),
                "standard_error": 100 * error,
                "behind_best": 100 * gap,
                "standard_error_of_difference": 100 * gap_error,
                "within_one_standard_error": bool(within),
                "fit_seconds": one.fit_seconds,
                "seeds": one.seeds,
            }
        )
    if winner is best:
        reason = "the best, and no simpler candidate within one standard error of it"
    else:
        gap = 100 * float(best.hits.mean() - winner.hits.mean())
        reason = f"the simplest within one standard error of the best ({best.candidate.name}, {gap:+.2f} points)"
    return winner, reason, rows


def standard_error(values: Tensor, clusters: Tensor) -> float:
    """Standard error of a mean whose clusters are the independent units (ratio estimator)."""
    deviations = torch.zeros(int(clusters.max()) + 1, dtype=torch.double)
    deviations.index_add_(0, clusters, (values - values.mean()).double())
    return float(deviations.square().sum().sqrt() / len(values))
