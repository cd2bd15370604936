"""Text to images, image to texts, image to images: the first stage finds candidates, the run scores them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frevl.data.names import same_names, why_unknown
from frevl.encoders.images import ImageSource
from frevl.encoders.unreadable_texts import MOSTLY
from frevl.errors import ImageError, UsageError
from frevl.runs.scorer import Scorer
from frevl.runs.search.copies import copies_note, merge_copies, no_more_copies
from frevl.runs.search.index import IndexReport, NeighbourIndex, build_index
from frevl.runs.search.on_device import nearest_of
from frevl.runs.search.vectors import Shortlist
from frevl.store.reader import TABLES
from frevl.store.towers import Modality

__all__ = ["Hit", "SearchResult", "Searcher", "index_store", "search"]

_EXACT_UP_TO = 300_000  # rows above which a search without an index suggests building one
_NEVER_CUT = 64  # characters that every encoder reads in full
_TEST_QUERIES = 512  # queries used to measure an index

_FIND: dict[str, Modality] = {"images": "image", "texts": "text"}


@dataclass(frozen=True)
class Hit:
    """A search hit.

    Attributes:
        rank: Position in the result, 1 for the best.
        id: The image's id, or the text.
        score: The run's score of the pair (larger is better); for image to image, the similarity.
        probability: Calibrated probability that text and image match, assuming that half of the pairs match; None for
            image to image.
        similarity: Dot product of the first stage's unit vectors, in [-1, 1].
        path: The image file, if the folder of the images is known and contains it.
        metadata: Metadata columns of the item.
        copies: Ids of further items with the same content, which would otherwise follow immediately.
    """

    rank: int
    id: str
    score: float
    probability: float | None
    similarity: float
    path: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    copies: tuple[str, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        query: The text, or the id or path of the image.
        find: ``images`` or ``texts``.
        hits: The hits, best first.
        searched: Number of items that could have been found.
        reranked: Number of candidates rescored by the run.
        exact: False if an index chose the candidates.
        notes: Notes for the user.
    """

    query: str
    find: str
    hits: list[Hit]
    searched: int
    reranked: int
    exact: bool
    notes: list[str]

    def record(self) -> dict[str, Any]:
        """Return the record that `frevl search --json` writes."""
        return {**vars(self), "hits": [vars(hit) for hit in self.hits]}


