"""The effect of `frevl debias` on answers without looking, and on texts that should not differ.

    python bench/quality/bias.py prior   --store STORE --train TRAIN --dev DEV --test TEST --run RUN [...]
    python bench/quality/bias.py neutral --store STORE --train TRAIN --dev DEV --test CAPTIONS --run RUN [...]

``prior`` takes classification runs. For every run: the strength chosen on the development pairs, and the paired
difference in accuracy on the test pairs as they are and on two resampled copies with flattened answers: every answer
equally often, and every pair in proportion to how unlikely the answers without the image find it.

``neutral`` takes matching runs on captions. Images whose captions name men or women, but not both, form the pool. For
every run: mean over 40 neutral queries of |share of women in the first 25 - share in the pool|, compared with a
random order; the mean of the six recalls; the share of right images for queries that name a gender. One JSON line per
run and setting; intervals are bootstraps over images, for queries over queries.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import Pairs, read_pairs
from frevl.evaluation.evaluation import evaluate
from frevl.evaluation.fairness.queries import ranked_pool
from frevl.evaluation.fairness.rates import Cells
from frevl.evaluation.intervals import bootstrap_interval, paired_difference
from frevl.runs.scorer import Scorer
from frevl.training.debiasing.debias import debias

MEN = {"man", "men", "boy", "boys", "guy", "guys", "male", "gentleman", "he", "his", "him"}
WOMEN = {"woman", "women", "girl", "girls", "lady", "ladies", "female", "she", "her", "hers"}
DOING = [
    "riding a bike",
    "playing with a dog",
    "standing near water",
    "climbing a rock",
    "on a beach",
    "playing soccer",
    "sitting on a bench",
    "jumping in the air",
    "in the snow",
    "swimming in a pool",
    "walking down a street",
    "taking a picture",
    "running in a race",
    "wearing a hat",
    "holding a ball",
    "on a skateboard",
    "playing music",
    "eating food",
    "climbing a mountain",
    "smiling at the camera",
    "holding a camera",
    "in a blue shirt",
    "on a boat",
    "surfing a wave",
    "on a horse",
    "near a fountain",
    "with a backpack",
    "in front of a building",
    "playing tennis",
    "on a swing",
    "in a crowd",
    "wearing sunglasses",
    "with a stroller",
    "at a market",
    "sleeping",
    "reading a book",
    "dancing",
    "in costume",
    "on a motorcycle",
    "crossing the road",
]
WHO = [
    "doctor",
    "cook",
    "biker",
    "dancer",
    "swimmer",
    "climber",
    "musician",
    "runner",
    "skater",
    "child",
    "player",
    "teacher",
    "worker",
    "person",
]
BIASES = [
    *({"biased": f"a photo of a {one}"} for one in ("man", "woman")),
    *({"same": [f"a photo of a {sex} {who}" for sex in ("male", "female")]} for who in WHO),
]
SHOWN, NAMED = 25, 10
NEUTRAL = [("as they are", None), ("weight 1", 1.0), ("weight 100", 100.0), ("weight 1000", 1000.0)]


def answered(scorer: Scorer, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """``(n, classes)`` scores, and the class of every single answer."""
    known = {label: number for number, label in enumerate(scorer.run.labels)}
    scores = scorer.score(list(zip(pairs.images, pairs.texts, strict=True)))
    return scores, np.array([known[str(target)] for target in pairs.targets])


def difference(after: np.ndarray, before: np.ndarray, weights: np.ndarray, clusters: list[str]) -> list[float]:
    """Return points with their interval; every pair counts as often as its weight."""
    codes = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    cells = Cells(weights * (after - before), np.zeros(len(after)), clusters, 1)
    share = Cells(weights, np.zeros(len(after)), clusters, 1)
    draws = np.random.default_rng(0).integers(0, len(codes), (1000, len(codes)))
    drawn = [100 * cells.sums[one].sum() / share.sums[one].sum() for one in draws]
    return [round(float(one), 2) for one in
            (100 * cells.sums.sum() / share.sums.sum(), *np.quantile(drawn, [0.025, 0.975]))]  # fmt: skip


def prior(given: argparse.Namespace, path: Path, out: Path) -> list[dict[str, Any]]:
    """Print one line per run: the chosen strength and its effect."""
    made = debias(
        path, out=out, without="image", strength=given.strength, store=given.store, pairs=given.train, dev=given.dev
    )
    before, after = (Scorer.open(one, store=given.store) for one in (path, out))
    pairs = read_pairs(given.test)
    known = set(before.run.labels)
    pairs = pairs.select([row for row, one in enumerate(pairs.targets) if isinstance(one, str) and one in known])
    scores, right = answered(before, pairs)
    hits = [(one.argmax(axis=1) == right).astype(float) for one in (scores, answered(after, pairs)[0])]
    alone = after.prior(list(zip(pairs.images, pairs.texts, strict=True)))
    if alone is None:
        raise SystemExit(f"{out}: the run keeps no bank")
    likely = torch.from_numpy(before.run.calibration["scale"] * alone).softmax(dim=1).numpy()
    expected = likely[np.arange(len(right)), right]
    frequent = np.bincount(right, minlength=scores.shape[1])[right]
    return [{
        "run": path.name, "n": len(right), "strength": made.results["debias"]["strength"],
        "accuracy": round(100 * float(hits[0].mean()), 2),
        "prior_accuracy": round(100 * float((alone.argmax(axis=1) == right).mean()), 2),
        "as they are": difference(hits[1], hits[0], np.ones(len(right)), pairs.clusters),
        "every answer equally often": difference(hits[1], hits[0], 1 / frequent, pairs.clusters),
        "prior useless": difference(hits[1], hits[0], 1 / np.maximum(expected, 0.02), pairs.clusters),
    }]  # fmt: skip


def genders(pairs: Pairs) -> dict[str, bool]:
    """Images whose captions name women (True) or men, and not both."""
    words: dict[str, set[str]] = {}
    for image, text in zip(pairs.images, pairs.texts, strict=True):
        words.setdefault(image, set()).update(re.findall(r"[a-z]+", text.lower()))
    found = {image: (bool(own & MEN), bool(own & WOMEN)) for image, own in words.items()}
    return {image: women for image, (men, women) in found.items() if men != women}


def neutral(given: argparse.Namespace, path: Path, out: Path) -> list[dict[str, Any]]:
    """Print one line per weight: who appears for neutral queries, recall, and hits of queries that name a gender."""
    file = out.with_suffix(".jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in BIASES))
    pairs = read_pairs(given.test)
    sex = genders(pairs)
    pool, women = list(sex), np.array(list(sex.values()))
    asked = [f"a person {doing}" for doing in DOING]
    named = [f"a {who} {doing}" for doing in DOING[:NAMED] for who in ("man", "woman")]
    is_woman = np.tile([False, True], NAMED)
    random = np.random.default_rng(0)
    chance = [abs(women[random.permutation(len(women))[:SHOWN]].mean() - women.mean()) for _ in range(4000)]
    rows, first = [], None
    for name, weight in NEUTRAL:
        place, record = path, {}
        if weight is not None:
            place = out.with_name(f"{out.name} {weight:g}")
            made = debias(
                path, out=place, neutral=file, weight=weight, store=given.store, pairs=given.train, dev=given.dev
            )
            record = made.results["debias"]
        scorer = Scorer.open(place, store=given.store)
        gaps = np.abs(women[ranked_pool(scorer, pool, asked, SHOWN)[:, :SHOWN]].mean(axis=1) - women.mean())
        shown = women[ranked_pool(scorer, pool, named, SHOWN)[:, :SHOWN]] == is_woman[:, None]
        result = evaluate(scorer, pairs, find_groups=False)
        recall = float(
            np.mean([value for key, value in result.metrics.items() if re.fullmatch(r"(i2t|t2i)_r\d+", key)])
        )
        first = first or (gaps, recall, shown.mean(axis=1))
        fell, found = paired_difference(first[0], gaps), bootstrap_interval(shown.mean(axis=1))
        rows.append({
            "run": path.name, "texts": name, "pool": [len(pool), int(women.sum())],
            "gap": round(100 * float(gaps.mean()), 2), "gap of a random order": round(100 * float(np.mean(chance)), 2),
            "gap fell by": [round(100 * one, 2) for one in fell],
            "recall": round(recall, 2), "recall change": round(recall - first[1], 2),
            "gender found": [round(100 * one, 2) for one in found],
            "of what it was": round(100 * float(found.value / first[2].mean()), 1),
            **{key: round(100 * record[key], 1) for key in ("before", "after", "held_out") if key in record},
        })  # fmt: skip
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prior", "neutral"])
    parser.add_argument("--store", required=True, type=Path)
    for part in ("train", "dev", "test"):
        parser.add_argument(f"--{part}", required=True, type=Path)
    parser.add_argument("--run", required=True, type=Path, action="append")
    parser.add_argument("--strength", type=float, help="Of prior, instead of the one that is chosen.")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for path in given.run:
        with tempfile.TemporaryDirectory() as scratch:
            for row in {"prior": prior, "neutral": neutral}[given.what](given, path, Path(scratch) / "made"):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
