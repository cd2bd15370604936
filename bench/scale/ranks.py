"""How the cost of an evaluation without a grid grows, compared with the bare matrix product.

    python bench/scale/ranks.py [--counts 10000 30000] [--rerank]

As many texts as images, 512 numbers each, made with something in common. ``evaluate`` is the whole of `frevl.evaluate`:
reading, groups, ranks in both directions, intervals. ``product`` is every dot product once, in the same blocks, and
nothing else: an evaluation needs two passes, so twice that is the machine's limit. ``reranked`` ranks 50 candidates of
every query again, by a score that costs a dot product.

Every measurement is a process of its own; CPU seconds and peak memory are those that the system reports.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from frevl.provenance import hardware
from scale import AT_ONCE, exponents, write_pairs

WIDTH = 512


def write_store(folder: Path, count: int) -> None:
    """Import vectors, and keep a run of `cosine` that ranks them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    import frevl

    vectors, random = folder / "vectors", np.random.default_rng(0)
    for name in ("img_emb", "text_emb", "metadata"):
        (vectors / name).mkdir(parents=True)
    for part, start in enumerate(range(0, count, AT_ONCE)):
        rows = range(start, min(start + AT_ONCE, count))
        common = random.standard_normal((len(rows), WIDTH), dtype=np.float32)
        for name in ("img", "text"):
            made = common + 2 * random.standard_normal(common.shape, dtype=np.float32)
            made /= np.linalg.norm(made, axis=1, keepdims=True)
            np.save(vectors / f"{name}_emb/{name}_emb_{part}.npy", made.astype(np.float16))
        table = {
            "image_path": [f"img/{i:08d}.jpg" for i in rows],
            "caption": [f"a caption of a picture, number {i}, a dog" for i in rows],
        }
        pq.write_table(pa.table(table), vectors / f"metadata/metadata_{part}.parquet")
    command = [sys.executable, "-m", "frevl", "import", str(vectors), "--store", str(folder / "store"), "--quiet"]
    subprocess.run([*command, "--encoder", "made", "--common-space"], check=True, stdout=subprocess.DEVNULL)
    pairs = write_pairs(folder, count, 1)
    few = folder / "few.jsonl"
    few.write_text("".join(pairs.read_text().splitlines(keepends=True)[:20]))
    frevl.train(folder / "store", few, run=folder / "run", task="matching", model="cosine")


def evaluate(folder: Path, _: int) -> Callable[[], object]:
    import frevl

    scorer = frevl.Scorer.open(folder / "run", store=folder / "store")
    return lambda: frevl.evaluate(scorer, folder / "pairs.jsonl")


def sides(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    common = random.standard_normal((count, WIDTH), dtype=np.float32)
    made = [common + 2 * random.standard_normal(common.shape, dtype=np.float32) for _ in range(2)]
    images, texts = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in made)
    return images, texts


def product(_: Path, count: int) -> Callable[[], object]:
    from frevl.runs.pair_grid import dot_rows

    rows = dot_rows(*sides(count))
    return lambda: [len(block) for block in rows]


def reranked(_: Path, count: int) -> Callable[[], object]:
    from frevl.evaluation.retrieval_metrics import matches_of
    from frevl.evaluation.retrieval_metrics import reranked as ranks_again
    from frevl.runs.pair_grid import dot_rows

    images, texts = sides(count)
    matches = matches_of(range(count), range(count), count, count)
    score = lambda rows, columns: np.einsum("nd,nd->n", images[rows], texts[columns])  # noqa: E731
    return lambda: ranks_again(dot_rows(images, texts), *matches, depth=50, score=score)


MEASURED = {"evaluate": evaluate, "product": product, "reranked": reranked}


def peak_mib() -> float:
    """Of this process alone: ``ru_maxrss`` also remembers its parent."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


def child(name: str, folder: Path, count: int) -> None:
    timed, before = MEASURED[name](folder, count), peak_mib()
    started, used = time.perf_counter(), time.process_time()
    timed()
    found = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
    print(json.dumps({**found, "peak_mib": peak_mib(), "before_mib": before}))


def measured(name: str, folder: Path, count: int) -> dict:
    command = [sys.executable, __file__, "--child", name, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    record = {"what": name, "count": count, **json.loads(done.stdout.splitlines()[-1])}
    print(json.dumps(record), file=sys.stderr, flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 30_000])
    parser.add_argument("--rerank", action="store_true", help="Measure reranking too.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]), int(given.child[2]))
        return
    records = []
    for count in given.counts:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            write_store(folder, count)
            names = ["product", "evaluate", *(["reranked"] if given.rerank else [])]
            records += [measured(name, folder, count) for name in names]
    growth = {
        name: exponents([one for one in records if one["what"] == name], "processor_seconds") for name in MEASURED
    }
    print(json.dumps({"records": records, "exponents": growth, "hardware": hardware()}, indent=2))


if __name__ == "__main__":
    main()