class Searcher:
    """A run and a store, ready for many searches, also from several threads.

    The first stage's vectors are computed at the first search, kept in the store, and mapped into memory afterwards.

    Args:
        scorer: A matching run with a first stage, and its store.
        progress: Show a progress line while vectors are computed.

    Raises:
        UsageError: The run does classification, or has no first stage.
    """

    def __init__(self, scorer: Scorer, *, progress: bool = False) -> None:
        check_searchable(scorer)
        self.scorer = scorer
        self._progress = progress
        self._lock = threading.Lock()
        self._opened: dict[Modality, tuple[Shortlist, NeighbourIndex | None]] = {}

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageSource | None = None,
        find: str | None = None,
        k: int = 10,
        where: str | None = None,
        images: str | Path | None = None,
        exact: bool = False,
        copies: bool = False,
    ) -> SearchResult:
        """Search; see `search`."""
        wanted, query, notes = self._query(text, image, find)
        if not isinstance(k, int) or k < 1:
            raise UsageError(f"The number of results must be a whole number of at least 1, found {k!r}")
        shortlist, index = self._open(wanted)
        allowed = shortlist.alive()
        if where is not None:
            allowed = shortlist.rows_of(self.scorer.store.matching(wanted, where))
        searched = shortlist.usable if allowed is None else int(allowed.sum())
        itself = [query.id] if query.modality == wanted and query.given is None else []
        if itself:  # otherwise all ids would be scanned needlessly
            own = shortlist.rows_of(itself)
            searched -= int((own if allowed is None else own & allowed).sum())
        if not searched:
            notes.append(f"No {wanted} can be found: " + ("none meets the condition." if where else "there is none."))
        elif k > searched:
            notes.append(f"Only {searched:,} {TABLES[wanted]} can be found, fewer than the requested {k:,}.")
        most = max(k, self.scorer.rerank_depth)
        depth = most + len(itself) + 1  # one more shows whether the last one has further copies
        use_index = index if where is None and not exact else None
        vector, threads = self._vector(query), torch.get_num_threads()
        while True:
            if use_index is not None:
                rows, similarities = use_index.nearest(vector, depth, threads=threads)
            else:
                rows, similarities = nearest_of(shortlist, vector, depth, allowed=allowed, threads=threads)
            ids = shortlist.ids(rows)
            found = {row: [id_] for row, id_ in enumerate(ids) if id_ not in itself}
            if not copies:
                of = dict(zip(ids, shortlist.contents(rows), strict=True)) if wanted == "image" else {}
                found = merge_copies(ids, wanted, {**of, **self.scorer.store.content_hashes(itself)}, itself)
            kept = list(found)[:most]
            whole = copies or use_index is not None or wanted == "text"  # an index would miss some copies anyway
            if len(rows) < depth or (len(kept) == most and (whole or no_more_copies(similarities, kept[-1]))):
                break
            depth *= 2  # copies took the places of others
        if use_index is None and len(shortlist) > _EXACT_UP_TO and index is None and where is None and not exact:
            notes.append(
                f"All {len(shortlist):,} vectors were compared; an index is faster: frevl store index --store "
                f"{self.scorer.store.path} --run {self.scorer.run.path}"
            )
        hits, reranked = self._hits(query, wanted, [found[number][0] for number in kept], similarities[kept], k)
        same = {found[number][0]: tuple(found[number][1:]) for number in kept}
        hits = [replace(hit, copies=same[hit.id]) for hit in hits]
        notes += copies_note(sum(len(hit.copies) for hit in hits), wanted, "a hit", exact=use_index is None)
        left_out = len(set(ids).difference(itself, *found.values()))
        notes += copies_note(left_out, wanted, "the query", exact=use_index is None)
        return SearchResult(
            query=query.id,
            find=TABLES[wanted],
            hits=self._described(hits, wanted, None if images is None else Path(images)),
            searched=searched,
            reranked=reranked,
            exact=use_index is None,
            notes=[*shortlist.notes, *notes],
        )

    # ---- the query

    def _query(
        self, text: str | None, image: ImageSource | None, find: str | None
    ) -> tuple[Modality, _Query, list[str]]:
        if (text is None) == (image is None):
            raise UsageError(f"A search needs a text or an image, found {'neither' if text is None else 'both'}")
        if find is not None and find not in _FIND:
            raise UsageError(f"What to find must be 'images' or 'texts', found '{find}'")
        wanted = _FIND[find or "images"]
        if text is not None:
            if not isinstance(text, str):
                raise UsageError(f"The query must be a string, found {type(text).__name__}")
            if wanted == "text":
                raise UsageError("A text finds images; to find texts, give an image with --image")
            if not text.strip():
                raise UsageError('The query is empty; write what to look for, such as "a dog on a beach"')
            # Encoders ignore blanks at the ends, but imported vectors are found only by their exact text.
            stored = self.scorer.store.positions("text")
            text = text.strip() if text not in stored and text.strip() in stored else text
            return wanted, _Query("text", text), self._notes_of(text)
        return wanted, self._image_query(image), []

    def _notes_of(self, text: str) -> list[str]:
        """Return notes if the encoder does not read the whole query."""
        towers = [self.scorer.store.towers[name] for name in self.scorer.run.towers["text"]]
        if any(tower.imported for tower in towers):
            return []
        stored = text in self.scorer.store.positions("text")
        own = []
        if len(text) > _NEVER_CUT or not stored:
            own = [encoder.text for encoder in self.scorer.encoders("text") if encoder.text is not None]
        notes = []
        if len(text) > _NEVER_CUT and any(tower.truncated([text]) for tower in own):
            notes.append("The query is longer than the encoder can read and was truncated.")
        unread = own and all(float(tower.unread([text])[0]) > MOSTLY for tower in own)
        if unread or (stored and self.scorer.store.unread_texts([text], towers)):
            notes.append(
                "The encoder does not know most of the query's letters or words, so the hits mean little; for "
                "encoders of other languages, see frevl encoders list."
            )
        return notes

    def _image_query(self, image: ImageSource | None) -> _Query:
        known = self.scorer.store.positions("image")
        if isinstance(image, str | Path) and str(image) in known:
            return _Query("image", str(image))
        if isinstance(image, str | Path) and not Path(image).exists():
            same = same_names([str(image)], known)
            if same:
                return _Query("image", same[str(image)])
        if image is None:
            raise UsageError("A search needs a text or an image")
        try:
            prepared = self.scorer.prepare_image(image)
        except (ImageError, FileNotFoundError) as error:
            if isinstance(image, str | Path) and not Path(image).exists():
                nearest = why_unknown(str(image), known)
                raise UsageError(
                    f"{image}: expected an image file, or the id of an image of {self.scorer.store.path}; found none"
                    + (f"; {nearest}" if nearest else "")
                ) from error
            raise
        name = str(image) if isinstance(image, str | Path) else "the given image"
        return _Query("image", name, self.scorer.embed_images([prepared])[0])

    def _vector(self, query: _Query) -> np.ndarray:
        if query.modality == "text":
            vectors = self.scorer.text_vectors([query.id])
        else:
            given = None if query.given is None else {query.id: query.given}
            vectors = self.scorer.image_vectors([query.id], images=given)
        vector: np.ndarray = vectors[0]
        return vector

    # ---- the answer

    def _open(self, modality: Modality) -> tuple[Shortlist, NeighbourIndex | None]:
        with self._lock:
            if modality not in self._opened:
                shortlist = Shortlist(self.scorer, modality, progress=self._progress)
                self._opened[modality] = shortlist, NeighbourIndex.open(shortlist)
            return self._opened[modality]

    def _hits(
        self, query: _Query, wanted: Modality, ids: Sequence[str], similarities: np.ndarray, k: int
    ) -> tuple[list[Hit], int]:
        """Score the candidates with the run and sort them; image-to-image search has no pairs to score."""
        if query.modality == wanted:
            found = [
                Hit(rank, id_, float(value), None, float(value))
                for rank, (id_, value) in enumerate(zip(ids[:k], similarities[:k], strict=True), start=1)
            ]
            return found, 0
        pairs = [(id_, query.id) if wanted == "image" else (query.id, id_) for id_ in ids]
        given = None if query.given is None else {query.id: query.given}
        scores, probabilities = self.scorer.match_probabilities(pairs, images=given)
        order = np.argsort(-scores, kind="stable")[:k]
        hits = [
            Hit(rank, ids[row], float(scores[row]), float(probabilities[row]), float(similarities[row]))
            for rank, row in enumerate(order, start=1)
        ]
        return hits, len(ids) if self.scorer.rerank_depth else 0

    def _described(self, hits: Sequence[Hit], modality: Modality, folder: Path | None) -> list[Hit]:
        metadata = self.scorer.store.read_metadata(modality, [hit.id for hit in hits])
        described = []
        for hit, columns in zip(hits, metadata, strict=True):
            path = (folder or Path()) / hit.id
            there = modality == "image" and path.is_file()
            described.append(replace(hit, path=str(path) if there else None, metadata=columns))
        return described


