"""A synthetic set of captions with known truth: imported vectors of images and texts that share a few directions."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from frevl.store.importing.vectors import import_embeddings
from frevl.store.reader import Store

IMAGE_DIM, TEXT_DIM, SHARED = 17, 13, 8


@dataclass
class Captioned:
    """A store, its caption file, and which lines have a caption that was exchanged (the key ``exchanged``)."""

    folder: Path
    store: Store
    clean: Path
    exchanged: Path
    rows: list[dict]


def make_captioned(folder: Path, *, images: int = 260, share: float = 0.2) -> Captioned:
    """Draw what every image shows, view it from both sides with noise, and exchange a share of the captions."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(3)
    shown = random.standard_normal((images, SHARED))
    to_image, to_text = random.standard_normal((SHARED, IMAGE_DIM)), random.standard_normal((SHARED, TEXT_DIM))
    pictures = shown @ to_image + 0.3 * random.standard_normal((images, IMAGE_DIM))
    said = np.repeat(shown, 2, axis=0)
    sentences = said @ to_text + 0.3 * random.standard_normal((len(said), TEXT_DIM))
    ids = [f"{n}.jpg" for n in range(images)]
    texts = [f"sentence {n % 2} about what stands in picture {n // 2}" for n in range(len(said))]
    store = folder / "store"
    for of, vectors, own in (("images", pictures, ids), ("texts", sentences, texts)):
        np.save(folder / f"{of}.npy", vectors.astype(np.float32))
        (folder / f"{of}.json").write_text(json.dumps(own))
        import_embeddings(folder / f"{of}.npy", of=of, ids=folder / f"{of}.json", encoder="drawn", store=store)
    rows = [{"image": ids[n // 2], "text": text, "exchanged": False} for n, text in enumerate(texts)]
    (folder / "clean.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = random.permutation(len(rows))[: round(share * len(rows))]
    for row, other in zip(chosen.tolist(), np.roll(chosen, 1).tolist(), strict=True):
        rows[row] = {**rows[row], "text": texts[other], "exchanged": ids[row // 2] != ids[other // 2]}
    (folder / "exchanged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Captioned(folder, Store.open(store), folder / "clean.jsonl", folder / "exchanged.jsonl", rows)


@pytest.fixture(scope="session")
def captioned(tmp_path_factory):
    return make_captioned(tmp_path_factory.mktemp("captioned") / "world")
