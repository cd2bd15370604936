"""Automatic features of pairs, and which of them correlate with right and wrong answers. Pure numpy.

A feature explains errors if its partial correlation with the hits, given all other features, differs from zero on half
of the images (Benjamini and Hochberg 1995 at 5 %) and has the same sign on the other half.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import word_pattern

__all__ = ["LEVEL", "Explained", "explain", "text_features"]

LEVEL = 0.05
"""Maximum expected share of false features among those named."""

_NUMBERS = re.compile(r"\b(one|two|three|four|five|six|seven|eight|nine|ten|[0-9]+)\b")
_NEGATION = re.compile(r"\b(no|not|none|never|nobody|nothing|without|cannot|neither|nor)\b|n['’]t\b")
_COLOURS = re.compile(
    r"\b(red|green|blue|yellow|black|white|brown|gr[ae]y|orange|purple|pink|teal|violet|golden|silver)\b"
)
_PLACES = re.compile(
    r"\b(left|right|above|below|under|underneath|beneath|over|behind|in front|on top|next to|besides?|between|near|"
    r"inside|outside|around|bottom|middle|corner)\b"
)
_ASKS = re.compile(r"\b(what|which|who|whom|whose|where|when|why|how)\b")
_LEAST_SPREAD = 1e-9


def text_features(texts: Sequence[str], known: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return features of texts by name, ``(n,)`` each.

    Args:
        texts: ``(n,)`` texts of the pairs to be explained.
        known: Texts of the training pairs, in which the rarity of words is counted.
    """
    found = re.compile(word_pattern()).findall
    counts = Counter(word for text in known for word in set(found(text.lower())))
    features: dict[str, list[float]] = {
        name: [] for name in ("words", "rarest word", "number", "negation", "colour", "place", "question word")
    }
    for text in texts:
        lower = text.lower()
        words = found(lower)
        features["words"].append(float(len(words)))
        least = min((counts[word] for word in words), default=len(known))
        features["rarest word"].append(-math.log((least + 1) / (len(known) + 1)))
        for name, pattern in (
            ("number", _NUMBERS),
            ("negation", _NEGATION),
            ("colour", _COLOURS),
            ("place", _PLACES),
            ("question word", _ASKS),
        ):
            features[name].append(float(bool(pattern.search(lower))))
    return {name: np.array(values) for name, values in features.items()}


@dataclass(frozen=True)
class Explained:
    """A feature and its association with the hits.

    Attributes:
        name: Name of the feature.
        correlation: Partial rank correlation with the hits on the first half of the images, in [-1, 1].
        standard_error: Standard error of the correlation, with images, not pairs, as units.
        p: Two-sided p-value on the first half.
        other: The same correlation on the other half.
        named: Whether it survives Benjamini-Hochberg and keeps its sign.
    """

    name: str
    correlation: float
    standard_error: float
    p: float
    other: float
    named: bool


def explain(
    features: dict[str, NDArray[np.float64]], hits: NDArray[np.float64], clusters: Sequence[str], *, seed: int
) -> list[Explained]:
    """Return which features go with right answers, the most informative first.

    Features that are constant in one of the halves, or combinations of the others, are left out.

    Args:
        features: ``(n,)`` each, by name. Of several equal features, one is kept.
        hits: ``(n,)`` in [0, 1], whether each pair was answered right.
        clusters: ``(n,)`` image of every pair; images are not divided between the halves.
        seed: Random seed for the halves.
    """
    names, at = np.unique(np.array(clusters, dtype=object).astype(str), return_inverse=True)
    half = (np.random.default_rng(seed).permutation(len(names)) % 2)[at]
    kept = _independent({name: _ranks(values) for name, values in features.items()}, half)
    parts = [
        {
            name: _partial(
                np.stack([kept[other][half == side] for other in kept], axis=1), number, hits, at, half == side
            )
            for number, name in enumerate(kept)
        }
        for side in (0, 1)
    ]
    p = {name: math.erfc(abs(r) / max(error, 1e-12) / math.sqrt(2)) for name, (r, error) in parts[0].items()}
    passed = _benjamini_hochberg(p)
    found = [
        Explained(name, r, error, p[name], parts[1][name][0], name in passed and r * parts[1][name][0] > 0)
        for name, (r, error) in parts[0].items()
    ]
    return sorted(found, key=lambda one: (not one.named, -abs(one.correlation)))


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mid-ranks, standardised; zeros where all values are equal."""
    different, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    if len(different) < 2:
        return np.zeros(len(values))
    middle = counts.cumsum() - (counts - 1) / 2
    ranks = middle[at]
    standard: NDArray[np.float64] = (ranks - ranks.mean()) / ranks.std()
    return standard


def _independent(features: dict[str, NDArray[np.float64]], half: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """Drop features that are constant in a half, or a sum of earlier features there."""
    kept: dict[str, NDArray[np.float64]] = {}
    for name, values in features.items():
        fits = True
        for side in (0, 1):
            own = values[half == side]
            before = np.stack([np.ones(len(own)), *(one[half == side] for one in kept.values())], axis=1)
            fits &= len(own) > before.shape[1] + 1 and float(_residual(before, own).std()) > 1e-3
        if fits:
            kept[name] = values
    return kept


def _partial(
    table: NDArray[np.float64], column: int, hits: NDArray[np.float64], at: NDArray[np.int64], rows: NDArray[np.bool_]
) -> tuple[float, float]:
    """Return the partial correlation of a column with the hits, and its standard error with images as units."""
    others = np.concatenate([np.ones((len(table), 1)), np.delete(table, column, axis=1)], axis=1)
    feature, left = _residual(others, table[:, column]), _residual(others, _ranks(hits[rows]))
    spread = float(np.sqrt(np.square(feature).sum() * np.square(left).sum()))
    if spread < _LEAST_SPREAD:
        return 0.0, 1.0
    r = float(feature @ left) / spread
    slope = float(feature @ left / np.square(feature).sum())
    _, groups = np.unique(at[rows], return_inverse=True)
    sums = np.bincount(groups, weights=feature * (left - slope * feature))
    count = len(sums)
    correction = count / max(count - 1, 1) * (len(left) - 1) / max(len(left) - table.shape[1] - 1, 1)
    return r, float(np.sqrt(np.square(sums).sum() * correction)) / spread


def _residual(others: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    factors, *_ = np.linalg.lstsq(others, values, rcond=None)
    residual: NDArray[np.float64] = values - others @ factors
    return residual


def _benjamini_hochberg(p: dict[str, float]) -> set[str]:
    """Return the names that survive at `LEVEL`."""
    ordered = sorted(p, key=p.__getitem__)
    most = max((rank for rank, name in enumerate(ordered, 1) if p[name] <= LEVEL * rank / len(ordered)), default=0)
    return set(ordered[:most])
