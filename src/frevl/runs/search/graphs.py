"""The graphs of an index, each over a limited number of rows: saved one at a time, and searched together.

``index-parts.json`` names the finished graphs, including those of an interrupted build, which the next build continues.
The last graph grows until it is full; the others do not change.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frevl.files import replace_file, write_json
from frevl.runs.search.distances import GRAPH
from frevl.runs.search.vectors import PART_ROWS, Shortlist
from frevl.terminal import ProgressLine

__all__ = [
    "AllNeighbours",
    "GraphPart",
    "Graphs",
    "add_to_graph",
    "bytes_in_graph",
    "grown_graphs",
    "new_graph",
    "parts_of",
    "rows_of_a_graph",
    "scale_of",
    "sweep",
    "to_bytes",
]

_CONNECTIVITY, _EXPANSION_ADD = 16, 64  # measured: 128 takes twice the time and finds no more for the same search time
_ROWS_AT_ONCE = 16_384
_ALONE = 4096  # first rows of a graph, added by one thread: with several, some rows become unreachable
_LINKS = 160  # bytes per row in a graph besides its vector, measured with the connectivity above
_GRAPH_BYTES = 1 << 30  # bytes of one graph: the memory needed to build it, and the most that a kill can lose
_STATE = "index-parts.json"
_WORTH_THREADS = 8  # graphs; searching a few takes less time than waking threads


@dataclass(frozen=True)
class GraphPart:
    """One graph: it has ``rows`` rows from ``start`` on, in ``file``, which has ``bytes`` bytes (None if unknown)."""

    file: str
    start: int
    rows: int
    bytes: int | None = None


@dataclass(frozen=True)
class Graphs:
    """Graphs over 8-bit copies of the vectors, from row 0 on, that together propose candidates.

    Attributes:
        parts: The graphs, in row order.
        scale: Factor that brings vectors to 8 bits in `to_bytes`; the same for all graphs, so that their distances are
            comparable.
    """

    parts: tuple[GraphPart, ...]
    scale: float
    graphs: tuple[Any, ...] = field(repr=False)

    @classmethod
    def open(cls, folder: Path, parts: tuple[GraphPart, ...], scale: float) -> Graphs:
        """Map the files of graphs into memory; nothing is read until it is needed.

        Raises:
            FileNotFoundError: A file is missing.
            OSError: A file cannot be read.
            RuntimeError: A file is not a graph.
            ValueError: A file was truncated, or belongs to other rows.
        """
        graphs, end = [], 0
        for part in parts:
            path = folder / part.file
            # Checked first, because reading a page beyond the end of a mapped file would crash the process.
            if part.bytes not in (None, path.stat().st_size):
                raise ValueError(f"{path}: the file is truncated")
            graph = _graphs().restore(str(path), view=True)
            if graph is None or len(graph) != part.rows or part.start != end:
                raise ValueError(f"{path}: a graph of other rows")
            graphs.append(graph)
            end += part.rows
        return cls(parts, scale, tuple(graphs))

    @property
    def rows(self) -> int:
        """Return the number of covered rows."""
        return sum(part.rows for part in self.parts)

    def candidates(self, query: np.ndarray, wanted: int, expansion: int, *, threads: int = 1) -> np.ndarray:
        """Return the rows whose 8-bit copies are nearest to a query, over all graphs.

        Args:
            query: ``(d,)`` float32.
            wanted: Number of rows to return.
            expansion: Number of candidates that each graph keeps during its search.
            threads: Number of graphs to search at once, if there are many.

        Returns:
            Up to ``wanted`` row numbers, int64.
        """
        asked = to_bytes(query, self.scale)

        def of(number: int) -> tuple[np.ndarray, np.ndarray]:
            graph, most = self.graphs[number], min(wanted, self.parts[number].rows)
            graph.expansion_search = max(expansion, most)
            found = graph.search(asked, most, threads=1)
            return found.keys.astype(np.int64), found.distances

        if len(self.graphs) == 1:
            return of(0)[0]
        if threads > 1 and len(self.graphs) >= _WORTH_THREADS:
            with ThreadPoolExecutor(min(threads, len(self.graphs))) as pool:
                found = list(pool.map(of, range(len(self.graphs))))
        else:
            found = [of(number) for number in range(len(self.graphs))]
        rows, distances = (np.concatenate(part) for part in zip(*found, strict=True))
        if len(rows) <= wanted:
            return rows
        nearest: np.ndarray = rows[np.argpartition(distances, wanted - 1)[:wanted]]
        return nearest


def parts_of(record: dict[str, Any]) -> tuple[GraphPart, ...]:
    """Return the graphs in a record; older records name a single file.

    Raises:
        KeyError: The record is not that of an index.
        TypeError: Likewise.
    """
    if "file" in record:
        return (GraphPart(record["file"], 0, record["rows"]),)
    return tuple(GraphPart(**part) for part in record["parts"])


def rows_of_a_graph(dim: int) -> int:
    """Return how many vectors of this width go into one graph: about 1 GiB, in whole parts of a `Shortlist`."""
    return max(1, _GRAPH_BYTES // bytes_in_graph(dim) // PART_ROWS) * PART_ROWS


def bytes_in_graph(dim: int) -> int:
    """Return how many bytes a vector of this width takes in a graph."""
    return dim + _LINKS


def grown_graphs(
    shortlist: Shortlist,
    there: Graphs | None,
    *,
    most: int | None = None,
    threads: int = 1,
    progress: bool = False,
) -> Graphs:
    """Build the graphs of all rows not yet covered; each is on disk before the next is started.

    Args:
        shortlist: The vectors, at least one.
        there: Graphs of the first rows, to which the new ones are added.
        most: Maximum number of rows per graph; None: `rows_of_a_graph`.
        threads: Number of threads.
        progress: Show progress.

    Raises:
        OSError: A graph cannot be written; the graphs before it are kept.
        RuntimeError: Likewise, as raised by usearch.
    """
    folder, blocks = shortlist.folder, shortlist.blocks
    begun = _begun(shortlist)
    if begun is not None and (there is None or begun.rows > there.rows):
        there = begun
    scale = scale_of(blocks[0]) if there is None else there.scale
    parts = [] if there is None else list(there.parts)
    most = most or rows_of_a_graph(blocks[0].shape[1])
    done = sum(part.rows for part in parts)
    with ProgressLine("index", len(shortlist) - done, enabled=progress) as line:
        while done < len(shortlist):
            if parts and parts[-1].rows < most:
                last = parts.pop()
                graph = _graphs().restore(str(folder / last.file), view=False)
                start = last.start
            else:
                graph, start = new_graph(blocks[0].shape[1]), done
            end = min(start + most, len(shortlist))
            for first in range(done, end, _ROWS_AT_ONCE):
                rows = np.arange(first, min(first + _ROWS_AT_ONCE, end))
                add_to_graph(graph, rows, to_bytes(shortlist.take(rows), scale), threads)
                line.advance(len(rows), note=f"{line.rate:.0f}/s")
            path = folder / f"index-{start}-{end - start}.usearch"
            replace_file(path, lambda beside, graph=graph: graph.save(str(beside)))  # type: ignore[misc]
            parts.append(GraphPart(path.name, start, end - start, path.stat().st_size))
            state = {"generation": shortlist.generation, "scale": scale, "parts": [vars(one) for one in parts]}
            write_json(folder / _STATE, state)
            done = end
    return Graphs.open(folder, tuple(parts), scale)


def sweep(folder: Path, kept: tuple[GraphPart, ...]) -> None:
    """Delete obsolete graphs and remains of killed processes; processes that mapped a graph can still read it."""
    names = {part.file for part in kept}
    for path in folder.glob(".index-*.usearch.*"):
        path.unlink(missing_ok=True)
    for path in folder.glob("index-*.usearch"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _begun(shortlist: Shortlist) -> Graphs | None:
    """Return the intact graphs finished by an interrupted build."""
    try:
        state = json.loads((shortlist.folder / _STATE).read_text(encoding="utf-8"))
        parts = parts_of(state) if state["generation"] == shortlist.generation else ()
        scale = float(state["scale"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    while parts:
        try:
            graphs = Graphs.open(shortlist.folder, parts, scale)
        except (OSError, ValueError, RuntimeError):
            parts = parts[:-1]
            continue
        return graphs if graphs.rows <= len(shortlist) else None
    return None


def new_graph(dim: int) -> Any:
    """Return an empty graph for the 8-bit copies of vectors of this width."""
    return _graphs()(ndim=dim, metric=GRAPH, dtype="i8", connectivity=_CONNECTIVITY, expansion_add=_EXPANSION_ADD)


def add_to_graph(graph: Any, rows: np.ndarray, copies: np.ndarray, threads: int) -> None:
    """Add ``(n,)`` rows with their ``(n, d)`` int8 copies to a graph, its first rows with one thread."""
    alone = max(0, _ALONE - len(graph))
    graph.add(rows[:alone].astype(np.uint64), copies[:alone], threads=1)
    graph.add(rows[alone:].astype(np.uint64), copies[alone:], threads=threads)


def scale_of(vectors: np.ndarray) -> float:
    """Return the scale for `to_bytes`: 8 bits cover all but one number in ten thousand of the first rows.

    Args:
        vectors: ``(n, d)`` of unit length.
    """
    return 127 / float(np.quantile(np.abs(vectors[:4096].astype(np.float32)), 0.9999))


def to_bytes(vectors: np.ndarray, scale: float) -> np.ndarray:
    """Return ``(..., d)`` int8 copies of vectors multiplied by a scale."""
    wide: np.ndarray = np.clip(np.rint(vectors.astype(np.float32) * scale), -127, 127).astype(np.int8)
    return wide


def _graphs() -> Any:
    from usearch.index import Index

    return Index


_COMPARED_AT_ONCE = 512
_REFINED = 2  # candidates per requested row
_EXPANSION = 48


class AllNeighbours:
    """A graph over all rows of a set, queried for the nearest neighbours of some of them.

    Args:
        vectors: ``(n, d)`` float16 of unit length; kept, not copied.
        k: Number of neighbours to find.
        threads: Number of threads.
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
        """Return ``(r, k)`` rows of the nearest neighbours, few of them missed, and their ``1 - cosine``, ascending."""
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
