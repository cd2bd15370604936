"""Training pairs as features of the linear probe: all at once where they fit, otherwise block by block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.models.baselines import Linear
from frevl.models.classification.linear_problem import Block, Loss, statistics_in_blocks
from frevl.runs.targets import Answers
from frevl.training.examples import Examples, kind_of
from frevl.training.losses import task_loss

__all__ = ["FeatureBlocks", "all_features", "linear_loss", "mean_loss", "most_in_memory"]

_MOST_THERE = 1 << 28  # numbers that may be there at once: 1 GiB, and as much again while they are turned
_IN_A_BLOCK = 1 << 21  # numbers of a block: 8 MiB, near the size of a processor's cache
_FEWEST_ROWS = 64


def most_in_memory(network: Linear) -> int:
    """Return of how many pairs the features, answers and logits are held at once."""
    return _MOST_THERE // _numbers(network)


def all_features(network: Linear, examples: Examples) -> Tensor:
    """Return ``(n, features)``, standardised; the network has their mean and deviation afterwards."""
    features = torch.empty(len(examples), network.linear.in_features)
    for start, part in zip(range(0, len(examples), 4096), examples.pairs.batches(4096), strict=True):
        features[start : start + 4096] = network.features(*part)
    network.statistics.fit(features)
    mean, scale = network.statistics
    return features.sub_(mean).div_(scale)


def linear_loss(
    network: Linear, examples: Examples, class_weights: Tensor | None = None, rows: slice | None = None
) -> Loss:
    """Build the loss of a linear probe, from logits of all examples or of some rows."""
    truth, rows = examples.truth, rows or slice(0, len(examples))
    outputs = int(network.settings["outputs"])
    target = truth.dense(torch.arange(rows.start, rows.stop), outputs) if isinstance(truth, Answers) else truth[rows]
    kind = kind_of(truth)
    return lambda logits: task_loss(logits, target, kind=kind, smoothing=0.0, class_weights=class_weights)


def mean_loss(network: Linear, examples: Examples, class_weights: Tensor | None, logits: Tensor) -> float:
    """Return the mean over all examples of the loss of their ``(n, outputs)`` logits."""
    size, total = most_in_memory(network), 0.0
    for start in range(0, len(examples), size):
        rows = slice(start, min(start + size, len(examples)))
        share = (rows.stop - rows.start) / len(examples)
        total += share * linear_loss(network, examples, class_weights, rows)(logits[rows]).item()
    return total


@dataclass(frozen=True)
class FeatureBlocks:
    """The features of examples, made on every pass.

    Attributes:
        network: Has the mean and the deviation of the features.
        examples: All of the pairs.
        class_weights: ``(outputs,)``, or None.
    """

    network: Linear
    examples: Examples
    class_weights: Tensor | None

    @classmethod
    def measured(cls, network: Linear, examples: Examples, class_weights: Tensor | None) -> FeatureBlocks:
        """Give the network the mean and the deviation of the features, which take one pass."""
        blocks = cls(network, examples, class_weights)
        found = statistics_in_blocks(blocks._features(), network.linear.in_features)
        for own, measured in zip(network.statistics, found, strict=True):
            own.copy_(measured)
        return blocks

    def __len__(self) -> int:
        return len(self.examples)

    def __iter__(self) -> Iterator[Block]:
        for rows, features in zip(self._rows(), self._features(), strict=True):
            yield Block(features, linear_loss(self.network, self.examples, self.class_weights, rows))

    def sample(self, count: int) -> Tensor:
        """Return the features of pairs at even distances."""
        rows = torch.linspace(0, len(self) - 1, count).round().long()
        pairs = self.examples.pairs.select(rows)
        return torch.cat([self.network.features(*part) for part in pairs.batches(self._size)])

    @property
    def _size(self) -> int:
        return max(_FEWEST_ROWS, _IN_A_BLOCK // _numbers(self.network))

    def _rows(self) -> Iterator[slice]:
        return (slice(start, min(start + self._size, len(self))) for start in range(0, len(self), self._size))

    def _features(self) -> Iterator[Tensor]:
        return (self.network.features(*part) for part in self.examples.pairs.batches(self._size))


def _numbers(network: Linear) -> int:
    """Return how many numbers a pair takes: features, the weight of every answer, its logit and the gradient there."""
    return network.linear.in_features + 3 * network.linear.out_features
