"""Check whether the head node of a cluster still answers; Ray itself waits a minute, and then ends this process."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from frevl.errors import FrevlError

__all__ = ["Head"]

_PATIENCE = 15.0  # seconds; a head that is merely busy accepts a connection sooner
_BETWEEN = 2.0  # seconds between checks


class Head:
    """The head node of the cluster to which this process is connected.

    Workers and this process keep communicating for a while after their head is gone, so nothing else reports the loss.

    Args:
        ray: The connected module ``ray``.

    Attributes:
        address: Address of the head node.
        is_gone: Whether the head was found to be gone.
    """

    def __init__(self, ray: ModuleType) -> None:
        self._ray = ray
        self.is_gone = False
        self.address = str(ray.get_runtime_context().gcs_address)
        self._answered = self._asked = time.monotonic()

    def check(self) -> None:
        """Check whether the head answers, unless that was just done.

        Raises:
            FrevlError: The head has not answered for some time.
        """
        now = time.monotonic()
        if now - self._asked < _BETWEEN:
            return
        if now - self._asked > _PATIENCE:  # without checks in between, it cannot be said to have been silent
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
                f"{self._asked - self._answered:.0f} s; completed work is kept: start a cluster again, and run the "
                "same command to continue"
            )

    def wait(self, ones: Sequence[Any], timeout: float | None = None, count: int = 1) -> tuple[list[Any], list[Any]]:
        """Wait as ``ray.wait`` does, checking the head meanwhile.

        Args:
            ones: Objects to wait for.
            timeout: Seconds; None waits indefinitely.
            count: Number of objects to wait for.

        Returns:
            The objects that are ready, and the others.

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
