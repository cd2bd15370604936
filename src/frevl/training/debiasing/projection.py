"""The map that makes vectors of texts neutral, in closed form. Pure torch.

Chuang et al. 2023, "Debiasing Vision-Language Models via Biased Prompts" (arXiv 2302.00070)::

    P = P0 (I + weight / |S| sum over pairs (i, j) of S of (z_i - z_j)(z_i - z_j)^T)^-1

P0 projects out what the biased prompts span. The second factor is the minimum over matrices X of
``|X - I|^2 + weight / |S| sum |X (z_i - z_j)|^2``: the gradient ``2 (X - I) + 2 weight X M`` vanishes at
``X = (I + weight M)^-1``, where M is the mean of the outer products. It shrinks a direction in which pairs that should
be equal differ by a mean square of m to ``1 / (1 + weight m)``, and leaves all others as they are.

Theirs spans the prompts themselves, so that what they have in common ("a photo of a", a person) goes too. In spaces of
captions that cost 3 to 4 points of recall (research/experiments/log.md), so by default ours is the span of their
differences from their mean; of a single prompt there is nothing else than itself.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.errors import UsageError

__all__ = ["bias_of", "neutral_map", "spanned"]

_INDEPENDENT = 1e-4  # relative singular value below which prompts say nothing of their own
_MOST_SHARE = 0.5  # of the directions of a space that may be projected out


def spanned(biased: Tensor, *, differences: bool) -> Tensor:
    """Return an orthonormal basis ``(r, d)`` of what biased prompts span.

    Args:
        biased: ``(b, d)`` unit vectors.
        differences: Of their differences from their mean, where there are several; otherwise of the prompts.

    Raises:
        UsageError: They are linearly dependent, or span more than half of the space.
    """
    if not len(biased):
        return biased.new_zeros(0, biased.shape[1]).double()
    vectors = biased.double()
    values = torch.linalg.svdvals(vectors)
    if len(vectors) > vectors.shape[1] or float(values[-1]) <= _INDEPENDENT * float(values[0]):
        raise UsageError(
            f"expected biased prompts that are linearly independent, found that {len(vectors):,} prompts span "
            f"{int((values > _INDEPENDENT * values[0]).sum()):,} directions; leave out prompts that say the same"
        )
    if len(vectors) > 1 and differences:
        vectors = vectors - vectors.mean(dim=0)
    rank = len(vectors) - (1 if len(vectors) > 1 and differences else 0)
    if rank > _MOST_SHARE * vectors.shape[1]:
        raise UsageError(
            f"expected biased prompts that leave at least half of the {vectors.shape[1]:,} directions of the space, "
            f"found that they span {rank:,}; with so many gone texts no longer differ, so give fewer prompts"
        )
    basis: Tensor = torch.linalg.svd(vectors, full_matrices=False).Vh[:rank]
    return basis


def neutral_map(biased: Tensor, first: Tensor, second: Tensor, *, weight: float, differences: bool = True) -> Tensor:
    """Return the map ``(d, d)``; vectors of texts are multiplied from the left, ``P z``.

    Args:
        biased: ``(b, d)`` unit vectors of biased prompts; none projects nothing out.
        first: ``(s, d)`` unit vectors of texts.
        second: ``(s, d)`` of what each should be equal to.
        weight: How strongly pairs are made equal; 0 not at all.
        differences: As in `spanned`.

    Raises:
        UsageError: As in `spanned`.
    """
    dim = biased.shape[1]
    basis = spanned(biased, differences=differences)
    whole = torch.eye(dim, dtype=torch.double)
    kept = whole - basis.T @ basis
    if not len(first):
        return kept.float()
    apart = (first - second).double()
    moment = weight / len(apart) * apart.T @ apart
    found: Tensor = torch.linalg.solve(whole + moment, kept, left=False).float()
    return found


def bias_of(first: Tensor, second: Tensor, others: Tensor) -> float:
    """Return how far apart texts are that should be equal, as a share of how far apart different texts are.

    Args:
        first: ``(s, d)`` vectors of texts.
        second: ``(s, d)`` of what each should be equal to.
        others: ``(n, d)`` of different texts.

    Returns:
        The ratio of the root mean squared distances of unit vectors: 0 where they are equal, about 1 where they are as
        different as any two texts. NaN without two different texts.
    """
    first, second, others = (F.normalize(part.double(), dim=1) for part in (first, second, others))
    within = (first - second).square().sum(dim=1).mean()
    centred = others - others.mean(dim=0)
    between = 2 * centred.square().sum() / max(1, len(others) - 1)
    return float((within / between).sqrt())
