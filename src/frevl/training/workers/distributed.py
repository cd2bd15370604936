"""One of several workers: the interface of `frevl.training.workers.team` over torch distributed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

# The first step of an optimiser loads this module. Loaded while there is a group, it keeps the group as the default of
# its functions forever, and gloo's threads with it; one of them may then end a finished process with SIGABRT at exit.
import torch.distributed.nn.functional
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

import frevl.errors
from frevl.errors import FrevlError, RunError, TrainingError
from frevl.training.workers.shared_dropout import DropoutOfTheBatch
from frevl.training.workers.team import TEAM, Place, Share, Team
from frevl.version import __version__

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["Together", "WorkerEndedError", "error_of", "joined"]

T = TypeVar("T")

_PATIENCE = timedelta(minutes=30)  # time to wait for a slow worker, or one whose machine has lost power
_REASON_SECONDS = 5.0  # time to wait for the reason of a failure


class WorkerEndedError(TrainingError):
    """Another worker is gone for an unknown reason."""


class _Gathered(torch.autograd.Function):
    """Gather the rows of all workers; the gradient of a worker's own rows flows back to it.

    Every worker computes the same loss from the gathered rows, `counted_once`: divided by the number of workers. The
    gradient of its own rows, multiplied by that number, is therefore complete, and nothing has to be sent back.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], team: Together) -> Tensor:
        ctx.rows, ctx.size = slice(sum(counts[: team.rank]), sum(counts[: team.rank + 1])), team.size
        return torch.cat(team.all_rows(own, counts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.size * gradients[0][ctx.rows], None, None


class _GatheredForOwn(torch.autograd.Function):
    """Gather the rows of all workers, each of which computes a loss of its own; their gradients are added up."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, counts: list[int], team: Together) -> Tensor:
        ctx.rows, ctx.team = slice(sum(counts[: team.rank]), sum(counts[: team.rank + 1])), team
        return torch.cat(team.all_rows(own, counts))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return ctx.team.added(gradients[0])[ctx.rows], None, None


class _Part:
    """Some rows of a batch."""

    def __init__(self, team: Together, places: Tensor, count: int, weight: float, counts: list[int]) -> None:
        self._team, self._places, self._count = team, places, count
        self._weight, self._counts = weight, counts

    def of(self, rows: Tensor) -> Tensor:
        return rows[self._places.to(rows.device)]

    def weighed(self, mean: Tensor) -> Tensor:
        return mean * self._weight

    def gathered(self, vectors: Tensor) -> Tensor:
        own = vectors[: self._counts[self._team.rank]]  # without the unused row computed by a worker that has none
        whole: Tensor = _Gathered.apply(own.float(), self._counts, self._team)  # type: ignore[no-untyped-call]
        return whole

    def both_gathered(self, one: Tensor, other: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor]:
        both, widths, part = torch.cat([one, other], 1), [one.shape[1], other.shape[1]], self
        if chosen is not None:
            ends = torch.tensor(self._counts).cumsum(0)
            counts = torch.searchsorted(chosen.cpu(), ends).diff(prepend=ends.new_zeros(1)).tolist()
            before, rank = sum(counts[: self._team.rank]), self._team.rank
            both = both[chosen[before : before + counts[rank]] - sum(self._counts[:rank])]
            part = _Part(self._team, self._places, self._count, self._weight, counts)
        first, second = torch.split(part.gathered(both), widths, 1)
        return first, second

    def gathered_for_own(self, vectors: Tensor) -> Tensor:
        whole: Tensor = _GatheredForOwn.apply(vectors.float(), self._counts, self._team)  # type: ignore[no-untyped-call]
        return whole

    def counted_once(self, loss: Tensor) -> Tensor:
        return loss / self._team.size

    def dropping(self) -> AbstractContextManager[object]:
        return DropoutOfTheBatch(self._places, self._count)

    def among(self, places: Tensor, count: int) -> Share:
        return _Part(self._team, places, count, self._weight, self._counts)

    def of_items(self, rows: Tensor, items: Tensor) -> Share:
        whole = torch.unique(rows)
        return self.among(torch.searchsorted(whole, items), len(whole))

    def with_partners(self, partners: Tensor) -> tuple[Share, Tensor]:
        own = len(self._places)
        both = torch.cat([self._places, partners.cpu()[self._places]])
        return self.among(both, self._count), torch.arange(own, 2 * own)

    def first(self, rows: Tensor) -> Tensor:
        return rows[: len(self._places)]


class Together:
    """One of several workers.

    Args:
        store: Store of torch distributed, through which failures are reported; this team's own part of it.
        place: This worker's place among all.
        backend: Backend of the process group.
        ended: Returns which worker has ended, as far as this process knows.
    """

    def __init__(self, store: Store, place: Place, backend: str, ended: Callable[[], str] = lambda: "") -> None:
        self._store, self._place, self._ended = store, place, ended
        self.rank, self.size = place.rank, place.size
        self._carrier = "cuda" if "nccl" in backend else "cpu"  # device of the tensors sent
        self._sent: list[bool] = []  # which parameters had a gradient in the last step, on any worker
        with self._talking():
            dist.init_process_group(
                backend, store=PrefixStore("group", store), rank=self.rank, world_size=self.size, timeout=_PATIENCE
            )

    @property
    def leads(self) -> bool:
        """Return whether this is worker 0."""
        return self.rank == 0

    def share(self, count: int) -> Share:
        """Return a contiguous share; a worker without any row computes the first one, with weight 0."""
        counts = [len(part) for part in torch.arange(count).tensor_split(self.size)]
        start = sum(counts[: self.rank])
        places = torch.arange(start, start + counts[self.rank]) if counts[self.rank] else torch.arange(min(1, count))
        return _Part(self, places, count, counts[self.rank] / max(1, count), counts)

    def summed(
        self, parameters: Sequence[Tensor], loss: Tensor, terms: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum gradients and losses in a single message."""
        values = torch.stack([loss.detach().float(), *(term.detach().float() for term in terms.values())])
        has = torch.tensor([float(parameter.grad is not None) for parameter in parameters])
        if len(self._sent) != len(parameters):
            self._sent = [True] * len(parameters)
        sent = [parameter for parameter, was in zip(parameters, self._sent, strict=True) if was]
        whole = self._sum_gradients(sent, torch.cat([has.to(values.device), values]))
        has, values = whole[: len(has)].cpu(), whole[len(has) :]
        # Maps that the embeddings do not need (a fifth of `tiny`) are not sent again, unless a worker has used one now.
        news = [p for p, was, workers in zip(parameters, self._sent, has.tolist(), strict=True) if workers and not was]
        if news:
            self._sum_gradients(news, values[:0])
        self._sent = [bool(workers) for workers in has.tolist()]
        for parameter, workers in zip(parameters, self._sent, strict=True):
            if not workers:
                parameter.grad = None
        return values[0], dict(zip(terms, values[1:], strict=True))

    def _sum_gradients(self, parameters: Sequence[Tensor], numbers: Tensor) -> Tensor:
        """Sum the gradients of some parameters, in place, and some numbers; return the sums of the numbers."""
        parts = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
            for parameter in parameters
        ]
        flat = torch.cat([*parts, numbers]).to(self._carrier)
        with self._talking():
            dist.all_reduce(flat)
        *sums, numbers = torch.split(flat, [*(len(part) for part in parts), len(numbers)])
        for parameter, summed in zip(parameters, sums, strict=True):
            parameter.grad = summed.view_as(parameter).to(parameter.device)
        return numbers.clone()

    def all_rows(self, own: Tensor, counts: list[int]) -> list[Tensor]:
        """Return the ``(k, d)`` rows of every worker; their numbers are known."""
        most = max(counts)
        if most == 0:
            return [own]
        padded = torch.zeros(most, *own.shape[1:], device=self._carrier)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in counts]
        with self._talking():
            dist.all_gather(parts, padded)
        return [part[:count].to(own.device) for part, count in zip(parts, counts, strict=True)]

    def added(self, values: Tensor) -> Tensor:
        """Return the sum of every worker's ``(n, d)`` values."""
        sent = values.to(self._carrier).contiguous().clone()
        with self._talking():
            dist.all_reduce(sent)
        return sent.to(values.device)

    def agreed(self, value: T) -> T:
        """Return worker 0's value."""
        return self.decided(lambda: value)

    def decided(self, find: Callable[[], T]) -> T:
        """Let worker 0 compute a value and send it to the others."""
        box: list[Any] = [find() if self.leads else None]
        with self._talking():
            dist.broadcast_object_list(box, src=0)
        found: T = box[0]
        return found

    def aligned(self, network: nn.Module) -> None:
        """Send worker 0's weights, those of a number type in a single message."""
        weights = [values.detach() for values in (*network.parameters(), *network.buffers())]
        for kind in sorted({values.dtype for values in weights}, key=str):
            some = [values for values in weights if values.dtype == kind]
            sent = torch.cat([values.flatten() for values in some]).to(self._carrier)
            with self._talking():
                dist.broadcast(sent, src=0)
            for values, found in zip(some, torch.split(sent, [values.numel() for values in some]), strict=True):
                values.copy_(found.view_as(values))

    def device(self, wanted: str) -> str:
        """Return one of the devices of this machine."""
        there = torch.cuda.device_count() if wanted == "cuda" else 0
        return f"cuda:{self._place.local_rank % there}" if there else wanted

    def same(self, what: Mapping[str, Any]) -> None:
        """Compare with the other workers."""
        every: list[Any] = [None] * self.size
        with self._talking():
            dist.all_gather_object(every, dict(what))
        for rank, other in enumerate(every):
            for name, value in every[0].items():
                if other.get(name) != value:
                    raise RunError(
                        f"Worker {rank} of {self.size}: expected the same '{name}' as worker 0 has, {value!r:.200}, "
                        f"found {other.get(name)!r:.200}; all workers need the same version, command, pairs and store"
                    )

    def leave(self, error: BaseException | None) -> None:
        """Finish this worker, telling the others the reason if something went wrong.

        Raises:
            FrevlError: Another worker has failed although this one has not.
        """
        if error is None:
            self.same({})  # no worker finishes before worker 0 has saved the run
        elif not isinstance(error, WorkerEndedError) and not getattr(error, "from_worker", False):
            with suppress(RuntimeError):
                self._store.set(f"error {self.rank}", _report(error, self.rank))
        dist.destroy_process_group()
        if error is not None and self.leads:
            time.sleep(0.5)  # worker 0 may host the store, from which the others learn the reason

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Turn a communication failure into the error of the worker that failed."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise self._reason(error) from error

    def _reason(self, error: RuntimeError) -> FrevlError:
        until = time.monotonic() + _REASON_SECONDS
        with suppress(RuntimeError):  # the store ends with the worker that hosts it
            while time.monotonic() < until:
                for rank in range(self.size):
                    if self._store.check([f"error {rank}"]):
                        return error_of(*json.loads(self._store.get(f"error {rank}").decode()))
                if ended := self._ended():
                    return WorkerEndedError(f"{ended}; {_GO_ON}")
                time.sleep(0.1)
        lines = str(error).splitlines() or [type(error).__name__]
        return WorkerEndedError(
            f"Another of the {self.size} workers has ended, or cannot be reached ({lines[0]:.160}); {_GO_ON}"
        )


