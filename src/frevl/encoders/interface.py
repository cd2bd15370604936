"""The encoder interface: an image tower, a text tower, or both, their embeddings, and token pooling."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, overload

import numpy as np

from frevl.errors import UsageError
from frevl.machine import processors

if TYPE_CHECKING:
    from PIL import Image

    from frevl.encoders.images import ImageSource

__all__ = [
    "MOST_CHARACTERS",
    "TOKENS",
    "Embeddings",
    "Encoder",
    "ImageTower",
    "TextTower",
    "keep_layers",
    "keep_tokens",
    "pool",
    "readable",
    "stack",
]

TOKENS = ("pooled", "7x7", "4x4", "2x2")
"""Kinds of tokens: one pooled token, or a grid of image tokens with the word tokens of a text."""


@dataclass(frozen=True)
class Embeddings:
    """A batch of embeddings.

    Attributes:
        values: ``(n, tokens, dim)`` float32; pooled embeddings have one token. Masked-out values are zero.
        mask: ``(n, tokens)`` bool, True where a token exists; each item has at least one.
    """

    values: np.ndarray
    mask: np.ndarray

    @classmethod
    def of(cls, items: Sequence[np.ndarray], dim: int) -> Embeddings:
        """Collect items into a batch.

        Args:
            items: One ``(tokens, dim)`` float32 array per item; the number of tokens may vary.
            dim: Width of an embedding, needed if there are no items: the batch is then ``(0, 1, dim)``.
        """
        if not items:
            return cls(np.zeros((0, 1, dim), np.float32), np.zeros((0, 1), bool))
        return cls(*stack(items))

    @property
    def items(self) -> list[np.ndarray]:
        """Return the items without padding: one ``(tokens, dim)`` array each."""
        return [values[mask] for values, mask in zip(self.values, self.mask, strict=True)]


class ImageTower(Protocol):
    """A frozen network that turns images into embeddings."""

    @property
    def name(self) -> str:
        """Name of the tower's column in a store, for example ``efficientnet-lite0``."""

    @property
    def dim(self) -> int:
        """Width of one embedding."""

    @property
    def identity(self) -> dict[str, str]:
        """Everything that can change an embedding, field by field; hashed into the fingerprint."""

    @property
    def target(self) -> int:
        """The ``target`` to pass to `frevl.encoders.images.read_image`; part of the identity."""

    @property
    def batch_size(self) -> int:
        """Number of prepared images to pass to `embed` at once; affects speed, never a value."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn an image returned by `read_image` into the network's input, without a batch axis.

        Thread-safe; meant to be called by decoding threads.
        """

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed a batch of prepared images on all CPU cores. Thread-safe."""


class TextTower(Protocol):
    """A frozen network that turns texts into embeddings."""

    @property
    def name(self) -> str:
        """Name of the tower's column in a store, for example ``minilm-l6``."""

    @property
    def dim(self) -> int:
        """Width of one embedding."""

    @property
    def identity(self) -> dict[str, str]:
        """Everything that can change an embedding, field by field; hashed into the fingerprint."""

    @property
    def batch_size(self) -> int:
        """Number of texts to pass to `embed` at once; affects speed, never a value."""

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed a batch of texts on all CPU cores. Thread-safe."""

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that are too long for the network, whose ends are therefore not embedded."""

    def unread(self, texts: Sequence[str]) -> np.ndarray:
        """Return the share of each text's letters that the tokenizer cannot read, ``(n,)`` float32 in [0, 1].

        See `frevl.encoders.unreadable_texts`.
        """


