"""Turn out-of-fold probabilities of classes into the probability that a given label is right. Pure numpy.

A model that is often wrong contradicts many right labels, so contradictions prove little. Instead, the given labels are
compared with wrong ones, as captions are: every line is given labels that are wrong for it, and the mixture of
`frevl.diagnosis.data_quality.mixture` tells how many of the given ones are like these. A label that is merely hard for
the models is less unlikely than a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.data_quality.mixture import Mixture, clustered_mean, fit_mixture

__all__ = ["JudgedLabels", "draw_wrong_labels", "judge_labels", "odds_against"]

_DRAWN = 2  # wrong labels per line
_ERRORS_ADDED = 1.0  # to the share of wrong labels; without, 62 instead of 86 of 100 wrong ones among 3,000 were found
_ROWS_AT_ONCE = 4_096
_MOST_CLASSES = 3_000  # with more, the table of all pairs of classes is too large, and only frequencies count


@dataclass(frozen=True)
class JudgedLabels:
    """Labels compared with drawn wrong ones.

    Attributes:
        mixture: The probability of every judged label to be right, and the share of wrong ones.
        scores: ``(m,)`` log odds of every judged label against the likeliest other class.
        drawn: ``(k,)`` the same of the drawn wrong labels.
        drawn_groups: ``(k,)`` int64 group of the line of each drawn label.
    """

    mixture: Mixture
    scores: NDArray[np.float64]
    drawn: NDArray[np.float64]
    drawn_groups: NDArray[np.int64]

    def found_share(self, called: NDArray[np.int64]) -> tuple[float, float]:
        """Return the share of drawn wrong labels that score no better than the best of some labels, in [0, 1].

        Where these are the labels called wrong, this is the share of drawn ones that would be called wrong too; 0 if
        none is. Its standard error, with groups as units, is returned as well; 0 if none is.

        Args:
            called: ``(c,)`` places among the judged labels.
        """
        if not len(called):
            return 0.0, 0.0
        return clustered_mean(self.drawn <= self.scores[called].max(), self.drawn_groups)


def judge_labels(
    labels: NDArray[np.int64],
    probabilities: NDArray[np.floating],
    groups: NDArray[np.int64],
    *,
    seed: int,
    judged: NDArray[np.int64] | None = None,
) -> JudgedLabels:
    """Return the probability of every label to be right, and the share of wrong ones with its interval.

    Args:
        labels: ``(n,)`` int64 given classes, at least two different ones.
        probabilities: ``(n, classes)`` out of fold.
        groups: ``(n,)`` int64 group of every line; lines of one group are not independent.
        seed: Random seed for the wrong labels.
        judged: ``(m,)`` rows to judge, by default all; the attributes of the result are those of these rows. Only the
            labels that these rows have are drawn as wrong ones for any row. So pairs that are known to be wrong, of
            which the labels are not judged, still show how a wrong match scores.
    """
    rows, drawn = draw_wrong_labels(labels, probabilities, seed=seed)
    own = np.arange(len(labels)) if judged is None else judged
    if judged is not None:
        kept = np.isin(drawn, labels[own])
        rows, drawn = rows[kept], drawn[kept]
    given = _scores(probabilities, own, labels[own])
    scores = _scores(probabilities, rows, drawn)
    mixture = fit_mixture(given, scores, groups[own], groups[rows], errors_added=_ERRORS_ADDED)
    return JudgedLabels(mixture, given, scores, groups[rows])


def _scores(
    probabilities: NDArray[np.floating], rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the log odds of labels against the likeliest other class, ``(m,)``; in blocks, as these are copied."""
    blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, max(len(rows), 1), _ROWS_AT_ONCE)]
    return np.concatenate(
        [-odds_against(probabilities[rows[part]].astype(np.float64), labels[part]) for part in blocks]
    )


def odds_against(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log odds of the likeliest other class against the label, ``(n,)``."""
    at = np.arange(len(labels))
    others = np.maximum(probabilities, 1e-12)
    own = others[at, labels].copy()
    others[at, labels] = 0
    odds: NDArray[np.float64] = np.log(others.max(axis=1)) - np.log(own)
    return odds


def draw_wrong_labels(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], *, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give every line labels other than the given one.

    For a line of class a they are drawn from the labels that lines answered with a have instead, and as if there were
    one more such line with each label of the file by frequency. So wrong labels are of the kind that occurs: a question
    about a colour gets another colour.

    Args:
        labels: ``(n,)`` int64 given classes.
        probabilities: ``(n, classes)`` out of fold.
        seed: Random seed.

    Returns:
        ``(m,)`` rows and their labels.
    """
    random = np.random.default_rng(seed)
    classes = probabilities.shape[1]
    often = np.bincount(labels, minlength=classes) / len(labels)
    weights = np.zeros((classes, classes) if classes <= _MOST_CLASSES else (1, classes))
    if len(weights) > 1:
        np.add.at(weights, (probabilities.argmax(axis=1), labels), 1.0)
    weights += often
    rows, drawn = [], []
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        own = labels[start : start + _ROWS_AT_ONCE]
        each = weights[own % len(weights)]
        each[np.arange(len(own)), own] = 0.0
        sums = np.cumsum(each, axis=1)
        possible = np.flatnonzero(sums[:, -1] > 0)
        for _ in range(_DRAWN):
            points = random.random(len(possible)) * sums[possible, -1]
            rows.append(start + possible)
            drawn.append((sums[possible] <= points[:, None]).sum(axis=1))
    return np.concatenate(rows), np.concatenate(drawn)
