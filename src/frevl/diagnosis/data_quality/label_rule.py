"""The rule for wrong labels, of `frevl.diagnose` and `frevl.curate` alike, given out-of-fold answers of two models.

A label is called wrong if it is more likely wrong than right, compared with labels that are wrong for sure
(`frevl.diagnosis.data_quality.label_probability`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.data_quality.label_probability import judge_labels
from frevl.diagnosis.data_quality.mixture import share_interval
from frevl.store.grouping.large_arrays import blank

__all__ = [
    "LEAST_SKILL",
    "SIMILAR_NOT_COUNTED",
    "TRUSTED",
    "UNLIKELY",
    "WrongLabels",
    "deal_blocks",
    "find_wrong_labels",
    "least_accuracy",
    "missed",
    "model_weights",
    "most_missed",
    "stands_out",
]

UNLIKELY = 0.5
"""A label is called wrong below this probability of being right, i.e. if it is more likely wrong."""

TRUSTED = 0.9
"""Accuracy below which a contradiction reveals more about the models than about the label."""

LEAST_SKILL = 0.4
"""Required share of the way from always answering the most frequent label to perfect; less proves nothing."""

_FEW_MISSED = 0.35  # share of wrong labels up to which none is called missed; strong models reach 0.32 with none missed

SIMILAR_NOT_COUNTED = "not counting labels exchanged for similar classes, most of which are missed"
"""Follows every bound of the share of wrong labels. Where labels are always exchanged for the most similar class, it is
too low: of Pets, 10 % were wrong where at most 2.8 % were said to be."""

_ONE_SIDED = 1.645  # standard errors of an upper 95 % limit

_MOST_CELLS = 40_000_000  # probabilities in memory; more are processed in blocks
_ROWS_AT_ONCE = 4_096
_WEIGHTS = np.linspace(0, 1, 21)  # tried for the second of two models


@dataclass(frozen=True)
class WrongLabels:
    """The labels that the rule calls wrong.

    Attributes:
        rows: Rows whose label is more likely wrong than right, likeliest first.
        beliefs: ``(n,)`` probability of the given label, in the weighted average of the models.
        likelier: ``(n,)`` int64, the most probable label in that average; for `rows`, never the given one.
        likeliest: ``(n,)`` probability of the most probable label.
        wrong_share: Estimated share of the judged labels that are wrong, in [0, 1].
        standard_error: Standard error of that share, with groups as units.
        found_share: Share of labels made wrong for comparison that the rule would call wrong, in [0, 1]; 0 if none is.
        found_error: Standard error of that share, with groups as units.
        judged: Number of labels that were judged.
    """

    rows: NDArray[np.int64]
    beliefs: NDArray[np.floating]
    likelier: NDArray[np.int64]
    likeliest: NDArray[np.floating]
    wrong_share: float
    standard_error: float
    found_share: float
    found_error: float
    judged: int

    @property
    def most_missed(self) -> float:
        """Return up to what share of the wrong labels is missed; see `most_missed`."""
        return most_missed(self.found_share, self.found_error, self.wrong_share * self.judged)

    @property
    def ci95(self) -> tuple[float, float]:
        """Return the interval of the wrong share."""
        return share_interval(self.wrong_share, self.standard_error)


def least_accuracy(usual: float) -> float:
    """Return the accuracy on held-out lines that a model needs before it may contradict labels.

    Args:
        usual: Accuracy of always answering the most frequent label, in [0, 1].
    """
    return usual + LEAST_SKILL * (1 - usual)


def stands_out(share: float, accuracies: Sequence[float]) -> bool:
    """Return whether labels found wrong can be distinguished from model errors.

    Args:
        share: Share of the labels found wrong, in [0, 1].
        accuracies: Accuracy of every model on held-out lines, in [0, 1]. All must be trusted, and at least half of what
            either gets wrong must have been found.
    """
    weakest = min(accuracies)
    return weakest >= TRUSTED and 2 * share >= 1 - weakest


def most_missed(found_share: float, error: float, wrong: float) -> float:
    """Return up to what share of the wrong labels is missed, an upper 95 % limit in [0, 1].

    The wrong labels of a file are a sample too: if each is found with the probability `found_share`, the share found
    varies with their number. So this is Wilson's one-sided limit (Wilson 1927; Brown, Cai and DasGupta 2001, equation
    4) for a binomial share of as many labels as would vary by as much as ``share (1 - share) / wrong + error ** 2``.
    It approaches 1 if there are hardly any wrong labels. The number itself is estimated, and no part of this limit.

    Args:
        found_share: As in `WrongLabels`.
        error: Its standard error.
        wrong: Estimated number of wrong labels.
    """
    share = 1 - found_share
    spread = share * found_share
    if spread <= 0 or wrong <= 0:
        return 1.0 if share > 0 else 0.0
    count = spread / (spread / wrong + error**2)
    square = _ONE_SIDED**2 / count
    return min(1.0, (share + square / 2 + math.sqrt(square * (spread + square / 4))) / (1 + square))


def missed(found_share: float, most: float, ci95: tuple[float, float]) -> str:
    """Say how many wrong labels are missed, in a clause; empty if few are.

    Args:
        found_share: As in `WrongLabels`. In draws of planted errors on five sets it was below the share of wrong labels
            that were found: by 0.04 to 0.11 where models are weak, by up to 0.32 where they are strong, as labels are
            made wrong for comparison in the way that models confuse them (research/experiments/log.md). Where labels
            were always exchanged for the most similar class, it was above: 0.32 where 0.11 of 66 were found.
        most: Up to what share is missed (`most_missed`).
        ci95: Interval of the share of wrong labels. It held the planted share in 30 of 35 draws at random, eight of
            them without wrong labels, and lay 0.3 to 1.3 points above it in five; the estimate itself was a third of it
            to three times as much, so it is not named here. It does not count labels exchanged for the most similar
            class.
    """
    if 1 - found_share <= _FEW_MISSED:
        return ""
    low, high = ci95
    return (
        f"up to {100 * most:.0f} % of the wrong labels are missed (of labels made wrong for comparison, "
        f"{100 * found_share:.0f} % are found): {100 * low:.1f} to {100 * high:.1f} % of all labels may be wrong, "
        f"{SIMILAR_NOT_COUNTED}"
    )


def deal_blocks(rows: int, models: int, classes: int, *, seed: int) -> tuple[int, NDArray[np.int64]]:
    """Return the number of blocks in which the probabilities fit into memory, and the block of every row."""
    blocks = max(1, -(-models * rows * classes // _MOST_CELLS))
    return blocks, np.random.default_rng(seed).integers(0, blocks, rows)


def model_weights(labels: NDArray[np.int64], probabilities: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return the weights of two models in their average under which the given labels are likeliest.

    Args:
        labels: ``(n,)`` int64 classes.
        probabilities: ``(n, classes)`` of each model, out of fold.
    """
    first, second = (one[np.arange(len(labels)), labels].astype(np.float64) for one in probabilities)
    likelihoods = [np.log((1 - weight) * first + weight * second + 1e-9).sum() for weight in _WEIGHTS]
    best = _WEIGHTS[int(np.argmax(likelihoods))]
    return np.array([1 - best, best], np.float32)


