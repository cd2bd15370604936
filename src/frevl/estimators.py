"""Classifiers for arrays with the interface of scikit-learn. They load no store and read no images.

``pip install 'frevl[estimators]'``. They fit the same models as `frevl.train` and `frevl.classify`.
"""

from __future__ import annotations

from frevl.machine import share_processors

share_processors()  # these load torch

from frevl.training.estimators.embedding_classifier import EmbeddingClassifier  # noqa: E402
from frevl.training.estimators.fusion import FusionClassifier, FusionMatcher  # noqa: E402

__all__ = ["EmbeddingClassifier", "FusionClassifier", "FusionMatcher"]
