"""Find the part of an image that another image shows, at any position, if no fixed crop of `picture_match` fits.

The fixed crops are coarse: one of 80 % that lies between two of them agrees with neither. From the best of them, each
side of the part is moved by 5 %, then 2.5 and 1.25 % of the image, as long as the agreement grows. Images that agree
more than unrelated ones do, and not enough, are also compared with one of them rotated by 5 degrees either way. Ours,
measured in research/experiments/log.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frevl.diagnosis.curation.copies.margins import picture_within
from frevl.diagnosis.curation.copies.picture_match import (
    CROPS,
    LOST_BY_SMALL_CROPS,
    agreement,
    edges_of,
    edges_of_parts,
    is_small,
    ways_of,
)

__all__ = ["PROMISING", "Picture", "aligned_agreement"]

PROMISING = 0.25
"""Agreement of the fixed crops below which no better part is sought: most unrelated images have less."""

_ROTATED_FROM = 0.4  # agreement that 1 % of unrelated images reach; a copy rotated by 5 degrees keeps 0.37 or more
_DEGREES = (-5, 5)  # edges still agree if the angle is up to 3 degrees larger or smaller
_LOST_BY_ROTATION = 0.1  # one straight edge across an image can be rotated onto any other
_STEPS = (0.05, 0.025, 0.0125)  # of a side
_ROUNDS = 8  # moves per step at most
_SMALLEST = 0.5  # of a side: smaller parts agree by chance
_SLACK = 0.03  # a part that is found may be this much smaller than what it shows
_MOVES = np.array([[sign if side == moved else 0 for side in range(4)] for moved in range(4) for sign in (-1, 1)])


@dataclass(frozen=True)
class Picture:
    """An image prepared for comparison.

    Attributes:
        grey: ``(96, 96)`` uint8.
        edges: ``(crops, 576)`` from `frevl.diagnosis.curation.copies.picture_match.edges_of`.
        within: The picture in a frame, between bars or on a screen; None if the image is nothing but a picture.
    """

    grey: NDArray[np.uint8]
    edges: NDArray[np.float16]
    within: Picture | None = None

    @classmethod
    def of(cls, grey: NDArray[np.uint8]) -> Picture:
        """Return the image with these grey values."""
        box = picture_within(grey)
        within = None
        if box is not None:
            part = Image.fromarray(grey).resize(grey.shape[::-1], Image.Resampling.BILINEAR, box)
            within = cls(np.asarray(part), edges_of(np.asarray(part)))
        return cls(grey, edges_of(grey), within)


def aligned_agreement(one: Picture, other: Picture, *, enough: float) -> float:
    """Return the agreement of two images, in [-1, 1], with crops at any position and of any shape.

    Args:
        one: An image.
        other: Another image.
        enough: Agreement from which the two are copies; no better crop is sought above it.
    """
    # Frames agree whatever is in them, so they are left out.
    return _aligned(one.within or one, other.within or other, enough)


def _aligned(one: Picture, other: Picture, enough: float) -> float:
    """Return the agreement of two images as they are."""
    found = agreement(one.edges, other.edges)
    if PROMISING <= found < enough:
        found = max(found, _climb(one, other, enough), _climb(other, one, enough))
    if _ROTATED_FROM <= found < enough:
        for rotated in (_rotated(other, degrees) for degrees in _DEGREES):
            fixed = agreement(one.edges, rotated.edges)
            best = max(fixed, _climb(one, rotated, 1), _climb(rotated, one, 1))
            found = max(found, best - _LOST_BY_ROTATION)
    return found


def _rotated(picture: Picture, degrees: float) -> Picture:
    image = Image.fromarray(picture.grey)
    middle = int(picture.grey.mean())  # fills the empty corners, so that few edges arise there
    rotated = np.asarray(image.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=middle))
    return Picture(rotated, edges_of(rotated))


def _climb(whole: Picture, within: Picture, enough: float) -> float:
    """Return the agreement of a whole image with the part of another one that shows it best."""
    ways = ways_of(whole.edges[0].astype(np.float32))
    first = within.edges.astype(np.float32) @ ways
    cut, way = np.unravel_index(int(np.abs(first).argmax()), first.shape)
    sought = ways[:, way] * np.sign(first[cut, way])
    part, found = np.array(CROPS[cut]), float(np.abs(first[cut, way]))
    for step in _STEPS:
        for _ in range(_ROUNDS):
            parts = np.clip(part + step * _MOVES, 0, 1)
            parts = parts[(parts[:, 2:] - parts[:, :2]).min(axis=1) >= _SMALLEST - 1e-9]
            agreed = edges_of_parts(within.grey, parts) @ sought
            best = int(agreed.argmax())
            if agreed[best] <= found + 1e-4:
                break
            part, found = parts[best], float(agreed[best])
            if found - LOST_BY_SMALL_CROPS >= enough:
                return found - LOST_BY_SMALL_CROPS
    return found - LOST_BY_SMALL_CROPS * is_small(part, slack=_SLACK)
