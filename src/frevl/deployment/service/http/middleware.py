"""Middleware for every request: id, log line, key, limits and error handling."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import itertools
import json
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from typing import Any, cast

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frevl.deployment.service.http.fair_share import ASKING, Client, FairShare, client_name
from frevl.deployment.service.http.limits import Keys, Limits, RefusedError
from frevl.deployment.service.http.log import log_request
from frevl.deployment.service.http.metrics import Metrics

__all__ = ["CYCLE", "OPEN_PATHS", "Middleware", "error_response"]

OPEN_PATHS = ("/healthz", "/readyz")
"""Paths that need no key and are always answered, because supervisors poll them."""

CYCLE = "frevl.cycle"
"""Key in the scope's extensions for uvicorn's object of this request, see `Connection`."""

_PIECE = 256 << 10  # bytes of a large answer passed on at a time

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_THIS_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()
_log = logging.getLogger("frevl.service")

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
# Policy for responses without their own, such as the API documentation: browsers load only this service's resources.
# JSON needs none.
_HEADERS = [
    _NO_SNIFFING,
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' data:; frame-ancestors 'self'; base-uri 'self'",
    ),
]


def error_response(error: RefusedError, request_id: str) -> Response:
    """Return the response to a refused request."""
    body = {"error": {"code": error.code, "message": str(error), "request_id": request_id}}
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 408:
        headers["Connection"] = "close"
    response = Response(json.dumps(body, ensure_ascii=False), error.status, headers, "application/json")
    if error.status == 401:
        # `Bearer` is for programs; `Basic` makes a browser prompt for the key, as the password of any user name.
        for scheme in ("Bearer", "Basic"):
            response.headers.append("WWW-Authenticate", f'{scheme} realm="frevl"')
    return response


class Middleware:
    """An ASGI application that wraps another. Routes find the request's id in ``scope["state"]["request_id"]``.

    Args:
        app: The wrapped application.
        limits: Limits per client.
        keys: Who may send requests.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, keys: Keys, metrics: Metrics) -> None:
        self.app = app
        self.limits = limits
        self.keys = keys
        self.metrics = metrics
        self.share = FairShare(limits)
        metrics.under_way.set_function(lambda: self.share.requests + self.share.waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).answer()


