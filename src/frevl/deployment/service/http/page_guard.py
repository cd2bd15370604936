"""Restricts what the page's library may be asked: nothing that names a file which was not uploaded here.

Gradio opens any path, and fetches any address, that the data of an event names, unless the page was started with its
own ``launch`` (measured with 6.31: a mounted page does not check). So its routes are let through one by one, the data
of events is read before it, and uploads are kept by `PageUploads`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from frevl.deployment.service.http.limits import Limits, RefusedError
from frevl.deployment.service.http.middleware import error_response
from frevl.deployment.service.http.page_uploads import PageUploads

__all__ = ["PageGuard"]

_EVENTS = "/gradio_api/queue/join"
_UPLOAD, _PROGRESS = "/gradio_api/upload", "/gradio_api/upload_progress"
_POSTS = (_EVENTS, _UPLOAD, "/gradio_api/reset", "/gradio_api/cancel")
# Parts of the page, and the stream of an event's answers; no route that serves or fetches files.
_GETS = (
    "/assets/",
    "/config",
    "/favicon.ico",
    "/gradio_api/queue/data",
    "/gradio_api/startup-events",
    _PROGRESS,
    "/manifest.json",
    "/static/",
    "/svelte/",
    "/theme.css",
)

_NOT_SO = "The page cannot do this; reload it and try again."


class PageGuard:
    """An ASGI application around the page.

    Args:
        app: The page.
        uploads: Folder in which the page keeps what browsers send.
        limits: How much that may be.
    """

    def __init__(self, app: ASGIApp, uploads: str, limits: Limits) -> None:
        self._app = app
        self._uploads = os.path.abspath(uploads) + os.sep  # noqa: PTH100  (pathlib would ask the file system)
        self._kept = PageUploads(Path(uploads), limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        except RefusedError as error:  # Starlette's layers around this one would make a plain 500 of it
            await _refusal(scope, error)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        reads = method in ("GET", "HEAD")
        if not (path in _POSTS if method == "POST" else reads and (path == "/" or path.startswith(_GETS))):
            sentence = f"{method[:20]} {path[:100]}: Not part of the page; the routes are listed at /docs."
            raise RefusedError(404, "no_such_route", sentence)
        if path == _UPLOAD:
            kept = await self._kept.receive(Request(scope, receive))
            await Response(json.dumps(kept), media_type="application/json")(scope, receive, send)
            return
        if path == _PROGRESS:  # a picture is small: the page hears that it is there, not how it arrives
            done = 'data: {"msg": "done"}\n\n'
            await Response(done, media_type="text/event-stream")(scope, receive, send)
            return
        if path != _EVENTS:
            await self._app(scope, receive, _in_one_shape(scope, receive, send))
            return
        body = await Request(scope, receive).body()
        try:
            allowed = self._allows(json.loads(body))
        except (ValueError, RecursionError):
            allowed = False
        if not allowed:
            sentence = "This names a file that was not uploaded here; reload the page and choose it again."
            raise RefusedError(400, "invalid", sentence)
        read = False

        async def again() -> Message:
            nonlocal read
            if read:
                return await receive()
            read = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, _in_one_shape(scope, receive, send))

    def _allows(self, data: Any) -> bool:
        """Return whether every path in an event's data lies in the folder of uploads; addresses never do."""
        if isinstance(data, list):
            return all(self._allows(one) for one in data)
        if not isinstance(data, dict):
            return True
        for key in ("path", "url"):
            named = data.get(key)
            if named is not None and not (isinstance(named, str) and self._is_upload(key, named)):
                return False
        return all(self._allows(one) for one in data.values())

    def _is_upload(self, key: str, named: str) -> bool:
        if key == "url":  # where the browser itself would find it; Gradio must not fetch it
            named = named.partition("/gradio_api/file=")[2]
        return os.path.normpath(named).startswith(self._uploads)


def _refusal(scope: Scope, error: RefusedError) -> Response:
    return error_response(error, str(scope.get("state", {}).get("request_id", "")))


def _in_one_shape(scope: Scope, receive: Receive, send: Send) -> Send:
    """Give errors of the page's library the form of all others, without its own text, which may name files."""
    replaced = False

    async def shaped(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] >= 400:
            replaced = True
            status = message["status"]
            code = {404: "no_such_route", 405: "wrong_method", 413: "too_large"}.get(status, "invalid")
            code = "internal" if status >= 500 else code
            await _refusal(scope, RefusedError(status, code, _NOT_SO))(scope, receive, send)
        elif not replaced:
            await send(message)

    return shaped
