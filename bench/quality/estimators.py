"""The estimators of `frevl.estimators` against scikit-learn's logistic regression, on the same vectors.

    python bench/quality/estimators.py [FILE.npz ...] [--rows 100 10000 100000] [--dim 512] [--classes 10] [--quick]

A file holds ``x`` (n, dim), ``y`` (n,) and optionally ``g`` (n,), groups that stay together; a fifth of the groups is
tested on. Without files, vectors are drawn: one direction a class, or twenty ("many") that no linear model can tell
apart well. One JSON record per estimator: accuracy and seconds of its whole ``fit``, which compares settings and
calibrates, over three baselines: logistic regression on unit vectors with C of four chosen on a held-out tenth, or by
five folds (``GridSearchCV``; up to 20,000 rows), and then fitted to all rows, and one fit at C = 1. ``points`` is the
difference of accuracy to the better of the first and the last, with its 95 % interval by test row. Seconds are CPU
seconds, one thread, one process; a ratio is the median over rounds in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold, train_test_split

from frevl.estimators import EmbeddingClassifier, FusionClassifier
from frevl.provenance import hardware

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
_MOST_FOLDED = 20_000
ESTIMATORS: dict[str, Callable[[int], Any]] = {
    "FusionClassifier(model='linear')": lambda seed: FusionClassifier(model="linear", random_state=seed),
    "FusionClassifier(model='kernel')": lambda seed: FusionClassifier(model="kernel", random_state=seed),
    "EmbeddingClassifier(method='probe')": lambda seed: EmbeddingClassifier(method="probe", random_state=seed),
    "EmbeddingClassifier(method='kernel')": lambda seed: EmbeddingClassifier(method="kernel", random_state=seed),
    "EmbeddingClassifier()": lambda seed: EmbeddingClassifier(random_state=seed),
}
Data = tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]
"""Rows, labels and groups to fit on, rows and labels to test on."""


def drawn(rows: int, tested: int, dim: int, classes: int, seed: int, *, directions: int, noise: float) -> Data:
    """Unit vectors around ``directions`` directions of every class."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, directions, dim)).astype(np.float32)
    y = np.arange(rows + tested) % classes
    x = noise * centres[y, random.integers(0, directions, len(y))] + random.standard_normal((len(y), dim), np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x[:rows], y[:rows], None, x[rows:], y[rows:]


def from_file(file: Path, seed: int) -> Data:
    """The rows of a file, with a fifth of the groups set apart."""
    with np.load(file) as given:
        x, y = given["x"].astype(np.float32), given["y"]
        groups = given["g"] if "g" in given else np.arange(len(y))
    names, groups = np.unique(groups, return_inverse=True)
    out = np.isin(groups, np.random.default_rng(seed).permutation(len(names))[: len(names) // 5])
    return x[~out], y[~out], groups[~out], x[out], y[out]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def logistic(x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=200).fit(x, y)


def chosen_logistic(x: np.ndarray, y: np.ndarray) -> LogisticRegression:
    """Logistic regression with C chosen on a held-out tenth, fitted again on all rows."""
    fit, fit_y, held, held_y = (part for part in _split(x, y))
    best = max(PENALTIES, key=lambda penalty: float(logistic(fit, fit_y, penalty).score(held, held_y)))
    return logistic(x, y, best)


def by_folds(x: np.ndarray, y: np.ndarray) -> GridSearchCV:
    """Logistic regression with C chosen by five folds, fitted again on all rows."""
    folds = KFold(5, shuffle=True, random_state=0)  # of few rows, a class may have less than one a fold
    return GridSearchCV(LogisticRegression(max_iter=200), {"C": PENALTIES}, cv=folds).fit(x, y)


def _split(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    fit, held, fit_y, held_y = train_test_split(x, y, test_size=0.1, random_state=0)
    return fit, fit_y, held, held_y


def compared(name: str, data: Data, seed: int, rounds: int, only: str = "") -> list[dict[str, Any]]:
    """A record for every estimator whose name contains ``only``."""
    chosen = {what: make for what, make in ESTIMATORS.items() if only in what}
    x, y, groups, test_x, test_y = data
    fitted: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {}
    calls: dict[str, Callable[[], Any]] = {
        "one": lambda: logistic(unit(x), y, 1.0),
        "chosen": lambda: chosen_logistic(unit(x), y),
        **({"folds": lambda: by_folds(unit(x), y)} if len(y) <= _MOST_FOLDED else {}),
        **{what: lambda make=make: make(seed).fit(x, y, groups=groups) for what, make in chosen.items()},
    }
    for _ in range(rounds):
        for what, call in calls.items():
            started = time.process_time()
            fitted[what] = call()
            seconds.setdefault(what, []).append(time.process_time() - started)
    baselines = {what: fitted[what].predict(unit(test_x)) == test_y for what in ("one", "chosen")}
    best = max(baselines.values(), key=lambda hits: float(hits.mean()))
    records = []
    for what in chosen:
        hits = fitted[what].predict(test_x) == test_y
        gain = 100 * (hits.astype(float) - best)
        reach = 1.96 * float(gain.std()) / len(gain) ** 0.5

        def ratio(to: str, own: list[float] = seconds[what]) -> float:
            return statistics.median(a / b for a, b in zip(own, seconds[to], strict=True))

        records.append({
            "what": what, "data": name, "rows": len(y), "dim": x.shape[1], "classes": len(np.unique(y)), "seed": seed,
            "accuracy": 100 * float(hits.mean()), "points": float(gain.mean()),
            "interval": [float(gain.mean()) - reach, float(gain.mean()) + reach], "goal_points": -1.0,
            "ratio": ratio("chosen"), "ratio_to_one_fit": ratio("one"), "goal": 1.0,
            "ratio_to_folds": ratio("folds") if "folds" in seconds else None,
            "seconds": statistics.median(seconds[what]), "logistic_seconds": statistics.median(seconds["chosen"]),
            "logistic_accuracy": {one: 100 * float(hits.mean()) for one, hits in baselines.items()},
        })  # fmt: skip
    return records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="Arrays x, y and g; none: vectors are drawn.")
    parser.add_argument("--rows", nargs="*", type=int, default=[100, 10_000, 100_000], help="Of drawn vectors.")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--tested", type=int, default=5_000, help="Rows to test on, of drawn vectors.")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3, help="At most 20,000 rows; above, one round.")
    parser.add_argument("--only", default="", help="Estimators whose name contains this.")
    parser.add_argument("--quick", action="store_true", help="Tiny sizes, to see that everything runs.")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.quick:
        given.rows, given.dim, given.classes, given.tested, given.seeds, given.rounds = [60], 16, 3, 50, 1, 1
    warm = drawn(60, 1, given.dim, given.classes, 0, directions=1, noise=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that logistic regression stopped before it had converged
        compared("", warm, 0, 1, given.only)  # what is loaded at the first call does not count
        for seed in range(given.seeds):
            every = [(file.stem, from_file(file, seed)) for file in given.files] or [
                (name, drawn(rows, given.tested, given.dim, given.classes, seed, directions=directions, noise=noise))
                for rows in given.rows
                for name, directions, noise in (("drawn", 1, 0.1), ("drawn, many", 20, 0.3))
            ]
            for name, data in every:
                rounds = given.rounds if len(data[1]) <= _MOST_FOLDED else 1
                for record in compared(name, data, seed, rounds, given.only):
                    print(json.dumps({**record, "threads": 1, "hardware": hardware()}), flush=True)


if __name__ == "__main__":
    main()
