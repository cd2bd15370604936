"""Turn links between near duplicates into groups, and choose the item to keep from each. Pure numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frevl.store.grouping.groups import Forest

__all__ = ["LARGEST_CHAIN", "CopyGroups", "group_copies"]

LARGEST_CHAIN = 32
"""Group size above which members must be linked to the kept item directly, not through chains."""


@dataclass(frozen=True)
class CopyGroups:
    """Groups of near duplicates.

    Attributes:
        kept: ``(n,)`` int64, for every item, the kept item of its group; itself if ungrouped.
        sizes: ``(n,)`` int64, for every item, the size of its group; 1 if ungrouped.
        cut: Number of groups held together only by chains, which were split up.
        longest: Size of the largest group before splitting; 0 if none was split.
    """

    kept: NDArray[np.int64]
    sizes: NDArray[np.int64]
    cut: int
    longest: int


def group_copies(
    links: Iterable[tuple[int, int]], preference: NDArray[np.float64] | Sequence[tuple[float, ...]]
) -> CopyGroups:
    """Group linked items and choose which one to keep from each group.

    Groups are the connected components of the links. Links form chains: frames of a film lead from one scene to another
    whose ends have nothing in common. So a component of more than `LARGEST_CHAIN` items is split: its most preferred
    item is kept and takes those linked to it, then the next of the rest, and so on; each dropped item is then nearly
    the same as the one kept in its place.

    Args:
        links: Pairs of item numbers.
        preference: ``(n, k)``; the item with the largest row in a group is kept, compared from the first column on, and
            the first item in case of ties.

    Returns:
        The groups.
    """
    table, n = np.asarray(preference, np.float64), len(preference)
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
            parts = _stars(members, linked, table)
            if len(parts) > 1:
                cut, longest = cut + 1, max(longest, len(members))
        for part in parts:
            kept[part] = max(part, key=lambda item: (table[item].tolist(), -item))
            sizes[part] = len(part)
    return CopyGroups(kept, sizes, cut, longest)


def _stars(members: list[int], linked: dict[int, set[int]], preference: NDArray[np.float64]) -> list[list[int]]:
    """Return the parts of a component, each with its most preferred item first and only items linked to that."""
    left = set(members)
    parts = []
    for centre in sorted(members, key=lambda item: (*(-preference[item]).tolist(), item)):
        if centre in left:
            part = [centre, *sorted(linked[centre] & left)]
            left -= set(part)
            parts.append(part)
    return parts
