"""Kernel ridge regression of many examples, carried by a few of them, the landmarks. Pure torch.

Among the functions ``sum over landmarks j of k(x, l_j) b_j``, find the one with the least squared error on all examples
plus the penalty: the subset of regressors, or Nyström's method (Williams and Seeger 2001). Work and memory grow with
the number of examples, where those of the exact solution grow with its cube and its square.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from frevl.models.kernel_ridge import kernel_matrix

__all__ = ["MOST_CLASSES", "MOST_EXACT", "landmark_count", "solve_by_landmarks"]

MOST_EXACT = 10_000
"""Maximum number of examples of an exact solution: their kernel matrix takes 0.4 GB, and its factor as much."""

_FEWEST = 1_024
_PER_CLASS = 32  # with ten per class, UCF101 lost 4 points (research/experiments/log.md)
_EXAMPLES_PER_LANDMARK = 4  # with fewer, the exact solution costs hardly more
_MOST = 4_096
MOST_CLASSES = _MOST // _PER_CLASS
"""Maximum number of classes for landmarks; with more, they would be too few per class, or too many to solve."""

_JITTER = 1e-3  # added to the kernel of a landmark with itself, which is 1: landmarks may be equal
_AT_ONCE = 4_096


def landmark_count(examples: int, classes: int) -> int:
    """Return a number of landmarks worth trying for a number of examples and classes; 0 if there is none."""
    count = max(_FEWEST, _PER_CLASS * min(classes, MOST_CLASSES))
    enough = MOST_EXACT if classes > MOST_CLASSES else min(_EXAMPLES_PER_LANDMARK * count, MOST_EXACT)
    return count if examples > enough else 0


@dataclass(frozen=True)
class _Sums:
    """What every penalty and target shares.

    Attributes:
        rows: ``(m,)`` the landmarks among the examples.
        factor: ``(m, m)`` lower Cholesky factor ``L`` of their kernel.
        squares: ``(m, m)`` weighted products of the features ``L^-1 k(landmarks, x)`` over all examples.
        targets: ``(n, outputs)`` the targets of the products.
        products: ``(m, outputs)`` weighted products of features and targets.
    """

    rows: Tensor
    factor: Tensor
    squares: Tensor
    targets: Tensor
    products: Tensor


def solve_by_landmarks(
    x: Tensor, targets: Tensor, width: float, ridge: float, count: int, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Solve a kernel ridge regression with a Gaussian kernel.

    Args:
        x: ``(n, d)`` features.
        targets: ``(n, outputs)``.
        width: Squared width of the kernel.
        ridge: Penalty above 0.
        count: Number of landmarks, at most ``n``; they are drawn at random, always the same ones.
        weights: ``(n,)`` weights above 0, or None for equal weights.

    Returns:
        ``(count,)`` rows of the landmarks, and ``(count, outputs)`` coefficients.
    """
    shared = _SUMS.get(x) if weights is None else None
    if shared is None or len(shared.rows) != count or not torch.equal(shared.targets, targets):
        shared = _summed(x, targets, width, count, weights)
        if weights is None:
            _SUMS.clear()  # one at a time: those of further folds take its place
            _SUMS[x] = shared
    penalised = shared.squares.clone()
    penalised.diagonal().add_(ridge)
    found = torch.cholesky_solve(shared.products, torch.linalg.cholesky(penalised))
    return shared.rows, torch.linalg.solve_triangular(shared.factor.T, found, upper=True)


def _summed(x: Tensor, targets: Tensor, width: float, count: int, weights: Tensor | None) -> _Sums:
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:count].sort().values
    own = kernel_matrix(x[rows], x[rows], width)
    own.diagonal().add_(_JITTER)
    factor, squares = torch.linalg.cholesky(own), torch.zeros(count, count)
    products = torch.zeros(count, targets.shape[1])
    for start in range(0, len(x), _AT_ONCE):
        part = slice(start, start + _AT_ONCE)
        features = torch.linalg.solve_triangular(factor, kernel_matrix(x[rows], x[part], width), upper=False)
        if weights is not None:
            features *= weights[part].sqrt()
        array = features.numpy()
        squares += torch.from_numpy(array @ array.T)  # NumPy exploits the symmetry, which halves the work
        products += features @ (targets[part] if weights is None else targets[part] * weights[part, None].sqrt())
    return _Sums(rows, factor, squares, targets, products)


# By features, which are never changed in place: several penalties share the sums.
_SUMS: MutableMapping[Tensor, _Sums] = WeakIdKeyDictionary()
