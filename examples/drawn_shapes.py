"""Data for the examples: images of one coloured shape each, with captions and questions about them."""

import argparse
import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (220, 40, 40), "green": (40, 170, 70), "blue": (50, 80, 220), "yellow": (235, 215, 50)}
SHAPES = ("square", "circle")


def arguments(description: str, *, encoder: str = "packaged") -> argparse.Namespace:
    """Read what every example takes: where to write, and the encoder."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--folder", type=Path, required=True, help="where to write; made if it does not exist")
    parser.add_argument("--encoder", default=encoder, help="frozen encoder, see: frevl encoders list")
    return parser.parse_args()


def write(path: Path, rows: list[dict]) -> Path:
    """Write a pairs file: one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def draw(folder: Path, pictures: int = 120, seed: int = 0) -> list[tuple[str, str, str]]:
    """Draw images below ``folder/images``; return id, colour and shape of each."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    chance, drawn = random.Random(seed), []
    for number in range(pictures):
        colour, shape = chance.choice(list(COLOURS)), chance.choice(SHAPES)
        side, grey = chance.randint(28, 48), chance.randint(180, 230)
        left, top = chance.randint(2, 94 - side), chance.randint(2, 94 - side)
        picture = Image.new("RGB", (96, 96), (grey, grey, grey))
        pen = ImageDraw.Draw(picture)
        figure = pen.rectangle if shape == "square" else pen.ellipse
        figure((left, top, left + side, top + side), fill=COLOURS[colour])
        picture.save(folder / "images" / f"{number}.png")
        drawn.append((f"{number}.png", colour, shape))
    return drawn


def questions(drawn: list[tuple[str, str, str]], seed: int = 1) -> list[dict]:
    """Ask two questions about every image; neither the image nor the question alone has the answer."""
    chance, rows = random.Random(seed), []
    for image, colour, shape in drawn:
        asked = colour if chance.random() < 0.5 else chance.choice([other for other in COLOURS if other != colour])
        figure = chance.choice(SHAPES)
        rows.append({"image": image, "text": f"is it {asked}?", "target": "yes" if asked == colour else "no"})
        rows.append({"image": image, "text": f"is it a {figure}?", "target": "yes" if figure == shape else "no"})
    return rows
