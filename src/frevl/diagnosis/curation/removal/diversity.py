"""Variety of images before and after removal, compared with removing as many at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.embeddings.geometry import effective_rank

__all__ = ["MOST_MEASURED", "Variety", "varieties", "vendi_score"]

MOST_MEASURED = 600
"""Maximum images on which variety is measured; larger sets are sampled."""

_DRAWS = 20


@dataclass(frozen=True)
class Variety:
    """One measure of variety.

    Attributes:
        name: ``vendi`` or ``effective_rank``.
        before: Value for all images.
        after: Value for the remaining images.
        low: 2.5th percentile under random removal of as many images (normal approximation).
        high: 97.5th percentile.
    """

    name: str
    before: float
    after: float
    low: float
    high: float

    def record(self) -> dict[str, Any]:
        """Return the JSON record."""
        return {"before": self.before, "after": self.after, "at_random": [self.low, self.high]}


def vendi_score(vectors: NDArray[np.floating]) -> float:
    """Return ``exp`` of the entropy of the eigenvalues of the similarity matrix over n (Friedman and Dieng 2023).

    Args:
        vectors: ``(n, d)`` of unit length; the similarity is their cosine.

    Returns:
        The effective number of distinct images, from 1 (all equal) to n (all orthogonal).
    """
    wide = vectors.astype(np.float64)
    product = wide @ wide.T if len(wide) <= wide.shape[1] else wide.T @ wide
    values = np.linalg.eigvalsh(product / len(wide))
    shares = values[values > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def varieties(vectors: NDArray[np.floating], left: NDArray[np.bool_], *, seed: int = 0) -> list[Variety]:
    """Return the Vendi score and the effective rank before and after images are removed.

    Args:
        vectors: ``(n, d)`` of unit length.
        left: ``(n,)`` bool, whether each remains.
        seed: Random seed for the sample and the removals.

    Returns:
        Both measures on the same sample; empty if fewer than two of its images remain, or none is removed.
    """
    random = np.random.default_rng(seed)
    sample = np.sort(random.permutation(len(vectors))[:MOST_MEASURED])
    own, stays = vectors[sample].astype(np.float32), left[sample]
    count = int(stays.sum())
    if count < 2 or count == len(own):
        return []
    found = []
    draws = [random.choice(len(own), count, replace=False) for _ in range(_DRAWS)]
    for name, measure in (("vendi", vendi_score), ("effective_rank", effective_rank)):
        drawn = np.array([measure(own[rows]) for rows in draws])
        middle, spread = float(drawn.mean()), 1.96 * float(drawn.std(ddof=1))
        found.append(Variety(name, measure(own), measure(own[stays]), middle - spread, middle + spread))
    return found
