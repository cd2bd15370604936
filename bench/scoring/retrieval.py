"""How fast pairs are scored: a grid of 1,000 images and 5,000 texts, and a rerank of 100 candidates.

Run: ``python bench/scoring/retrieval.py [--model tiny] [--images 1000] [--texts 5000] [--json FILE]``. The ratio is to
the time of the network's matrix products alone, of the same sizes, measured in the same process. Random weights and
embeddings: the work is the same. The products are those of pairs that share nothing: a grid that shares the work of
single items can take less. On a machine that others use, ``--cpu-time`` with ``OMP_NUM_THREADS=1`` counts CPU time; a
smaller grid (``--images 100``) gives the same pairs per second. ``--protocol 5k`` measures time and memory of ranking
5,000 images and 25,000 texts by vectors.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from frevl.evaluation.retrieval_metrics import matches_of, reranked
from frevl.models.fusion import PRESETS, Fusion
from frevl.provenance import provenance
from frevl.runs.batches import EmbeddedPairs, grid_scorer
from frevl.runs.pair_grid import dot_rows, full_grid

IMAGE_DIM, TEXT_DIM = 1280, 384


def items(images: int, texts: int) -> EmbeddedPairs:
    """Random pooled embeddings."""
    none = torch.zeros(0, dtype=torch.long)
    return EmbeddedPairs(
        torch.randn(images, 1, IMAGE_DIM), torch.ones(images, 1, dtype=torch.bool), torch.randn(texts, 1, TEXT_DIM),
        torch.ones(texts, 1, dtype=torch.bool), none, none,
    )  # fmt: skip


def scorer(model: str, embedded: EmbeddedPairs, batch: int):
    """The road of ``Scorer.between``."""
    network = Fusion.from_preset(model, image_dim=IMAGE_DIM, text_dim=TEXT_DIM, outputs=1).eval().for_inference()
    with torch.inference_mode():
        logits = grid_scorer(network, embedded, batch, "cpu")

    def score(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return logits(torch.from_numpy(rows), torch.from_numpy(columns))[:, 0].numpy()

    return score


def products(model: str, pairs: int, batch: int, clock=time.perf_counter) -> float:
    """Seconds of the matrix products that the pairs need: ``W_o W_v`` and two-layer parts of each block, the head."""
    sizes = PRESETS[model]
    width, inner, head = sizes["width"], sizes["ffn_width"], sizes["head_width"]
    shapes = [(width, width), (width, inner), (inner, width)] * 2 * sizes["layers"] + [(4 * width, head), (head, 1)]
    weights = [(torch.randn(n, m), torch.randn(batch, n)) for n, m in shapes]
    repeats = max(1, pairs // batch)
    with torch.inference_mode():
        for weight, x in weights:
            x @ weight
        started = clock()
        for _ in range(repeats):
            for weight, x in weights:
                x @ weight
    return (clock() - started) * pairs / (repeats * batch)


def protocol_5k() -> dict:
    """Rank 5,000 x 25,000 by vectors of 2,048 numbers and rerank 50 candidates by a function that costs nothing."""
    random = np.random.default_rng(0)
    images, texts = (random.standard_normal((n, 2048), np.float32) for n in (5_000, 25_000))
    of_image, of_text = matches_of(np.arange(25_000) // 5, np.arange(25_000), 5_000, 25_000)
    started = time.perf_counter()
    rows = dot_rows(images, texts)
    reranked(rows, of_image, of_text, depth=50, score=lambda rows, columns: (rows + columns).astype(np.float32))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": "5k protocol", "seconds": time.perf_counter() - started, "peak_memory_gib": peak, "limit": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--protocol", choices=["grid", "5k"], default="grid")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    torch.manual_seed(0)
    if arguments.protocol == "5k":
        records = [protocol_5k()]
    else:
        embedded = items(arguments.images, arguments.texts)
        started = clock()
        score = scorer(arguments.model, embedded, arguments.batch)
        grid = full_grid(arguments.images, arguments.texts, score)
        seconds = clock() - started
        few = np.arange(100, dtype=np.int64)
        again = score(0 * few, few)
        if not np.allclose(again, grid[0, :100], atol=1e-4):
            raise SystemExit("the grid and the candidates disagree")
        limit = products(arguments.model, min(grid.size, 100_000), arguments.batch, clock) * grid.size
        limit /= min(grid.size, 100_000)
        records = [
            {
                "name": "grid",
                "pairs": grid.size,
                "seconds": seconds,
                "seconds_for_1000_x_5000": seconds * 5e6 / grid.size,
                "most_seconds": 60 if arguments.model == "tiny" else None,
                "products_seconds": limit,
                "ratio": seconds / limit,
            }
        ]
        timings, limits = [], []
        for _ in range(50):  # in turns, so that a machine whose speed drifts does not decide
            started = clock()
            score(0 * few, few)
            timings.append(clock() - started)
            limits.append(products(arguments.model, 100, 100, clock))
        ratio = float(np.median(np.array(timings) / limits))
        best = float(np.median(timings))
        records.append({"name": "rerank 100", "seconds": best, "products_seconds": np.median(limits), "ratio": ratio})
        records[-1]["most_ratio"] = 3.0
    hardware = provenance(run="", store_fingerprint="", seed=0)["hardware"]
    for record in records:
        record.update(model=arguments.model, hardware=hardware)
        print(json.dumps(record))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
