"""What `frevl select` gains for the same number of labels, and what doubt adds to a probability.

    python bench/quality/trust.py FOLDER [FOLDER ...] [--part select doubt] [--by mixed ...] [--seeds 5] [--rounds 3]

A folder holds ``images.npy`` (row i is ``image_ids.json[i]``), ``examples-K.jsonl`` with K examples per class,
``dev.jsonl``, and where images and texts share a space ``texts.npy`` with ``text_ids.json``, the names of the classes.

``select``, where there are four examples per class and no names: half of the development images form the pool and the
other half the test set, divided anew for each seed. In every round, one label per class is bought, at random or by
``--by``, and ``classify`` is trained again. Points over random are paired by seed, with the t interval of their mean.

``doubt``: AUROC in percent, with bootstrap intervals by image. Wrong answers: the log odds of the probability, less
those of the doubt at a weight that is chosen on the other half of the images, 0 among them. Images of no known
class: those of a random half of the classes, which is taken away (as many draws as seeds), and of the other folders
given. Both together are then the log odds of the probability less half those of the doubt: nothing is fitted, as nobody
has examples of what is foreign.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.special import logit
from scipy.stats import rankdata, t

import frevl
from frevl.runs.labelling.selecting import STRATEGIES, select_pairs
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store
from frevl.terminal import table

ENCODER = "of the folder"
REPLICAS, FOREIGN, WEIGHTS = 500, 1_000, (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
Rows = list[dict[str, str]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--part", nargs="+", default=["select", "doubt"], choices=["select", "doubt"])
    parser.add_argument("--by", nargs="+", default=[STRATEGIES[0]], choices=STRATEGIES)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        stores = {folder: imported(folder, scratch / f"store-{n}") for n, folder in enumerate(given.folders)}
        for folder, store in stores.items():
            if "select" in given.part and (folder / "examples-4.jsonl").exists() and not store.texts:
                print(gains(folder, store, scratch, given.by, given.seeds, given.rounds), flush=True)
            if "doubt" in given.part:
                others = {other.name: foreign(stores[other]) for other in given.folders if other != folder}
                print(doubts(folder, store, scratch, others, given.seeds), flush=True)


def imported(folder: Path, store: Path) -> Store:
    """A store of the vectors of a folder."""
    for of, one in (("images", "image"), ("texts", "text")):
        if (folder / f"{of}.npy").exists():
            import_embeddings(folder / f"{of}.npy", of=of, ids=folder / f"{one}_ids.json", store=store,
                              encoder=ENCODER, common_space=True)  # fmt: skip
    return Store.open(store)


def rows_of(file: Path) -> Rows:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def written(file: Path, rows: Sequence[dict[str, str]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def numbered(scratch: Path) -> Path:
    """A folder that does not exist yet."""
    return scratch / f"run-{len(list(scratch.glob('run-*')))}"


# --- what to label next ---------------------------------------------------------------------------------------------


def gains(folder: Path, store: Store, scratch: Path, ways: Sequence[str], seeds: int, rounds: int) -> str:
    """The table of a folder: accuracy after every round, and points over random at the end."""
    known, dev = rows_of(folder / "examples-4.jsonl"), rows_of(folder / "dev.jsonl")
    found: dict[str, list[list[float]]] = {way: [] for way in ("random", *ways)}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(dev))
        pool, judged = ([dev[row] for row in part] for part in np.array_split(order, 2))
        for way, own in found.items():
            own.append(list(bought(store, scratch, way, known, pool, judged, seed, rounds)))
    lines = []
    for way, own in found.items():
        paired = np.array(own)[:, -1] - np.array(found["random"])[:, -1]
        lines.append([way, *(f"{one:.2f}" for one in np.mean(own, axis=0)), spread(paired) if way != "random" else ""])
    head = ["chosen by", *(f"round {n}" for n in range(rounds + 1)), "points over random"]
    return f"{folder.name}: {len(dev) // 2} pictures in the pool, {seeds} seeds\n" + table(head, lines)


def bought(
    store: Store, scratch: Path, way: str, known: Rows, pool: Rows, judged: Rows, seed: int, rounds: int
) -> Iterator[float]:
    """Accuracy in percent before the first round and after each."""
    truth = {row["image"]: row["target"] for row in pool}
    count, random = len({row["target"] for row in known}), np.random.default_rng(seed)
    for number in range(rounds + 1):
        run = frevl.classify(store, run=numbered(scratch), examples=written(scratch / "e.jsonl", known), seed=seed)
        scorer = frevl.Scorer.open(run.path, store=store)
        said = scorer.label([row["image"] for row in judged])
        yield 100 * float(np.mean([one.label == row["target"] for one, row in zip(said, judged, strict=True)]))
        if number == rounds:
            return
        if way == "random":
            left = sorted(truth.keys() - {row["image"] for row in known})
            chosen = [left[row] for row in random.permutation(len(left))[:count]]
        else:
            file = written(scratch / "p.jsonl", [{"image": row["image"]} for row in pool])
            chosen = [line["image"] for line in select_pairs(scorer, file, k=count, by=way).lines]
        known = known + [{"image": image, "target": truth[image]} for image in chosen]


def spread(paired: np.ndarray) -> str:
    if len(paired) < 2:
        return f"{paired.mean():+.2f}"
    half = float(t.ppf(0.975, len(paired) - 1)) * paired.std(ddof=1) / math.sqrt(len(paired))
    return f"{paired.mean():+.2f} [{paired.mean() - half:+.2f}, {paired.mean() + half:+.2f}]"


# --- doubt ----------------------------------------------------------------------------------------------------------


def foreign(store: Store) -> dict[str, np.ndarray]:
    """Vectors of images of another folder, as a scorer takes them."""
    ids = store.ids("image")[-FOREIGN:]
    return {f"foreign/{id_}": one[None] for id_, one in zip(ids, store.read_images(ids), strict=True)}


def doubts(folder: Path, store: Store, scratch: Path, others: dict[str, dict[str, np.ndarray]], seeds: int) -> str:
    """The table of a folder."""
    lines, dev = [], rows_of(folder / "dev.jsonl")
    names = sorted({row["target"] for row in dev}) if store.texts else None
    for file in sorted(folder.glob("examples-*.jsonl"), key=lambda path: int(path.stem.split("-")[1])):
        shots, examples = file.stem.split("-")[1], rows_of(file)
        run = frevl.classify(store, names, run=numbered(scratch), examples=file)
        scorer = frevl.Scorer.open(run.path, store=store)
        ids = [row["image"] for row in dev]
        p, d, labels = asked(scorer, ids, {})
        wrong = np.array([label != row["target"] for label, row in zip(labels, dev, strict=True)])
        lines.append([shots, "wrong answers", *compared(wrong, -logit(p), logit(d), weighed(wrong, p, d))])
        for other, images in others.items():
            p2, d2, _ = asked(scorer, list(images), images)
            strange = np.arange(len(p) + len(p2)) >= len(p)
            both_p, both_d = logit(np.append(p, p2)), logit(np.append(d, d2))
            lines.append([shots, other, *compared(strange, -both_p, both_d, both_d / 2 - both_p)])
        draws = [taken_away(store, scratch, dev, examples, names, seed) for seed in range(seeds)]
        strange, p, d = (np.concatenate(part) for part in zip(*draws, strict=True))
        draw = np.repeat(np.arange(seeds), len(dev))
        lines.append([shots, "half of the classes", *compared(strange, -p, d, d / 2 - p, draw)])
    head = ["examples", "found", "probability", "doubt", "both", "both less probability"]
    return f"{folder.name}\n" + table(head, lines)


def asked(
    scorer: frevl.Scorer, ids: list[str], images: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Probability of the likeliest class and doubt, kept off 0 and 1, and the class."""
    said = scorer.name_classes(scorer.score(ids, images=images))
    p = np.array([one.probability for one in said], np.float64)
    d = scorer.doubt(ids, images=images).astype(np.float64)
    return p.clip(1e-6, 1 - 1e-6), d.clip(1e-6, 1 - 1e-6), [one.label for one in said]


