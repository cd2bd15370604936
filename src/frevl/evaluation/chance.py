"""Chance: what the most frequent answer, or scores in random order, would reach on the same pairs. Pure numpy."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frevl.evaluation.intervals import Interval, numbered_clusters, paired_difference

__all__ = ["Chance", "against_majority", "match_chance"]

_Z = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Chance:
    """A classifier compared with the majority answer.

    Attributes:
        answer: The majority answer.
        score: The classifier's accuracy, in percent.
        majority: Accuracy of the majority answer on the same pairs, in percent.
        difference: Paired difference in points, with its 95 % interval by bootstrap over clusters.
        earned: ``(n,)``, the majority answer's credit for each pair.
    """

    answer: str
    score: float
    majority: float
    difference: Interval
    earned: NDArray[Any] = field(repr=False, compare=False)

    @property
    def is_chance(self) -> bool:
        """Return whether the difference is not measurably above zero, which a single cluster can never show."""
        return math.isnan(self.difference.low) or self.difference.low <= 0

    @property
    def sentence(self) -> str:
        """Return the result as a sentence."""
        always = f"always answering '{self.answer:.60}' ({self.majority:.2f} %)"
        gap = self.difference
        if math.isnan(gap.low):
            return f"Chance: pairs of a single image cannot show that {self.score:.2f} % is better than {always}."
        shown = f"{gap.value:+.2f} points [{gap.low:.2f}, {gap.high:.2f}]"
        if self.is_chance:
            return f"Chance: {self.score:.2f} % is not measurably better than {always}: {shown}."
        return f"Better than chance: {shown} over {always}."

    def record(self) -> dict[str, Any]:
        """Return the record stored in the result JSON and in the run."""
        return {
            "answer": self.answer,
            "score": self.score,
            "majority": self.majority,
            "difference": self.difference.value,
            "ci95": None if math.isnan(self.difference.low) else [self.difference.low, self.difference.high],
            "chance": self.is_chance,
        }


def against_majority(
    hits: NDArray[Any], majority: NDArray[Any], clusters: Sequence[Hashable] | NDArray[Any], answer: str
) -> Chance:
    """Compare a classifier with the majority answer on the same pairs.

    Args:
        hits: ``(n,)``, the classifier's credit for each pair, in [0, 1].
        majority: ``(n,)``, the credit of the training pairs' majority answer.
        clusters: ``(n,)`` images, or another key that groups the pairs.
        answer: The majority answer.

    Raises:
        UsageError: Lengths differ, or there is nothing to compare.
    """
    gap = paired_difference(hits, majority, clusters)
    return Chance(
        answer=answer,
        score=100 * float(np.mean(hits)),
        majority=100 * float(np.mean(majority)),
        difference=Interval(100 * gap.value, 100 * gap.low, 100 * gap.high),
        earned=majority,
    )


def match_chance(scores: ArrayLike, right: ArrayLike, clusters: Sequence[Hashable] | NDArray[Any]) -> list[str]:
    """Return a sentence if right pairs do not measurably score higher than wrong ones, otherwise nothing.

    The share of comparisons in which they do is the area under the ROC curve; its standard error over clusters is that
    of Obuchowski 1997 ("Nonparametric analysis of clustered ROC curve data").

    Args:
        scores: ``(n,)`` scores of pairs.
        right: ``(n,)`` bool, whether the text describes the image; nothing is said if all or none do.
        clusters: ``(n,)`` images, or another key that groups the pairs.
    """
    values, is_right = np.asarray(scores, np.float64), np.asarray(right, bool)
    if is_right.all() or not is_right.any():
        return []
    number_of = numbered_clusters(clusters, len(values))
    several = len(np.unique(number_of))
    if several < 2:
        return ["Chance: pairs of a single image cannot show that right pairs score higher than wrong ones."]
    ahead = np.empty(len(values))
    for own, sign in ((is_right, 1), (~is_right, -1)):
        others = np.sort(sign * values[~own])
        below = np.searchsorted(others, sign * values[own]) + np.searchsorted(others, sign * values[own], side="right")
        ahead[own] = below / (2 * len(others))  # a tie counts half
    share = float(ahead[is_right].mean())
    influence = (ahead - share) / np.where(is_right, is_right.sum(), (~is_right).sum())
    error = float(np.linalg.norm(np.bincount(number_of, influence))) * math.sqrt(several / (several - 1))
    low, high = share - _Z * error, share + _Z * error
    if low > 0.5:
        return []
    return [
        f"Chance: right pairs score higher than wrong ones in {100 * share:.2f} % "
        f"[{100 * max(low, 0):.2f}, {100 * min(high, 1):.2f}] of comparisons, which is not measurably more than half."
    ]