@dataclass(frozen=True)
class Encoder:
    """An image tower, a text tower, or one of each.

    Attributes:
        name: The name given to `load_encoder`.
        image: The image tower, or None.
        text: The text tower, or None.
    """

    name: str
    image: ImageTower | None
    text: TextTower | None

    @overload
    def embed_images(self, images: Sequence[ImageSource], *, tokens: Literal[False] = False) -> np.ndarray: ...
    @overload
    def embed_images(self, images: Sequence[ImageSource], *, tokens: Literal[True]) -> Embeddings: ...
    def embed_images(self, images: Sequence[ImageSource], *, tokens: bool = False) -> np.ndarray | Embeddings:
        """Embed images, in batches, in the order given.

        Args:
            images: Paths, bytes of image files, or Pillow images; any number.
            tokens: Return all tokens instead of their mean.

        Returns:
            ``(n, dim)`` float32, the mean of each item's tokens, at unit length (see `keep_tokens`); with
            ``tokens=True`` the `Embeddings` ``(n, tokens, dim)``.

        Raises:
            ImageError: An image cannot be read.
            UsageError: The encoder has no image tower, ``images`` is a single image, or an element is not an image.
        """
        from PIL import Image

        from frevl.encoders.images import read_image

        tower = self.image
        if tower is None:
            raise UsageError(f"The encoder '{self.name}' has no image tower, so it cannot embed images.")
        if isinstance(images, str | bytes | os.PathLike | Image.Image):
            raise UsageError("embed_images takes a list of images and was given a single one; write [image].")
        kinds = (str, bytes, os.PathLike, Image.Image)
        wrong = next((type(image).__name__ for image in images if not isinstance(image, kinds)), None)
        if wrong is not None:
            raise UsageError(
                f"embed_images takes paths, bytes of image files or Pillow images, and found one of type {wrong}."
            )

        def prepared(image: ImageSource) -> np.ndarray:
            return tower.prepare(read_image(image, target=tower.target))

        with ThreadPoolExecutor(processors()) as workers:
            batches = (
                tower.embed(list(workers.map(prepared, images[start : start + tower.batch_size])))
                for start in range(0, len(images), tower.batch_size)
            )
            embedded = Embeddings.of([item for batch in batches for item in batch.items], tower.dim)
        return embedded if tokens else pool(embedded.values, embedded.mask)

    @overload
    def embed_texts(self, texts: Sequence[str], *, tokens: Literal[False] = False) -> np.ndarray: ...
    @overload
    def embed_texts(self, texts: Sequence[str], *, tokens: Literal[True]) -> Embeddings: ...
    def embed_texts(self, texts: Sequence[str], *, tokens: bool = False) -> np.ndarray | Embeddings:
        """Embed texts, in batches, in the order given.

        Args:
            texts: Any number of texts. Those that are too long lose their ends (see `TextTower.truncated`).
            tokens: Return all tokens instead of their mean.

        Returns:
            ``(n, dim)`` float32, the mean of each item's tokens, at unit length (see `keep_tokens`); with
            ``tokens=True`` the `Embeddings` ``(n, tokens, dim)``.

        Raises:
            UsageError: The encoder has no text tower, ``texts`` is a single text, or an element is not a string.
        """
        tower = self.text
        if tower is None:
            raise UsageError(f"The encoder '{self.name}' has no text tower, so it cannot embed texts.")
        if isinstance(texts, str):
            raise UsageError("embed_texts takes a list of texts and was given a single one; write [text].")
        wrong = next((type(text).__name__ for text in texts if not isinstance(text, str)), None)
        if wrong is not None:
            raise UsageError(
                f"embed_texts takes a list of texts and found one of type {wrong} in it; give strings only."
            )
        batches = (
            tower.embed(texts[start : start + tower.batch_size]) for start in range(0, len(texts), tower.batch_size)
        )
        embedded = Embeddings.of([item for batch in batches for item in batch.items], tower.dim)
        return embedded if tokens else pool(embedded.values, embedded.mask)


