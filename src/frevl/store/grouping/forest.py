"""Union-find: items that are joined belong to one tree."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["Forest", "joined_nodes"]


@dataclass
class Forest:
    """Union-find over anything hashable."""

    parents: dict[Hashable, Hashable] = field(default_factory=dict)

    def root(self, item: Hashable) -> Hashable:
        """Return what stands for the tree of an item."""
        self.parents.setdefault(item, item)
        while self.parents[item] != item:
            self.parents[item] = self.parents[self.parents[item]]  # halve the path
            item = self.parents[item]
        return item

    def join(self, one: Hashable, other: Hashable) -> None:
        """Make one tree of two."""
        self.parents[self.root(other)] = self.root(one)

    def copy(self) -> Forest:
        """Return a copy that grows by itself."""
        return Forest(dict(self.parents))


def joined_nodes(roots: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Make one tree of the trees of two nodes, for many such links at once.

    Args:
        roots: ``(n,)``, for every node the smallest one of its tree.
        one: ``(l,)`` nodes.
        other: ``(l,)`` nodes.

    Returns:
        ``(n,)`` roots afterwards.
    """
    while True:
        low, high = np.minimum(roots[one], roots[other]), np.maximum(roots[one], roots[other])
        apart = low < high
        if not apart.any():
            return roots
        parents = np.arange(len(roots))
        np.minimum.at(parents, high[apart], low[apart])
        while not np.array_equal(parents[parents], parents):
            parents = parents[parents]
        roots, one, other = parents[roots], one[apart], other[apart]
