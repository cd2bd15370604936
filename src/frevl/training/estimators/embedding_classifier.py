"""`frevl.classify` for arrays: classify image vectors by examples, names, or both."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray

from frevl.models.interface import PairNetwork
from frevl.models.retrieval.two_tower import Cosine
from frevl.training.classification.candidates import METHODS
from frevl.training.classification.fit_network import EmbeddedExamples, FittedSpace, fit_network
from frevl.training.estimators.array_classifier import ArrayClassifier
from frevl.training.estimators.checks import check_seconds, is_between

__all__ = ["EmbeddingClassifier"]

_NO_CLASSES = "; if y may lack some of the classes, as in a fold, name all of them with classes="


class EmbeddingClassifier(ArrayClassifier):
    """Classify embeddings (of images or anything else) by examples, by vectors of class names, or both.

    The methods, the choice among them, the calibration and the results are those of `frevl.classify` on the same
    embeddings.

    Args:
        method: ``auto``, ``names``, ``means``, ``cache``, ``gaussian``, ``kernel`` or ``probe``.
        class_texts: ``(classes, features)`` vectors of the names in the space of ``X`` (CLIP and similar models), in
            the order of ``classes``, or None. Classes without rows in ``y`` are then possible.
        classes: Labels of the classes; None uses the sorted labels of ``y``.
        name_scale: The logit of a cosine of 1 between a row and a name: 100 for CLIP.
        time_limit: Time limit for comparing methods, in seconds.
        random_state: Seed of the splits.

    Examples:
        >>> from frevl.estimators import EmbeddingClassifier
        >>> import numpy as np
        >>> X = np.eye(4).repeat(6, axis=0) + 0.1 * np.random.default_rng(0).standard_normal((24, 4))
        >>> y = np.repeat(["ash", "birch", "cedar", "elm"], 6)
        >>> EmbeddingClassifier().fit(X, y).predict(np.eye(4)).tolist()
        ['ash', 'birch', 'cedar', 'elm']
    """

    def __init__(
        self,
        *,
        method: str = "auto",
        class_texts: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        name_scale: float = 100.0,
        time_limit: float | None = None,
        random_state: int | None = 0,
    ) -> None:
        self.method = method
        self.class_texts = class_texts
        self.classes = classes
        self.name_scale = name_scale
        self.time_limit = time_limit
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike | None = None,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> EmbeddingClassifier:
        """Fit; without ``X`` and ``y``, from ``class_texts`` and ``classes`` alone.

        Args:
            X: ``(n, features)`` embeddings; they need not have unit length.
            y: ``(n,)`` labels.
            groups: As in `ArrayClassifier.fit`.
            sample_weight: As in `ArrayClassifier.fit`.

        Raises:
            ValueError: As in scikit-learn; also for labels that are not among ``classes``, or ``class_texts`` of the
                wrong shape.
        """
        if self.method not in METHODS:
            raise ValueError(f"method: expected one of {', '.join(METHODS)}, found {self.method!r}")
        if not is_between(self.name_scale, 0, np.inf):
            raise ValueError(f"name_scale: expected the logit of a cosine of 1, above 0, found {self.name_scale!r}")
        if X is None and y is None and self.class_texts is not None:
            if self.method not in ("auto", "names"):
                raise ValueError(f"method={self.method!r} needs examples, X and y; found class_texts alone")
            check_seconds(self.time_limit)
            texts = self._texts()
            self.n_features_in_ = texts.shape[1]
            self.classes_ = self._classes(np.array([]))
            self.network_, self.calibration_, self.results_ = self._fit(
                np.zeros((0, texts.shape[1]), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), None
            )
            return self
        super().fit(X, y, groups, sample_weight)  # type: ignore[arg-type]
        return self

    def _classes(self, y: NDArray[Any]) -> NDArray[Any]:
        if self.classes is None:
            if self.class_texts is not None and not len(y):
                raise ValueError("class_texts without examples need classes, the labels of its rows")
            return super()._classes(y)
        given = np.asarray(self.classes)
        known: NDArray[Any] = np.unique(given)
        if len(known) != len(given):
            raise ValueError("classes: expected distinct labels, found a duplicate")
        strange = np.setdiff1d(y, known)
        if len(strange):
            raise ValueError(f"y: expected labels of classes, found {str(strange[0])!r}")
        return known

    def _fit(
        self,
        X: NDArray[np.float32],
        y: NDArray[np.int64],
        clusters: NDArray[np.int64],
        weights: NDArray[np.float32] | None,
    ) -> tuple[PairNetwork, dict[str, float], dict[str, Any]]:
        started = time.monotonic()
        space = self._space(X.shape[1])
        missing = len(self.classes_) - len(np.unique(y))
        if space is None and missing:
            raise ValueError(f"{missing} of {len(self.classes_)} classes have no row in y and no class_texts")
        own = EmbeddedExamples(
            torch.from_numpy(X),
            torch.from_numpy(y),
            torch.from_numpy(clusters),
            None if weights is None else torch.from_numpy(weights),
        )
        network, choice = fit_network(own, None, space, len(self.classes_), method=self.method, session=self._session())
        seconds = time.monotonic() - started
        results = choice.results(examples=len(y), seconds=seconds, names=space is not None)
        return network, {"scale": 1.0, "offset": 0.0}, results

    def _space(self, dim: int) -> FittedSpace | None:
        if self.class_texts is None:
            if self.method == "names":
                raise ValueError("method='names' needs class_texts, vectors of the names")
            return None
        texts = self._texts()
        order = np.arange(len(self.classes_)) if self.classes is None else np.argsort(np.asarray(self.classes))
        if texts.shape != (len(self.classes_), dim):
            raise ValueError(
                f"class_texts: expected the shape {(len(self.classes_), dim)}, a vector of the width of X for each "
                f"class, found {texts.shape}" + ("" if self.classes is not None else _NO_CLASSES)
            )
        vectors = F.normalize(torch.from_numpy(texts[order]), dim=1)
        return FittedSpace(vectors, Cosine(spaces=[[0, dim, 0, dim]], scale=self.name_scale).eval(), self.name_scale)

    def _texts(self) -> NDArray[np.float32]:
        """Return the vectors of the names, checked."""
        wanted = "class_texts: expected an array of vectors, one a class"
        try:
            texts = np.asarray(self.class_texts, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{wanted}, such as the text tower of the encoder gives, found {error}") from error
        if texts.ndim != 2:
            raise ValueError(f"{wanted}, found the shape {texts.shape}")
        if not np.isfinite(texts).all():
            raise ValueError(f"{wanted}, found NaN or infinity")
        empty = np.flatnonzero(~texts.any(axis=1))
        if len(empty):
            raise ValueError(f"{wanted}, found only zeros in row {empty[0]:,}, which have no direction")
        return texts

    @classmethod
    def load(cls, folder: str | Path) -> EmbeddingClassifier:
        """Load a classifier that `save` wrote, with any vectors of the names, so that it can be fitted again.

        Raises:
            RunError: There is no such run, or another class wrote it.
        """
        fitted = super().load(folder)
        names = getattr(fitted.network_, "name_vectors", None)
        if names is not None and names.shape[1]:
            fitted.class_texts, fitted.classes = names.numpy(), fitted.classes_
        return fitted

    def _sides(self, X: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return X, np.zeros((len(X), 0), np.float32)
