"""The quality and speed of `frevl classify`, compared with logistic regression and the nearest class mean.

    python bench/quality/few_shot.py [FOLDER ...] [--rows 100 10000 100000] [--dim 512] [--classes 10] [--quick]

A folder holds ``images.npy`` (row i is ``image_ids.json[i]``), ``examples-K.jsonl`` with K examples per class,
``dev.jsonl`` to test on, and if images and texts share a space ``texts.npy`` with ``text_ids.json``, the names of the
classes. Prints a table per folder: accuracy and calibration of every method, of the choice among them, of logistic
regression on unit vectors with C chosen by stratified folds of the examples, and of the nearest class mean.

Then, on synthetic vectors, one JSON record per measurement: one fit of every method over scikit-learn's logistic
regression at one C; building a run from names and examples; the rate of labelling over that of the bare matrix product.
Seconds are CPU seconds, on one thread, so that other jobs matter less; timings alternate in one process, and a ratio is
the median over rounds. Labelling reads, ranks and writes in further threads, so ``ratio_by_clock`` is what a user sees
with a second core and nothing beside; ``ratio`` is the one by CPU seconds. ``goal`` is what we aim at. ``--quick``
takes tiny sizes.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

import frevl
from frevl.evaluation.measures import calibration_interval
from frevl.evaluation.metrics import calibration_gaps
from frevl.models.classification.heads import Features, statistics_of, unit_features
from frevl.models.classification.landmarks import landmark_count
from frevl.provenance import hardware
from frevl.runs.labelling.label_store import label_store
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.terminal import table
from frevl.training.classification.candidates import METHODS, candidates_of

PENALTIES = (1.0, 10.0, 100.0)
ENCODER = "of the folder"
Vectors = tuple[np.ndarray, np.ndarray]


# --- how good -------------------------------------------------------------------------------------------------------


def imported(folder: Path, store: Path) -> Store:
    """A store of the vectors of a folder."""
    for of, one in (("images", "image"), ("texts", "text")):
        if (folder / f"{of}.npy").exists():
            import_embeddings(folder / f"{of}.npy", of=of, ids=folder / f"{one}_ids.json", store=store,
                              encoder=ENCODER, common_space=(folder / "texts.npy").exists())  # fmt: skip
    return Store.open(store)


def labelled(store: Store, file: Path) -> Vectors:
    """Vectors and labels of a file of pairs."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    vectors = store.read_images([row["image"] for row in rows])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.array([row["target"] for row in rows])


def calibration(confidence: np.ndarray, hits: np.ndarray) -> str:
    """Return the calibration error, and without what chance adds with its 95 % interval, in percent."""
    gaps = [calibration_gaps(confidence, hits)]
    plain, debiased = (calibration_interval(gaps, range(len(hits)), debiased=one) for one in (False, True))
    return (
        f"{100 * plain.value:.1f}; {100 * debiased.value:.1f} ({100 * debiased.low:.1f} to {100 * debiased.high:.1f})"
    )


