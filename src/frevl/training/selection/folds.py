"""On which pairs candidates are fitted, stopped and compared: given development pairs, or cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frevl.training.prepare import Prepared

__all__ = ["Fold", "cv_splits"]

_FOLDS = 3
_CROSS_VALIDATED = 20_000  # with more pairs than this, the development part alone tells enough
_FEWEST_CLUSTERS = 10  # with fewer images a fold would hold almost none
_FEWEST_GIVEN, _FEWEST_GIVEN_CLUSTERS = 300, 30  # development pairs and groups that candidates are compared on
_INNER_SHARE = 0.1


@dataclass(frozen=True)
class Fold:
    """Rows of one fit, counted through the training part and then the development part.

    Attributes:
        train: Fitted on.
        inner: For early stopping and calibration.
        held_out: What candidates are compared on.
        check: What the comparison is checked on: the other side of development pairs that the user gave. Empty where
            the development part was set aside from the training pairs.
    """

    train: Tensor
    inner: Tensor
    held_out: Tensor
    check: Tensor


def cv_splits(data: Prepared, seed: int) -> tuple[list[Fold], str, str]:
    """Return the folds, in words what candidates are compared on, and in words what that is checked on.

    Development pairs that the user gave are what the user calls new. Candidates are compared on them, and checked on
    held-out groups of the training part; where they are few, the other way round. They are never fitted on.
    """
    rows = torch.arange(len(data.train)), torch.arange(len(data.train), len(data.train) + len(data.dev))
    clusters = torch.cat([data.train.clusters, data.dev.clusters])
    random = np.random.default_rng(seed)
    if data.dev_is_spare:
        folds, words = _spare(rows, clusters, random)
        return folds, words, ""
    train, dev = rows
    of_train, of_dev = (len(torch.unique(clusters[part])) for part in rows)
    given = f"{len(dev):,} given development pairs"
    held = f"held-out groups of {len(train):,} training pairs"
    if len(dev) >= _FEWEST_GIVEN and of_dev >= _FEWEST_GIVEN_CLUSTERS:
        inside, inner = _apart(train, clusters, random)
        return [Fold(inside, inner, dev, inner)], given, held
    if of_train < _FEWEST_CLUSTERS or len(train) > _CROSS_VALIDATED:
        inside, inner = _apart(train, clusters, random)
        return [Fold(inside, inner, inner, dev)], held, given
    folds = [
        Fold(*_apart(inside, clusters, random), held_out, dev) for inside, held_out in _cut(train, clusters, random)
    ]
    return folds, f"{len(train):,} training pairs by {_FOLDS}-fold cross-validation over groups", given


def _spare(rows: tuple[Tensor, Tensor], clusters: Tensor, random: np.random.Generator) -> tuple[list[Fold], str]:
    """Cross-validate over all pairs: the development part was set aside at random and is like the rest."""
    (train, dev), nothing = rows, rows[0][:0]
    together = torch.cat(rows)
    if len(torch.unique(clusters)) < _FEWEST_CLUSTERS:
        return [Fold(train, dev, dev, nothing)], f"{len(dev):,} development pairs (too few images to cross-validate)"
    if len(together) > _CROSS_VALIDATED:
        return [Fold(*_apart(train, clusters, random), dev, nothing)], f"{len(dev):,} development pairs"
    folds = [
        Fold(*_apart(inside, clusters, random), held_out, nothing)
        for inside, held_out in _cut(together, clusters, random)
    ]
    return folds, f"{len(together):,} pairs by {_FOLDS}-fold cross-validation over images"


def _cut(rows: Tensor, clusters: Tensor, random: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return ``(others, held out)`` rows of every fold; a cluster is in one fold."""
    names = torch.unique(clusters[rows]).numpy()
    fold_of = dict(zip(random.permutation(names).tolist(), np.arange(len(names)) % _FOLDS, strict=True))
    folds = torch.tensor([int(fold_of[int(name)]) for name in clusters[rows]])
    return [(rows[folds != fold], rows[folds == fold]) for fold in range(_FOLDS)]


def _apart(rows: Tensor, clusters: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Set a tenth of the clusters aside for early stopping and calibration."""
    names = np.unique(clusters[rows].numpy())
    held = random.permutation(names)[: max(1, round(_INNER_SHARE * len(names)))]
    inner = torch.from_numpy(np.isin(clusters[rows].numpy(), held))
    return rows[~inner], rows[inner]
