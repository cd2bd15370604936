"""Measures of an embedding space: effective rank, hubs, the gap between modalities, neighbours. Pure numpy."""

from __future__ import annotations

import numpy as np

__all__ = [
    "NEIGHBOURS",
    "effective_rank",
    "explained",
    "hub_counts",
    "modality_gap",
    "neighbours",
    "overlap",
    "skewness",
]

NEIGHBOURS = 10
"""Default size of a neighbourhood."""


def effective_rank(values: np.ndarray) -> float:
    """Return the effective rank: ``exp`` of the entropy of the singular values' shares (Roy and Vetterli 2007).

    Args:
        values: ``(n, dim)``; the mean is subtracted first.

    Returns:
        Between 1 (all variance in one direction) and ``min(n - 1, dim)`` (the same in all).
    """
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    shares = singular / max(singular.sum(), 1e-12)
    shares = shares[shares > 1e-12]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def explained(values: np.ndarray) -> np.ndarray:
    """Return the cumulative share of variance in the principal directions, ascending to 1."""
    squares = np.linalg.svd(values - values.mean(axis=0), compute_uv=False).astype(np.float64) ** 2
    shares: np.ndarray = np.cumsum(squares) / max(squares.sum(), 1e-12)
    return shares


def neighbours(values: np.ndarray, k: int = NEIGHBOURS) -> np.ndarray:
    """Return the numbers of the items with the largest cosine to each item, excluding itself, ``(n, k)``.

    Args:
        values: ``(n, dim)``, ``n > k``; normalised to unit length.
        k: Number of neighbours.
    """
    unit = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :k]


def hub_counts(nearest: np.ndarray) -> np.ndarray:
    """Return in how many neighbourhoods each item is, ``(n,)`` (k-occurrence, Radovanovic et al. 2010)."""
    return np.bincount(nearest.ravel(), minlength=len(nearest))


def skewness(counts: np.ndarray) -> float:
    """Return the third standardised moment; 0 if all counts are equal."""
    centred = counts - counts.mean()
    deviation = float(np.sqrt((centred**2).mean()))
    return float((centred**3).mean() / deviation**3) if deviation > 0 else 0.0


def overlap(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the share of each item's neighbours common to two ``(n, k)`` lists, ``(n,)`` in [0, 1]."""
    shared = (before[:, :, None] == after[:, None, :]).any(axis=2)
    common: np.ndarray = shared.mean(axis=1)
    return common


def modality_gap(images: np.ndarray, texts: np.ndarray) -> float:
    """Return the distance between the mean image and the mean text (Liang et al. 2022); both at unit length."""
    return float(np.linalg.norm(images.mean(axis=0) - texts.mean(axis=0)))
