"""Fusions that have learned image-caption pairs of other images, for ``research/fusion_ideas.py`` to start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.pairs import read_pairs
from frevl.models.fusion import Fusion
from frevl.models.inputs import low_precision
from frevl.runs.targets import hash_prefixes
from frevl.store.reader import Store
from frevl.training.fitting.fit_model import fit_model
from frevl.training.options import ModelOptions, Session
from frevl.training.prepare import prepare
from frevl.training.selection.encoder_sets import narrow

# Where it differs from the options of the task: right and wrong texts in equal numbers, and a contrastive term.
CHANGES: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 256,
    "learning_rate": 5e-4,
    "contrastive_weight": 0.3,
    "negatives": 1,
}


def learn_captions(
    store: Store, captions: Path, images: list[str], texts: list[str], seeds: int, *, options: ModelOptions,
    without: np.ndarray,
) -> list[Fusion]:  # fmt: skip
    """Train one ``tiny`` a seed to tell right from wrong captions; images of these content hashes are left out."""
    pairs = read_pairs(captions)
    hashes = store.content_hashes(pairs.images)
    shared = {image for image, hash_ in hashes.items() if hash_prefixes([hash_])[0] in without}
    others = pairs.select([row for row, image in enumerate(pairs.images) if image not in shared])
    print(f"{len(others):,} captions; {len(shared):,} images left out, which the task has\n", flush=True)
    encoders = list(dict.fromkeys([*images, *texts]))
    data = prepare(
        store, others, None, task="matching", encoder=encoders, seed=0, dev_share=0.02, min_answer_count=1
    )  # fmt: skip
    data = narrow(data, images, texts)
    found = []
    for seed in range(seeds):
        changed = replace(options, **CHANGES)
        session = Session(seed=seed, time_limit=None, device="cpu", progress=False)
        with low_precision("cpu"):
            torch.set_autocast_cache_enabled(False)
            network = fit_model("tiny", data.train, data.dev, 1, changed, session, dev_is_spare=False).network
        if isinstance(network, Fusion):
            found.append(network)
    return found
