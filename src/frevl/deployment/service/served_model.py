"""A served run: scores, embeds and searches for several requests at once through `Scorer` and `Searcher`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from frevl.deployment.service.http.limits import RefusedError
from frevl.encoders.interface import pool
from frevl.errors import UsageError
from frevl.runs.prediction_sets import conformal_scores, named_matches, named_sets
from frevl.runs.scorer import Prediction, Scorer
from frevl.runs.search.searching import Hit, Searcher
from frevl.store.reader import TABLES, Store
from frevl.store.towers import Modality, Tower
from frevl.store.usable_pairs import note_unread

__all__ = ["Found", "ImagePair", "Match", "ServedModel"]

R = TypeVar("R")

ImagePair = tuple[str | np.ndarray, str]
"""An image, as an id in the store or an embedding, and a text; a side that the model does not read is empty."""


@dataclass(frozen=True)
class Match:
    """A matching run's result for a pair: a logit and the calibrated probability of a match."""

    score: float
    probability: float


@dataclass(frozen=True)
class Found:
    """The result of a search, in both orders.

    Attributes:
        by_score: The best hits by the run's score.
        by_similarity: The best hits by the first stage alone.
        searched: Number of items searched.
        reranked: Number of reranked candidates; 0 if the run does not rerank.
        exact: False if an index selected the candidates.
        notes: Sentences for the user.
    """

    by_score: list[Hit]
    by_similarity: list[Hit]
    searched: int
    reranked: int
    exact: bool
    notes: list[str]


