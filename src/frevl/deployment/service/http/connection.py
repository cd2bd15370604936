"""Connections of clients: with time limits, without lost answers, and idle ones give way to new ones."""

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
_MOST_PIPELINED = 16  # requests that a client may send before earlier ones are answered
_LINGER_SECONDS, _LINGER_STEP = 60.0, 5.0
_OTHER_FILES = 512  # files of the store, of libraries, and of connections being closed

_LARGE_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 49\r\nconnection: close\r\n\r\nRequest headers may have at most 64 KiB in total."
)


def allow_open_files(connections: int) -> int:
    """Raise this process's limit on open files to suit a number of connections, as far as the system allows.

    Returns:
        The possible number of connections; fewer if the system's hard limit is lower.
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
    """All connections of a service. If there are too many, the client with the most loses its longest-idle one.

    So a client that hoards connections loses them to newcomers, and nobody is turned away.

    Args:
        most: Maximum number of open connections; 0 for no limit.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._count: dict[str, int] = {}
        self._idle: dict[str, dict[Connection, None]] = {}
        self._total = 0

    def add(self, connection: Connection) -> None:
        """Count a new connection, which is idle until a request's headers have arrived."""
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
        """Record that a connection has begun or finished a request."""
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
    """Close a connection whose client does not complete a request's headers within 15 seconds or 64 KiB.

    uvicorn itself has a timeout only for the first byte of a further request, so clients that trickle bytes could hold
    any number of connections. uvicorn also sends the headers and body of an answer separately; here they leave
    together. And if an answer precedes the end of the body, for example because the body is too large, uvicorn closes
    at once and the system discards the answer along with the rest of the body. Here the rest is read first.
    """

    def __init__(self, *args: Any, open_connections: OpenConnections | None = None, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._others = open_connections or OpenConnections()
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes: int | None = 0  # None while a body is arriving
        self._arriving = False
        self._news = False
        self.client_name = ""
        self.counted = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first request."""
        super().connection_made(_OnePiece(transport, self))
        self.client_name = client_name(self.client[0] if self.client else "")
        self._start_timer()
        self._others.add(self)

    def data_received(self, data: bytes) -> None:
        """Read data, but refuse endless headers and anything after the last answer."""
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
        """Start waiting for a request's headers."""
        super().on_message_begin()
        self._head_bytes, self._arriving = 0, True
        self._start_timer()

    def on_headers_complete(self) -> None:
        """Stop waiting: the middleware watches the body."""
        self._head_bytes = None
        self._stop_timer()
        super().on_headers_complete()
        cast("dict[str, Any]", self.scope)["extensions"] = {CYCLE: self.cycle}
        self._others.set_idle(self, False)

    def on_message_complete(self) -> None:
        """Stop waiting for the rest of a refused body."""
        self._arriving = False
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start waiting for the rest of the body, if the answer came first."""
        super().on_response_complete()
        if not self.pipeline:
            self._others.set_idle(self, True)
        if self._arriving and not self.transport.is_closing():
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer that this is not HTTP; anything further is ignored."""
        self._arriving = True
        super().send_400_response(msg)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_timer()
        self._others.remove(self)
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if the client has not read its last answer."""
        self.transport.abort()

    def shutdown(self) -> None:
        """Close an idle connection; let a busy one finish its request."""
        if self.transport.is_closing():
            self.transport.abort()
        else:
            super().shutdown()

    def give_way(self) -> None:
        """Close this idle connection because there are too many."""
        self.transport.abort()

    @property
    def has_unread(self) -> bool:
        """Return whether the client may still be sending, so that closing at once would lose the answer."""
        return self._arriving

    def linger(self) -> None:
        """Keep reading after the last answer until the client closes or is silent for some seconds."""
        self._stop_timer()
        self.flow.resume_reading()
        self._news = False
        self._others.set_idle(self, True)
        self._linger_until(self.loop.time() + _LINGER_SECONDS)

    def wait_for_the_last_bytes(self) -> None:
        """Give the client time to read what was written before the close."""
        self._stop_timer()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _linger_until(self, end: float) -> None:
        self._timer = self.loop.call_later(_LINGER_STEP, self._linger_on, end)

    def _linger_on(self, end: float) -> None:
        if self._news and self.loop.time() < end:
            self._news = False
            self._linger_until(end)
        else:
            self.transport.abort()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _OnePiece(asyncio.Transport):
    """Send everything written in one step of the event loop at once: a system call is a tenth of a request's time.

    Large writes, and those before a close, are passed on immediately, so that uvicorn notices slow readers.
    """

    def __init__(self, transport: asyncio.Transport, connection: Connection) -> None:
        super().__init__()
        self._transport, self._connection = transport, connection
        self._held: list[bytes | bytearray | memoryview] = []
        self._size = 0
        self._lingers = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Buffer data until the end of this step."""
        if self._lingers:
            return
        if not self._held:
            self._connection.loop.call_soon(self._hand_on)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST_HELD:
            self._hand_on()

    def close(self) -> None:
        """Pass on buffered data and close; if the client may still be sending a body, close only after it."""
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
        """Return the transport's information about its connection."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Pause receiving."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume receiving."""
        self._transport.resume_reading()

    def _hand_on(self) -> None:
        if self._held:
            held, self._held, self._size = b"".join(self._held), [], 0
            self._transport.write(held)
