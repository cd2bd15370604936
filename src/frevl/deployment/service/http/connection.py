"""Connections: none is waited for without end, none loses its last answer, and idle ones give way to new ones."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from frevl.deployment.service.http.fair_share import client_name
from frevl.deployment.service.http.middleware import CYCLE

__all__ = ["Connection", "OpenConnections", "allow_open_files"]

_HEAD_SECONDS = 15.0
_HEAD_BYTES = 64 << 10
_MOST_HELD = 64 << 10  # bytes
_MOST_PIPELINED = 16  # requests that a client may send before the answers to those before them
_LINGER_SECONDS, _LINGER_STEP = 60.0, 5.0
_OTHER_FILES = 512  # of the store, of libraries, and of connections that are being closed

_LARGE_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 49\r\nconnection: close\r\n\r\nThe head of a request may have 64 KiB; send less."
)


def allow_open_files(connections: int) -> int:
    """Let this process open as many files as that many connections need, as far as the system lets it.

    Returns:
        How many connections there may be; fewer where the system's hard limit is lower.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(connections, soft - min(_OTHER_FILES, soft // 2)))
    return connections


class OpenConnections:
    """All connections of a service. If there are too many, the longest idle one of the client with the most gives way.

    So a client that hoards connections loses them to those who come after it, and nobody is turned away.

    Args:
        most: How many may be open; 0 for any number.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._count: dict[str, int] = {}
        self._idle: dict[str, dict[Connection, None]] = {}
        self._total = 0

    def add(self, connection: Connection) -> None:
        """Count a new connection, which is idle until the head of a request has arrived."""
        name = connection.client_name
        self._count[name] = self._count.get(name, 0) + 1
        self._idle.setdefault(name, {})[connection] = None
        self._total += 1
        if self._most and self._total > self._most:
            greediest = max((name for name, idle in self._idle.items() if idle), key=self._count.__getitem__)
            other = next(iter(self._idle[greediest]))
            self.remove(other)
            other.give_way()

    def set_idle(self, connection: Connection, idle: bool) -> None:
        """Note that a connection has begun or finished a request."""
        others = self._idle.get(connection.client_name)
        if others is None or not connection.counted:
            return
        if idle:
            others[connection] = None
        else:
            others.pop(connection, None)

    def remove(self, connection: Connection) -> None:
        """Stop counting a connection."""
        if not connection.counted:
            return
        connection.counted = False
        name = connection.client_name
        self._total -= 1
        self._idle[name].pop(connection, None)
        self._count[name] -= 1
        if not self._count[name]:
            del self._count[name], self._idle[name]


class Connection(HttpToolsProtocol):
    """Closes a connection whose client does not finish the head of a request in 15 seconds, or in 64 KiB.

    uvicorn itself waits for the first byte of a further request only, so that clients that send a byte now and then
    could hold any number of connections. uvicorn also sends head and body of an answer one by one; here they leave
    together. And where an answer comes before the end of the body, for example because the body is too large, uvicorn
    closes at once: the system then throws away the answer with the rest of the body. Here the rest is read first.
    """

    def __init__(self, *args: Any, open_connections: OpenConnections | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._others = open_connections or OpenConnections()
        self._impatience: asyncio.TimerHandle | None = None
        self._head_bytes: int | None = 0  # None while a body arrives
        self._arriving = False
        self._news = False
        self.client_name = ""
        self.counted = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(_OnePiece(transport, self))
        self.client_name = client_name(self.client[0] if self.client else "")
        self._be_impatient()
        self._others.add(self)

    def data_received(self, data: bytes) -> None:
        """Read, but no endless head, and nothing after the last answer."""
        self._news = True
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._head_bytes is not None and self._arriving:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_LARGE_HEAD)
                self.transport.close()
        if len(self.pipeline) > _MOST_PIPELINED:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """Start to wait for the head of a request."""
        super().on_message_begin()
        self._head_bytes, self._arriving = 0, True
        self._be_impatient()

    def on_headers_complete(self) -> None:
        """Stop waiting: the middleware watches over the body."""
        self._head_bytes = None
        self._be_patient()
        super().on_headers_complete()
        cast("dict[str, Any]", self.scope)["extensions"] = {CYCLE: self.cycle}
        self._others.set_idle(self, False)

    def on_message_complete(self) -> None:
        """Stop waiting for the rest of a body that was refused."""
        self._arriving = False
        self._be_patient()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start to wait for the rest of the body, if the answer came before it."""
        super().on_response_complete()
        if not self.pipeline:
            self._others.set_idle(self, True)
        if self._arriving and not self.transport.is_closing():
            self._be_impatient()

    def send_400_response(self, msg: str) -> None:
        """Say that this is no HTTP; whatever else comes is not looked at."""
        self._arriving = True
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._be_patient()
        self._others.remove(self)
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, also where the client has not read its last answer."""
        self.transport.abort()

    def shutdown(self) -> None:
        """End an idle connection, and let another one finish its request."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()

    def give_way(self) -> None:
        """Close this idle connection, because there are too many."""
        self.transport.abort()

    @property
    def has_unread(self) -> bool:
        """Whether the client may still be sending, so that closing at once would lose the answer."""
        return self._arriving

    def linger(self) -> None:
        """Go on reading after the last answer, until the client has closed or sends nothing for some seconds."""
        self._be_patient()
        self.flow.resume_reading()
        self._news = False
        self._others.set_idle(self, True)
        self._linger_until(self.loop.time() + _LINGER_SECONDS)

    def wait_for_the_last_bytes(self) -> None:
        """Give the client some time to read what was written before the close."""
        self._be_patient()
        self._impatience = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _linger_until(self, end: float) -> None:
        self._impatience = self.loop.call_later(_LINGER_STEP, self._linger_on, end)

    def _linger_on(self, end: float) -> None:
        if self._news and self.loop.time() < end:
            self._news = False
            self._linger_until(end)
        else:
            self.transport.abort()

    def _be_impatient(self) -> None:
        self._be_patient()
        self._impatience = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


class _OnePiece(asyncio.Transport):
    """Sends what one step of the event loop writes in one piece: a system call is a tenth of a request.

    What is large, or comes before a close, is handed on at once, so that uvicorn hears when a client reads too slowly.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self._transport, self._connection = transport, connection
        self._held: list[bytes | bytearray | memoryview] = []
        self._size = 0
        self._lingers = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hold data until the end of this step."""
        if self._lingers:
            return
        if not self._held:
            self._connection.loop.call_soon(self._hand_on)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST_HELD:
            self._hand_on()

    def close(self) -> None:
        """Hand on what is held, and close; where the client may be in the middle of a body, only after that."""
        self._hand_on()
        if self.is_closing():
            return
        if self._connection.has_unread and self._transport.can_write_eof():
            self._lingers = True
            self._transport.write_eof()
            self._connection.linger()
        else:
            self._transport.close()
            self._connection.wait_for_the_last_bytes()

    def abort(self) -> None:
        """Close at once."""
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether it is closed or closing."""
        return self._lingers or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what the transport knows of its connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Receive nothing."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Receive again."""
        self._transport.resume_reading()

    def _hand_on(self) -> None:
        if self._held:
            held, self._held, self._size = b"".join(self._held), [], 0
            self._transport.write(held)
