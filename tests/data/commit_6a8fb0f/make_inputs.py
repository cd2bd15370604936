"""Draw the images and write the pairs of this fixture: `python make_inputs.py`, from inside the folder.

Needs Pillow and numpy only. Nothing here comes from anywhere else.
"""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {"red": (225, 40, 40), "green": (40, 170, 70), "blue": (50, 70, 225), "yellow": (235, 215, 50)}
SHAPES = ("circle", "square", "triangle")
UNSEEN = ("heavy", "old", "cheap", "warm")  # what no image says


def shape(draw: ImageDraw.ImageDraw, kind: str, x: int, y: int, size: int, fill: tuple[int, int, int]) -> None:
    if kind == "circle":
        draw.ellipse((x, y, x + size, y + size), fill=fill)
    elif kind == "square":
        draw.rectangle((x, y, x + size, y + size), fill=fill)
    else:
        draw.polygon([(x, y + size), (x + size // 2, y), (x + size, y + size)], fill=fill)


def main() -> None:
    rng = random.Random(11)
    here = Path()
    (here / "images").mkdir(exist_ok=True)
    (here / "vectors").mkdir(exist_ok=True)
    pairs, captions, seen = [], [], []
    for number in range(24):
        colour, kind = list(COLOURS)[number % 4], SHAPES[number % 3]
        size = rng.randint(11, 20)
        x, y = rng.randint(0, 31 - size), rng.randint(0, 31 - size)
        picture = Image.new("RGB", (32, 32), "white")
        shape(ImageDraw.Draw(picture), kind, x, y, size, COLOURS[colour])
        name = f"{number:02}.png"
        picture.save(here / "images" / name, optimize=True)
        side = "left" if 2 * x + size < 31 else "right"
        seen.append((colour, kind, side))
        wrong_colour = rng.choice([one for one in COLOURS if one != colour])
        wrong_kind = rng.choice([one for one in SHAPES if one != kind])
        for text, target, about in (
            (f"the shape is {colour}", "true", "colour"),
            (f"the shape is {wrong_colour}", "false", "colour"),
            (f"it is a {kind}", "true", "shape"),
            (f"it is a {wrong_kind}", "false", "shape"),
            (f"the {kind} is {rng.choice(UNSEEN)}", "unknown", "unseen"),
        ):
            pairs.append({"image": name, "text": text, "target": target, "question_type": about})
        captions += [
            {"image": name, "text": f"a {colour} {kind} on the {side}"},
            {"image": name, "text": f"picture {number}: {colour} {kind}, {size} dots wide"},
        ]
    # The same pairs with soft targets: every class is judged by itself.
    other = {"true": "unknown", "false": "unknown", "unknown": "false"}
    soft = [{**row, "target": {row["target"]: 1.0, other[row["target"]]: 0.3}} for row in pairs]
    for file, rows in (("pairs.jsonl", pairs), ("captions.jsonl", captions), ("soft.jsonl", soft)):
        Path(file).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    # Vectors of a made-up encoder with a common space (16 numbers): what the image shows, and noise.
    numbers = np.random.default_rng(12)
    words = {word: numbers.standard_normal(16) for word in (*COLOURS, *SHAPES, "left", "right")}
    images = np.stack([sum(words[word] for word in one) + 0.7 * numbers.standard_normal(16) for one in seen])
    texts = {}
    for row in (*captions, *pairs):
        known = [word for word in row["text"].replace(",", "").replace(":", "").split() if word in words]
        if row["text"] not in texts:
            texts[row["text"]] = sum((words[word] for word in known), 0.5 * numbers.standard_normal(16))
    np.save("vectors/images.npy", images.astype(np.float32))
    np.save("vectors/texts.npy", np.stack(list(texts.values())).astype(np.float32))
    Path("vectors/images.txt").write_text("".join(f"{n:02}.png\n" for n in range(24)))
    Path("vectors/texts.txt").write_text("".join(f"{text}\n" for text in texts))


main()
