"""Being one of several workers, from the first message to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from frevl.training.workers.team import ALONE, Place, Team
from frevl.version import __version__

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["current_team", "joined"]

_TEAM: ContextVar[Team] = ContextVar("frevl_team", default=ALONE)


def current_team() -> Team:
    """Return the workers that this process is one of; itself alone, if it is none."""
    return _TEAM.get()


@contextmanager
def joined(store: Store, place: Place, device: str, ended: Callable[[], str] = lambda: "") -> Iterator[Team]:
    """Be a worker while the block runs, and end with all of them."""
    import torch

    from frevl.training.workers.together import Together

    own_device = device.startswith("cuda") and place.local_size <= torch.cuda.device_count()
    backend = "cpu:gloo,cuda:nccl" if own_device else "gloo"
    team = Together(store, place, backend, ended)
    token = _TEAM.set(team)
    try:
        team.same({"version of frevl": __version__, "version of torch": torch.__version__})
        yield team
    except BaseException as error:
        team.leave(error)
        raise
    else:
        team.leave(None)
    finally:
        _TEAM.reset(token)