def pool(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mean over the tokens that are not padding.

    Args:
        values: ``(n, tokens, dim)`` embeddings.
        mask: ``(n, tokens)`` bool, True where a token exists.

    Returns:
        ``(n, dim)`` float32, one pooled embedding per item.
    """
    if values.shape[1] == 1:
        return values[:, 0].astype(np.float32)
    weights = (mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    pooled = np.empty((len(values), values.shape[2]), np.float32)
    for start in range(0, len(values), 1024):  # in blocks: a float32 copy of all tokens may not fit
        block = slice(start, start + 1024)
        pooled[block] = np.matmul(weights[block, None], values[block].astype(np.float32))[:, 0]
    return pooled


def stack(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Stack embeddings with different numbers of tokens into one batch.

    Args:
        rows: At least one ``(tokens, dim)`` array, all of the same type and width.

    Returns:
        ``(n, longest, dim)``, zero where no token exists, and the ``(n, longest)`` bool mask of existing tokens.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros((len(rows), int(lengths.max()), rows[0].shape[1]), rows[0].dtype)
    values[mask] = np.concatenate(rows)
    return values, mask


def keep_layers(tokens: np.ndarray, kind: str, layers: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Reduce tokens made of several concatenated hidden states; each is kept and scaled as in `keep_tokens`.

    The result is divided by the square root of the number of states, so that its pooled embedding has unit length.

    Args:
        tokens: ``(tokens, layers * width)`` float.
        kind: As in `keep_tokens`.
        layers: Number of hidden states.
        shape: As in `keep_tokens`.

    Returns:
        ``(kept tokens, layers * width)`` float32.
    """
    parts = [keep_tokens(part, kind, shape) for part in np.split(tokens, layers, axis=1)]
    return parts[0] if layers == 1 else np.concatenate(parts, axis=1) / np.float32(math.sqrt(layers))


def keep_tokens(tokens: np.ndarray, kind: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Reduce one item's tokens to the requested kind, and scale them.

    Every kind is divided by one number, the length of the mean of all tokens (ours). The pooled embedding therefore has
    unit length, the mean of word tokens or of a 7x7 grid of 49 tokens is the pooled embedding, and differences in
    length between tokens survive. If a grid does not divide evenly, its cells overlap, and its mean is only close to
    the pooled embedding.

    Args:
        tokens: ``(tokens, dim)`` float; for a grid kind in row-major order.
        kind: ``"pooled"``, ``"words"`` (all tokens), or ``"GxG"``: cell averages as in adaptive average pooling
            (``torch.nn.AdaptiveAvgPool2d``), where cell i of G covers floor(i n/G) to ceil((i+1) n/G) of n.
        shape: Numbers of rows and columns of the grid; None for a square one.

    Returns:
        ``(1, dim)``, ``(tokens, dim)`` or ``(G * G, dim)`` float32.
    """
    mean = tokens.mean(axis=0, dtype=np.float64)
    # No dot product: towers call this from several threads, and a product of more than 10,000 numbers starts threads of
    # its own, which made embeddings of width 12,064 three times as slow as their network.
    length = math.sqrt(float(np.square(mean).sum())) or 1.0  # an image with no activation at all stays zero
    if kind == "pooled":
        tokens = mean[None]
    elif kind != "words":
        tokens = _cell_averages(tokens, int(kind.split("x")[0]), shape)
    scaled: np.ndarray = tokens / length
    return scaled.astype(np.float32)


def _cell_averages(tokens: np.ndarray, wanted: int, shape: tuple[int, int] | None) -> np.ndarray:
    """Average ``(rows * columns, dim)`` to ``(wanted², dim)``: first over rows, then over columns."""
    side, dim = math.isqrt(len(tokens)), tokens.shape[1]
    rows, columns = shape or (side, side)
    if rows == columns == wanted:
        return tokens
    # Slices instead of a matrix product: towers call this from several threads, where a threaded product took ten
    # times as long as it should.
    grid = tokens.reshape(rows, columns, dim)
    averaged = np.stack([grid[start:stop].mean(axis=0) for start, stop in _cells(rows, wanted)])
    across = [averaged[:, start:stop].mean(axis=1) for start, stop in _cells(columns, wanted)]
    return np.stack(across, axis=1).reshape(-1, dim)


def _cells(count: int, wanted: int) -> list[tuple[int, int]]:
    return [(i * count // wanted, -(-(i + 1) * count // wanted)) for i in range(wanted)]


# A tokenizer splits the whole text before it truncates: 6 million characters took 16 s and 1.4 GB.
MOST_CHARACTERS = 100_000


def readable(text: str) -> str:
    """Return the beginning of a text in a form that any tokenizer can read, at most `MOST_CHARACTERS` characters.

    Half of a surrogate pair, which malformed JSON may contain, has no UTF-8 form and becomes U+FFFD.
    """
    return text[:MOST_CHARACTERS].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
