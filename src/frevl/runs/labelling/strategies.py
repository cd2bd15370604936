"""Greedy selection of items: by margin, by doubt, by coverage, or by margin times distance.

Every strategy is deterministic: ties go to the first item. Work and memory grow with the number of items times the
number of chosen items, never with the number of items squared.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.errors import UsageError, nearest
from frevl.models.classification.posterior import known_directions, scatter_of

__all__ = ["STRATEGIES", "Chosen", "choose"]

STRATEGIES = ("mixed", "margin", "cover", "doubt")
"""Values of ``--by``, the default first: it gained most for the same labels (docs/trust.md)."""

_NEAR = 1e-6
_AT_ONCE = 4_096  # rows compared with all covered items at once


@dataclass(frozen=True)
class Chosen:
    """A chosen item.

    Attributes:
        row: Row of the item.
        value: Value by which it was chosen, at least 0: the larger, the more useful.
    """

    row: int
    value: float


def choose(by: str, items: Tensor, covered: Tensor, unsure: Tensor, units: Tensor, *, k: int, per_unit: int) -> list[
    Chosen
]:  # fmt: skip
    """Choose items to label.

    ``margin`` takes the least certain item. ``cover`` takes the item farthest from everything covered or chosen
    (k-centre, Gonzalez 1985; for labels Sener and Savarese 2018). ``doubt`` takes the one with the largest posterior
    variance and updates the posterior with it, which needs no label (`frevl.models.classification.posterior`).
    ``mixed`` takes the largest product of margin and distance (ours).

    Args:
        by: One of `STRATEGIES`.
        items: ``(n, d)`` float32 of unit length.
        covered: ``(m, d)`` float32 of unit length, the items used in training or labelled; may be empty.
        unsure: ``(n,)`` in [0, 1]: one minus the margin between the two likeliest answers.
        units: ``(n,)`` int64; at most `per_unit` items with the same number are chosen.
        k: Number of items to choose; fewer if there are not as many.
        per_unit: Maximum number of items per unit, at least 1.

    Raises:
        UsageError: The strategy does not exist.
    """
    if by not in STRATEGIES:
        raise UsageError(f"--by {by}: there is no such strategy. {nearest(by, STRATEGIES)}")
    if not len(items):
        return []
    walk = {"margin": _by_margin, "cover": _by_cover, "doubt": _by_doubt, "mixed": _by_mixed}[by]
    left = torch.bincount(units).new_full((int(units.max()) + 1,), per_unit)
    closed = torch.zeros(len(items), dtype=torch.bool)
    found: list[Chosen] = []
    steps = walk(items, covered, unsure)
    values = next(steps)
    while len(found) < k:
        values = values.masked_fill(closed, -1.0)
        row = int(values.argmax())
        if values[row] < 0:
            break
        found.append(Chosen(row, float(values[row])))
        unit = units[row]
        left[unit] -= 1
        closed[row] = True
        if left[unit] == 0:
            closed |= units == unit
        values = steps.send(row)
    return found


# Each yields the ``(n,)`` values of all items, none below 0, and is sent the row that was chosen.
_Walk = Generator[Tensor, int, None]


def _by_margin(items: Tensor, covered: Tensor, unsure: Tensor) -> _Walk:
    del items, covered
    while True:
        yield unsure


def _by_cover(items: Tensor, covered: Tensor, unsure: Tensor) -> _Walk:
    del unsure
    distances = _distances(items, covered)
    while True:
        row = yield distances
        distances = torch.minimum(distances, _chord(items @ items[row]))


def _by_mixed(items: Tensor, covered: Tensor, unsure: Tensor) -> _Walk:
    distances = _distances(items, covered)
    while True:
        # If nothing is far from the covered items, the least certain comes first.
        row = yield unsure * (distances + _NEAR)
        distances = torch.minimum(distances, _chord(items @ items[row]))


def _by_doubt(items: Tensor, covered: Tensor, unsure: Tensor) -> _Walk:
    del unsure
    width = items.shape[1]
    covariance = torch.eye(width)
    if len(covered):
        directions = known_directions(scatter_of(torch.split(covered, _AT_ONCE)))
        covariance -= directions.T @ directions
    doubt = torch.cat([((part @ covariance) * part).sum(dim=1) for part in torch.split(items, _AT_ONCE)]).clamp(min=0)
    while True:
        row = yield doubt
        # Update the posterior with one more item (Sherman and Morrison 1950).
        gain = covariance @ items[row]
        length = 1 + items[row] @ gain
        doubt = (doubt - (items @ gain).square() / length).clamp(min=0)
        covariance = torch.addr(covariance, gain, gain, alpha=-1 / float(length))


def _distances(items: Tensor, covered: Tensor) -> Tensor:
    """Return ``(n,)`` distances to the nearest covered item; the maximum if there is none."""
    if not len(covered):
        return torch.full((len(items),), 2.0)
    return torch.cat([_chord(_nearest(part, covered)) for part in torch.split(items, _AT_ONCE)])


def _nearest(part: Tensor, covered: Tensor) -> Tensor:
    best = part.new_full((len(part),), -1.0)
    for block in torch.split(covered, _AT_ONCE):
        best = torch.maximum(best, (part @ block.T).max(dim=1).values)
    return best


def _chord(cosines: Tensor) -> Tensor:
    """Return the distance of unit vectors from their cosine."""
    return (2 - 2 * cosines).clamp(min=0).sqrt()
