"""Work in threads on what is needed next, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead_of"]

A = TypeVar("A")
B = TypeVar("B")


def ahead_of(pool: ThreadPoolExecutor, call: Callable[[A], B], arguments: Iterable[A], depth: int) -> Iterator[B]:
    """Map in threads and yield results in order, at most ``depth`` ahead, so that memory stays bounded."""
    waiting: deque[Future[B]] = deque()
    try:
        for argument in arguments:
            waiting.append(pool.submit(call, argument))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:  # no longer needed after an error
            future.cancel()
