"""A small synthetic data set: coloured squares, with questions that need both image and question."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from frevl.data.pairs import Pairs, read_pairs
from frevl.store.extraction.extract import extract
from frevl.store.reader import Store

COLOURS = {"red": (230, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 230), "yellow": (240, 220, 40)}


@dataclass
class Made:
    """Files, pairs and a store of the made world."""

    folder: Path
    images: Path
    store: Store
    train_file: Path
    test_file: Path
    captions_file: Path

    @property
    def train(self) -> Pairs:
        return read_pairs(self.train_file)

    @property
    def test(self) -> Pairs:
        return read_pairs(self.test_file)

    @property
    def captions(self) -> Pairs:
        return read_pairs(self.captions_file)


def make(folder: Path, encoders: list[str], count: int = 120) -> Made:
    """Draw images, ask "is it red or green?"-like questions, and embed everything with toy encoders."""
    rng = random.Random(7)
    images = folder / "images"
    images.mkdir(parents=True)
    questions, captions = [], []
    for number in range(count):
        colour = rng.choice(list(COLOURS))
        picture = Image.new("RGB", (40, 40), "white")
        x, y = rng.randint(0, 12), rng.randint(0, 12)
        ImageDraw.Draw(picture).rectangle((x, y, x + 26, y + 26), fill=COLOURS[colour])
        # A corner pixel block of its own makes every file's content different.
        picture.putpixel((39, 39), (number % 256, number // 256, 7))
        picture.save(images / f"{number}.png")
        other = rng.choice([name for name in COLOURS if name != colour])
        for asked in (colour, other):
            row = {
                "image": f"{number}.png",
                "text": f"is the square {asked}?",
                "target": "yes" if asked == colour else "no",
            }
            questions.append({**row, "asked": asked})
        captions += [{"image": f"{number}.png", "text": text} for text in (f"a {colour} square", f"the {colour} thing")]
    files = {}
    cut = 2 * (count * 3 // 4)
    for name, rows in (("train", questions[:cut]), ("test", questions[cut:]), ("captions", captions)):
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract(folder / "store", images=images, pairs=list(files.values()), encoder=encoders)
    return Made(folder, images, Store.open(folder / "store"), files["train"], files["test"], files["captions"])


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """The made world, embedded by the toy encoder. Read only."""
    return make(tmp_path_factory.mktemp("made"), ["toy"])


@pytest.fixture(scope="session")
def made_twice(tmp_path_factory):
    """The made world, embedded by two encoders that share a text tower. Read only."""
    return make(tmp_path_factory.mktemp("made_twice"), ["toy", "toy2"], count=40)


@pytest.fixture(scope="session")
def made_tokens(tmp_path_factory):
    """The made world as image grids and word tokens. Read only."""
    folder = tmp_path_factory.mktemp("made_tokens")
    world = make(folder, ["toy"], count=40)
    extract(
        folder / "tokens", images=world.images, pairs=[world.train_file, world.test_file], encoder=["toy"], tokens="4x4"
    )
    return Made(
        folder, world.images, Store.open(folder / "tokens"), world.train_file, world.test_file, world.captions_file
    )
