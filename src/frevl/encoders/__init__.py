"""Frozen encoders: what they must offer, and the closed table of those that exist.

An encoder is one image tower, one text tower, or one of each. A tower is the unit of identity: it is one
column of a store and has one fingerprint, so that two encoders that share a text tower embed texts once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, overload

import numpy as np
from PIL import Image

from frevl.embeddings import pool, stack
from frevl.errors import UsageError, nearest
from frevl.images import ImageSource, read_image

__all__ = [
    "ENCODERS",
    "PREFIXES",
    "TOKENS",
    "Embeddings",
    "Encoder",
    "ImageTower",
    "TextTower",
    "load_encoder",
    "processors",
    "with_layers",
]

TOKENS = ("pooled", "7x7", "4x4", "2x2")
"""What an embedding is made of: one pooled token, or a grid of image tokens and the word tokens of a text."""


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
        """Make a batch of items.

        Args:
            items: One ``(tokens, dim)`` float32 array an item; the number of tokens may differ.
            dim: Width, needed when there is no item: the batch is then ``(0, 1, dim)``.
        """
        if not items:
            return cls(np.zeros((0, 1, dim), np.float32), np.zeros((0, 1), bool))
        return cls(*stack(items))

    @property
    def items(self) -> list[np.ndarray]:
        """The items without padding: one ``(tokens, dim)`` array each."""
        return [values[mask] for values, mask in zip(self.values, self.mask, strict=True)]


class ImageTower(Protocol):
    """The frozen network that turns images into embeddings."""

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
        """The ``target`` to pass to `frevl.images.read_image`; part of the identity."""

    @property
    def batch_size(self) -> int:
        """How many prepared images to hand to `embed` at once; changes speed, never a value."""

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn one image that `read_image` returned into the network's input, without a batch axis.

        Thread-safe; meant to be called by the threads that decode.
        """

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed a batch of prepared images, on all processor cores. Thread-safe."""


class TextTower(Protocol):
    """The frozen network that turns texts into embeddings."""

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
        """How many texts to hand to `embed` at once; changes speed, never a value."""

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed a batch of texts, on all processor cores. Thread-safe."""

    def truncated(self, texts: Sequence[str]) -> int:
        """Count the texts that are too long for the network, so that their end is not embedded."""


@dataclass(frozen=True)
class Encoder:
    """One image tower, one text tower, or one of each.

    Attributes:
        name: The name that `load_encoder` was given.
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
            tokens: Return every token instead of their mean.

        Returns:
            ``(n, dim)`` float32, the mean of each item's tokens (at unit length, see `frevl.encoders.tokens`);
            with ``tokens=True`` the `Embeddings` ``(n, tokens, dim)``.

        Raises:
            ImageError: An image cannot be read.
            UsageError: The encoder has no image tower, ``images`` is a single one, or one of them is no image.
        """
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
            texts: Any number of texts. Too long ones lose their end (see `TextTower.truncated`).
            tokens: Return every token instead of their mean.

        Returns:
            ``(n, dim)`` float32, the mean of each item's tokens (at unit length, see `frevl.encoders.tokens`);
            with ``tokens=True`` the `Embeddings` ``(n, tokens, dim)``.

        Raises:
            UsageError: The encoder has no text tower, ``texts`` is a single one, or one of them is not a string.
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


def processors() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# The imports wait inside: towers need libraries that are optional or slow to import.
def _packaged(image: str, tokens: str) -> tuple[ImageTower, TextTower]:
    from frevl.encoders.packaged import image_tower, text_tower

    return image_tower(image, tokens), text_tower("minilm-l6", tokens)


def _packaged_deep(tokens: str) -> tuple[ImageTower, TextTower]:
    if tokens != "pooled":
        raise UsageError(
            f"The encoder 'packaged-deep' is pooled only and cannot keep the tokens '{tokens}'; for tokens take "
            "'packaged', 'packaged-lite1' or 'packaged-lite2'."
        )
    from frevl.encoders.packaged import deep_image_tower, deep_text_tower

    return deep_image_tower(), deep_text_tower()


def _toy(image: str, tokens: str) -> tuple[ImageTower, TextTower]:
    from frevl.encoders.toy import image_tower, text_tower

    return image_tower(image, tokens), text_tower("toy-text", tokens)


ENCODERS: dict[str, Callable[[str], tuple[ImageTower | None, TextTower | None]]] = {
    "packaged": partial(_packaged, "efficientnet-lite0"),
    "packaged-lite1": partial(_packaged, "efficientnet-lite1"),
    "packaged-lite2": partial(_packaged, "efficientnet-lite2"),
    "packaged-deep": _packaged_deep,
    "toy": partial(_toy, "toy-image"),
    "toy2": partial(_toy, "toy2-image"),
}
"""Every encoder by name: a function from a kind of tokens to the two towers."""


def _huggingface(model: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    from frevl.encoders.huggingface import towers

    return towers(model, tokens)


def _openclip(model: str, tokens: str) -> tuple[ImageTower | None, TextTower | None]:
    from frevl.encoders.openclip import towers

    return towers(model, tokens)


PREFIXES: dict[str, Callable[[str, str], tuple[ImageTower | None, TextTower | None]]] = {
    "hf:": _huggingface,
    "openclip:": _openclip,
}
"""The two open entries: a prefix, and a function from the rest of the name and a kind of tokens to the two towers."""


def with_layers(name: str, layers: Sequence[int]) -> str:
    """Write chosen hidden layers into an encoder's name, so that the name says all that loading needs.

    Args:
        name: For `load_encoder`.
        layers: 0 for the embedding layer, -1 for the last hidden state; none leaves the name as it is.

    Raises:
        UsageError: Only encoders ``hf:`` have layers to choose from.
    """
    if not layers:
        return name
    if not name.startswith("hf:"):
        raise UsageError(f"--layers goes with encoders of a model hub (hf:MODEL), not with '{name}'; leave it out")
    return f"{name}#layers={','.join(map(str, layers))}"


def load_encoder(name: str, *, tokens: str = "pooled") -> Encoder:
    """Load an encoder by name.

    The first use of a packaged encoder takes some seconds: it exports the network to the user's cache folder.

    Args:
        name: One of `ENCODERS`, ``hf:MODEL`` (see `frevl.encoders.huggingface`) or ``openclip:ARCHITECTURE/WEIGHTS``
            (see `frevl.encoders.openclip`).
        tokens: One of `TOKENS`. ``"7x7"``, ``"4x4"`` and ``"2x2"`` keep a grid of image tokens and the word
            tokens of texts; ``"pooled"`` keeps their mean. ``packaged-deep`` is pooled only.

    Returns:
        The encoder, ready to embed.

    Raises:
        UsageError: Unknown name or kind of tokens, or tokens that the encoder does not keep.
        MissingExtraError: The encoder's libraries are not installed.
        EncoderError: The encoder is damaged, cannot be fetched, or its cache folder cannot be used.
    """
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if prefix is None and name not in ENCODERS:
        hint = f" A model of a hub is written 'hf:{name}'." if "/" in name else ""
        raise UsageError(f"There is no encoder '{name}'. {nearest(name, ENCODERS)}{hint}")
    if tokens not in TOKENS:
        raise UsageError(f"There is no kind of tokens '{tokens}'. {nearest(tokens, TOKENS)}")
    image, text = ENCODERS[name](tokens) if prefix is None else PREFIXES[prefix](name.removeprefix(prefix), tokens)
    return Encoder(name, image, text)
