"""Union-find: items that are joined belong to one tree."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

__all__ = ["Forest"]


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
