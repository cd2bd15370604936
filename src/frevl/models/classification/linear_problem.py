"""The mean loss of linear logits with its gradients, for features in memory or computed in blocks.

Weights are given in a basis in which the problem is nearly round: the principal directions of the features.

The minimum, also that of other smooth convex functions of one flat vector, is found by L-BFGS (Nocedal and Wright
2006, algorithms 7.4 and 7.5). PyTorch's own loads its compiler on first use: 0.9 s, longer than most fits here.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from frevl.models.inputs import ZScore

__all__ = [
    "Block",
    "Blocks",
    "Evaluate",
    "InBlocks",
    "InMemory",
    "LinearProblem",
    "Loss",
    "minimise",
    "statistics_in_blocks",
]

Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""From a ``(d,)`` point to the value there and the ``(d,)`` gradient."""

_HISTORY = 10  # steps from which the curvature is estimated
_ENOUGH = 1e-4  # of the decrease that the slope promises
_SHORTEST = 20  # halvings of a step, at most
_ROUNDING = 4.0  # times the precision of a value: less of a rise is no rise


def minimise(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    tolerance: float,
    enough: float = 0.0,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Return the ``(d,)`` point where a convex function is least, or the best one that was reached.

    The first step has the length of the gradient, so the coordinates should be such that the curvature is about 1.

    Args:
        evaluate: Value and gradient.
        start: ``(d,)``.
        steps: Most steps.
        tolerance: Largest derivative at which it ends.
        enough: Share of the value at which it ends: a step promises no more than that.
        out_of_time: Asked before every evaluation; True ends the search.
    """
    if out_of_time():
        return start
    point, (value, gradient) = start, evaluate(start)
    memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_HISTORY)
    noise = _ROUNDING * torch.finfo(start.dtype).eps
    for _ in range(steps):
        if float(gradient.abs().max()) <= tolerance:
            break
        direction = -_times_inverse_curvature(gradient, memory)
        slope = float(direction @ gradient)
        if -slope / 2 <= enough * abs(value):  # what the step gains where the curvature is as it is thought to be
            break
        rate = 1.0
        for _ in range(_SHORTEST):
            if out_of_time():
                return point
            candidate = point + rate * direction
            found, gradient_there = evaluate(candidate)
            # Of a value near 0, too, the rounding is that of the numbers of about 1 that it is the mean of.
            if found <= value + _ENOUGH * rate * slope + noise * max(1.0, abs(value)):
                break
            # The least point of the parabola through value, slope and what was found, but no leap. Not a number: halve.
            least = -slope * rate**2 / (2 * (found - value - slope * rate))
            rate = min(max(least, 0.1 * rate), 0.5 * rate) if least > 0 else 0.5 * rate
        else:
            break
        moved, turned = candidate - point, gradient_there - gradient
        curvature = float(moved @ turned)
        if curvature > noise * float(turned @ turned):
            memory.append((moved, turned, curvature))
        point, value, gradient = candidate, found, gradient_there
    return point


def _times_inverse_curvature(gradient: Tensor, memory: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Multiply by the inverse curvature that the last steps tell (the two-loop recursion)."""
    product = gradient.clone()
    shares = []
    for moved, turned, curvature in reversed(memory):
        share = float(moved @ product) / curvature
        shares.append(share)
        product.sub_(turned, alpha=share)
    if memory:
        _, turned, curvature = memory[-1]
        product.mul_(curvature / float(turned @ turned))
    for (moved, turned, curvature), share in zip(memory, reversed(shares), strict=True):
        product.add_(moved, alpha=share - float(turned @ product) / curvature)
    return product


Loss = Callable[[Tensor], Tensor]
"""From ``(n, outputs)`` logits to the mean over these pairs of the loss, without a penalty."""

_TIMED = 512  # pairs that the speed of the machine is measured with
_WIDEST = 5_000  # features or pairs, whichever are fewer, whose principal directions are worth computing
_ROWS_A_FEATURE = 16  # that the principal directions of what is not in memory are found from; the optimum is the same
_LEAST_CURVATURE = 1e-8


class LinearProblem(Protocol):
    """A smooth convex function of weights and biases.

    Attributes:
        directions: ``(features, r)`` orthonormal, the basis of the weights; None for that of the features.
        variances: ``(r,)`` variance of the features along each.
    """

    directions: Tensor | None
    variances: Tensor

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss and its gradients, for ``(outputs, r)`` weights and ``(outputs,)`` biases."""

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``(outputs,)``: how much each logit bends the loss, by its mean squared residual (Fisher)."""


class InMemory:
    """A problem whose features are all there.

    Attributes:
        directions: As of `LinearProblem`.
        variances: As of `LinearProblem`.
    """

    def __init__(self, features: Tensor, loss: Loss, ends: float) -> None:
        """Turn the features into their principal directions.

        Args:
            features: ``(n, features)``, standardised.
            loss: Of all of them.
            ends: Time of `time.monotonic` when a fit has to be done; inf without a limit.
        """
        self._loss = loss
        self.directions, self.variances = _principal_directions(features, len(features), ends)
        self._features = features if self.directions is None else features @ self.directions

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss and its gradients."""
        value, residuals = _residuals(self._loss, torch.addmm(bias, self._features, weight.T))
        return value.item(), residuals.T @ self._features, residuals.sum(dim=0)

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``(outputs,)`` curvatures."""
        _, residuals = _residuals(self._loss, torch.addmm(bias, self._features, weight.T))
        return (len(residuals) * residuals.square().sum(dim=0)).clamp(min=_LEAST_CURVATURE)


class Block(NamedTuple):
    """Some pairs of a problem.

    Attributes:
        features: ``(m, features)``, standardised.
        loss: The mean over these pairs.
    """

    features: Tensor
    loss: Loss


class Blocks(Protocol):
    """Pairs whose features are made block by block, again on every pass."""

    def __len__(self) -> int:
        """How many pairs there are in all."""

    def __iter__(self) -> Iterator[Block]:
        """Yield all pairs, each once, in the same order every time."""

    def sample(self, count: int) -> Tensor:
        """Return the ``(count, features)`` features of pairs that stand for all."""


class InBlocks:
    """A problem of any number of pairs: one block of features is there at a time.

    Sums over blocks are kept in double precision, so the optimum does not depend on where blocks end.

    Attributes:
        directions: As of `LinearProblem`, of a sample; they only shorten the way.
        variances: As of `LinearProblem`.
    """

    def __init__(self, blocks: Blocks, width: int, ends: float) -> None:
        """Look at a sample of ``16 * width`` pairs; ``width`` features each, ``ends`` as of `InMemory`."""
        self._blocks = blocks
        some = min(len(blocks), _ROWS_A_FEATURE * width if width <= _WIDEST else _TIMED)
        self.directions, self.variances = _principal_directions(blocks.sample(some), len(blocks), ends)

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss and its gradients."""
        turned = self._in_features(weight)
        total, by_weight, by_bias = 0.0, torch.zeros_like(turned).double(), torch.zeros_like(bias).double()
        for features, loss in self._blocks:
            value, residuals = _residuals(loss, torch.addmm(bias, features, turned.T))
            share = len(features) / len(self._blocks)
            total += share * value.item()
            by_weight.add_(residuals.T @ features, alpha=share)
            by_bias.add_(residuals.sum(dim=0), alpha=share)
        by_weight = by_weight if self.directions is None else by_weight @ self.directions.double()
        return total, by_weight.to(weight.dtype), by_bias.to(bias.dtype)

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return ``(outputs,)`` curvatures."""
        turned, squares = self._in_features(weight), torch.zeros_like(bias).double()
        for features, loss in self._blocks:
            _, residuals = _residuals(loss, torch.addmm(bias, features, turned.T))
            squares.add_(residuals.square().sum(dim=0), alpha=len(features) ** 2 / len(self._blocks))
        return squares.clamp(min=_LEAST_CURVATURE).to(bias.dtype)

    def _in_features(self, weight: Tensor) -> Tensor:
        return weight if self.directions is None else weight @ self.directions.T


def statistics_in_blocks(parts: Iterator[Tensor], width: int) -> ZScore:
    """Return mean and deviation of features that come as ``(m, width)`` parts, in one pass (Chan et al. 1979)."""
    count, mean, squares = 0, torch.zeros(width).double(), torch.zeros(width).double()
    for part in parts:
        variance, here = torch.var_mean(part.double(), dim=0, correction=0)
        both, apart = count + len(part), here - mean
        squares += variance * len(part) + apart.square() * (count * len(part) / both)
        mean += apart * (len(part) / both)
        count = both
    return ZScore.from_deviation(mean.float(), (squares / count).sqrt().float())


def _residuals(loss: Loss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its ``(n, outputs)`` gradient by the logits."""
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value, gradient


def _principal_directions(features: Tensor, pairs: int, ends: float) -> tuple[Tensor | None, Tensor]:
    """Return orthonormal ``(features, r)`` that span the rows, and ``(r,)`` the variance along each.

    None and a variance of 1 where the eigenvalues would take longer than the iterations that they save, or more than a
    third of the time until ``ends``, by the speed of a small product.

    Args:
        features: ``(n, features)``: all, or enough of them.
        pairs: How many there are in all.
        ends: As of `InMemory`.
    """
    n, width = features.shape
    rank = min(n if n == pairs else width, width)
    begun = time.monotonic()
    if math.isfinite(ends):
        part = features[:_TIMED]
        part @ part.T
        seconds = (time.monotonic() - begun) / len(part) ** 2 / width  # of one multiplication
        seconds *= 2 * n * width * rank + n * rank**2 + 10 * rank**3
        if seconds > (ends - begun) / 3:
            rank = _WIDEST + 1
    if rank > _WIDEST:
        return None, features.new_ones(width)
    # No weight of the optimum lies outside the span of the rows: the penalty alone would act on it.
    span = torch.linalg.qr(features.T).Q if n < width else None
    inside = features if span is None else features @ span
    variances, directions = torch.linalg.eigh(inside.T @ inside / n)
    return directions if span is None else span @ directions, variances.clamp(min=0.0)
