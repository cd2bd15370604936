"""Pictures to embed, whatever they lie in: what has to be done with each, here or on another machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from frevl.encoders.interface import ImageTower
from frevl.errors import Reject
from frevl.store.embedding.commit_buffer import PendingItem
from frevl.store.stored_items import KnownItems

__all__ = ["GUESSED", "IN_SILENCE", "MakePictures", "Pictures", "remarks"]

GUESSED = "guessed white"
"""Of pictures of more than 8 bits that do not say what white is and do not use all their bits."""
IN_SILENCE = "changed in silence"
"""Of files that had other content with the same size and modification time."""

A_contra = TypeVar("A_contra", contravariant=True)


class Pictures(Protocol[A_contra]):
    """Pictures of one kind: files of a folder, members of tars, cells of tables.

    Attributes:
        in_memory: Whether the bytes of a picture are in memory before it is prepared, so that few should wait.
        remarks: What was noticed while pictures were prepared: ids, by what there is to say of them.
    """

    in_memory: bool
    remarks: dict[str, list[str]]

    def id_of(self, source: A_contra) -> str:
        """Return the id of a picture."""

    def bytes_of(self, source: A_contra) -> int:
        """Return how many bytes of a picture are in memory now."""

    def is_settled(self, source: A_contra) -> bool:
        """Tell whether it is known, without reading anything, that nothing has to be done."""

    def is_gone(self, id_: str) -> bool:
        """Tell whether the file of a picture that the store knows is no longer there."""

    def prepare(self, source: A_contra) -> tuple[str, PendingItem | Reject | None]:
        """Read, hash and decode one, unless the store holds it as it is; several threads may do so at once.

        Returns:
            Its id, and what has to be done; None for nothing.
        """

    def elsewhere(self) -> MakePictures[A_contra]:
        """Return what makes their like on another machine. It can be pickled."""


class MakePictures(Protocol[A_contra]):
    """Makes pictures of one kind."""

    def __call__(self, towers: Sequence[ImageTower], stored: KnownItems) -> Pictures[A_contra]:
        """Make them.

        Args:
            towers: Image towers that shall have seen every image.
            stored: What the store knows.
        """


def remarks() -> dict[str, list[str]]:
    """Return remarks before there are any."""
    return {GUESSED: [], IN_SILENCE: []}
