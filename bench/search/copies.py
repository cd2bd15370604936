"""Near copies in a large set of vectors: time and memory of the graph, compared with comparing all pairs.

    python bench/search/copies.py [--vectors 1000000] [--dim 512] [--part 50000] [--threads 2] [--json FILE]

Made vectors with an intrinsic dimension of 24; one in a hundred is a near copy of another (0.1 of the length away).
Comparing all pairs is measured on a part, and so is the graph; its time grows with the square.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from frevl.provenance import hardware
from frevl.runs.search.graphs import AllNeighbours
from frevl.store.grouping.copies import NEIGHBOURS, find_near_copies

DIMENSION, NOISE, MOVED, COPIES = 24, 0.3, 0.1, 100
_ROWS = 65_536


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def made(count: int, dim: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """Return ``(count, dim)`` float16 and the planted pairs."""
    random = np.random.default_rng(0)
    directions = random.standard_normal((DIMENSION, dim)).astype(np.float32)
    vectors = np.empty((count, dim), np.float16)
    for start in range(0, count, _ROWS):
        rows = min(_ROWS, count - start)
        plain = random.standard_normal((rows, DIMENSION)).astype(np.float32) @ directions
        vectors[start : start + rows] = unit(plain + NOISE * random.standard_normal((rows, dim)).astype(np.float32))
    chosen = random.permutation(count)[: 2 * (count // COPIES)]
    originals, copies = np.split(chosen, 2)
    moved = MOVED * unit(random.standard_normal((len(copies), dim)).astype(np.float32))
    vectors[copies] = unit(vectors[originals].astype(np.float32) + moved)
    return vectors, {(min(pair), max(pair)) for pair in zip(originals.tolist(), copies.tolist(), strict=True)}


def by_graph(vectors: np.ndarray, planted: set[tuple[int, int]], threads: int) -> dict:
    wall, processor = time.perf_counter(), time.process_time()
    graph = AllNeighbours(vectors, NEIGHBOURS, threads=threads)
    built = time.process_time() - processor
    links = {tuple(link) for link in find_near_copies(vectors, neighbours=graph).links.tolist()}
    return {
        "vectors": len(vectors),
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "of_them_building": built,
        "recall": len(links & planted) / len(planted),
        "precision": len(links & planted) / max(1, len(links)),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def by_comparing_all(vectors: np.ndarray) -> dict:
    wall, processor = time.perf_counter(), time.process_time()
    links = find_near_copies(vectors.astype(np.float32)).links
    return {
        "vectors": len(vectors),
        "links": len(links),
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--part", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    part, planted = made(asked.part, asked.dim)
    small = by_graph(part, planted, asked.threads)
    naive = by_comparing_all(part)
    record = {
        "what": "near copies among vectors",
        "part": {"graph": small, "comparing_all": naive},
        "ratio": small["processor_seconds"] / naive["processor_seconds"],
        "whole": by_graph(*made(asked.vectors, asked.dim), asked.threads) if asked.vectors > asked.part else small,
        "limit": "1,000,000 vectors within 30 minutes and 4 GB on two cores",
        "hardware": hardware(),
    }
    text = json.dumps(record, indent=2)
    print(text)
    if asked.json:
        asked.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
