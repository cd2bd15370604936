"""Interfaces of extraction: sources of images, and embedders, local or on nodes (`frevl.store.many_nodes`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

from frevl.data.ahead import ahead_of
from frevl.encoders.interface import ImageTower
from frevl.errors import Reject
from frevl.store.extraction.items import CommitBuffer, KnownItems, PendingItem, StoredItems

__all__ = ["GUESSED", "IN_SILENCE", "Embedder", "Here", "MakePictures", "Pictures", "remarks"]

GUESSED = "guessed white"
"""Remark on images with more than 8 bits that neither define white nor use all their bits."""
IN_SILENCE = "changed in silence"
"""Remark on files whose content changed but not their size and modification time."""

A_contra = TypeVar("A_contra", contravariant=True)


class Pictures(Protocol[A_contra]):
    """Images of one kind: files of a folder, members of tars, cells of tables.

    Attributes:
        in_memory: Whether the bytes of an image are in memory before it is prepared, so that only few should wait.
        remarks: Observations made while preparing images: ids, by the kind of observation.
    """

    in_memory: bool
    remarks: dict[str, list[str]]

    def id_of(self, source: A_contra) -> str:
        """Return the id of an image."""

    def bytes_of(self, source: A_contra) -> int:
        """Return how many bytes of an image are currently in memory."""

    def is_settled(self, source: A_contra) -> bool:
        """Return whether it is known, without reading anything, that nothing needs doing."""

    def is_gone(self, id_: str) -> bool:
        """Return whether the file of a stored image no longer exists."""

    def prepare(self, source: A_contra) -> tuple[str, PendingItem | Reject | None]:
        """Read, hash and decode an image, unless the store already has it unchanged; thread-safe.

        Returns:
            Its id, and what is to be done; None if nothing is.
        """

    def elsewhere(self) -> MakePictures[A_contra]:
        """Return a picklable factory that recreates them on another machine."""


class MakePictures(Protocol[A_contra]):
    """Creates images of one kind."""

    def __call__(self, towers: Sequence[ImageTower], stored: KnownItems) -> Pictures[A_contra]:
        """Create the images.

        Args:
            towers: Image towers that must have embedded every image.
            stored: The items known to the store.
        """


def remarks() -> dict[str, list[str]]:
    """Return an empty set of remarks."""
    return {GUESSED: [], IN_SILENCE: []}


A = TypeVar("A")
B = TypeVar("B")


class Embedder(Protocol):
    """Embeds items and passes them to a buffer that commits them."""

    def images(
        self, pictures: Pictures[A], sources: Iterable[A], stored: StoredItems, buffer: CommitBuffer
    ) -> Iterator[tuple[str, PendingItem | Reject | None]]:
        """Embed images.

        Args:
            pictures: Prepares single images.
            sources: Sources of the images, each once.
            stored: The items known to the store.
            buffer: Receives the embeddings; rejects are left to the caller.

        Yields:
            The id of each image, in any order, and what had to be done.
        """

    def texts(self, batches: Iterable[Sequence[PendingItem]], buffer: CommitBuffer) -> Iterator[int]:
        """Embed batches of texts unchanged, because the last bit of an embedding may depend on its batch.

        Yields:
            The number of texts embedded in each step.
        """


class Here:
    """Embedding in this process.

    Args:
        workers: Number of decoding threads.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def images(
        self,
        pictures: Pictures[A],
        sources: Iterable[A],
        stored: StoredItems,  # noqa: ARG002
        buffer: CommitBuffer,
    ) -> Iterator[tuple[str, PendingItem | Reject | None]]:
        """Embed images in order: see `Embedder.images`."""
        batch: list[PendingItem] = []
        depth = 4 * (self._workers if pictures.in_memory else buffer.size)
        with ThreadPoolExecutor(self._workers, thread_name_prefix="decode") as pool:
            for id_, work in ahead_of(pool, pictures.prepare, sources, depth):
                if isinstance(work, PendingItem):
                    batch.append(work)
                if len(batch) == buffer.size:
                    buffer.add(batch)
                    batch = []
                yield id_, work
        if batch:
            buffer.add(batch)

    def texts(self, batches: Iterable[Sequence[PendingItem]], buffer: CommitBuffer) -> Iterator[int]:
        """Embed batches of texts in order: see `Embedder.texts`."""
        for batch in batches:
            buffer.add(batch)
            yield len(batch)
