"""Retrieval metrics: ranks of the right items in both directions, with and without reranking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.errors import UsageError, counted
from frevl.evaluation.measures import Measure
from frevl.evaluation.metrics import median_rank, rank_of_best_match
from frevl.runs.pair_grid import PairScores, ScoreRows, dot_rows, scored_rows
from frevl.runs.scorer import Scorer
from frevl.store.grouping.copies import one_item_each

__all__ = ["Ranks", "evaluate_retrieval", "matches_of", "reranked", "retrieval_ranks"]

_BLOCK = 16_777_216  # scores at once: 64 MB


@dataclass(frozen=True)
class Ranks:
    """The rank of the best right item for every query; 0 is the first.

    Attributes:
        i2t: ``(images,)`` int64, the rank of the best right text for each image.
        t2i: ``(texts,)`` int64, the rank of the best right image for each text.
    """

    i2t: NDArray[np.int64]
    t2i: NDArray[np.int64]


def matches_of(
    image_rows: Sequence[int], text_rows: Sequence[int], images: int, texts: int
) -> tuple[list[set[int]], list[set[int]]]:
    """Return the texts of every image and the images of every text, from the rows of right pairs."""
    of_image: list[set[int]] = [set() for _ in range(images)]
    of_text: list[set[int]] = [set() for _ in range(texts)]
    for image, text in zip(image_rows, text_rows, strict=True):
        of_image[image].add(text)
        of_text[text].add(image)
    return of_image, of_text


def retrieval_ranks(rows: ScoreRows, of_image: list[set[int]], of_text: list[set[int]]) -> Ranks:
    """Rank in both directions; wrong items tied with the right one rank ahead of it.

    Every score is computed once, to be counted. Tiles that contain a right pair are computed twice, because the best
    right item of every query must be known first; few do if images and texts are in the order of their pairs.

    Args:
        rows: ``(images, texts)`` scores.
        of_image: Right texts for every image.
        of_text: Right images for every text.

    Raises:
        UsageError: An image or a text has no right partner.
    """
    for right, what, partner in ((of_image, "Image", "text"), (of_text, "Text", "image")):
        missing = next((number for number, partners in enumerate(right) if not partners), None)
        if missing is not None:
            raise UsageError(f"{what} {missing} has no matching {partner}: leave it out of the ranking.")
    edges = _Edges(of_image)
    scores = edges.scores(rows)
    best_of_image, best_of_text = (np.full(count, -np.inf, np.float32) for count in rows.shape)
    np.maximum.at(best_of_image, edges.images, scores)
    np.maximum.at(best_of_text, edges.texts, scores)
    i2t, t2i = (np.zeros(count, np.int64) for count in rows.shape)
    for start, first, tile in rows.tiles():
        images, texts = slice(start, start + tile.shape[0]), slice(first, first + tile.shape[1])
        # NaN, the lowest score, never compares as "at least"; a best right score of -inf is handled below.
        i2t[images] += [np.count_nonzero(row) for row in tile >= best_of_image[images, None]]
        t2i[texts] += _count_down(tile >= best_of_text[texts])
    sides = ((i2t, best_of_image, edges.images, rows.shape[1]), (t2i, best_of_text, edges.texts, rows.shape[0]))
    for ranks, best, items, others in sides:
        ranks[best == -np.inf] = others  # everything scores at least as high
        # The best right item and right ones tied with it are not rivals.
        ranks -= np.bincount(items[scores == best[items]], minlength=len(best))
    return Ranks(i2t, t2i)


def _count_down(found: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the True values of every column, in bytes as long as these suffice, which takes a third of the time."""
    counts = np.zeros(found.shape[1], np.int64)
    for start in range(0, len(found), 255):
        counts += np.add.reduce(found[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return counts


def reranked(
    rows: ScoreRows,
    of_image: list[set[int]],
    of_text: list[set[int]],
    *,
    depth: int,
    score: PairScores,
    before: Ranks | None = None,
) -> Ranks:
    """Rerank the best ``depth`` items of every query; the others follow in first-stage order.

    If no right item is among the candidates, the first-stage rank stays. Of the items tied at the cut-off, the first
    wrong ones become candidates, never a right one.

    Args:
        rows: ``(images, texts)`` scores of the first stage.
        of_image: Right texts for every image.
        of_text: Right images for every text.
        depth: Candidates per query.
        score: Maps ``(n,)`` image rows and ``(n,)`` text rows to ``(n,)`` final scores.
        before: Ranks of the first stage; None computes them.

    Returns:
        Ranks, with ties counting against the right item at both stages.
    """
    before = before or retrieval_ranks(rows, of_image, of_text)
    ranks = Ranks(before.i2t.copy(), before.t2i.copy())
    edges, many = _Edges(of_image), rows.shape[1]
    of_texts = _Candidates(np.zeros((many, 0), np.float32), np.zeros((many, 0), np.int32), np.zeros((many, 0), bool))
    for start, block in _from(rows):
        right = np.zeros(block.shape, bool)
        right[edges.within(start, len(block))] = True
        # A right item must also lose ties at the cut-off.
        lowered = _finite(np.where(right, np.nextafter(block, np.float32(-np.inf)), block))
        texts = _Candidates(lowered, np.broadcast_to(np.arange(many, dtype=np.int32), block.shape), right).best(depth)
        _rank_again(ranks.i2t[start : start + len(block)], texts, start, score)
        images = np.arange(start, start + len(block), dtype=np.int32)
        more = _Candidates(lowered.T, np.broadcast_to(images, block.T.shape), right.T)
        of_texts = of_texts.and_(more).best(depth)
    _rank_again(ranks.t2i, of_texts, 0, lambda texts, images: score(images, texts))
    return ranks


@dataclass(frozen=True)
class _Candidates:
    """Each query's candidates: scores, numbers and whether each is right, all ``(queries, candidates)``."""

    scores: NDArray[np.float32]
    items: NDArray[np.int32]
    right: NDArray[np.bool_]

    def and_(self, others: _Candidates) -> _Candidates:
        both = zip(vars(self).values(), vars(others).values(), strict=True)
        return _Candidates(*(np.concatenate(pair, axis=1) for pair in both))

    def best(self, depth: int) -> _Candidates:
        """Keep the best candidates of every query in their current order; among equals, the first."""
        if self.scores.shape[1] <= depth:
            return self
        edge = -np.partition(-self.scores, depth - 1, axis=1)[:, depth - 1 : depth]
        above, level = self.scores > edge, self.scores == edge
        level &= np.cumsum(level, axis=1, dtype=np.int32) <= depth - np.count_nonzero(above, axis=1)[:, None]
        chosen = np.nonzero(above | level)
        return _Candidates(*(part[chosen].reshape(-1, depth) for part in vars(self).values()))


def _rank_again(ranks: NDArray[np.int64], candidates: _Candidates, first: int, score: PairScores) -> None:
    """Replace the ranks of queries with a right item among their candidates."""
    depth = candidates.items.shape[1]
    queries = max(1, _BLOCK // (256 * max(depth, 1)))
    for start in range(0, len(ranks), queries):
        part = slice(start, min(start + queries, len(ranks)))
        asked = np.repeat(np.arange(first + start, first + part.stop), depth)
        scores = score(asked, candidates.items[part].reshape(-1).astype(np.int64)).reshape(-1, depth)
        right = candidates.right[part]
        known = right.any(axis=1)
        ranks[part][known] = rank_of_best_match([scores[known]], [np.flatnonzero(row) for row in right[known]])


class _Edges:
    """The right pairs, ordered by image.

    Attributes:
        images: ``(pairs,)`` int64 rows of images.
        texts: ``(pairs,)`` int64 rows of texts.
    """

    def __init__(self, of_image: list[set[int]]) -> None:
        self._ends = np.cumsum([0, *map(len, of_image)])
        self.images = np.repeat(np.arange(len(of_image)), [len(texts) for texts in of_image])
        self.texts = np.array([text for texts in of_image for text in sorted(texts)], np.int64)

    def within(self, start: int, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the right pairs within a block of images: image rows and texts."""
        part = slice(self._ends[start], self._ends[start + rows])
        return self.images[part] - start, self.texts[part]

    def scores(self, rows: ScoreRows) -> NDArray[np.float32]:
        """Return the ``(pairs,)`` scores of the right pairs, from the tiles that contain any."""
        down, right = self.images // rows.step, self.texts // rows.across
        wide = -(-rows.shape[1] // rows.across)
        by_tile = np.argsort(down * wide + right, kind="stable")
        counts = np.bincount(down * wide + right, minlength=-(-rows.shape[0] // rows.step) * wide)
        scores, done = np.empty(len(self.images), np.float32), 0
        for (start, first, tile), count in zip(
            rows.tiles(counts.reshape(-1, wide) > 0), counts[counts > 0], strict=True
        ):
            pairs = by_tile[done : done + count]
            scores[pairs] = tile[self.images[pairs] - start, self.texts[pairs] - first]
            done += count
        return _finite(scores)


def _from(rows: ScoreRows) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Iterate over blocks with the number of their first row."""
    start = 0
    for block in rows:
        yield start, block
        start += len(block)


def _finite(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Replace NaN by the lowest possible score."""
    return np.where(np.isnan(scores), np.float32(-np.inf), scores)


_RANKS = (1, 5, 10)


def evaluate_retrieval(scorer: Scorer, pairs: Pairs) -> tuple[dict[str, Measure], list[str]]:
    """Rank all texts for every image, and all images for every text.

    A query is a hit if any of its right items is found, as in the CLIP papers. Ties count against the right item. A
    reranking run orders its first stage's best candidates by the final score, followed by the others; metrics with the
    prefix ``first_`` are those of the first stage alone.

    A text paired with several images is one query, for which each of these images is right. Images with the same
    content count as one, so that no copy ranks ahead of another.

    Args:
        scorer: A matching run with its store.
        pairs: Right pairs with at least two images.

    Returns:
        ``i2t_r1`` ... ``t2i_r10`` as shares, ``i2t_median_rank`` and ``t2i_median_rank`` counted from 1, and sentences:
        on the number of items and the reranking depth, and on a ranking no better than a random one.
    """
    pairs, copies = one_item_each(pairs, scorer.store)
    images, texts = list(dict.fromkeys(pairs.images)), list(dict.fromkeys(pairs.texts))
    rows = {id_: n for n, id_ in enumerate(images)}
    columns = {text: n for n, text in enumerate(texts)}
    of_image, of_text = matches_of(
        [rows[image] for image in pairs.images], [columns[text] for text in pairs.texts], len(images), len(texts)
    )
    cluster_of = dict(zip(reversed(pairs.images), reversed(pairs.clusters), strict=True))
    of_images = [cluster_of[image] for image in images]
    of_texts = [of_images[min(found)] for found in of_text]
    note = f"Retrieval among {counted(len(images), 'image')} and {counted(len(texts), 'text')}; any right one counts"
    shared = sum(len(found) > 1 for found in of_text)
    if shared:
        note += f" ({shared:,} of the texts belong to several images)"
    if copies:
        note += f" ({copies:,} copies were merged with the first image of the same content)"
    if scorer.has_first_stage:
        scores = dot_rows(scorer.image_vectors(images), scorer.text_vectors(texts)).kept()
    else:
        scores = scored_rows(len(images), len(texts), scorer.between(images, texts)).kept()
    first = retrieval_ranks(scores, of_image, of_text)
    if not scorer.rerank_depth:
        said = _no_better_than_random(first, of_image, of_text, of_images, of_texts)
        return _measures(first, of_images, of_texts), [f"{note}.", *said]
    depth = scorer.rerank_depth
    between = scorer.between(images, texts)
    ranks = reranked(scores, of_image, of_text, depth=depth, score=between, before=first)
    measured = _measures(ranks, of_images, of_texts)
    measured |= {f"first_{name}": measure for name, measure in _measures(first, of_images, of_texts).items()}
    said = _no_better_than_random(ranks, of_image, of_text, of_images, of_texts)
    return measured, [f"{note}; the first stage's best {depth} were reranked.", *said]


def _measures(ranks: Ranks, of_images: list[str], of_texts: list[str]) -> dict[str, Measure]:
    sides = (("i2t", ranks.i2t, of_images), ("t2i", ranks.t2i, of_texts))
    found = {
        f"{side}_r{k}": Measure(owners, (places < k).astype(float)) for side, places, owners in sides for k in _RANKS
    }
    return found | {f"{side}_median_rank": _median(places, owners) for side, places, owners in sides}


def _no_better_than_random(
    ranks: Ranks, of_image: list[set[int]], of_text: list[set[int]], of_images: list[str], of_texts: list[str]
) -> list[str]:
    """Return a sentence if the best right item of a query is ahead of no more wrong ones than in random order."""
    ahead, random = [], []
    for places, found, others in ((ranks.i2t, of_image, len(of_text)), (ranks.t2i, of_text, len(of_image))):
        right = np.array([len(items) for items in found])
        wrong = others - right
        # With nothing wrong to be ahead of, a query shows nothing. The best of r in random order: r / (r + 1).
        ahead.append(np.where(wrong > 0, 1 - places / np.maximum(wrong, 1), right / (right + 1)))
        random.append(right / (right + 1))
    measure = Measure([*of_images, *of_texts], np.concatenate(ahead), random=np.concatenate(random))
    gap = measure.at_chance()
    if gap is None or measure.values is None or measure.random is None:
        return []
    shown = "" if np.isnan(gap.low) else f": {100 * gap.value:+.2f} points [{100 * gap.low:.2f}, {100 * gap.high:.2f}]"
    return [
        f"Chance: right items are ahead of {100 * measure.values.mean():.2f} % of the wrong ones on average, which is "
        f"not measurably better than in random order ({100 * measure.random.mean():.2f} %){shown}."
    ]


def _median(places: np.ndarray, owners: list[str]) -> Measure:
    # Metrics are shown in percent, but ranks are not.
    return Measure(owners, statistic=lambda rows: median_rank(places[rows]) / 100, resamples=200)
