"""Metrics in plain numpy: hits, macro-F1, calibration, recall and choice scores.

Results are fractions, not percentages: the caller multiplies. Per-item functions (`correct`, `brier` and the like)
return one number per item, which `frevl.evaluation.intervals` can resample; the others return one number. Wrong shapes
raise `UsageError`.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from frevl.errors import UsageError

__all__ = [
    "Labels",
    "accuracy",
    "brier",
    "calibration_gaps",
    "choice_hits",
    "cohens_kappa",
    "correct",
    "expected_calibration_error",
    "group_hits",
    "macro_f1",
    "mean_of_f1",
    "median_rank",
    "negative_log_likelihood",
    "observed_agreement",
    "rank_of_best_match",
    "recall_at",
]

Labels = Sequence[Any] | NDArray[Any]
Floats = NDArray[np.float64]

# The smallest probability used in a logarithm; a class deemed impossible costs 27.6 nats.
SMALLEST_PROBABILITY = 1e-12


# --------------------------------------------------------------------------------------- labels


def correct(predicted: Labels, targets: Labels) -> Floats:
    """Return for each item whether the predicted label is right.

    Args:
        predicted: ``(n,)`` labels, strings or integers.
        targets: ``(n,)`` labels. A list, tuple or set holds several right answers.

    Returns:
        ``(n,)`` of 0 and 1, 1 for a right label.

    Raises:
        UsageError: The lengths differ, or there are no items.
    """
    _same_length(predicted, targets)
    hits = [
        label in target if isinstance(target, (list, tuple, set, frozenset)) else label == target
        for label, target in zip(_plain(predicted), _plain(targets), strict=True)
    ]
    return np.asarray(hits, dtype=np.float64)


def accuracy(predicted: Labels, targets: Labels) -> float:
    """Return the share of right labels in ``[0, 1]``; see `correct`."""
    return float(correct(predicted, targets).mean())


def macro_f1(predicted: Labels, targets: Labels) -> float:
    """Return the mean F1 over classes, in ``[0, 1]``.

    A class counts if it is a target or predicted at least once; F1 is ``2 TP / (2 TP + FP + FN)``.

    Args:
        predicted: ``(n,)`` labels.
        targets: ``(n,)`` labels, one each.

    Raises:
        UsageError: The lengths differ, or there are no items.
    """
    _same_length(predicted, targets)
    return mean_of_f1(*_codes(_plain(targets), _plain(predicted)))


def mean_of_f1(targets: NDArray[np.int64], predicted: NDArray[np.int64]) -> float:
    """Return `macro_f1` of ``(n,)`` class numbers, at least one each."""
    classes = int(max(targets.max(), predicted.max())) + 1
    of_target, of_predicted = (np.bincount(codes, minlength=classes) for codes in (targets, predicted))
    of_hits = np.bincount(targets[targets == predicted], minlength=classes)
    there = of_target + of_predicted
    return float(np.mean(2 * of_hits[there > 0] / there[there > 0]))


# ---------------------------------------------------------------------------------- calibration


def expected_calibration_error(probabilities: ArrayLike, hits: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error in ``[0, 1]`` (Naeini et al. 2015; equal-width bins as in Guo et al. 2017).

    Bin ``i`` of ``b`` holds the confidences in ``(i/b, (i+1)/b]``; a confidence of exactly 0 is in the first.

    Args:
        probabilities: ``(n,)`` confidence of the predicted label, in ``[0, 1]``.
        hits: ``(n,)`` 1 if the label was right, else 0 (soft credit in between is allowed).
        bins: Number of bins.

    Raises:
        UsageError: The lengths differ, there are no items, or a confidence lies outside ``[0, 1]``.
    """
    bin_of, gaps = calibration_gaps(probabilities, hits, bins)
    # n_bin * |mean credit - mean confidence| = |sum credit - sum confidence|: empty bins need no special case.
    return float(np.abs(np.bincount(bin_of, weights=gaps, minlength=bins)).sum() / len(gaps))


