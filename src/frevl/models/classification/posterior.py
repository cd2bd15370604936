"""The closed-form Gaussian posterior of a last layer, which measures how similar an input is to the training data.

With unit noise and a prior of unit variance the weights of a linear layer on inputs ``v_1 ... v_n`` have the posterior
covariance ``(sum v_i v_i^T + I)^-1``, for each output the same, whatever the targets were (Bishop 2006, equation 3.54;
the last-layer Laplace approximation of Daxberger et al. 2021 with a squared error). The remaining variance of an output
for an input of unit length is ``v^T (sum v_i v_i^T + I)^-1 v``: 1 for a direction about which nothing was learned, and
``1 / (1 + n)`` after ``n`` inputs exactly like it.

The likelihood of classes would weight every example by ``p (1 - p)``; we leave that out (ours): examples that a layer
fits well would count for nothing, and the doubt near them would be that of a layer that has learned nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["MOST_DIRECTIONS", "known_directions", "left_over", "pair_doubt", "scatter_of"]

MOST_DIRECTIONS = 512
"""Number of directions kept for inputs that are more than twice as wide; the least known ones are dropped, so doubt is
never underestimated. For narrower inputs all directions are kept."""

_PASSES = 3  # of subspace iteration, after which the eigenvalues are accurate to about a thousandth


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
    """Turn a scatter into the directions that `left_over` subtracts: eigenvectors, scaled by how well each is known.

    Args:
        scatter: ``(d, d)``, symmetric and positive semidefinite; a sum over examples.
        most: Number of directions to keep if ``d`` is more than twice as large.

    Returns:
        ``(r, d)`` float32; a row with eigenvalue ``s`` has the squared length ``s / (s + 1)``. Exact where
        ``d <= 2 * most``.
    """
    if len(scatter) <= 2 * most:
        values, vectors = torch.linalg.eigh(scatter)
    else:
        # Subspace iteration (Halko et al. 2011, algorithm 4.4): computing all eigenvectors in 4,000 dimensions takes a
        # minute.
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
    """Return the share of the prior variance that the posterior leaves, ``v^T (scatter + I)^-1 v`` for unit vectors.

    Args:
        inputs: ``(n, d)`` of unit length, or shorter: the missing length is a part about which the layer cannot have
            learned, and counts as unknown.
        directions: ``(r, d)``, returned by `known_directions`.

    Returns:
        ``(n,)`` float32 in [0, 1]. A row with a non-finite number gives a non-finite result.
    """
    rows = inputs.double()
    known = (rows @ directions.double().T).square().sum(dim=1)
    return (1 - known + 0 * rows.sum(dim=1)).clamp(min=0).float()


def pair_doubt(parts: Mapping[str, Tensor]) -> Tensor:
    """Return the doubt of pairs from the variance left over on each side.

    With one side, the doubt is its left-over variance. With two, ``a`` and ``b``, it is the variance of the cosine of
    two vectors with isotropic errors of squared length ``a`` and ``b``, relative to the variance ``1 / d`` of the
    cosine of unrelated vectors: ``1 - 1 / ((1 + a) (1 + b))``. That is the analytic variance of BayesVLM (Baumann et
    al. 2024, "Post-hoc Probabilistic Vision-Language Models") with one error for all dimensions of a side.

    Args:
        parts: ``(n,)`` left-over variances by side; one or two sides.

    Returns:
        ``(n,)``, in [0, 1] for one side and in [0, 0.75] for two.

    Raises:
        ValueError: There are no sides, or more than two.
    """
    sides = list(parts.values())
    if len(sides) == 1:
        return sides[0]
    if len(sides) != 2:
        raise ValueError(f"expected one or two sides, found {len(sides)}")
    return 1 - 1 / ((1 + sides[0]) * (1 + sides[1]))
