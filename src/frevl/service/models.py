"""The models behind the service: what HTTP and the page ask, answered by `Scorer` through one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from frevl.embeddings import pool
from frevl.encoders import processors
from frevl.errors import ImageError, UsageError, nearest
from frevl.scorer import Prediction, Scorer
from frevl.searching import Hit, Searcher
from frevl.service.body import Upload, decoded
from frevl.service.limits import Limits, RefusedError
from frevl.service.queue import ModelQueue
from frevl.towers import Modality

__all__ = ["Found", "ImagePair", "Match", "ServedModel", "Service"]

ImagePair = tuple[str | np.ndarray, str]
"""An image, by its id in the store or as an embedding, and a text."""


@dataclass(frozen=True)
class Match:
    """What a matching run says about a pair: a logit, and the calibrated probability of a match."""

    score: float
    probability: float


@dataclass(frozen=True)
class Found:
    """What a search found, in both orders.

    Attributes:
        by_score: The best by what the run says.
        by_similarity: The best by the first stage alone.
        searched: How many items could have been found.
        reranked: How many candidates the run scored again; 0 if it does not rerank.
        exact: False where an index named the candidates.
        notes: Sentences for whoever asked.
    """

    by_score: list[Hit]
    by_similarity: list[Hit]
    searched: int
    reranked: int
    exact: bool
    notes: list[str]


class ServedModel:
    """A run that is served. Its methods with a list of payloads are work for `ModelQueue`."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self.scorer = scorer
        self.towers = {
            modality: [scorer.store.towers[tower] for tower in scorer.run.towers[modality]]
            for modality in ("image", "text")
        }
        # Now, and checked against the store, so that no request waits for it.
        scorer.encoders()
        self._searcher = Searcher(scorer) if self.searches else None
        if self._searcher is not None and scorer.store.positions("image"):
            self._searcher.search(image=next(iter(scorer.store.positions("image"))), k=1)  # opens the vectors

    def score(self, jobs: Sequence[tuple[Sequence[ImagePair], int]]) -> list[list[Any]]:
        """Score the pairs of several requests: a `Match` each, or a `Prediction` with as many classes as wanted."""
        given: dict[str, np.ndarray] = {}
        pairs: list[tuple[str, str]] = []
        for job, _ in jobs:
            for image, text in job:
                if not isinstance(image, str):
                    id_ = f"\0{len(given)}"  # no path in a store holds a null character
                    given[id_] = image
                    image = id_
                pairs.append((image, text))
        scores = self.scorer.score(pairs, images=given)
        said: list[Any]
        if self.scorer.run.task == "matching":
            probabilities = self.scorer.probabilities(scores)
            said = [Match(s, p) for s, p in zip(scores.tolist(), probabilities.tolist(), strict=True)]
        else:
            said = self.scorer.name_classes(scores, k=max(k for _, k in jobs))
        answers = []
        start = 0
        for job, k in jobs:
            part = said[start : start + len(job)]
            start += len(job)
            answers.append(
                [Prediction(p.label, p.probability, p.top[:k]) if isinstance(p, Prediction) else p for p in part]
            )
        return answers

    def embed_images(self, jobs: Sequence[Sequence[list[np.ndarray]]]) -> list[list[np.ndarray]]:
        """Embed the prepared images of several requests: ``(tokens, dim)`` each."""
        return _split(self.scorer.embed_images([one for job in jobs for one in job]), jobs)

    def embed_texts(self, jobs: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """Embed the texts of several requests: ``(tokens, dim)`` each."""
        texts = list(dict.fromkeys(text for job in jobs for text in job))
        embedded = dict(zip(texts, _rows(self.scorer.embed_texts(texts)), strict=True))
        return [[embedded[text] for text in job] for job in jobs]

    def read_images(self, jobs: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """Read the stored images of several requests: ``(tokens, dim)`` each."""
        ids = [id_ for job in jobs for id_ in job]
        return _split(_rows(self.scorer.store.read("image", ids, self.towers["image"])), jobs)

    def pooled(self, modality: Modality, embedding: np.ndarray) -> list[float]:
        """Return ``(dim,)`` as `Store.read_images` does: the mean of the tokens, each tower at unit length."""
        mean = pool(embedding[None], np.ones((1, len(embedding)), bool))[0]
        start = 0
        for tower in self.towers[modality]:
            part = mean[start : start + tower.dim]
            if not tower.pooled:
                part /= max(float(np.linalg.norm(part)), 1e-12)
            start += tower.dim
        return mean.tolist()  # type: ignore[no-any-return]

    @property
    def searches(self) -> bool:
        """Whether it can search: only a run with a first stage can."""
        return self.scorer.run.task == "matching" and self.scorer.has_first_stage

    def search(self, jobs: Sequence[dict[str, Any]]) -> list[Found]:
        """Search, one job after the other; each is the arguments of `Searcher.search`."""
        if self._searcher is None:
            raise RefusedError(409, "wrong_task", f"The model {self.name!r} has no first stage to search with.")
        found = []
        for job in jobs:
            k: int = job["k"]
            # All candidates come back, so that both orders can be made of them.
            said = self._searcher.search(**{**job, "k": max(k, self.scorer.rerank_depth)})
            by_similarity = sorted(said.hits, key=lambda hit: -hit.similarity)[:k]
            notes = [self.scrubbed(note) for note in said.notes if "fewer than the" not in note or said.searched < k]
            found.append(Found(said.hits[:k], by_similarity, said.searched, said.reranked, said.exact, notes))
        return found

    def scrubbed(self, sentence: str) -> str:
        """Take paths of the server out of a sentence."""
        places = {str(self.scorer.run.path): "RUN", str(self.scorer.store.path): "STORE"}
        for place, word in places.items():
            sentence = sentence.replace(place, word)
        return sentence

    def record(self) -> dict[str, Any]:
        """Say what it is."""
        return {"name": self.name, **self.scorer.describe(), "searches": self.searches}


class Service:
    """All served models, their queue and their limits. HTTP and the page ask nothing else.

    Args:
        scorers: Runs by name, all of one store; the first answers where a request names none.
        limits: How much a request may ask.
        observe: Called after every batch with the name of the work, its items and seconds.
    """

    def __init__(
        self, scorers: Mapping[str, Scorer], *, limits: Limits, observe: Callable[[str, int, float], None] | None = None
    ) -> None:
        self.limits = limits
        self.models = {name: ServedModel(name, scorer) for name, scorer in scorers.items()}
        self.store = next(iter(scorers.values())).store
        self.images = self.store.positions("image")
        self.queue = ModelQueue(waiting_items=limits.waiting_items, batch_items=limits.batch_items, observe=observe)
        self._decoders = ThreadPoolExecutor(processors(), thread_name_prefix="decode")

    def model(self, name: str | None, *, task: str | None = None) -> ServedModel:
        """Find a model.

        Args:
            name: Its name; None takes the first one that does the task.
            task: What it has to do, if that matters.

        Raises:
            RefusedError: There is none, or it does another task.
        """
        if name is not None and name not in self.models:
            raise RefusedError(404, "unknown_model", f"There is no model {name[:80]!r}. {nearest(name, self.models)}")
        chosen = [self.models[name]] if name is not None else list(self.models.values())
        fitting = [model for model in chosen if task in (None, model.scorer.run.task)]
        if not fitting:
            raise RefusedError(
                409,
                "wrong_task",
                f"This needs a model for {task}; the model {chosen[0].name!r} does {chosen[0].scorer.run.task}.",
            )
        return fitting[0]

    def searching_model(self, name: str | None) -> ServedModel:
        """Find a model that searches; None takes the first one.

        Raises:
            RefusedError: There is none.
        """
        if name is not None:
            model = self.model(name)
            if not model.searches:
                raise RefusedError(
                    409, "wrong_task", f"The model {name!r} cannot search; it needs a matching run with a first stage."
                )
            return model
        searching = [model for model in self.models.values() if model.searches]
        if not searching:
            raise RefusedError(
                409, "wrong_task", "No model here can search; serve a matching run with a first stage (--model dual)."
            )
        return searching[0]

    def check_images(self, ids: Sequence[str]) -> None:
        """Refuse ids that are not in the store.

        Raises:
            RefusedError: One is not.
        """
        unknown = [id_ for id_ in ids if id_ not in self.images]
        if unknown:
            raise RefusedError(
                404,
                "unknown_image",
                f"The store has no image {unknown[0][:80]!r} ({len(set(unknown))} of the request's ids are unknown); "
                "name images that are in the store, or send them along as uploads.",
            )

    def check_size(self, texts: Sequence[str], items: int) -> None:
        """Refuse texts that are too long, and too many items.

        Raises:
            RefusedError: One of them.
        """
        if items > self.limits.items:
            raise RefusedError(
                413, "too_many_items", f"A request may have {self.limits.items} items, found {items}; send several."
            )
        longest = max(map(len, texts), default=0)
        if longest > self.limits.text_characters:
            raise RefusedError(
                422,
                "text_too_long",
                f"A text may have {self.limits.text_characters} characters, found one of {longest}; shorten it.",
            )

    async def score(self, model: ServedModel, pairs: Sequence[ImagePair], *, top: int = 5) -> Any:
        """Score pairs whose images are known: a `Match` or a `Prediction` each."""
        return await self.queue.submit(model.score, (pairs, top), items=len(pairs))

    async def embed_uploads(self, model: ServedModel, uploads: Mapping[str, Upload]) -> dict[str, np.ndarray]:
        """Decode and embed images that were sent along.

        Raises:
            RefusedError: Too many, or one cannot be read.
        """
        if not uploads:
            return {}
        if len(uploads) > self.limits.uploads:
            raise RefusedError(
                413, "too_many_uploads", f"A request may bring {self.limits.uploads} images, found {len(uploads)}."
            )
        loop = asyncio.get_running_loop()
        prepared = [
            await loop.run_in_executor(self._decoders, self._prepare, model, name, upload)
            for name, upload in uploads.items()
        ]
        embedded = await self.queue.submit(model.embed_images, prepared, items=len(prepared))
        return dict(zip(uploads, embedded, strict=True))

    async def search(
        self,
        model: ServedModel,
        *,
        text: str | None = None,
        image: str | bytes | None = None,
        find: str = "images",
        k: int = 10,
        where: str | None = None,
    ) -> Found:
        """Search. An image is a checked id of the store, or bytes that `checked_image` returned.

        Raises:
            RefusedError: A condition that cannot be understood, or texts asked for a text.
        """
        job = {"text": text, "image": image, "find": find, "k": k, "where": where}
        try:
            return await self.queue.submit(model.search, job, items=max(1, model.scorer.rerank_depth))
        except UsageError as error:
            raise RefusedError(422, "invalid", model.scrubbed(str(error))) from None

    async def checked_image(self, model: ServedModel, name: str, upload: Upload) -> bytes:
        """Return an image that was sent along, if it can be read.

        Raises:
            RefusedError: It cannot.
        """
        content = decoded(name, upload)
        await asyncio.get_running_loop().run_in_executor(self._decoders, self._prepare, model, name, content)
        return content

    async def embed_texts(self, model: ServedModel, texts: Sequence[str]) -> list[np.ndarray]:
        """Embed texts, ``(tokens, dim)`` each."""
        return await self.queue.submit(model.embed_texts, texts, items=len(texts)) if texts else []

    async def read_images(self, model: ServedModel, ids: Sequence[str]) -> list[np.ndarray]:
        """Read images of the store, ``(tokens, dim)`` each."""
        return await self.queue.submit(model.read_images, ids, items=len(ids)) if ids else []

    def close(self) -> None:
        """Finish what was accepted, and end all threads."""
        self.queue.close()
        self._decoders.shutdown(cancel_futures=True)

    def _prepare(self, model: ServedModel, name: str, upload: Upload) -> list[np.ndarray]:
        try:
            return model.scorer.prepare_image(decoded(name, upload), max_pixels=self.limits.pixels)
        except ImageError as error:
            reason = str(error).rpartition("the given bytes: ")[2]
            raise RefusedError(422, "bad_image", f"The upload {name[:80]!r} cannot be read: {reason}") from None


def _rows(embedded: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    return [values[mask] for values, mask in zip(*embedded, strict=True)]


def _split(answers: Sequence[Any], jobs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    starts = np.cumsum([0, *map(len, jobs)]).tolist()
    return [list(answers[start : start + len(job)]) for start, job in zip(starts, jobs, strict=False)]
