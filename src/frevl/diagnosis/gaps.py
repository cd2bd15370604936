"""Paired differences between two models in points, the basis of every claim in a diagnosis, and their wording.

A model "beats" another only if the 95 % interval of the paired difference (bootstrap over images) lies above 0 and the
sign-flip test over images agrees. The rule is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.evaluation.intervals import paired_difference, paired_test

__all__ = ["FEWEST_IMAGES", "HOW_COMPARED", "Gap", "compare", "edges", "span"]

FEWEST_IMAGES = 20
"""Test images below which nothing is concluded: a bootstrap over fewer is too narrow to be trusted."""

HOW_COMPARED = (
    "95 % percentile bootstrap over images; called better or worse only if the paired sign-flip permutation test over "
    "images agrees (p < 0.05)."
)
_P = 0.05
_NORMAL = 1.96  # standard errors from the centre to an end of a 95 % interval


@dataclass(frozen=True)
class Gap:
    """A paired difference in points with its 95 % interval, and whether it is more than chance.

    Attributes:
        value: First minus second, in points (percentages subtracted).
        low: Lower end of the interval; NaN if unknown.
        high: Upper end of the interval; NaN if unknown.
        p: Two-sided p-value of the sign-flip test, in (0, 1].
    """

    value: float
    low: float
    high: float
    p: float

    @property
    def up(self) -> bool:
        """Return whether the first is measurably better."""
        return self.low > 0 and self.p < _P

    @property
    def down(self) -> bool:
        """Return whether the first is measurably worse."""
        return self.high < 0 and self.p < _P

    @property
    def sign(self) -> int:
        """1 if the first is measurably better, -1 if it is measurably worse, 0 if neither."""
        return int(self.up) - int(self.down)

    @property
    def standard_error(self) -> float:
        """Standard error of the difference in points, from the width of the interval; NaN if that is unknown."""
        return (self.high - self.low) / (2 * _NORMAL)

    @property
    def ci95(self) -> list[float] | None:
        """The 95 % interval; None if unknown."""
        return None if np.isnan(self.low) else [self.low, self.high]

    def better_at(self, level: float) -> bool:
        """Return whether the first is better at a stricter level, a p-value in (0, 0.05]."""
        return self.low > 0 and self.p < level

    def __neg__(self) -> Gap:
        """Return the same difference seen from the second model."""
        return Gap(-self.value, -self.high, -self.low, self.p)

    def __str__(self) -> str:
        # If interval and test disagree, nothing is claimed, and the reader must see why.
        differ = self.sign == 0 and (self.low > 0 or self.high < 0)
        return f"{self.value:+.1f} points, {span(self.ci95)}" + (f", p = {self.p:.2f}" if differ else "")

    def size(self) -> str:
        """Return the magnitude of the difference, whatever its sign: ``2.8 points (0.5 to 5.4)``."""
        positive = self if self.value >= 0 else -self
        return f"{positive.value:.1f} points ({span(positive.ci95)})"

    def record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"difference": self.value, "ci95": self.ci95, "p": self.p}


def compare(a: np.ndarray, b: np.ndarray, clusters: Sequence[str]) -> Gap:
    """Compare two models on the same pairs.

    Args:
        a: ``(n,)`` hits of the first model, in [0, 1].
        b: ``(n,)`` hits of the second model.
        clusters: ``(n,)`` image of every pair.
    """
    gap = paired_difference(a, b, clusters)
    return Gap(100 * gap.value, 100 * gap.low, 100 * gap.high, paired_test(a, b, clusters, permutations=4000))


def span(bounds: list[float] | None) -> str:
    """Return ``1.2 to 3.4``, or the wording for a missing interval."""
    return "no interval" if bounds is None else f"{bounds[0]:.1f} to {bounds[1]:.1f}"


def edges(bounds: list[float] | None) -> tuple[float | None, float | None]:
    """Return low and high for a table; None twice if there is no interval."""
    return (None, None) if bounds is None else (bounds[0], bounds[1])
