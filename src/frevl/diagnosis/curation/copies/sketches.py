"""Short descriptions of images that mirroring, quarter turns and inversion leave as they are. Pure numpy.

Embeddings of an image and of its copy upside down, or with black bars, are often far apart, so the copy is not among
the candidates whose pixels are compared. A sketch is made of the magnitudes of the lowest frequencies of the picture
(discrete cosine transform): mirroring and inversion change only their signs, and a quarter turn exchanges rows and
columns, so each pair of frequencies is replaced by its sum and its difference. Ours; measured in
research/experiments/log.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["sketch_of", "unit_sketches"]

_FREQUENCIES = 12  # of each side


def _waves(side: int) -> NDArray[np.float32]:
    places = (np.arange(side) + 0.5) / side
    waves: NDArray[np.float32] = np.cos(np.pi * np.arange(_FREQUENCIES)[:, None] * places).astype(np.float32)
    return waves


_ABOVE = np.triu_indices(_FREQUENCIES, 1)
_STEEPNESS = np.hypot(*np.indices((_FREQUENCIES, _FREQUENCIES))).astype(np.float32)  # photos have 1 / frequency


def sketch_of(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the sketch of a picture.

    Args:
        grey: ``(side, side)`` grey values.

    Returns:
        ``(143,)``, at least 0; of unit length, or zeros for a picture of one grey value.
    """
    waves = _waves(len(grey))
    found = np.abs(waves @ grey.astype(np.float32) @ waves.T) * _STEEPNESS
    one, other = found[_ABOVE], found.T[_ABOVE]
    values = np.concatenate([np.diag(found)[1:], (one + other) / np.sqrt(2), np.abs(one - other) / np.sqrt(2)])
    length = np.linalg.norm(values)
    sketch: NDArray[np.float32] = (values / length if length > 1 else 0 * values).astype(np.float32)
    return sketch


def unit_sketches(sketches: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return sketches without what all have in common, of unit length, ``(n, 143)``; equal ones stay zeros."""
    centred = sketches - sketches.mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 1e-6)
    return unit
