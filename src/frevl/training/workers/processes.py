"""Workers on one machine: this process is worker 0, and starts the others."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from frevl.errors import FrevlError, TrainingError, UsageError
from frevl.machine import processors
from frevl.training.workers.distributed import joined
from frevl.training.workers.team import Place, Team

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = ["help_out", "with_helpers"]

_HERE = "127.0.0.1"
_START = "from frevl.training.workers.processes import help_out; help_out()"
_END_SECONDS = 20.0


@contextmanager
def with_helpers(work: Callable[..., Any], arguments: Mapping[str, Any], workers: int, device: str) -> Iterator[Team]:
    """Be worker 0 during the block; the others call the same function in separate processes.

    The helpers end with this process. The cores that one process would use are divided among them.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    before = torch.get_num_threads()
    threads = max(1, min(before, processors()) // workers)
    store = TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    helpers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(1, workers):
            place = Place(rank, workers, rank, workers)
            request = (place, store.port, device, threads, work, {**arguments, "progress": False})
            helpers.append(_started(request, threads))
        torch.set_num_threads(threads)
        _wait_for(helpers, store)
        with (
            _on_this_machine(),
            joined(store, Place(0, workers, 0, workers), device, lambda: _ended(helpers)) as team,
        ):
            yield team
        for helper in helpers:
            with suppress(subprocess.TimeoutExpired):
                helper.wait(_END_SECONDS)
    finally:
        torch.set_num_threads(before)
        for helper in helpers:
            helper.kill()
            helper.wait()
            if helper.stdin is not None:
                with suppress(OSError):
                    helper.stdin.close()


def _started(request: tuple[Any, ...], threads: int) -> subprocess.Popen[bytes]:
    try:
        message = pickle.dumps(request)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UsageError(
            f"--workers: these arguments cannot be passed to the other workers ({error}); give store and pairs as paths"
        ) from error
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        # Whatever can be imported here can be imported there, however it was found.
        "PYTHONPATH": os.pathsep.join(path or str(os.getcwd()) for path in sys.path),  # noqa: PTH109
    }
    # A separate session: Ctrl-C reaches only this process, which ends the others.
    helper = subprocess.Popen(  # noqa: S603 - this Python installation
        [sys.executable, "-c", _START], stdin=subprocess.PIPE, env=environment, start_new_session=True
    )
    if helper.stdin is not None:
        with suppress(BrokenPipeError):  # it has already ended, which `_wait_for` reports
            helper.stdin.write(message)
            helper.stdin.flush()
    return helper


def _wait_for(helpers: Sequence[subprocess.Popen[bytes]], store: Store) -> None:
    """Wait until all have started, which includes loading PyTorch."""
    for rank, _ in enumerate(helpers, 1):
        while not store.check([f"here {rank}"]):
            if ended := _ended(helpers):
                raise TrainingError(f"{ended} before the training began; run the same command again")
            time.sleep(0.02)


def _ended(helpers: Sequence[subprocess.Popen[bytes]]) -> str:
    """Return which helper ended without reporting an error."""
    for rank, helper in enumerate(helpers, 1):
        code = helper.poll()
        if code is not None and code < 0:
            with suppress(ValueError):
                return f"Worker {rank} of {len(helpers) + 1} was ended by {signal.Signals(-code).name}"
        if code:
            return f"Worker {rank} of {len(helpers) + 1} ended with exit code {code}"
    return ""


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """Restrict workers to the loopback device, so that nothing is reachable from other machines."""
    name = "GLOO_SOCKET_IFNAME"
    own = next((device for _, device in socket.if_nameindex() if device.startswith("lo")), None)
    if own is None or name in os.environ:
        yield
        return
    os.environ[name] = own
    try:
        yield
    finally:
        del os.environ[name]


def help_out() -> None:
    """Act as a worker started by another process, with instructions from standard input."""
    request = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the process that started this one
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    place, port, device, threads, work, arguments = request
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    torch.set_num_threads(threads)
    store = TCPStore(_HERE, port, is_master=False)
    store.set(f"here {place.rank}", "")
    code = 0
    try:
        with _on_this_machine(), joined(store, place, device):
            work(**arguments)
    except FrevlError:  # worker 0 reports it
        code = 3
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # torch distributed may wait at exit for a worker that is gone


def _end_with_the_other() -> None:
    """Exit when standard input closes, because it ends with the process at its other end."""
    sys.stdin.buffer.read()
    os._exit(3)