class ServedModel:
    """A served run. Its methods that take a list of payloads are work for `ModelQueue`."""

    def __init__(self, name: str, scorer: Scorer) -> None:
        self.name = name
        self.scorer = scorer
        self.towers: dict[Modality, list[Tower]] = {
            modality: [scorer.store.towers[tower] for tower in scorer.run.towers.get(modality, ())]
            for modality in TABLES
        }
        # Imported vectors have no encoder here, so only items of the store can be used.
        self.embeds = {
            modality: bool(own) and not any(tower.imported for tower in own) for modality, own in self.towers.items()
        }
        for modality, can in self.embeds.items():
            if can:  # loaded now and checked against the store, so that no request waits for it
                scorer.encoders(modality)
        self._searcher = self._new_searcher()
        self._conformal = _unless_refused(lambda: conformal_scores(scorer)[0])
        self.has_doubt = _unless_refused(lambda: scorer.doubt([])) is not None

    @property
    def has_sets(self) -> bool:
        """Return whether the run has the held-out scores that prediction sets need."""
        return self._conformal is not None

    def switch_to(self, store: Store) -> None:
        """Switch to a newer version of the store.

        Raises:
            FrevlError: The newer version cannot be used; the old one stays in use.
        """
        self.scorer.run.check_store(store)
        before, self.scorer.store = self.scorer.store, store
        try:
            self._searcher = self._new_searcher()
        except BaseException:
            self.scorer.store = before
            raise

    def _new_searcher(self) -> Searcher | None:
        if not self.searches:
            return None
        searcher = Searcher(self.scorer)
        if self.scorer.store.count("image"):
            searcher.search(image=next(iter(self.scorer.store.positions("image"))), k=1)  # opens the vectors
        return searcher

    def score(self, jobs: Sequence[tuple[Sequence[ImagePair], int]]) -> list[list[Any]]:
        """Score the pairs of several requests: a `Match` each, or a `Prediction` with the requested classes."""
        pairs, given = _together([job for job, _ in jobs])
        most = max(k for _, k in jobs)
        results: list[Any]
        if self.scorer.run.task == "matching":
            scores, probabilities = self.scorer.match_probabilities(pairs, images=given)
            results = [Match(s, p) for s, p in zip(scores.tolist(), probabilities.tolist(), strict=True)]
        else:
            results = self.scorer.name_classes(self.scorer.score(pairs, images=given), k=most)
        parts = _split(results, [job for job, _ in jobs])
        return [
            [_with_top(one, k) for one in part] if k < most else part for part, (_, k) in zip(parts, jobs, strict=True)
        ]

    def sets(self, jobs: Sequence[tuple[Sequence[ImagePair], float]]) -> list[list[Any]]:
        """Return the prediction sets of several requests at their levels: labels, or whether a pair matches."""
        if self._conformal is None:
            raise RefusedError(422, "no_sets", f"The model {self.name!r} has no data for prediction sets.")
        pairs, given = _together([job for job, _ in jobs])
        own, found, labels = self._conformal, list[list[Any]](), self.scorer.run.labels
        if self.scorer.run.task == "matching":
            all_of = self.scorer.match_probabilities(pairs, images=given)[1]
        else:
            all_of = self.scorer.probabilities(self.scorer.score(pairs, images=given))
        for part, (_, level) in zip(_split(list(all_of), [job for job, _ in jobs]), jobs, strict=True):
            probabilities = np.stack(part)
            if self.scorer.run.task == "matching":
                found.append(named_matches(own, probabilities, level))
            else:
                found.append(named_sets(own, probabilities, level, labels))
        return found

    def set_notes(self, level: float) -> list[str]:
        """Return notes on levels for which too few pairs were held out."""
        return [] if self._conformal is None else self._conformal.notes(level, remedy="train with more held-out images")

    def doubt(self, jobs: Sequence[Sequence[ImagePair]]) -> list[list[float]]:
        """Return the doubt of the pairs of several requests."""
        pairs, given = _together(jobs)
        return _split(self.scorer.doubt(pairs, images=given).tolist(), jobs)

    def embed_images(self, jobs: Sequence[Sequence[list[np.ndarray]]]) -> list[list[np.ndarray]]:
        """Embed the prepared images of several requests: ``(tokens, dim)`` each."""
        return _split(self.scorer.embed_images([one for job in jobs for one in job]), jobs)

    def embed_texts(self, jobs: Sequence[Sequence[str]]) -> list[list[np.ndarray]]:
        """Embed the texts of several requests: ``(tokens, dim)`` each."""
        texts = list(dict.fromkeys(text for job in jobs for text in job))
        if self.embeds["text"]:
            values = self.scorer.embed_texts(texts)
        else:
            values = self.scorer.store.read("text", texts, self.towers["text"])
        embedded = dict(zip(texts, _rows(values), strict=True))
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
        """Return whether the run can search, which requires a first stage."""
        return self.scorer.run.task == "matching" and self.scorer.has_first_stage

    def search(self, jobs: Sequence[dict[str, Any]]) -> list[Found]:
        """Run searches in turn; each job holds the arguments of `Searcher.search`."""
        if self._searcher is None:
            raise RefusedError(409, "wrong_task", f"The model {self.name!r} has no first stage to search with.")
        found = []
        for job in jobs:
            k: int = job["k"]
            # Request all candidates, because both orders are built from them.
            all_ = self._searcher.search(**{**job, "k": max(k, self.scorer.rerank_depth)})
            by_similarity = sorted(all_.hits, key=lambda hit: -hit.similarity)[:k]
            notes = [self.scrubbed(note) for note in all_.notes if "fewer than the" not in note or all_.searched < k]
            found.append(Found(all_.hits[:k], by_similarity, all_.searched, all_.reranked, all_.exact, notes))
        return found

    def notes_on(self, texts: Sequence[str]) -> list[str]:
        """Return a note if the encoder cannot read most letters of some texts; thread-safe."""
        notes: list[str] = []
        load = (lambda: self.scorer.encoders("text")) if self.embeds["text"] else None
        note_unread(self.scorer.store, texts, self.towers["text"], notes, load)
        return [self.scrubbed(note) for note in notes]

    def scrubbed(self, sentence: str) -> str:
        """Remove server paths from a sentence."""
        places = {str(self.scorer.run.path): "RUN", str(self.scorer.store.path): "STORE"}
        for place, word in places.items():
            sentence = sentence.replace(place, word)
        return sentence

    def record(self) -> dict[str, Any]:
        """Return this run's entry in ``GET /v1/models``."""
        run = self.scorer.run
        return {
            "name": self.name,
            "model": run.model,
            "task": run.task,
            "parameters": run.parameters,
            "labels": len(run.labels),
            "encoders": run.encoders,
            "searches": self.searches,
            "reads": list(run.sides),
            "embeds": [modality for modality, can in self.embeds.items() if can],
            "sets": self.has_sets,
            "doubt": self.has_doubt,
        }


def _together(jobs: Sequence[Sequence[ImagePair]]) -> tuple[list[tuple[str, str]], dict[str, np.ndarray]]:
    """Return the pairs of several requests, and the uploaded images' embeddings by the ids assigned to them."""
    given: dict[str, np.ndarray] = {}
    pairs: list[tuple[str, str]] = []
    for job in jobs:
        for image, text in job:
            if not isinstance(image, str):
                id_ = f"\0{len(given)}"  # no path in a store holds a null character
                given[id_] = image
                image = id_
            pairs.append((image, text))
    return pairs, given


def _unless_refused(ask: Callable[[], R]) -> R | None:
    """Return the requested value; None if the run does not have it."""
    try:
        return ask()
    except UsageError:
        return None


def _with_top(one: Any, k: int) -> Any:
    return Prediction(one.label, one.probability, one.top[:k]) if isinstance(one, Prediction) else one


def _rows(embedded: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    return [values[mask] for values, mask in zip(*embedded, strict=True)]


def _split(answers: Sequence[Any], jobs: Sequence[Sequence[Any]]) -> list[list[Any]]:
    starts = np.cumsum([0, *map(len, jobs)]).tolist()
    return [list(answers[start : start + len(job)]) for start, job in zip(starts, jobs, strict=False)]
