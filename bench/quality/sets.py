"""How often prediction sets contain the right class, next to what chance allows.

    python bench/quality/sets.py STORE PAIRS [--model kernel ...] [--way kept halves] [--task classification]
                                 [--dev PAIRS] [--repeats 50] [--seed 0] [--levels 0.8 0.9]

``halves``: a run is trained on half of the images (with ``--dev``, on all of PAIRS) and scores the others (those of
``--dev``). These are divided into two halves ``--repeats`` times: sets are measured on one and judged on the other.
``kept``: for each repeat a run is trained on another half of the images, and its sets, by the scores that it keeps
itself, are judged on the other half. The model ``classify`` is that of `frevl.classify` with the pairs as examples.

Near copies and the pairs of one image are kept together. Prints one JSON record per model, way and level: coverage in
percent (all judged pairs count equally), how many repeats are off by more than 3 points, and ``chance``, how many of
as many repeats would be, on average and at most in 95 of 100 cases, if the scores measured on and judged were drawn
independently from one distribution, image by image. With one pair per image that is the beta-binomial distribution
(Vovk 2012); else the variances of the image means are used. A set always holds the likeliest class, in ``chance`` too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binom

import frevl
from frevl.data.pairs import Pairs, read_pairs, with_targets
from frevl.runs.calibration import ConformalScores, nonconformity
from frevl.runs.prediction_sets import right_classes, set_probabilities
from frevl.store.grouping.groups import group_pairs
from frevl.store.reader import Store

OFF, DRAWS = 3.0, 2_000


@dataclass(frozen=True)
class Judged:
    """Scored pairs: ``(n, classes)`` probabilities and which classes are right, and ``(n,)`` numbers of clusters."""

    probabilities: np.ndarray
    right: np.ndarray
    clusters: np.ndarray

    def some(self, rows: np.ndarray) -> Judged:
        """Some of the pairs."""
        return Judged(self.probabilities[rows], self.right[rows], self.clusters[rows])

    def covered(self, scores: ConformalScores, level: float) -> np.ndarray:
        """Whether each pair's set contains a right class."""
        return (scores.sets(self.probabilities, level) & self.right).any(axis=1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("store", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("--dev", type=Path)
    parser.add_argument("--task", default="classification", choices=["classification", "matching"])
    parser.add_argument("--model", nargs="+", default=["kernel"])
    parser.add_argument("--way", nargs="+", default=["kept", "halves"], choices=["kept", "halves"])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--levels", nargs="+", type=float, default=[0.8, 0.9])
    given = parser.parse_args(argv)
    store = Store.open(given.store)
    pairs, dev = (one and grouped(store, one) for one in (given.pairs, given.dev))
    for model in given.model:
        for way in given.way:
            repeats = list((kept if way == "kept" else halves)(store, pairs, dev, model, given))
            for level in given.levels:
                about = {"pairs": given.pairs.stem, "model": model, "way": way, "level": level}
                print(json.dumps(about | measured(repeats, level)), flush=True)


def grouped(store: Store, file: Path) -> Pairs:
    """The pairs of a file that have a target, with their clusters."""
    pairs = with_targets(read_pairs(file))[0]
    towers = [tower for tower in store.towers.values() if tower.modality == "image"]
    return group_pairs(store, [pairs], towers=towers, purpose="On one side")[0][0]


def kept(
    store: Store, pairs: Pairs, dev: Pairs | None, model: str, given: argparse.Namespace
) -> Iterator[tuple[ConformalScores, Judged]]:
    for seed in range(given.seed, given.seed + given.repeats):
        inside = half_of(np.array(pairs.clusters), seed)
        trained = pairs if dev is not None else pairs.select(np.flatnonzero(inside).tolist())
        judged = dev if dev is not None else pairs.select(np.flatnonzero(~inside).tolist())
        with tempfile.TemporaryDirectory() as folder:
            scorer = scorer_of(store, trained, model, given.task, Path(folder), seed)
            record = scorer.run.results["prediction_sets"]
            yield ConformalScores.from_record(record), scored(scorer, judged)


def halves(
    store: Store, pairs: Pairs, dev: Pairs | None, model: str, given: argparse.Namespace
) -> Iterator[tuple[ConformalScores, Judged]]:
    inside = half_of(np.array(pairs.clusters), given.seed)
    trained = pairs if dev is not None else pairs.select(np.flatnonzero(inside).tolist())
    others = dev if dev is not None else pairs.select(np.flatnonzero(~inside).tolist())
    with tempfile.TemporaryDirectory() as folder:
        pool = scored(scorer_of(store, trained, model, given.task, Path(folder), given.seed), others)
    for seed in range(given.seed, given.seed + given.repeats):
        inside = half_of(pool.clusters, seed)
        own = pool.some(inside)
        yield ConformalScores.fit(own.probabilities, own.right, own.clusters), pool.some(~inside)


def half_of(clusters: np.ndarray, seed: int) -> np.ndarray:
    """Whether each pair is in a random half of the clusters."""
    names, at = np.unique(clusters, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) < len(names) // 2)[at]


def scorer_of(store: Store, pairs: Pairs, model: str, task: str, folder: Path, seed: int) -> frevl.Scorer:
    if model == "classify":
        run = frevl.classify(store, run=folder / "run", examples=pairs, seed=seed)
    else:
        run = frevl.train(store, pairs, run=folder / "run", task=task, model=model, seed=seed)
    return frevl.Scorer.open(run.path, store=store)


def scored(scorer: frevl.Scorer, pairs: Pairs) -> Judged:
    numbers = np.unique(np.array(pairs.clusters), return_inverse=True)[1]
    return Judged(set_probabilities(scorer, pairs), right_classes(scorer, pairs), numbers)


def measured(repeats: Sequence[tuple[ConformalScores, Judged]], level: float) -> dict[str, Any]:
    """The record of one level."""
    found, sizes, misses, alone, each = [], [], [], [], []
    random = np.random.default_rng(0)
    for scores, judged in repeats:
        found.append(100 * judged.covered(scores, level).mean())
        sizes.append(scores.sets(judged.probabilities, level).sum(axis=1).mean())
        best = judged.probabilities.argmax(axis=1)
        alone.append(100 * judged.right[np.arange(len(best)), best].mean())
        each.append(len(best) / len(np.unique(judged.clusters)))
        misses.append(miss_rate(scores, judged, level, random))
    off = int((np.abs(np.array(found) - 100 * level) > OFF).sum())
    rate = float(np.mean(misses))
    return {
        "measured_on": int(np.median([scores.count for scores, _ in repeats])),
        "judged_on": int(np.median([len(np.unique(judged.clusters)) for _, judged in repeats])),
        "pairs_per_image": round(float(np.mean(each)), 1),
        "likeliest_right": round(float(np.mean(alone)), 1),
        "coverage": round(float(np.mean(found)), 2),
        "error": round(float(np.std(found, ddof=1)) / len(found) ** 0.5, 2),
        "lowest": round(min(found), 1),
        "highest": round(max(found), 1),
        "off": off,
        "chance": [round(rate * len(found), 1), int(binom.ppf(0.95, len(found), rate))],
        "classes": round(float(np.mean(sizes)), 2),
    }


def miss_rate(scores: ConformalScores, judged: Judged, level: float, random: np.random.Generator) -> float:
    """How often the coverage is off by more than `OFF` points if the judged pairs are the whole truth."""
    clusters, at, sizes = np.unique(judged.clusters, return_inverse=True, return_counts=True)
    measured, n = scores.count, len(at)
    rank = int(np.ceil((measured + 1) * level - 1e-9))
    if rank > measured:
        return float(100 * (1 - level) > OFF)
    own = np.where(judged.right, nonconformity(judged.probabilities, scores.kind), np.inf).min(axis=1)
    order = np.argsort(own, kind="stable")  # in which the right classes enter the sets
    reached = np.cumsum((1 / sizes)[at][order]) / len(clusters)

    def entered(quantiles: np.ndarray) -> np.ndarray:
        """The share of the pairs whose right class is in at these quantiles of the scores."""
        values = own[order][np.minimum(np.searchsorted(reached, quantiles - 1e-9), n - 1)]
        return np.searchsorted(own[order], values, side="right") / n

    if n == len(clusters):
        truth = entered(random.beta(rank, measured + 1 - rank, DRAWS))
        coverage = random.binomial(n, truth) / n
    else:
        inside = own <= own[order][np.searchsorted(reached, level - 1e-9)]
        of_images = (np.bincount(at, weights=inside) / sizes).std() / measured**0.5
        truth = entered(random.normal(level * (measured + 1) / measured, of_images, DRAWS))
        sums = np.bincount(at, weights=inside) - inside.mean() * sizes
        coverage = random.normal(truth, np.linalg.norm(sums) / n)
    return float((np.abs(100 * (coverage - level)) > OFF).mean())


if __name__ == "__main__":
    main()
