"""An index of the first stage's vectors for large stores, built on request and measured on the store's own queries.

A graph (HNSW, Malkov and Yashunin 2016, arXiv 1603.09320, as usearch has it) over 8-bit copies of the vectors proposes
candidates; their float16 vectors decide. It is built in parts (`frevl.runs.search.graphs`) and covers the first rows of
a `Shortlist`; later rows are compared exactly, so an old index is never wrong, only slower.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from filelock import FileLock

from frevl.errors import StoreError, UsageError
from frevl.files import write_json
from frevl.runs.search.distances import nearest_of_many, nearest_rows
from frevl.runs.search.graphs import Graphs, grown_graphs, parts_of, sweep
from frevl.runs.search.vectors import Shortlist

__all__ = ["IndexReport", "NeighbourIndex", "build_index"]

FORMAT = 2  # 1, which named a single file, is still read
_EXPANSIONS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_REFINED = 4  # candidates per requested row at least, compared by their float16 vectors
# At least one candidate in three that a graph keeps is compared: among very many rows, more are nearer to each other
# than 8 bits can tell, and comparing them takes a thirtieth of the time that finding them took.
_ALSO_REFINED = 3
_MARGIN = 0.02  # the search effort is chosen on half of the queries; the other half must also reach the recall


@dataclass(frozen=True)
class IndexReport:
    """Properties and measured quality of an index.

    Attributes:
        folder: Folder of the index.
        rows: Number of rows covered.
        graphs: Number of parts.
        expansion: Effort of a search: the number of candidates that a graph keeps.
        recall: Share of the 10 exact neighbours that it finds, on queries not used to choose the effort.
        recall_k: Number of neighbours in the recall: 10.
        queries: Number of queries used for the measurement.
        queries_of: ``text`` or ``image``: the kind of queries.
        exact_ms: Median milliseconds of an exact search.
        indexed_ms: Median milliseconds of an indexed search.
        seconds: Time to build the index, in seconds.
    """

    folder: str
    rows: int
    graphs: int
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
        parts = "" if self.graphs == 1 else f" in {self.graphs:,} parts"
        return (
            f"Indexed {self.rows:,} rows{parts} in {self.seconds:.1f} s: recall@{self.recall_k} against exact search "
            f"{100 * self.recall:.1f} % on {self.queries:,} {self.queries_of} queries of the store, "
            f"{self.indexed_ms:.2f} ms per query instead of {self.exact_ms:.2f} ms."
        )


class NeighbourIndex:
    """An index on disk, memory-mapped; open one with `NeighbourIndex.open`."""

    def __init__(self, shortlist: Shortlist, graphs: Graphs, expansion: int) -> None:
        self.shortlist, self.graphs = shortlist, graphs
        self.rows = graphs.rows
        self.expansion = expansion

    @classmethod
    def open(cls, shortlist: Shortlist) -> NeighbourIndex | None:
        """Open the index of these vectors; None if there is no matching one."""
        try:
            record = json.loads((shortlist.folder / "index.json").read_text(encoding="utf-8"))
            if record["format"] not in (1, FORMAT) or record["generation"] != shortlist.generation:
                return None
            graphs = Graphs.open(shortlist.folder, parts_of(record), float(record["scale"]))
            expansion = int(record["expansion"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            shortlist.notes.append(f"{shortlist.folder}: the index is damaged and was not used; run frevl store index")
            return None
        return cls(shortlist, graphs, expansion) if 0 < graphs.rows <= len(shortlist) else None

    def nearest(self, query: np.ndarray, k: int, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows with the largest dot products: approximately among indexed rows, exactly among later ones.

        Args:
            query: ``(d,)`` float32 of unit length.
            k: Number of rows to find.
            threads: Number of threads for the exact part.

        Returns:
            As in `frevl.runs.search.distances.nearest_rows`.
        """
        alive = self.shortlist.alive()
        rows, similarities = self._candidates(query, k, self.expansion, alive, threads)
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
        self, query: np.ndarray, k: int, expansion: int, alive: np.ndarray | None, threads: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        dead = len(self.shortlist) - self.shortlist.usable
        wanted = min(max(_REFINED * k, expansion // _ALSO_REFINED) + min(dead, 10 * k), self.rows)
        while True:
            rows = self.graphs.candidates(query, wanted, expansion, threads=threads)
            rows = np.sort(rows if alive is None else rows[alive[rows]])
            # All candidates near a query may have been removed: then search further, so that k are found.
            if len(rows) >= min(k, self.shortlist.usable) or wanted >= self.rows:
                break
            wanted = min(4 * wanted, self.rows)
        similarities = self.shortlist.take(rows).astype(np.float32) @ query
        order = np.lexsort((rows, -similarities))[:k]
        return rows[order], similarities[order]

    def choose_expansion(self, queries: np.ndarray, truth: list[set[int]], least: float) -> None:
        """Choose the smallest effort that finds the required share of these queries' exact neighbours."""
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
    graph_rows: int | None = None,
    progress: bool = False,
) -> IndexReport:
    """Build or extend the index of a shortlist, choose its effort, and measure it against exact search.

    Args:
        shortlist: The vectors.
        queries: ``(n, d)`` float32 real queries; the even ones choose the effort, the odd ones measure the recall.
        queries_of: The kind of queries, for the report.
        recall: Share of the exact neighbours to find.
        k: Number of neighbours in the recall.
        threads: Number of threads.
        graph_rows: Rows per part; None means as many as take 1 GiB.
        progress: Show progress.

    Returns:
        The report, which is also stored in ``index.json`` next to the index.

    Raises:
        UsageError: There is nothing to index, or there are fewer than two queries.
        StoreError: The index cannot be written; finished parts are kept, and the next call continues.
    """
    if not len(shortlist) or len(queries) < 2:
        raise UsageError(
            f"{shortlist.folder}: an index needs vectors and at least two queries to measure it; found none"
        )
    started = time.perf_counter()
    try:
        with FileLock(shortlist.folder / ".index.lock"):
            there = NeighbourIndex.open(shortlist)
            graphs = grown_graphs(
                shortlist, None if there is None else there.graphs, most=graph_rows, threads=threads, progress=progress
            )
            seconds = time.perf_counter() - started
            index = NeighbourIndex(shortlist, graphs, _EXPANSIONS[0])
            report = _measured(index, queries, queries_of, recall, k, threads, seconds)
            record = {"format": FORMAT, "generation": shortlist.generation, "scale": graphs.scale}
            write_json(
                shortlist.folder / "index.json",
                {**record, "parts": [vars(part) for part in graphs.parts], **vars(report)},
            )
            sweep(shortlist.folder, graphs.parts)
    except (OSError, RuntimeError) as error:
        raise StoreError(
            f"{shortlist.folder}: the index cannot be written ({error}); free some space, and try again: finished "
            "parts are kept"
        ) from error
    return report


def _measured(
    index: NeighbourIndex,
    queries: np.ndarray,
    queries_of: str,
    recall: float,
    k: int,
    threads: int,
    seconds: float,
) -> IndexReport:
    """Choose the effort on even queries, and measure on odd ones."""
    shortlist = index.shortlist
    k, alive = min(k, shortlist.usable), shortlist.alive()
    truth = [set(rows.tolist()) for rows in nearest_of_many(shortlist.blocks, queries, k, allowed=alive)]
    index.choose_expansion(queries[::2], truth[::2], min(recall + _MARGIN, 1.0))
    found = [index.nearest(query, k)[0] for query in queries[1::2]]
    return IndexReport(
        folder=str(shortlist.folder),
        rows=index.rows,
        graphs=len(index.graphs.parts),
        expansion=index.expansion,
        recall=_recall(found, truth[1::2]),
        recall_k=k,
        queries=len(found),
        queries_of=queries_of,
        exact_ms=_median_ms(
            lambda query: nearest_rows(shortlist.blocks, query, k, allowed=alive, threads=threads), queries[1:21:2]
        ),
        indexed_ms=_median_ms(lambda query: index.nearest(query, k, threads=threads), queries[1:201:2]),
        seconds=seconds,
    )


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
