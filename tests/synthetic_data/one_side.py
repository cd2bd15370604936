"""Data of one side: imported vectors of images without texts, or texts without images, in three classes."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

CLASSES = ("fern", "moss", "reed")


@dataclass
class OneSide:
    """A store and its files; every line has this side and a target."""

    side: str
    other: str
    store: Store
    train_file: Path
    dev_file: Path
    items: list[str]


def make_one_side(folder: Path, side: str, count: int = 90) -> OneSide:
    """Draw a cloud of vectors around one direction a class and import them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(5)
    numbers = np.arange(count) % len(CLASSES)
    vectors = np.eye(12)[numbers] + 0.25 * random.standard_normal((count, 12))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = [f"{n}.png" if side == "image" else f"a sentence with the number {n}" for n in range(count)]
    np.save(folder / "vectors.npy", vectors.astype(np.float32))
    (folder / "ids.json").write_text(json.dumps(items))
    store = folder / "store"
    import_embeddings(folder / "vectors.npy", of=f"{side}s", ids=folder / "ids.json", encoder="other", store=store)
    rows = [json.dumps({side: item, "target": CLASSES[n]}) + "\n" for item, n in zip(items, numbers, strict=True)]
    (folder / "train.jsonl").write_text("".join(rows[:60]))
    (folder / "dev.jsonl").write_text("".join(rows[60:]))
    other = "text" if side == "image" else "image"
    return OneSide(side, other, Store.open(store), folder / "train.jsonl", folder / "dev.jsonl", items)


@pytest.fixture(scope="session", params=["image", "text"])
def one_side(request, tmp_path_factory):
    """Images alone, and then texts alone."""
    return make_one_side(tmp_path_factory.mktemp("one-side") / request.param, request.param)
