"""How fast pairs are scored: a grid of 1,000 images and 5,000 texts, and a rerank of 100 candidates.

Run: ``python bench/retrieval.py [--model tiny] [--images 1000] [--texts 5000] [--json FILE]``. The ratio is to the time
of the network's matrix products alone, of the same sizes, measured in the same process. Random weights and embeddings:
the work is the same. ``--protocol 5k`` measures time and memory of ranking 5,000 images and 25,000 texts by vectors.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from frevl.batches import EmbeddedPairs
from frevl.fusion import PRESETS, Fusion
from frevl.itemwise import by_item
from frevl.provenance import provenance
from frevl.retrieval import dot_products, full_grid, matches_of, reranked

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
    network = Fusion.from_preset(model, image_dim=IMAGE_DIM, text_dim=TEXT_DIM, outputs=1).eval().folded()
    with torch.inference_mode():
        logits = by_item(network, embedded, batch, "cpu")

    def score(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            parts = [
                logits(torch.from_numpy(rows[start : start + batch]), torch.from_numpy(columns[start : start + batch]))
                for start in range(0, len(rows), batch)
            ]
            return torch.cat(parts)[:, 0].numpy()

    return score


def products(model: str, pairs: int, batch: int) -> float:
    """Seconds of the matrix products that the pairs need: ``W_o W_v`` and two-layer parts of each block, the head."""
    sizes = PRESETS[model]
    width, inner, head = sizes["width"], sizes["ffn_width"], sizes["head_width"]
    shapes = [(width, width), (width, inner), (inner, width)] * 2 * sizes["layers"] + [(4 * width, head), (head, 1)]
    weights = [(torch.randn(n, m), torch.randn(batch, n)) for n, m in shapes]
    repeats = max(1, pairs // batch)
    with torch.inference_mode():
        for weight, x in weights:
            x @ weight
        started = time.perf_counter()
        for _ in range(repeats):
            for weight, x in weights:
                x @ weight
    return (time.perf_counter() - started) * pairs / (repeats * batch)


def protocol_5k() -> dict:
    """Rank 5,000 x 25,000 by vectors of 2,048 numbers and rerank 50 candidates by a function that costs nothing."""
    random = np.random.default_rng(0)
    images, texts = (random.standard_normal((n, 2048), np.float32) for n in (5_000, 25_000))
    of_image, of_text = matches_of(np.arange(25_000) // 5, np.arange(25_000), 5_000, 25_000)
    started = time.perf_counter()
    grid = dot_products(images, texts)
    reranked(grid, of_image, of_text, depth=50, score=lambda rows, columns: grid[rows, columns])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"name": "5k protocol", "seconds": time.perf_counter() - started, "peak_memory_gib": peak, "limit": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--protocol", choices=["grid", "5k"], default="grid")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.protocol == "5k":
        records = [protocol_5k()]
    else:
        embedded = items(arguments.images, arguments.texts)
        score = scorer(arguments.model, embedded, arguments.batch)
        started = time.perf_counter()
        grid = full_grid(arguments.images, arguments.texts, score)
        seconds = time.perf_counter() - started
        few = np.arange(100, dtype=np.int64)
        again = score(0 * few, few)
        if not np.allclose(again, grid[0, :100], atol=1e-4):
            raise SystemExit("the grid and the candidates disagree")
        limit = products(arguments.model, grid.size, arguments.batch)
        records = [
            {"name": "grid", "pairs": grid.size, "seconds": seconds, "limit_seconds": limit, "ratio": seconds / limit}
        ]
        timings = []
        for _ in range(50):
            started = time.perf_counter()
            score(0 * few, few)
            timings.append(time.perf_counter() - started)
        limit = min(products(arguments.model, 100, 100) for _ in range(50))
        best = float(np.median(timings))
        records.append({"name": "rerank 100", "seconds": best, "limit_seconds": limit, "ratio": best / limit})
    hardware = provenance(run="", store_fingerprint="", seed=0)["hardware"]
    for record in records:
        record.update(model=arguments.model, hardware=hardware)
        print(json.dumps(record))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(records, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
