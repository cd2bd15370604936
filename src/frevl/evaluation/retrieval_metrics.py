"""Where the right items stand in both directions of retrieval, with and without reranking, block by block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.data.pairs import Pairs
from frevl.evaluation.copies import one_item_each
from frevl.evaluation.measures import Measure
from frevl.evaluation.metrics import median_rank, rank_of_best_match
from frevl.runs.pair_grid import PairScores, dot_products
from frevl.runs.scorer import Scorer

__all__ = ["Ranks", "evaluate_retrieval", "matches_of", "reranked", "retrieval_ranks"]

_BLOCK = 16_777_216  # scores at once: 64 MB


@dataclass(frozen=True)
class Ranks:
    """The place of the best right item of every query; 0 is the first.

    Attributes:
        i2t: ``(images,)`` int64.
        t2i: ``(texts,)`` int64.
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


def retrieval_ranks(grid: NDArray[np.float32], of_image: list[set[int]], of_text: list[set[int]]) -> Ranks:
    """Rank by ``(images, texts)`` scores; wrong items that tie with the right one stand before it."""
    return Ranks(
        rank_of_best_match(_blocks(grid), of_image),
        rank_of_best_match(_blocks(grid.T), of_text),
    )


def reranked(
    first: NDArray[np.float32], of_image: list[set[int]], of_text: list[set[int]], *, depth: int, score: PairScores
) -> Ranks:
    """Rank the best ``depth`` items of every query anew; the others stay behind them in the order of the first stage.

    Args:
        first: ``(images, texts)`` scores of the first stage.
        of_image: The right texts of every image.
        of_text: The right images of every text.
        depth: Candidates a query.
        score: From ``(n,)`` image rows and ``(n,)`` text rows to ``(n,)`` final scores.

    Returns:
        Ranks in which ties count against the right item, at both stages.
    """
    before = retrieval_ranks(first, of_image, of_text)
    return Ranks(
        _reranked_queries(first, of_image, before.i2t, depth, score),
        _reranked_queries(first.T, of_text, before.t2i, depth, lambda texts, images: score(images, texts)),
    )


def _reranked_queries(
    first: NDArray[np.float32],
    positives: list[set[int]],
    before: NDArray[np.int64],
    depth: int,
    score: PairScores,
) -> NDArray[np.int64]:
    """Queries in rows. Where no right item is among the candidates, the rank of the first stage stays."""
    ranks = before.copy()
    depth = min(depth, first.shape[1])
    start = 0
    for block in _blocks(first, queries=max(1, _BLOCK // (4 * max(first.shape[1], 64 * depth)))):
        right = np.zeros(block.shape, bool)
        for row in range(len(block)):
            right[row, list(positives[start + row])] = True
        # A right item must lose a tie at the edge of the candidates too.
        lowered = np.where(right, np.nextafter(block, np.float32(-np.inf)), block)
        candidates = np.argpartition(-lowered, depth - 1, axis=1)[:, :depth]
        queries = np.repeat(np.arange(start, start + len(block)), depth)
        scores = score(queries, candidates.reshape(-1).astype(np.int64)).reshape(len(block), depth)
        found = np.take_along_axis(right, candidates, axis=1)
        known = found.any(axis=1)
        again = rank_of_best_match([scores[known]], [np.flatnonzero(row) for row in found[known]])
        ranks[start : start + len(block)][known] = again
        start += len(block)
    return ranks


def _blocks(grid: NDArray[np.float32], queries: int | None = None) -> Iterator[NDArray[np.float32]]:
    size = queries or max(1, _BLOCK // max(grid.shape[1], 1))
    for start in range(0, len(grid), size):
        yield np.ascontiguousarray(grid[start : start + size])


_RANKS = (1, 5, 10)


def evaluate_retrieval(scorer: Scorer, pairs: Pairs) -> tuple[dict[str, Measure], str]:
    """Rank all texts for every image and all images for every text.

    A query counts as a hit if any of its right items is found, as CLIP papers count. Ties stand against the right
    item. A run that reranks orders the best candidates of its first stage by its final score, the others stay behind
    them; its metrics with the prefix ``first_`` are those of the first stage alone.

    A text that stands with several images is one query, and each of these images is right. Images of the same content
    are one image, so that no copy stands before its twin.

    Args:
        scorer: A matching run with its store.
        pairs: Right pairs of at least two images.

    Returns:
        ``i2t_r1`` ... ``t2i_r10`` as shares, ``i2t_median_rank`` and ``t2i_median_rank`` counted from 1, and a
        sentence that says among how many items, and how deep the reranking went.
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
    note = f"Retrieval among {len(images):,} images and {len(texts):,} texts; any right one counts"
    shared = sum(len(found) > 1 for found in of_text)
    if shared:
        note += f" ({shared:,} of the texts stand with several images)"
    if copies:
        note += f" ({copies:,} copies of the same content were taken together with their first)"
    if not scorer.rerank_depth:
        grid = _first_stage(scorer, images, texts) if scorer.has_first_stage else scorer.grid(images, texts)
        return _measures(retrieval_ranks(grid, of_image, of_text), of_images, of_texts), f"{note}."
    grid = _first_stage(scorer, images, texts)
    depth = scorer.rerank_depth
    ranks = reranked(grid, of_image, of_text, depth=depth, score=scorer.between(images, texts))
    first = _measures(retrieval_ranks(grid, of_image, of_text), of_images, of_texts)
    measured = _measures(ranks, of_images, of_texts)
    measured |= {f"first_{name}": measure for name, measure in first.items()}
    return measured, f"{note}; the best {depth} of the first stage were reranked."


def _first_stage(scorer: Scorer, images: list[str], texts: list[str]) -> NDArray[np.float32]:
    return dot_products(scorer.image_vectors(images), scorer.text_vectors(texts))


def _measures(ranks: Ranks, of_images: list[str], of_texts: list[str]) -> dict[str, Measure]:
    sides = (("i2t", ranks.i2t, of_images), ("t2i", ranks.t2i, of_texts))
    found = {
        f"{side}_r{k}": Measure(owners, (places < k).astype(float)) for side, places, owners in sides for k in _RANKS
    }
    return found | {f"{side}_median_rank": _median(places, owners) for side, places, owners in sides}


def _median(places: np.ndarray, owners: list[str]) -> Measure:
    # Metrics are shown in percent; a rank is not one.
    return Measure(owners, statistic=lambda rows: median_rank(places[rows]) / 100, resamples=200)
