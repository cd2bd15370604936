"""Is a classifier measurably better than always giving the most frequent answer? Pure numpy.

A score beside an interval does not say it: on a set with one large class, 57 % may be nothing at all. So the
question is asked in pairs, image by image, and answered in plain words.
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
    """A classifier against the majority answer.

    Attributes:
        answer: The answer that stands for the majority.
        score: Mean of the classifier's hits, in percent.
        majority: What the majority answer reaches on the same pairs, in percent.
        difference: Paired difference in points, with its 95 % interval by bootstrap over clusters.
        earned: ``(n,)`` what the majority answer earns a pair.
    """

    answer: str
    score: float
    majority: float
    difference: Interval
    earned: NDArray[Any] = field(repr=False, compare=False)

    @property
    def is_chance(self) -> bool:
        """True where the difference is not measurably above zero; a single cluster cannot show that it is."""
        return math.isnan(self.difference.low) or self.difference.low <= 0

    @property
    def sentence(self) -> str:
        """What a reader has to know, in plain words."""
        always = f"always answering '{self.answer:.60}' ({self.majority:.2f} %)"
        gap = self.difference
        if math.isnan(gap.low):
            return f"Chance: pairs of one image cannot show that {self.score:.2f} % is better than {always}."
        shown = f"{gap.value:+.2f} points [{gap.low:.2f}, {gap.high:.2f}]"
        if self.is_chance:
            return f"Chance: {self.score:.2f} % is not measurably better than {always}: {shown}."
        return f"Better than chance: {shown} over {always}."

    def record(self) -> dict[str, Any]:
        """Return what result JSON and run keep."""
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
        hits: ``(n,)`` what the classifier earned a pair, in [0, 1].
        majority: ``(n,)`` what the majority answer of the training pairs earned.
        clusters: ``(n,)`` images, or whatever holds pairs together.
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