_GO_ON = "every complete epoch is kept: run the same command again to continue"


def _report(error: BaseException, rank: int) -> str:
    """Return the report of an error for the other workers."""
    if isinstance(error, FrevlError):
        return json.dumps([type(error).__name__, str(error)])
    return json.dumps(["TrainingError", f"Worker {rank} failed: {type(error).__name__}: {error}"])


def error_of(name: str, message: str) -> FrevlError:
    """Return the error of another worker; some kinds take other arguments than their message."""
    kind = WorkerEndedError if name == WorkerEndedError.__name__ else getattr(frevl.errors, name, TrainingError)
    error: FrevlError = kind.__new__(kind)
    Exception.__init__(error, message)
    error.from_worker = True  # type: ignore[attr-defined]
    return error


@contextmanager
def joined(store: Store, place: Place, device: str, ended: Callable[[], str] = lambda: "") -> Iterator[Team]:
    """Be a worker during the block, and finish together with the others."""
    import torch

    from frevl.training.workers.distributed import Together

    own_device = device.startswith("cuda") and place.local_size <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if own_device else "gloo"
    team = Together(store, place, backend, ended)
    token = TEAM.set(team)
    try:
        team.same({"version of frevl": __version__, "version of torch": torch.__version__})
        yield team
    except BaseException as error:
        team.leave(error)
        raise
    else:
        team.leave(None)
    finally:
        TEAM.reset(token)
