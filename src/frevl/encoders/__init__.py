"""Frozen encoders: what they must offer, and the closed table of those that exist.

An encoder is one image tower, one text tower, or one of each. A tower is the unit of identity: it is one
column of a store and has one fingerprint, so that two encoders that share a text tower embed texts once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from frevl.errors import EncoderError, UsageError, nearest

__all__ = ["ENCODERS", "Embeddings", "Encoder", "ImageTower", "TextTower", "load_encoder"]


@dataclass(frozen=True)
class Embeddings:
    """A batch of embeddings.

    Attributes:
        values: ``(n, tokens, dim)`` float32; pooled embeddings have one token.
        mask: ``(n, tokens)`` bool, True where a token exists. Masked-out values are zero.
    """

    values: np.ndarray
    mask: np.ndarray


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

    def prepare(self, image: Image.Image) -> np.ndarray:
        """Turn one decoded RGB image into the network's input, without the batch axis. Thread-safe."""

    def embed(self, prepared: Sequence[np.ndarray]) -> Embeddings:
        """Embed a batch of prepared images."""


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

    def embed(self, texts: Sequence[str]) -> Embeddings:
        """Embed a batch of texts."""
