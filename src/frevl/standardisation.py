"""Per-dimension standardisation of embeddings for a fusion, which leaves no trace in the network that is saved.

Some towers are loud in a few dimensions and quiet in most; gradient descent then sees the loud ones only. So the
fusion trains on ``(x - mean) / deviation`` with training statistics, and afterwards both numbers move into the
projections, which are linear maps of the input: ``W (x - m) / s + b = (W / s) x + (b - W m / s)``. What is saved,
served and exported takes plain embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frevl.batches import EmbeddedPairs
from frevl.fusion import Fusion

__all__ = ["Statistics", "fold", "statistics_of", "unfold"]

_ITEMS_AT_ONCE = 4096  # a float32 copy of all items may not fit


@dataclass(frozen=True)
class Statistics:
    """Mean and scale of every dimension, by modality.

    Attributes:
        image: ``(image_dim,)`` mean and scale; the scale is infinite where a dimension never varies, so that it says
            nothing instead of dividing by zero.
        text: ``(text_dim,)`` the same.
    """

    image: tuple[Tensor, Tensor]
    text: tuple[Tensor, Tensor]

    def applied(self, pairs: EmbeddedPairs) -> EmbeddedPairs:
        """Return the same pairs with standardised items, in the stored type."""
        images, texts = _standard(pairs.images, *self.image), _standard(pairs.texts, *self.text)
        return replace(pairs, images=images, texts=texts)


def statistics_of(pairs: EmbeddedPairs) -> Statistics:
    """Measure the items that some pairs use, each item once, over all tokens that exist."""
    found = []
    for items, mask, rows in (
        (pairs.images, pairs.image_mask, pairs.image_rows),
        (pairs.texts, pairs.text_mask, pairs.text_rows),
    ):
        used = torch.unique(rows)
        count, total, squares = 0, torch.zeros(items.shape[2]).double(), torch.zeros(items.shape[2]).double()
        for part in used.split(_ITEMS_AT_ONCE):
            tokens = items[part][mask[part]].double()
            count += len(tokens)
            total += tokens.sum(dim=0)
            squares += tokens.square().sum(dim=0)
        mean = total / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        found.append((mean.float(), deviation.where(deviation > 1e-6, torch.inf).float()))
    return Statistics(*found)


def fold(network: Fusion, statistics: Statistics) -> None:
    """Move the statistics into the projections, so that the network takes plain embeddings from now on."""
    for projection, (mean, scale) in (
        (network.image_projection, statistics.image),
        (network.text_projection, statistics.text),
    ):
        _fold_into(projection, mean.double(), scale.double())


def unfold(network: Fusion, statistics: Statistics) -> None:
    """The inverse of `fold`: a network that takes plain embeddings takes standardised ones from now on.

    A dimension that never varies in the statistics keeps its part as a constant.
    """
    for projection, (mean, scale) in (
        (network.image_projection, statistics.image),
        (network.text_projection, statistics.text),
    ):
        with torch.no_grad():
            weight = projection.weight.double()
            projection.bias.copy_(projection.bias.double() + weight @ mean.double())
            projection.weight.copy_(weight * scale.where(scale.isfinite(), 0).double())


def _fold_into(projection: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    with torch.no_grad():
        weight = projection.weight.double() / scale
        projection.bias.copy_(projection.bias.double() - weight @ mean)
        projection.weight.copy_(weight)


def _standard(items: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    standard = torch.empty_like(items)
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        rows = slice(start, start + _ITEMS_AT_ONCE)
        standard[rows] = ((items[rows].float() - mean) / scale).to(items.dtype)
    return standard
