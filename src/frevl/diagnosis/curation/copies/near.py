"""Find near-duplicate images by their embeddings, and by their pixels if available."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.curation.copies.picture_alignment import Picture, aligned_agreement
from frevl.diagnosis.curation.copies.sketches import sketch_of, unit_sketches
from frevl.runs.search.graphs import AllNeighbours
from frevl.store.grouping.copies import MOST_COMPARED, NEIGHBOURS, NearCopies, find_near_copies, neighbours_of
from frevl.terminal import ProgressLine

__all__ = ["AGREES", "TELLS", "confirmed_links", "embedding_links"]

AGREES = 0.7
"""Agreement (`frevl.diagnosis.curation.copies.picture_alignment`) from which two images may be the same."""

TELLS = 0.9
"""If unrelated images reach this agreement, pixels cannot identify copies: the nearest ones agree still more."""

_ORDINARY = 0.005  # share of images whose more distant neighbours may agree as much as required of copies
_FURTHER = slice(4, 12)  # ranks of neighbours that are rarely copies
_MEASURED = 1_000  # images used for this measurement

_CANDIDATES = 8  # nearest neighbours by embedding whose pixels are compared
# Nearest neighbours by sketch, likewise, from this cosine on. Turned copies have 1.0, those with bars 0.85 or more; 3 %
# of ordinary images reach 0.6.
_SKETCHED, _ALIKE = 4, 0.6
_BLOCK = 1_024
_KEPT = 2_048  # images in memory; 76 kB each

Grey = Callable[[int], NDArray[np.uint8] | None]


def embedding_links(
    vectors: NDArray[np.floating], *, threads: int = 1, progress: bool = False
) -> tuple[NearCopies, AllNeighbours | None]:
    """Find near copies by embeddings alone (`frevl.store.grouping.copies`), in sets of any size.

    Args:
        vectors: ``(n, d)`` of unit length, one per distinct content; float16 above 200,000.
        threads: Number of threads above 200,000.
        progress: Show progress.

    Returns:
        The links, and above 200,000 images the graph built for them.
    """
    if len(vectors) <= MOST_COMPARED:
        return find_near_copies(vectors), None
    index = AllNeighbours(vectors.astype(np.float16, copy=False), NEIGHBOURS, threads=threads, progress=progress)
    return find_near_copies(vectors, neighbours=index), index


def confirmed_links(
    vectors: NDArray[np.floating],
    grey: Grey,
    *,
    index: AllNeighbours | None = None,
    progress: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], float]:
    """Find near copies among the nearest neighbours by embedding, by comparing their pixels.

    The required agreement is measured on the set itself: at most one image in two hundred agrees that much with two of
    its fifth to twelfth neighbours (one may be a copy). Shirts on a white background agree more than photos do.

    Args:
        vectors: ``(n, d)`` of unit length, one per distinct content.
        grey: Returns the ``(96, 96)`` grey values of an image, or None if it cannot be read.
        index: The graph of these vectors, for large sets.
        progress: Show progress.

    Returns:
        ``(l, 2)`` links, the smaller row first; ``(n,)`` whether the image could be read; and the required agreement.
        Above `TELLS` there are no links, as pixels cannot identify copies.
    """
    n = len(vectors)
    readable = np.ones(n, bool)
    pictures: Callable[[int], Picture | None] = lru_cache(_KEPT)(lambda row: _picture(grey, row))
    links: list[tuple[int, int]] = []
    enough = _enough(vectors, pictures, index)
    if enough > TELLS:
        return np.zeros((0, 2), np.int64), readable, enough
    pairs = _candidates(vectors, index)
    if NEIGHBOURS < n <= MOST_COMPARED:
        pairs = np.unique(np.concatenate([pairs, _by_sketch(pictures, n)]), axis=0)
    with ProgressLine("comparing images", len(pairs), enabled=progress) as line:
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK].tolist()
            for one, other in block:
                own, its = pictures(one), pictures(other)
                readable[one], readable[other] = own is not None, its is not None
                if own is not None and its is not None and aligned_agreement(own, its, enough=enough) >= enough:
                    links.append((one, other))
            line.advance(len(block))
    return np.array(links, np.int64).reshape(-1, 2), readable, enough


def _enough(
    vectors: NDArray[np.floating],
    pictures: Callable[[int], Picture | None],
    index: AllNeighbours | None,
) -> float:
    """Return the agreement that unrelated images hardly ever reach, at least `AGREES`."""
    n = len(vectors)
    if n <= NEIGHBOURS:
        return AGREES
    rows = np.sort(np.random.default_rng(0).permutation(n)[:_MEASURED])
    near = (index(rows) if index else neighbours_of(vectors, rows))[0][:, _FURTHER]
    reached = []
    for row, others in zip(rows.tolist(), near.tolist(), strict=True):
        own = pictures(row)
        found = [pictures(other) for other in others] if own is not None else []
        agreed = [aligned_agreement(own, its, enough=1) for its in found if own is not None and its is not None]
        if agreed:  # one of these neighbours may be a copy, if its embedding is far away; two of them rarely
            reached.append(sorted(agreed)[-2:][0])
        if sum(one > TELLS for one in reached) > _ORDINARY * len(rows):
            break  # whatever the others reach, pixels cannot identify copies
    return max(AGREES, float(np.quantile(reached, 1 - _ORDINARY, method="higher"))) if reached else AGREES


def _candidates(vectors: NDArray[np.floating], index: AllNeighbours | None) -> NDArray[np.int64]:
    """Return the pairs of images of which one is among the other's nearest, each once, in order, ``(c, 2)``."""
    n = len(vectors)
    if n <= NEIGHBOURS:
        one, other = np.triu_indices(n, 1)
        return np.stack([one, other], axis=1)
    found = []
    for start in range(0, n, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, n))
        near = (index(rows) if index else neighbours_of(vectors, rows))[0][:, :_CANDIDATES]
        ends = np.stack([np.repeat(rows, _CANDIDATES), near.ravel()])
        found.append(np.unique(ends.min(axis=0) * n + ends.max(axis=0)))
    keys = np.unique(np.concatenate(found))
    return np.stack([keys // n, keys % n], axis=1)


def _by_sketch(pictures: Callable[[int], Picture | None], n: int) -> NDArray[np.int64]:
    """Return the pairs of images of which one is among the other's nearest by sketch, ``(c, 2)``.

    These are copies whose embeddings may be far apart: rotated by quarter turns, in frames, between bars, on a screen.
    """
    read, sketches = [], []
    for row in range(n):
        picture = pictures(row)
        if picture is not None:
            read.append(row)
            sketches.append(sketch_of((picture.within or picture).grey))
    if len(read) <= NEIGHBOURS:
        return np.zeros((0, 2), np.int64)
    at, vectors = np.array(read), unit_sketches(np.stack(sketches))
    rows = np.arange(len(at))
    near, distances = (found[:, :_SKETCHED] for found in neighbours_of(vectors, rows))
    alike = distances.ravel() <= 1 - _ALIKE
    ends = at[np.stack([np.repeat(rows, _SKETCHED)[alike], near.ravel()[alike]])]
    return np.stack([ends.min(axis=0), ends.max(axis=0)], axis=1)


def _picture(grey: Grey, row: int) -> Picture | None:
    values = grey(row)
    return None if values is None else Picture.of(values)
