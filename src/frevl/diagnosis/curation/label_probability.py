"""Turn out-of-fold probabilities of classes into the probability that a given label is right. Pure numpy.

The rule of `frevl.diagnosis.data_quality.label_rule` counts contradictions, so a model that is often wrong calls many
right labels wrong. Here the given labels are compared with wrong ones, as captions are: every line is given labels that
are wrong for it, and the mixture of `frevl.diagnosis.curation.match_probability` tells how many of the given ones are
like these. A label that is merely hard for the models is less unlikely than a wrong one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.curation.match_probability import Mixture, fit_mixture
from frevl.diagnosis.data_quality.label_rule import odds_against

__all__ = ["draw_wrong_labels", "judge_labels"]

_DRAWN = 2  # wrong labels per line
_ROWS_AT_ONCE = 4_096
_MOST_CLASSES = 3_000  # with more, the table of all pairs of classes is too large, and only frequencies count


def judge_labels(
    labels: NDArray[np.int64], probabilities: NDArray[np.floating], groups: NDArray[np.int64], *, seed: int
) -> Mixture:
    """Return the probability of every label to be right, and the share of wrong ones with its interval.

    Args:
        labels: ``(n,)`` int64 given classes, at least two different ones.
        probabilities: ``(n, classes)`` out of fold.
        groups: ``(n,)`` int64 group of every line; lines of one group are not independent.
        seed: Random seed for the wrong labels.
    """
    rows, drawn = draw_wrong_labels(labels, probabilities, seed=seed)
    given = _scores(probabilities, np.arange(len(labels)), labels)
    return fit_mixture(given, _scores(probabilities, rows, drawn), groups, groups[rows])


def _scores(
    probabilities: NDArray[np.floating], rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the log odds of labels against the likeliest other class, ``(m,)``; in blocks, as these are copied."""
    blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, max(len(rows), 1), _ROWS_AT_ONCE)]
    return np.concatenate(
        [-odds_against(probabilities[rows[part]].astype(np.float64), labels[part]) for part in blocks]
    )


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
