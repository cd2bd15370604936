"""Find the pairs of an extraction whose image is missing, without a set of all ids or a Python object per pair."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from frevl.data.names import same_names, why_unknown
from frevl.data.packed.columns import by_value, chosen, joined
from frevl.data.pairs import Pairs
from frevl.errors import Reject
from frevl.store.ids.rows_of_ids import find_rows
from frevl.store.reader import Store
from frevl.store.writer import StoreWriter

__all__ = ["reject_pairs_without_image"]

_AT_ONCE = 65_536  # ids that exist as Python objects at a time


def reject_pairs_without_image(
    writer: StoreWriter,
    pairs: Sequence[Pairs],
    seen: Sequence[Collection[str]],
    folder: str | Path | None,
    *,
    elsewhere: Callable[[str], bool] = lambda _: False,
) -> list[Reject]:
    """Reject pairs whose image is neither in the folder nor in the store, if there are any images.

    Args:
        writer: Records the rejects.
        pairs: All pairs of the extraction.
        seen: Ids of images that exist, at least of those that the store lacks.
        folder: Folder of the images.
        elsewhere: Returns whether a missing image may belong to another process's share.
    """
    pairs = [one for one in pairs if "image" in one.sides]
    if not pairs:
        return []
    # New images are in the store by now; images renamed since were in the store when the extraction started.
    there = _Either([*seen, *(store.positions("image") for store in (writer.store, Store(writer.path)))])
    if not there:
        return []
    different = joined([one.images for one in pairs])[1]
    not_there = chosen(different, np.flatnonzero(~there.has(different)))
    absent = [id_ for id_ in not_there if not elsewhere(id_)]
    lost = set(absent) - same_names(absent, there).keys()
    nowhere = [
        (one.images[row], one.places[row])
        for one in (pairs if lost else ())
        for row in np.flatnonzero(by_value(one.images, lost.__contains__, bool)).tolist()
        if not _lies_below(one.images[row], one.places[row], folder)
    ]
    nearest = why_unknown(nowhere[0][0], there) if nowhere else ""  # only for the first, because it scans all ids
    rejects = [
        Reject("pair", place, f"field 'image': there is no image '{id_}' in the folder or the store" + why)
        for (id_, place), why in zip(nowhere, [f"; {nearest}" if nearest else "", *[""] * len(nowhere)], strict=False)
    ]
    writer.reject(rejects)
    return rejects


class _Either(Collection[str]):
    """The union of several collections of ids, each once; a set of many millions would take gigabytes."""

    def __init__(self, parts: Sequence[Collection[str]]) -> None:
        self._parts = parts

    def has(self, ids: Sequence[str], parts: int | None = None) -> NDArray[np.bool_]:
        """Return ``(n,)``: which ids are in one of the collections, or in one of the first few."""
        found = np.zeros(len(ids), bool)
        for part in self._parts[:parts]:
            left = np.flatnonzero(~found)
            some = chosen(ids, left)
            # If all ids are on disk, a single look-up takes a millisecond, and a million of them a second.
            found[left] = find_rows(part, some) >= 0 if isinstance(part, Mapping) else [id_ in part for id_ in some]
        return found

    def __contains__(self, id_: object) -> bool:
        return any(id_ in part for part in self._parts)

    def __iter__(self) -> Iterator[str]:
        for number, part in enumerate(self._parts):
            ids = iter(part)
            while some := list(islice(ids, _AT_ONCE)):
                yield from (id_ for id_, seen in zip(some, self.has(some, number).tolist(), strict=True) if not seen)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return any(self._parts)


def _lies_below(name: str, place: str, folder: str | Path | None) -> bool:
    """Return whether a name is a path into the folder, relative to the working directory or the pairs file."""
    if folder is None:
        return False
    below = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
    beside = os.path.dirname(place.rpartition(":")[0])  # noqa: PTH120
    written = (name, name.replace("\\", "/"))
    paths = [path for one in written for path in (one, os.path.join(beside, one))]  # noqa: PTH118
    return any(os.path.realpath(path).startswith(below) and os.path.isfile(path) for path in paths)  # noqa: PTH113
