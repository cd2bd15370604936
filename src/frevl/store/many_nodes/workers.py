"""Distribute blocks of work over workers of a Ray cluster: idle workers take the next block, dead ones are replaced.

These are plain Ray actors, because blocks must stay intact: Ray Data would split and join blocks to suit memory, but
the last bit of a text's embedding depends on the rest of its batch.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import ModuleType, TracebackType
from typing import Any, Generic, TypeVar

from frevl import errors
from frevl.errors import FrevlError
from frevl.machine import grant_processors
from frevl.store.many_nodes.connection import refuse_other_code, versions_here
from frevl.store.many_nodes.head import Head

__all__ = ["Greeting", "Workers"]

B = TypeVar("B")
R = TypeVar("R")

_AHEAD = 2  # blocks held by a worker: the current one, and the next
_PATIENCE = 120.0  # seconds without any worker, because a new process must load its networks
_MOST_DEATHS = 16  # workers lost with the same block; fewer may be chance when many die
_DONE_AHEAD = 16  # finished blocks per worker that have to wait for an earlier one
_SLOW = 3.0  # times a block's usual duration, after which an idle worker starts it, too
_LOOK_AGAIN = 1.0  # seconds between checks


@dataclass(frozen=True)
class Greeting:
    """A worker's first message.

    Attributes:
        node: Name of the worker's machine.
        versions: See `frevl.store.many_nodes.connection.versions_here`.
        about: Description of its work, from the attribute ``about``.
    """

    node: str
    versions: dict[str, str]
    about: Any


@dataclass(frozen=True)
class _Failure:
    """One of our errors, with its class by name, because not all can be pickled."""

    kind: str
    message: str


class _Worker:
    """The actor that runs on a node.

    Args:
        make: Returns the work: a function of a block, with an attribute ``about``.
        processors: Number of cores it may use.
    """

    def __init__(self, make: Callable[[], Any], processors: int) -> None:
        grant_processors(processors)
        self._make = make
        self._work: Any = None

    def greet(self) -> Greeting | _Failure:
        """Load everything that the work requires."""
        try:
            self._work = self._make()
        except FrevlError as error:
            return _Failure(type(error).__name__, f"{socket.gethostname()}: {error}")
        return Greeting(socket.gethostname(), versions_here(), self._work.about)

    def do(self, block: Any) -> Any:
        """Process one block."""
        try:
            return self._work(block)
        except FrevlError as error:
            return _Failure(type(error).__name__, str(error))


@dataclass(frozen=True)
class _Numbered(Generic[B]):
    """A block and its position in the order."""

    number: int
    block: B


@dataclass(eq=False)
class _Held(Generic[B]):
    """An unfinished block and the workers that have it.

    Attributes:
        alone: Whether a worker was lost while holding it. It is then processed by a worker without other blocks, so
            that a further loss has a known cause: a worker's last answer can be lost with it, so any of several blocks
            may have been the cause.
    """

    of: _Numbered[B]
    deaths: int = 0
    held_by: list[_Hired] = field(default_factory=list)
    since: float = 0.0
    alone: bool = False


@dataclass(eq=False)
class _Hired:
    """A worker as seen by this process."""

    actor: Any
    node: str = ""
    hands: list[_Held[Any]] = field(default_factory=list)  # in processing order

    @property
    def load(self) -> int:
        return len(self.hands)

    @property
    def full(self) -> bool:
        return self.load >= _AHEAD or any(block.alone for block in self.hands)


class Workers(Generic[B, R]):
    """Workers of a cluster, one per free processor; a context manager.

    The blocks of a worker that dies, or whose node disappears, are processed by others. Towards the end, idle workers
    duplicate the blocks of slow ones, and the first answer counts. A block must therefore give the same result on any
    worker.

    Args:
        ray: The connected module ``ray``.
        make: Returns the work; called on the node. It must be picklable: a module-level function, or a
            `functools.partial`.
        count: Number of workers; None starts as many as the cluster has CPU cores, or accelerators.
        processors: Number of cores per worker.
        accelerators: Number of accelerators per worker.

    Attributes:
        notes: Notes for the user.
    """

    def __init__(
        self,
        ray: ModuleType,
        make: Callable[[], Callable[[B], R]],
        *,
        count: int | None = None,
        processors: int = 1,
        accelerators: int = 0,
    ) -> None:
        self._ray, self._make, self._processors = ray, make, processors
        self._head = Head(ray)
        total = ray.cluster_resources()
        most = int(total.get("GPU", 0)) // accelerators if accelerators else int(total.get("CPU", 0)) // processors
        self.count = min(count or most, most)
        if self.count < 1:
            raise FrevlError(
                f"--ray: the cluster has {total.get('CPU', 0):.0f} processors and {total.get('GPU', 0):.0f} "
                "accelerators, too little for one worker; add nodes"
            )
        self._remote = ray.remote(num_cpus=processors, num_gpus=accelerators, max_restarts=0)(_Worker)
        self.notes: list[str] = []
        self._lost: dict[str, int] = {}
        self._reason = ""
        self._ready: list[_Hired] = []
        self._coming: dict[Any, _Hired] = {}
        self._seconds: deque[float] = deque(maxlen=32)  # durations of the latest blocks
        self._left = self._most = 4 * self.count + 16  # replacements that may be started without any result

    def __enter__(self) -> Workers[B, R]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(self._ray.exceptions.RayError):
            for worker in [*self._ready, *self._coming.values()]:
                self._ray.kill(worker.actor)
        if self._lost:
            named = ", ".join(f"{count} {where}" for where, count in sorted(self._lost.items()))
            self.notes.append(f"Lost workers: {named} ({self._reason:.200}). Other workers did their blocks.")

    def start(self, greeted: Callable[[Greeting], None]) -> None:
        """Start the workers, and wait for them.

        Args:
            greeted: Checks each worker's first message; raises an error to reject it.

        Raises:
            FrevlError: A node runs another frevl or cannot do the work, or no worker starts.
        """
        self._greeted = greeted
        for _ in range(self.count):
            self._hire()
        began = time.monotonic()
        until = began + _PATIENCE
        while self._coming and time.monotonic() < until:
            nobody = not self._ready
            self._welcome(self._head.wait(list(self._coming), max(until - time.monotonic(), 0))[0])
            if nobody and self._ready:  # the others get twice the time of the first; later ones are still accepted
                until = min(until, time.monotonic() + 2 * (time.monotonic() - began) + _LOOK_AGAIN)

    def in_order(self, blocks: Iterable[B]) -> Iterator[R]:
        """Process blocks and yield their results in block order.

        A slow block delays the others: only a few are processed ahead of it, then idle workers start it, too.

        Raises:
            FrevlError: As in `results`.
        """
        early: dict[int, R] = {}
        following = 0
        most = _DONE_AHEAD * self.count
        numbered = (_Numbered(number, block) for number, block in enumerate(blocks))
        for one, result in self._results(numbered, lambda: len(early) < most):
            early[one.number] = result
            while following in early:
                yield early.pop(following)
                following += 1

    def results(self, blocks: Iterable[B]) -> Iterator[tuple[B, R]]:
        """Process blocks and yield each with its result, in order of completion.

        Raises:
            FrevlError: The work fails, no worker is left, a block ends every worker, or the head is gone.
        """
        numbered = (_Numbered(number, block) for number, block in enumerate(blocks))
        for one, result in self._results(numbered, lambda: True):
            yield one.block, result

    def _results(
        self, blocks: Iterator[_Numbered[B]], may_begin: Callable[[], bool]
    ) -> Iterator[tuple[_Numbered[B], R]]:
        """Process blocks and yield each with its result, in order of completion.

        Args:
            blocks: The blocks.
            may_begin: Returns whether a new block may be started.

        Raises:
            FrevlError: The work fails, no worker is left, a block ends every worker, or the head is gone.
        """
        again: deque[_Held[B]] = deque()
        flying: dict[Any, tuple[_Held[B], _Hired]] = {}
        more = True
        while True:
            for worker in self._free():
                if again and worker.load:
                    break  # a block to be processed alone waits for an idle worker
                block = again.popleft() if again else None
                if block is None and more and may_begin():
                    following = next(blocks, None)
                    more, block = following is not None, None if following is None else _Held(following)
                if block is None:
                    block = self._slowest(flying, worker)
                if block is None:
                    break
                self._hand(block, worker, flying)
            if not flying and not again and not more:
                return
            yield from self._wait(flying, again)

    def _free(self) -> Iterator[_Hired]:
        """Yield workers that can take a block, least loaded first."""
        while True:
            free = [worker for worker in self._ready if not worker.full]
            if not free:
                return
            yield min(free, key=lambda worker: worker.load)

    def _hand(self, block: _Held[B], worker: _Hired, flying: dict[Any, tuple[_Held[B], _Hired]]) -> None:
        block.held_by.append(worker)
        block.since = time.monotonic()
        worker.hands.append(block)
        flying[worker.actor.do.remote(block.of.block)] = block, worker

    def _slowest(self, flying: dict[Any, tuple[_Held[B], _Hired]], worker: _Hired) -> _Held[B] | None:
        """Return the most overdue block of another worker, if this one is idle."""
        if worker.load or not self._seconds:
            return None
        usual = sorted(self._seconds)[len(self._seconds) // 2]
        before = time.monotonic() - max(_SLOW * usual, _LOOK_AGAIN)
        alone = [
            block
            for block, _ in flying.values()
            if len(block.held_by) == 1 and block.held_by[0] is not worker and block.since < before
        ]
        return min(alone, key=lambda block: block.since, default=None)

    def _wait(
        self, flying: dict[Any, tuple[_Held[B], _Hired]], again: deque[_Held[B]]
    ) -> Iterator[tuple[_Numbered[B], R]]:
        if not flying and not self._coming:
            raise FrevlError(f"--ray: no worker is left ({self._reason:.300}); completed work is kept")
        idle = flying and any(not worker.load for worker in self._ready)
        found, _ = self._head.wait([*flying, *self._coming], _LOOK_AGAIN if idle else _PATIENCE)
        if not found and not flying:
            raise FrevlError(
                f"--ray: no worker started within {_PATIENCE:.0f} s ({self._reason or 'no processor is free'}); "
                "completed work is kept"
            )
        self._welcome([one for one in found if one in self._coming])
        for one in found:
            if one not in flying:
                continue
            block, worker = flying.pop(one)
            block.held_by.remove(worker)
            try:
                result = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                self._dismiss(worker, error)
                block.alone = True
                if not block.held_by:
                    again.append(block)
                continue
            worker.hands.remove(block)
            if isinstance(result, _Failure):
                raise _error_of(result)
            for other in [one for one, (held, _) in flying.items() if held is block]:
                _, also = flying.pop(other)  # it continues with a block that is no longer needed
                also.hands.remove(block)
                block.held_by.remove(also)
            self._left = self._most
            self._seconds.append(time.monotonic() - block.since)
            yield block.of, result

    def _dismiss(self, worker: _Hired, error: Exception) -> None:
        """Replace a worker that failed."""
        if worker not in self._ready:
            return  # a worker with several blocks fails once for each
        self._reason = _short(error)
        self._ready.remove(worker)
        block = worker.hands[0]
        block.deaths += len(worker.hands) == 1  # with several, now processed alone, any may be the cause
        if block.deaths >= _MOST_DEATHS:
            raise FrevlError(
                f"--ray: {block.deaths} workers were lost with the same block, {block.of.block!s:.200} ({self._reason})"
                "; completed work is kept"
            ) from error
        self._note_loss(f"on {worker.node}")
        self._ray.kill(worker.actor)
        if self._left:
            self._left -= 1
            self._hire()

    def _note_loss(self, where: str) -> None:
        self._lost[where] = self._lost.get(where, 0) + 1

    def _hire(self) -> None:
        worker = _Hired(self._remote.remote(self._make, self._processors))
        self._coming[worker.actor.greet.remote()] = worker

    def _welcome(self, came: Iterable[Any]) -> None:
        for one in came:
            worker = self._coming.pop(one)
            try:
                greeting = self._ray.get(one)
            except self._ray.exceptions.RayError as error:
                self._reason = _short(error)
                self._note_loss("while loading")  # it never said on which node
                if self._left and self._ready:
                    self._left -= 1
                    self._hire()
                continue
            if isinstance(greeting, _Failure):
                raise _error_of(greeting)
            refuse_other_code(greeting.node, greeting.versions)
            self._greeted(greeting)
            worker.node = greeting.node
            self._ready.append(worker)


def _error_of(failure: _Failure) -> FrevlError:
    error = FrevlError(failure.message)
    kind = getattr(errors, failure.kind, None)
    if isinstance(kind, type) and issubclass(kind, FrevlError):
        error = kind.__new__(kind, failure.message)
        FrevlError.__init__(error, failure.message)
    return error


def _short(error: Exception) -> str:
    """Return the first sentence of the final cause in a Ray exception."""
    cause = getattr(error, "cause", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    sentence = (lines[-1] if lines else "").partition(". ")[0]
    return f"{type(cause).__name__}: {sentence}"[:300]
