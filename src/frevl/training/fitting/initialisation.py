"""Fine-tuning: initialise a fusion from one trained on captions or synthetic data.

A few thousand labelled pairs are too few to learn which words belong to which images; captions of other photos, or
statements whose truth is known, can teach this, and training on the task then starts from there (numbers in
research/experiments/log.md). Ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from frevl.errors import UsageError
from frevl.models.fusion import PRESETS, Fusion
from frevl.models.inputs import ZScore
from frevl.runs.batches import EmbeddedPairs

__all__ = [
    "Pretrained",
    "Statistics",
    "absorb_statistics",
    "initialise_from",
    "release_statistics",
    "rows_of_same_classes",
    "statistics_of",
]

_LAST = ("head.outer.weight", "head.outer.bias")  # the map to the logits, whose meaning depends on the classes


@dataclass(frozen=True)
class Pretrained:
    """A trained fusion from which another is initialised.

    Attributes:
        network: The trained fusion; takes plain embeddings.
        rows: ``(outputs,)`` int64, the output of this network for every class of the new task; None if the classes
            differ.
        seen: Number of images of the new pairs on which it was trained.
    """

    network: Fusion
    rows: Tensor | None
    seen: int

    @property
    def preset(self) -> str:
        """Return the preset with this network's width."""
        return next(name for name, sizes in PRESETS.items() if sizes["width"] == self.network.settings["width"])

    @property
    def shape(self) -> dict[str, int | float | bool]:
        """Return the options that give a fusion of this shape."""
        names = ("layers", "cross_attention", "product", "difference")
        return {name: self.network.settings[name] for name in names}


def rows_of_same_classes(classes: Sequence[str], former: Sequence[str]) -> Tensor | None:
    """Return every class's position among the former ones; None if the classes differ."""
    if sorted(classes) != sorted(former):
        return None
    return torch.tensor([list(former).index(name) for name in classes])


def initialise_from(network: Fusion, start: Pretrained) -> None:
    """Copy all weights of a trained fusion; those of the output layer only if the classes are the same.

    Args:
        network: Network to initialise, in place; afterwards it takes plain embeddings, as the trained one does.
        start: A trained fusion of the same sizes, apart from outputs and dropout.

    Raises:
        UsageError: The sizes or the parts of the fused feature differ.
    """
    own, others = network.settings, start.network.settings
    for name, value in own.items():
        if name not in ("outputs", "dropout") and value != others[name]:
            raise UsageError(
                f"--initialise-from: expected a fusion whose {name} is {value}, found {others[name]}; train both with "
                "the same encoders, --model and layers"
            )
    weights, fresh = start.network.state_dict(), network.state_dict()
    for name in _LAST:
        weights[name] = fresh[name] if start.rows is None else weights[name][start.rows]
    network.load_state_dict(weights)


_ITEMS_AT_ONCE = 4096  # a float32 copy of all items may not fit


@dataclass(frozen=True)
class Statistics:
    """Mean and scale of every dimension, by modality.

    Attributes:
        image: ``(image_dim,)`` mean and scale; the scale is infinite for a constant dimension, which then becomes zero
            instead of causing a division by zero.
        text: ``(text_dim,)`` mean and scale, as for images.
    """

    image: ZScore
    text: ZScore

    def applied(self, pairs: EmbeddedPairs) -> EmbeddedPairs:
        """Return the same pairs with standardised items, in the stored type."""
        images, texts = _standard(pairs.images, self.image), _standard(pairs.texts, self.text)
        return replace(pairs, images=images, texts=texts, files=None)


def statistics_of(pairs: EmbeddedPairs) -> Statistics:
    """Compute statistics over the items of some pairs, each item once, over all existing tokens."""
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
        found.append(ZScore(*(part.float() for part in ZScore.from_deviation(mean, deviation))))
    return Statistics(*found)


def absorb_statistics(network: Fusion, statistics: Statistics) -> None:
    """Absorb the statistics into the projections, so that the network takes plain embeddings."""
    for projection, (mean, scale) in (
        (network.image_projection, statistics.image),
        (network.text_projection, statistics.text),
    ):
        _absorb_into(projection, mean.double(), scale.double())


def release_statistics(network: Fusion, statistics: Statistics) -> None:
    """Undo `absorb_statistics`, so that the network takes standardised embeddings.

    A dimension that is constant in the statistics keeps its contribution as a constant.
    """
    for projection, (mean, scale) in (
        (network.image_projection, statistics.image),
        (network.text_projection, statistics.text),
    ):
        with torch.no_grad():
            weight = projection.weight.double()
            projection.bias.copy_(projection.bias.double() + weight @ mean.double())
            projection.weight.copy_(weight * scale.where(scale.isfinite(), 0).double())


def _absorb_into(projection: nn.Linear, mean: Tensor, scale: Tensor) -> None:
    with torch.no_grad():
        weight = projection.weight.double() / scale
        projection.bias.copy_(projection.bias.double() - weight @ mean)
        projection.weight.copy_(weight)


def _standard(items: Tensor, statistics: ZScore) -> Tensor:
    standard = torch.empty_like(items)
    for start in range(0, len(items), _ITEMS_AT_ONCE):
        rows = slice(start, start + _ITEMS_AT_ONCE)
        standard[rows] = statistics(items[rows].float()).to(items.dtype)
    return standard
