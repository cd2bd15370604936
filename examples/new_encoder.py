"""An encoder of your own: a class with a few properties, registered under a name, used like any other."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

import frevl
from drawn_shapes import arguments, draw, questions, write
from frevl.encoders.interface import Embeddings
from frevl.encoders.registry import ENCODERS


@dataclass(frozen=True)
class HistogramTower:
    """Share of the pixels in each of 4 x 4 x 4 colours; a real one would run a network."""

    name: str = "histogram"
    dim: int = 64
    batch_size: int = 64
    target: int = 64

    @property
    def identity(self) -> dict[str, str]:
        """Everything that can change an embedding; a store refuses a tower whose identity differs."""
        return {
            "tower": self.name, "weights": "none", "revision": "1", "preprocessing": "64x64, box filter",
            "tokens": "pooled", "normalisation": "unit length",
        }  # fmt: skip

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return ``(64, 64, 3)`` uint8."""
        return np.asarray(image.resize((64, 64), Image.Resampling.BOX))

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed prepared images, each by itself."""
        cells = [pixels.reshape(-1, 3) // 64 @ np.array([16, 4, 1]) for pixels in prepared]
        counts = [np.bincount(cell, minlength=self.dim).astype(np.float32) for cell in cells]
        return Embeddings.of([count[None] / np.linalg.norm(count) for count in counts], self.dim)


def main() -> None:
    asked = arguments(__doc__)
    text_tower = frevl.load_encoder(asked.encoder).text
    ENCODERS["histogram"] = lambda _tokens: (HistogramTower(), text_tower)

    drawn = draw(asked.folder)
    pairs = write(asked.folder / "pairs.jsonl", [row for row in questions(drawn) if "is it a" not in row["text"]])
    store = asked.folder / "store"
    frevl.extract(store, images=asked.folder / "images", pairs=[pairs], encoder=["histogram"])
    run = frevl.train(store, pairs, run=asked.folder / "run", task="classification", model="kernel")
    print(f"{run.results['development']['accuracy']:.1f} % of held-out answers are right")


if __name__ == "__main__":
    main()
