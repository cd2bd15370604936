"""Common parts of the methods of `frevl classify`: image features, and the head that turns them into logits.

Every method produces a `Head`, a sum of up to four parts, so that the average of two methods is again a head, and one
network (`frevl.models.classification.class_network`) can hold any of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.inputs import ZScore
from frevl.models.kernel_ridge import kernel_matrix

__all__ = ["Features", "Head", "Memory", "one_hot", "statistics_of", "unit_features"]

_PRIOR_IMAGES = 10


class Features(NamedTuple):
    """The inputs of a head for ``n`` images.

    Attributes:
        unit: ``(n, d)`` embeddings of unit length.
        standard: ``(n, d)`` embeddings standardised per dimension, then scaled to unit length; see `unit_features`.
        cosines: ``(n, classes)`` cosines with the names of the classes in [-1, 1], or None without names.
    """

    unit: Tensor
    standard: Tensor
    cosines: Tensor | None

    def select(self, rows: Tensor) -> Features:
        """Return the features of some of the images."""
        return Features(self.unit[rows], self.standard[rows], None if self.cosines is None else self.cosines[rows])


class Memory(NamedTuple):
    """A term of a head that sums over stored examples: ``similarity(image, example) @ coefficients``.

    Attributes:
        coefficients: ``(examples, classes)``, each example's weight for each class.
        width: Squared width of the Gaussian kernel, on ``standard`` features, or on ``unit`` ones if `on_unit`.
        on_unit: Whether the kernel compares ``unit`` instead of ``standard`` features.
        rows: ``(m,)`` int64, the examples it sums over, with as many coefficients; None: all of them.
    """

    coefficients: Tensor
    width: float
    on_unit: bool
    rows: Tensor | None = None


@dataclass(frozen=True)
class Head:
    """A function from features to class logits: ``names * cosines + standard @ weight.T + bias + sum over examples``.

    Attributes:
        names: Scale of the cosines with the names; 0 without names.
        weight: ``(classes, d)`` weights of the standardised features.
        bias: ``(classes,)``, added to the logits.
        memories: The terms that sum over stored examples.
        linear: Whether any weight or bias is non-zero, which costs a matrix product.
    """

    names: float
    weight: Tensor
    bias: Tensor
    memories: tuple[Memory, ...] = ()
    linear: bool = True

    @classmethod
    def zero(cls, classes: int, dim: int, *, names: float = 0.0) -> Head:
        """Return a head fitted to no examples."""
        return cls(names, torch.zeros(classes, dim), torch.zeros(classes), linear=False)

    def logits(self, features: Features, examples: Features | None) -> Tensor:
        """Return ``(n, classes)`` logits.

        Args:
            features: Features of the images.
            examples: Features of the examples to which the head was fitted; not needed without memories.
        """
        if self.linear:
            logits = torch.addmm(self.bias, features.standard, self.weight.T)
        else:
            logits = self.bias.expand(len(features.unit), -1)
        if self.names and features.cosines is not None:
            logits = torch.add(logits, features.cosines, alpha=self.names)
        for memory in self.memories:
            if examples is None:
                raise ValueError("a head that keeps examples needs their features")
            own, kept = (part.unit if memory.on_unit else part.standard for part in (features, examples))
            kept = kept if memory.rows is None else kept[memory.rows]
            logits = logits.addmm(kernel_matrix(own, kept, memory.width), memory.coefficients)
        return logits

    def scaled(self, factor: float) -> Head:
        """Return the head whose logits are ``factor`` times these."""
        memories = tuple(one._replace(coefficients=one.coefficients * factor) for one in self.memories)
        return Head(self.names * factor, self.weight * factor, self.bias * factor, memories, self.linear)

    def plus(self, other: Head) -> Head:
        """Return the head whose logits are the sum of both."""
        return Head(
            self.names + other.names,
            self.weight + other.weight,
            self.bias + other.bias,
            self.memories + other.memories,
            self.linear or other.linear,
        )

    def among(self, rows: Tensor, classes: int) -> Head:
        """Extend the head to more classes; those without examples are scored by their names alone.

        The contribution of the examples is shifted to sum to zero over the classes that have some, so that on average
        it moves no class above or below one without examples.

        Args:
            rows: ``(k,)`` int64, the positions of this head's ``k`` classes among all.
            classes: Total number of classes.
        """

        def spread(values: Tensor, dim: int) -> Tensor:
            shape = list(values.shape)
            shape[dim] = classes
            centred = values - values.mean(dim=dim, keepdim=True)
            return torch.zeros(shape).index_copy_(dim, rows, centred)

        memories = tuple(one._replace(coefficients=spread(one.coefficients, 1)) for one in self.memories)
        return Head(self.names, spread(self.weight, 0), spread(self.bias, 0), memories, self.linear)

    def compact(self, examples: int) -> tuple[Head, Tensor]:
        """Return the head for the examples that its memories sum over alone, and the ``(m,)`` rows of these.

        Args:
            examples: Number of examples to which the head was fitted.
        """
        used = torch.zeros(examples, dtype=torch.bool)
        for memory in self.memories:
            used[slice(None) if memory.rows is None else memory.rows] = True
        kept = used.nonzero()[:, 0]

        def moved(memory: Memory) -> Memory:
            rows = torch.arange(examples) if memory.rows is None else memory.rows
            places = torch.searchsorted(kept, rows)
            empty = torch.zeros(len(kept), memory.coefficients.shape[1])
            return memory._replace(coefficients=empty.index_copy_(0, places, memory.coefficients), rows=None)

        return replace(self, memories=tuple(moved(one) for one in self.memories)), kept

    def with_names(self, names: float) -> Head:
        """Return this head with another scale for the names."""
        return replace(self, names=names)


def statistics_of(embeddings: Tensor, weights: Tensor | None = None) -> ZScore:
    """Measure mean and deviation of ``(n, d)`` examples, regularised as if ten more had the mean variance (ours).

    Some dimensions of CLIP's embeddings vary many times more than all others; standardising gains 5 to 8 points with
    one example per class (research/experiments/log.md). With a handful of examples, a deviation is mostly chance.
    """
    if weights is None:
        variance, mean = torch.var_mean(embeddings, dim=0, correction=0)
        count = float(len(embeddings))
    else:
        count = float(weights.sum())
        mean = weights @ embeddings / count
        variance = weights @ (embeddings - mean).square() / count
    steadied = (count * variance + _PRIOR_IMAGES * variance.mean()) / (count + _PRIOR_IMAGES)
    return ZScore.from_deviation(mean, steadied.sqrt())


def unit_features(embeddings: Tensor, statistics: ZScore) -> Tensor:
    """Standardise ``(n, d)`` embeddings, then scale them to unit length."""
    return F.normalize(statistics(embeddings), dim=1)


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Return ``(n, classes)`` float32 with 1 at the class of each example and 0 elsewhere."""
    return F.one_hot(labels, classes).float()
