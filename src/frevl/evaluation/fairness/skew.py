"""Who appears in the first hits of a search, compared with the searched pool. Pure numpy.

``skew of a group = ln(share of the group in the first k / share in the pool)``; MaxSkew@k and MinSkew@k are the largest
and the smallest over the groups (Geyik et al. 2019, "Fairness-aware ranking in search", equations 3 to 5). A group
missing from the first k would have a skew of minus infinity, which cannot be averaged: it counts as half a picture
there (ours).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.evaluation.intervals import drawn_counts

__all__ = ["SkewDraws", "share_gaps", "skews"]

Floats = NDArray[np.float64]
_HALF = 0.5
_PLACES = 4_194_304  # ranking cells processed at once


def skews(top: Floats, pool: Floats, k: int) -> Floats:
    """Return ``(..., groups)`` skews in nats.

    Args:
        top: ``(..., groups)`` shares in the first ``k``.
        pool: ``(..., groups)`` shares in the pool, above 0.
        k: Number of hits shown.
    """
    found: Floats = np.log(np.maximum(top, _HALF / k) / pool)
    return found


def share_gaps(top: Floats, pool: Floats) -> Floats:
    """Return ``(...,)`` the mean over groups of |share in the first k - share in the pool|.

    For two groups that make up the pool, this is the same for either group.
    """
    gaps: Floats = np.abs(top - pool).mean(axis=-1)
    return gaps


class SkewDraws:
    """The first hits when the pool's pictures are resampled, for intervals over pictures.

    Args:
        order: ``(queries, pictures)`` integers: the pictures of the pool, best first.
        groups: ``(pictures,)`` group index of every picture; -1 if its group is left out.
        clusters: ``(pictures,)`` int64, pictures that are resampled together.
        count: Number of groups.
        k: Number of hits shown.
    """

    def __init__(
        self,
        order: NDArray[np.integer[Any]],
        groups: NDArray[np.int64],
        clusters: NDArray[np.int64],
        count: int,
        k: int,
    ) -> None:
        self._order, self._clusters, self.k = order, clusters, k
        self._member: Floats = (groups[:, None] == np.arange(count)).astype(np.float64)

    def shares(self, weights: Floats | None = None) -> tuple[Floats, Floats]:
        """Return ``(queries, groups)`` shares in the first k and ``(groups,)`` shares in the pool.

        Args:
            weights: ``(pictures,)`` multiplicity of each picture; 1 if None.
        """
        pictures = self._member if weights is None else self._member * weights[:, None]
        pool = pictures.sum(axis=0) / max(1.0, float(len(pictures) if weights is None else weights.sum()))
        if weights is None:
            return self._member[self._order[:, : self.k]].mean(axis=1), pool
        top = np.empty((len(self._order), self._member.shape[1]))
        step = max(1, _PLACES // max(1, self._order.shape[1]))
        for start in range(0, len(top), step):  # what follows holds several numbers per position
            order = self._order[start : start + step]
            counts = weights[order]
            before = np.cumsum(counts, axis=1) - counts
            taken = np.clip(self.k - before, 0, counts)
            shown: Floats = np.einsum("qp,qpg->qg", taken, self._member[order])
            top[start : start + step] = shown / taken.sum(axis=1, keepdims=True).clip(min=1.0)
        return top, pool

    def draws(self, resamples: int, seed: int = 0) -> list[tuple[Floats, Floats]]:
        """Return the `shares` for a number of draws of the pool's clusters."""
        number = int(self._clusters.max()) + 1
        found = []
        for block in drawn_counts(number, resamples, seed):
            found += [self.shares(weights[self._clusters].astype(np.float64)) for weights in block]
        return found
