"""How many copies of a set's own images `find_near_copies` finds, and how many ordinary images it calls copies.

Run: ``python -m research.near_copies FOLDER [images]``. The first images of a folder (600) are embedded with
``packaged``; then every kind of copy of the first 200 is put beside those 200. Prints a row of a Markdown table.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from frevl.encoders.registry import load_encoder
from frevl.store.grouping.copies import find_near_copies


def recompressed(picture: Image.Image, quality: int) -> Image.Image:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=quality)
    return Image.open(io.BytesIO(stream.getvalue())).convert("RGB")


def cropped(picture: Image.Image, share: float) -> Image.Image:
    width, height = picture.size
    return picture.crop((int(width * share), int(height * share), int(width * (1 - share)), int(height * (1 - share))))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG 75": lambda picture: recompressed(picture, 75),
    "JPEG 30": lambda picture: recompressed(picture, 30),
    "half size": lambda picture: picture.resize((max(8, picture.width // 2), max(8, picture.height // 2))),
    "5 % cut off each side": lambda picture: cropped(picture, 0.05),
    "10 % cut off each side": lambda picture: cropped(picture, 0.1),
    "15 % brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.15),
    "mirrored": ImageOps.mirror,
    "grey": lambda picture: picture.convert("L").convert("RGB"),
}


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 600
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:count]
    pictures = [Image.open(path).convert("RGB") for path in files]
    encoder = load_encoder("packaged")
    plain = np.asarray(encoder.embed_images(pictures))
    row = [f"{folder.name}", f"{len(np.unique(find_near_copies(plain).links))} of {len(plain)}"]
    some = pictures[:200]
    for copy in COPIES.values():
        both = np.concatenate([plain[: len(some)], np.asarray(encoder.embed_images([copy(one) for one in some]))])
        links = {tuple(link) for link in find_near_copies(both).links.tolist()}
        row.append(f"{100 * sum((one, len(some) + one) in links for one in range(len(some))) / len(some):.0f} %")
    print("| set | ordinary pictures linked | " + " | ".join(COPIES) + " |\n" + "|---" * (2 + len(COPIES)) + "|")
    print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
