"""On which pairs candidates are fitted, stopped and judged: folds over images, or the development part."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from frevl.training.prepare import Prepared

__all__ = ["folds_of"]

_FOLDS = 3
_CROSS_VALIDATED = 20_000  # with more pairs than this, the development part alone tells enough
_FEWEST_CLUSTERS = 10  # with fewer images a fold would hold almost none
_INNER_SHARE = 0.1


def folds_of(data: Prepared, seed: int) -> tuple[list[tuple[Tensor, Tensor, Tensor]], str]:
    """Return ``(train, inner development, judge)`` rows of every fold, and in words what is judged on.

    Rows count through the training part and then the development part.
    """
    train, dev = len(data.train), len(data.dev)
    clusters = torch.cat([data.train.clusters, data.dev.clusters])
    random = np.random.default_rng(seed)
    if len(torch.unique(clusters)) < _FEWEST_CLUSTERS:
        rest = torch.arange(train, train + dev)
        return [(torch.arange(train), rest, rest)], f"{dev:,} development pairs (too few images to cross-validate)"
    if train + dev > _CROSS_VALIDATED:
        inside, inner = _apart(torch.arange(train), clusters, random)
        return [(inside, inner, torch.arange(train, train + dev))], f"{dev:,} development pairs"
    names = torch.unique(clusters).numpy()
    fold_of = dict(zip(random.permutation(names).tolist(), np.arange(len(names)) % _FOLDS, strict=True))
    folds = torch.tensor([int(fold_of[int(name)]) for name in clusters])
    splits = []
    for fold in range(_FOLDS):
        inside, inner = _apart((folds != fold).nonzero()[:, 0], clusters, random)
        splits.append((inside, inner, (folds == fold).nonzero()[:, 0]))
    return splits, f"{train + dev:,} pairs by {_FOLDS}-fold cross-validation over images"


def _apart(rows: Tensor, clusters: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Set a tenth of the clusters aside for early stopping and calibration."""
    names = np.unique(clusters[rows].numpy())
    held = random.permutation(names)[: max(1, round(_INNER_SHARE * len(names)))]
    inner = torch.from_numpy(np.isin(clusters[rows].numpy(), held))
    return rows[~inner], rows[inner]
