"""Find near copies of images without choosing a threshold, and count copies in pairs only once.

A near copy (recompressed, resized, mirrored, slightly cropped, the next frame of a film) is far closer to its original
than any ordinary neighbour. The test is therefore a gap: after some of the nearest neighbours of an image, the next one
is at least ``r`` times as far away. How large a gap ordinary images show depends on the intrinsic dimension ``m`` of
the set: if points are spread evenly in ``m`` dimensions, the ratio of the second to the first distance exceeds ``x``
with probability ``x ** -m`` (Facco et al. 2017, arXiv 1803.06992). ``m`` is measured on neighbours 8 to 16, which
copies do not affect, and ``r`` is chosen so that one ordinary image in a thousand would show the gap. Near copies must
also lie within 0.3 of the usual distance of the eighth neighbour, because two unusual images are not copies of each
other. The combination is ours; measured in research/experiments/log.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import text_content
from frevl.data.pairs import Pairs
from frevl.store.reader import Store

__all__ = [
    "MOST_COMPARED",
    "NEIGHBOURS",
    "NearCopies",
    "Neighbours",
    "find_near_copies",
    "neighbours_of",
    "one_item_each",
]

FALSE_ALARMS = 1e-3  # share of ordinary images that would show such a gap
_WITHIN = 0.3  # maximum distance, as a fraction of the usual distance of the middle neighbour
NEIGHBOURS = 16
"""Number of neighbours examined per image."""

_FEWEST = 2 * NEIGHBOURS  # images; with fewer, the neighbours are the whole set
_MEASURED = 2_000  # images on which the usual distances are measured
_SKETCH = 64  # numbers per image while searching for near pairs
_SLACK = 1.8  # factor by which a sketch may overstate a distance: 4 of its standard deviations
_AT_ONCE = 1_024
_COSINES = 8_388_608  # cosines at once: 128 MB including sorting
_TILE = 512
_SAME = 1e-6  # squared distances below this are rounding errors
_BLOCK = 8_192  # images whose neighbours are requested at a time

MOST_COMPARED = 200_000
"""Maximum number of images; comparing more with each other takes longer than most trainings."""

Neighbours = Callable[[NDArray[np.int64]], tuple[NDArray[np.int64], NDArray[np.float32]]]
"""Maps ``(r,)`` rows to ``(r, 16)`` rows of their nearest neighbours and the ``(r, 16)`` distances ``1 - cosine``."""


@dataclass(frozen=True)
class NearCopies:
    """The near copies that were found.

    Attributes:
        links: ``(l, 2)`` int64, rows of images that are nearly the same, the smaller row first.
        gap: The ratio ``r`` of squared distances from which a gap counts; NaN if no search was made.
        within: Largest ``1 - cosine`` of a link; NaN if no search was made.
    """

    links: NDArray[np.int64]
    gap: float
    within: float


def find_near_copies(vectors: NDArray[np.floating], *, neighbours: Neighbours | None = None) -> NearCopies:
    """Find near-duplicate images. Near copies are a property of the data, so the same vectors always give the same.

    Args:
        vectors: ``(n, d)`` of unit length, one per distinct content.
        neighbours: Finds the nearest neighbours of some rows, for sets that are too large for comparing all pairs; it
            is then called for every row.

    Returns:
        The links; none for fewer than 32 images, or for more than 200,000 without ``neighbours``.
    """
    n = len(vectors)
    nothing = NearCopies(np.zeros((0, 2), np.int64), float("nan"), float("nan"))
    if n < _FEWEST or (neighbours is None and n > MOST_COMPARED):
        return nothing
    of = neighbours or (lambda rows: neighbours_of(vectors, rows))
    random = np.random.default_rng(0)
    sample = np.sort(random.permutation(n)[:_MEASURED])
    _, usual = of(sample)
    middle, last = usual[:, NEIGHBOURS // 2 - 1], usual[:, -1]
    growth = float(np.median(np.log(last / middle))) / 2  # of distances, while these are squared
    if growth <= 0:  # half of the images have sixteen neighbours at the same distance, so there is no scale
        return nothing
    dimension = np.log(2) / growth
    gap = float(FALSE_ALARMS ** (-2 / dimension))
    within = float(_WITHIN * np.median(middle))
    rows = np.arange(n) if neighbours else np.unique(_close_pairs(vectors.astype(np.float32), within, random))
    links: set[tuple[int, int]] = set()
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        links |= _links(block, *of(block), gap, within)
    return NearCopies(np.array(sorted(links), np.int64).reshape(-1, 2), gap, within)


def _links(
    rows: NDArray[np.int64], near: NDArray[np.int64], distances: NDArray[np.float32], gap: float, within: float
) -> set[tuple[int, int]]:
    """Return links from these rows to the neighbours before their last gap."""
    links = set()
    gaps = (distances[:, 1:] >= gap * distances[:, :-1]) & (distances[:, :-1] <= within)
    for at in np.flatnonzero(gaps.any(axis=1)).tolist():
        row = int(rows[at])
        copies = int(np.flatnonzero(gaps[at])[-1]) + 1
        links |= {(min(row, other), max(row, other)) for other in near[at, :copies].tolist()}
    return links


def neighbours_of(
    vectors: NDArray[np.floating], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the 16 nearest neighbours of some rows and their squared distances (as ``1 - cosine``), nearest first.

    Args:
        vectors: ``(n, d)`` of unit length, ``n`` above 16.
        rows: ``(r,)`` int64, the rows in question.

    Returns:
        The same as `Neighbours`.
    """
    near = np.empty((len(rows), NEIGHBOURS), np.int64)
    distances = np.empty((len(rows), NEIGHBOURS), np.float32)
    at_once = max(1, min(_AT_ONCE, _COSINES // max(1, len(vectors))))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        cosines = vectors[rows[part]] @ vectors.T
        cosines[np.arange(len(cosines)), rows[part]] = -2.0
        first = np.argpartition(-cosines, NEIGHBOURS - 1, axis=1)[:, :NEIGHBOURS]
        found = np.take_along_axis(cosines, first, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        near[part] = np.take_along_axis(first, order, axis=1)
        distances[part] = np.maximum(1 - np.take_along_axis(found, order, axis=1), _SAME)
    return near, distances


def _close_pairs(vectors: NDArray[np.float32], within: float, random: np.random.Generator) -> NDArray[np.int64]:
    """Return ``(c, 2)`` rows of images that may lie within a distance, by random projections of their differences."""
    sketch, slack = vectors, 1.0
    if vectors.shape[1] > 2 * _SKETCH:
        directions = random.standard_normal((vectors.shape[1], _SKETCH)).astype(np.float32) / np.sqrt(_SKETCH)
        sketch, slack = vectors @ directions, _SLACK
    half = np.einsum("nd,nd->n", sketch, sketch)[:, None] / 2
    one = np.ones_like(half)
    # One product gives minus half of every squared distance, which for unit vectors is cosine - 1.
    left = np.ascontiguousarray(np.concatenate([sketch, -half, -one], axis=1))
    right = np.ascontiguousarray(np.concatenate([sketch, one, half], axis=1))
    products = np.empty((_TILE, 2 * _TILE), np.float32)  # small enough to stay in a core's cache
    close = np.empty(products.shape, np.bool_)
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(sketch), _TILE):
        rows = left[start : start + _TILE]
        for begin in range(start, len(sketch), 2 * _TILE):
            columns = right[begin : begin + 2 * _TILE]
            tile, flags = products[: len(rows), : len(columns)], close[: len(rows), : len(columns)]
            np.matmul(rows, columns.T, out=tile)
            np.greater_equal(tile, -slack * within, out=flags)
            if flags.any():
                at, other = np.nonzero(flags)
                later = other + begin > at + start
                found.append(np.stack([at[later] + start, other[later] + begin], axis=1))
    pairs = np.concatenate(found)
    at_once = max(1, _COSINES // max(1, vectors.shape[1]))
    parts = (pairs[start : start + at_once] for start in range(0, len(pairs), at_once))
    kept = [part[_distances(vectors, part) <= within] for part in parts]
    return np.concatenate([np.zeros((0, 2), np.int64), *kept])


def _distances(vectors: NDArray[np.float32], pairs: NDArray[np.int64]) -> NDArray[np.float32]:
    distances: NDArray[np.float32] = 1 - np.einsum("nd,nd->n", vectors[pairs[:, 0]], vectors[pairs[:, 1]])
    return distances


def one_item_each(pairs: Pairs, store: Store) -> tuple[Pairs, int]:
    """Replace every image and text by its first copy, and keep each pair once.

    Args:
        pairs: Pairs whose images are in the store.
        store: The store, which knows the content of the images.

    Returns:
        The remaining pairs, in order, and the number of images and texts that were copies of another.
    """
    hashes = store.content_hashes(pairs.images)
    of_image: dict[str, str] = {}
    of_text: dict[str, str] = {}
    images = [of_image.setdefault(hashes.get(image, image), image) for image in pairs.images]
    texts = [of_text.setdefault(text_content(text), text) for text in pairs.texts]
    copies = len(set(pairs.images)) - len(of_image) + len(set(pairs.texts)) - len(of_text)
    first = {pair: row for row, pair in reversed(list(enumerate(zip(images, texts, strict=True))))}
    rows = sorted(first.values())
    kept = pairs.select(rows)
    return replace(kept, images=[images[row] for row in rows], texts=[texts[row] for row in rows]), copies
