"""The model worker: one thread, a bounded queue, and batches of waiting items."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from frevl.deployment.service.http.fair_share import ASKING
from frevl.deployment.service.http.limits import RefusedError

__all__ = ["ModelQueue", "Work"]

P = TypeVar("P")
R = TypeVar("R")

Work = Callable[[Sequence[P]], Sequence[R]]
"""Answers several payloads at once, in order, each as if it were alone."""


@dataclass(eq=False)
class _Job:
    work: Work[Any, Any]
    payload: Any
    items: int
    future: asyncio.Future[Any]
    client: str


class ModelQueue:
    """Runs all models in one thread, in batches of items that wait for the same work.

    There is no pause to collect a batch: while one batch runs, the next one accumulates. An idle service answers at
    once, a busy one in batches. Jobs are served in order, except that a batch also takes later jobs of the same kind.

    Args:
        waiting_items: Maximum number of waiting items; further ones are refused immediately.
        client_share: Share of ``waiting_items`` that one client may have, 0 to 1.
        batch_items: Maximum number of items in a batch; a single larger job runs alone.
        observe: Called in the thread after every batch with the name of the work, the number of items, and seconds.
    """

    def __init__(
        self,
        *,
        waiting_items: int,
        batch_items: int,
        client_share: float = 1.0,
        observe: Callable[[str, int, float], None] | None = None,
    ) -> None:
        self._most_waiting = waiting_items
        self._client_most = waiting_items * client_share
        self._waiting_of: dict[str, int] = {}  # items by client
        self._batch_items = batch_items
        self._observe = observe
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._seconds_an_item = 0.001  # smoothed; used only for Retry-After
        self.waiting = 0  # items
        self.closed = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    async def submit(self, work: Work[P, R], payload: P, *, items: int) -> R:
        """Have the worker answer one payload; it leaves the queue if the caller is cancelled.

        Args:
            work: The function; jobs of equal work share batches.
            payload: Its input.
            items: Number of items, at least 1.

        Raises:
            RefusedError: Too many items of all clients (503) or of this one (429) are waiting, or the service is
                stopping.
            Exception: Whatever the work raised for this payload.
        """
        client = ASKING.get()
        job = _Job(work, payload, items, asyncio.get_running_loop().create_future(), client)
        with self._changed:
            if self.closed:
                raise RefusedError(503, "stopping", "The service is stopping; try again in a moment.", retry_after=2)
            if self.waiting + items > self._most_waiting:
                raise RefusedError(
                    503,
                    "overloaded",
                    f"{self.waiting} of at most {self._most_waiting} items are waiting for the model; try again later.",
                    retry_after=self._seconds_for(self.waiting),
                )
            own = self._waiting_of.get(client, 0)
            if own and own + items > self._client_most:
                raise RefusedError(
                    429,
                    "client_limit",
                    f"{own} of at most {self._client_most:.0f} items of this client are waiting for the model; try "
                    "again later.",
                    retry_after=self._seconds_for(own),
                )
            self._jobs.append(job)
            self._count(client, items)
            self._changed.notify()
        try:
            answer: R = await job.future
        except asyncio.CancelledError:
            with self._changed:
                if job in self._jobs:
                    self._jobs.remove(job)
                    self._count(client, -items)
            raise
        return answer

    def close(self) -> None:
        """Accept no more jobs, finish accepted ones and stop the thread. Blocks: do not call it on the event loop."""
        with self._changed:
            self.closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            started = time.perf_counter()
            answered = _answered(batch)
            items, seconds = sum(job.items for job in batch), time.perf_counter() - started
            self._seconds_an_item += 0.1 * (seconds / items - self._seconds_an_item)
            if self._observe is not None:
                self._observe(getattr(batch[0].work, "__name__", "work"), items, seconds)
            for loop in {job.future.get_loop() for job in batch}:  # wake a loop once per batch, not once per job
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_deliver, [a for a in answered if a[0].future.get_loop() is loop])

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs and take the next batch; an empty one means the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self.closed)
            batch: list[_Job] = []
            room = self._batch_items
            for job in list(self._jobs):
                if not batch or (job.work == batch[0].work and job.items <= room):
                    self._jobs.remove(job)
                    batch.append(job)
                    room -= job.items
                if room <= 0:
                    break
            for job in batch:
                self._count(job.client, -job.items)
            return batch

    def _count(self, client: str, items: int) -> None:
        self.waiting += items
        own = self._waiting_of.get(client, 0) + items
        if own:
            self._waiting_of[client] = own
        else:
            del self._waiting_of[client]

    def _seconds_for(self, items: int) -> int:
        return min(max(1, math.ceil(items * self._seconds_an_item)), 60)


def _answered(batch: Sequence[_Job]) -> list[tuple[_Job, Any]]:
    """Run a batch; if it fails, run each job alone, so that only the faulty one fails."""
    try:
        return list(zip(batch, batch[0].work([job.payload for job in batch]), strict=True))
    except BaseException as error:  # whatever happens (Rust panics are not Exceptions), the thread must keep running
        return [(batch[0], error)] if len(batch) == 1 else [_answered([job])[0] for job in batch]


def _deliver(answered: Sequence[tuple[_Job, Any]]) -> None:
    for job, answer in answered:
        if job.future.done():  # its caller was cancelled
            continue
        if isinstance(answer, BaseException):
            job.future.set_exception(answer)
        else:
            job.future.set_result(answer)
