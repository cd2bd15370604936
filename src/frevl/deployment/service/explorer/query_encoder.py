"""Embed texts and images that are not in the store, in the same space as its vectors."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from frevl.data.class_files import TEMPLATE
from frevl.encoders.images import read_image
from frevl.encoders.interface import Encoder, pool
from frevl.encoders.registry import load_encoder
from frevl.errors import FrevlError
from frevl.store.canaries import check_encoder
from frevl.store.reader import Store
from frevl.store.towers import Tower

__all__ = ["QueryEncoder"]

_USUAL_SCALE = 100.0
_SPACE = "common_space"  # field of a tower's identity: the common space of the encoder's images and texts


class QueryEncoder:
    """The encoder of an explorer, loaded on first use and checked against the store.

    Args:
        store: Store whose embeddings it must have produced.
        name: Name of the encoder.

    Attributes:
        name: Name of the encoder.
        image: Image tower of the encoder.
        text: Text tower of the encoder, if it shares a space with the image tower; else None.
        scale: Factor from cosine similarity to logit; CLIP's value if an import did not state it.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._place = str(store.path)
        (self.image,) = store.select_towers("image", [name])
        space = self.image.identity.get(_SPACE)
        texts = [tower for tower in store.select_towers("text", [name]) if tower.identity.get(_SPACE) == space]
        self.text: Tower | None = texts[0] if space is not None and texts else None
        scale = float(self.image.identity.get("logit_scale", "1"))
        self.scale = _USUAL_SCALE if scale == 1.0 else scale
        self._name_vectors: dict[str, np.ndarray] = {}
        self._encoder: Encoder | None = None
        self._guard = threading.Lock()

    @property
    def shares_space(self) -> bool:
        """Return whether its texts and images have a common space, even if the store has no texts."""
        return self.image.identity.get(_SPACE) is not None

    @property
    def embeds_images(self) -> bool:
        """Return whether an image outside the store can be embedded."""
        return not self.image.imported

    def can_embed_text(self, store: Store, text: str) -> bool:
        """Return whether a text can be embedded; with imported vectors, only texts of the store can."""
        return self.text is not None and (not self.text.imported or text in store.positions("text"))

    def embed_text(self, store: Store, text: str) -> np.ndarray | None:
        """Return the ``(dim,)`` unit vector of a text; None if unavailable.

        Raises:
            FrevlError: The encoder cannot be loaded, or is not the one that produced the store's embeddings.
        """
        if self.text is None or not self.can_embed_text(store, text):
            return None
        if text in store.positions("text"):
            return _unit(pool(*store.read("text", [text], [self.text]))[0])
        found = self._loaded(self.text).embed_texts([text], tokens=True)
        return _unit(pool(found.values.astype(self.text.identity["dtype"]), found.mask)[0])

    def embed_names(self, store: Store, names: Sequence[str]) -> tuple[np.ndarray | None, list[str]]:
        """Return ``(names, dim)`` unit vectors of class names, and sentences for the user.

        Names are embedded in the CLIP authors' prompt; with imported vectors, that prompt or the bare name must be a
        text of the store. None if it is not, or if the encoder reads no texts or is unavailable.
        """
        if self.text is None:
            return None, []
        found: dict[str, np.ndarray] = {}
        for name in names:
            sentence = TEMPLATE.replace("{}", name)
            text = next((text for text in (sentence, name) if self.can_embed_text(store, text)), None)
            vector = self._name_vectors.get(name)
            try:
                if vector is None and text is not None:
                    vector = self.embed_text(store, text)
            except FrevlError as error:
                return None, [f"Class names are not used, because the encoder is unavailable: {error}"]
            if vector is None:
                said = f"the text vectors of this store were imported, and {name!r:.80} is not among its texts"
                return None, [f"Class names are not used: {said}."]
            found[name] = vector
        self._name_vectors = found  # cached for the next request with the same names
        return np.stack(list(found.values())), []

    def embed_image(self, content: bytes, *, max_pixels: int) -> np.ndarray:
        """Return the ``(dim,)`` unit vector of an image.

        Raises:
            ImageError: The image cannot be read.
            FrevlError: The encoder cannot be loaded, or is not the one that produced the store's embeddings.
        """
        network = self._loaded(self.image).image
        if network is None:
            raise ValueError("the encoder of an image tower embeds images")
        prepared = network.prepare(read_image(content, target=network.target, max_pixels=max_pixels))
        found = network.embed([prepared])
        return _unit(pool(found.values.astype(self.image.identity["dtype"]), found.mask)[0])

    def _loaded(self, tower: Tower) -> Encoder:
        with self._guard:
            if self._encoder is None:
                encoder = load_encoder(self.name, tokens=tower.identity["tokens"])
                check_encoder(encoder, [one for one in (self.image, self.text) if one is not None], self._place)
                self._encoder = encoder
            return self._encoder


def _unit(vector: np.ndarray) -> np.ndarray:
    found: np.ndarray = vector.astype(np.float32)
    return found / max(float(np.linalg.norm(found)), 1e-12)
