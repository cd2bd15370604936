"""Solve a `Head` from examples of classes in closed form, one function per method. Pure torch.

Standardising features and scaling them to unit length (`frevl.models.classification.heads`) is ours; so is the way in
which names enter each method, unless stated otherwise.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from frevl.models.classification.heads import Features, Head, Memory, one_hot
from frevl.models.classification.landmarks import MOST_EXACT, landmark_count, solve_by_landmarks
from frevl.models.kernel_ridge import kernel_matrix, median_distance

__all__ = [
    "CACHE_SHARPNESS",
    "class_means",
    "solve_cache",
    "solve_gaussian",
    "solve_kernel",
    "solve_means",
    "solve_unlabelled",
]

CACHE_SHARPNESS = 5.5
"""The sharpness beta of Tip-Adapter's cache, as published."""

_NO_SPREAD = 1e-10  # of features of unit length


def class_means(standard: Tensor, labels: Tensor, classes: int, weights: Tensor | None = None) -> Tensor:
    """Return the mean of the examples of each class, ``(classes, d)``; zero, the overall mean, for a class without."""
    share = torch.ones(len(labels)) if weights is None else weights
    sums = torch.zeros(classes, standard.shape[1]).index_add_(0, labels, standard * share[:, None])
    return sums / _filled(torch.zeros(classes).index_add_(0, labels, share))[:, None]


def solve_means(
    features: Features, labels: Tensor, classes: int, *, names: float = 0.0, weights: Tensor | None = None
) -> Head:
    """Nearest class mean: the cosine of an image with the mean of the examples of each class.

    Args:
        features: Features of ``n`` examples.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        names: Scale of the name logits that are added.
        weights: As in `frevl.models.classification.probe.solve_probe`.
    """
    means = F.normalize(class_means(features.standard, labels, classes, weights), dim=1)
    return Head(names, means, torch.zeros(classes))


def solve_gaussian(
    features: Features,
    labels: Tensor,
    classes: int,
    *,
    shrinkage: float,
    names: float = 0.0,
    weights: Tensor | None = None,
) -> Head:
    """Gaussian discriminant analysis: one covariance shared by all classes, shrunk towards a multiple of the identity.

    Linear discriminant analysis with shrinkage in the form of Ledoit and Wolf; with text logits added, Wang et al.
    2024, "A Hard-to-Beat Baseline for Training-Free CLIP-Based Adaptation". All classes have the same prior
    probability.

    Args:
        features: Features of ``n`` examples, at least one per class and more than one for some classes.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        shrinkage: In (0, 1]; with 1 the nearest class mean by distance.
        names: Scale of the name logits that are added.
        weights: As in `frevl.models.classification.probe.solve_probe`.
    """
    x = features.standard
    means = class_means(x, labels, classes, weights)
    inside = x - means[labels]
    each = torch.ones(len(x)) if weights is None else weights
    spread = (inside * each[:, None]).T @ inside / max(1.0, float(each.sum()) - classes)
    level = spread.trace() / x.shape[1]
    if level < _NO_SPREAD:  # copies: the covariance is unknown, so fall back to the nearest mean by distance
        spread, level = torch.eye(x.shape[1]), torch.ones(())
    covariance = (1 - shrinkage) * spread + shrinkage * level * torch.eye(x.shape[1])
    weight = torch.linalg.solve(covariance, means.T).T
    # Multiplied by the level, so that the logits are of similar size for every shrinkage.
    return Head(names, level * weight, -0.5 * level * (means * weight).sum(dim=1))


def solve_kernel(
    features: Features,
    labels: Tensor,
    classes: int,
    *,
    ridge: float,
    names: float = 0.0,
    weights: Tensor | None = None,
    landmarks: int = 0,
) -> Head:
    """Kernel ridge regression with a Gaussian kernel, predicting class membership.

    It is exact, or carried by some of the examples (`frevl.models.classification.landmarks`).

    Args:
        features: Features of ``n`` examples.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        ridge: Penalty above 0.
        names: Scale of the names; the regression is then fitted to the residuals of their probabilities.
        weights: As in `frevl.models.classification.probe.solve_probe`.
        landmarks: Number of examples that carry the solution; 0 for the exact one, up to 10,000 examples.
    """
    x = features.standard
    width = _width(x)
    expected = _names_probabilities(features, names) if names else torch.full((len(x), classes), 1 / classes)
    targets = one_hot(labels, classes) - expected
    head = Head.zero(classes, x.shape[1], names=names)
    if landmarks or len(x) > MOST_EXACT:
        count = landmarks or landmark_count(len(x), classes)
        rows, coefficients = solve_by_landmarks(x, targets, width, ridge, count, weights)
        return replace(head, memories=(Memory(coefficients, width, False, rows),))
    kernel = _kernel(x)
    kernel.diagonal().add_(ridge if weights is None else ridge / weights)
    coefficients = torch.cholesky_solve(targets, torch.linalg.cholesky(kernel))
    return replace(head, memories=(Memory(coefficients, width, False),))


