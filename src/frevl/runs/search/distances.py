"""The distance of search, and exact nearest neighbours by it: one pass over half-precision vectors, with a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np

__all__ = ["GRAPH", "nearest_of_many", "nearest_rows"]

# The dot product of unit vectors, as the kernel of the exact pass and as the graphs of an index name it.
KERNEL: Final = "dot"
GRAPH: Final = "ip"

_MORE = 32  # rows beyond k that are rescored in float32, because the pass rounds the query to float16
_PIECE_ROWS = 65_536  # rows or bytes per thread at a time
_PIECE_OF_MANY = 8_192  # rows compared with many queries at once


def nearest_rows(
    blocks: Sequence[np.ndarray],
    query: np.ndarray,
    k: int,
    *,
    allowed: np.ndarray | None = None,
    threads: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows with the largest dot products, exactly, by reading every row.

    Half-precision kernels compare all rows with the query in float16; the best are rescored with the unrounded query,
    so that only the rounding of the stored vectors remains.

    Args:
        blocks: ``(rows, d)`` float16 each, C-contiguous; together all rows in their order.
        query: ``(d,)`` float32 query vector.
        k: Number of rows to find, at least 1.
        allowed: ``(all rows,)`` bool, False for rows that must not be found; None allows all.
        threads: Number of pieces to read at once.

    Returns:
        Up to ``k`` row numbers, best first (ties: the lower number), and their dot products in float32.
    """
    import numkong

    rounded = query.astype(np.float16)[None]
    wanted = k + _MORE
    starts = np.cumsum([0, *(len(block) for block in blocks)])

    floor = -np.inf  # enough rows are at least as near: the bound of a finished piece holds for all others

    def best(number: int, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        nonlocal floor
        block, rows = blocks[number][first:last], None
        if allowed is not None:
            rows = np.flatnonzero(allowed[starts[number] + first : starts[number] + last])
            if not len(rows):
                return rows, np.zeros(0, np.float32)
            if 4 * len(rows) < len(block):  # copying a few rows is cheaper than comparing all of them
                block = block[rows]
        similarities = np.asarray(numkong.cdist(np.asarray(block), rounded, metric=KERNEL, out_dtype="float32"))[:, 0]
        if rows is not None and len(block) != len(rows):
            similarities = similarities[rows]
        near = np.flatnonzero(similarities >= floor)
        if len(near) > wanted:
            near = near[np.argpartition(similarities[near], -wanted)[-wanted:]]
            floor = max(floor, similarities[near].min())
        chosen = first + (near if rows is None else rows[near])
        return starts[number] + chosen, blocks[number][chosen].astype(np.float32) @ query

    pieces = [
        (number, first, min(first + _PIECE_ROWS, len(block)))
        for number, block in enumerate(blocks)
        for first in range(0, len(block), _PIECE_ROWS)
    ]
    if not pieces:
        return np.zeros(0, np.int64), np.zeros(0, np.float32)
    if min(threads, len(pieces)) > 1:
        with ThreadPoolExecutor(min(threads, len(pieces))) as pool:
            found = list(pool.map(lambda piece: best(*piece), pieces))
    else:
        found = [best(*piece) for piece in pieces]
    rows = np.concatenate([rows for rows, _ in found])
    similarities = np.concatenate([values for _, values in found])
    order = np.lexsort((rows, -similarities))[:k]
    return rows[order], similarities[order]


def nearest_of_many(
    blocks: Sequence[np.ndarray], queries: np.ndarray, k: int, *, allowed: np.ndarray | None = None
) -> list[np.ndarray]:
    """Find the rows with the largest dot products for many queries, exactly and in one pass over the vectors.

    Args:
        blocks: As in `nearest_rows`.
        queries: ``(n, d)`` float32.
        k: Number of rows to find for each query, at least 1.
        allowed: As in `nearest_rows`.

    Returns:
        For every query up to ``k`` row numbers, best first (ties: the lower number).
    """
    best = np.full((len(queries), 0), -np.inf, np.float32)
    rows = np.zeros((len(queries), 0), np.int64)
    start = 0
    for block in blocks:
        for first in range(0, len(block), _PIECE_OF_MANY):
            piece = block[first : first + _PIECE_OF_MANY]
            products = queries @ piece.astype(np.float32).T
            if allowed is not None:
                products[:, ~allowed[start + first : start + first + len(piece)]] = -np.inf
            # Only scores above the worst kept one matter, and there are few after some pieces.
            changed = np.flatnonzero(products.max(axis=1) > best[:, -1]) if best.shape[1] == k else slice(None)
            numbers = np.arange(start + first, start + first + len(piece))
            both = np.concatenate([best[changed], products[changed]], axis=1)
            places = np.concatenate([rows[changed], np.broadcast_to(numbers, products[changed].shape)], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k] if both.shape[1] <= 4 * k else _first(both, k)
            if best.shape[1] == k:
                best[changed] = np.take_along_axis(both, order, axis=1)
                rows[changed] = np.take_along_axis(places, order, axis=1)
            else:
                best, rows = (np.take_along_axis(part, order, axis=1) for part in (both, places))
        start += len(block)
    return [row[np.isfinite(value)] for row, value in zip(rows, best, strict=True)]


def _first(values: np.ndarray, k: int) -> np.ndarray:
    """Return ``(n, k)`` positions of the largest of each row, largest first; the first in case of ties."""
    edge = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]
    places = np.empty((len(values), k), np.int64)
    for number, row in enumerate(values):
        near = np.flatnonzero(row >= edge[number])
        places[number] = near[np.argsort(-row[near], kind="stable")[:k]]
    return places
