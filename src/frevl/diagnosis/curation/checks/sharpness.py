"""Measure how sharp images are, and find those unusually blurred for their set. Pure numpy.

Sharp images have both fine and coarse detail; blur removes only the fine. So the energy of the Laplacian at 256
pixels is compared with that at 64 and at 16: an image of sky or sand has little of each, a blurred one lacks only the
first. An image counts as blurred if the logarithm of either ratio is 4 standard deviations below the set's median.
The deviation is estimated from the sharper half, which blurred images do not affect, or from the absolute deviations,
whichever is larger (ours; measured in research/experiments/log.md).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "FINE_SIDE", "blurred", "sharpness"]

FINE_SIDE = 256
"""Longer side in pixels at which detail is measured."""

FEWEST = 50
"""Minimum number of images in a set to know what is usual."""

_DEVIATIONS = 4.0
_LEAST = 0.05  # order of magnitude of the energy left by rounding to 8 bits
_COARSE = (2, 4)  # halvings


def sharpness(grey: NDArray[np.floating]) -> tuple[float, float]:
    """Return the log ratios of fine to coarse detail, at a quarter and at a sixteenth of the size.

    Args:
        grey: ``(height, width)`` grey values in [0, 255], the longer side at most 256; both at least 3.
    """
    fine = _detail(grey)
    halved, energies = grey, []
    for step in range(max(_COARSE)):
        halved = _halved(halved)
        if step + 1 in _COARSE:
            energies.append(_detail(halved))
    quarter, sixteenth = (float(np.log((fine + _LEAST) / (coarse + _LEAST))) for coarse in energies)
    return quarter, sixteenth


def blurred(measured: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return which images are unusually blurred for their set.

    Args:
        measured: ``(n, 2)`` from `sharpness`.

    Returns:
        ``(n,)`` bool; all False for fewer than `FEWEST` images.
    """
    flags = np.zeros(len(measured), bool)
    if len(measured) < FEWEST:
        return flags
    for values in measured.T:
        middle = float(np.median(values))
        upper = float(np.quantile(values, 0.8413)) - middle
        around = 1.4826 * float(np.median(np.abs(values - middle)))
        flags |= values < middle - _DEVIATIONS * max(upper, around, 1e-3)
    return flags


def _detail(grey: NDArray[np.floating]) -> float:
    """Return the mean square of the Laplacian; 0 without interior pixels."""
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float((inner**2).mean()) if inner.size else 0.0


def _halved(grey: NDArray[np.floating]) -> NDArray[np.floating]:
    even = grey[: len(grey) // 2 * 2, : grey.shape[1] // 2 * 2]
    halved: NDArray[np.floating] = (even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4
    return halved
