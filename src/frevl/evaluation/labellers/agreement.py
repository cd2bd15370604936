"""Agreement of two labellers, observed and beyond chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["cohens_kappa", "observed_agreement"]


def observed_agreement(first: Sequence[str], second: Sequence[str]) -> float:
    """Return the share of items, 0 to 1, to which both labellers give the same class.

    Raises:
        ValueError: No items, or different numbers of items.
    """
    codes = _codes(first, second)
    return float((codes[0] == codes[1]).mean())


def cohens_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Cohen's kappa: ``(observed - expected) / (1 - expected)``, at most 1; 0 is chance level.

    Expected is the agreement of two labellers who use the classes as often as these do, independently (Cohen 1960,
    "A coefficient of agreement for nominal scales"). Equal to scikit-learn's ``cohen_kappa_score``.

    Args:
        first: The first labeller's class for each item.
        second: The second labeller's class for the same items.

    Returns:
        Kappa; None if both give the same single class to everything, which leaves nothing beyond chance.

    Raises:
        ValueError: No items, or different numbers of items.
    """
    codes = _codes(first, second)
    classes = int(codes.max()) + 1
    shares = [np.bincount(one, minlength=classes) / codes.shape[1] for one in codes]
    expected = float(shares[0] @ shares[1])
    if expected >= 1.0:
        return None
    return (float((codes[0] == codes[1]).mean()) - expected) / (1.0 - expected)


def _codes(first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """Number the classes: ``(2, items)``."""
    if len(first) != len(second) or not len(first):
        raise ValueError(f"expected the same items from both, at least one; found {len(first)} and {len(second)}")
    numbers: dict[str, int] = {}
    return np.array([[numbers.setdefault(name, len(numbers)) for name in one] for one in (first, second)])
