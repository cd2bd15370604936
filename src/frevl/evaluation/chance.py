"""Test whether a classifier is measurably better than always giving the most frequent answer. Pure numpy.

A score with an interval does not show this: on a set with one large class, 57 % may be no better than chance. So both
    are compared on the same images, and the result is stated in words.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.evaluation.intervals import Interval, paired_difference

__all__ = ["Chance", "against_majority"]


@dataclass(frozen=True)
class Chance:
    """A classifier compared with the majority answer.

    Attributes:
        answer: The majority answer.
        score: The classifier's accuracy, in percent.
        majority: Accuracy of the majority answer on the same pairs, in percent.
        difference: Paired difference in points, with its 95 % interval by bootstrap over clusters.
        earned: ``(n,)`` the majority answer's credit for each pair.
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
        hits: ``(n,)`` the classifier's credit for each pair, in [0, 1].
        majority: ``(n,)`` credit of the training pairs' majority answer.
        clusters: ``(n,)`` images, or whatever groups the pairs.
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
