"""What matching gains over the cosine of an encoder with a common space; every image is tested once.

    python bench/quality/from_cosine.py FOLDER [FOLDER ...] [--parts 6 3] [--divisions 2] [--json FILE]

A folder holds ``images.npy`` and ``texts.npy`` with ``image_ids.json`` and ``text_ids.json``, and ``pairs.jsonl``. Its
images are divided into parts, those with equal texts into the same one; ``--model auto`` and ``--model cosine`` are
trained on all parts but one and rank that one. Prints R@1 (mean of both directions) for each set and for all sets
together, with the paired difference and its bootstrap interval by image.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

import frevl
from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

Hits = dict[str, list[tuple[float, float]]]  # by image, of auto and of the cosine, one a division


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--parts", nargs="+", type=int, default=[6], help="Of each folder; the last for all further.")
    parser.add_argument("--divisions", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found: dict[str, Hits] = {}
    for number, folder in enumerate(given.folders):
        parts = given.parts[min(number, len(given.parts) - 1)]
        found[folder.name] = judged(folder, parts, given.divisions)
        print(folder.name, summary([found[folder.name]]), flush=True)
    union = summary(list(found.values()))
    print("union", union)
    if given.json:
        given.json.write_text(json.dumps({**{name: summary([hits]) for name, hits in found.items()}, "union": union}))


def judged(folder: Path, parts: int, divisions: int) -> Hits:
    """Test every image of a folder once per division."""
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    hits: Hits = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "store"
        for of, one in (("images", "image"), ("texts", "text")):
            import_embeddings(folder / f"{of}.npy", of=of, ids=folder / f"{one}_ids.json", store=store,
                              encoder="of the folder", common_space=True)  # fmt: skip
        opened = Store.open(store)
        for division in range(divisions):
            cut = divided(pairs, parts, division)
            for number, part in enumerate(cut):
                others = [pair for other in cut if other is not part for pair in other]
                ranked = []
                for model in ("auto", "cosine"):
                    run = frevl.train(opened, others, run=Path(scratch) / f"{model}-{division}-{number}",
                                      task="matching", model=model)  # fmt: skip
                    ranked.append(first_hits(frevl.Scorer(run, opened), part))
                for pair, auto, cosine in zip(part, *ranked, strict=True):
                    hits[pair["image"]].append((float(auto), float(cosine)))
    return hits


def divided(pairs: list[dict], parts: int, seed: int) -> list[list[dict]]:
    """Divide pairs into parts of about equal size, those with equal texts into the same one."""
    by_text: dict[str, list[dict]] = defaultdict(list)
    for pair in pairs:
        by_text[pair["text"]].append(pair)
    groups = list(by_text.values())
    cut: list[list[dict]] = [[] for _ in range(parts)]
    for number in np.random.default_rng(seed).permutation(len(groups)):
        min(cut, key=len).extend(groups[number])
    return cut


def first_hits(scorer: frevl.Scorer, part: list[dict]) -> np.ndarray:
    """Return for each pair whether its text ranks first for its image, and the reverse: 0, 0.5 or 1."""
    texts = list(dict.fromkeys(pair["text"] for pair in part))
    own = np.array([texts.index(pair["text"]) for pair in part])
    scores = scorer.grid([pair["image"] for pair in part], texts)
    return ((scores.argmax(axis=1) == own).astype(float) + (own[scores.argmax(axis=0)][own] == own)) / 2


def summary(sets: list[Hits]) -> dict:
    """R@1 in percent and the paired difference with its 95 % interval."""
    means = np.array([np.mean(values, axis=0) for hits in sets for values in hits.values()]) * 100
    difference = means[:, 0] - means[:, 1]
    random = np.random.default_rng(0)
    drawn = [difference[random.integers(0, len(difference), len(difference))].mean() for _ in range(4_000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    auto, cosine = means.mean(axis=0)
    figures = {"auto": auto, "cosine": cosine, "difference": difference.mean(), "low": low, "high": high}
    return {"pictures": len(means), **{name: round(float(value), 2) for name, value in figures.items()}}


if __name__ == "__main__":
    main()
