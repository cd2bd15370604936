"""Nearest neighbours of every row in a large set: a graph over 8-bit copies proposes candidates, vectors decide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frevl.runs.search.graphs import add_to_graph, new_graph, scale_of, to_bytes
from frevl.terminal import ProgressLine

__all__ = ["AllNeighbours"]

_ROWS_AT_ONCE = 16_384
_COMPARED_AT_ONCE = 512
_REFINED = 2  # candidates per requested row
_EXPANSION = 48


class AllNeighbours:
    """A graph over all rows of a set, queried for the nearest others of some rows.

    Args:
        vectors: ``(n, d)`` float16 of unit length; kept, not copied.
        k: How many others to find.
        threads: How many to use.
        progress: Show progress.
    """

    def __init__(self, vectors: NDArray[np.float16], k: int, *, threads: int = 1, progress: bool = False) -> None:
        self._vectors, self._k, self._threads = vectors, k, threads
        self._graph, self._scale = new_graph(vectors.shape[1]), scale_of(vectors)
        with ProgressLine("neighbours", len(vectors), enabled=progress) as line:
            for start in range(0, len(vectors), _ROWS_AT_ONCE):
                rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(vectors)))
                add_to_graph(self._graph, rows, to_bytes(vectors[rows], self._scale), threads)
                line.advance(len(rows), note=f"{line.rate:.0f}/s")
        self._graph.expansion_search = max(_EXPANSION, _REFINED * k)

    def __call__(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ``(r, k)`` rows of nearly always the nearest others, and ``1 - cosine`` of them, ascending."""
        near = np.empty((len(rows), self._k), np.int64)
        distances = np.empty((len(rows), self._k), np.float32)
        for start in range(0, len(rows), _COMPARED_AT_ONCE):
            part = rows[start : start + _COMPARED_AT_ONCE]
            queries = self._vectors[part]
            found = self._graph.search(to_bytes(queries, self._scale), _REFINED * self._k, threads=self._threads)
            others = found.keys.astype(np.int64).reshape(len(part), -1)
            wide = queries[:, :, None].astype(np.float32)
            cosines = np.matmul(self._vectors[others].astype(np.float32), wide)[..., 0]
            cosines[others == part[:, None]] = -2.0
            order = np.argsort(-cosines, axis=1, kind="stable")[:, : self._k]
            near[start : start + len(part)] = np.take_along_axis(others, order, axis=1)
            distances[start : start + len(part)] = 1 - np.take_along_axis(cosines, order, axis=1)
        return near, np.maximum(distances, 1e-6)