class _Exchange:
    """One request and its answer."""

    def __init__(self, middleware: Middleware, scope: Scope, receive: Receive, send: Send) -> None:
        self._middleware, self._share, self._limits = middleware, middleware.share, middleware.limits
        self._scope, self._receive, self._send = scope, receive, send
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._headers = headers
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self._id = given if _REQUEST_ID.fullmatch(given) else f"{_THIS_PROCESS}{next(_numbers):016x}"
        scope.setdefault("state", {})["request_id"] = self._id
        self._started = time.perf_counter()
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._client = Client("")
        self._exempt = scope["path"] in OPEN_PATHS
        # Removed because it refers to the scope: in a cycle, both would have to wait for garbage collection.
        self._cycle = scope.get("extensions", {}).pop(CYCLE, None)
        self._complete = self._working = self._waiting = False
        self._size = self._status = self.held = 0
        self._deferred: Message | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._ended_by: RefusedError | None = None

    async def answer(self) -> None:
        try:
            self._admit()
            await self._middleware.app(self._scope, self._checked_receive, self._noted_send)
        except RefusedError as error:
            await self._refuse(error)
        except ClientDisconnect:  # while sending its body: there is nobody to answer, and nothing failed here
            self._status = self._status or 499
        except asyncio.CancelledError:
            if self._ended_by is None or self._task.uncancel():
                raise
            await self._refuse(self._ended_by)
        except Exception as error:
            if self._ended_by is not None:  # a library turned the cancellation into its own error
                self._task.uncancel()
                await self._refuse(self._ended_by)
            else:
                _log.error("request failed", exc_info=error, extra={"fields": {"request_id": self._id}})
                await self._refuse(
                    RefusedError(500, "internal", "The service failed here; see its log under the request id.")
                )
        finally:
            self._end_wait()
            self._end_work()
            self._share.free(self._client, self)
            if self._client.open:
                self._share.leave(self._client)
            self._note()

    def give_way(self) -> None:
        """End this request because too many are waiting for their clients."""
        self._waiting = False
        self._cancel(
            RefusedError(503, "overloaded", "Too many slow requests are in progress; try again later.", retry_after=1)
        )

    def _admit(self) -> None:
        """Refuse a request before reading it.

        Raises:
            RefusedError: No key, too large, or too many at once.
        """
        keys, name = self._middleware.keys, ""
        if keys and not self._exempt:
            key = _key_of(self._headers)
            if not keys.admit(key):
                raise RefusedError(
                    401, "no_key", "This service needs an API key; send it in the header 'Authorization: Bearer KEY'."
                )
            name = keys.name_of(key)
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self._limits.body_bytes:
            raise self._too_large()
        if self._exempt:
            return
        self._client = self._share.enter(name or client_name((self._scope.get("client") or [""])[0]))
        ASKING.set(self._client.name)
        if self._arrives():
            self._share.check(self._client)
        else:
            self._begin_work()

    def _arrives(self) -> bool:
        """Return whether part of the body is still to arrive, as far as known."""
        return self._cycle is None or self._cycle.more_body

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, "too_large", f"A request may have at most {self._limits.body_bytes:,} bytes; send smaller images."
        )

    async def _checked_receive(self) -> Message:
        """Receive the body, unless it is too large or too slow."""
        if self._complete or self._exempt or self._status:
            return await self._receive()
        if self._arrives():
            self._begin_wait()
            if self._timer is None:
                seconds = self._limits.body_seconds
                self._end_in(seconds, f"The request took more than {seconds:g} s to arrive.")
        message = await self._receive()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._size += size
            if self._size > self._limits.body_bytes:
                raise self._too_large()
            self._share.hold(self._client, self, size)
            if not message.get("more_body", False):
                self._complete = True
                self._end_wait()
                self._begin_work()
        return message

    async def _noted_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._send_start(message)
            return
        body = message.get("body", b"")
        large = len(body) > _PIECE
        if self._deferred is not None:
            if large:
                self._share.hold(self._client, self, len(body))
            self._status = self._deferred["status"]
            start, self._deferred = self._deferred, None
            await self._send(start)
        if large or message.get("more_body", False) or self._waiting:
            self._begin_wait()
            if large:
                await self._send_in_pieces(message)
                return
            self._end_unless_read()
        await self._send(message)

    async def _send_start(self, message: Message) -> None:
        """Send the start of a response; from here on, the request waits only for its client, if at all."""
        self._end_wait()
        self._end_work()
        given = {name.lower(): value for name, value in message.get("headers", [])}
        added = [_NO_SNIFFING] if given.get(b"content-type") == b"application/json" else _HEADERS
        headers = [*message.get("headers", []), *(header for header in added if header[0] not in given)]
        headers.append((b"x-request-id", self._id.encode()))
        if self._cycle is not None and self._cycle.more_body and b"connection" not in given:
            headers.append((b"connection", b"close"))  # nobody reads the rest
        message = {**message, "headers": headers}
        if int(given.get(b"content-length", b"0")) > _PIECE:
            self._deferred = message  # if there is no room for the answer, an error is sent instead
            return
        self._status = message["status"]
        await self._send(message)

    async def _send_in_pieces(self, message: Message) -> None:
        """Send a large body in pieces, to notice when the client stops reading."""
        body, more = memoryview(message["body"]), message.get("more_body", False)
        for start in range(0, len(body), _PIECE):
            self._end_unless_read()
            end = start + _PIECE
            await self._send({**message, "body": body[start:end], "more_body": more or end < len(body)})

    def _begin_work(self) -> None:
        if not (self._working or self._exempt):
            self._share.begin_work(self._client)
            self._working = True

    def _end_work(self) -> None:
        if self._working:
            self._share.end_work(self._client)
            self._working = False

    def _begin_wait(self) -> None:
        if not (self._waiting or self._exempt):
            self._waiting = True
            self._share.begin_wait(self._client, self)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            self._share.end_wait(self._client, self)
            self._waiting = False

    def _end_unless_read(self) -> None:
        seconds = self._limits.answer_seconds
        self._end_in(seconds, f"The client read nothing for {seconds:g} s.")

    def _end_in(self, seconds: float, sentence: str) -> None:
        """End the request after some seconds; a later call replaces an earlier one."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._time_out, sentence)

    def _time_out(self, sentence: str) -> None:
        self._cancel(RefusedError(408, "too_slow", sentence))

    def _cancel(self, reason: RefusedError) -> None:
        if self._ended_by is None:
            self._ended_by = reason
            self._task.cancel()

    async def _refuse(self, error: RefusedError) -> None:
        """Respond with an error, or cut off a response that has begun."""
        self._middleware.metrics.refused.labels(error.code).inc()
        self._deferred = None
        if self._status:
            self._cut_off()
            return
        with contextlib.suppress(OSError):  # the client may have disconnected
            await error_response(error, self._id)(self._scope, self._receive, self._noted_send)

    def _cut_off(self) -> None:
        """Close the connection, because a partial response must not look complete."""
        if self._cycle is not None and not self._cycle.response_complete:
            self._cycle.disconnected = True
            self._cycle.transport.abort()

    def _note(self) -> None:
        """Count the request and write its log line."""
        seconds = time.perf_counter() - self._started
        route = _route_of(self._scope)
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        self._middleware.metrics.answered(route, method, self._status, seconds)
        log_request(
            {
                "request_id": self._id,
                "method": method,
                "path": self._scope["path"][:200],
                "status": self._status,
                "milliseconds": round(1000 * seconds, 2),
                "bytes": self._size,
                "client": (self._scope.get("client") or [None])[0],
            }
        )


_METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}


def _route_of(scope: MutableMapping[str, Any]) -> str:
    """Return the pattern of the route; as a metric label, the path itself would take any value clients invent."""
    path: str = getattr(scope.get("route"), "path", "")
    return path or "other"


def _key_of(headers: dict[bytes, bytes]) -> str:
    """Find the key in ``Authorization: Bearer KEY``, or in the password of ``Basic``, which browsers send."""
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
    return ""
