"""The filter ``image``: images that hardly show anything because they are tiny, flat, strips or blurred."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from frevl.data.packed.columns import joined
from frevl.diagnosis.curation.checks.picture_files import check_folder, read_picture, size_of
from frevl.diagnosis.curation.checks.sharpness import FEWEST, FINE_SIDE, blurred, sharpness
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.diagnosis.curation.verdicts.reasons import Reasons
from frevl.diagnosis.curation.verdicts.values import Values
from frevl.machine import processors
from frevl.terminal import ProgressLine

__all__ = ["LEAST_SIDE", "MOST_ASPECT", "Look", "image_filter", "look_at"]

LEAST_SIDE = 64
"""Shorter side in pixels below which an image counts as small."""

MOST_ASPECT = 4.0
"""Aspect ratio from which an image counts as a strip."""

_FLAT = 12  # levels between the darkest and the lightest half percent, for every colour
_AT_ONCE = 512
_ROWS_AT_ONCE = 65_536
_REASONS = (f"below {LEAST_SIDE} pixels", "flat", "strip", "blurred")


@dataclass(frozen=True)
class Look:
    """Measurements of one image.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        flat: Whether it is a single colour; None if the pixels were not read.
        sharpness: From `frevl.diagnosis.curation.checks.sharpness.sharpness`, or None.
    """

    width: int
    height: int
    flat: bool | None = None
    sharpness: tuple[float, float] | None = None


class _Looks:
    """Measurements of ``n`` images in arrays.

    Attributes:
        known: ``(n,)`` bool, whether an image was measured; if not, the other arrays hold zeros and NaN.
        sides: ``(n, 2)`` int64, width and height.
        flat: ``(n,)`` bool, whether an image is known to be a single colour.
        sharpness: ``(n, 2)``, NaN if unknown.
    """

    def __init__(self, count: int) -> None:
        self.known: NDArray[np.bool_] = np.zeros(count, bool)
        self.sides: NDArray[np.int64] = np.zeros((count, 2), np.int64)
        self.flat: NDArray[np.bool_] = np.zeros(count, bool)
        self.sharpness: NDArray[np.float64] = np.full((count, 2), np.nan)

    def put(self, start: int, looks: Iterable[Look | None]) -> None:
        """Store the measurements of consecutive images."""
        for number, look in enumerate(looks, start=start):
            if look is not None:
                self.known[number], self.sides[number] = True, (look.width, look.height)
                self.flat[number] = bool(look.flat)
                self.sharpness[number] = (np.nan, np.nan) if look.sharpness is None else look.sharpness


def image_filter(lines: Lines, _: Mapping[str, Found]) -> Found:
    """Flag lines whose images are small, flat, strips, or unusually blurred for the set.

    With a folder of the images all four are checked; without one only the sizes, if the store has them (columns
    ``width`` and ``height`` of an import).
    """
    pairs = lines.pairs
    nothing = Values.same(len(lines), {"image": None})
    if "image" not in pairs.sides:
        return Found(nothing, np.zeros(len(lines), bool))
    (numbers,), images = joined([pairs.images])
    notes: list[str] = []
    if lines.images is not None:
        check_folder(lines.images)
        looks = _look_at_all(lines.images, images, progress=lines.session.progress)
        lacking = int((~looks.known).sum())
        if lacking:
            notes.append(f"{lacking:,} of {len(images):,} images cannot be read below {lines.images}.")
    else:
        looks = _stored_sizes(lines, images)
        if not looks.known.any():
            note = "Images were not checked: give --images DIR."
            return Found(nothing, np.zeros(len(lines), bool), notes=(note,))
        notes.append("Only the image sizes in the store were checked; --images DIR also checks the pixels.")
    reasons = _reasons(looks, notes)
    counts = {reason: int(reasons.by(reason).sum()) for reason in sorted(_REASONS)}

    def values(part: slice) -> list[dict[str, Any]]:
        own = numbers[part].tolist()
        return [{"image": reasons[number] if looks.known[number] else None} for number in own]

    return Found(
        Values(len(lines), values),
        ~reasons.clear[numbers],
        notes=tuple(notes),
        figures={"images": len(images), "reasons": {reason: count for reason, count in counts.items() if count}},
    )


def look_at(folder: Path, image: str) -> Look | None:
    """Measure one image of a folder; None if it cannot be read."""
    size = size_of(folder, image)
    picture = read_picture(folder, image, target=FINE_SIDE)
    if size is None or picture is None:
        return None
    colours = np.asarray(picture.resize((FINE_SIDE, FINE_SIDE)) if max(picture.size) > FINE_SIDE else picture)
    low, high = np.percentile(colours.reshape(-1, 3), [0.5, 99.5], axis=0)
    scale = FINE_SIDE / max(picture.size)
    grey = picture.convert("L")
    if scale < 1:
        sides = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        grey = grey.resize(sides, Image.Resampling.BOX)
    flat = bool((high - low <= _FLAT).all())
    values = np.asarray(grey, np.float32)
    # A strip has no coarse detail to compare with; a flat image has no detail at all.
    sharp = None if flat or min(values.shape) < LEAST_SIDE else sharpness(values)
    return Look(*size, flat, sharp)


def _look_at_all(folder: Path, images: Sequence[str], *, progress: bool) -> _Looks:
    looks = _Looks(len(images))
    with (
        ProgressLine("checking images", len(images), enabled=progress) as line,
        ThreadPoolExecutor(processors()) as pool,
    ):
        for start in range(0, len(images), _AT_ONCE):
            block = list(images[start : start + _AT_ONCE])
            looks.put(start, pool.map(lambda image: look_at(folder, image), block))
            line.advance(len(block))
    return looks


def _stored_sizes(lines: Lines, images: Sequence[str]) -> _Looks:
    looks = _Looks(len(images))
    if not {"width", "height"} <= set(lines.store.metadata("image")):
        return looks
    for start in range(0, len(images), _ROWS_AT_ONCE):
        rows = lines.store.read_metadata("image", list(images[start : start + _ROWS_AT_ONCE]))
        looks.put(start, map(_size_of_row, rows))
    return looks


def _size_of_row(row: Mapping[str, Any]) -> Look | None:
    known = [isinstance(row[side], int | float) and row[side] > 0 for side in ("width", "height")]
    return Look(int(row["width"]), int(row["height"])) if all(known) else None


def _reasons(looks: _Looks, notes: list[str]) -> Reasons:
    """Return the reasons for every image; none for those that were not checked."""
    small, flat, strip, soft = _REASONS
    reasons = Reasons(_REASONS, len(looks.known))
    shorter, longer = looks.sides.min(axis=1), looks.sides.max(axis=1)
    reasons.add(small, looks.known & (shorter < LEAST_SIDE))
    reasons.add(flat, looks.flat)
    reasons.add(strip, looks.known & (longer >= MOST_ASPECT * shorter))
    sharp = np.flatnonzero(~np.isnan(looks.sharpness[:, 0]))
    if len(sharp):
        reasons.add(soft, sharp[blurred(looks.sharpness[sharp])])
        if len(sharp) < FEWEST:
            notes.append(f"Blur was not checked: at least {FEWEST} images are needed to know what is usual.")
    return reasons
