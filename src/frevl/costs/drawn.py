"""A store and runs made of random numbers, to time the real roads without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch import nn

from frevl.encoders import Embeddings
from frevl.run import Run, name_of
from frevl.store import Store
from frevl.towers import Modality, Tower
from frevl.writer import Item, StoreWriter

__all__ = ["drawn_embeddings", "drawn_items", "drawn_run", "drawn_towers", "write_drawn"]


def drawn_towers(image_dim: int, text_dim: int, *, tokens: bool = False) -> dict[str, Tower]:
    """Return the two towers of random embeddings, by modality."""
    sizes: dict[Modality, tuple[int, str]] = {
        "image": (image_dim, "7x7" if tokens else "pooled"),
        "text": (text_dim, "words" if tokens else "pooled"),
    }
    return {
        modality: Tower(
            name=f"drawn-{modality}",
            modality=modality,
            encoders=("drawn",),
            identity={"network": "random numbers", "tokens": kind, "dtype": "float16"},
            dim=dim,
            canaries=np.zeros((0, dim), np.float32),
        )
        for modality, (dim, kind) in sizes.items()
    }


def drawn_embeddings(count: int, dim: int, seed: int = 0) -> Embeddings:
    """Return pooled random embeddings of unit length in float16."""
    values = np.random.default_rng(seed).standard_normal((count, 1, dim), np.float32)
    values /= np.linalg.norm(values, axis=2, keepdims=True)
    return Embeddings(values.astype(np.float16), np.ones((count, 1), bool))


def drawn_items(modality: str, count: int, first: int = 0) -> list[Item]:
    """Return items named ``image 0``, ``image 1``, ... or ``text 0``, ..."""
    names = [f"{modality} {number}" for number in range(first, first + count)]
    return [Item(name, f"{number:032x}", 1) for number, name in enumerate(names, first)]


def write_drawn(path: Path, towers: dict[str, Tower], *, images: int, texts: int) -> Store:
    """Write a store of pooled random embeddings."""
    with StoreWriter(path) as writer:
        writer.register(list(towers.values()))
        for modality, count in (("image", images), ("text", texts)):
            tower = towers[modality]
            embeddings = {tower.name: drawn_embeddings(count, tower.dim)}
            writer.append(tower.modality, drawn_items(modality, count), embeddings)
    return Store.open(path)


def drawn_run(network: nn.Module, towers: dict[str, Tower], *, model: str, labels: int = 0) -> Run:
    """Return a run around a network with random weights; it is on no disk.

    Args:
        network: A network of this package.
        towers: From `drawn_towers`.
        model: Its name.
        labels: Number of classes; 0 for matching.
    """
    return Run(
        path=Path("drawn"),
        model=model,
        task="classification" if labels else "matching",
        network_name=name_of(network),
        network_settings=dict(network.settings),  # type: ignore[arg-type]
        labels=[str(number) for number in range(labels)],
        encoders=["drawn"],
        towers={modality: {tower.name: tower.identity} for modality, tower in towers.items()},
        calibration={"scale": 1.0, "offset": 0.0},
        settings={},
        results={},
        provenance={"seed": 0},
        train_image_hashes=np.zeros(0, np.uint64),
        network=network.eval(),
    )
