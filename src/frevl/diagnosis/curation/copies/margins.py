"""Find the picture within an image that shows more than a picture: a frame, black bars, the screen around it.

Two unrelated photos in the same frame, or in screenshots of the same program, have the strongest edges of their grey
values in common; and a copy in a frame has little in common with its original. So images are also compared without
what surrounds the picture. Lines of a single grey value divide an image into bands, of which the widest is the picture,
first by rows, then by columns, until nothing changes. Ours; measured in research/experiments/log.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["picture_within"]

_PLAIN = 4  # grey values by which a line may vary: compression blurs frames a little; skies and seas vary more
_LEAST = 0.4  # of a side: if the widest band is smaller, the bands are lines of text, or the parts of a drawing
_ROUNDS = 4


def picture_within(grey: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
    """Return the part of an image that is left without frames and screens.

    Args:
        grey: ``(height, width)`` grey values.

    Returns:
        Left, top, right and bottom in pixels, or None if that is (nearly) the whole image, or nothing.
    """
    box = [0, 0, grey.shape[1], grey.shape[0]]
    for _ in range(_ROUNDS):
        before = list(box)
        for first, axis in ((1, 1), (0, 0)):  # rows, then columns
            part = grey[box[1] : box[3], box[0] : box[2]].astype(np.int16)
            busy = part.max(axis=axis) - part.min(axis=axis) > _PLAIN
            start, end = _widest(busy, _LEAST * grey.shape[1 - axis])
            box[first], box[first + 2] = box[first] + start, box[first] + end
        if box == before:
            break
    left, top, right, bottom = box
    sides = (right - left) / grey.shape[1], (bottom - top) / grey.shape[0]
    if min(sides) < _LEAST or max(1 - one for one in sides) < 0.02:
        return None
    return left, top, right, bottom


def _widest(busy: NDArray[np.bool_], least: float) -> tuple[int, int]:
    """Return the start and end of the longest run of busy lines, or of all from the first to the last if it is short.

    The outermost lines of a run are left out if there is a plain one beside them: resizing has mixed them with it.
    """
    at = np.flatnonzero(np.diff(np.concatenate([[False], busy, [False]]).astype(np.int8)))
    if not len(at):
        return 0, len(busy)
    starts, ends = at[::2], at[1::2]
    widest = int((ends - starts).argmax())
    start, end = int(starts[widest]), int(ends[widest])
    if end - start < least:
        start, end = int(starts[0]), int(ends[-1])
    start, end = start + (start > 0), end - (end < len(busy))
    return (start, end) if end > start else (0, len(busy))
