"""L-BFGS for smooth convex functions of one flat vector (Nocedal and Wright 2006, algorithms 7.4 and 7.5).

PyTorch's own loads its compiler when it is first made, which takes 0.9 s: longer than most fits here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Evaluate", "minimise"]

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
