"""Where items are embedded: in this process, with threads that decode ahead; or on nodes (`frevl.store.many_nodes`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

from frevl.errors import Reject
from frevl.store.embedding.commit_buffer import CommitBuffer, PendingItem
from frevl.store.embedding.pictures import Pictures
from frevl.store.stored_items import StoredItems

__all__ = ["Embedder", "Here", "ahead_of"]

A = TypeVar("A")
B = TypeVar("B")


class Embedder(Protocol):
    """Embeds what has to be embedded, and hands it to a buffer that commits it."""

    def images(
        self, pictures: Pictures[A], sources: Iterable[A], stored: StoredItems, buffer: CommitBuffer
    ) -> Iterator[tuple[str, PendingItem | Reject | None]]:
        """Embed pictures.

        Args:
            pictures: Prepares one.
            sources: They, each once.
            stored: What the store knew of them.
            buffer: Takes what is embedded; rejects are left to the caller.

        Yields:
            The id of each, in any order, and what had to be done.
        """

    def texts(self, batches: Iterable[Sequence[PendingItem]], buffer: CommitBuffer) -> Iterator[int]:
        """Embed batches of texts as they are, because a text may depend, in its last bit, on its batch.

        Yields:
            How many were done.
        """


class Here:
    """This process.

    Args:
        workers: Threads that decode.
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
        """Embed pictures, in their order: see `Embedder.images`."""
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
        """Embed batches of texts, in their order: see `Embedder.texts`."""
        for batch in batches:
            buffer.add(batch)
            yield len(batch)


def ahead_of(pool: ThreadPoolExecutor, call: Callable[[A], B], arguments: Iterable[A], depth: int) -> Iterator[B]:
    """Map in threads, in order, never more than ``depth`` results ahead: memory stays flat."""
    waiting: deque[Future[B]] = deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(call, argument))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # after an error nobody wants them
            future.cancel()
