"""Predict a label from the words of its text: logistic regression on words, word pairs and the whole text.

A text embedding blurs the single word that gives the answer away; a bag of words does not
(research/experiments/log.md).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import word_pattern
from frevl.data.packed.columns import chosen
from frevl.errors import MissingExtraError
from frevl.store.grouping.large_arrays import blank

__all__ = ["by_words", "words_weighed"]

_MOST_WORDS = 50_000
_MOST_WEIGHTS = 4_000_000  # words times classes; the optimiser holds some twenty times as many numbers
_TEXTS_AT_ONCE = 16_384
_PENALTY = 10.0  # inverse regularisation, as in scikit-learn
_ITERATIONS = 300


def words_weighed(classes: int) -> int:
    """Return the maximum number of words, the most frequent ones, that are weighed for so many classes."""
    return min(_MOST_WORDS, max(1, _MOST_WEIGHTS // classes))


def by_words(
    texts: Sequence[str], labels: NDArray[np.int64], fold_of: NDArray[np.int64], classes: int
) -> NDArray[np.floating]:
    """Return out-of-fold probabilities for every line, ``(n, classes)``.

    Args:
        texts: ``(n,)`` text of every line.
        labels: ``(n,)`` class of every line.
        fold_of: ``(n,)`` fold of every line.
        classes: Number of classes.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        counting = importlib.import_module("sklearn.feature_extraction.text")
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "diagnose") from error
    predicted = blank((len(texts), classes), np.float32)
    words, pieces = words_weighed(classes), rf"{word_pattern()}|[^\w\s]"
    for fold in np.unique(fold_of).tolist():
        inside, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        present = np.unique(labels[inside])
        if len(present) < 2:
            predicted[held[:, None], present] = 1.0
            continue
        counts: Any = counting.CountVectorizer(
            ngram_range=(1, 2), token_pattern=pieces, binary=True, dtype=np.float64, max_features=words
        )
        try:
            seen = counts.fit_transform(chosen(texts, inside))
        except ValueError:  # no words in any text
            predicted[held] = np.bincount(labels[inside], minlength=classes) / len(inside)
            continue
        model: Any = linear.LogisticRegression(C=_PENALTY, max_iter=_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the solution need not be more exact
            model.fit(seen, labels[inside])
        for start in range(0, len(held), _TEXTS_AT_ONCE):
            some = held[start : start + _TEXTS_AT_ONCE]
            predicted[some[:, None], model.classes_] = model.predict_proba(counts.transform(chosen(texts, some)))
    return predicted
