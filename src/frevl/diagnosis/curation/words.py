"""What the words of a text give away about its label: a logistic regression on words, pairs of words and the text.

An embedding of a whole text blurs the one word that leaks the answer; words do not (research/experiments/log.md).
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.errors import MissingExtraError

__all__ = ["by_words"]

_MOST_WORDS = 50_000
_PENALTY = 10.0  # inverse, as scikit-learn has it
_ITERATIONS = 300
_PIECES = r"\w+|[^\w\s]"


def by_words(
    texts: Sequence[str], labels: NDArray[np.int64], fold_of: NDArray[np.int64], classes: int
) -> NDArray[np.float32]:
    """Return ``(n, classes)`` the probabilities of every line by what was learnt from the other folds.

    Args:
        texts: ``(n,)``.
        labels: ``(n,)`` class of every line.
        fold_of: ``(n,)`` its fold.
        classes: How many there are.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        counting = importlib.import_module("sklearn.feature_extraction.text")
        linear = importlib.import_module("sklearn.linear_model")
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "diagnose") from error
    said = np.zeros((len(texts), classes), np.float32)
    for fold in np.unique(fold_of).tolist():
        learnt, held = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        present = np.unique(labels[learnt])
        if len(present) < 2:
            said[held[:, None], present] = 1.0
            continue
        counts: Any = counting.CountVectorizer(
            ngram_range=(1, 2), token_pattern=_PIECES, binary=True, dtype=np.float64, max_features=_MOST_WORDS
        )
        try:
            seen = counts.fit_transform([texts[row] for row in learnt.tolist()])
        except ValueError:  # not one word in any text
            said[held] = np.bincount(labels[learnt], minlength=classes) / len(learnt)
            continue
        model: Any = linear.LogisticRegression(C=_PENALTY, max_iter=_ITERATIONS, tol=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it could be solved more exactly
            model.fit(seen, labels[learnt])
        said[held[:, None], model.classes_] = model.predict_proba(
            counts.transform([texts[row] for row in held.tolist()])
        )
    return said
