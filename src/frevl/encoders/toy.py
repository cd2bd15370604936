"""Encoders without weights: deterministic, milliseconds, for tests, docs and a first try.

Their vectors carry real information (colours and their positions, random texture features, words and word pairs), so
that a fusion can learn from them; they are not meant to be good. All numbers come from hashes and float64, so they do
not depend on a library's random generator, on the process, or on the other items of a batch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from frevl.encoders.images import DECODE_TARGET
from frevl.encoders.interface import Embeddings, keep_tokens

__all__ = ["ToyImageTower", "ToyTextTower", "image_tower", "text_tower"]

_GRID = 7  # cells per side, as in the packaged networks
_CELL = 4  # pixels per side of a cell
_SIDE = _GRID * _CELL
_MAX_WORDS = 256


@dataclass(frozen=True)
class ToyImageTower:
    """Colour layout and random texture features of a 28x28 image, one token for each of 7x7 cells.

    The first ``3 * layout²`` numbers of a token are the cell's mean colour, in the slot of the image part (``layout x
    layout`` parts) that contains the cell; the others are ``relu(W pixels + b)``. The mean over the tokens therefore
    shows which colours are where and which textures occur.

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        layout: Number of parts per side for the colours.
        tokens: ``pooled``, ``7x7``, ``4x4`` or ``2x2``.
        batch_size: Number of images to pass at once.
        target: The ``target`` to pass to `frevl.encoders.images.read_image`.
    """

    name: str
    dim: int
    layout: int
    tokens: str
    batch_size: int = 64
    target: int = DECODE_TARGET

    @property
    def identity(self) -> dict[str, str]:
        """Everything that can change an embedding."""
        return {
            "tower": self.name,
            "weights": hashlib.sha256(self._projection.tobytes()).hexdigest(),
            "revision": "1",
            "preprocessing": (
                f"RGB, upright, over white; JPEG reduced to at least 2x{self.target}; "
                f"whole picture squashed to {_SIDE}x{_SIDE}, bicubic, antialiased; x/127.5 - 1"
            ),
            "tokens": self.tokens,
            "normalisation": "mean of tokens at unit length",
        }

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Return the image squashed to ``(28, 28, 3)`` uint8."""
        return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC))

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed ``(28, 28, 3)`` uint8 arrays."""
        return Embeddings.of([keep_tokens(self._cells(pixels), self.tokens) for pixels in prepared], self.dim)

    @cached_property
    def _projection(self) -> np.ndarray:
        inputs = 3 * _CELL * _CELL + 1  # the last is the bias
        numbers = hashed(self.name, inputs * (self.dim - 3 * self.layout**2))
        projection: np.ndarray = numbers.reshape(inputs, -1) / np.sqrt(inputs)
        return projection

    def _cells(self, pixels: np.ndarray) -> np.ndarray:
        scaled = pixels.astype(np.float64) / 127.5 - 1
        cells = scaled.reshape(_GRID, _CELL, _GRID, _CELL, 3).swapaxes(1, 2).reshape(_GRID * _GRID, -1)
        texture = np.maximum(np.hstack([cells, np.ones((len(cells), 1))]) @ self._projection, 0)
        row, column = np.divmod(np.arange(_GRID * _GRID), _GRID)
        part = row * self.layout // _GRID * self.layout + column * self.layout // _GRID
        colours = np.zeros((len(cells), self.layout**2, 3))
        colours[np.arange(len(cells)), part] = cells.reshape(len(cells), -1, 3).mean(axis=1)
        return np.hstack([colours.reshape(len(cells), -1), texture])


@dataclass(frozen=True)
class ToyTextTower:
    """A hashed vector for each word, its letter triples, and the word with its predecessor.

    Letter triples make ``cat`` and ``cats`` similar; predecessors make word order count.

    Attributes:
        name: The tower's column in a store.
        dim: Width of an embedding.
        tokens: ``pooled``, or a grid kind, which means word tokens here.
        batch_size: Number of texts to pass at once.
    """

    name: str
    dim: int
    tokens: str
    batch_size: int = 256

    @property
    def identity(self) -> dict[str, str]:
        """Everything that can change an embedding."""
        return {
            "tower": self.name,
            "weights": hashlib.sha256(hashed("", self.dim).tobytes()).hexdigest(),
            "revision": "1",
            "preprocessing": f"lower case, words and marks, at most {_MAX_WORDS}",
            "tokens": "pooled" if self.tokens == "pooled" else "words",
            "normalisation": "mean of tokens at unit length",
        }

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed texts; a text without words has the single token of the empty word."""
        kind = self.identity["tokens"]
        return Embeddings.of([keep_tokens(self._words(text), kind) for text in texts], self.dim)

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts of more than 256 words and marks."""
        return sum(len(_split(text)) > _MAX_WORDS for text in texts)

    def unread(self, texts: Sequence[str]) -> np.ndarray:
        """Return zeros, ``(n,)``: every word and punctuation mark has a vector of its own."""
        return np.zeros(len(texts), np.float32)

    def _words(self, text: str) -> np.ndarray:
        words = _split(text)[:_MAX_WORDS] or [""]
        vectors = []
        for before, word in zip(["", *words], words, strict=False):
            triples = [f"<{word}>"[i : i + 3] for i in range(len(word))]
            letters = sum((hashed("3:" + triple, self.dim) for triple in triples), np.zeros(self.dim))
            pair = hashed(f"2:{before} {word}", self.dim)
            vectors.append(hashed("1:" + word, self.dim) + letters / max(len(triples), 1) ** 0.5 + pair / 2)
        return np.stack(vectors)


def hashed(text: str, count: int) -> np.ndarray:
    """Return ``count`` float64 numbers determined by the text alone, uniform, with mean 0 and variance 1."""
    raw = hashlib.shake_256(text.encode("utf-8", "replace")).digest(count)
    return (np.frombuffer(raw, np.uint8).astype(np.float64) - 127.5) / 73.9


def _split(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())


# name: width, parts per side for the colours
_IMAGE_TOWERS = {"toy-image": (64, 3), "toy2-image": (32, 2)}


def image_tower(name: str, tokens: str) -> ToyImageTower:
    """Build the image tower ``toy-image`` (64 wide) or ``toy2-image`` (32 wide)."""
    dim, layout = _IMAGE_TOWERS[name]
    return ToyImageTower(name, dim, layout, tokens)


def text_tower(name: str, tokens: str) -> ToyTextTower:
    """Build the text tower ``toy-text`` (48 wide)."""
    return ToyTextTower(name, 48, tokens)
