"""Which pictures of a set are nearly the same: by their embeddings, and by their pixels where they are at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from frevl.diagnosis.curation.copies.picture_match import agreement, edges_of
from frevl.runs.search.all_neighbours import AllNeighbours
from frevl.store.grouping.near_copies import MOST_COMPARED, NEIGHBOURS, NearCopies, find_near_copies, neighbours_of
from frevl.terminal import ProgressLine

__all__ = ["AGREES", "TELLS", "confirmed_links", "embedding_links"]

AGREES = 0.7
"""Agreement (`frevl.diagnosis.curation.copies.picture_match.agreement`) from which on two pictures may be one."""

TELLS = 0.97
"""Agreement that ordinary pictures must not reach, or the pixels cannot tell copies; copies have 0.98 and more."""

_ORDINARY = 0.005  # share of the pictures whose further neighbours may agree as much as copies have to
_FURTHER = slice(4, 8)  # neighbours that few copies reach
_MEASURED = 1_000  # pictures that this is measured on

_CANDIDATES = 8  # nearest neighbours by embedding whose pixels are compared
_BLOCK = 1_024
_EDGES_KEPT = 4_096  # pictures; 35 kB each

Grey = Callable[[int], NDArray[np.uint8] | None]


def embedding_links(
    vectors: NDArray[np.floating], *, seed: int = 0, threads: int = 1, progress: bool = False
) -> tuple[NearCopies, AllNeighbours | None]:
    """Find near copies by embeddings alone (`frevl.store.grouping.near_copies`), in sets of any size.

    Args:
        vectors: ``(n, d)`` of unit length, one a content; float16 above 200,000.
        seed: Of the sample that distances are measured on.
        threads: How many to use above 200,000.
        progress: Show a progress line.

    Returns:
        What was found, and the graph that was made for it above 200,000 pictures.
    """
    if len(vectors) <= MOST_COMPARED:
        return find_near_copies(vectors, seed=seed), None
    index = AllNeighbours(vectors.astype(np.float16, copy=False), NEIGHBOURS, threads=threads, progress=progress)
    return find_near_copies(vectors, seed=seed, neighbours=index), index


def confirmed_links(
    vectors: NDArray[np.floating],
    grey: Grey,
    *,
    seed: int = 0,
    index: AllNeighbours | None = None,
    progress: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.bool_], float]:
    """Find near copies among the nearest neighbours by embedding: those whose pixels agree.

    How much is enough is measured on the set itself: at most one picture in two hundred agrees as much with its fifth
    to eighth neighbour. Shirts on white agree more than photos do.

    Args:
        vectors: ``(n, d)`` of unit length, one a content.
        grey: Returns the ``(96, 96)`` grey values of a picture, or None where it cannot be read.
        seed: Of the sample that this is measured on.
        index: The graph of these vectors, for large sets.
        progress: Show a progress line.

    Returns:
        ``(l, 2)`` links, the smaller row first; ``(n,)`` whether the picture could be read; and the agreement that was
        enough. Above `TELLS` there are no links: the pixels cannot tell.
    """
    n = len(vectors)
    readable = np.ones(n, bool)
    edges: Callable[[int], NDArray[np.float16] | None] = lru_cache(_EDGES_KEPT)(lambda row: _edges(grey, row))
    links: list[tuple[int, int]] = []
    enough = _enough(vectors, edges, index, seed)
    if enough > TELLS:
        return np.zeros((0, 2), np.int64), readable, enough
    pairs = _candidates(vectors, index)
    with ProgressLine("comparing pictures", len(pairs), enabled=progress) as line:
        for start in range(0, len(pairs), _BLOCK):
            block = pairs[start : start + _BLOCK].tolist()
            for one, other in block:
                own, its = edges(one), edges(other)
                readable[one], readable[other] = own is not None, its is not None
                if own is not None and its is not None and agreement(own, its) >= enough:
                    links.append((one, other))
            line.advance(len(block))
    return np.array(links, np.int64).reshape(-1, 2), readable, enough


def _enough(
    vectors: NDArray[np.floating],
    edges: Callable[[int], NDArray[np.float16] | None],
    index: AllNeighbours | None,
    seed: int,
) -> float:
    """Return the agreement that hardly an ordinary picture reaches, `AGREES` at least."""
    n = len(vectors)
    if n <= NEIGHBOURS:
        return AGREES
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:_MEASURED])
    near = (index(rows) if index else neighbours_of(vectors, rows))[0][:, _FURTHER]
    reached = []
    for row, others in zip(rows.tolist(), near.tolist(), strict=True):
        own = edges(row)
        found = [edges(other) for other in others] if own is not None else []
        agreed = [agreement(own, its) for its in found if own is not None and its is not None]
        if agreed:
            reached.append(max(agreed))
    return max(AGREES, float(np.quantile(reached, 1 - _ORDINARY, method="higher"))) if reached else AGREES


def _candidates(vectors: NDArray[np.floating], index: AllNeighbours | None) -> NDArray[np.int64]:
    """Return ``(c, 2)`` pairs of pictures of which one is among the nearest of the other, each once, in order."""
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


def _edges(grey: Grey, row: int) -> NDArray[np.float16] | None:
    values = grey(row)
    return None if values is None else edges_of(values)
