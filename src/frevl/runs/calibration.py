"""Calibration on held-out data: turning logits into probabilities, and prediction sets.

Probabilities need one scale, and for matching one offset. Temperature scaling is Guo et al. 2017, "On Calibration of
Modern Neural Networks"; with an offset it is Platt 1999, who also smooths the targets so that a few pairs cannot lead
to certainty. We smooth them by Laplace's rule of succession.

A prediction set contains the classes that cannot be ruled out, with a given coverage: split conformal prediction
(Papadopoulos et al. 2002; Angelopoulos and Bates 2023). The scores of held-out pairs determine the threshold. Pairs of
one image are not independent, so every cluster has the same weight however many pairs it has, and the guarantee holds
for a pair of a new image (hierarchical conformal prediction: Lee, Barber and Willett 2023, arXiv 2306.06342). Drawing
one pair per cluster guarantees the same, but coverage then depends on the draw. Of two kinds of scores, the one with
smaller sets is kept: ``probability``, one minus that of the right class, and ``adaptive``, the sum of all probabilities
down to it (Romano, Sesia and Candes 2020, without randomisation). A set always holds the likeliest class, whose score
is therefore 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from frevl.errors import UsageError, counted
from frevl.models.classification.linear_problem import minimise
from frevl.runs.targets import Answers

__all__ = [
    "FEWEST_PAIRS",
    "ConformalScores",
    "calibrated",
    "calibration_notes",
    "check_level",
    "fit_calibration",
    "nonconformity",
]

FEWEST_PAIRS = 50
"""Development pairs below which a run is reported as hardly calibrated."""

# Minimum gain of a fit, in twice the log-likelihood, for it to be kept. By chance alone, one temperature gains about 4
# in one of twenty data sets; scale and offset together are also stabilised by the smoothed targets. Measured on
# simulated networks that are already calibrated, with 20 pairs: without this, a third of the fits made the ECE worse by
# at least 5 points; with it, one in fifty with several classes and one in twenty with two outcomes.
_CHANCE = {"binary": 2.0, "classes": 4.0}
_MOST_PAIRS = 20_000  # only two numbers are fitted, so more pairs would just cost memory
# Pairs of unknown truth, assumed in addition to the real ones: after 18 right decisions of 18, the next one has the
# probability (18 + 1) / (18 + 2), not 1.
_UNKNOWN_PAIRS = 2


def calibrated(logits: Tensor, calibration: dict[str, float], *, soft: bool) -> Tensor:
    """Convert logits to probabilities.

    Args:
        logits: ``(n, 1)`` for matching, ``(n, classes)`` for classification.
        calibration: ``scale`` and ``offset``.
        soft: True if every class has a probability of its own (soft targets), as in matching.

    Returns:
        Probabilities of the shape of the logits; they sum to one over the classes unless ``soft``.
    """
    scale, offset = calibration["scale"], calibration["offset"]
    adjusted = logits if scale == 1.0 else logits * scale
    adjusted = adjusted if offset == 0.0 else adjusted + offset
    return adjusted.sigmoid() if soft else adjusted.softmax(dim=1)


def fit_calibration(logits: Tensor, target: Tensor | Answers, *, shrink: bool = True) -> dict[str, float]:
    """Fit scale (and offset, for matching and soft targets) on development data by maximum likelihood.

    The truth is softened to ``(n truth + 1) / (n + 2)`` for two outcomes, ``(n truth + 2 / classes) / (n + 2)`` for
    classes, where n counts the decisions: Platt 1999, section 2.2, without the split by class. This matters where few
    or separable pairs would lead to certainty, and vanishes as n grows.

    The share ``1 - c / gain`` of the fit is kept (none if that is negative), where gain is twice the increase in
    log-likelihood and c is the increase expected by chance, so that few pairs change nothing unless they are very
    clear. This is shrinkage as in James and Stein 1961, with our own constants.

    Args:
        logits: ``(n, outputs)`` logits of pairs not used in training.
        target: ``(n,)`` 0 or 1 for matching, or the answers of a classification.
        shrink: Whether to keep only that share. False suits weighting networks against each other: nobody reads those
            probabilities, and a noisy scale is better than one that leaves a network overconfident.

    Returns:
        ``{"scale": positive, "offset": any}``; scale 1 and offset 0 if the data do not determine them (no pair has a
        known answer, or the fit diverges).
    """
    if len(logits) > _MOST_PAIRS:
        rows = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))[:_MOST_PAIRS]
        logits, target = logits[rows], target[rows] if isinstance(target, Tensor) else target.select(rows)
    logits = logits.detach().double()
    binary = isinstance(target, Tensor) or target.soft
    if isinstance(target, Tensor):
        truth = target.double()[:, None]
    else:
        truth = target.dense(torch.arange(len(logits)), logits.shape[1]).double()
        if not target.soft:
            known = truth.sum(dim=1) > 0
            logits, truth = logits[known], truth[known] / truth[known].sum(dim=1, keepdim=True)
    if len(logits) == 0:
        return {"scale": 1.0, "offset": 0.0}
    decisions, outcomes = (truth.numel(), 2) if binary else truth.shape
    truth = (decisions * truth + _UNKNOWN_PAIRS / outcomes) / (decisions + _UNKNOWN_PAIRS)

    def evaluate(point: Tensor) -> tuple[float, Tensor]:
        log_scale, offset = point.unbind()
        scale = log_scale.exp()
        adjusted = logits * scale + (offset if binary else 0.0)
        # The derivatives are written out, because automatic ones take most of the time on few pairs.
        if binary:
            fit = F.binary_cross_entropy_with_logits(adjusted, truth)
            residuals = (adjusted.sigmoid() - truth) / truth.numel()
        else:
            fit = F.cross_entropy(adjusted, truth)
            residuals = (adjusted.softmax(dim=1) - truth) / len(truth)  # the truth sums to 1
        # Identical logits fit any scale, which then stays at 1.
        value = fit + 1e-3 * (log_scale.square() + offset.square())
        slopes = torch.stack(
            [(residuals * logits).sum() * scale, residuals.sum() if binary else torch.zeros_like(scale)]
        )
        return value.item(), slopes + 2e-3 * point

    found = minimise(evaluate, torch.zeros(2, dtype=torch.double), steps=100, tolerance=1e-7)
    scale, shift = found[0].exp().item(), found[1].item()
    if not torch.isfinite(found).all():
        return {"scale": 1.0, "offset": 0.0}
    if not shrink:
        return {"scale": scale, "offset": shift}
    fit = F.binary_cross_entropy_with_logits if binary else F.cross_entropy
    gain = 2 * decisions * (fit(logits, truth) - fit(logits * scale + shift, truth)).item()
    kept = max(0.0, 1 - _CHANCE["binary" if binary else "classes"] / gain) if gain > 0 else 0.0
    return {"scale": scale**kept, "offset": shift * kept}


def calibration_notes(pairs: int) -> list[str]:
    """Return a note if there were too few development pairs to calibrate on."""
    if pairs >= FEWEST_PAIRS:
        return []
    return [
        f"Hardly calibrated: {counted(pairs, 'development pair')} can reveal only large errors of the probabilities; "
        f"if these matter, give at least {FEWEST_PAIRS} with --dev."
    ]


_MOST_SCORES = 2_000  # scores kept in a run: the level is then within 0.05 points
_COMPARED_AT = 0.9
_WIDE = 0.1  # width of a coverage interval from which it is reported: below 140 scores at 90 %
_STEPS = 10_000  # steps of a numerical distribution
_CALIBRATE = "give more with --calibrate"


@dataclass(frozen=True)
class ConformalScores:
    """The distribution of the scores of held-out pairs, in which every cluster has the same weight.

    Attributes:
        kind: ``probability`` or ``adaptive``.
        scores: ``(m,)`` its quantiles at 1/m, 2/m, ... 1; infinite where no class is right. With one pair per cluster
            these are the sorted scores.
        clusters: Number of clusters; 0 stands for ``m``, as in runs of earlier versions, which drew a pair of each.
    """

    kind: str
    scores: NDArray[np.float64]
    clusters: int = 0

    @property
    def count(self) -> int:
        """Return the number of clusters."""
        return self.clusters or len(self.scores)

    @classmethod
    def fit(cls, probabilities: NDArray[Any], right: NDArray[np.bool_], clusters: NDArray[Any]) -> ConformalScores:
        """Compute the scores of held-out pairs.

        Args:
            probabilities: ``(n, classes)`` calibrated probabilities.
            right: ``(n, classes)`` bool, which classes are right; none if the right one is not among the classes.
            clusters: ``(n,)``; pairs in one cluster are not independent.
        """
        _, cluster, pairs = np.unique(np.asarray(clusters), return_inverse=True, return_counts=True)
        several, most = len(pairs), min(len(cluster), _MOST_SCORES)
        steps = np.arange(1, most + 1) * (several / most)
        found = {}
        for kind in ("probability", "adaptive"):
            scores = np.where(right, nonconformity(probabilities, kind), np.inf).min(axis=1)
            order = np.argsort(scores, kind="stable")
            reached = np.cumsum(1 / pairs[cluster[order]])  # the last is the number of clusters, but for rounding
            at = np.minimum(np.searchsorted(reached, steps - 1e-6), len(order) - 1)
            found[kind] = cls(kind, scores[order][at], several)
        # In case of ties, the first: a set of all classes above a probability is easier to explain.
        return min(found.values(), key=lambda one: float(one.sets(probabilities, _COMPARED_AT).sum(axis=1).mean()))

    def threshold(self, level: float) -> float:
        """Return the score up to which a class belongs to a set; infinite with too few scores.

        With ``k`` clusters it is the quantile at ``(k + 1) / k`` times the level, which is conservative: as if one more
        cluster had infinite scores.
        """
        place = math.ceil((self.count + 1) / self.count * level * len(self.scores) - 1e-9)
        return math.inf if place > len(self.scores) else float(self.scores[place - 1])

    def sets(self, probabilities: NDArray[Any], level: float) -> NDArray[np.bool_]:
        """Return ``(n, classes)`` bool: which classes belong to each row's set."""
        mask: NDArray[np.bool_] = nonconformity(probabilities, self.kind) <= self.threshold(level)
        return mask

    def note(self, level: float, *, items: str = "images", remedy: str = _CALIBRATE) -> list[str]:
        """Return a note if there are too few scores for this level.

        Args:
            level: Share of sets that shall contain the right class.
            items: What the held-out items are called.
            remedy: What the user can do.
        """
        if math.isfinite(self.threshold(level)):
            return []
        return [
            f"Sets of {100 * level:g} % contain every class: {self._counted(items)} cannot guarantee "
            f"more (at least {math.ceil(level / (1 - level) - 1e-9):,} are needed, all with a right class); {remedy}."
        ]

    def notes(self, level: float, *, items: str = "images", remedy: str = _CALIBRATE) -> list[str]:
        """Return `note`, or if there are enough scores, how far the coverage of these sets may be from the level.

        Over repeated measurements of ``m`` scores the coverage is ``level`` on average (or slightly more); that of a
        single one has the distribution Beta(k, m + 1 - k) with ``k = ceil((m + 1) level)`` (Vovk 2012, proposition 2b).
        If clusters have several pairs it varies less, the less the more their pairs differ.
        """
        if not math.isfinite(self.threshold(level)):
            return self.note(level, items=items, remedy=remedy)
        low, high = self.coverage(level)
        if high - low < _WIDE:
            return []
        return [
            f"Sets of {100 * level:g} % rest on {self._counted(items)}: the right class may be in "
            f"{100 * low:.0f} to {100 * high:.0f} % of them; {remedy}."
        ]

    def _counted(self, items: str) -> str:
        count = self.count
        return f"{count:,} held-out {items.removesuffix('s') if count == 1 else items}"

    def coverage(self, level: float) -> tuple[float, float]:
        """Return the bounds of the coverage of sets in 95 of 100 measurements with as many clusters of a pair each."""
        place = math.ceil((self.count + 1) * level - 1e-9)
        steps = (np.arange(_STEPS) + 0.5) / _STEPS
        logs = (place - 1) * np.log(steps) + (self.count - place) * np.log1p(-steps)
        below = np.cumsum(np.exp(logs - logs.max()))
        low, high = np.searchsorted(below / below[-1], [0.025, 0.975])
        return float(steps[low]), float(steps[high])

    def record(self) -> dict[str, Any]:
        """Return the record stored in a run; an infinite score is None."""
        rounded = [round(score, 6) if math.isfinite(score) else None for score in self.scores.tolist()]
        return {"kind": self.kind, "scores": rounded, "clusters": self.count}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ConformalScores:
        """Read what `record` wrote."""
        scores = [math.inf if score is None else float(score) for score in record["scores"]]
        return cls(str(record["kind"]), np.array(scores, np.float64), int(record.get("clusters", 0)))


def check_level(level: float) -> None:
    """Refuse an impossible level.

    Raises:
        UsageError: The level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UsageError(
            f"--sets is the share of sets that contain the right answer, between 0 and 1; found {level:g}"
            + ("; a set that is always right contains every class" if level == 1 else "")
        )


def nonconformity(probabilities: NDArray[Any], kind: str) -> NDArray[np.float64]:
    """Return ``(n, classes)`` nonconformity scores; the smaller, the likelier.

    The likeliest class is in every set, so its score is 0: otherwise the sets would contain the right class more often
    than requested, and be larger than necessary.

    Args:
        probabilities: ``(n, classes)``, each row with the sum 1.
        kind: ``probability`` or ``adaptive``, as described at the top of this file.
    """
    found: NDArray[np.float64] = 1 - probabilities.astype(np.float64)
    if kind != "probability":
        order = np.argsort(-probabilities, axis=1, kind="stable")
        sums = np.take_along_axis(probabilities.astype(np.float64), order, axis=1).cumsum(axis=1)
        np.put_along_axis(found, order, sums, axis=1)
    found[np.arange(len(found)), probabilities.argmax(axis=1)] = 0.0
    return found
