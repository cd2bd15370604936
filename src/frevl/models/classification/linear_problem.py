"""The mean loss of linear logits with its gradients, for features in memory or computed in blocks.

Weights are given in a basis in which the problem is nearly round: the principal directions of the features.

The minimum, like that of any smooth convex function of one flat vector, is found by L-BFGS (Nocedal and Wright 2006,
algorithms 7.4 and 7.5). PyTorch's own implementation loads its compiler on first use: 0.9 s, longer than most fits
here.
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
    "LEAST_CURVATURE",
    "Block",
    "Blocks",
    "Evaluate",
    "InBlocks",
    "InMemory",
    "LinearProblem",
    "Loss",
    "minimise",
    "principal_directions",
    "statistics_in_blocks",
]

Evaluate = Callable[[Tensor], tuple[float, Tensor]]
"""Maps a ``(d,)`` point to the value and the ``(d,)`` gradient there."""

_HISTORY = 10  # recent steps used to estimate the curvature
_ENOUGH = 1e-4  # required share of the decrease predicted by the slope
_SHORTEST = 20  # maximum number of halvings of a step
_ROUNDING = 4.0  # times the precision of a value: a smaller rise is rounding


def minimise(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    tolerance: float,
    enough: float = 0.0,
    out_of_time: Callable[[], bool] = lambda: False,
) -> Tensor:
    """Return the ``(d,)`` minimum of a convex function, or the best point reached.

    The first step is as long as the gradient, so the coordinates should make the curvature about 1.

    Args:
        evaluate: Returns the value and the gradient at a point.
        start: ``(d,)``, the point to start from.
        steps: Maximum number of steps.
        tolerance: The search ends when no derivative is larger than this.
        enough: The search ends when a step promises to lower the value by no more than this share of it.
        out_of_time: Called before every evaluation; True ends the search.
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
        if -slope / 2 <= enough * abs(value):  # expected gain of the step if the curvature estimate is right
            break
        rate = 1.0
        for _ in range(_SHORTEST):
            if out_of_time():
                return point
            candidate = point + rate * direction
            found, gradient_there = evaluate(candidate)
            # Even for a value near 0, rounding is that of the numbers of about 1 whose mean it is.
            if found <= value + _ENOUGH * rate * slope + noise * max(1.0, abs(value)):
                break
            # Go to the minimum of the parabola through value, slope and the value found, within bounds; if it is not
            # a number, halve the step.
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
    """Multiply by the inverse curvature estimated from the last steps (two-loop recursion)."""
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
"""Maps ``(n, outputs)`` logits to the mean loss over these pairs, without a penalty."""

_TIMED = 512  # pairs used to measure the speed of the machine
_WIDEST = 5_000  # principal directions are worth computing for at most this many features or pairs
_ROWS_A_FEATURE = 16  # sampled to find the principal directions if not all is in memory; the optimum is the same
LEAST_CURVATURE = 1e-8
"""Lower bound of a curvature, which is 0 where every pair is explained."""


class LinearProblem(Protocol):
    """A smooth convex function of weights and biases.

    Attributes:
        directions: ``(features, r)``, the orthonormal basis of the weights; None for the basis of the features.
        variances: ``(r,)``, variance of the features along each direction.
    """

    directions: Tensor | None
    variances: Tensor

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss and its gradients, for ``(outputs, r)`` weights and ``(outputs,)`` biases."""

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the ``(outputs,)`` curvature of the loss in each logit, by its mean squared residual (Fisher)."""


