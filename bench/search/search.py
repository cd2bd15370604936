"""The speed of search: exact, indexed and reranked, relative to the limits of the machine.

    python bench/search/search.py [--rows 1000000] [--dim 512] [--threads 2] [--rounds 9]

Vectors are synthetic: a mixture of clusters in 48 dimensions, mapped to the full width, with noise; queries come from
the same mixture. One process; timings alternate, and a ratio is the median over rounds, so that a drifting machine
speed does not matter. The index of a million rows takes minutes; use a smaller ``--rows`` for a quick run.

Prints one JSON record per measurement, after asserting that the answers are right. ``limit`` is what we guarantee.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from frevl.models.fusion import PRESETS, Fusion
from frevl.provenance import hardware
from frevl.runs.run import Run
from frevl.runs.scorer import Scorer
from frevl.runs.search.distances import nearest_rows
from frevl.runs.search.index import build_index
from frevl.runs.search.vectors import PART_ROWS
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

LATENT, CANDIDATES, IMAGE_DIM, TEXT_DIM, SQUARE = 48, 100, 1280, 384, 2048


class Made:
    """Vectors in memory, with the interface that an index needs of a `frevl.runs.search.vectors.Shortlist`."""

    def __init__(self, rows: int, dim: int, folder: Path) -> None:
        rng = np.random.default_rng(0)
        self.folder, self.generation, self.notes, self.usable = folder, "made", [], rows
        self._centres = rng.standard_normal((max(50, rows // 100), LATENT)).astype(np.float32)
        self._map = (rng.standard_normal((LATENT, dim)) / LATENT**0.5).astype(np.float32)
        self.blocks = [self.draw(min(PART_ROWS, rows - a), rng).astype(np.float16) for a in range(0, rows, PART_ROWS)]

    def draw(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``(count, dim)`` float32 unit vectors."""
        latent = self._centres[rng.integers(len(self._centres), size=count)]
        latent = latent + 0.7 * rng.standard_normal(latent.shape).astype(np.float32)
        vectors = latent @ self._map
        vectors += 0.1 * rng.standard_normal(vectors.shape).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def __len__(self) -> int:
        return self.usable

    def alive(self) -> None:
        """Return that no row is outdated."""

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows."""
        return np.stack([self.blocks[row // PART_ROWS][row % PART_ROWS] for row in rows])


def timed(calls: dict[str, Callable[[int], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, round by round, after one round that does not count."""
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for number in range(rounds + 1):
        for what, call in calls.items():
            started = time.perf_counter()
            call(number)
            if number:
                seconds[what].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], what: str, over: str) -> float:
    return statistics.median(a / b for a, b in zip(seconds[what], seconds[over], strict=True))


