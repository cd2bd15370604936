"""Clusters of similar images, used to colour the map."""

from __future__ import annotations

import numpy as np

__all__ = ["cluster_numbers"]

_AT_ONCE = 8_192
_ROUNDS = 15
_SEEN = 10_000  # images on which the centres are fitted


def cluster_numbers(vectors: np.ndarray, drawn: np.ndarray, most: int) -> np.ndarray:
    """Return the cluster of each image by spherical k-means (Dhillon and Modha 2001), largest first.

    Centres start at the farthest uncovered points (Gonzalez 1985) and are updated on a sample of 10,000.

    Args:
        vectors: ``(m, d)`` of unit length.
        drawn: ``(n,)`` rows of the vectors to cluster.
        most: Maximum number of clusters.

    Returns:
        ``(n,)`` int64 below `most`.
    """
    if not len(drawn):
        return np.zeros(0, np.int64)
    random = np.random.default_rng(0)
    rows = drawn if len(drawn) <= _SEEN else np.sort(random.choice(drawn, _SEEN, replace=False))
    sample = np.asarray(vectors[rows], np.float32)
    centres = sample[:1]
    nearest = sample @ centres[0]
    while len(centres) < most and float(nearest.min()) < 1 - 1e-4:  # otherwise all are covered
        centres = np.concatenate([centres, sample[nearest.argmin()][None]])
        nearest = np.maximum(nearest, sample @ centres[-1])
    for _ in range(_ROUNDS):
        own = (sample @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, own, sample)
        length = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(length > 0, sums / np.maximum(length, 1e-12), centres)  # an empty cluster keeps its centre
        if np.allclose(moved, centres, atol=1e-5):
            break
        centres = moved
    blocks = (drawn[at : at + _AT_ONCE] for at in range(0, len(drawn), _AT_ONCE))
    found = np.concatenate([(np.asarray(vectors[some], np.float32) @ centres.T).argmax(axis=1) for some in blocks])
    order = np.argsort(-np.bincount(found, minlength=len(centres)), kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    numbers: np.ndarray = rank[found]
    return numbers
