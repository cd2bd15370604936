"""What every request passes: its id, its log line, the key, the limits, and the last word on errors."""

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
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frevl.deployment.service.http.limits import Keys, Limits, RefusedError
from frevl.deployment.service.http.log import log_request
from frevl.deployment.service.http.metrics import Metrics

__all__ = ["OPEN_PATHS", "Gate", "error_response"]

OPEN_PATHS = ("/healthz", "/readyz")
"""Paths that need no key: whoever keeps the service alive asks them."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_THIS_PROCESS = secrets.token_hex(8)
_numbers = itertools.count()
_log = logging.getLogger("frevl.service")

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
# The page works with what comes from this service alone; a browser refuses everything else. JSON asks for nothing.
_HEADERS = [
    _NO_SNIFFING,
    (b"referrer-policy", b"no-referrer"),
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'",
    ),
]


def error_response(error: RefusedError, request_id: str) -> Response:
    """Return the answer to a refused request."""
    body = {"error": {"code": error.code, "message": str(error), "request_id": request_id}}
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 408:
        headers["Connection"] = "close"
    response = Response(json.dumps(body, ensure_ascii=False), error.status, headers, "application/json")
    if error.status == 401:
        # The first is for programs; the second lets a browser ask for the key (as password, with any name).
        for scheme in ("Bearer", "Basic"):
            response.headers.append("WWW-Authenticate", f'{scheme} realm="frevl"')
    return response


class Gate:
    """An ASGI application around another one. Routes find the request's id in ``scope["state"]["request_id"]``.

    Args:
        app: What answers.
        limits: How much one client may ask.
        keys: Who may ask.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, keys: Keys, metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._keys = keys
        self._metrics = metrics
        self._under_way = 0
        self._held_bytes = 0
        metrics.under_way.set_function(lambda: self._under_way)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await _Passage(self, scope, receive, send).answer()


class _Passage:
    """One request on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate, self._scope, self._receive, self._send = gate, scope, receive, send
        headers: dict[bytes, bytes] = dict(scope["headers"])
        self._headers = headers
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        self._id = given if _REQUEST_ID.fullmatch(given) else f"{_THIS_PROCESS}{next(_numbers):016x}"
        scope.setdefault("state", {})["request_id"] = self._id
        self._started = time.perf_counter()
        self._deadline: float | None = None
        self._complete = False
        self._held = 0
        self._status = 0

    async def answer(self) -> None:
        gate = self._gate
        gate._under_way += 1
        try:
            self._admit()
            await gate._app(self._scope, self._checked_receive, self._noted_send)
        except RefusedError as error:
            await self._refuse(error)
        except ClientDisconnect:  # in the middle of its body: nobody is left to answer, and nothing failed here
            self._status = self._status or 499
        except Exception as error:
            _log.error("request failed", exc_info=error, extra={"fields": {"request_id": self._id}})
            await self._refuse(
                RefusedError(500, "internal", "The service failed here; its log says more under the request id.")
            )
        finally:
            gate._under_way -= 1
            gate._held_bytes -= self._held
            self._note()

    def _admit(self) -> None:
        """Refuse a request before it is read.

        Raises:
            RefusedError: No key, too large, or too many at a time.
        """
        gate, limits = self._gate, self._gate._limits
        if gate._keys and self._scope["path"] not in OPEN_PATHS and not gate._keys.admit(_key_of(self._headers)):
            raise RefusedError(
                401, "no_key", "This service needs an API key; send it in the header 'Authorization: Bearer KEY'."
            )
        if gate._under_way > limits.requests:
            raise RefusedError(
                503, "overloaded", f"{limits.requests} requests are under way; ask again later.", retry_after=1
            )
        length = self._headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413, "too_large", f"A request may have {self._gate._limits.body_bytes:,} bytes; send smaller images."
        )

    async def _checked_receive(self) -> Message:
        """Receive, as long as the body is neither too large nor too slow."""
        if self._complete:
            return await self._receive()
        message = await self._receive_in_time()
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self._held += size
            self._gate._held_bytes += size
            if self._held > self._gate._limits.body_bytes:
                raise self._too_large()
            if self._gate._held_bytes > self._gate._limits.held_bytes:
                raise RefusedError(
                    503, "overloaded", "Too many large requests are under way; ask again later.", retry_after=1
                )
            self._complete = not message.get("more_body", False)
        return message

    async def _receive_in_time(self) -> Message:
        """Receive a part of the body. As with `asyncio.timeout`, in a third of its time."""
        loop, task, late = asyncio.get_running_loop(), asyncio.current_task(), []
        if self._deadline is None:
            self._deadline = loop.time() + self._gate._limits.body_seconds

        def expire() -> None:
            late.append(True)
            task.cancel()  # type: ignore[union-attr]

        timer = loop.call_at(self._deadline, expire)
        try:
            return await self._receive()
        except asyncio.CancelledError:
            if not late or task.uncancel():  # type: ignore[union-attr]
                raise
            raise RefusedError(
                408, "too_slow", f"The request took more than {self._gate._limits.body_seconds:g} s to arrive."
            ) from None
        finally:
            timer.cancel()

    async def _noted_send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            given = {name.lower(): value for name, value in message.get("headers", [])}
            added = [_NO_SNIFFING] if given.get(b"content-type") == b"application/json" else _HEADERS
            added = [header for header in added if header[0] not in given]
            headers = [*message.get("headers", []), *added, (b"x-request-id", self._id.encode())]
            message = {**message, "headers": headers}
        await self._send(message)

    async def _refuse(self, error: RefusedError) -> None:
        self._gate._metrics.refused.labels(error.code).inc()
        if not self._status:
            with contextlib.suppress(OSError):  # the client may be gone
                await error_response(error, self._id)(self._scope, self._receive, self._noted_send)

    def _note(self) -> None:
        """Count the request and write its log line."""
        seconds = time.perf_counter() - self._started
        route = _route_of(self._scope)
        method = self._scope["method"] if self._scope["method"] in _METHODS else "other"
        self._gate._metrics.answered(route, method, self._status, seconds)
        log_request(
            {
                "request_id": self._id,
                "method": method,
                "path": self._scope["path"][:200],
                "status": self._status,
                "milliseconds": round(1000 * seconds, 2),
                "bytes": self._held,
                "client": (self._scope.get("client") or [None])[0],
            }
        )


_METHODS = {"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}


def _route_of(scope: MutableMapping[str, Any]) -> str:
    """Return the route's pattern: a label must not have as many values as clients can think of paths."""
    path: str = getattr(scope.get("route"), "path", "")
    return path or "other"


def _key_of(headers: dict[bytes, bytes]) -> str:
    """Find the key: ``Authorization: Bearer KEY``, or the password of ``Basic``, which browsers send."""
    kind, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(value, validate=True).decode("utf-8", "replace").partition(":")[2]
    return ""