def logistic(x: np.ndarray, y: np.ndarray, penalty: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it stopped before it had converged
        return LogisticRegression(C=penalty, max_iter=200).fit(x, y)


def chosen_penalty(x: np.ndarray, y: np.ndarray) -> float:
    """C by accuracy on held-out examples; 1 where every class has one example."""
    fewest = int(np.unique(y, return_counts=True)[1].min())
    if fewest < 2:
        return PENALTIES[0]
    folds = list(StratifiedKFold(min(3, fewest), shuffle=True, random_state=0).split(x, y))

    def held_out(penalty: float) -> float:
        return float(np.mean([logistic(x[a], y[a], penalty).score(x[b], y[b]) for a, b in folds]))

    return max(PENALTIES, key=held_out)


def by_logistic(own: Vectors, judged: Vectors) -> tuple[float, str, str]:
    penalty = chosen_penalty(*own)
    model = logistic(*own, penalty)
    hits = model.predict(judged[0]) == judged[1]
    error = calibration(model.predict_proba(judged[0]).max(axis=1), hits)
    return 100 * float(hits.mean()), error, f"C {penalty:g}"


def by_means(own: Vectors, judged: Vectors) -> float:
    labels = np.unique(own[1])
    means = np.stack([own[0][own[1] == label].mean(axis=0) for label in labels])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return 100 * float((labels[(judged[0] @ means.T).argmax(axis=1)] == judged[1]).mean())


def quality(folder: Path, seeds: int) -> str:
    """The table of a folder; with several seeds, which divide the examples differently, ``auto`` has a row for each."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        store = imported(folder, Path(scratch) / "store")
        dev = folder / "dev.jsonl"
        judged = labelled(store, dev)
        names = sorted(set(judged[1].tolist())) if (folder / "texts.npy").exists() else None
        if names is not None:
            rows.append(["names alone", "0", *measured(store, names, None, dev, "names", Path(scratch) / "names")])
        for file in sorted(folder.glob("examples-*.jsonl"), key=lambda path: int(path.stem.split("-")[1])):
            shots = file.stem.split("-")[1]
            own = labelled(store, file)
            for method in METHODS:
                if method == "names" or (method == "gaussian" and shots == "1"):
                    continue
                run = Path(scratch) / f"{method}-{shots}"
                rows.append([f"classify {method}", shots, *measured(store, names, file, dev, method, run)])
                for seed in range(1, seeds if method == "auto" and shots != "1" else 1):
                    again = measured(store, names, file, dev, method, Path(scratch) / f"auto-{shots}-{seed}", seed)
                    rows.append([f"classify auto, seed {seed}", shots, *again])
            started = time.perf_counter()
            right, error, setting = by_logistic(own, judged)
            seconds = time.perf_counter() - started
            rows.append(["scikit-learn logistic regression", shots, f"{right:.2f}", error,
                         f"{seconds:.1f}", setting])  # fmt: skip
            rows.append(["nearest class mean, raw", shots, f"{by_means(own, judged):.2f}", "-", "0.0", ""])
    return f"{folder.name}\n" + table(["what", "examples", "accuracy %", "ECE %; debiased", "seconds", "chosen"], rows)


def measured(
    store: Store, names: list[str] | None, examples: Path | None, dev: Path, method: str, folder: Path, seed: int = 0
) -> list[str]:
    """Accuracy, calibration error and seconds of one run on the development images, and what it chose."""
    started = time.perf_counter()
    run = frevl.classify(store, names, run=folder, examples=examples, method=method, seed=seed)
    seconds = time.perf_counter() - started
    result = frevl.evaluate(frevl.Scorer(run, store), dev)
    chosen, (low, high) = run.results["selection"]["chosen"], result.ci95["ece_debiased"] or (float("nan"),) * 2
    error = f"{result.metrics['ece']:.1f}; {result.metrics['ece_debiased']:.1f} ({low:.1f} to {high:.1f})"
    return [f"{result.metrics['accuracy']:.2f}", error, f"{seconds:.1f}", chosen]


# --- how fast -------------------------------------------------------------------------------------------------------


def drawn(rows: int, dim: int, classes: int, seed: int = 0) -> Vectors:
    """Unit vectors around a direction a class, and their classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % classes
    centres = np.random.default_rng(99).standard_normal((classes, dim)).astype(np.float32)
    vectors = 0.35 * centres[labels] + random.standard_normal((rows, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every call, in turns."""
    seconds: dict[str, list[float]] = {what: [] for what in calls}
    for _ in range(rounds):
        for what, call in calls.items():
            started = time.process_time()
            call()
            seconds[what].append(time.process_time() - started)
    return seconds


def fits(given: argparse.Namespace) -> list[dict]:
    """One fit of every method over one of scikit-learn's logistic regression."""
    records = []
    for rows in given.rows:
        x, y = drawn(rows, given.dim, given.classes)
        tensor, labels = torch.from_numpy(x), torch.from_numpy(y)
        features = Features(tensor, unit_features(tensor, statistics_of(tensor)), None)
        candidates_of("probe", has_names=False)[0].fit(
            features.select(torch.arange(classes := given.classes)), labels[:classes], classes, names=0.0
        )  # what is loaded at the first call does not count
        calls: dict[str, Callable[[], object]] = {"logistic": lambda x=x, y=y: logistic(x, y, 10.0)}
        for method in METHODS[2:]:
            candidate = candidates_of(method, has_names=False)[-1]
            count = landmark_count(rows, given.classes) if candidate.beyond else 0
            if count:
                few = replace(candidate, settings={**candidate.settings, "landmarks": count})
                calls[f"{method} by landmarks"] = lambda one=few, f=features, y=labels: one.fit(
                    f._replace(standard=f.standard.clone()), y, given.classes, names=0.0
                )  # of new features, because fits of the same ones share most of the work
            if candidate.most is None or rows <= candidate.most:
                calls[method] = lambda one=candidate, f=features, y=labels: one.fit(f, y, given.classes, names=0.0)
        seconds = timed(calls, 1 if rows > 20_000 else given.rounds)
        for method in list(calls)[1:]:
            pairs = zip(seconds[method], seconds["logistic"], strict=True)
            records.append({
                "what": f"one fit of {method} over scikit-learn's logistic regression",
                "rows": rows, "dim": given.dim, "classes": given.classes,
                "ratio": statistics.median(a / b for a, b in pairs), "goal": 1.0,
                "seconds": statistics.median(seconds[method]),
                "logistic_seconds": statistics.median(seconds["logistic"]),
            })  # fmt: skip
    return records


def made_store(folder: Path, rows: int, dim: int, classes: int) -> tuple[Store, Path, list[str]]:
    """A store of synthetic images and names in one space, three examples per class, and the names."""
    folder.mkdir(parents=True, exist_ok=True)
    vectors, labels = drawn(rows, dim, classes)
    names = [f"class {number}" for number in range(classes)]
    of_names = drawn(classes, dim, classes, seed=1)[0]
    for of, one, values, ids in (
        ("images", "image", vectors, [f"{row}.png" for row in range(rows)]),
        ("texts", "text", of_names, names),
    ):
        np.save(folder / f"{of}.npy", values)
        (folder / f"{one}_ids.json").write_text(json.dumps(ids))
    examples = folder / "examples-3.jsonl"
    examples.write_text("".join(
        json.dumps({"image": f"{row}.png", "target": names[labels[row]]}) + "\n" for row in range(3 * classes)
    ))  # fmt: skip
    return imported(folder, folder / "store"), examples, names


def both_clocks(call: Callable[[], object]) -> np.ndarray:
    """CPU seconds and seconds by the clock of one call; labelling uses other threads beside that of the product."""
    before = time.process_time(), time.perf_counter()
    call()
    return np.array([time.process_time() - before[0], time.perf_counter() - before[1]])


def building_and_labelling(given: argparse.Namespace) -> list[dict]:
    """Seconds to build a run of names and three examples per class, and its labelling next to the matrix product."""
    classes = given.many_classes
    with tempfile.TemporaryDirectory() as scratch:
        store, examples, names = made_store(Path(scratch), given.label_rows, given.dim, classes)
        started = time.process_time()
        run = frevl.classify(store, names, run=Path(scratch) / "run", examples=examples)
        seconds = time.process_time() - started
        records = [{
            "what": "a run of names and three examples a class, chosen among all methods",
            "classes": classes, "examples": 3 * classes, "dim": given.dim, "seconds": seconds, "goal_seconds": 5.0,
            "chosen": run.results["selection"]["chosen"],
        }]  # fmt: skip
        for method in ("names", "gaussian"):
            of_names = method == "names"
            run = frevl.classify(store, names, run=Path(scratch) / method, method=method,
                                 examples=None if of_names else examples)  # fmt: skip
            scorer = frevl.Scorer(run, store)
            some = torch.from_numpy(store.read_images(store.ids("image")[:4_096]))
            weight = torch.from_numpy(drawn(classes, given.dim, classes)[0])
            scorer.label(store.ids("image")[:4_096])  # what is loaded at the first call does not count
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            out = Path(scratch) / f"{method}.jsonl"
            products, labelling = [], []
            for _ in range(given.rounds):
                products += [both_clocks(lambda a=some, b=weight: a @ b.T) / len(some) for _ in range(3)]
                labelling += [both_clocks(lambda one=scorer, out=out: label_store(one, out)) / given.label_rows]
            (product, product_by_clock), (each, each_by_clock) = (
                np.median(seconds, axis=0).tolist() for seconds in (products, labelling)
            )
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            records.append({
                "what": f"labelling by {method}: rate over that of the bare matrix product",
                "rows": given.label_rows, "classes": classes, "dim": given.dim,
                "ratio": product / each, "ratio_by_clock": product_by_clock / each_by_clock, "goal": 0.6,
                "images_per_second": 1 / each_by_clock,
                "product_gflops": 2e-9 * classes * given.dim / product,
                "grown_mb": (after - before) / 1024,
            })  # fmt: skip
    return records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="Folders of vectors, for the tables.")
    parser.add_argument("--rows", nargs="*", type=int, default=[100, 10_000, 100_000], help="Of the fits.")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10, help="Of the fits.")
    parser.add_argument("--many-classes", type=int, default=1_000, help="Of building and labelling.")
    parser.add_argument("--label-rows", type=int, default=100_000, help="Pictures that are labelled.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="Seeds of auto in the tables.")
    parser.add_argument("--quick", action="store_true", help="Tiny sizes, to see that everything runs.")
    parser.add_argument("--no-speed", dest="speed", action="store_false", help="Only the tables.")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if given.quick:
        given.rows, given.dim, given.classes, given.rounds = [60], 16, 3, 1
        given.many_classes, given.label_rows = 12, 200
    for folder in given.folders:
        print(quality(folder, given.seeds), end="\n\n", flush=True)
    for measure in (fits, building_and_labelling) if given.speed else ():
        for record in measure(given):
            print(json.dumps({**record, "threads": 1, "hardware": hardware()}), flush=True)


if __name__ == "__main__":
    main()
