"""The interface between training and its workers, with the single-process implementation. Loads no torch.

Every worker runs the same program on the same data. Each step, a worker computes the loss of its rows of the batch and
the team adds the gradients up, so that all workers take the step that one process would have taken on the whole batch.
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
        rank: Its number; worker 0 writes, prints and decides.
        size: How many there are.
        local_rank: Its number on this machine.
        local_size: How many are on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int


class Share(Protocol):
    """The rows of a batch that one worker computes; ``k`` of ``n``."""

    def of(self, rows: Tensor) -> Tensor:
        """``(n, ...)`` of the whole batch to the ``(k, ...)`` of this worker."""

    def weighed(self, mean: Tensor) -> Tensor:
        """The mean of something over the rows of this worker, as what it adds to the mean over the batch."""

    def gathered(self, vectors: Tensor) -> Tensor:
        """``(k, d)`` of this worker to the ``(n, d)`` of all; a loss made of them has to be `counted_once`."""

    def counted_once(self, loss: Tensor) -> Tensor:
        """A loss that every worker computes alike from gathered vectors, as what this worker adds to it."""

    def dropping(self) -> AbstractContextManager[object]:
        """Inside it, dropout on ``(k, ...)`` drops what one process would drop of these rows."""

    def among(self, places: Tensor, count: int) -> Share:
        """Of something else that follows from the rows: ``(j,)`` int64 places of ``count``."""

    def of_items(self, rows: Tensor, items: Tensor) -> Share:
        """Of the different items of the batch, which of them this worker needs.

        Args:
            rows: ``(n,)`` the item of every row of the batch.
            items: ``(j,)`` different items of this worker's rows.
        """

    def with_partners(self, partners: Tensor) -> tuple[Share, Tensor]:
        """The rows of this worker followed by those that they are mixed with.

        Args:
            partners: ``(n,)`` int64, the partner of every row of the batch.

        Returns:
            Their share of the batch, and where in it the partners of this worker's rows are.
        """

    def first(self, rows: Tensor) -> Tensor:
        """Of rows that have partners behind them, those of this worker itself."""


class Team(Protocol):
    """All workers of a training, as seen by one of them."""

    @property
    def size(self) -> int:
        """Return the number of workers."""

    @property
    def leads(self) -> bool:
        """Return whether this is worker 0, which writes, prints and decides."""

    def share(self, count: int) -> Share:
        """This worker's share of ``count`` rows; shares are contiguous and of nearly equal size."""

    def summed(
        self, parameters: Sequence[Tensor], loss: Tensor, terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the gradients of all workers, in place, and their losses.

        Args:
            parameters: Whose gradients; what no worker has a gradient of keeps none.
            loss: What this worker adds to the loss of the batch.
            terms: The terms that it is made of, by name.

        Returns:
            Loss and terms of the whole batch, without gradients.
        """

    def agreed(self, value: T) -> T:
        """Return worker 0's value."""

    def decided(self, find: Callable[[], T]) -> T:
        """Let worker 0 compute a value and share it."""

    def aligned(self, network: nn.Module) -> None:
        """Give all workers worker 0's weights."""

    def device(self, asked: str) -> str:
        """Return the device of this worker: of ``cuda``, each takes one of those of its machine."""

    def same(self, what: Mapping[str, Any]) -> None:
        """Stop if workers differ in what must be the same.

        Raises:
            RunError: They do; it names the worker and what differs.
        """


class _Whole:
    """The share of a single process: the whole batch."""

    def of(self, rows: Tensor) -> Tensor:
        return rows

    def weighed(self, mean: Tensor) -> Tensor:
        return mean

    def gathered(self, vectors: Tensor) -> Tensor:
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
        """Compute it."""
        return find()

    def aligned(self, network: nn.Module) -> None:
        """Do nothing."""

    def device(self, asked: str) -> str:
        """Return it unchanged."""
        return asked

    def same(self, what: Mapping[str, Any]) -> None:
        """Do nothing."""


ALONE: Team = Alone()
TEAM: ContextVar[Team] = ContextVar("frevl_team", default=ALONE)
"""The team of this process, set by `frevl.training.workers.distributed.joined`."""


def current_team() -> Team:
    """Return this process's team of workers, or itself alone."""
    return TEAM.get()