@dataclass(frozen=True)
class _Query:
    """The query: a text, an image in the store, or a given image."""

    modality: Modality
    id: str
    given: np.ndarray | None = None


def search(
    scorer: Scorer,
    text: str | None = None,
    *,
    image: ImageSource | None = None,
    find: str | None = None,
    k: int = 10,
    where: str | None = None,
    images: str | Path | None = None,
    exact: bool = False,
    copies: bool = False,
    progress: bool = False,
) -> SearchResult:
    """Find images for a text, or texts or images for an image, in the scorer's store.

    The first stage compares the query with every item (or uses the index, see `index_store`); the run scores the best
    ones. For many searches, create a `Searcher`.

    Args:
        scorer: A matching run with a first stage (``cosine``, ``dual``, or one that reranks), and its store.
        text: The text; finds images.
        image: Instead of a text: the id of an image in the store, a path, the bytes of an image file, or a Pillow
            image.
        find: ``images`` (the default) or, for an image, ``texts``.
        k: Number of hits, at least 1.
        where: SQL condition over ``id``, ``bytes`` and metadata columns: only items that satisfy it are found, always
            by exact search.
        images: Folder of the images, for the hits' paths.
        exact: Do not use an index.
        copies: List every item with the same content separately; otherwise the first one lists the ids of the others.
        progress: Show a progress line while vectors are computed.

    Returns:
        Hits, best first; fewer than ``k`` if the store has fewer.

    Raises:
        UsageError: Empty query, ``k`` below 1, an invalid condition, or a run that cannot search.
        ImageError: The image cannot be read.
        StoreError: The store is damaged, or the query has to be embedded and the vectors were imported.
        FingerprintError: The query has to be embedded and the encoder is not the one that made the store.
    """
    searcher = Searcher(scorer, progress=progress)
    return searcher.search(text, image=image, find=find, k=k, where=where, images=images, exact=exact, copies=copies)


