"""The encoders of a run, which embed items outside the store consistently with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from frevl.encoders.images import MAX_PIXELS, ImageSource, read_image
from frevl.encoders.interface import Encoder, ImageTower
from frevl.encoders.registry import load_encoder
from frevl.encoders.runtime import on_device
from frevl.errors import StoreError, UsageError
from frevl.runs.run import Run
from frevl.store.canaries import check_encoder
from frevl.store.reader import Store
from frevl.store.towers import Modality, Tower

__all__ = ["OwnEncoders"]


class OwnEncoders:
    """The encoders behind a run's embeddings; each is loaded and checked on first use."""

    def __init__(self, run: Run, store: Store, towers: Mapping[Modality, list[Tower]], *, device: str) -> None:
        """Record what the encoders must be consistent with; nothing is loaded.

        Args:
            run: The run that reads the embeddings.
            store: The store whose embeddings they must match.
            towers: Towers that the run reads, by modality.
            device: Device on which the encoders run.
        """
        self._towers = towers
        self._run, self._store, self._device = run, store, device
        self._encoders: dict[str, Encoder] = {}

    def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts as they would be in the store.

        Returns:
            ``(n, tokens, dim)`` in the stored type and a ``(n, tokens)`` mask.

        Raises:
            UsageError: A text is not a string.
            StoreError: A text is empty.
            FingerprintError: The encoder is not the one that made the store.
        """
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"A text to score must be a string, found {type(text).__name__}")
            if not text.strip():
                raise StoreError("A text to score is blank; expected a sentence or question")
        parts = []
        for tower in self._towers["text"]:
            encoder = next(e for e in self.encoders("text") if e.text is not None and e.text.name == tower.name)
            embedded = encoder.embed_texts(list(texts), tokens=True)
            parts.append((embedded.values.astype(tower.identity["dtype"]), embedded.mask))
        return np.concatenate([values for values, _ in parts], axis=2), parts[0][1]

    def prepare_image(self, image: ImageSource, *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
        """Read one image as extraction does, into the input of each image tower. Thread-safe once encoders are loaded.

        Args:
            image: A path, the bytes of an image file, or a Pillow image.
            max_pixels: As in `frevl.encoders.images.read_image`.

        Raises:
            ImageError: The image cannot be read.
        """
        towers = self._image_networks()
        pictures = {t: read_image(image, target=t, max_pixels=max_pixels) for t in {tower.target for tower in towers}}
        return [tower.prepare(pictures[tower.target]) for tower in towers]

    def embed_images(self, prepared: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
        """Embed images as they would be in the store.

        Args:
            prepared: The result of `prepare_image` for each image.

        Returns:
            One ``(tokens, dim)`` array per image, in the stored type, as accepted by ``images`` of `score`.

        Raises:
            FingerprintError: An encoder is not the one that made the store.
        """
        parts = []
        for row, network in enumerate(self._image_networks()):
            items: list[np.ndarray] = []
            for start in range(0, len(prepared), network.batch_size):
                items += network.embed([one[row] for one in prepared[start : start + network.batch_size]]).items
            parts.append(items)
        dtype = self._towers["image"][0].identity["dtype"]
        return [np.concatenate(items, axis=1).astype(dtype) for items in zip(*parts, strict=True)]

    def _image_networks(self) -> list[ImageTower]:
        loaded = {encoder.image.name: encoder.image for encoder in self.encoders("image") if encoder.image is not None}
        return [loaded[tower.name] for tower in self._towers["image"]]

    def encoders(self, modality: Modality | None = None) -> list[Encoder]:
        """Load the run's encoders, for one modality or both, and check that they match the store.

        Raises:
            StoreError: Vectors of this modality were imported, so nothing can be embedded like them.
            FingerprintError: An encoder is not the one that made the store.
        """
        towers = [tower for of, own in self._towers.items() if modality in (None, of) for tower in own]
        imported = next((tower for tower in towers if tower.imported), None)
        if imported is not None:
            raise StoreError(
                f"{self._store.path}: the vectors of '{imported.name}' were imported, so {imported.modality}s "
                f"outside the store cannot be embedded in the same way; use its own {imported.modality}s, or "
                "import more vectors"
            )
        for name in self._run.encoders:
            if name not in self._encoders and any(name in tower.encoders for tower in towers):
                read = self._towers["image"] + self._towers["text"]
                with on_device(None if self._device == "cpu" else self._device):
                    encoder = load_encoder(name, tokens=read[0].identity["tokens"])
                check_encoder(encoder, read, str(self._store.path))
                self._encoders[name] = encoder
        return [encoder for name, encoder in self._encoders.items() if any(name in tower.encoders for tower in towers)]
