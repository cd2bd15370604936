"""An index of the first stage's vectors for large stores: built on request, measured on the store's own queries.

A graph (HNSW, Malkov and Yashunin 2016, arXiv 1603.09320, as usearch has it) over 8-bit copies of the vectors names
candidates; their float16 vectors decide. It covers the first so many rows of a `Shortlist`: rows that came later are
compared exactly, so that an old index is never wrong, only slower.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.errors import StoreError, UsageError
from frevl.jsonfile import replace_file, write_json
from frevl.runs.search.nearest import nearest_rows
from frevl.runs.search.vectors import Shortlist
from frevl.terminal import ProgressLine

__all__ = ["IndexReport", "NeighbourIndex", "build_index", "new_graph", "to_bytes"]

FORMAT = 1
_CONNECTIVITY, _EXPANSION_ADD = 16, 64  # measured: 128 takes twice the time and finds no more at equal search time
_EXPANSIONS = (16, 32, 64, 128, 256, 512, 1024)
_REFINED = 4  # candidates a wanted row, compared by their float16 vectors
_ROWS_AT_ONCE = 16_384
_MARGIN = 0.02  # the effort is chosen on half of the queries; the other half must find the promised share too


@dataclass(frozen=True)
class IndexReport:
    """What an index is and how good it is.

    Attributes:
        folder: Where it is kept.
        rows: How many rows it covers.
        expansion: Effort of a search: how many candidates the graph keeps.
        recall: Share of the 10 exact neighbours that it finds, on queries that did not choose the effort.
        recall_k: The 10.
        queries: How many queries it was measured with.
        queries_of: ``text`` or ``image``: what the queries were.
        exact_ms: Median milliseconds of an exact search.
        indexed_ms: Median milliseconds of an indexed one.
        seconds: Time to build it.
    """

    folder: str
    rows: int
    expansion: int
    recall: float
    recall_k: int
    queries: int
    queries_of: str
    exact_ms: float
    indexed_ms: float
    seconds: float

    def sentence(self) -> str:
        """Return a summary in one line."""
        return (
            f"Indexed {self.rows:,} rows in {self.seconds:.1f} s: recall@{self.recall_k} against exact search "
            f"{100 * self.recall:.1f} % on {self.queries:,} {self.queries_of} queries of the store, "
            f"{self.indexed_ms:.2f} ms per query instead of {self.exact_ms:.2f} ms."
        )


class NeighbourIndex:
    """An index on disk, memory-mapped; open one with `NeighbourIndex.open`."""

    def __init__(self, shortlist: Shortlist, graph: Any, record: dict[str, Any]) -> None:
        self.shortlist, self.record = shortlist, record
        self._graph = graph
        self.rows: int = record["rows"]
        self.scale: float = record["scale"]
        self.expansion: int = record["expansion"]

    @classmethod
    def open(cls, shortlist: Shortlist) -> NeighbourIndex | None:
        """Open the index of these vectors; None if there is none that fits them."""
        try:
            record = json.loads((shortlist.folder / "index.json").read_text(encoding="utf-8"))
            fits = record["format"] == FORMAT and record["generation"] == shortlist.generation
            graph = _graphs().restore(str(shortlist.folder / record["file"]), view=True) if fits else None
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            shortlist.notes.append(f"{shortlist.folder}: the index is damaged and was not used; run frevl store index")
            return None
        if graph is None or len(graph) != record["rows"] or record["rows"] > len(shortlist):
            return None
        return cls(shortlist, graph, record)

    def nearest(self, query: np.ndarray, k: int, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find rows with the largest dot products: nearly all of the best among indexed rows, exactly among others.

        Args:
            query: ``(d,)`` float32 of unit length.
            k: How many rows to find.
            threads: For the exact part.

        Returns:
            As `frevl.runs.search.nearest.nearest_rows`.
        """
        alive = self.shortlist.alive()
        rows, similarities = self._candidates(query, k, self.expansion, alive)
        if self.rows < len(self.shortlist):
            later = np.zeros(len(self.shortlist), bool)
            later[self.rows :] = True
            allowed = later if alive is None else later & alive
            new, new_similarities = nearest_rows(self.shortlist.blocks, query, k, allowed=allowed, threads=threads)
            rows, similarities = np.concatenate([rows, new]), np.concatenate([similarities, new_similarities])
            order = np.lexsort((rows, -similarities))
            rows, similarities = rows[order], similarities[order]
        return rows[:k], similarities[:k]

    def _candidates(
        self, query: np.ndarray, k: int, expansion: int, alive: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        dead = len(self.shortlist) - self.shortlist.usable
        wanted = min(_REFINED * k + min(dead, 10 * k), self.rows)
        while True:
            self._graph.expansion_search = max(expansion, wanted)
            rows = self._graph.search(to_bytes(query, self.scale), wanted, threads=1).keys.astype(np.int64)
            rows = np.sort(rows if alive is None else rows[alive[rows]])
            # What was removed may be all that lies near a query: then look further, so that k are found.
            if len(rows) >= min(k, self.shortlist.usable) or wanted >= self.rows:
                break
            wanted = min(4 * wanted, self.rows)
        similarities = self.shortlist.take(rows).astype(np.float32) @ query
        order = np.lexsort((rows, -similarities))[:k]
        return rows[order], similarities[order]

    def choose_expansion(self, queries: np.ndarray, truth: list[set[int]], least: float) -> None:
        """Choose the least effort that finds the wanted share of the exact neighbours of these queries."""
        alive = self.shortlist.alive()
        for expansion in _EXPANSIONS:
            self.expansion = expansion
            pairs = zip(queries, truth, strict=True)
            found = [self._candidates(query, len(true), expansion, alive)[0] for query, true in pairs]
            if _recall(found, truth) >= least:
                return


def build_index(
    shortlist: Shortlist,
    queries: np.ndarray,
    *,
    queries_of: str,
    recall: float = 0.95,
    k: int = 10,
    threads: int = 1,
    progress: bool = False,
) -> IndexReport:
    """Build or extend the index of a shortlist, choose its effort, and measure it against exact search.

    Args:
        shortlist: The vectors.
        queries: ``(n, d)`` float32 real queries; the even ones choose the effort, the odd ones measure the recall.
        queries_of: What they are, for the report.
        recall: Share of the exact neighbours to find.
        k: Of how many neighbours.
        threads: How many to use.
        progress: Show a progress line.

    Returns:
        The report, which also stands in ``index.json`` beside the index.

    Raises:
        UsageError: There is nothing to index, or there are fewer than two queries.
        StoreError: The index cannot be written.
    """
    if not len(shortlist) or len(queries) < 2:
        raise UsageError(
            f"{shortlist.folder}: an index needs vectors and at least two queries to measure it with; found none"
        )
    started = time.perf_counter()
    graph, scale = _grown(shortlist, threads=threads, progress=progress)
    seconds = time.perf_counter() - started
    record = {"format": FORMAT, "rows": len(graph), "scale": scale, "expansion": _EXPANSIONS[0]}
    index = NeighbourIndex(shortlist, graph, record)
    k = min(k, shortlist.usable)
    alive = shortlist.alive()

    def exact(query: np.ndarray) -> np.ndarray:
        return nearest_rows(shortlist.blocks, query, k, allowed=alive, threads=threads)[0]

    truth = [set(exact(query).tolist()) for query in queries]
    index.choose_expansion(queries[::2], truth[::2], min(recall + _MARGIN, 1.0))
    found = [index.nearest(query, k)[0] for query in queries[1::2]]
    report = IndexReport(
        folder=str(shortlist.folder),
        rows=len(graph),
        expansion=index.expansion,
        recall=_recall(found, truth[1::2]),
        recall_k=k,
        queries=len(found),
        queries_of=queries_of,
        exact_ms=_median_ms(exact, queries[1:21:2]),
        indexed_ms=_median_ms(lambda query: index.nearest(query, k), queries[1:201:2]),
        seconds=seconds,
    )
    _save(shortlist, graph, {**record, **vars(report), "generation": shortlist.generation})
    return report


def _grown(shortlist: Shortlist, *, threads: int, progress: bool) -> tuple[Any, float]:
    """Return the graph of all rows: the one that is there with the new rows, or a new one."""
    there = NeighbourIndex.open(shortlist)
    if there is None:
        graph, scale = new_graph(shortlist.blocks[0])
    else:
        graph = _graphs().restore(str(shortlist.folder / there.record["file"]), view=False)
        scale = there.scale
    done = len(graph)
    with ProgressLine("index", len(shortlist) - done, enabled=progress) as line:
        for start in range(done, len(shortlist), _ROWS_AT_ONCE):
            rows = np.arange(start, min(start + _ROWS_AT_ONCE, len(shortlist)))
            graph.add(rows.astype(np.uint64), to_bytes(shortlist.take(rows), scale), threads=threads)
            line.advance(len(rows), note=f"{line.rate:.0f}/s")
    return graph, scale


def _save(shortlist: Shortlist, graph: Any, record: dict[str, Any]) -> None:
    name = f"index-{record['rows']}.usearch"
    try:
        replace_file(shortlist.folder / name, lambda path: graph.save(str(path)))
        write_json(shortlist.folder / "index.json", {**record, "file": name})
        for path in shortlist.folder.glob("index-*.usearch"):
            if path.name != name:
                path.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{shortlist.folder}: the index cannot be written ({error}); make room, and try again"
        ) from error


