"""The filter ``image``: images that hardly show anything because they are tiny, flat, strips or blurred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from frevl.diagnosis.curation.checks.picture_files import check_folder, read_picture, size_of
from frevl.diagnosis.curation.checks.sharpness import FEWEST, FINE_SIDE, blurred, sharpness
from frevl.diagnosis.curation.lines import Found, Lines
from frevl.machine import processors
from frevl.terminal import ProgressLine

__all__ = ["LEAST_SIDE", "MOST_ASPECT", "Look", "image_filter", "look_at"]

LEAST_SIDE = 64
"""Shorter side in pixels below which an image counts as small."""

MOST_ASPECT = 4.0
"""Aspect ratio from which an image counts as a strip."""

_FLAT = 12  # levels between the darkest and the lightest half percent, for every colour
_AT_ONCE = 512


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


def image_filter(lines: Lines, _: Mapping[str, Found]) -> Found:
    """Flag lines whose images are small, flat, strips, or unusually blurred for the set.

    With a folder of the images all four are checked; without one only the sizes, if the store has them (columns
    ``width`` and ``height`` of an import).
    """
    pairs = lines.pairs
    nothing = [{"image": None}] * len(lines)
    if "image" not in pairs.sides:
        return Found(nothing, np.zeros(len(lines), bool))
    images = list(dict.fromkeys(pairs.images))
    notes = []
    if lines.images is not None:
        check_folder(lines.images)
        looks = _look_at_all(lines.images, images, progress=lines.session.progress)
        lacking = sum(look is None for look in looks)
        if lacking:
            notes.append(f"{lacking:,} of {len(images):,} images cannot be read below {lines.images}.")
    else:
        looks = _stored_sizes(lines, images)
        if all(look is None for look in looks):
            note = "Images were not checked: give --images DIR."
            return Found(nothing, np.zeros(len(lines), bool), notes=(note,))
        notes.append("Only the image sizes in the store were checked; --images DIR also checks the pixels.")
    reasons = _reasons(looks, notes)
    by_image = dict(zip(images, reasons, strict=True))
    counts = Counter(reason for own in reasons for reason in own or ())
    return Found(
        [{"image": by_image[image]} for image in pairs.images],
        np.array([bool(by_image[image]) for image in pairs.images]),
        notes=tuple(notes),
        figures={"images": len(images), "reasons": dict(sorted(counts.items()))},
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


def _look_at_all(folder: Path, images: Sequence[str], *, progress: bool) -> list[Look | None]:
    looks: list[Look | None] = []
    with (
        ProgressLine("checking images", len(images), enabled=progress) as line,
        ThreadPoolExecutor(processors()) as pool,
    ):
        for start in range(0, len(images), _AT_ONCE):
            block = images[start : start + _AT_ONCE]
            looks += pool.map(lambda image: look_at(folder, image), block)
            line.advance(len(block))
    return looks


def _stored_sizes(lines: Lines, images: Sequence[str]) -> list[Look | None]:
    if not {"width", "height"} <= set(lines.store.metadata("image")):
        return [None] * len(images)
    looks: list[Look | None] = []
    for row in lines.store.read_metadata("image", images):
        known = [isinstance(row[side], int | float) and row[side] > 0 for side in ("width", "height")]
        looks.append(Look(int(row["width"]), int(row["height"])) if all(known) else None)
    return looks


def _reasons(looks: Sequence[Look | None], notes: list[str]) -> list[list[str] | None]:
    """Return the reasons for every image; None if it was not checked."""
    sharp = [number for number, look in enumerate(looks) if look is not None and look.sharpness is not None]
    soft: set[int] = set()
    if sharp:
        found = blurred(np.array([looks[number].sharpness for number in sharp]))  # type: ignore[union-attr]
        soft = {number for number, flag in zip(sharp, found.tolist(), strict=True) if flag}
        if len(sharp) < FEWEST:
            notes.append(f"Blur was not checked: at least {FEWEST} images are needed to know what is usual.")
    reasons: list[list[str] | None] = []
    for number, look in enumerate(looks):
        if look is None:
            reasons.append(None)
            continue
        shorter, longer = sorted((look.width, look.height))
        own = [f"below {LEAST_SIDE} pixels"] if shorter < LEAST_SIDE else []
        own += ["flat"] if look.flat else []
        own += ["strip"] if longer >= MOST_ASPECT * shorter else []
        reasons.append(own + (["blurred"] if number in soft else []))
    return reasons
