"""The one-standard-error rule: the simplest candidate that is not measurably worse than the best.

Both selections of ``--model auto`` use it: classification on the accuracy of held-out pairs, matching on the recall of
development images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Compared", "one_standard_error", "standard_error", "table_row"]


class Compared(Protocol):
    """A candidate with its scores on what all candidates are compared on."""

    @property
    def name(self) -> str:
        """As it stands in the table."""

    @property
    def hits(self) -> Tensor:
        """``(n,)``, mostly in [0, 1]: what it earns on each pair, or on each image."""

    @property
    def fit_seconds(self) -> float:
        """Of its longest fit."""

    @property
    def seeds(self) -> int:
        """How many seeds were tried."""


C = TypeVar("C", bound=Compared)


def one_standard_error(
    candidates: Sequence[C], clusters: Tensor, *, worthwhile: float = 0.0, unit: str = "points"
) -> tuple[C, str, list[dict[str, Any]]]:
    """Take the simplest candidate whose paired difference from the best is within one standard error.

    Args:
        candidates: Simplest first.
        clusters: ``(n,)`` int64, the unit of resampling: pairs of one cluster are not independent.
        worthwhile: Smallest gain in [0, 1] that is worth a less simple candidate, however sure it is.
        unit: What a hundredth is called.

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
    """Return the row of a candidate: its metric and its distance from the best, in percent and points.

    Args:
        one: The candidate.
        best: What it is compared with.
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
    """Standard error of a mean whose clusters are the independent units (ratio estimator)."""
    deviations = torch.zeros(int(clusters.max()) + 1, dtype=torch.double)
    deviations.index_add_(0, clusters, (values - values.mean()).double())
    return float(deviations.square().sum().sqrt() / len(values))
