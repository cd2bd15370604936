"""The methods of `frevl classify` with their possible settings. A new method is a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from frevl.models.classification.heads import Features, Head
from frevl.models.classification.landmarks import MOST_CLASSES, MOST_EXACT
from frevl.models.classification.probe import solve_probe
from frevl.models.classification.solvers import solve_cache, solve_gaussian, solve_kernel, solve_means

__all__ = ["METHODS", "MOST_KEPT", "Candidate", "candidates_of", "fixed_candidate"]

MOST_KEPT = MOST_EXACT
"""Maximum number of examples kept in a run."""


@dataclass(frozen=True)
class Candidate:
    """A method with its settings.

    Attributes:
        method: Name of the method, one of `METHODS`.
        solve: Maps features, labels and number of classes to a head; None for the names alone.
        settings: Further keyword arguments of ``solve``.
        anchored: Whether the head is fitted around the names, so that both share one scale; otherwise each has its own.
        fewest: Number of examples per class that every fit needs, on average and rounded: a covariance from a single
            class with two examples, which may be copies, is useless.
        most: Maximum number of examples it can be fitted on, as its memory grows with their number or its square.
        beyond: Maximum number of classes with which it can be fitted on more examples than ``most``.
        every_class: Whether it needs examples of every class. With such a method, a class that has only a name is lost:
            with three examples of every other ImageNet class, the remaining classes fell from 65 to 22 %
            (research/experiments/log.md).
    """

    method: str
    solve: Callable[..., Head] | None
    settings: dict[str, float] = field(default_factory=dict)
    anchored: bool = False
    fewest: int = 1
    most: int | None = None
    beyond: int = 0
    every_class: bool = False

    @property
    def name(self) -> str:
        """Return the name shown in the table."""
        return " ".join([self.method, *(f"{name} {value:g}" for name, value in self.settings.items())])

    def fit(
        self, features: Features, labels: Tensor, classes: int, *, names: float, weights: Tensor | None = None
    ) -> Head:
        """Fit a head to examples.

        Args:
            features: Features of ``n`` examples.
            labels: ``(n,)`` int64.
            classes: Number of classes; those without examples keep only their names.
            names: Scale of the cosines with the names; 0 without names.
            weights: ``(n,)`` weights above 0, or None for equal weights.
        """
        if self.solve is None:
            return Head.zero(classes, features.standard.shape[1], names=names)
        present, compact = np.unique(labels.numpy(), return_inverse=True)
        if len(present) == classes:
            return self.solve(features, labels, classes, names=names, weights=weights, **self.settings)
        # A class without examples keeps only its name: among classes with examples, it would look like a class to which
        # no example belongs, and be suppressed.
        rows = torch.from_numpy(present)
        cosines = None if features.cosines is None else features.cosines[:, rows]
        some = features._replace(cosines=cosines)
        head = self.solve(some, torch.from_numpy(compact), len(rows), names=names, weights=weights, **self.settings)
        return head.among(rows, classes)


_NAMES = Candidate("names", None, anchored=True)
# Simplest first, and within a method strongest penalty first: the order that breaks ties.
_CANDIDATES = (
    _NAMES,
    Candidate("means", solve_means, every_class=True),
    Candidate("cache", solve_cache, most=MOST_KEPT, every_class=True),
    *(
        Candidate("gaussian", solve_gaussian, {"shrinkage": value}, fewest=2, every_class=True)
        for value in (0.9, 0.7, 0.5, 0.3, 0.1)
    ),
    *(
        Candidate("kernel", solve_kernel, {"ridge": value}, most=MOST_KEPT, beyond=MOST_CLASSES)
        for value in (1.0, 0.3, 0.1, 0.03)
    ),
    *(Candidate("probe", solve_probe, {"penalty": value}, anchored=True) for value in (0.3, 0.1, 0.03)),
)

METHODS = ("auto", *dict.fromkeys(one.method for one in _CANDIDATES))
"""The values accepted by ``--method``."""

# If nothing can be held out: the settings that were best, or as good as the best, with one example per class on four
# sets of CLIP embeddings, with the scales that suited them (research/experiments/log.md).
_FIXED = {"kernel": ({"ridge": 1.0}, 16.0, 60.0), "probe": ({"penalty": 0.03}, 1.0, 2.5)}
_FIXED_SCALES = {"means": (4.0, 15.0), "cache": (4.0, 15.0), "names": (1.0, 1.0), "gaussian": (4.0, 15.0)}


def candidates_of(method: str, *, has_names: bool) -> tuple[Candidate, ...]:
    """Return the candidates: all methods for ``auto``, otherwise the settings of one."""
    return tuple(
        one for one in _CANDIDATES if (method in ("auto", one.method)) and (has_names or one.method != "names")
    )


def fixed_candidate(method: str, *, has_names: bool) -> tuple[Candidate, float]:
    """Return the default if no example can be held out, and the scale of its head.

    Args:
        method: One of `METHODS`; ``auto`` uses the probe with names, and the kernel without.
        has_names: Whether the classes have names.
    """
    chosen = method if method != "auto" else "probe" if has_names else "kernel"
    own = candidates_of(chosen, has_names=True)
    if chosen in _FIXED:
        settings, beside_names, alone = _FIXED[chosen]
        return next(one for one in own if one.settings == settings), beside_names if has_names else alone
    beside_names, alone = _FIXED_SCALES[chosen]
    return own[0], beside_names if has_names else alone
