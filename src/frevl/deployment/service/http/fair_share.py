"""Track what each client occupies of the service, and who gives way when it is full.

A request is in one of two states. It *waits for its client* while its body arrives or a large answer is read: that
costs little, lasts as long as the client likes, and can be ended at any time. Or it *is worked on*, which ends by
itself. So waiting requests never take the place of work, and when there are too many, the oldest one of the client that
holds the most gives way to the new one.
"""

from __future__ import annotations

import ipaddress
from contextvars import ContextVar
from functools import lru_cache
from typing import Protocol

from frevl.deployment.service.http.limits import Limits, RefusedError

__all__ = ["ASKING", "Client", "FairShare", "Waiting", "client_name"]

ASKING: ContextVar[str] = ContextVar("ASKING", default="")
"""Name of the client whose request this task answers; empty outside requests."""


@lru_cache(maxsize=4096)
def client_name(address: str) -> str:
    """Return what distinguishes clients: an IPv4 address, or the network of an IPv6 address.

    Args:
        address: Address as given by the socket or a trusted proxy.

    Returns:
        The first 64 bits of an IPv6 address, because a single customer owns all addresses of such a network; anything
        else unchanged.
    """
    try:
        known = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(known) >> 64 << 64, 64)))
    return str(known)


class Waiting(Protocol):
    """A request that may have to give way."""

    held: int
    """Bytes of its body and of its answer in memory."""

    def give_way(self) -> None:
        """End the request, which no longer counts as waiting."""


class Client:
    """What one client occupies.

    Attributes:
        name: Name that identifies it.
        open: Its requests, in any state.
        requests: Requests being worked on.
        bytes: Bytes of all its requests in memory.
        waiting: Its requests that wait for it, oldest first.
    """

    __slots__ = ("bytes", "name", "open", "requests", "waiting")

    def __init__(self, name: str) -> None:
        self.name = name
        self.open = self.requests = self.bytes = 0
        self.waiting: dict[Waiting, None] = {}


class FairShare:
    """Counts what all clients occupy.

    Args:
        limits: Limits on all clients together and on each of them.

    Attributes:
        requests: Requests being worked on.
        waiting: Requests that wait for their clients.
        bytes: Bytes of all requests in memory.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._share = limits.client_share
        self.requests = self.waiting = self.bytes = 0
        self._clients: dict[str, Client] = {}

    def enter(self, name: str) -> Client:
        """Register a client's request; `leave` ends it."""
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = Client(name)
        client.open += 1
        return client

    def leave(self, client: Client) -> None:
        """End a client's request, and forget a client that has no others."""
        client.open -= 1
        if client.open == 0:
            del self._clients[client.name]

    def check(self, client: Client) -> None:
        """Refuse a request that cannot be worked on now.

        Raises:
            RefusedError: 503 if all clients together have too many active requests, 429 if this one has.
        """
        most = self._limits.requests
        if self.requests >= most:
            raise RefusedError(503, "overloaded", f"{most} requests are in progress; try again later.", retry_after=1)
        if client.requests and client.requests >= most * self._share:
            raise RefusedError(
                429,
                "client_limit",
                f"{client.requests} requests of this client are in progress, which is its share; try again later.",
                retry_after=1,
            )

    def begin_work(self, client: Client) -> None:
        """Count a request as being worked on.

        Raises:
            RefusedError: As `check`.
        """
        self.check(client)
        self.requests += 1
        client.requests += 1

    def end_work(self, client: Client) -> None:
        """Undo `begin_work`."""
        self.requests -= 1
        client.requests -= 1

    def begin_wait(self, client: Client, request: Waiting) -> None:
        """Count a request that waits for its client; if there are too many, one of them gives way."""
        client.waiting[request] = None
        self.waiting += 1
        most = self._limits.waiting_requests
        if len(client.waiting) > max(1, most * self._share):
            self._end(client)
        elif self.waiting > most:
            self._end(max(self._clients.values(), key=lambda one: len(one.waiting)))

    def end_wait(self, client: Client, request: Waiting) -> None:
        """Undo `begin_wait`; does nothing if the request gave way."""
        if client.waiting.pop(request, self) is None:
            self.waiting -= 1

    def hold(self, client: Client, request: Waiting, size: int) -> None:
        """Count a request's bytes; if there are too many, waiting requests give way.

        Raises:
            RefusedError: 503 if no other request can give way, 429 if those of this client are being worked on.
        """
        request.held += size
        client.bytes += size
        self.bytes += size
        most = self._limits.held_bytes
        while self.bytes > most:
            holders = [one for one in self._clients.values() if any(other.held for other in one.waiting)]
            giver = max(holders, key=lambda one: one.bytes, default=None)
            if giver is None or not self._end_largest(giver, request):
                raise RefusedError(
                    503, "overloaded", "Too many large requests are in progress; try again later.", retry_after=1
                )
        while client.bytes > max(request.held, most * self._share):
            if not self._end_largest(client, request):
                raise RefusedError(
                    429,
                    "client_limit",
                    "Too many large requests of this client are in progress; try again later.",
                    retry_after=1,
                )

    def free(self, client: Client, request: Waiting) -> None:
        """Undo all of `hold`."""
        self.bytes -= request.held
        client.bytes -= request.held
        request.held = 0

    def _end(self, client: Client) -> None:
        """End the oldest waiting request of a client."""
        request = next(iter(client.waiting))
        self.end_wait(client, request)
        request.give_way()

    def _end_largest(self, client: Client, asking: Waiting) -> bool:
        """End a client's first waiting request that holds bytes, unless it is the calling one."""
        request = next((one for one in client.waiting if one.held and one is not asking), None)
        if request is None:
            return False
        self.end_wait(client, request)
        self.free(client, request)
        request.give_way()
        return True