def index_store(
    scorer: Scorer, *, find: str = "images", recall: float = 0.95, progress: bool = False
) -> tuple[IndexReport, list[str]]:
    """Build the index used to search a large store, or add new rows to it.

    Args:
        scorer: A matching run with a first stage, and its store.
        find: ``images`` or ``texts``: what searches will find.
        recall: Share of the ten nearest neighbours to find, in (0, 1].
        progress: Show progress.

    Returns:
        The report, with the recall measured on queries from the store (texts for images, images for texts; images for
            images if there are no texts), and notes.

    Raises:
        UsageError: The run cannot search, or there is too little to index.
        StoreError: The index cannot be written.
    """
    if find not in _FIND:
        raise UsageError(f"What to find must be 'images' or 'texts', found '{find}'")
    if not 0 < recall <= 1:
        raise UsageError(f"The recall must be in (0, 1], found {recall}")
    check_searchable(scorer)
    wanted = _FIND[find]
    shortlist = Shortlist(scorer, wanted, progress=progress)
    asking: Modality = "text" if wanted == "image" and scorer.store.count("text") else "image"
    chosen = np.random.default_rng(0).permutation(scorer.store.count(asking))[:_TEST_QUERIES]
    of = scorer.text_vectors if asking == "text" else scorer.image_vectors
    queries, threads = of(scorer.store.ids(asking, chosen)), torch.get_num_threads()
    report = build_index(shortlist, queries, queries_of=asking, recall=recall, threads=threads, progress=progress)
    if report.recall < recall:
        shortlist.notes.append(
            f"The index finds {100 * report.recall:.1f} % of the exact neighbours, fewer than the requested "
            f"{100 * recall:.1f} %; use --exact if that matters."
        )
    return report, shortlist.notes


def check_searchable(scorer: Scorer) -> None:
    """Refuse a run that cannot search.

    Raises:
        UsageError: The run does classification, or has no first stage.
    """
    if scorer.run.task != "matching":
        raise UsageError(f"{scorer.run.path}: a search needs a matching run, found task '{scorer.run.task}'")
    if not scorer.has_first_stage:
        raise UsageError(
            f"{scorer.run.path}: the model '{scorer.run.model}' has no first stage to search with; train one with "
            "--task matching --model dual, or cosine if the encoder has a common space"
        )
