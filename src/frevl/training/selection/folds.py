"""Decide on which pairs candidates are fitted, stopped and compared: given development pairs, or cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from frevl.runs.targets import Answers
from frevl.training.examples import Prepared
from frevl.training.selection.spare_classes import MOST_SET_ASIDE, spare_clusters

__all__ = ["Fold", "cv_splits"]

_FOLDS = 3
_CROSS_VALIDATED = 20_000  # with more pairs than this, the development part alone is enough
_FEWEST_CLUSTERS = 10  # with fewer images, a fold would have almost none
_FEWEST_GIVEN, _FEWEST_GIVEN_CLUSTERS = 300, 30  # minimum development pairs and groups for comparing candidates
_INNER_SHARE = 0.1


@dataclass(frozen=True)
class Fold:
    """Rows of one fit, numbered through the training part, then the development part.

    Attributes:
        train: Rows to fit on.
        inner: Rows for early stopping and calibration; a subset of ``train`` if no class could spare a pair.
        held_out: Rows on which candidates are compared.
        check: Rows by which the comparison is checked: the other side of development pairs given by the user. Empty if
            the development part was set aside from the training pairs.
    """

    train: Tensor
    inner: Tensor
    held_out: Tensor
    check: Tensor

    @property
    def inner_is_spare(self) -> bool:
        """Return whether a model may also train on the inner part, which is then used for nothing else."""
        compared = torch.cat([self.held_out, self.check, self.train])
        return not bool(np.isin(self.inner.numpy(), compared.numpy()).any())


def cv_splits(data: Prepared, seed: int) -> tuple[list[Fold], str, str]:
    """Return the folds, and descriptions of the comparison and the check data.

    Development pairs given by the user define what counts as new data. Candidates are compared on them, and checked on
    held-out groups of the training part; if they are few, the other way round. Nothing is ever fitted on them.
    """
    rows = torch.arange(len(data.train)), torch.arange(len(data.train), len(data.train) + len(data.dev))
    clusters = torch.cat([data.train.clusters, data.dev.clusters])
    random = np.random.default_rng(seed)
    if data.dev_is_spare:
        folds, words = _spare(rows, clusters, _answers(data), random)
        return folds, words, ""
    train, dev = rows
    answers = _answers(data)
    of_train, of_dev = (len(torch.unique(clusters[part])) for part in rows)
    given = f"{len(dev):,} given development pairs"
    held = f"held-out groups of {len(train):,} training pairs"
    if len(dev) >= _FEWEST_GIVEN and of_dev >= _FEWEST_GIVEN_CLUSTERS:
        inside, inner = _apart(train, clusters, answers, random)
        if len(inside) == len(train):  # nothing could be held out for the check
            return [Fold(inside, inner, dev, train[:0])], given, ""
        return [Fold(inside, inner, dev, inner)], given, held
    folds = []
    if of_train >= _FEWEST_CLUSTERS and len(train) <= _CROSS_VALIDATED:
        folds = [
            Fold(*_apart(inside, clusters, answers, random), held_out, dev)
            for inside, held_out in _cut(train, clusters, answers, random)
        ]
    if folds:
        return folds, f"{_count(folds, train)} training pairs by {_FOLDS}-fold cross-validation over groups", given
    inside, inner = _apart(train, clusters, answers, random)
    if len(inside) == len(train):  # although they are few, only the given pairs were not used for training
        return [Fold(inside, inner, dev, train[:0])], given, ""
    return [Fold(inside, inner, inner, dev)], held, given


def _answers(data: Prepared) -> Answers:
    """Return the answers of the training part, then those of the development part."""
    train, dev = data.train.truth, data.dev.truth
    if not (isinstance(train, Answers) and isinstance(dev, Answers)):
        raise TypeError("folds of a classification expect answers")
    return train.followed_by(dev)


def _count(folds: list[Fold], rows: Tensor) -> str:
    """Describe how many pairs are ever held out: all, or all except the only examples of a class."""
    held = sum(len(fold.held_out) for fold in folds)
    return f"{held:,}" if held == len(rows) else f"{held:,} of {len(rows):,}"


def _spare(
    rows: tuple[Tensor, Tensor], clusters: Tensor, answers: Answers, random: np.random.Generator
) -> tuple[list[Fold], str]:
    """Cross-validate over all pairs, because a development part set aside at random is no different from the rest."""
    (train, dev), nothing = rows, rows[0][:0]
    together = torch.cat(rows)
    if len(torch.unique(clusters)) < _FEWEST_CLUSTERS:
        return [Fold(train, dev, dev, nothing)], f"{len(dev):,} development pairs (too few images to cross-validate)"
    if len(together) > _CROSS_VALIDATED:
        inside, inner = _apart(train, clusters, answers, random)
        return [Fold(inside, inner, dev, nothing)], f"{len(dev):,} development pairs"
    folds = [
        Fold(*_apart(inside, clusters, answers, random), held_out, nothing)
        for inside, held_out in _cut(together, clusters, answers, random)
    ]
    if not folds:
        return [Fold(train, dev, dev, nothing)], f"{len(dev):,} development pairs (the others are needed for training)"
    return folds, f"{_count(folds, together)} pairs by {_FOLDS}-fold cross-validation over images"


def _cut(rows: Tensor, clusters: Tensor, answers: Answers, random: np.random.Generator) -> list[tuple[Tensor, Tensor]]:
    """Return the rows ``(others, held out)`` of every fold.

    A cluster is held out in one fold, or in none if a class cannot spare it.
    """
    names = torch.unique(clusters[rows]).numpy()
    own, of_rows = clusters[rows], answers.select(rows)
    order = random.permutation(names)
    found = []
    for fold in range(_FOLDS):
        spared = spare_clusters(own, of_rows, order[fold::_FOLDS].tolist())
        held = torch.isin(own, torch.tensor(spared, dtype=torch.long))
        if bool(held.any()):
            found.append((rows[~held], rows[held]))
    return found


def _apart(rows: Tensor, clusters: Tensor, answers: Answers, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Set a tenth of the clusters aside for early stopping and calibration, but no more pairs than are useful.

    If no class can spare a cluster, the tenth also remains in the first part.
    """
    own = clusters[rows]
    order = random.permutation(np.unique(own.numpy()))
    most = max(1, round(min(_INNER_SHARE, MOST_SET_ASIDE / len(rows)) * len(order)))
    spared = spare_clusters(own, answers.select(rows), order, most)
    inner = torch.from_numpy(np.isin(own.numpy(), spared or order[:most]))
    return rows[~inner] if spared else rows, rows[inner]
