"""How many near copies of each kind `frevl curate --drop duplicate` finds, and how many ordinary images it drops.

    python bench/quality/copies.py IMAGES [--originals 2000] [--each 25] [--seed 0] [--encoder packaged] [--kind NAME]

From a folder of images, some are drawn, and of others of these one copy each is made; kinds are mixed. All are
extracted and curated twice, by embeddings alone and with `--images`. A copy is found if it is in one group with its
original. Prints one JSON record per kind, and one of the links between images that are no copies of each other.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

import frevl

Change = Callable[[Image.Image], Image.Image]
JPEG_QUALITY = 90


def turned(degrees: float) -> Change:
    """Rotated, with black corners, on the same canvas."""
    return lambda image: image.rotate(degrees, Image.Resampling.BICUBIC)


def scaled(share: float) -> Change:
    return lambda image: image.resize(
        (max(1, round(share * image.width)), max(1, round(share * image.height))), Image.Resampling.BICUBIC
    )


def cropped(share: float, places: np.random.Generator) -> Change:
    """A window at a random place, of whose sides this share is missing."""

    def change(image: Image.Image) -> Image.Image:
        width, height = round((1 - share) * image.width), round((1 - share) * image.height)
        left, top = places.integers(0, image.width - width + 1), places.integers(0, image.height - height + 1)
        return image.crop((int(left), int(top), int(left) + width, int(top) + height))

    return change


def bordered(share: float, colour: str) -> Change:
    return lambda image: ImageOps.expand(image, round(share * min(image.size)), colour)


def letterboxed(ratio: float) -> Change:
    """Padded with black to another aspect ratio, width by height."""

    def change(image: Image.Image) -> Image.Image:
        width, height = max(image.width, round(ratio * image.height)), max(image.height, round(image.width / ratio))
        canvas = Image.new("RGB", (width, height))
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
        return canvas

    return change


def watermarked(image: Image.Image) -> Image.Image:
    """A line of half-transparent text across the middle."""
    layer = Image.new("RGBA", image.size)
    font = ImageFont.load_default(max(8, image.width // 8))
    ImageDraw.Draw(layer).text((image.width // 2, image.height // 2), "SAMPLE 2024", (255, 255, 255, 150), font, "mm")
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def on_a_phone(image: Image.Image) -> Image.Image:
    """A screenshot of 9 by 16: the image over the full width, on white, below a bar and above lines of text."""
    canvas = Image.new("RGB", (image.width, round(image.width * 16 / 9)), "white")
    draw, line = ImageDraw.Draw(canvas), max(2, canvas.height // 40)
    draw.rectangle((0, 0, canvas.width, 2 * line), "#202124")
    canvas.paste(image, (0, 3 * line))
    for row in range(4):
        top = 3 * line + image.height + line + 2 * row * line
        draw.rectangle((line, top, canvas.width * (9 - row) // 10, top + line // 2), "#5f6368")
    return canvas


def in_a_window(image: Image.Image) -> Image.Image:
    """A screenshot of 16 by 10: the image in a window with a title bar and a margin, at the left of a side bar."""
    canvas = Image.new("RGB", (round(1.15 * image.height * 16 / 10), round(1.15 * image.height)), "#f1f3f4")
    bar = round(0.1 * image.height)
    ImageDraw.Draw(canvas).rectangle((0, 0, canvas.width, bar), "#dadce0")
    canvas.paste(image, (bar // 3, bar + bar // 4))
    return canvas


def gamma(power: float) -> Change:
    return lambda image: image.point([round(255 * (value / 255) ** power) for value in range(256)] * 3)


def compressed(quality: int) -> Change:
    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("RGB")

    return change


def kinds(places: np.random.Generator) -> dict[str, Change]:
    """Every kind of copy."""
    return {
        "JPEG 20": compressed(20),
        "a half": scaled(1 / 2),
        "a third": scaled(1 / 3),
        "greyscale": lambda image: image.convert("L").convert("RGB"),
        "brightness 0.6": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
        "brightness 1.4": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
        "contrast 0.6": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
        "contrast 1.5": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
        "gamma 0.6": gamma(0.6),
        "gamma 1.8": gamma(1.8),
        "mirrored": ImageOps.mirror,
        "turned by 3 degrees": turned(3),
        "turned by 90 degrees": lambda image: image.rotate(90, expand=True),
        "turned by 180 degrees": lambda image: image.rotate(180),
        "white border of 5 %": bordered(0.05, "white"),
        "black border of 15 %": bordered(0.15, "black"),
        "letterboxed to 16:9": letterboxed(16 / 9),
        "letterboxed to 9:16": letterboxed(9 / 16),
        "watermark": watermarked,
        "screenshot of a phone": on_a_phone,
        "screenshot of a window": in_a_window,
        "10 % cropped": cropped(0.1, places),
        "20 % cropped": cropped(0.2, places),
        "30 % cropped": cropped(0.3, places),
    }


def main() -> None:
    """Make the copies and look for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--originals", type=int, default=2000)
    parser.add_argument("--each", type=int, default=25, help="Copies of each kind.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="packaged")
    parser.add_argument("--kind", nargs="+", help="Only these kinds.")
    parser.add_argument("--scratch", type=Path, help="Keep images and store here.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, options.scratch or Path(folder))


def measure(options: argparse.Namespace, scratch: Path) -> None:
    """Print the records."""
    random = np.random.default_rng(options.seed)
    names = sorted(path.name for path in options.images.iterdir())
    drawn = [names[row] for row in random.permutation(len(names))[: options.originals]]
    made = {name: change for name, change in kinds(random).items() if options.kind is None or name in options.kind}
    images = scratch / "images"
    images.mkdir(parents=True)
    for name in drawn:
        (images / name).symlink_to((options.images / name).resolve())
    original_of, kind_of = {}, {}
    for number, name in enumerate(drawn[: options.each * len(made)]):
        kind = list(made)[number % len(made)]
        copy = f"{kind.replace(' ', '-').replace('%', '').replace(':', '-')}-{Path(name).stem}"
        with Image.open(options.images / name) as file:
            image = made[kind](file.convert("RGB"))
        copy += ".png" if "screenshot" in kind else ".jpg"
        image.save(images / copy, **({} if copy.endswith("png") else {"quality": JPEG_QUALITY}))
        original_of[copy], kind_of[copy] = name, kind
    rows = [{"image": name, "target": ("odd", "even")[at % 2]} for at, name in enumerate([*drawn, *original_of])]
    pairs = scratch / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    frevl.extract(scratch / "store", images=images, encoder=[options.encoder])
    look(options, scratch, original_of, kind_of)


def look(options: argparse.Namespace, scratch: Path, original_of: dict[str, str], kind_of: dict[str, str]) -> None:
    """Curate both ways and print what was found."""
    for by, folder in (("embeddings", None), ("pixels", scratch / "images")):
        begun = time.process_time()
        found = frevl.curate(
            scratch / "store", scratch / "pairs.jsonl", drop=["duplicate"], images=folder, task="classification"
        )
        seconds = time.process_time() - begun
        kept = {line["image"]: line["curate"]["duplicate_of"] or line["image"] for line in found.lines}
        together = {copy for copy, original in original_of.items() if kept[copy] == kept[original]}
        for kind in dict.fromkeys(kind_of.values()):
            own = [copy for copy, of in kind_of.items() if of == kind]
            wrong = [copy for copy in own if kept[copy] != copy and copy not in together]
            record(
                images=options.images.parent.name, by=by, kind=kind, copies=len(own), wrongly_dropped=len(wrong),
                recall=round(sum(copy in together for copy in own) / len(own), 3),
            )  # fmt: skip
        links = [(one, other) for one, other in kept.items() if one != other]
        wrong = [pair for pair in links if original_of.get(pair[0], pair[0]) != original_of.get(pair[1], pair[1])]
        record(
            images=options.images.parent.name, by=by, originals=options.originals, copies=len(original_of),
            recall=round(len(together) / max(1, len(original_of)), 4), dropped=len(links), dropped_wrongly=len(wrong),
            precision=round(1 - len(wrong) / max(1, len(links)), 4), seconds=round(seconds, 1),
            agreement=found.filters["duplicate"].get("agreement"), wrong=wrong,
        )  # fmt: skip


def record(**values: object) -> None:
    """Print one measurement."""
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
