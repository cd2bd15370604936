"""Limits on what is set aside for development: never all examples of a class, and no more pairs than are useful."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from frevl.data.pairs import Pairs
from frevl.runs.targets import Answers

__all__ = ["MOST_SET_ASIDE", "set_aside_note", "spare_clusters"]

MOST_SET_ASIDE = 50_000
"""Approximate maximum number of pairs to set aside. They measure an accuracy to within 0.45 points (95 %), whereas
evaluating a tenth of ten million pairs after every epoch would take minutes."""

_MOST_LOST = 0.2
"""Maximum share of a held-out cluster's pairs whose classes occur nowhere else.

A labelled image is a cluster of its own, so the only image of a class is never held out. An image with fifty questions
often has an answer that no other image has; if it could not be held out, hardly any image could.
"""


def spare_clusters(
    clusters: Tensor, answers: Answers, order: Sequence[int] | np.ndarray, most: int | None = None
) -> list[int]:
    """Return clusters, in order, that no class needs for training.

    Args:
        clusters: ``(n,)`` int64, the cluster of each pair.
        answers: The answers of each pair; an answer that is not a class is ignored.
        order: Clusters that may be held out, in the order in which they are tried.
        most: Maximum number of clusters; None takes all that can be spared.

    Returns:
        The clusters to hold out, in their order.
    """
    given = (answers.classes >= 0) & (answers.weights > 0)
    left = torch.bincount(answers.classes[given], minlength=1)
    own_cluster = clusters.numpy()
    wanted = np.asarray(order if most is None else order[:most], np.int64)
    # NumPy looks names up in a table here; PyTorch would sort ten million of them.
    outside = given & ~torch.from_numpy(np.isin(own_cluster, wanted))[:, None]
    if bool((torch.bincount(answers.classes[outside], minlength=len(left))[left > 0] > 0).all()):
        found: list[int] = wanted.tolist()
        return found  # the usual case
    by_cluster = own_cluster.argsort(kind="stable")
    in_turn = own_cluster[by_cluster]
    taken: list[int] = []
    for name in order:
        if most is not None and len(taken) >= most:
            break
        begin, end = np.searchsorted(in_turn, (int(name), int(name) + 1))
        rows = torch.from_numpy(by_cluster[begin:end])
        classes, known = answers.classes[rows], given[rows]
        own = torch.bincount(classes[known], minlength=len(left))
        gone = ((left == own) & (own > 0))[classes.clamp(min=0)] & known
        # A pair is lost if none of its classes occurs elsewhere.
        lost = (gone.any(dim=1) & ~(known & ~gone).any(dim=1)).sum()
        if int(lost) <= _MOST_LOST * len(rows):
            taken.append(int(name))
            left = left - own
    return taken


def set_aside_note(pairs: Pairs, dev: Pairs, share: float) -> list[str]:
    """Return a note that fewer pairs were set aside than requested.

    Args:
        pairs: All pairs.
        dev: The pairs that were set aside.
        share: Share of the groups to set aside, given by the user or the default.
    """
    if share * len(pairs) <= MOST_SET_ASIDE:
        return []
    return [
        f"For development {len(dev):,} of {len(pairs):,} pairs were set aside instead of the share of {share:g} "
        f"from --dev-share: the maximum is about {MOST_SET_ASIDE:,}, because every epoch is evaluated on them. "
        "The others are used for training; a file given with --dev is used whole."
    ]
