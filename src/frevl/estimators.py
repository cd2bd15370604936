"""Arrays in, model out: classifiers with the interface of scikit-learn. They load no store and read no pictures.

``pip install 'frevl[estimators]'``. They fit what `frevl.train` and `frevl.classify` fit on the same embeddings.
"""

from __future__ import annotations

from frevl.training.estimators.embedding_classifier import EmbeddingClassifier
from frevl.training.estimators.fusion import FusionClassifier, FusionMatcher

__all__ = ["EmbeddingClassifier", "FusionClassifier", "FusionMatcher"]
