"""How often a diagnosis says the right thing where the truth is known by construction, on many synthetic sets.

Run: ``python -m research.diagnosis_truth [sets a truth]``. Prints precision and recall of planted label errors and of
planted near-same texts, false alarms of the latter, and the kinds of verdict for every truth; takes about a second a
set on one core.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

TESTS = Path(__file__).parent.parent / "tests"
sys.path[:0] = [
    str(TESTS / "synthetic_data"),
    str(TESTS / "diagnosis" / "data_quality"),
]  # the sets are those that the tests make
import test_text_leaks as made_texts

from frevl.diagnosis.cross_validation import cross_validate_contenders
from frevl.diagnosis.data_quality import text_leaks
from frevl.diagnosis.data_quality.label_errors import label_error_finding
from frevl.diagnosis.model_comparison import compare_models
from frevl.diagnosis.performance.modality_use import exchanged_hits
from frevl.diagnosis.splits import Splits, read_splits
from frevl.diagnosis.verdict import reach_verdict
from planted import plant

MODELS = ["majority", "text", "image", "text kernel", "image kernel", "linear", "kernel"]
NAMES = [f"{number}.png" for number in range(300)]
TRUTHS = {
    "nothing": lambda _, __, random: random.integers(0, 2),
    "text, 10 % noise": lambda _, text, random: text ^ int(random.random() < 0.1),
    "image, 10 % noise": lambda image, _, random: image ^ int(random.random() < 0.1),
    "exclusive or": lambda image, text, _: image ^ text,
    "and": lambda image, text, _: image & text,
}


def comparison_of(world, truth, folder, seed, noise=0.0):
    """Train on 200 images and judge on 100, two texts each; some training labels are wrong."""
    train = world.pairs(NAMES[:200], truth, seed=2 * seed)
    test = world.pairs(NAMES[200:], truth, seed=2 * seed + 1)
    wrong = np.random.default_rng(seed).permutation(len(train))[: round(len(train) * noise)]
    for row in wrong:
        train.targets[row] = "yes" if train.targets[row] == "no" else "no"
    test.places[:] = [f"test:{place}" for place in test.places]
    splits = read_splits(world.store, train, test, task="classification", dev=None, encoder=None, seed=seed)
    comparison = compare_models(splits, folder=folder / "whole", time_limit=100, models=MODELS)
    comparison, _ = cross_validate_contenders(comparison, folder=folder / "parts", time_limit=100)
    return comparison, {train.places[row] for row in wrong}


def verdicts(sets):
    for name, truth in TRUTHS.items():
        kinds = Counter()
        for seed in range(sets):
            with TemporaryDirectory() as scratch:
                world = plant(Path(scratch) / "store", seed=seed)
                comparison, _ = comparison_of(world, truth, Path(scratch) / "models", seed)
                kinds[reach_verdict(replace(comparison, exchanged=exchanged_hits(comparison)).choice)[0]["kind"]] += 1
        print(f"{name:<18}", dict(kinds.most_common()), flush=True)


def label_errors(sets):
    for noise in (0.0, 0.05, 0.2):
        found = right = planted = 0
        for seed in range(sets):
            with TemporaryDirectory() as scratch:
                world = plant(Path(scratch) / "store", seed=seed)
                comparison, wrong = comparison_of(
                    world, lambda image, _, __: image, Path(scratch) / "models", seed, noise=noise
                )
                finding = label_error_finding(comparison, folder=Path(scratch) / "folds", time_limit=100)
                named = {row["place"] for row in finding.table}
                found, right, planted = found + len(named), right + len(named & wrong), planted + len(wrong)
        shares = f", precision {right / max(found, 1):.2f}, recall {right / planted:.2f}" if planted else ""
        print(f"label errors {noise:4.0%}: {found} of {600 * sets} labels named{shares}", flush=True)


def near_texts(sets):
    """600 captions of 300 images; 45 of 200 test captions are training captions with one change, or none are."""
    text_leaks._SHOWN = 1000  # all that is named, not the first few
    alarms = {"near-same-text": 0, "same-text": 0}
    named = right = planted = claimed = 0
    for seed in range(sets):
        draw = random.Random(seed)
        captions = [[made_texts.sentence(draw), made_texts.sentence(draw)] for _ in range(300)]
        changed = set()
        for number in range(200, 245):
            original = draw.choice(captions[draw.randrange(200)])
            text = made_texts.changed(original, ("order", "word", "drop")[number % 3], draw)
            captions.append([text, made_texts.sentence(draw)])
            changed.add(text)
        with TemporaryDirectory() as scratch:
            store = made_texts.world(Path(scratch) / "store", captions)
            train = made_texts.pairs_of(captions, range(200))
            for numbers in (range(200, 300), [*range(245, 300), *range(300, 345)]):
                test = made_texts.pairs_of(captions, numbers)
                splits = Splits(store, "classification", train, train.select([0]), test, None, seed)
                found = made_texts.findings_of(splits)
                if 300 not in numbers:
                    for name in alarms:
                        alarms[name] += "more than" in found[name].claim
                    continue
                said = {row["test text"] for row in found["near-same-text"].table}
                claimed += "more than" in found["near-same-text"].claim
                named, right, planted = named + len(said), right + len(said & changed), planted + len(changed)
    print(f"near-same texts on {sets} sets without copies: {alarms} claims of more than chance")
    print(
        f"near-same texts planted in {sets} sets: claimed in {claimed}, precision {right / max(named, 1):.2f}, "
        f"recall {right / planted:.2f}",
        flush=True,
    )


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    label_errors(max(count // 4, 1))
    near_texts(count)
    verdicts(count)
