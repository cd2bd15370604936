"""The closed-form Gaussian posterior of a last layer, which measures how similar an input is to the training data.

With unit noise and a prior of unit variance the weights of a linear layer on inputs ``v_1 ... v_n`` have the posterior
covariance ``(sum v_i v_i^T + I)^-1``, for each output the same, whatever the targets were (Bishop 2006, equation 3.54;
the last-layer Laplace approximation of Daxberger et al. 2021 with a squared error). What an output of an input of unit
length may still be off by is ``v^T (sum v_i v_i^T + I)^-1 v``: 1 for a direction that nothing was learned about, and
``1 / (1 + n)`` after ``n`` inputs exactly like it.

The likelihood of classes would weigh every example by ``p (1 - p)``; that is left out (ours): examples that a layer
fits well would count for nothing, and the doubt near them would be that of a layer that has learned nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["MOST_DIRECTIONS", "known_directions", "left_over", "pair_doubt", "scatter_of"]

MOST_DIRECTIONS = 512
"""Directions that are kept of inputs more than twice as wide; the least known are left out, so the doubt is never too
small. Of others all are kept."""

_PASSES = 3  # of subspace iteration: the kept eigenvalues are then right to about a thousandth


def scatter_of(blocks: Iterable[Tensor]) -> Tensor:
    """Return the ``(d, d)`` float64 sum of ``v v^T`` over the rows of ``(n, d)`` blocks.

    Raises:
        ValueError: There are no blocks.
    """
    total: Tensor | None = None
    for block in blocks:
        part = (block.T @ block).double()
        total = part if total is None else total.add_(part)
    if total is None:
        raise ValueError("a scatter needs rows, found none")
    return total


def known_directions(scatter: Tensor, *, most: int = MOST_DIRECTIONS) -> Tensor:
    """Turn a scatter into what `left_over` subtracts: eigenvectors, each times the root of how well it is known.

    Args:
        scatter: ``(d, d)``, symmetric and positive semidefinite, in examples.
        most: Directions that are kept where ``d`` is more than twice as large.

    Returns:
        ``(r, d)`` float32; with the eigenvalue ``s`` a row has the squared length ``s / (s + 1)``. Exact where
        ``d <= 2 * most``.
    """
    if len(scatter) <= 2 * most:
        values, vectors = torch.linalg.eigh(scatter)
    else:
        # Subspace iteration (Halko et al. 2011, algorithm 4.4): all eigenvectors of 4,000 dimensions take a minute.
        start = torch.randn(len(scatter), most, generator=torch.Generator().manual_seed(0), dtype=scatter.dtype)
        basis = torch.linalg.qr(start).Q
        for _ in range(_PASSES):
            basis = torch.linalg.qr(scatter @ basis).Q
        values, inner = torch.linalg.eigh(basis.T @ scatter @ basis)
        vectors = basis @ inner
    values = values.clamp(min=0)
    known = values > 1e-9 * values.max().clamp(min=1e-12)
    roots = (values / (values + 1)).sqrt()
    kept: Tensor = (vectors * roots)[:, known].T.flip(0)
    return kept.float().contiguous()


def left_over(inputs: Tensor, directions: Tensor) -> Tensor:
    """Return what the posterior leaves of the prior variance, ``v^T (scatter + I)^-1 v`` of unit vectors.

    Args:
        inputs: ``(n, d)`` of unit length, or shorter: what is missing is a part that the layer cannot have learned
            about, and counts as unknown.
        directions: ``(r, d)`` of `known_directions`.

    Returns:
        ``(n,)`` float32 in [0, 1]. A row that is not finite gives a number that is not finite.
    """
    rows = inputs.double()
    known = (rows @ directions.double().T).square().sum(dim=1)
    return (1 - known + 0 * rows.sum(dim=1)).clamp(min=0).float()


def pair_doubt(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the doubt of pairs from what is left over on each side.

    One side is its own doubt. Of two, ``a`` and ``b``, it is the variance of the cosine of two vectors that are off by
    isotropic errors of squared length ``a`` and ``b``, in shares of the variance ``1 / d`` that the cosine of unrelated
    vectors has: ``1 - 1 / ((1 + a) (1 + b))``. That is the analytic variance of BayesVLM (Baumann et al. 2024,
    "Post-hoc Probabilistic Vision-Language Models") with one error for all dimensions of a side.

    Args:
        parts: ``(n,)`` by side, one or two.

    Returns:
        ``(n,)``, in [0, 1] of one side and in [0, 0.75] of two.

    Raises:
        ValueError: There are no sides, or more than two.
    """
    sides = list(parts.values())
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ValueError(f"expected one or two sides, found {len(sides)}")
    return 1 - 1 / ((1 + sides[0]) * (1 + sides[1]))
