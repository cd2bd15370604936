"""Match images by their edges, even if mirrored, rotated, inverted, resized, recoloured or cropped.

An image is read as 96 x 96 grey values. Whole, and cropped by 5 to 30 % to the middle, the sides and the corners,
it is resized to 24 x 24 and its 5 x 5 local mean subtracted, so that lighting, contrast and broad areas (sky, sea)
count little. The agreement of two images is the highest correlation, or its opposite for an inverted image, between
the whole of one, upright, rotated by quarter turns or mirrored, and a crop of the other, or between equal crops of
both, which leave out a banner; crops by more than 20 % and equal ones must agree better. Pure numpy; ours, measured in
research/experiments/log.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CROPS",
    "LOST_BY_SMALL_CROPS",
    "SIDE",
    "agreement",
    "edges_of",
    "edges_of_parts",
    "is_small",
    "ways_of",
]

SIDE = 96
"""Number of grey values per side with which an image is read."""

_GRID = 24
_FLAT = 24.0  # length of an image's edges below which it shows nothing: one grey value per cell
_SMALL = 0.79  # of a side: crops smaller than this are small
LOST_BY_SMALL_CROPS = 0.2
"""Agreement subtracted for small crops and equal crops of both: with few edges left they agree by chance."""

_BLUR = 2  # cells on each side of the local mean that is subtracted


def _cuts() -> list[tuple[float, float, float, float]]:
    cuts = [(0.0, 0.0, 1.0, 1.0)]
    for left in (0.95, 0.9, 0.8, 0.75, 0.7):
        places = (0.0, (1 - left) / 2, 1 - left)
        cuts += [(x, y, x + left, y + left) for x in places for y in places]
        cuts += [(x, 0.0, x + left, 1.0) for x in (0.0, 1 - left)] + [(0.0, y, 1.0, y + left) for y in (0.0, 1 - left)]
    return cuts


CROPS = tuple(_cuts())
"""Left, top, right and bottom of every crop as shares of the image; the whole image first."""


def _resampling(starts: NDArray[np.float64], ends: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return weights that average the grey values over each of 24 cells of parts of a side, ``(n, 24, 96)``."""
    bounds = SIDE * (starts[:, None] + (ends - starts)[:, None] * np.linspace(0, 1, _GRID + 1))
    pixels = np.arange(SIDE)
    shared = np.minimum(bounds[:, 1:, None], pixels + 1) - np.maximum(bounds[:, :-1, None], pixels)
    weights = np.maximum(shared, 0)
    found: NDArray[np.float32] = (weights / weights.sum(axis=2, keepdims=True)).astype(np.float32)
    return found


def _local_mean() -> NDArray[np.float32]:
    near = np.abs(np.arange(_GRID)[:, None] - np.arange(_GRID)) <= _BLUR
    weights: NDArray[np.float32] = (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


def is_small(part: NDArray[np.float64], *, slack: float = 0.0) -> bool:
    """Return whether a part of an image is a small one.

    Args:
        part: Left, top, right and bottom, as shares of the image.
        slack: Share of a side by which it may be smaller still without counting as small.
    """
    return bool((part[2:] - part[:2]).min() < _SMALL - slack)


_PLACES = np.array(CROPS)
_LESS = np.array([LOST_BY_SMALL_CROPS * is_small(crop) for crop in _PLACES], np.float32)
_ROWS = _resampling(_PLACES[:, 1], _PLACES[:, 3])
_COLUMNS = _resampling(_PLACES[:, 0], _PLACES[:, 2]).transpose(0, 2, 1)
_MEAN = _local_mean()


def edges_of(grey: NDArray[np.uint8]) -> NDArray[np.float16]:
    """Return the edges of an image and of its crops.

    Args:
        grey: ``(96, 96)`` grey values.

    Returns:
        ``(crops, 576)`` of unit length, the whole image first; zeros if flat.
    """
    return _edges(_ROWS @ grey.astype(np.float32) @ _COLUMNS).astype(np.float16)


def edges_of_parts(grey: NDArray[np.uint8], parts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the edges of any parts of an image.

    Args:
        grey: ``(96, 96)`` grey values.
        parts: ``(n, 4)`` left, top, right and bottom, as shares of the image.

    Returns:
        ``(n, 576)`` of unit length; zeros if flat.
    """
    # The sum over every cell, from the sums over all that is above and left of its corners, interpolated.
    above = np.zeros((SIDE + 1, SIDE + 1))
    np.cumsum(np.cumsum(grey, axis=0, dtype=np.float64), axis=1, out=above[1:, 1:])
    steps = np.linspace(0, SIDE, _GRID + 1)
    widths, heights = parts[:, 2] - parts[:, 0], parts[:, 3] - parts[:, 1]
    across = SIDE * parts[:, :1] + widths[:, None] * steps
    down = SIDE * parts[:, 1:2] + heights[:, None] * steps
    row, column = (np.clip(one.astype(np.int64), 0, SIDE - 1) for one in (down, across))
    past = (down - row)[..., None]
    by_row = above[row] * (1 - past) + above[row + 1] * past
    past, places = (across - column)[:, None], column[:, None]
    sums = np.take_along_axis(by_row, places, 2) * (1 - past) + np.take_along_axis(by_row, places + 1, 2) * past
    cells = np.diff(np.diff(sums, axis=1), axis=2) * (_GRID / SIDE) ** 2 / (widths * heights)[:, None, None]
    return _edges(cells.astype(np.float32))


def _edges(cells: NDArray[np.float32]) -> NDArray[np.float32]:
    edges = cells - _MEAN @ cells @ _MEAN.T
    edges -= edges.mean(axis=(1, 2), keepdims=True)
    flat = edges.reshape(len(edges), -1)
    lengths = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: NDArray[np.float32] = np.where(lengths < _FLAT, 0, flat / np.maximum(lengths, _FLAT)).astype(np.float32)
    return unit


def agreement(one: NDArray[np.float16], other: NDArray[np.float16]) -> float:
    """Return the agreement of two images, in [-1, 1]; 0 if one of them is flat.

    Args:
        one: ``(crops, 576)`` from `edges_of`.
        other: ``(crops, 576)``, the same for the other image.
    """
    a, b = one.astype(np.float32), other.astype(np.float32)
    equal = float(np.abs(np.einsum("cd,cd->c", a, b)[1:]).max()) - LOST_BY_SMALL_CROPS
    looks = (np.abs(cuts @ ways_of(whole[0])) - _LESS[:, None] for whole, cuts in ((a, b), (b, a)))
    return max(equal, *(float(found.max()) for found in looks))


def ways_of(edges: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the edges of an image in four quarter turns, and each of these mirrored, ``(576, 8)``."""
    square = edges.reshape(_GRID, _GRID)
    turned = [np.rot90(square, quarters) for quarters in range(4)]
    return np.stack([way.ravel() for one in turned for way in (one, one[:, ::-1])], axis=1)
