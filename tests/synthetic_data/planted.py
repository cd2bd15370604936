"""Stores and pairs made from numbers, with a truth known by construction."""

from dataclasses import dataclass

import numpy as np

from frevl.data.pairs import Pairs
from frevl.diagnosis.model_comparison import Predictions
from frevl.encoders.interface import Embeddings
from frevl.store.reader import Store
from frevl.store.writer import Item, StoreWriter
from handmade import tower

DIM, TEXT_DIM = 13, 11  # not equal: else the linear probe would get the product of both

# Closed-form and counted models: seconds instead of a minute.
FASTEST = ["majority", "text kernel", "image kernel", "linear", "kernel"]

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass
class World:
    """A store with image and text vectors, and the sign that each item carries in its first dimension."""

    store: Store
    images: dict[str, int]
    texts: dict[str, int]

    def pairs(self, images, label, *, seed=0, extras=None, each=2):
        """Ask `each` texts of every image; ``label(image sign, text sign, random)`` is 0 or 1 (or a string)."""
        random = np.random.default_rng(seed)
        columns = {"images": [], "texts": [], "targets": [], "extras": [], "places": []}
        texts = list(self.texts)
        for image in images:
            for text in random.choice(texts, each, replace=False):
                said = label(self.images[image], self.texts[text], random)
                columns["images"].append(image)
                columns["texts"].append(str(text))
                columns["targets"].append(said if isinstance(said, str) else ("no", "yes")[int(said)])
                columns["extras"].append(extras(image, str(text)) if extras else {})
                columns["places"].append(f"made.jsonl:{len(columns['places']) + 1}")
        return Pairs(**columns)


def vectors(count, seed, *, dim=DIM, noise=0.3):
    """Unit vectors whose first dimension is a sign, and the signs (0 or 1)."""
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, count)
    values = noise * random.normal(size=(count, dim))
    values[:, 0] = 2.0 * signs - 1
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32), signs


def plant(path, *, images=300, texts=40, seed=0, copies=None, near=None):
    """Write a store; ``copies`` maps new ids to ids of the same content, ``near`` to ids of nearly the same vector."""
    image_values, image_signs = vectors(images, seed)
    text_values, text_signs = vectors(texts, seed + 1000, dim=TEXT_DIM)
    names = [f"{number}.png" for number in range(images)]
    of_image = dict(zip(names, image_values, strict=True))
    signs = dict(zip(names, image_signs.tolist(), strict=True))
    content = {name: name for name in names}
    random = np.random.default_rng(seed + 1)
    for new, old in (copies or {}).items():
        of_image[new], signs[new], content[new] = of_image[old], signs[old], old
    for new, old in (near or {}).items():
        moved = of_image[old] + 0.01 * random.normal(size=DIM).astype(np.float32)
        of_image[new], signs[new], content[new] = moved / np.linalg.norm(moved), signs[old], new
    questions = [f"is it {LETTERS[number // 26]}{LETTERS[number % 26]}?" for number in range(texts)]
    with StoreWriter(path) as writer:
        writer.register([tower("eye", dim=DIM), tower("ear", modality="text", dim=TEXT_DIM)])
        items = [Item(name, f"{hash_of(content[name]):032x}", 5, 7) for name in of_image]
        writer.append("image", items, {"eye": pooled(list(of_image.values()))})
        items = [Item(text, f"{hash_of(text):032x}", 5, 7) for text in questions]
        writer.append("text", items, {"ear": pooled(list(text_values))})
    return World(Store.open(path), signs, dict(zip(questions, text_signs.tolist(), strict=True)))


def hash_of(text):
    return int.from_bytes(text.encode(), "big") * 0x9E3779B97F4A7C15 % 2**128


def pooled(rows):
    values = np.array(rows, np.float32)[:, None]
    return Embeddings(values, np.ones(values.shape[:2], bool))


def pairs_of(*rows, extras=None):
    images, texts, targets = ([row[column] for row in rows] for column in range(3))
    places = [f"a.jsonl:{number + 1}" for number in range(len(rows))]
    return Pairs(images, texts, targets, extras or [{} for _ in rows], places)


def xor(image, text, random):
    return image ^ text


def predictions(confidence, hits, raw=None):
    confidence, hits = np.array(confidence, float), np.array(hits, float)
    return Predictions(np.zeros(len(hits), np.int64), ["a"], hits, confidence, confidence if raw is None else raw)
