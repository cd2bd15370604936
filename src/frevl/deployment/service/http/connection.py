"""A connection of uvicorn's that waits for nothing for ever, reads no endless head, and answers in one piece."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]

_HEAD_SECONDS = 15.0
_HEAD_BYTES = 64 << 10
_MOST_HELD = 64 << 10  # bytes

_LARGE_HEAD = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: text/plain; charset=utf-8\r\n"
    b"content-length: 49\r\nconnection: close\r\n\r\nThe head of a request may have 64 KiB; send less."
)


class Connection(HttpToolsProtocol):
    """Closes a connection whose client does not finish the head of a request in 15 seconds, or in 64 KiB.

    uvicorn itself waits for the first byte of a further request only, so that clients that send a byte now and then
    could hold any number of connections. The same holds for a body that was refused before it was complete: its rest
    has 15 seconds. uvicorn also sends head and body of an answer one by one; here they leave together.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._impatience: asyncio.TimerHandle | None = None
        self._head_bytes: int | None = 0  # None while a body arrives
        self._arriving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(_OnePiece(transport, self.loop))
        self._be_impatient()

    def data_received(self, data: bytes) -> None:
        """Read, but no endless head."""
        super().data_received(data)
        if self._head_bytes is not None and self._arriving:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES and not self.transport.is_closing():
                self.transport.write(_LARGE_HEAD)
                self.transport.close()

    def on_message_begin(self) -> None:
        """Start to wait for the head of a request."""
        super().on_message_begin()
        self._head_bytes, self._arriving = 0, True
        self._be_impatient()

    def on_headers_complete(self) -> None:
        """Stop waiting: the gate watches over the body."""
        self._head_bytes = None
        self._be_patient()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop waiting for the rest of a body that was refused."""
        self._arriving = False
        self._be_patient()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start to wait for the rest of the body, if the answer came before it."""
        super().on_response_complete()
        if self._arriving:
            self._be_impatient()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._be_patient()
        super().connection_lost(exc)

    def _be_impatient(self) -> None:
        self._be_patient()
        self._impatience = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _be_patient(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None


class _OnePiece(asyncio.Transport):
    """Hands on together what is written in one step of the event loop: a call of the system is a tenth of a request.

    What is large, or comes before a close, is handed on at once, so that uvicorn hears when a client reads too slowly.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._held: list[bytes | bytearray | memoryview] = []
        self._size = 0

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Hold data until the end of this step."""
        if not self._held:
            self._loop.call_soon(self._hand_on)
        self._held.append(data)
        self._size += len(data)
        if self._size > _MOST_HELD:
            self._hand_on()

    def close(self) -> None:
        """Hand on what is held, and close."""
        self._hand_on()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._held.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether it is closed or closing."""
        return self._transport.is_closing()

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
