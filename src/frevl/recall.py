"""Retrieval metrics of a run: recall and median rank in both directions, before and after reranking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frevl.measures import Measure
from frevl.metrics import median_rank
from frevl.pairs import Pairs
from frevl.retrieval import Ranks, dot_products, matches_of, reranked, retrieval_ranks
from frevl.scorer import Scorer

__all__ = ["judge_retrieval"]

_RANKS = (1, 5, 10)


def judge_retrieval(scorer: Scorer, pairs: Pairs) -> tuple[dict[str, Measure], str]:
    """Rank all texts for every image and all images for every text.

    A query counts as a hit if any of its right items is found, as CLIP papers count. Ties stand against the right
    item. A run that reranks orders the best candidates of its first stage by its final score, the others stay behind
    them; its metrics with the prefix ``first_`` are those of the first stage alone.

    A text that stands with several images is one query, and each of these images is right.

    Args:
        scorer: A matching run with its store.
        pairs: Right pairs of at least two images.

    Returns:
        ``i2t_r1`` ... ``t2i_r10`` as shares, ``i2t_median_rank`` and ``t2i_median_rank`` counted from 1, and a
        sentence that says among how many items, and how deep the reranking went.
    """
    images, texts = list(dict.fromkeys(pairs.images)), list(dict.fromkeys(pairs.texts))
    rows = {id_: n for n, id_ in enumerate(images)}
    columns = {text: n for n, text in enumerate(texts)}
    of_image, of_text = matches_of(
        [rows[image] for image in pairs.images], [columns[text] for text in pairs.texts], len(images), len(texts)
    )
    image_of_text = [images[min(found)] for found in of_text]
    note = f"Retrieval among {len(images):,} images and {len(texts):,} texts; any right one counts"
    shared = sum(len(found) > 1 for found in of_text)
    if shared:
        note += f" ({shared:,} of the texts stand with several images)"
    if not scorer.rerank_depth:
        grid = _first_stage(scorer, images, texts) if scorer.has_first_stage else scorer.grid(images, texts)
        return _measures(retrieval_ranks(grid, of_image, of_text), images, image_of_text), f"{note}."
    grid = _first_stage(scorer, images, texts)
    depth = scorer.rerank_depth
    ranks = reranked(grid, of_image, of_text, depth=depth, score=scorer.between(images, texts))
    first = _measures(retrieval_ranks(grid, of_image, of_text), images, image_of_text)
    measured = _measures(ranks, images, image_of_text)
    measured |= {f"first_{name}": measure for name, measure in first.items()}
    return measured, f"{note}; the best {depth} of the first stage were reranked."


def _first_stage(scorer: Scorer, images: list[str], texts: list[str]) -> NDArray[np.float32]:
    return dot_products(scorer.image_vectors(images), scorer.text_vectors(texts))


def _measures(ranks: Ranks, images: list[str], image_of_text: list[str]) -> dict[str, Measure]:
    sides = (("i2t", ranks.i2t, images), ("t2i", ranks.t2i, image_of_text))
    found = {
        f"{side}_r{k}": Measure(owners, (places < k).astype(float)) for side, places, owners in sides for k in _RANKS
    }
    return found | {f"{side}_median_rank": _median(places, owners) for side, places, owners in sides}


def _median(places: np.ndarray, owners: list[str]) -> Measure:
    # Metrics are shown in percent; a rank is not one.
    return Measure(owners, statistic=lambda rows: median_rank(places[rows]) / 100, resamples=200)