def find_wrong_labels(
    labels: NDArray[np.int64],
    probabilities: Sequence[NDArray[np.float32]],
    groups: NDArray[np.int64],
    *,
    seed: int,
    judged: NDArray[np.int64] | None = None,
) -> WrongLabels:
    """Find the rows whose label is more likely wrong than right.

    The answers are the weighted average of two models under which the given labels are likeliest. In each of 20 sets
    with planted errors, the log odds of the likeliest other label in it were a better order than the probability of the
    label, which is low also where the models cannot answer (research/experiments/log.md).

    Args:
        labels: ``(n,)`` int64 classes, at least two different ones.
        probabilities: ``(n, classes)`` of each of two models, positive, out of fold.
        groups: ``(n,)`` int64 group of every row; rows of one group are not independent.
        seed: Random seed for the labels drawn as wrong ones.
        judged: ``(m,)`` rows whose label may be wrong, by default all; see
            `frevl.diagnosis.data_quality.label_probability.judge_labels`.
    """
    at = np.arange(len(labels))
    own = at if judged is None else judged
    average = blank(probabilities[0].shape, np.float32)
    weights = model_weights(labels, probabilities)
    for start in range(0, len(average), _ROWS_AT_ONCE):
        block = slice(start, start + _ROWS_AT_ONCE)
        for weight, one in zip(weights, probabilities, strict=True):
            average[block] += weight * one[block]
    judgement = judge_labels(labels, average, groups, seed=seed, judged=judged)
    mixture = judgement.mixture
    likelier = average.argmax(axis=1)
    wrong = np.flatnonzero((mixture.right < UNLIKELY) & (likelier[own] != labels[own]))
    rows = own[wrong[np.argsort(mixture.right[wrong], kind="stable")]]
    return WrongLabels(
        rows,
        average[at, labels],
        likelier,
        average.max(axis=1),
        mixture.wrong_share,
        mixture.standard_error,
        *judgement.found_share(wrong),
        len(own),
    )
