"""Whom the first hits of a search show, against the pool that is searched. Pure numpy.

``skew of a group = ln(share of the group in the first k / share in the pool)``; MaxSkew@k and MinSkew@k are the largest
and the smallest over the groups (Geyik et al. 2019, "Fairness-aware ranking in search", equations 3 to 5). A group that
the first k lack has the skew minus infinity, of which no mean can be made: it counts there as half a picture (ours).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.evaluation.intervals import drawn_counts

__all__ = ["SkewDraws", "share_gaps", "skews"]

Floats = NDArray[np.float64]
_HALF = 0.5
_PLACES = 4_194_304  # of rankings that are looked at at once


def skews(top: Floats, pool: Floats, k: int) -> Floats:
    """Return ``(..., groups)`` skews in nats.

    Args:
        top: ``(..., groups)`` shares in the first ``k``.
        pool: ``(..., groups)`` shares in the pool, above 0.
        k: How many are shown.
    """
    found: Floats = np.log(np.maximum(top, _HALF / k) / pool)
    return found


def share_gaps(top: Floats, pool: Floats) -> Floats:
    """Return ``(...,)``: the mean over the groups of |share in the first k - share in the pool|.

    Of two groups that make up the whole pool it is |share of either - its share in the pool|.
    """
    gaps: Floats = np.abs(top - pool).mean(axis=-1)
    return gaps


class SkewDraws:
    """What is shown when the pictures of the pool are drawn again: for intervals over pictures.

    Args:
        order: ``(queries, pictures)`` integers: the pictures of the pool, the best first.
        groups: ``(pictures,)`` group of every picture from 0; -1 for one of a group that is left out.
        clusters: ``(pictures,)`` int64, what is drawn together.
        count: Number of groups.
        k: How many are shown.
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
            weights: ``(pictures,)`` how often each picture is there; once if None.
        """
        pictures = self._member if weights is None else self._member * weights[:, None]
        pool = pictures.sum(axis=0) / max(1.0, float(len(pictures) if weights is None else weights.sum()))
        if weights is None:
            return self._member[self._order[:, : self.k]].mean(axis=1), pool
        top = np.empty((len(self._order), self._member.shape[1]))
        step = max(1, _PLACES // max(1, self._order.shape[1]))
        for start in range(0, len(top), step):  # what follows holds several numbers a place
            order = self._order[start : start + step]
            counts = weights[order]
            before = np.cumsum(counts, axis=1) - counts
            taken = np.clip(self.k - before, 0, counts)
            shown: Floats = np.einsum("qp,qpg->qg", taken, self._member[order])
            top[start : start + step] = shown / taken.sum(axis=1, keepdims=True).clip(min=1.0)
        return top, pool

    def draws(self, resamples: int, seed: int = 0) -> list[tuple[Floats, Floats]]:
        """Return the `shares` of so many draws of the pool's clusters."""
        number = int(self._clusters.max()) + 1
        found = []
        for block in drawn_counts(number, resamples, seed):
            found += [self.shares(weights[self._clusters].astype(np.float64)) for weights in block]
        return found