def calibration_gaps(probabilities: ArrayLike, hits: ArrayLike, bins: int = 15) -> tuple[NDArray[np.int64], Floats]:
    """Return the ``(n,)`` bin and ``(n,)`` credit minus confidence of items; see `expected_calibration_error`."""
    confidence, credit = np.asarray(probabilities, np.float64), np.asarray(hits, np.float64)
    _same_length(confidence, credit)
    _must_be_probabilities(confidence)
    bin_of = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side="left")
    return bin_of, credit - confidence


def negative_log_likelihood(probabilities: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the negative log-likelihood of the right class, one number per item, in nats, from 0 to 27.6.

    Args:
        probabilities: ``(n, classes)``; or ``(n,)``, the probability of class 1 out of two (a match).
        targets: ``(n,)`` class number. -1 means a class unknown to the model: probability 0.

    Returns:
        ``(n,)`` nats. Probabilities below 1e-12 count as 1e-12.

    Raises:
        UsageError: Shapes do not match, a class does not exist, or a probability lies outside ``[0, 1]``.
    """
    values, classes = _probabilities_and_classes(probabilities, targets)
    if values.ndim == 1:
        of_right = np.where(classes == 1, values, 1.0 - values)
        of_right[classes < 0] = 0.0
    else:
        of_right = _of_class(values, classes)
    losses: Floats = -np.log(np.clip(of_right, SMALLEST_PROBABILITY, 1.0))
    return losses


def brier(probabilities: ArrayLike, targets: ArrayLike) -> Floats:
    """Return the Brier score, one number per item: the squared distance from the right answer; lower is better.

    Args:
        probabilities: ``(n, classes)``: the sum over classes, in ``[0, 2]`` (Brier 1950); or ``(n,)``, the probability
            of class 1 out of two: ``(p - y)^2`` in ``[0, 1]``, the usual form for two classes.
        targets: ``(n,)`` class number; -1 means a class unknown to the model.

    Returns:
        ``(n,)`` scores.

    Raises:
        UsageError: Shapes do not match, a class does not exist, or a probability lies outside ``[0, 1]``.
    """
    values, classes = _probabilities_and_classes(probabilities, targets)
    if values.ndim == 1:
        return np.where(classes < 0, 1.0, (values - (classes == 1)) ** 2)
    squares: Floats = np.einsum("nc,nc->n", values, values, dtype=np.float64)
    return squares - 2.0 * _of_class(values, classes) + 1.0


# --------------------------------------------------------------------------------------- recall


def rank_of_best_match(
    blocks: Iterable[NDArray[Any]], positives: Sequence[Collection[int] | NDArray[np.integer[Any]]]
) -> NDArray[np.int64]:
    """Return, for each query, the rank of the best-placed matching candidate; 0 is the first place.

    The rank is the number of wrong candidates that score at least as high as the best right one, so a right candidate
    tied with wrong ones ranks behind them all. Other right candidates never push it down. NaN counts as the lowest
    score. Only one block is in memory at a time.

    Args:
        blocks: Consecutive row blocks ``(rows, candidates)`` of the ``(queries, candidates)`` scores.
        positives: For each query, the numbers of its matching candidates, at least one.

    Returns:
        ``(queries,)`` ranks, from 0 to ``candidates - 1``.

    Raises:
        UsageError: A query has no match, a candidate does not exist, or the blocks do not have one row per query and
            the same number of candidates.
    """
    ranks = np.empty(len(positives), dtype=np.int64)
    start, width = 0, -1
    for block in blocks:
        if block.ndim != 2 or (width >= 0 and block.shape[1] != width):
            raise UsageError(
                f"Score block at query {start}: expected rows with all {width if width >= 0 else 'candidates'} "
                f"scores, found shape {block.shape}."
            )
        width = block.shape[1]
        rows = positives[start : start + len(block)]
        if len(rows) < len(block):
            raise UsageError(f"Scores: expected {len(positives)} queries, found at least {start + len(block)}.")
        ranks[start : start + len(block)] = _ranks_in_block(block, rows, start)
        start += len(block)
    if start != len(positives):
        raise UsageError(f"Scores: expected {len(positives)} queries, found {start}.")
    return ranks


def _ranks_in_block(
    block: NDArray[Any], positives: Sequence[Collection[int] | NDArray[np.integer[Any]]], first: int
) -> NDArray[np.int64]:
    if len(block) == 0:
        return np.empty(0, dtype=np.int64)
    columns_of = [np.unique(np.asarray(list(columns), dtype=np.int64)) for columns in positives]
    for row, columns in enumerate(columns_of):
        if len(columns) == 0:
            raise UsageError(f"Query {first + row} has no matching candidate: leave it out of the ranking.")
        if columns[0] < 0 or columns[-1] >= block.shape[1]:
            raise UsageError(
                f"Query {first + row}: candidate {columns[-1] if columns[0] >= 0 else columns[0]} "
                f"does not exist; there are {block.shape[1]}."
            )
    scores = np.where(np.isnan(block), -np.inf, block)
    counts = np.asarray([len(columns) for columns in columns_of])
    row_of = np.repeat(np.arange(len(block)), counts)
    of_positives = scores[row_of, np.concatenate(columns_of)]
    best = np.maximum.reduceat(of_positives, np.concatenate(([0], np.cumsum(counts)[:-1])))
    at_least = np.count_nonzero(scores >= best[:, None], axis=1)
    # Positives with the best score are the best one and those tied with it, so they are not rivals.
    own = np.bincount(row_of[of_positives == best[row_of]], minlength=len(block))
    return np.asarray(at_least - own, dtype=np.int64)


def recall_at(ranks: ArrayLike, k: int) -> float:
    """Return the share of queries, in ``[0, 1]``, whose best match is among the first ``k``; ranks start at 0."""
    found = np.asarray(ranks)
    _not_empty(found)
    return float(np.mean(found < k))


def median_rank(ranks: ArrayLike) -> float:
    """Return the median rank as papers report it, counted from 1; the given ranks start at 0."""
    found = np.asarray(ranks)
    _not_empty(found)
    return float(np.median(found)) + 1.0


# --------------------------------------------------------------------------------- choice files


def group_hits(scores: ArrayLike) -> dict[str, Floats]:
    """Return text, image and group scores of Winoground-style sets (Thrush et al. 2022), one hit per example.

    Text: each image prefers its own caption. Image: each caption prefers its own image. Group: both.
    The preference is strict: a tie or a NaN is wrong.

    Args:
        scores: ``(n, 2, 2)``, ``scores[i, c, m]`` the score of caption ``c`` with image ``m``; caption 0
            belongs to image 0 and caption 1 to image 1.

    Returns:
        ``{"text": (n,), "image": (n,), "group": (n,)}`` of 0 and 1. Chance is 1/4, 1/4 and 1/6.

    Raises:
        UsageError: The shape is wrong.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 3 or values.shape[1:] != (2, 2) or len(values) == 0:
        raise UsageError(f"Group scores: expected shape (n, 2 captions, 2 images), found {values.shape}.")
    text = (values[:, 0, 0] > values[:, 1, 0]) & (values[:, 1, 1] > values[:, 0, 1])
    image = (values[:, 0, 0] > values[:, 0, 1]) & (values[:, 1, 1] > values[:, 1, 0])
    return {
        "text": text.astype(np.float64),
        "image": image.astype(np.float64),
        "group": (text & image).astype(np.float64),
    }


def choice_hits(scores: ArrayLike, right: ArrayLike | None = None) -> Floats:
    """Return for each item whether the right choice scores strictly higher than every other (SugarCrepe).

    Args:
        scores: ``(n, choices)``, at least two choices. Missing choices are filled with ``-inf``.
        right: ``(n,)`` number of the right choice; by default 0 everywhere.

    Returns:
        ``(n,)`` of 0 and 1. A tie or a NaN is wrong.

    Raises:
        UsageError: Shapes do not match, or a right choice does not exist.
    """
    values = np.asarray(scores, np.float64)
    if values.ndim != 2 or values.shape[1] < 2 or len(values) == 0:
        raise UsageError(f"Choice scores: expected shape (n, 2 or more choices), found {values.shape}.")
    chosen = np.zeros(len(values), np.int64) if right is None else np.asarray(right, np.int64)
    _same_length(values, chosen)
    if chosen.min() < 0 or chosen.max() >= values.shape[1]:
        raise UsageError(f"Choice scores: right choices must lie in 0 to {values.shape[1] - 1}.")
    rows = np.arange(len(values))
    of_right = values[rows, chosen]
    # `>` rather than `argmax`, because a tie or a NaN anywhere in the row must be wrong.
    beaten = of_right[:, None] > values
    beaten[rows, chosen] = True
    return np.asarray(beaten.all(axis=1), dtype=np.float64)


# --------------------------------------------------------------------------------------- checks


def _plain(labels: Labels) -> Sequence[Any]:
    """Convert numpy scalars, which are slow to hash and compare, to Python objects."""
    return labels.tolist() if isinstance(labels, np.ndarray) else labels


def _not_empty(values: Any) -> None:
    if len(values) == 0:
        raise UsageError("There are no items to measure.")


def _same_length(a: Any, b: Any) -> None:
    if len(a) != len(b):
        raise UsageError(f"Expected as many predictions as targets, found {len(a)} and {len(b)}.")
    _not_empty(a)


def _must_be_probabilities(values: NDArray[Any]) -> None:
    # Written so that NaN fails, too; with some tolerance for float32 sums.
    if not (values.min() >= -1e-6 and values.max() <= 1 + 1e-6):
        raise UsageError(f"Probabilities must lie in 0 to 1, found {values.min()} to {values.max()}.")


def _probabilities_and_classes(
    probabilities: ArrayLike, targets: ArrayLike
) -> tuple[NDArray[np.floating[Any]], NDArray[np.int64]]:
    values, classes = np.asarray(probabilities), np.asarray(targets)
    if values.dtype != np.float32:
        values = values.astype(np.float64)
    if values.ndim not in (1, 2) or classes.ndim != 1:
        raise UsageError(
            f"Expected probabilities (n, classes) or (n,) and targets (n,), found {values.shape} and {classes.shape}."
        )
    _same_length(values, classes)
    _must_be_probabilities(values)
    count = values.shape[1] if values.ndim == 2 else 2
    if classes.min() < -1 or classes.max() >= count or not np.all(classes == np.floor(classes)):
        raise UsageError(f"Targets must be class numbers in 0 to {count - 1}, or -1 for an unknown class.")
    return values, classes.astype(np.int64)


def _of_class(values: NDArray[np.floating[Any]], classes: NDArray[np.int64]) -> Floats:
    picked = values[np.arange(len(values)), np.maximum(classes, 0)].astype(np.float64)
    return np.where(classes < 0, 0.0, picked)


def observed_agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of items, 0 to 1, to which both labellers give the same class.

    Raises:
        ValueError: No items, or different numbers of items.
    """
    codes = _codes(first, second)
    return float((codes[0] == codes[1]).mean())


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Cohen's kappa: ``(observed - expected) / (1 - expected)``, at most 1; 0 is chance level.

    The expected agreement is that of two labellers who use the classes as often as these do, but independently (Cohen
    1960, "A coefficient of agreement for nominal scales"). The result equals scikit-learn's ``cohen_kappa_score``.

    Args:
        first: The first labeller's class for each item.
        second: The second labeller's class for the same items.

    Returns:
        Kappa; None if both give the same single class to everything, which leaves nothing beyond chance.

    Raises:
        ValueError: No items, or different numbers of items.
    """
    codes = _codes(first, second)
    classes = int(codes.max()) + 1
    shares = [np.bincount(one, minlength=classes) / codes.shape[1] for one in codes]
    expected = float(shares[0] @ shares[1])
    if expected >= 1.0:
        return None
    return (float((codes[0] == codes[1]).mean()) - expected) / (1.0 - expected)


def _codes(first: Sequence[Hashable], second: Sequence[Hashable]) -> np.ndarray:
    """Number the classes: ``(2, items)``."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected the same items from both, at least one; found {len(first)} and {len(second)}")
    numbers: dict[Hashable, int] = {}
    return np.array([[numbers.setdefault(name, len(numbers)) for name in one] for one in (first, second)])
