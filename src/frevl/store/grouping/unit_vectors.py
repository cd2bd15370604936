"""Unit vectors of images for comparison."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from frevl.store.grouping.large_arrays import gathered
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["in_float32", "unit_vectors"]

_ROWS_AT_ONCE = 65_536


def unit_vectors(
    store: Store, ids: Sequence[str], towers: Sequence[Tower], *, half: bool = False
) -> NDArray[np.floating]:
    """Read the narrowest of some image towers: tokens are averaged, then normalised to unit length.

    Args:
        store: The store with the embeddings.
        ids: Ids of the images.
        towers: At least one tower.
        half: Return float16, which halves the memory, instead of float32.

    Returns:
        ``(n, d)`` vectors of unit length; those of many images are in an unnamed file
        (`frevl.store.grouping.large_arrays`).

    Raises:
        StoreError: An image or an embedding is missing, or that file cannot be written.
    """
    narrowest = min(towers, key=lambda tower: tower.dim)

    def parts() -> Iterable[NDArray[np.float32]]:
        for start in range(0, len(ids), _ROWS_AT_ONCE):
            values, mask = store.read("image", ids[start : start + _ROWS_AT_ONCE], [narrowest])
            means = np.einsum("ntd,nt->nd", values.astype(np.float32), mask.astype(np.float32))
            yield means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.float32(1e-12))

    return gathered(parts(), (len(ids), narrowest.dim), np.float16 if half else np.float32)


def in_float32(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return ``(n, d)`` vectors in float32, themselves or a copy, which is in an unnamed file if it is large.

    Raises:
        StoreError: That file cannot be written.
    """
    if vectors.dtype == np.float32:
        return vectors.astype(np.float32, copy=False)
    parts = (vectors[start : start + _ROWS_AT_ONCE] for start in range(0, len(vectors), _ROWS_AT_ONCE))
    found: NDArray[np.float32] = gathered(parts, (len(vectors), vectors.shape[1]), np.float32)
    return found
