"""Fit the linear probe, in memory or in blocks, with a penalty chosen on development data, within a time limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.models.baselines import Linear, fit_linear
from frevl.models.classification.linear_problem import Block, Loss, statistics_in_blocks
from frevl.runs.batches import logits_of
from frevl.runs.calibration import fit_calibration
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples, kind_of, with_wrong_texts
from frevl.training.losses import task_loss
from frevl.training.options import LinearOptions, Session
from frevl.training.run_folder import Checkpoint

__all__ = ["FeatureBlocks", "all_features", "fit_linear_on", "linear_loss", "mean_loss", "most_in_memory"]

_MOST_THERE = 1 << 28  # numbers in memory at once: 1 GiB, and as much again while they are rotated
_IN_A_BLOCK = 1 << 21  # numbers in a block: 8 MiB, about the size of a CPU cache
_FEWEST_ROWS = 64


def most_in_memory(network: Linear) -> int:
    """Return the number of pairs whose features, answers and logits fit in memory."""
    return _MOST_THERE // _numbers(network)


def all_features(network: Linear, examples: Examples) -> Tensor:
    """Return ``(n, features)``, standardised; their mean and deviation are stored in the network."""
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
    """Return the mean loss over all examples, from their ``(n, outputs)`` logits."""
    size, total = most_in_memory(network), 0.0
    for start in range(0, len(examples), size):
        rows = slice(start, min(start + size, len(examples)))
        share = (rows.stop - rows.start) / len(examples)
        total += share * linear_loss(network, examples, class_weights, rows)(logits[rows]).item()
    return total


@dataclass(frozen=True)
class FeatureBlocks:
    """Features of examples, recomputed on every pass.

    Attributes:
        network: The probe, which has the mean and deviation of the features.
        examples: The examples with all pairs.
        class_weights: ``(outputs,)`` weights of the classes, or None.
    """

    network: Linear
    examples: Examples
    class_weights: Tensor | None

    @classmethod
    def measured(cls, network: Linear, examples: Examples, class_weights: Tensor | None) -> FeatureBlocks:
        """Measure the features' means and deviations in one pass and store them in the network."""
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
        """Return the features of evenly spaced pairs."""
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
    """Return how many numbers a pair takes: features, answer weights, logits and their gradients."""
    return network.linear.in_features + 3 * network.linear.out_features


# For a fit under a time limit: the assumed number of times the features of a pair, and a pass over it, are computed
# (six penalties of about ten steps, with a margin), the same for development pairs, and the pairs timed.
_FEATURES, _PASSES, _DEVELOPMENT, _TIMED = 6, 100, 40, 512


def fit_linear_on(
    network: Linear, train: Examples, dev: Examples, options: LinearOptions, session: Session, checkpoint: Checkpoint
) -> list[str]:
    """Fit the linear probe with its penalty chosen on development data; return notes for the user.

    It is chosen by the likelihood after calibration: a few hundred pairs rank penalties better by it than by accuracy,
    and a strong penalty that merely makes the probe less confident costs nothing.
    """
    started, limit = checkpoint.clock.seconds(), session.time_limit
    saved = checkpoint.load()
    if saved is not None:
        network.load_state_dict(saved[0])
        return list(saved[1]["notes"])
    whole = train if isinstance(train.truth, Answers) else with_wrong_texts(train, options.negatives, session.seed)
    examples, dev = (whole, dev) if limit is None else _in_time(network, whole, dev, session.seed, limit)
    notes = [] if len(examples) == len(whole) else [
        f"linear: fitted on {len(examples):,} of {len(whole):,} pairs, as many as the time limit of {limit:g} s allows"
    ]  # fmt: skip
    weights = class_weights_of(examples.truth, int(network.settings["outputs"]), options.class_weight)

    def calibrated_likelihood() -> float:
        logits = logits_of(network, dev.pairs, 1024)
        calibration = fit_calibration(logits, dev.truth, shrink=False)
        return -mean_loss(network, dev, weights, calibration["scale"] * logits + calibration["offset"])

    features: Tensor | FeatureBlocks
    if len(examples) <= most_in_memory(network):
        features, loss = all_features(network, examples), linear_loss(network, examples, weights)
    else:
        features, loss = FeatureBlocks.measured(network, examples, weights), None
    fit_linear(
        network,
        features,
        loss,
        calibrated_likelihood,
        time_limit=None if limit is None else max(0.0, limit - (checkpoint.clock.seconds() - started)),
    )
    checkpoint.save(network.state_dict(), {"seconds": checkpoint.clock.seconds() - started, "notes": notes})
    return notes


def _in_time(network: Linear, train: Examples, dev: Examples, seed: int, limit: float) -> tuple[Examples, Examples]:
    """Drop random pairs until enough passes over the rest fit in the time limit.

    The work on a few pairs is timed. If the time suffices, nothing is dropped, and the result is the same as without a
    limit.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    part = train.select(order[:_TIMED])
    began = time.monotonic()
    features = torch.cat([network.features(*inputs) for inputs in part.pairs.batches(4096)])
    of_features = (time.monotonic() - began) / len(part)
    weight = torch.zeros(int(network.settings["outputs"]), features.shape[1], requires_grad=True)
    began = time.monotonic()
    torch.autograd.backward(linear_loss(network, part)(features @ weight.T))
    of_a_pass = (time.monotonic() - began) / len(part)
    most = int(limit / (_FEATURES * of_features + _PASSES * of_a_pass))
    if min(most, len(train)) > most_in_memory(network):  # features are then recomputed on every pass
        most = max(most_in_memory(network), int(limit / (_PASSES * (of_features + of_a_pass))))
    most_dev = int(limit / (_DEVELOPMENT * of_features))
    dev_order = torch.randperm(len(dev), generator=torch.Generator().manual_seed(seed))
    return (
        train if most >= len(train) else train.select(order[: max(_TIMED, most)].sort().values),
        dev if most_dev >= len(dev) else dev.select(dev_order[: max(_TIMED, most_dev)].sort().values),
    )
