"""The rule for wrong labels of `frevl.diagnose`, given out-of-fold answers of two models.

The number of wrong labels is that of the labels that confident learning (Northcutt et al. 2021, as in cleanlab) names
and all models contradict with the same other label. The wrong labels are those with the largest odds against them
(ours).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.errors import MissingExtraError

__all__ = [
    "LEAST_SKILL",
    "TRUSTED",
    "WrongLabels",
    "check_cleanlab",
    "deal_blocks",
    "find_wrong_labels",
    "least_accuracy",
    "likely_errors",
    "model_weights",
    "odds_against",
    "stands_out",
]

TRUSTED = 0.9
"""Accuracy below which a contradiction reveals more about the models than about the label."""

LEAST_SKILL = 0.4
"""Required share of the way from always answering the most frequent label to perfect; less proves nothing."""

_MOST_CELLS = 40_000_000  # probabilities in memory; more are processed in blocks
_SURE = 0.8  # share of the mean confidence
_WEIGHTS = np.linspace(0, 1, 21)  # tried for the second of two models


@dataclass(frozen=True)
class WrongLabels:
    """The labels that the rule calls wrong.

    Attributes:
        rows: Rows whose label is likely wrong, likeliest first.
        beliefs: ``(n,)`` probability of the given label, in the weighted average of the models.
        likelier: ``(n,)`` int64, the most probable label in that average; for `rows`, never the given one.
        likeliest: ``(n,)`` probability of the most probable label.
    """

    rows: NDArray[np.int64]
    beliefs: NDArray[np.float64]
    likelier: NDArray[np.int64]
    likeliest: NDArray[np.float64]


def check_cleanlab() -> None:
    """Fail now rather than after minutes of training.

    Raises:
        MissingExtraError: cleanlab is not installed.
    """
    try:
        importlib.import_module("cleanlab")
    except ImportError as error:
        raise MissingExtraError("cleanlab", "diagnose") from error


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


def deal_blocks(rows: int, models: int, classes: int, *, seed: int) -> tuple[int, NDArray[np.int64]]:
    """Return the number of blocks in which the probabilities fit into memory, and the block of every row."""
    blocks = max(1, -(-models * rows * classes // _MOST_CELLS))
    return blocks, np.random.default_rng(seed).integers(0, blocks, rows)


def likely_errors(labels: NDArray[np.int64], probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
    """Return the rows whose label one model calls wrong, likeliest first.

    Uses confident learning; in addition, the model must be about as sure of another answer as it usually is (ours).

    Args:
        labels: ``(n,)`` int64 classes; every class of the probabilities occurs.
        probabilities: ``(n, classes)`` out of fold, calibrated, rows sum to 1.
    """
    filter_module = importlib.import_module("cleanlab.filter")
    found = filter_module.find_label_issues(
        labels, probabilities, return_indices_ranked_by="self_confidence", filter_by="prune_by_noise_rate", n_jobs=1
    )
    # On pairs that it cannot solve, a model is unsure; only if it is about as sure as usual is its contradiction
    # evidence against the label.
    sure = probabilities.max(axis=1)
    ranked = np.asarray(found, np.int64)
    kept: NDArray[np.int64] = ranked[sure[ranked] >= _SURE * sure.mean()]
    return kept


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
    *,
    weights: NDArray[np.float32] | None = None,
    candidates: NDArray[np.bool_] | None = None,
    cautious: bool = False,
) -> WrongLabels:
    """Find the rows whose label is likely wrong.

    Their number is that of the labels that confident learning names and that all models contradict with the same other
    label. The rows found are those with the largest odds against the label in the weighted average. In each of 20 sets
    with planted errors, these were wrong more often than the rows with the least probable label, which include those
    that the models cannot solve (research/experiments/log.md).

    Args:
        labels: ``(n,)`` int64 classes.
        probabilities: ``(n, classes)`` of each of two models, positive, out of fold. Classes that are no row's label
            are left out and the rest renormalised.
        weights: ``(2,)`` weights of the models in their average; by default those of `model_weights` on these rows.
        candidates: ``(n,)`` rows that may be found; by default all.
        cautious: Count only labels that confident learning names on every model, instead of on their mean. On seven
            data sets without planted errors this found half as many labels; on the same sets with a tenth of the labels
            exchanged, it found 0.52 of these instead of 0.74.
    """
    at = np.arange(len(labels))
    present, numbers = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return WrongLabels(at[:0], np.ones(len(labels)), labels, np.ones(len(labels)))
    by_model = [one[:, present] for one in probabilities]
    by_model = [one / one.sum(axis=1, keepdims=True) for one in by_model]
    weights = model_weights(numbers, by_model) if weights is None else weights
    average = np.tensordot(weights, np.stack(by_model), axes=1).astype(np.float64)
    judges = by_model if cautious else [np.mean(by_model, axis=0)]
    named = np.zeros((len(judges), len(labels)), bool)
    for judge, one in enumerate(judges):
        named[judge, likely_errors(numbers, one)] = True
    answers = [one.argmax(axis=1) for one in by_model]
    alike = np.all([(one == answers[0]) & (one != numbers) for one in answers], axis=0)
    odds = odds_against(average, numbers)
    if candidates is not None:
        alike &= candidates
        odds = np.where(candidates, odds, -np.inf)
    first = np.argsort(-odds, kind="stable")[: int((alike & named.all(axis=0)).sum())]
    rows = first[odds[first] > 0]
    return WrongLabels(rows, average[at, numbers], present[average.argmax(axis=1)], average.max(axis=1))


def odds_against(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log odds of the likeliest other class against the label, ``(n,)``."""
    at = np.arange(len(labels))
    others = np.maximum(probabilities, 1e-12)
    own = others[at, labels].copy()
    others[at, labels] = 0
    odds: NDArray[np.float64] = np.log(others.max(axis=1)) - np.log(own)
    return odds