def weighed(wrong: np.ndarray, p: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The log odds that an answer is wrong, with doubt at the weight that is right on the other half of the images.

    0 unless another is better there by more than the standard error of the difference.
    """
    half, found = np.random.default_rng(0).permutation(len(p)) < len(p) // 2, np.zeros(len(p))
    for own in (half, ~half):
        truth, by_p, by_d = wrong[~own], -logit(p[~own]), logit(d[~own])
        best = max(WEIGHTS, key=lambda w: auroc(truth, by_p + w * by_d))
        random = np.random.default_rng(0)
        replicas = [random.integers(0, len(truth), len(truth)) for _ in range(REPLICAS // 5)]
        gaps = [auroc(truth[r], (by_p + best * by_d)[r]) - auroc(truth[r], by_p[r]) for r in replicas]
        weight = best if np.mean(gaps) > np.std(gaps) else 0.0
        found[own] = weight * logit(d[own]) - logit(p[own])
    return found


def taken_away(
    store: Store, scratch: Path, dev: Rows, examples: Rows, names: list[str] | None, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each image is of a class that was taken away, and the log odds of probability and of doubt."""
    labels = sorted({row["target"] for row in dev})
    kept = {labels[row] for row in np.random.default_rng(seed).permutation(len(labels))[: len(labels) // 2]}
    file = written(scratch / "e.jsonl", [row for row in examples if row["target"] in kept])
    some = None if names is None else sorted(kept)
    run = frevl.classify(store, some, run=numbered(scratch), examples=file, seed=seed)
    p, d, _ = asked(frevl.Scorer.open(run.path, store=store), [row["image"] for row in dev], {})
    return np.array([row["target"] not in kept for row in dev]), logit(p), logit(d)


def compared(
    positive: np.ndarray, by_p: np.ndarray, by_d: np.ndarray, both: np.ndarray, draw: np.ndarray | None = None
) -> list[str]:
    """AUROC by each, and the difference of the last to the first with its interval; means over draws."""
    draws = np.zeros(len(positive), int) if draw is None else draw
    parts = [draws == one for one in np.unique(draws)]

    def mean(score: np.ndarray, rows: np.ndarray | None = None) -> float:
        own = [np.flatnonzero(part) if rows is None else np.flatnonzero(part)[rows] for part in parts]
        return 100 * float(np.mean([auroc(positive[one], score[one]) for one in own]))

    random, pictures = np.random.default_rng(0), int(parts[0].sum())  # the same images in every draw
    replicas = [random.integers(0, pictures, pictures) for _ in range(REPLICAS)]
    gaps = [mean(both, rows) - mean(by_p, rows) for rows in replicas]
    low, high = np.quantile(gaps, [0.025, 0.975])
    gap = mean(both) - mean(by_p)
    return [*(f"{mean(one):.2f}" for one in (by_p, by_d, both)), f"{gap:+.2f} [{low:+.2f}, {high:+.2f}]"]


def auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """How often a positive has the larger score than a negative; ties count half. Of one kind alone a half."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return 0.5
    ranks = rankdata(score)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


if __name__ == "__main__":
    main()