def solve_cache(
    features: Features, labels: Tensor, classes: int, *, names: float = 0.0, weights: Tensor | None = None
) -> Head:
    """Tip-Adapter's cache without training: the sum over examples of ``exp(-beta (1 - cosine))``, added to the names.

    Zhang et al. 2022, "Tip-Adapter", equations 3 to 5, with their beta of 5.5; the sum over the examples of a class is
    divided by their number, so that a class with more examples is no likelier.

    Args:
        features: Features of ``n`` examples.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        names: Scale of the name logits that are added.
        weights: As in `frevl.models.classification.probe.solve_probe`.
    """
    truth = _weighted(labels, classes, weights)
    coefficients = truth / _filled(truth.sum(dim=0))
    # For unit vectors, 1 - cosine is half the squared distance.
    memory = Memory(coefficients, 2 / CACHE_SHARPNESS, True)
    head = Head.zero(classes, features.unit.shape[1], names=names)
    return replace(head, memories=(memory,))


# By features, which are never changed in place: several penalties are tried on the same ones.
_WIDTHS: MutableMapping[Tensor, float] = WeakIdKeyDictionary()
_KERNELS: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
_MOST_SHARED = 4_096  # examples; a larger kernel matrix takes too much memory to keep along with its factor


def _width(features: Tensor) -> float:
    """Return the median squared distance of features."""
    if features not in _WIDTHS:
        _WIDTHS[features] = float(median_distance(features))
    return _WIDTHS[features]


def _kernel(features: Tensor) -> Tensor:
    """Return the ``(n, n)`` kernel matrix of features at their width, which the caller may change."""
    if len(features) > _MOST_SHARED:
        return kernel_matrix(features, features, _width(features))
    kept = _KERNELS.get(features)
    if kept is None:
        kept = kernel_matrix(features, features, _width(features))
        _KERNELS.clear()  # one at a time: those of further folds take its place
        _KERNELS[features] = kept
    return kept.clone()


def _weighted(labels: Tensor, classes: int, weights: Tensor | None) -> Tensor:
    truth = one_hot(labels, classes)
    return truth if weights is None else truth * weights[:, None]


def _filled(totals: Tensor) -> Tensor:
    """Return the totals with zeros replaced by ones, for use as divisors."""
    return totals.where(totals > 0, 1.0)


def _names_probabilities(features: Features, names: float) -> Tensor:
    if features.cosines is None:
        raise ValueError("a scale of the names goes with features that have cosines")
    return (names * features.cosines).softmax(dim=1)


def solve_unlabelled(features: Features, labels: Tensor, classes: int, *, unlabelled: Tensor, guessed: Tensor) -> Head:
    """Gaussians of all classes, fitted to examples and unlabelled images by expectation maximisation (ours).

    All classes share one covariance, shrunk as in `solve_gaussian`. The method is like the transductive classifiers of
    Zanella et al. 2024 ("Boosting Vision-Language Models with Transduction"), but results in a head for further images.

    Args:
        features: Features of ``n`` examples.
        labels: ``(n,)`` int64, class indices.
        classes: Number of classes.
        unlabelled: ``(m, d)`` standardised features of unlabelled images, scaled to unit length.
        guessed: ``(m, classes)`` initial probabilities for them, from another head.
    """
    x, known = torch.cat([features.standard, unlabelled]), one_hot(labels, classes)
    weight, bias = torch.zeros(classes, x.shape[1]), torch.zeros(classes)
    identity = torch.eye(x.shape[1])
    for _ in range(_EM_STEPS):
        shares = torch.cat([known, guessed])
        counts = _filled(shares.sum(dim=0))
        means = (shares.T @ x) / counts[:, None]
        # The shares of every image sum to one, so the scatter within classes is the total minus that between them.
        spread = (x.T @ x - (means * counts[:, None]).T @ means) / len(x)
        level = spread.trace() / x.shape[1]
        covariance = (1 - _EM_SHRINKAGE) * spread + _EM_SHRINKAGE * level * identity
        weight = torch.linalg.solve(covariance, means.T).T * (level * _EM_SHARPNESS)
        bias = -0.5 * (means * weight).sum(dim=1)
        guessed = (unlabelled @ weight.T + bias).softmax(dim=1)
    return Head(0.0, weight, bias)


# The best settings with one example per class on three sets of CLIP embeddings (research/experiments/log.md): a
# covariance near the identity, and sharply separated classes.
_EM_STEPS, _EM_SHRINKAGE, _EM_SHARPNESS = 10, 0.9, 45.0
