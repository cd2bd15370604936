"""Classes in a common space: imported vectors of images and names; the names alone are half right."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

CLASSES = ("ash", "birch", "cedar", "elm", "fir", "hazel")
WIDTH = 24


@dataclass
class Named:
    """A store, its files, and the number of images per class in each of them."""

    store: Store
    classes: Path
    examples: Path
    one_each: Path
    test: Path


def make_named(folder: Path, *, a_class: int = 30) -> Named:
    """Draw a cloud of images around a direction a class, and names near these directions, across a modality gap."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(11)
    numbers = np.repeat(np.arange(len(CLASSES)), a_class)
    directions = np.eye(WIDTH)[: len(CLASSES)]
    gap = 2 * np.eye(WIDTH)[-1]
    pictures = directions[numbers] + gap + 0.24 * random.standard_normal((len(numbers), WIDTH))
    names = directions - gap + 0.35 * random.standard_normal((len(CLASSES), WIDTH))
    ids = [f"{n}.png" for n in range(len(numbers))]
    for of, vectors, own in (
        ("images", pictures, ids),
        ("texts", names, [f"a photo of a {name}." for name in CLASSES]),
    ):
        np.save(folder / f"{of}.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
        (folder / f"{of}.json").write_text(json.dumps(own))
        import_embeddings(
            folder / f"{of}.npy", of=of, ids=folder / f"{of}.json", encoder="clip", common_space=True,
            store=folder / "store",
        )  # fmt: skip
    place = {name: folder / f"{name}.jsonl" for name in ("examples", "one_each", "test")}
    rows = [
        json.dumps({"image": id_, "target": CLASSES[number]}) + "\n" for id_, number in zip(ids, numbers, strict=True)
    ]
    within = np.arange(len(numbers)) % a_class
    place["one_each"].write_text("".join(np.array(rows)[within == 0]))
    place["examples"].write_text("".join(np.array(rows)[within < a_class // 3]))
    place["test"].write_text("".join(np.array(rows)[within >= a_class // 3]))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return Named(
        Store.open(folder / "store"), folder / "classes.txt", place["examples"], place["one_each"], place["test"]
    )


@pytest.fixture(scope="session")
def named(tmp_path_factory):
    """The world of named classes. Read only."""
    return make_named(tmp_path_factory.mktemp("named") / "world")