class InMemory:
    """A problem with all its features in memory.

    Attributes:
        directions: See `LinearProblem`.
        variances: See `LinearProblem`.
    """

    def __init__(self, features: Tensor, loss: Loss, ends: float) -> None:
        """Rotate the features to their principal directions.

        Args:
            features: ``(n, features)``, standardised.
            loss: Mean loss over all pairs.
            ends: `time.monotonic` time by which a fit must be finished; inf without a limit.
        """
        self._loss = loss
        self.directions, self.variances = principal_directions(features, len(features), ends)
        self._features = features if self.directions is None else features @ self.directions

    def value(self, weight: Tensor, bias: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the mean loss and its gradients."""
        value, residuals = _residuals(self._loss, torch.addmm(bias, self._features, weight.T))
        return value.item(), residuals.T @ self._features, residuals.sum(dim=0)

    def curvature(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Return the curvature of the loss in each logit, ``(outputs,)``."""
        _, residuals = _residuals(self._loss, torch.addmm(bias, self._features, weight.T))
        return (len(residuals) * residuals.square().sum(dim=0)).clamp(min=LEAST_CURVATURE)


class Block(NamedTuple):
    """Some of the pairs of a problem.

    Attributes:
        features: ``(m, features)``, standardised.
        loss: Mean loss over these pairs.
    """

    features: Tensor
    loss: Loss


class Blocks(Protocol):
    """Pairs whose features are computed block by block, again on every pass."""

    def __len__(self) -> int:
        """Return the total number of pairs."""

    def __iter__(self) -> Iterator[Block]:
        """Yield all pairs, each once, in the same order every time."""

    def sample(self, count: int) -> Tensor:
        """Return ``(count, features)`` features of a representative sample of pairs."""


class InBlocks:
    """A problem with any number of pairs, of which one block of features is in memory at a time.

    Sums over blocks are kept in double precision, so the optimum does not depend on the block boundaries.

    Attributes:
        directions: See `LinearProblem`; estimated from a sample, they only speed up the search.
        variances: See `LinearProblem`.
    """

    def __init__(self, blocks: Blocks, width: int, ends: float) -> None:
        """Estimate the directions from a sample of ``16 * width`` pairs.

        Args:
            blocks: All pairs.
            width: Number of features per pair.
            ends: See `InMemory`.
        """
        self._blocks = blocks
        some = min(len(blocks), _ROWS_A_FEATURE * width if width <= _WIDEST else _TIMED)
        self.directions, self.variances = principal_directions(blocks.sample(some), len(blocks), ends)

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
        """Return the curvature of the loss in each logit, ``(outputs,)``."""
        turned, squares = self._in_features(weight), torch.zeros_like(bias).double()
        for features, loss in self._blocks:
            _, residuals = _residuals(loss, torch.addmm(bias, features, turned.T))
            squares.add_(residuals.square().sum(dim=0), alpha=len(features) ** 2 / len(self._blocks))
        return squares.clamp(min=LEAST_CURVATURE).to(bias.dtype)

    def _in_features(self, weight: Tensor) -> Tensor:
        return weight if self.directions is None else weight @ self.directions.T


def statistics_in_blocks(parts: Iterator[Tensor], width: int) -> ZScore:
    """Return mean and deviation of features given as ``(m, width)`` parts, in one pass (Chan et al. 1979)."""
    count, mean, squares = 0, torch.zeros(width).double(), torch.zeros(width).double()
    for part in parts:
        variance, here = torch.var_mean(part.double(), dim=0, correction=0)
        both, apart = count + len(part), here - mean
        squares += variance * len(part) + apart.square() * (count * len(part) / both)
        mean += apart * (len(part) / both)
        count = both
    return ZScore.from_deviation(mean.float(), (squares / count).sqrt().float())


def _residuals(loss: Loss, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss and its ``(n, outputs)`` gradient with respect to the logits."""
    logits = logits.detach().requires_grad_()
    value = loss(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    return value, gradient


def principal_directions(features: Tensor, pairs: int, ends: float) -> tuple[Tensor | None, Tensor]:
    """Return an orthonormal ``(features, r)`` basis of the row space, and the ``(r,)`` variance along each vector.

    Return None and a variance of 1 if the eigenvalues would take longer than the iterations they save, or more than a
    third of the time until ``ends``, judging by the speed of a small product.

    Args:
        features: ``(n, features)``: all, or a large enough sample.
        pairs: Total number of pairs.
        ends: See `InMemory`.
    """
    n, width = features.shape
    rank = min(n if n == pairs else width, width)
    started = time.monotonic()
    if math.isfinite(ends):
        part = features[:_TIMED]
        part @ part.T
        seconds = (time.monotonic() - started) / len(part) ** 2 / width  # of one multiplication
        seconds *= 2 * n * width * rank + n * rank**2 + 10 * rank**3
        if seconds > (ends - started) / 3:
            rank = _WIDEST + 1
    if rank > _WIDEST:
        return None, features.new_ones(width)
    # No weight of the optimum lies outside the span of the rows: the penalty alone would act on it.
    span = torch.linalg.qr(features.T).Q if n < width else None
    inside = features if span is None else features @ span
    variances, directions = torch.linalg.eigh(inside.T @ inside / n)
    return directions if span is None else span @ directions, variances.clamp(min=0.0)
