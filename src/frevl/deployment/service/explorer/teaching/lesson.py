"""One fit's predictions for all images of a store: likely classes, doubtful images, contradicted labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F

from frevl.evaluation.intervals import hit_interval
from frevl.runs.labelling.strategies import choose

__all__ = ["Classifier", "Fit", "Lesson", "Material", "apply_classifier"]

_MOST_KEPT = 32_000_000  # cached probabilities; above this, those of a class are computed on request
_BLOCK = 65_536
_POOL = 4_096  # least certain images, among which the next are chosen
_NEXT = 60
_CONFUSIONS = 100
_numbers = itertools.count()


class Classifier(Protocol):
    """A classifier fitted to labels, such as `frevl.training.classification.teaching.Taught`."""

    @property
    def method(self) -> str:
        """Method and setting."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""

    @property
    def held_out(self) -> np.ndarray:
        """``(m,)`` int64, the held-out examples."""

    @property
    def held_out_probabilities(self) -> np.ndarray:
        """``(m, classes)``."""

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """Return ``(n, classes)`` float32 of ``(n, dim)`` embeddings."""


class Fit(Protocol):
    """Fits a classifier; ``before`` is an earlier fit, whose settings are reused for a quick one."""

    def __call__(
        self,
        vectors: np.ndarray,
        labels: np.ndarray,
        clusters: Sequence[int],
        classes: int,
        *,
        before: Any = None,
        names: np.ndarray | None = None,
        scale: float = 100.0,
    ) -> Classifier:
        """Fit."""


@dataclass(frozen=True)
class Material:
    """The training data.

    Attributes:
        version: Version of the labels.
        key: Key of the store's rows.
        rows: ``(n,)`` int64, the labelled images.
        labels: ``(n,)`` int64, indices into the names.
        clusters: ``(n,)``, one number for all copies of an image.
        names: Names of the classes; those without an image are represented by the vector of their name.
        name_vectors: ``(names, dim)`` unit vectors of the names, or None if they are not used.
        notes: Sentences for the user.
    """

    version: int
    key: str
    rows: np.ndarray
    labels: np.ndarray
    clusters: np.ndarray
    names: list[str]
    name_vectors: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Lesson:
    """One fit and its predictions.

    Attributes:
        material: The training data.
        classifier: The fit.
        best: ``(images,)`` int32, the likeliest class of each; -1 without an embedding.
        likely: ``(images,)`` float32, its probability.
        margin: ``(images,)`` float32, its lead over the second likeliest; 2 without an embedding.
        seconds: Durations of ``fit`` and ``score``.
        kept: ``(images, classes)`` float32, or None if that is too large.
        number: Number unique within this process, used as a cache key.
    """

    material: Material
    classifier: Classifier
    best: np.ndarray
    likely: np.ndarray
    margin: np.ndarray
    seconds: dict[str, float]
    kept: np.ndarray | None
    accuracy: dict[str, Any] | None = None
    confusion: list[dict[str, Any]] = field(default_factory=list)
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    number: int = field(default_factory=_numbers.__next__)

    def evaluate(self, classifier: Classifier) -> None:
        """Compute accuracy, confusion and likely errors from a fit with held-out labels."""
        rows, probabilities = classifier.held_out, classifier.held_out_probabilities
        if not len(rows):
            return
        truth, said = self.material.labels[rows], probabilities.argmax(axis=1)
        hits, clusters = (truth == said).astype(float), self.material.clusters[rows]
        interval = hit_interval(hits, clusters)
        low, high = (None if np.isnan(one) else float(one) for one in (interval.low, interval.high))
        self.accuracy = {"value": float(interval.value), "low": low, "high": high, "pictures": len(rows)}
        cells, counts = np.unique(np.stack([truth, said]), axis=1, return_counts=True)
        order = np.lexsort((cells[0], -counts))[:_CONFUSIONS]
        names = self.material.names
        self.confusion = [
            {"label": names[cells[0, at]], "said": names[cells[1, at]], "pictures": int(counts[at])}
            for at in order.tolist()
        ]
        own = probabilities[np.arange(len(rows)), truth]
        wrong = np.flatnonzero(truth != said)
        self.wrong = self.material.rows[rows[wrong[np.argsort(own[wrong], kind="stable")]]]

    def of_class(self, name: str, vectors: np.ndarray) -> np.ndarray:
        """Return ``(images,)`` float32: each image's probability of a class; -1 without an embedding."""
        number = self.material.names.index(name)
        if self.kept is not None:
            found: np.ndarray = self.kept[:, number]
        else:
            blocks = range(0, len(vectors), _BLOCK)
            found = np.concatenate(
                [self.classifier.probabilities(vectors[at : at + _BLOCK])[:, number] for at in blocks]
            )
        return np.where(self.best >= 0, found, np.float32(-1))

    def next(self, vectors: np.ndarray, among: np.ndarray | None = None) -> np.ndarray:
        """Return the images whose labels would teach most: uncertain, and unlike the labelled ones and each other.

        This is `frevl.runs.labelling.strategies.choose` with ``mixed``, applied to the least certain images.

        Args:
            vectors: ``(images, dim)``.
            among: Rows of the images to choose from; None for all.
        """
        open_ = np.full(len(vectors), among is None)
        if among is not None:
            open_[among] = True
        open_[self.material.rows] = False
        open_ &= self.best >= 0
        pool = np.flatnonzero(open_)
        if len(pool) > _POOL:
            pool = pool[np.argpartition(self.margin[pool], _POOL)[:_POOL]]
        pool.sort()
        items, covered = (_unit(vectors[rows]) for rows in (pool, self.material.rows[-_POOL:]))
        unsure = torch.from_numpy(1 - self.margin[pool])
        chosen = choose("mixed", items, covered, unsure, torch.arange(len(pool)), k=_NEXT, per_unit=1)
        return pool[[one.row for one in chosen]]


def _unit(vectors: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.from_numpy(np.asarray(vectors, np.float32)), dim=1)


def apply_classifier(
    material: Material, classifier: Classifier, vectors: np.ndarray, usable: np.ndarray, stop: Callable[[], bool]
) -> Lesson | None:
    """Apply a classifier to all images; None if stopped."""
    n, classes = len(vectors), len(material.names)
    best, likely = np.full(n, -1, np.int32), np.zeros(n, np.float32)
    margin = np.full(n, 2, np.float32)
    kept = np.zeros((n, classes), np.float32) if n * classes <= _MOST_KEPT else None
    for start in range(0, n, _BLOCK):
        if stop():
            return None
        part = slice(start, start + _BLOCK)
        found = classifier.probabilities(vectors[part])
        if kept is not None:
            kept[part] = found
        best[part] = found.argmax(axis=1)
        likely[part] = np.take_along_axis(found, best[part][:, None].astype(np.int64), axis=1)[:, 0]
        two = np.partition(found, classes - 2, axis=1)[:, classes - 2 :]
        margin[part] = two[:, 1] - two[:, 0]
    best[~usable], likely[~usable], margin[~usable] = -1, 0, 2
    return Lesson(material, classifier, best, likely, margin, {}, kept)
