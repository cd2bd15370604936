"""Near copies in the pool of ``frevl select``, of which `margin` would otherwise choose several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from frevl.runs.scorer import Scorer
from frevl.store.grouping.copies import find_near_copies
from frevl.store.grouping.groups import joined_nodes
from frevl.store.grouping.unit_vectors import unit_vectors
from frevl.store.ids.rows_of_ids import find_rows

__all__ = ["near_copy_groups"]


def near_copy_groups(
    scorer: Scorer, units: Sequence[str], numbers: NDArray[np.int64], covered: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number some pairs so that near copies of an image share a number.

    Args:
        scorer: The run with its store.
        units: ``(n,)`` image of every pair.
        numbers: ``(n,)`` number of the image's content.
        covered: Images that are labelled or were in training.

    Returns:
        ``(n,)`` numbers, and ``(n,)`` whether the image is a near copy of a covered one. Without images in the store,
        the numbers are returned unchanged.
    """
    known = scorer.store.positions("image")
    towers = [scorer.store.towers[name] for name in scorer.run.towers["image"]]
    each, first, at = np.unique(numbers, return_index=True, return_inverse=True)
    images = [units[row] for row in first.tolist()]
    rows = find_rows(known, covered)
    contents = scorer.store.states("image")["content_hash"][rows[rows >= 0]]
    others = [covered[row] for row in np.flatnonzero(rows >= 0)[np.unique(contents, return_index=True)[1]].tolist()]
    unlinked = numbers, np.zeros(len(numbers), bool)
    if not towers or not all(image in known for image in images):
        return unlinked
    vectors = unit_vectors(scorer.store, [*images, *others], towers).astype(np.float32)
    links = find_near_copies(vectors).links
    if not len(links):
        return unlinked
    group = joined_nodes(np.arange(len(vectors)), links[:, 0], links[:, 1])
    own = group[: len(each)]
    return each[own][at], np.isin(own, group[len(each) :])[at]
