"""From links between items that are nearly the same to groups, and the one of each group that is kept. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.store.grouping.forest import Forest

__all__ = ["LARGEST_CHAIN", "CopyGroups", "group_copies"]

LARGEST_CHAIN = 32
"""Members from which on a group is held together by links to its kept item alone, not by chains."""


@dataclass(frozen=True)
class CopyGroups:
    """Groups of items that are nearly the same.

    Attributes:
        kept: ``(n,)`` int64, of every item the one of its group that is kept: itself where it stands alone.
        sizes: ``(n,)`` int64, of every item how many its group has, 1 where it stands alone.
        cut: Groups that were only held together by chains and were cut into smaller ones.
        longest: Members of the largest group before it was cut; 0 where none was.
    """

    kept: NDArray[np.int64]
    sizes: NDArray[np.int64]
    cut: int
    longest: int


def group_copies(links: Iterable[tuple[int, int]], preference: Sequence[tuple[float, ...]]) -> CopyGroups:
    """Put linked items into groups and choose the one of each that is kept.

    Groups are the connected components of the links. Links chain: frames of a film lead from one scene to another,
    though its ends have nothing in common. So a component of more than `LARGEST_CHAIN` items is cut: its most preferred
    item is kept and takes those that are linked to it, then the next of the rest, and so on; whatever goes is then
    nearly the same as what is kept in its place.

    Args:
        links: Pairs of numbers of items.
        preference: ``n`` tuples; of a group the item with the largest is kept, of equal ones the first.

    Returns:
        The groups.
    """
    n = len(preference)
    forest = Forest()
    linked: dict[int, set[int]] = {}
    for one, other in links:
        if one != other:
            forest.join(one, other)
            linked.setdefault(one, set()).add(other)
            linked.setdefault(other, set()).add(one)
    components: dict[object, list[int]] = {}
    for item in sorted(linked):
        components.setdefault(forest.root(item), []).append(item)
    kept, sizes = np.arange(n), np.ones(n, np.int64)
    cut = longest = 0
    for members in components.values():
        parts = [members]
        if len(members) > LARGEST_CHAIN:
            parts = _stars(members, linked, preference)
            if len(parts) > 1:
                cut, longest = cut + 1, max(longest, len(members))
        for part in parts:
            kept[part] = max(part, key=lambda item: (preference[item], -item))
            sizes[part] = len(part)
    return CopyGroups(kept, sizes, cut, longest)


def _stars(members: list[int], linked: dict[int, set[int]], preference: Sequence[tuple[float, ...]]) -> list[list[int]]:
    """Return the parts of a component, each with its most preferred item first and only what is linked to that."""
    left = set(members)
    parts = []
    for centre in sorted(members, key=lambda item: (*(-value for value in preference[item]), item)):
        if centre in left:
            part = [centre, *sorted(linked[centre] & left)]
            left -= set(part)
            parts.append(part)
    return parts
