"""How well `frevl curate` finds wrong captions and labels, and what cleaning is worth to a training.

    python bench/quality/curation.py DIR [--part match training ...] [--images 1000] [--seeds 0 1 2] [--share 0.2]

``match`` and ``training`` need in DIR ``store`` (a store of captioned images), ``train.jsonl`` and, for ``training``,
``dev.jsonl`` with other images; ``labels`` needs ``classes.jsonl``, lines with a target. A part whose files are not
there is left out. Prints one JSON record per measurement, intervals over images.

- ``match``: a share of the captions is exchanged among the images. AUROC of the exchanged ones by the out-of-fold
  probability, by the same model after it has learned from the lines themselves, and how far they differ.
- ``training``: mean of the six recalls of `dual` on other images after learning from clean captions, from exchanged
  ones, from what ``curate --drop match`` keeps, and from as many lines at random. What is lost, and won back.
- ``labels``: a tenth of the labels is exchanged for another one of the file: precision and recall of ``--drop label``,
  and how many labels are flagged where none is exchanged.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import frevl
from frevl.data.pairs import Pairs, read_pairs
from frevl.runs.run import Run
from frevl.store.reader import Store
from frevl.store.usable_pairs import choose_towers
from frevl.training.prepare import embed_pairs
from frevl.training.retrieval.adapt import full_recall
from frevl.training.retrieval.fit import narrow_towers

DRAWS = 1000


def exchanged(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, np.ndarray]:
    """Exchange a share of the texts among the images; a line never gets one of its own image."""
    random = np.random.default_rng(seed)
    rows = random.permutation(len(pairs))[: round(share * len(pairs))]
    images, dealt = np.array(pairs.images), rows.copy()
    random.shuffle(dealt)
    while len(same := np.flatnonzero(images[dealt] == images[rows])):
        for place, other in zip(same, random.integers(0, len(rows), len(same)), strict=True):
            dealt[[place, other]] = dealt[[other, place]]
    texts = list(pairs.texts)
    for row, other in zip(rows.tolist(), dealt.tolist(), strict=True):
        texts[row] = pairs.texts[other]
    wrong = np.zeros(len(pairs), bool)
    wrong[rows] = True
    return replace(pairs, texts=texts), wrong


def auroc(right: np.ndarray, wrong: np.ndarray) -> float:
    """Share of the pairs of a right and a wrong line in which the right one scores higher; ties count half."""
    ranks = np.concatenate([right, wrong]).argsort(kind="stable").argsort(kind="stable") + 1.0
    values = np.concatenate([right, wrong])
    _, at = np.unique(values, return_inverse=True)
    ranks = (np.bincount(at, weights=ranks) / np.bincount(at))[at]
    return float((ranks[: len(right)].sum() - len(right) * (len(right) + 1) / 2) / (len(right) * len(wrong)))


def interval(groups: list[str], measured: Callable[[np.ndarray], float], draws: int = DRAWS) -> list[float]:
    """95 % interval of something measured on rows, images drawn with replacement."""
    _, at = np.unique(groups, return_inverse=True)
    order = np.argsort(at, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(at[order])) + 1)
    random = np.random.default_rng(0)
    drawn = (np.concatenate([parts[i] for i in random.integers(0, len(parts), len(parts))]) for _ in range(draws))
    return np.quantile([measured(rows) for rows in drawn], [0.025, 0.975]).round(4).tolist()


def match_part(folder: Path, options: argparse.Namespace) -> None:
    """Find exchanged captions."""
    store, pairs = Store.open(folder / "store"), some(read_pairs(folder / "train.jsonl"), options.images)
    mixed, wrong = exchanged(pairs, options.share, 0)
    begun = time.process_time()
    found = frevl.curate(store, mixed, drop=["match"])
    seconds = time.process_time() - begun
    right = np.array([line["curate"]["match"] for line in found.lines], np.float64)
    dropped = right < 0.5
    record(
        part="match", lines=len(mixed), exchanged=int(wrong.sum()), seconds=round(seconds, 1),
        auroc=round(auroc(right[~wrong], right[wrong]), 4),
        ci95=interval(mixed.images, lambda rows: of_rows(right, wrong, rows), 200),
        said_wrong=found.filters["match"]["wrong_share"], said_ci95=found.filters["match"]["ci95"],
        precision=round(float(wrong[dropped].mean()), 4), recall=round(float(dropped[wrong].mean()), 4),
        calibration_error=round(calibration_error(right, ~wrong), 4),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        run = frevl.train(
            store, mixed, run=Path(scratch) / "run", task="matching", model="dual", options={"members": 1}
        )
        seen = frevl.curate(store, mixed, drop=["match"], run=run.path)
    own = np.array([line["curate"]["match"] for line in seen.lines], np.float64)
    record(
        part="match, by a dual that has learnt from these lines", auroc=round(auroc(own[~wrong], own[wrong]), 4),
        difference_ci95=interval(
            mixed.images, lambda rows: of_rows(right, wrong, rows) - of_rows(own, wrong, rows), 200
        ),
    )  # fmt: skip


def of_rows(values: np.ndarray, wrong: np.ndarray, rows: np.ndarray) -> float:
    """AUROC on some rows."""
    return auroc(values[rows][~wrong[rows]], values[rows][wrong[rows]])


def calibration_error(probability: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error in ten bins."""
    bins = np.minimum((10 * probability).astype(int), 9)
    parts = [bins == one for one in range(10) if (bins == one).any()]
    return float(sum(part.mean() * abs(probability[part].mean() - truth[part].mean()) for part in parts))


