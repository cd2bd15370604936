"""Whether the head of a cluster still answers: Ray itself asks for a minute, and then ends this process."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from frevl.errors import FrevlError

__all__ = ["Head"]

_PATIENCE = 15.0  # seconds; one that is only busy answers a connection sooner
_BETWEEN = 2.0  # seconds from one look at it to the next


class Head:
    """The head of the cluster that this process is connected to.

    Workers and this process go on talking to each other for a while after their head is gone, so nothing else says so.

    Args:
        ray: The module, connected.

    Attributes:
        address: Where it is.
        is_gone: Whether it was found to be gone.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self.is_gone = False
        self.address = str(ray.get_runtime_context().gcs_address)
        self._answered = self._asked = time.monotonic()

    def check(self) -> None:
        """Look whether it answers, unless that was just done.

        Raises:
            FrevlError: It has not answered for some time.
        """
        now = time.monotonic()
        if now - self._asked < _BETWEEN:
            return
        if now - self._asked > _PATIENCE:  # nobody asked meanwhile, so its silence is no longer than this
            self._answered = now
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_BETWEEN).close()
            self._answered = time.monotonic()
        except OSError:
            pass
        self._asked = time.monotonic()
        self.is_gone = self._asked - self._answered >= _PATIENCE
        if self.is_gone:
            raise FrevlError(
                f"--ray: the head of the cluster, {self.address}, has not answered for "
                f"{self._asked - self._answered:.0f} s; everything done so far is kept: start a cluster again, and run "
                "the same command to continue"
            )

    def wait(self, ones: Sequence[Any], timeout: float | None = None, count: int = 1) -> tuple[list[Any], list[Any]]:
        """Wait as ``ray.wait`` does, and look at the head meanwhile.

        Args:
            ones: What to wait for.
            timeout: Seconds; None waits on.
            count: Of how many.

        Returns:
            Those that are there, and the others.

        Raises:
            FrevlError: The head has not answered for some time.
        """
        until = float("inf") if timeout is None else time.monotonic() + timeout
        while True:
            self.check()
            left = max(until - time.monotonic(), 0.0)
            there, others = self._ray.wait(list(ones), num_returns=count, timeout=min(left, _BETWEEN))
            if len(there) >= count or time.monotonic() >= until:
                return there, others
