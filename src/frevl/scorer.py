"""The one road from pairs to scores: command line, HTTP and Python all go through `Scorer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from frevl.batches import EmbeddedPairs, logits_of
from frevl.calibration import calibrated
from frevl.canaries import tower_records
from frevl.embeddings import stack
from frevl.encoders import Encoder, load_encoder
from frevl.errors import StoreError, UsageError
from frevl.fusion import Fusion
from frevl.run import Run
from frevl.store import Store
from frevl.towers import Modality, Tower, check_same

__all__ = ["Prediction", "Scorer"]


@dataclass(frozen=True)
class Prediction:
    """What a classification run says about a pair.

    Attributes:
        label: The most probable class.
        probability: Its calibrated probability.
        top: The most probable classes with their probabilities, best first.
    """

    label: str
    probability: float
    top: list[tuple[str, float]]


class Scorer:
    """A run together with the store that holds the embeddings of what it scores.

    Texts that are not in the store are embedded with the run's own encoder, after a check that it is the one
    that made the store. Open with `Scorer.open`.
    """

    def __init__(self, run: Run, store: Store, *, batch_size: int = 1024, device: str = "cpu") -> None:
        """Bind a run to a store.

        Raises:
            FingerprintError: The run was trained on other embeddings.
        """
        run.check_store(store)
        self.run = run
        self.store = store
        self.batch_size = batch_size
        self.device = device
        # Folding changes no score beyond float32 rounding and saves a third of the work.
        network = run.network.folded() if isinstance(run.network, Fusion) else run.network
        self.network = network.to(device).eval()
        self._towers: dict[Modality, list[Tower]] = {
            "image": [store.towers[name] for name in run.towers["image"]],
            "text": [store.towers[name] for name in run.towers["text"]],
        }
        self._encoders: list[Encoder] = []

    @classmethod
    def open(cls, run: str | Path, *, store: Store | str | Path, batch_size: int = 1024, device: str = "cpu") -> Scorer:
        """Load a run and bind it to a store.

        Raises:
            RunError: There is no complete run at this path.
            StoreError: There is no store at this path.
            FingerprintError: They do not belong together.
        """
        opened = store if isinstance(store, Store) else Store.open(store)
        return cls(Run.load(run), opened, batch_size=batch_size, device=device)

    def score(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Score pairs.

        Args:
            pairs: ``(image id, text)``.

        Returns:
            Logits in float32: ``(n,)`` for matching (the larger, the better the match), ``(n, classes)`` for
            classification, in the order of ``run.labels``.

        Raises:
            StoreError: An image is not in the store.
            FingerprintError: A text has to be embedded and the encoder is not the one that made the store.
        """
        if not pairs:
            return np.zeros((0,) if self.run.task == "matching" else (0, len(self.run.labels)), np.float32)
        images = {id_: row for row, id_ in enumerate(dict.fromkeys(image for image, _ in pairs))}
        texts = {text: row for row, text in enumerate(dict.fromkeys(text for _, text in pairs))}
        embedded = EmbeddedPairs.of(
            [image for image, _ in pairs],
            [text for _, text in pairs],
            images,
            self.store.read("image", list(images), self._towers["image"]),
            texts,
            self._read_texts(list(texts)),
        )
        logits = logits_of(self.network, embedded, self.batch_size, self.device).numpy()
        return logits[:, 0] if self.run.task == "matching" else logits

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Turn scores into calibrated probabilities of the same shape."""
        logits = torch.from_numpy(scores)
        if self.run.task == "matching":
            return calibrated(logits[:, None], self.run.calibration, soft=True)[:, 0].numpy()
        return calibrated(logits, self.run.calibration, soft=self.soft).numpy()

    @property
    def soft(self) -> bool:
        """Whether the run was trained on soft targets, so that every class has a probability of its own."""
        return bool(self.run.results.get("soft_targets", False))

    def predict(self, pairs: Sequence[tuple[str, str]], *, k: int = 5) -> list[Prediction]:
        """Classify pairs.

        Args:
            pairs: ``(image id, text)``.
            k: How many classes to name.

        Raises:
            UsageError: The run does matching.
        """
        if self.run.task != "classification":
            raise UsageError(f"{self.run.path}: expected a classification run, found task '{self.run.task}'; use score")
        return self.name_classes(self.score(pairs), k=k)

    def name_classes(self, scores: np.ndarray, *, k: int = 5) -> list[Prediction]:
        """Turn ``(n, classes)`` scores into labels with calibrated probabilities."""
        probabilities = self.probabilities(scores)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        labels = self.run.labels
        return [
            Prediction(labels[row[0]], float(p[row[0]]), [(labels[c], float(p[c])) for c in row])
            for row, p in zip(best, probabilities, strict=True)
        ]

    def grid(self, image_ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Score every image with every text.

        A fusion projects every item once; only what depends on both is computed a pair at a time.

        Returns:
            ``(images, texts)`` float32 logits.

        Raises:
            UsageError: The run does classification.
        """
        if self.run.task != "matching":
            raise UsageError(f"{self.run.path}: a grid needs a matching run, found task '{self.run.task}'")
        scores = np.empty((len(image_ids), len(texts)), np.float32)
        image_values = self.store.read("image", image_ids, self._towers["image"])
        embedded = EmbeddedPairs.of([], [], {}, image_values, {}, self._read_texts(texts))
        with torch.inference_mode():
            logits_of_pairs = self._by_item(embedded)
            for start in range(0, scores.size, self.batch_size):
                numbers = torch.arange(start, min(start + self.batch_size, scores.size))
                logits = logits_of_pairs(numbers // len(texts), numbers % len(texts))
                scores.reshape(-1)[start : start + len(numbers)] = logits[:, 0].cpu().numpy()
        return scores

    def _by_item(self, embedded: EmbeddedPairs) -> Callable[[Tensor, Tensor], Tensor]:
        """Let a fusion project every item once: what is left for a pair are the blocks and the head."""
        network = self.network
        if not isinstance(network, Fusion):
            return self._by_pair(embedded)

        def projected(project: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
            parts = values.split(self.batch_size)  # type: ignore[no-untyped-call]
            return torch.cat([project(part.to(self.device).float()) for part in parts])

        image = projected(network.project_image, embedded.images)
        text = projected(network.project_text, embedded.texts)
        image_mask = None if image.shape[1] == 1 else embedded.image_mask.to(self.device)
        text_mask = None if text.shape[1] == 1 else embedded.text_mask.to(self.device)

        def logits(rows: Tensor, columns: Tensor) -> Tensor:
            fused = network.fuse(
                image[rows],
                text[columns],
                None if image_mask is None else image_mask[rows],
                None if text_mask is None else text_mask[columns],
            )
            scored: Tensor = network.head(fused)
            return scored

        return logits

    def _by_pair(self, embedded: EmbeddedPairs) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda rows, columns: self.network(*embedded.inputs(rows, columns, self.device))

    def _read_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read texts from the store, and embed those that are not in it."""
        known = self.store.positions("text")
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if not unknown:
            return self.store.read("text", texts, self._towers["text"])
        stored = [text for text in dict.fromkeys(texts) if text in known]
        parts = [self.embed_texts(unknown)]
        if stored:
            parts.append(self.store.read("text", stored, self._towers["text"]))
        rows = {text: row for row, text in enumerate([*unknown, *stored])}
        together = stack([v[m] for values, mask in parts for v, m in zip(values, mask, strict=True)])
        order = np.array([rows[text] for text in texts])
        return together[0][order], together[1][order]

    def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts as the store would hold them.

        Returns:
            ``(n, tokens, dim)`` in the stored type and a ``(n, tokens)`` mask.

        Raises:
            StoreError: A text is empty.
            FingerprintError: The encoder is not the one that made the store.
        """
        for text in texts:
            if not text.strip():
                raise StoreError("A text to score is empty or only blanks; expected a sentence or question")
        parts = []
        for tower in self._towers["text"]:
            encoder = next(e for e in self.encoders() if e.text is not None and e.text.name == tower.name)
            embedded = encoder.embed_texts(list(texts), tokens=True)
            parts.append((embedded.values.astype(tower.identity["dtype"]), embedded.mask))
        return np.concatenate([values for values, _ in parts], axis=2), parts[0][1]

    def encoders(self) -> list[Encoder]:
        """Load the run's encoders on first use, and check that they are those that made the store."""
        if not self._encoders:
            loaded = [load_encoder(name, tokens=self._tokens()) for name in self.run.encoders]
            for encoder in loaded:
                for record in tower_records(encoder, dtype=self._towers["text"][0].identity["dtype"]):
                    check_same(self.store.towers[record.name], record, str(self.store.path))
            self._encoders = loaded
        return self._encoders

    def _tokens(self) -> str:
        return self._towers["image"][0].identity["tokens"]

    def describe(self) -> dict[str, Any]:
        """Return what a service says of this model."""
        return {
            "model": self.run.model,
            "task": self.run.task,
            "parameters": self.run.parameters,
            "labels": len(self.run.labels),
            "encoders": self.run.encoders,
        }