def training_part(folder: Path, options: argparse.Namespace) -> None:
    """Learn from clean, exchanged, curated and randomly thinned captions."""
    store, clean = Store.open(folder / "store"), some(read_pairs(folder / "train.jsonl"), options.images)
    asked = read_pairs(folder / "dev.jsonl")
    names = ("clean", "exchanged", "curated", "at random")
    hits: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for seed in options.seeds:
        mixed, wrong = exchanged(clean, options.share, seed)
        found = frevl.curate(store, mixed, drop=["match"], seed=seed)
        kept = np.flatnonzero([line["curate"]["kept"] for line in found.lines])
        thinned = np.sort(np.random.default_rng(seed).permutation(len(mixed))[: len(kept)])
        parts = (clean, mixed, mixed.select(kept), mixed.select(thinned))
        for name, part in zip(names, parts, strict=True):
            hits[name].append(recalls(store, part, asked, seed))
        record(
            part="training", seed=seed, lines=len(mixed), kept=len(kept), exchanged_kept=int(wrong[kept].sum()),
            **{name: round(100 * float(values[-1].mean()), 2) for name, values in hits.items()},
        )  # fmt: skip
    mean = {name: np.mean(values, axis=0) for name, values in hits.items()}
    pictures = [str(number) for number in range(len(mean["clean"]))]
    for name in ("curated", "at random"):

        def won_back(rows: np.ndarray, name: str = name) -> float:
            lost = (mean["clean"] - mean["exchanged"])[rows].mean()
            return float((mean[name] - mean["exchanged"])[rows].mean() / lost)

        record(
            part="training, all seeds", lost=round(100 * float((mean["clean"] - mean["exchanged"]).mean()), 2),
            lost_ci95=interval(pictures, lambda rows: 100 * float((mean["clean"] - mean["exchanged"])[rows].mean())),
            by=name, won_back=round(won_back(np.arange(len(pictures))), 3), ci95=interval(pictures, won_back),
        )  # fmt: skip


def recalls(store: Store, pairs: Pairs, asked: Pairs, seed: int) -> np.ndarray:
    """Mean of the six hits of every image that is asked for, after a `dual` has learned from some pairs."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "run"
        frevl.train(
            store, pairs, run=path, task="matching", model="dual", seed=seed, options={"members": 1, "width": 256}
        )
        network = Run.load(path).network
    towers = choose_towers(store, [asked], [], {})
    embedded = embed_pairs(store, [asked], narrow_towers(towers["image"]), towers["text"])[0]
    with torch.inference_mode():
        return full_recall(network, embedded).double().numpy()  # type: ignore[arg-type]  # a dual is a first stage


def labels_part(folder: Path, options: argparse.Namespace) -> None:  # noqa: ARG001
    """Find exchanged labels, and leave clean ones alone."""
    store, pairs = Store.open(folder / "store"), read_pairs(folder / "classes.jsonl")
    clean = frevl.curate(store, pairs, drop=["label"])
    record(part="labels, none exchanged", lines=len(pairs), flagged=clean.filters["label"]["flagged"])
    random = np.random.default_rng(0)
    rows = random.permutation(len(pairs))[: len(pairs) // 10]
    targets, wrong = list(pairs.targets), np.zeros(len(pairs), bool)
    known = sorted({str(target) for target in targets})
    for row in rows.tolist():
        targets[row] = str(random.choice([one for one in known if one != targets[row]]))
        wrong[row] = True
    found = frevl.curate(store, replace(pairs, targets=targets), drop=["label"])
    flagged = np.array(["label" in line["curate"]["why"] for line in found.lines])
    record(
        part="labels, a tenth exchanged", lines=len(pairs), precision=round(float(wrong[flagged].mean()), 4),
        recall=round(float(flagged[wrong].mean()), 4), **found.filters["label"]["accuracy"],
    )  # fmt: skip


def some(pairs: Pairs, images: int | None) -> Pairs:
    """The lines of the first so many images."""
    if images is None:
        return pairs
    chosen = set(list(dict.fromkeys(pairs.images))[:images])
    return pairs.select([row for row, image in enumerate(pairs.images) if image in chosen])


def record(**values: object) -> None:
    """Print one measurement."""
    print(json.dumps(values), flush=True)


PARTS = {
    "match": (match_part, ("store", "train.jsonl")),
    "training": (training_part, ("store", "train.jsonl", "dev.jsonl")),
    "labels": (labels_part, ("store", "classes.jsonl")),
}


def main() -> None:
    """Measure what the folder has the files for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--images", type=int, help="Use the captions of the first so many pictures.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.2, help="Of the captions that are exchanged.")
    options = parser.parse_args()
    for name in options.part:
        measure, files = PARTS[name]
        missing = [one for one in files if not (options.folder / one).exists()]
        if missing:
            record(part=name, left_out=f"no {', '.join(missing)} in {options.folder}")
            continue
        measure(options.folder, options)


if __name__ == "__main__":
    main()
