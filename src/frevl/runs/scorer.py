"""Score pairs: the command line, HTTP and Python all use `Scorer`, so a pair always has the same score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.data.names import as_list
from frevl.data.pairs import pair_list
from frevl.devices import check_device, default_batch
from frevl.encoders.images import MAX_PIXELS, ImageSource
from frevl.encoders.interface import Encoder
from frevl.errors import UsageError
from frevl.models.interface import PairNetwork, Searchable
from frevl.runs.batches import EmbeddedPairs, exact_enough, grid_scorer, list_logits, placed, read_side, vectors_of
from frevl.runs.calibration import calibrated
from frevl.runs.own_encoders import OwnEncoders
from frevl.runs.pair_grid import PairScores, ScoreRows, scored_rows
from frevl.runs.posterior import open_doubt
from frevl.runs.run import Run
from frevl.runs.sharing.onnx_backend import check_backend, open_exported
from frevl.runs.targets import Prediction, Ranked, predictions, ranked
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.towers import MODALITIES, Modality

__all__ = ["Prediction", "Scorer"]

PairsOrItems = Sequence[tuple[str, str]] | Sequence[str]


class Scorer:
    """A run together with the store of embeddings that it scores.

    Open with `Scorer.open`. Texts outside the store are embedded with the run's encoder, after checking it.
    """

    def __init__(self, run: Run, store: Store, *, batch_size: int | None = None, device: str = "cpu") -> None:
        """Bind a run to a store.

        Raises:
            FingerprintError: The run was trained on other embeddings.
        """
        run.check_store(store)
        self.run = run
        self.store = store
        self.batch_size = batch_size or default_batch(device)
        self.device = device
        # This saves a fusion a third of the work; scores change only by float32 rounding.
        self.network: PairNetwork = placed(run.network, device)
        self._towers = run.towers_in(store)
        self._doubt_of: Callable[[EmbeddedPairs], Tensor] | None = None

    @classmethod
    def open(
        cls,
        run: str | Path,
        *,
        store: Store | str | Path,
        batch_size: int | None = None,
        device: str = "cpu",
        backend: str = "torch",
        onnx: str | Path | None = None,
    ) -> Scorer:
        """Load a run and bind it to a store.

        Args:
            run: Folder of the run.
            store: Path of the store, or the store itself.
            batch_size: Number of pairs at once; None means 1,024, or 16,384 on an accelerator.
            device: Device for PyTorch. On an accelerator a fusion scores in float16 (docs/accelerator.md).
            backend: ``torch``, or ``onnx`` to score with the run's exported file, on the CPU.
            onnx: The exported file, if it is not ``model.onnx`` in the run's folder.

        Raises:
            UsageError: There is no such backend or device, or an exported file is given for another backend.
            RunError: There is no complete, intact run at this path, or it has no exported file.
            StoreError: There is no store at this path.
            FingerprintError: The run and the store do not match.
        """
        if backend != "torch" or onnx is not None:
            check_backend(backend, onnx, device)
        check_device(device)
        opened = store if isinstance(store, Store) else Store.open(store)
        scorer = cls(Run.load(run), opened, batch_size=batch_size, device=device)
        scorer.run.check_network(scorer.network, opened, device=device)
        if backend == "onnx":
            scorer.network = open_exported(scorer.run, onnx)
        return scorer

    def score(self, pairs: PairsOrItems, *, images: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Score pairs.

        Args:
            pairs: ``(image id, text)``; for a run that reads one side alone, image ids or texts are accepted too.
            images: Embeddings of images that need not be in the store, by the ids used in ``pairs``: ``(tokens, dim)``
                each, from `embed_images`. All others are read from the store.

        Returns:
            Logits in float32: ``(n,)`` for matching (larger is a better match), ``(n, classes)`` for classification, in
                the order of ``run.labels``.

        Raises:
            StoreError: An image is not in the store.
            FingerprintError: A text has to be embedded and the encoder is not the one that made the store.
        """
        logits = self._logits(self._embedded(pairs, images or {}))
        return logits[:, 0] if self.run.task == "matching" else logits

    def score_stored(self, image_ids: list[str]) -> Iterator[np.ndarray]:
        """Score stored images batch by batch with a run for images only, as needed for a whole store.

        Yields:
            ``(n, classes)`` float32, the logits of `score`.

        Raises:
            StoreError: An image is not in the store.
        """
        for pairs in EmbeddedPairs.images_ahead(lambda ids: self._read("image", ids, {}), image_ids, self.batch_size):
            yield self._logits(pairs)

    def match_probabilities(
        self, pairs: Sequence[tuple[str, str]], *, images: Mapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Score pairs with a matching run, and compute the probability of each match.

        Args:
            pairs: As in `score`.
            images: As in `score`.

        Returns:
            ``(n,)`` scores as in `score`, and ``(n,)`` calibrated probabilities. A run that reranks computes these
                without the terms that only reorder one query's candidates (`frevl.models.retrieval.reranker`), so the
                two may rank pairs differently.

        Raises the errors of `score`, and UsageError if the run does classification.
        """
        if self.run.task != "matching":
            raise UsageError(f"{self.run.path}: expected a matching run, found task '{self.run.task}'; use predict")
        logits = self._logits(self._embedded(pairs, images or {}))
        decisive = self.run.network.probability_logits(torch.from_numpy(logits))
        return logits[:, 0], self._calibrated(decisive[:, 0].numpy())

    def doubt(self, pairs: PairsOrItems, *, images: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Return how unlike the training data pairs are.

        Args:
            pairs: As in `score`.
            images: As in `score`.

        Returns:
            ``(n,)`` float32 from 0, fully known, to 1, unlike anything known: the share of its prior variance left by
                the posterior of the last layer (`frevl.runs.posterior.Posterior.doubt`). It does not indicate which
                answer is right, and is not a probability.

        Raises the errors of `score`, UsageError if the run cannot measure doubt, and RunError if it is damaged.
        """
        if self._doubt_of is None:
            dims = {f"{side}_dim": sum(tower.dim for tower in self._towers[side]) for side in MODALITIES}
            self._doubt_of = open_doubt(self.run.network, self.run.path, device=self.device, **dims)
        if (embedded := self._embedded(pairs, images or {})) is None:
            return np.zeros(0, np.float32)
        return self._doubt_of(embedded).numpy()

    def prior(self, pairs: PairsOrItems) -> np.ndarray | None:
        """Score pairs by one side alone, if the run keeps a bank of training items of the other.

        Args:
            pairs: As in `score`.

        Returns:
            ``(n, classes)`` float32 logits, ``(n, 1)`` for matching; None if the run has no bank (runs that rerank, and
                those of `frevl debias --without`, have one).
        """
        if (prior := self.network.prior) is None:
            return None
        side = prior.prior_of
        own = [pair[0 if side == "image" else 1] for pair in pair_list(pairs, self.run.sides)]
        different = list(dict.fromkeys(own))
        items = self._read_texts(different) if side == "text" else self._read("image", different, {})
        found = vectors_of(prior.prior_logits, *items, self.batch_size, self.device)
        rows = {item: row for row, item in enumerate(different)}
        return found[[rows[item] for item in own]]

    def _logits(self, embedded: EmbeddedPairs | None) -> np.ndarray:
        """Return ``(n, outputs)`` float32 of the network."""
        if embedded is None:
            return np.zeros((0, len(self.run.labels) or 1), np.float32)
        logits = list_logits(self.network, embedded, self.batch_size, self.device)
        if self._overflowed(logits):
            logits = list_logits(self.network, embedded, self.batch_size, self.device)
        return logits.numpy()

    def _embedded(self, pairs: PairsOrItems, images: Mapping[str, np.ndarray]) -> EmbeddedPairs | None:
        """Read the embeddings of pairs; None without pairs."""
        if not (pairs := pair_list(pairs, self.run.sides)):
            return None
        ids, words = ([pair[side] for pair in pairs] for side in (0, 1))
        rows = {id_: row for row, id_ in enumerate(dict.fromkeys(ids))}
        texts = {text: row for row, text in enumerate(dict.fromkeys(words))}
        read = self._read("image", list(rows), images), texts, self._read_texts(list(texts))
        return EmbeddedPairs.of(ids, words, rows, *read)

    def _overflowed(self, logits: Tensor) -> bool:
        """Return whether a score overflowed in float16, and if so continue in float32."""
        before, self.network = self.network, exact_enough(self.network, self.run.network, logits)
        return self.network is not before

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Convert scores to probabilities of the same shape.

        Raises:
            UsageError: The run reranks; its probabilities come from `match_probabilities`.
        """
        if self.run.network.probability_apart:
            raise UsageError(
                f"{self.run.path}: the run reranks, so its scores do not determine probabilities; use "
                "match_probabilities"
            )
        return self._calibrated(scores)

    def _calibrated(self, scores: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(scores)
        if self.run.task == "matching":
            return calibrated(logits[:, None], self.run.calibration, soft=True)[:, 0].numpy()
        return calibrated(logits, self.run.calibration, soft=self.soft).numpy()

    @property
    def soft(self) -> bool:
        """Return whether the run was trained on soft targets, so that every class has its own probability."""
        return bool(self.run.results.get("soft_targets", False))

    def predict(self, pairs: PairsOrItems, *, k: int = 5) -> list[Prediction]:
        """Classify pairs.

        Args:
            pairs: As in `score`.
            k: Number of classes to list.

        Raises:
            UsageError: The run does matching.
        """
        if self.run.task != "classification":
            raise UsageError(f"{self.run.path}: expected a classification run, found task '{self.run.task}'; use score")
        return self.name_classes(self.score(pairs), k=k)

    def label(self, image_ids: Sequence[str], *, k: int = 5) -> list[Prediction]:
        """Classify images with a run for images only, such as one made by `frevl.classify`.

        Args:
            image_ids: Ids of images in the store.
            k: Number of classes to list.

        Raises:
            UsageError: The run does matching, or reads texts too.
            StoreError: An image is not in the store.
        """
        if self.run.sides != ("image",):
            raise UsageError(
                f"{self.run.path}: expected a run for images only, found one for {' and '.join(self.run.sides)}s"
            )
        ids: list[str] = as_list(image_ids, "image_ids")
        return self.predict(ids, k=k)

    def name_classes(self, scores: np.ndarray, *, k: int = 5) -> list[Prediction]:
        """Convert ``(n, classes)`` scores to labels with calibrated probabilities."""
        return predictions(self.rank_classes(scores, k=k), self.run.labels)

    def rank_classes(self, scores: np.ndarray, *, k: int = 5) -> Ranked:
        """Find the likeliest classes of ``(n, classes)`` scores as arrays, for very many images."""
        below = (self.run.results.get("unknown") or {}).get("below")
        return ranked(scores, self.probabilities, k=k, unknown_below=below)

    def grid(self, image_ids: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Score every image with every text; the work for single items is done once.

        Returns:
            ``(images, texts)`` float32 logits.

        Raises:
            UsageError: The run does classification.
        """
        return self.grid_rows(image_ids, texts).grid()

    def grid_rows(self, image_ids: Sequence[str], texts: Sequence[str]) -> ScoreRows:
        """Return the rows of `grid`, computed a few at a time and never all in memory; same errors."""
        if self.run.task != "matching":
            raise UsageError(f"{self.run.path}: a grid needs a matching run, found task '{self.run.task}'")
        image_ids, texts = as_list(image_ids, "image_ids"), as_list(texts, "texts")
        return scored_rows(len(image_ids), len(texts), self.between(image_ids, texts))

    def between(self, image_ids: Sequence[str], texts: Sequence[str]) -> PairScores:
        """Do the work on single items, so that any pairs of them can be scored cheaply.

        Returns:
            A function from ``(n,)`` rows of ``image_ids`` and ``(n,)`` rows of ``texts`` to their scores, ``(n,)``.
        """
        embedded = EmbeddedPairs.of([], [], {}, self._read("image", image_ids, {}), {}, self._read_texts(texts))
        with torch.inference_mode():
            logits_of_pairs = grid_scorer(self.network, embedded, self.batch_size, self.device)

        def scores(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
            nonlocal logits_of_pairs
            with torch.inference_mode():
                logits = logits_of_pairs(torch.from_numpy(rows), torch.from_numpy(columns))
                if self._overflowed(logits):
                    logits_of_pairs = grid_scorer(self.network, embedded, self.batch_size, self.device)
                    logits = logits_of_pairs(torch.from_numpy(rows), torch.from_numpy(columns))
            found: NDArray[np.float32] = logits[:, 0].cpu().numpy()
            return found

        return scores

    @property
    def has_first_stage(self) -> bool:
        """Return whether the run has item vectors to search by: the model ``dual`` or ``cosine``, or a reranker."""
        return self.network.first_stage is not None

    @property
    def rerank_depth(self) -> int:
        """Return how many first-stage candidates the fusion reranks; 0 if the run does not rerank."""
        return self.network.rerank_depth

    def image_vectors(self, image_ids: Sequence[str], *, images: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """Return the first stage's vectors of images.

        Args:
            image_ids: Ids of images, repeats allowed.
            images: Embeddings of images that need not be in the store, as in `score`.

        Returns:
            ``(n, d)`` float32 of unit length; their dot products with `text_vectors` rank as the first stage does.

        Raises:
            UsageError: The run has no first stage.
            StoreError: An image is not in the store.
        """
        items = self._read("image", image_ids, images or {})
        return vectors_of(self._searching.image_vectors, *items, self.batch_size, self.device)

    def text_vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Return the first stage's vectors of texts, ``(n, d)`` float32 of unit length.

        Raises:
            UsageError: The run has no first stage.
            StoreError: A text is empty.
            FingerprintError: A text has to be embedded and the encoder is not the one that made the store.
        """
        return vectors_of(self._searching.text_vectors, *self._read_texts(texts), self.batch_size, self.device)

    @property
    def _searching(self) -> Searchable:
        if (first_stage := self.network.first_stage) is None:
            raise UsageError(
                f"{self.run.path}: the run has no first stage, so it cannot search; train one with --task matching "
                "and --model auto or dual"
            )
        return first_stage

    def _read(
        self, modality: Modality, ids: Sequence[str], given: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read items from the store, except given ones."""
        return read_side(self.store, modality, ids, self._towers[modality], given)

    def _read_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Read texts from the store, and embed those not in it."""
        texts, unknown = as_list(texts, "texts"), list[str]()
        if self._towers["text"]:
            there = find_rows(self.store.positions("text"), texts).tolist()
            unknown = list(dict.fromkeys(text for text, row in zip(texts, there, strict=True) if row < 0))
        embedded = zip(unknown, *self.embed_texts(unknown), strict=True) if unknown else ()
        return self._read("text", texts, {text: values[mask] for text, values, mask in embedded})

    @cached_property
    def _own(self) -> OwnEncoders:
        return OwnEncoders(self.run, self.store, self._towers, device=self.device)

    def embed_texts(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Embed texts as the store would hold them: see `frevl.runs.own_encoders.OwnEncoders.embed_texts`."""
        return self._own.embed_texts(texts)

    def prepare_image(self, image: ImageSource, *, max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
        """Read one image as extraction does: see `frevl.runs.own_encoders.OwnEncoders.prepare_image`."""
        return self._own.prepare_image(image, max_pixels=max_pixels)

    def embed_images(self, prepared: Sequence[list[np.ndarray]]) -> list[np.ndarray]:
        """Embed images as the store would hold them: see `frevl.runs.own_encoders.OwnEncoders.embed_images`."""
        return self._own.embed_images(prepared)

    def encoders(self, modality: Modality | None = None) -> list[Encoder]:
        """Load the run's encoders and check them: see `frevl.runs.own_encoders.OwnEncoders.encoders`."""
        return self._own.encoders(modality)
