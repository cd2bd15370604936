"""Merge hits with the same content: images by their bytes, texts by their words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from frevl.data.names import text_content
from frevl.errors import counted
from frevl.store.towers import Modality

__all__ = ["copies_note", "merge_copies", "no_more_copies"]

_ROUNDING = 1e-5  # similarities of equal vectors differ by less


def no_more_copies(similarities: np.ndarray, last: int) -> bool:
    """Return whether all copies of an item were found: the last one found is less similar than it.

    Args:
        similarities: ``(found,)``, largest first.
        last: Position of the item.
    """
    return bool(similarities[-1] < similarities[last] - _ROUNDING)


def copies_note(merged: int, modality: Modality, original: str, *, exact: bool) -> list[str]:
    """Return a note on copies of a hit, or of the query, that are not shown; an index may have missed some."""
    if not merged:
        return []
    same = f"with the same content as {original}"
    items = counted(merged, f"{modality} {same} is", f"{modality}s {same} are")
    return [f"{'' if exact else 'At least '}{items} not shown; --all shows {'it' if merged == 1 else 'them'}."]


def merge_copies(
    ids: Sequence[str], modality: Modality, contents: Mapping[str, str], leave_out: Sequence[str]
) -> dict[int, list[str]]:
    """Group items with the same content.

    Args:
        ids: Ids of the items found, nearest first.
        modality: Modality of these items.
        contents: For images, a value by id that is the same for copies, such as a content hash, or the first of them
            (see `frevl.store.reader.Store.copies`); an image without one has no copies.
        leave_out: Items that are not hits, with all their copies: those of the query.

    Returns:
        Maps the position of the first item of each content to the ids of all, in order.
    """

    def content(id_: str) -> str:
        return contents.get(id_, id_) if modality == "image" else text_content(id_)

    own = {content(id_) for id_ in leave_out}
    first: dict[str, int] = {}
    found: dict[int, list[str]] = {}
    for position, id_ in enumerate(ids):
        if content(id_) not in own:
            found.setdefault(first.setdefault(content(id_), position), []).append(id_)
    return found