def new_graph(vectors: np.ndarray) -> tuple[Any, float]:
    """Return an empty graph for vectors like these, and the scale to bring them to 8 bits with `to_bytes`.

    Args:
        vectors: ``(n, d)`` of unit length; the first rows decide the scale.
    """
    graph = _graphs()(
        ndim=vectors.shape[1], metric="ip", dtype="i8", connectivity=_CONNECTIVITY, expansion_add=_EXPANSION_ADD
    )
    # One scale for all numbers, from the first rows: 8 bits cover all but one number in ten thousand.
    return graph, 127 / float(np.quantile(np.abs(vectors[:4096].astype(np.float32)), 0.9999))


def to_bytes(vectors: np.ndarray, scale: float) -> np.ndarray:
    """Return ``(..., d)`` int8 copies of vectors, times a scale."""
    wide: np.ndarray = np.clip(np.rint(vectors.astype(np.float32) * scale), -127, 127).astype(np.int8)
    return wide


def _recall(found: list[np.ndarray], truth: list[set[int]]) -> float:
    hits = sum(len(true.intersection(rows.tolist())) for rows, true in zip(found, truth, strict=True))
    return hits / max(1, sum(len(true) for true in truth))


def _median_ms(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query)
        times.append(1e3 * (time.perf_counter() - started))
    return float(np.median(times))


def _graphs() -> Any:
    from usearch.index import Index

    return Index
