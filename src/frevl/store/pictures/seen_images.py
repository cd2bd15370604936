"""The images that an extraction has seen, without keeping a name for each image of the folder."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from frevl.errors import Reject
from frevl.store.extraction.items import PendingItem, StoredItems

__all__ = ["SeenImages"]

_AT_ONCE = 65_536  # ids looked up at a time


class SeenImages:
    """The images that were seen: a byte for each image in the store, and the ids that it will lack.

    Embedded images are in the store afterwards, so their names need not be kept.

    Args:
        stored: The images in the store before the extraction.
        former: Ids that earlier extractions rejected.
        embedded: Whether images that are not rejected enter the store, because a tower embeds them.

    Attributes:
        former: Those of the former rejects that were seen again.
        outside: Ids that were seen, but that the store may lack.
    """

    def __init__(self, stored: StoredItems, former: Collection[str], *, embedded: bool) -> None:
        self._stored, self._former, self._embedded = stored, former, embedded
        self._rows = np.zeros(stored.count, bool)
        self._waiting: list[str] = []
        self.former: set[str] = set()
        self.outside: set[str] = set()

    def add(self, id_: str, work: PendingItem | Reject | None) -> None:
        """Record an image, and what had to be done."""
        if id_ in self._former:
            self.former.add(id_)
        if isinstance(work, Reject) or (work is not None and not self._embedded):
            self.outside.add(id_)
        self._waiting.append(id_)
        if len(self._waiting) == _AT_ONCE:
            self._look_up()

    def rows(self) -> NDArray[np.bool_]:
        """Return ``(n,)`` bool: which images of the store were seen, in the order of `StoredItems`."""
        self._look_up()
        return self._rows

    def _look_up(self) -> None:
        rows = self._stored.rows_of(self._waiting)
        self._rows[rows[rows >= 0]] = True
        self._waiting.clear()