def searches(given: argparse.Namespace) -> list[dict]:
    """Time exact search relative to one pass over the memory, and indexed relative to exact search."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(given.threads) as pool:
        made = Made(given.rows, given.dim, Path(folder))
        queries = made.draw(400, np.random.default_rng(1))
        words = [block.view(np.uint64) for block in made.blocks]

        def memory(_: int) -> None:
            list(pool.map(np.sum, words))

        def exact(number: int) -> np.ndarray:
            return nearest_rows(made.blocks, queries[number], 10, threads=given.threads)[0]

        truth = np.concatenate([block @ queries[0].astype(np.float32) for block in made.blocks])
        assert set(exact(0)) == set(np.argsort(-truth)[:10])
        seconds = timed({"pass": memory, "exact": exact}, given.rounds)
        size = sum(block.nbytes for block in made.blocks)
        records = [
            {
                "what": "exact search over one pass of the memory",
                "ratio": ratio(seconds, "exact", "pass"),
                "limit": 2.0,
                "exact_ms": 1e3 * statistics.median(seconds["exact"]),
                "pass_ms": 1e3 * statistics.median(seconds["pass"]),
                "pass_gb_per_s": size / statistics.median(seconds["pass"]) / 1e9,
            }
        ]
        if given.index:
            busy = time.process_time()
            report = build_index(made, queries, queries_of="made", threads=given.threads)
            busy = time.process_time() - busy
            records.append(
                {
                    "what": "exact search over indexed search",
                    "ratio": report.exact_ms / report.indexed_ms,
                    "limit": 20.0,
                    "recall_at_10": report.recall,
                    "recall_limit": 0.95,
                    **{name: getattr(report, name) for name in ("exact_ms", "indexed_ms", "expansion", "seconds")},
                    "processor_seconds": busy,
                }
            )
        return [{**record, "rows": given.rows, "dim": given.dim} for record in records]


def made_scorer(folder: Path) -> Scorer:
    """A `tiny` with random weights on a store of random embeddings."""
    rng = np.random.default_rng(2)
    for of, count, dim in (("images", 5_000, IMAGE_DIM), ("texts", 100, TEXT_DIM)):
        np.save(folder / f"{of}.npy", rng.standard_normal((count, dim)).astype(np.float32))
        (folder / f"{of}.txt").write_text("\n".join(f"{of} {number}" for number in range(count)))
        import_embeddings(folder / f"{of}.npy", store=folder / "s", encoder="made", of=of, ids=folder / f"{of}.txt")
    store = Store.open(folder / "s")
    network = Fusion.from_preset("tiny", image_dim=IMAGE_DIM, text_dim=TEXT_DIM, outputs=1).eval()
    towers = {m: {t.name: t.identity for t in store.select_towers(m)} for m in ("image", "text")}
    run = Run(
        path=folder / "run",
        model="tiny",
        task="matching",
        network_name="fusion",
        network_settings=network.settings,
        labels=[],
        encoders=store.encoders,
        towers=towers,
        calibration={"scale": 1.0, "offset": 0.0},
        settings={},
        results={},
        provenance={},
        train_image_hashes=np.zeros(0, np.uint64),
        network=network,
    )
    return Scorer(run, store)


def reranking(given: argparse.Namespace) -> list[dict]:
    """Time the reranking of 100 stored images for one stored text, relative to the machine's matrix products."""
    with tempfile.TemporaryDirectory() as folder:
        scorer = made_scorer(Path(folder))
        sizes = PRESETS["tiny"]
        width, inner, head = sizes["width"], sizes["ffn_width"], sizes["head_width"]
        per_pair = sizes["layers"] * 2 * (width * width + 2 * width * inner) + 4 * width * head + head
        needed = 2 * (CANDIDATES * (IMAGE_DIM * width + per_pair) + TEXT_DIM * width)
        square = torch.randn(SQUARE, SQUARE)
        rng = np.random.default_rng(3)
        chosen = [[f"images {row}" for row in rng.permutation(5_000)[:CANDIDATES]] for _ in range(given.rounds + 1)]

        def scored(number: int) -> np.ndarray:
            return scorer.score([(image, f"texts {number}") for image in chosen[number]])

        embedded = {
            number: (
                torch.from_numpy(scorer.store.read_images(images)),
                torch.from_numpy(scorer.store.read_texts([f"texts {number}"])),
            )
            for number, images in enumerate(chosen)
        }

        def network(number: int) -> np.ndarray:
            images, text = embedded[number]
            with torch.inference_mode():
                return scorer.network(images, text.expand(len(images), -1))[:, 0].numpy()

        assert np.allclose(scored(0), network(0), atol=1e-5)
        seconds = timed({"product": lambda _: square @ square, "scored": scored, "network": network}, given.rounds)
        limit = needed / (2 * SQUARE**3)  # of the time of the product
        return [
            {
                "what": f"rerank of {CANDIDATES} candidates by tiny, {what}, over matrix products",
                "ratio": ratio(seconds, name, "product") / limit,
                "limit": 3.0,
                "ms": 1e3 * statistics.median(seconds[name]),
                "limit_ms": 1e3 * limit * statistics.median(seconds["product"]),
                "product_gflops": 2 * SQUARE**3 / statistics.median(seconds["product"]) / 1e9,
            }
            for name, what in (("scored", "embeddings read from the store"), ("network", "embeddings in memory"))
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-index", dest="index", action="store_false", help="Leave the index out.")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for measure in (reranking, searches):
        for record in measure(given):
            print(json.dumps({**record, "threads": given.threads, "hardware": hardware()}), flush=True)


if __name__ == "__main__":
    main()
