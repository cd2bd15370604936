"""Where the right items stand in both directions of retrieval, with and without reranking, block by block."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.metrics import rank_of_best_match

__all__ = ["PairScores", "Ranks", "dot_products", "full_grid", "matches_of", "reranked", "retrieval_ranks"]

_PAIRS = 1_048_576  # pairs whose numbers are in memory at once
_BLOCK = 16_777_216  # scores at once: 64 MB
_IN_MEMORY = 67_108_864  # scores; a larger grid lies in a temporary file, so that memory stays bounded

PairScores = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Ranks:
    """The place of the best right item of every query; 0 is the first.

    Attributes:
        i2t: ``(images,)`` int64.
        t2i: ``(texts,)`` int64.
    """

    i2t: NDArray[np.int64]
    t2i: NDArray[np.int64]


def matches_of(
    image_rows: Sequence[int], text_rows: Sequence[int], images: int, texts: int
) -> tuple[list[set[int]], list[set[int]]]:
    """Return the texts of every image and the images of every text, from the rows of right pairs."""
    of_image: list[set[int]] = [set() for _ in range(images)]
    of_text: list[set[int]] = [set() for _ in range(texts)]
    for image, text in zip(image_rows, text_rows, strict=True):
        of_image[image].add(text)
        of_text[text].add(image)
    return of_image, of_text


def empty_grid(images: int, texts: int) -> NDArray[np.float32]:
    """Make room for ``(images, texts)`` scores: in memory, or in an unnamed temporary file where they are many."""
    if images * texts <= _IN_MEMORY:
        return np.empty((images, texts), np.float32)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the file's name
        return np.memmap(file, np.float32, "w+", shape=(images, texts))


def full_grid(images: int, texts: int, score: PairScores) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` scores of all pairs."""
    grid = empty_grid(images, texts)
    flat = grid.reshape(-1)
    for start in range(0, flat.size, _PAIRS):
        numbers = np.arange(start, min(start + _PAIRS, flat.size))
        flat[start : start + len(numbers)] = score(*np.divmod(numbers, texts))
    return grid


def dot_products(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` dot products of ``(images, d)`` and ``(texts, d)`` vectors."""
    grid = empty_grid(len(images), len(texts))
    for start in range(0, len(images), 256):
        np.matmul(images[start : start + 256], texts.T, out=grid[start : start + 256])
    return grid


def retrieval_ranks(grid: NDArray[np.float32], of_image: list[set[int]], of_text: list[set[int]]) -> Ranks:
    """Rank by ``(images, texts)`` scores; wrong items that tie with the right one stand before it."""
    return Ranks(
        rank_of_best_match(_blocks(grid), of_image),
        rank_of_best_match(_blocks(grid.T), of_text),
    )


def reranked(
    first: NDArray[np.float32], of_image: list[set[int]], of_text: list[set[int]], *, depth: int, score: PairScores
) -> Ranks:
    """Rank the best ``depth`` items of every query anew; the others stay behind them in the order of the first stage.

    Args:
        first: ``(images, texts)`` scores of the first stage.
        of_image: The right texts of every image.
        of_text: The right images of every text.
        depth: Candidates a query.
        score: From ``(n,)`` image rows and ``(n,)`` text rows to ``(n,)`` final scores.

    Returns:
        Ranks in which ties count against the right item, at both stages.
    """
    before = retrieval_ranks(first, of_image, of_text)
    return Ranks(
        _reranked_queries(first, of_image, before.i2t, depth, score),
        _reranked_queries(first.T, of_text, before.t2i, depth, lambda texts, images: score(images, texts)),
    )


def _reranked_queries(
    first: NDArray[np.float32],
    positives: list[set[int]],
    before: NDArray[np.int64],
    depth: int,
    score: PairScores,
) -> NDArray[np.int64]:
    """Queries in rows. Where no right item is among the candidates, the rank of the first stage stays."""
    ranks = before.copy()
    depth = min(depth, first.shape[1])
    start = 0
    for block in _blocks(first, queries=max(1, _BLOCK // (4 * max(first.shape[1], 64 * depth)))):
        right = np.zeros(block.shape, bool)
        for row in range(len(block)):
            right[row, list(positives[start + row])] = True
        # A right item must lose a tie at the edge of the candidates too.
        lowered = np.where(right, np.nextafter(block, np.float32(-np.inf)), block)
        candidates = np.argpartition(-lowered, depth - 1, axis=1)[:, :depth]
        queries = np.repeat(np.arange(start, start + len(block)), depth)
        scores = score(queries, candidates.reshape(-1).astype(np.int64)).reshape(len(block), depth)
        found = np.take_along_axis(right, candidates, axis=1)
        known = found.any(axis=1)
        again = rank_of_best_match([scores[known]], [np.flatnonzero(row) for row in found[known]])
        ranks[start : start + len(block)][known] = again
        start += len(block)
    return ranks


def _blocks(grid: NDArray[np.float32], queries: int | None = None) -> Iterator[NDArray[np.float32]]:
    size = queries or max(1, _BLOCK // max(grid.shape[1], 1))
    for start in range(0, len(grid), size):
        yield np.ascontiguousarray(grid[start : start + size])
