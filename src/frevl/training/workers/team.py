"""The interface between training and its workers, with the single-process implementation. Loads no torch.

Every worker runs the same program on the same data. In each step, a worker computes the loss of its rows of the batch
and the team sums the gradients, so that all workers take the step that one process would have taken on the whole batch.
Where clocks or hardware could make workers decide differently, worker 0 decides for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ALONE", "TEAM", "Alone", "Place", "Share", "Team", "current_team"]

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """The place of a process among the workers.

    Attributes:
        rank: Number of the process; worker 0 writes, prints and decides.
        size: Number of workers.
        local_rank: Number of the process on this machine.
        local_size: Number of workers on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


class Share(Protocol):
    """The ``k`` of the batch's ``n`` rows that one worker computes."""

    def of(self, rows: Tensor) -> Tensor:
        """Select this worker's ``(k, ...)`` from the ``(n, ...)`` of the whole batch."""

    def weighed(self, mean: Tensor) -> Tensor:
        """Convert a mean over this worker's rows into its contribution to the mean over the batch."""

    def gathered(self, vectors: Tensor) -> Tensor:
        """Gather this worker's ``(k, d)`` into the ``(n, d)`` of all; a loss of them must be `counted_once`."""

    def both_gathered(self, one: Tensor, other: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gather two kinds of vectors at once, as `gathered`.

        Args:
            one: ``(k, d)`` of this worker.
            other: ``(k, e)`` of this worker.
            chosen: ``(m,)`` int64, ascending rows of the batch, the only ones gathered; None for all.

        Returns:
            The ``(m, d)`` and ``(m, e)`` of all.
        """

    def gathered_for_own(self, vectors: Tensor) -> Tensor:
        """Gather this worker's ``(k, d)``, with ``k >= 1``, into the ``(n, d)`` of all, for a loss of its own."""

    def counted_once(self, loss: Tensor) -> Tensor:
        """Convert a loss that every worker computes from gathered vectors into this worker's contribution."""

    def dropping(self) -> AbstractContextManager[object]:
        """Return a context in which dropout on ``(k, ...)`` is what one process would apply to these rows."""

    def among(self, places: Tensor, count: int) -> Share:
        """Return the share of something derived from the rows: ``(j,)`` int64 places among ``count``."""

    def of_items(self, rows: Tensor, items: Tensor) -> Share:
        """Return this worker's share of the distinct items of the batch.

        Args:
            rows: ``(n,)`` int64, the item of every row of the batch.
            items: ``(j,)`` int64, the distinct items of this worker's rows.
        """

    def with_partners(self, partners: Tensor) -> tuple[Share, Tensor]:
        """Return the share of this worker's rows followed by the rows with which they are mixed.

        Args:
            partners: ``(n,)`` int64, the mixing partner of every row of the batch.

        Returns:
            Their share of the batch, and the positions in it of the partners of this worker's rows.
        """

    def first(self, rows: Tensor) -> Tensor:
        """From rows followed by their partners, return those of this worker alone."""


class Team(Protocol):
    """All workers of a training, as seen by one of them."""

    @property
    def size(self) -> int:
        """Return the number of workers."""

    @property
    def leads(self) -> bool:
        """Return whether this is worker 0, which writes, prints and decides."""

    def share(self, count: int) -> Share:
        """Return this worker's share of ``count`` rows; shares are contiguous and of nearly equal size."""

    def summed(
        self, parameters: Sequence[Tensor], loss: Tensor, terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum the gradients of all workers, in place, and their losses.

        Args:
            parameters: Parameters whose gradients to sum; those without a gradient on any worker keep none.
            loss: This worker's contribution to the loss of the batch.
            terms: The terms of that loss, by name.

        Returns:
            Loss and terms of the whole batch, without gradients.
        """

    def agreed(self, value: T) -> T:
        """Return worker 0's value."""

    def decided(self, find: Callable[[], T]) -> T:
        """Let worker 0 compute a value and share it."""

    def aligned(self, network: nn.Module) -> None:
        """Give all workers worker 0's weights."""

    def device(self, wanted: str) -> str:
        """Return the device of this worker: for ``cuda``, each uses a different one on its machine."""

    def same(self, what: Mapping[str, Any]) -> None:
        """Fail if the workers' values differ.

        Raises:
            RunError: The workers differ; names the worker and the difference.
        """


class _Whole:
    """The share of a single process: the whole batch."""

    def of(self, rows: Tensor) -> Tensor:
        return rows

    def weighed(self, mean: Tensor) -> Tensor:
        return mean

    def gathered(self, vectors: Tensor) -> Tensor:
        return vectors

    def both_gathered(self, one: Tensor, other: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        return (one, other) if chosen is None else (one[chosen], other[chosen])

    def gathered_for_own(self, vectors: Tensor) -> Tensor:
        return vectors

    def counted_once(self, loss: Tensor) -> Tensor:
        return loss

    def dropping(self) -> AbstractContextManager[object]:
        return nullcontext()

    def among(self, places: Tensor, count: int) -> Share:  # noqa: ARG002
        return self

    def of_items(self, rows: Tensor, items: Tensor) -> Share:  # noqa: ARG002
        return self

    def with_partners(self, partners: Tensor) -> tuple[Share, Tensor]:
        return self, partners

    def first(self, rows: Tensor) -> Tensor:
        return rows


_WHOLE = _Whole()


class Alone:
    """A process that trains alone, without sharing or communication."""

    size, leads = 1, True

    def share(self, count: int) -> Share:  # noqa: ARG002
        """Return the whole batch."""
        return _WHOLE

    def summed(
        self,
        parameters: Sequence[Tensor],  # noqa: ARG002
        loss: Tensor,
        terms: dict[str, Tensor],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return both unchanged."""
        return loss, terms

    def agreed(self, value: T) -> T:
        """Return the value."""
        return value

    def decided(self, find: Callable[[], T]) -> T:
        """Compute the value."""
        return find()

    def aligned(self, network: nn.Module) -> None:
        """Do nothing."""

    def device(self, wanted: str) -> str:
        """Return the device unchanged."""
        return wanted

    def same(self, what: Mapping[str, Any]) -> None:
        """Do nothing."""


ALONE: Team = Alone()
TEAM: ContextVar[Team] = ContextVar("frevl_team", default=ALONE)
"""The team of this process, set by `frevl.training.workers.distributed.joined`."""


def current_team() -> Team:
    """Return this process's team of workers, or itself alone."""
    return TEAM.get()
