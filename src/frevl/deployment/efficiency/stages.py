"""Time the stages before a cached pair: decoding, preprocessing, the towers, writing to a store and reading from it."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from frevl.deployment.efficiency.records import Record, Show
from frevl.deployment.efficiency.stand_ins import drawn_embeddings, drawn_items, drawn_towers, write_drawn
from frevl.deployment.efficiency.timing import Timing, take_turns, time_record
from frevl.encoders.images import read_image
from frevl.encoders.interface import Encoder
from frevl.encoders.registry import load_encoder
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter

__all__ = ["photo", "stage_records"]

WIDTH = 768
_WORDS = ["a", "the", "red", "blue", "small", "dog", "cat", "child", "woman", "bus", "beach", "runs", "holds", "near"]


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Draw smooth areas, edges and noise, so that a JPEG of it takes about as long to decode as a photo."""
    random = np.random.default_rng(seed)
    blocks = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height))
    noise = random.normal(0, 12, (height, width, 3))
    return Image.fromarray(np.clip(np.asarray(blocks) + noise, 0, 255).astype(np.uint8))


def stage_records(
    encoder: str, *, items: int = 64, rows: int = 20_000, rounds: int = 5, show: Show = str
) -> tuple[list[Record], dict[str, float]]:
    """Time every stage separately.

    Args:
        encoder: Name for `load_encoder`.
        items: Images and texts per call.
        rows: Size of the store to read from; 4,096 random rows are read, or all if there are fewer.
        rounds: Rounds per stage.
        show: Called with a sentence before the measurement.

    Returns:
        Records, and the seconds per image of ``decode``, ``write`` and ``read``.
    """
    show(f"Stages: decoding, preprocessing and embedding with '{encoder}', a store of {rows:,} x {WIDTH}")
    loaded = load_encoder(encoder)
    with tempfile.TemporaryDirectory() as folder:
        encoded, decode = _encoding(loaded, items, rounds)
        whole = _extraction(Path(folder), encoder, items)
        stored, seconds = _storing(Path(folder), items, rows, rounds)
    return [*encoded, whole, *stored], {"decode": decode, **seconds}


def _encoding(loaded: Encoder, items: int, rounds: int) -> tuple[list[Record], float]:
    image, text = loaded.image, loaded.text
    records: list[Record] = []
    decode = 0.0
    if image is not None:
        files = [_jpeg(seed) for seed in range(4)]
        target = image.target
        pictures = [read_image(file, target=target) for file in files]
        prepared = [image.prepare(pictures[i % len(pictures)]) for i in range(items)]
        found = take_turns(
            {
                "decode": lambda: [read_image(file, target=target) for file in files],
                "prepare": lambda: [image.prepare(picture) for picture in pictures],
                "network": lambda: image.embed(prepared),
            },
            rounds=rounds,
        )
        decode = (found["decode"].median + found["prepare"].median) / len(files)
        names = {
            "decode": "decode a JPEG of 500 x 375, one thread",
            "prepare": "resize it, one thread",
            "network": f"network, {items} images per batch, all cores",
        }
        for part, name in names.items():
            count = items if part == "network" else len(files)
            records.append(_stage(f"{image.name}: {name}", found[part], count, "ms per image"))
    if text is not None:
        random = np.random.default_rng(0)
        texts = [" ".join(random.choice(_WORDS, length)) for length in random.integers(4, 24, items)]
        timing = take_turns({"texts": lambda: text.embed(texts)}, rounds=rounds)["texts"]
        records.append(_stage(f"{text.name}: {items} texts of 4 to 23 words per batch", timing, items, "ms per text"))
    return records, decode


def _extraction(folder: Path, encoder: str, items: int) -> Record:
    """Time the whole extraction, with decoding and writing in parallel with the networks."""
    images = folder / "images"
    images.mkdir()
    for number in range(items):
        (images / f"{number}.jpg").write_bytes(_jpeg(number))
    numbers = iter(range(1000))
    timing = take_turns(
        {"all": lambda: extract(folder / f"extracted{next(numbers)}", images=images, encoder=[encoder])},
        rounds=2,
        warm_up=False,
    )["all"]
    return _stage(f"frevl extract with '{encoder}': {items} JPEGs, from an empty store", timing, items, "ms per image")


def _storing(folder: Path, items: int, rows: int, rounds: int) -> tuple[list[Record], dict[str, float]]:
    towers = drawn_towers(WIDTH, WIDTH)
    tower = towers["image"]
    store = write_drawn(folder / "read", towers, images=rows, texts=items)
    some = min(4096, rows)
    random = np.random.default_rng(0)
    ids = [store.image_ids[i] for i in random.integers(0, rows, some)]
    embeddings = drawn_embeddings(1024, WIDTH, seed=1)
    first = iter(range(0, 1_000_000_000, 1024))
    with StoreWriter(folder / "written") as writer:
        writer.register(list(towers.values()))

        def write() -> None:
            writer.append("image", drawn_items("image", 1024, next(first)), {tower.name: embeddings})

        def read_all() -> object:
            opened = Store.open(store.path)
            return opened.read("image", opened.image_ids, [opened.towers[tower.name]])

        found = take_turns(
            {"write": write, "read": lambda: store.read("image", ids, [tower]), "all": read_all}, rounds=rounds
        )
    records = [
        _stage(f"store: write 1,024 rows of {WIDTH} in float16, one commit", found["write"], 1024, "ms per row"),
        _stage(f"store: read {some:,} random rows of {rows:,}", found["read"], some, "ms per row"),
        _stage(f"store: open it and read all {rows:,} rows", found["all"], rows, "ms per row"),
    ]
    return records, {"write": found["write"].median / 1024, "read": found["read"].median / some}


def _stage(name: str, timing: Timing, items: int, unit: str) -> Record:
    return time_record("stages", name, timing, items=items, unit=unit)


def _jpeg(seed: int) -> bytes:
    stream = io.BytesIO()
    photo(500, 375, seed).save(stream, "JPEG")
    return stream.getvalue()
