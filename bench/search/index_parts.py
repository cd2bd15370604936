"""How much an index in parts finds, on vectors that resemble those of a folder: exact search, warm and cold.

    python bench/search/index_parts.py make FOLDER --rows 1000000 --images real.npy [...] --texts real.npy [...]
    python bench/search/index_parts.py build FOLDER [--graph-rows 262144] [--threads 1]
    python bench/search/index_parts.py measure FOLDER [--cold 20]

``make`` writes ``FOLDER/N.npy``: every row is a real image vector, moved towards one of its ten nearest others and
then along the difference between two other near vectors, so that rows lie where real ones do and differ as real ones
do. 600 real image vectors are left out of that; they and the real text vectors are the queries. ``build`` makes the
index, choosing the effort on half of the texts as `frevl store index` does; run again after a kill it continues.
``measure`` compares with exact search: recall@10 of every kind of query at every effort, milliseconds of a query with
the files in memory ("warm") and let go before each query with `posix_fadvise` ("cold"), and a hash of all answers.

Prints one JSON record a measurement. ``build`` and ``measure`` need the same FOLDER only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np

from frevl.runs.search.distances import nearest_of_many, nearest_rows
from frevl.runs.search.index import NeighbourIndex, build_index
from frevl.runs.search.vectors import PART_ROWS

HELD_OUT, NEAR, CHOOSING = 600, 10, 400


class Kept:
    """Vectors in files, with what an index asks of a `frevl.runs.search.vectors.Shortlist`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.generation, self.notes = folder, "made", []
        paths = sorted(folder.glob("rows-*.npy"))
        self.blocks = [np.load(path, mmap_mode="r") for path in paths]
        self.usable = sum(map(len, self.blocks))

    def __len__(self) -> int:
        return self.usable

    def alive(self) -> None:
        """Say that no row is outdated."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows."""
        of, within = np.divmod(rows, PART_ROWS)
        taken = np.empty((len(rows), self.blocks[0].shape[1]), np.float16)
        for number in np.unique(of):
            taken[of == number] = self.blocks[number][within[of == number]]
        return taken


def unit(vectors: np.ndarray) -> np.ndarray:
    wide = vectors.astype(np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def make(given: argparse.Namespace) -> None:
    random = np.random.default_rng(0)
    real = unit(np.concatenate([np.load(path) for path in given.images]))[:, : given.width]
    real = unit(real[random.permutation(len(real))])
    held_out, base = real[:HELD_OUT], real[HELD_OUT:]
    near = np.argsort(-(base @ base.T), axis=1)[:, 1 : NEAR + 1]
    given.folder.mkdir(parents=True)
    texts = unit(unit(np.concatenate([np.load(path) for path in given.texts]))[:, : given.width])
    np.savez(given.folder / "queries.npz", image=held_out, text=texts[random.permutation(len(texts))])
    cosines = []
    for number, start in enumerate(range(0, given.rows, PART_ROWS)):
        count = min(PART_ROWS, given.rows - start)
        row, other = random.integers(len(base), size=(2, count))
        towards, beside = (near[one, random.integers(NEAR, size=count)] for one in (row, other))
        share = 0.5 * random.random((count, 1), dtype=np.float32)
        made = base[row] + share * (base[towards] - base[row]) + given.spread * (base[beside] - base[other])
        made = unit(made)
        cosines.append(np.einsum("nd,nd->n", made, base[row]).mean())
        np.save(given.folder / f"rows-{number:05d}.npy", made.astype(np.float16))
    print(json.dumps({"rows": given.rows, "real": len(base), "cosine_with_the_real_one": float(np.mean(cosines))}))


def build(given: argparse.Namespace) -> None:
    kept, queries = Kept(given.folder), np.load(given.folder / "queries.npz")["text"][:CHOOSING]
    busy = time.process_time()
    report = build_index(kept, queries, queries_of="text", threads=given.threads, graph_rows=given.graph_rows)
    print(json.dumps({**vars(report), "processor_seconds": time.process_time() - busy}))


def let_go(folder: Path) -> None:
    """Take the files out of memory (their pages, as far as nobody else maps them)."""
    for path in (*folder.glob("rows-*.npy"), *folder.glob("*.usearch")):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_bytes() -> int:
    """Return what this process has had read from a disk so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


def measure(given: argparse.Namespace) -> None:
    kept, queries = Kept(given.folder), dict(np.load(given.folder / "queries.npz"))
    index = NeighbourIndex.open(kept)
    assert index is not None
    chosen = index.expansion
    answers = hashlib.sha256()
    record: dict = {"rows": len(kept), "width": kept.blocks[0].shape[1], "graphs": len(index.graphs.parts)}
    record |= {"effort_chosen": chosen, "index_mib": sum(part.bytes or 0 for part in index.graphs.parts) / 2**20}
    for kind, asked in queries.items():
        asked = asked[CHOOSING:] if kind == "text" else asked
        truth = nearest_of_many(kept.blocks, asked, 10)
        for effort in sorted({chosen, *given.efforts}):
            index.expansion, found, taken = effort, [], []
            for query in asked:
                began = time.process_time()
                found.append(index.nearest(query, 10)[0])
                taken.append(1e3 * (time.process_time() - began))
            hits = np.array([len(set(rows) & set(true)) for rows, true in zip(found, truth, strict=True)])
            one = {"kind": kind, "queries": len(asked), "effort": effort, "recall_at_10": hits.mean() / 10}
            one |= {"queries_below_0.8": float((hits < 8).mean()), "warm_processor_ms": statistics.median(taken)}
            if effort == chosen:
                for rows in found:
                    answers.update(rows.tobytes())
            print(json.dumps({**record, **one}), flush=True)
    del index
    cold: dict[str, list[float]] = {"indexed": [], "exact": [], "indexed_mib": []}
    for query in queries["image"][: given.cold]:
        for what in ("indexed", "exact"):
            let_go(given.folder)
            kept = Kept(given.folder)
            index = NeighbourIndex.open(kept)
            assert index is not None
            read, began = read_bytes(), time.perf_counter()
            index.nearest(query, 10) if what == "indexed" else nearest_rows(kept.blocks, query, 10)
            cold[what].append(1e3 * (time.perf_counter() - began))
            if what == "indexed":
                cold["indexed_mib"].append((read_bytes() - read) / 2**20)
            del index, kept
    if given.cold:
        record["cold"] = {what: statistics.median(values) for what, values in cold.items()}
    print(json.dumps({**record, "answers": answers.hexdigest()[:16], "load": os.getloadavg()[0]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "build", "measure"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512, help="Of the real vectors, that many numbers.")
    parser.add_argument("--spread", type=float, default=0.5, help="How far rows are moved along a difference.")
    parser.add_argument("--images", type=Path, nargs="+")
    parser.add_argument("--texts", type=Path, nargs="+")
    parser.add_argument("--graph-rows", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--efforts", type=int, nargs="*", default=[])
    parser.add_argument("--cold", type=int, default=0)
    given = parser.parse_args()
    {"make": make, "build": build, "measure": measure}[given.what](given)


if __name__ == "__main__":
    main()
