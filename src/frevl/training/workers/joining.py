"""Make a process one of several workers, started by another process here, or by torchrun, Slurm and the like."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, Any

from frevl.errors import FrevlError, TrainingError, UsageError
from frevl.training.workers.team import ALONE, Place, Team, current_team

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["one_voice", "place_of", "workers_asked", "working_together"]

_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_ARRIVAL = timedelta(minutes=10)  # time limit for all workers to join
_teams = count()  # numbers this process's teams: each has its own part of the store


def place_of(environment: Mapping[str, str]) -> Place | None:
    """Read a process's place from torchrun's environment variables; None if it is alone.

    Raises:
        UsageError: Some are missing or wrong.
    """
    if int(_number(environment, "WORLD_SIZE", "1")) < 2:
        return None
    for name in _NAMES:
        if not environment.get(name):
            raise UsageError(
                f"WORLD_SIZE is {environment['WORLD_SIZE']}, and {name} is not set: a worker needs "
                f"{', '.join(_NAMES)}, as torchrun sets them; unset WORLD_SIZE to train in one process"
            )
    size = _number(environment, "WORLD_SIZE")
    place = Place(
        _number(environment, "RANK"),
        size,
        _number(environment, "LOCAL_RANK", environment["RANK"]),
        _number(environment, "LOCAL_WORLD_SIZE", "1"),
    )
    if place.rank >= size:
        raise UsageError(f"RANK is {place.rank}, expected a number below WORLD_SIZE, which is {size}")
    return place


def _number(environment: Mapping[str, str], name: str, otherwise: str = "") -> int:
    text = environment.get(name, otherwise)
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{name} is '{text:.40}', expected a whole number, as torchrun sets it")
    return int(text)


@contextmanager
def working_together(
    work: Callable[..., Any], arguments: Mapping[str, Any], *, workers: int | None, device: str
) -> Iterator[Team]:
    """Make this process one of several workers during the block, starting the others if necessary.

    Args:
        work: The running function, which the other workers call too.
        arguments: Arguments of that call.
        workers: Number of workers; None takes it from the environment, else one.
        device: Device of the training.

    Raises:
        UsageError: The number differs from that of the environment, or the arguments cannot be sent.
        TrainingError: A worker did not join, or has ended.
        FrevlError: The error with which another worker failed.
    """
    count_wanted = workers_asked(workers)
    if current_team().size > 1:
        yield current_team()
    elif count_wanted == 1:
        yield ALONE
    elif (place := place_of(os.environ)) is not None:
        from torch.distributed import PrefixStore  # type: ignore[attr-defined]

        from frevl.training.workers.distributed import joined

        store = PrefixStore(f"team {next(_teams)}", _store_of_environment())
        with joined(store, place, device) as team:
            yield team
    else:
        from frevl.training.workers.processes import with_helpers

        with with_helpers(work, arguments, count_wanted, device) as team:
            yield team


def workers_asked(workers: int | None) -> int:
    """Return the number of workers; by default, as many as torchrun started.

    Raises:
        UsageError: Fewer than one, or a different number from that started by torchrun.
    """
    if current_team().size > 1:
        return current_team().size
    place = place_of(os.environ) if workers != 1 else None
    if workers is not None and workers < 1:
        raise UsageError(f"--workers: expected at least 1, found {workers}")
    if place is not None and workers not in (None, place.size):
        raise UsageError(f"--workers: found {workers}, but WORLD_SIZE is {place.size}; leave out --workers")
    return place.size if place is not None else workers or 1


@cache
def _store_of_environment() -> Store:
    """Connect to the other workers as specified by the environment."""
    from torch.distributed import rendezvous  # type: ignore[attr-defined]

    try:
        store: Store = next(iter(rendezvous("env://", timeout=_ARRIVAL)))[0]
    except (RuntimeError, ValueError) as error:
        raise TrainingError(
            f"Could not connect to the other workers at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({str(error).splitlines()[0]:.160}); MASTER_ADDR must be the machine of RANK 0, with a free port"
        ) from error
    return store


@contextmanager
def one_voice() -> Iterator[bool]:
    """Let one worker print for all; yield whether this is the one (always true for a single worker).

    Errors are also reported once: by worker 0, which learns of them from the others, or by all if it is gone.
    """
    place = place_of(os.environ)
    if place is None or place.rank == 0:
        yield True
        return
    from frevl.training.workers.distributed import WorkerEndedError

    try:
        yield False
    except WorkerEndedError:
        raise
    except FrevlError as error:
        sys.exit(2 if isinstance(error, UsageError) else 1)
