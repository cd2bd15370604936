"""The vectors that images are compared with: one tower, pooled, of unit length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["unit_vectors"]

_AT_ONCE = 65_536


def unit_vectors(
    store: Store, ids: Sequence[str], towers: Sequence[Tower], *, half: bool = False
) -> NDArray[np.floating]:
    """Read the narrowest of some image towers: tokens are averaged, then brought to unit length.

    Args:
        store: Has the embeddings.
        ids: Of the images.
        towers: At least one.
        half: Return float16, which takes half the memory; else float32.

    Returns:
        ``(n, d)``.
    """
    narrowest = min(towers, key=lambda tower: tower.dim)
    vectors = np.empty((len(ids), narrowest.dim), np.float16 if half else np.float32)
    for start in range(0, len(ids), _AT_ONCE):
        values, mask = store.read("image", ids[start : start + _AT_ONCE], [narrowest])
        means = np.einsum("ntd,nt->nd", values.astype(np.float32), mask.astype(np.float32))
        lengths = np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.float32(1e-12))
        vectors[start : start + len(means)] = means / lengths
    return vectors
