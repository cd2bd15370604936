"""Prediction sets: the classes that cannot be ruled out, so that a right one is among them as often as was asked for.

Split conformal prediction (Papadopoulos et al. 2002; Angelopoulos and Bates 2023): scores of held-out pairs tell how
far a set has to reach. Pairs of one image are not independent, so the scores are one pair a cluster, drawn at random:
what is promised holds for a pair of a new image. Two kinds of scores, of which the one with the smaller sets is kept:
``probability``, one minus that of the right class, and ``adaptive``, the sum of all probabilities down to it (Romano,
Sesia and Candes 2020, without randomisation). A set always holds the likeliest class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.errors import UsageError

__all__ = ["ConformalScores", "check_level"]

_MOST_SCORES = 2_000  # kept in a run: the level is then within 0.7 points
_COMPARED_AT = 0.9


@dataclass(frozen=True)
class ConformalScores:
    """Scores of held-out pairs, one a cluster.

    Attributes:
        kind: ``probability`` or ``adaptive``.
        scores: ``(m,)`` sorted; infinite where no class is right.
    """

    kind: str
    scores: NDArray[np.float64]

    @classmethod
    def fit(
        cls, probabilities: NDArray[Any], right: NDArray[np.bool_], clusters: NDArray[Any], *, seed: int = 0
    ) -> ConformalScores:
        """Measure held-out pairs.

        Args:
            probabilities: ``(n, classes)`` calibrated.
            right: ``(n, classes)``, which classes are right; none where the right one is not among the classes.
            clusters: ``(n,)``; pairs of one cluster are not independent.
            seed: Of the draws.
        """
        order = np.random.default_rng(seed).permutation(len(clusters))
        _, first = np.unique(np.asarray(clusters)[order], return_index=True)
        rows = order[first][np.random.default_rng(seed).permutation(len(first))[:_MOST_SCORES]]
        found = {}
        for kind in ("probability", "adaptive"):
            scores = np.where(right, _scores(probabilities, kind), np.inf).min(axis=1)[rows]
            found[kind] = cls(kind, np.sort(scores))
        # Of equals the first: a set of all classes above a probability is easier to explain.
        return min(found.values(), key=lambda one: float(one.sets(probabilities, _COMPARED_AT).sum(axis=1).mean()))

    def threshold(self, level: float) -> float:
        """Return the score up to which a class belongs to a set; infinite where there are too few scores.

        With ``m`` scores it is the ``ceil((m + 1) level)``-th smallest: conservative, as rounding goes.
        """
        place = math.ceil((len(self.scores) + 1) * level - 1e-9)
        return math.inf if place > len(self.scores) else float(self.scores[place - 1])

    def sets(self, probabilities: NDArray[Any], level: float) -> NDArray[np.bool_]:
        """Return ``(n, classes)``: which classes belong to the set of each row."""
        mask = _scores(probabilities, self.kind) <= self.threshold(level)
        mask[np.arange(len(mask)), probabilities.argmax(axis=1)] = True
        return mask

    def note(self, level: float) -> list[str]:
        """Say so where there are too few scores for this level."""
        if math.isfinite(self.threshold(level)):
            return []
        return [
            f"Sets of {100 * level:g} % hold every class: {len(self.scores):,} held-out images promise no more (at "
            f"least {math.ceil(level / (1 - level) - 1e-9):,} are needed, all with a right class); give more with "
            "--calibrate."
        ]

    def record(self) -> dict[str, Any]:
        """Return what a run keeps; an infinite score is None."""
        rounded = [round(score, 6) if math.isfinite(score) else None for score in self.scores.tolist()]
        return {"kind": self.kind, "scores": rounded}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ConformalScores:
        """Read what `record` has written."""
        scores = [math.inf if score is None else float(score) for score in record["scores"]]
        return cls(str(record["kind"]), np.array(scores, np.float64))


def check_level(level: float) -> None:
    """Refuse a level that no set can have.

    Raises:
        UsageError: It is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(
            f"--sets is how often the right answer is to be in the set, between 0 and 1; found {level:g}"
            + ("; a set that is always right holds every class" if level == 1 else "")
        )


def _scores(probabilities: NDArray[Any], kind: str) -> NDArray[np.float64]:
    """Return ``(n, classes)``: how strange each class would be; the smaller, the likelier."""
    if kind == "probability":
        return 1 - probabilities.astype(np.float64)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sums = np.take_along_axis(probabilities.astype(np.float64), order, axis=1).cumsum(axis=1)
    found = np.empty_like(sums)
    np.put_along_axis(found, order, sums, axis=1)
    return found
