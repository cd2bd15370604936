"""Read request bodies: JSON, or multipart with the JSON in the field ``request`` and images as files."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import Coroutine
from operator import attrgetter
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from frevl.deployment.service.http.limits import Limits, RefusedError

__all__ = ["JSON", "MULTIPART", "Upload", "decoded", "read_body", "unless_gone"]

Upload = bytes | str
"""An image sent with a request: the bytes of a file, or base64 text."""

JSON, MULTIPART = "application/json", "multipart/form-data"

_WATCH_AFTER = 0.05  # seconds

_NO_BREAKS = dict.fromkeys(map(ord, " \t\r\n"))

B = TypeVar("B", bound=BaseModel)
A = TypeVar("A")


async def read_body(request: Request, kind: type[B], limits: Limits) -> tuple[B, dict[str, Upload]]:
    """Read and check the body of a request.

    Args:
        request: The request.
        kind: The expected type of its JSON.
        limits: Limits for uploads.

    Returns:
        The validated JSON and the images sent with it, by name: bytes of a file, or base64 text.

    Raises:
        RefusedError: 400 for invalid JSON, 413 too large, 415 wrong type, 422 unexpected content.
    """
    given = next((value for name, value in request.scope["headers"] if name == b"content-type"), b"").decode("latin-1")
    content_type = given.partition(";")[0].strip().lower()
    if content_type == JSON:
        body = _checked(kind, await _whole(request.receive))
        files: dict[str, Upload] = {}
    elif content_type == MULTIPART:
        body, files = await _read_multipart(request, kind, limits)
    else:
        found = f"{content_type[:80]!r}" if content_type else "none"
        raise RefusedError(415, "wrong_type", f"The content type must be {JSON} or {MULTIPART}, found {found}.")
    named: dict[str, str] = getattr(body, "uploads", {})
    if files.keys() & named.keys():
        raise RefusedError(
            422, "invalid", f"The upload {min(files.keys() & named.keys())[:80]!r} appears twice; rename one."
        )
    if len(files) + len(named) > limits.uploads:
        raise RefusedError(
            413, "too_many_uploads", f"A request may contain at most {limits.uploads} images; send several requests."
        )
    return body, {**files, **named}


async def _whole(receive: Receive) -> bytes:
    """Receive the whole body.

    Raises:
        ClientDisconnect: The client disconnected while sending it.
    """
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


async def unless_gone(receive: Receive, answer: Coroutine[Any, Any, A]) -> A | None:
    """Wait for an answer, but drop it and return None if the client disconnects.

    Args:
        receive: Receives the disconnect; the body has already been read.
        answer: Computes the answer. Watching starts after 50 ms; most answers are sent before that.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    watching: list[asyncio.Task[None]] = []
    gone = False

    async def watch() -> None:
        nonlocal gone
        await receive()  # nothing else can arrive
        gone = True
        task.cancel()  # type: ignore[union-attr]

    timer = loop.call_later(_WATCH_AFTER, lambda: watching.append(loop.create_task(watch())))
    try:
        return await answer
    except asyncio.CancelledError:
        if not gone or task.uncancel():  # type: ignore[union-attr]
            raise
        return None
    finally:
        timer.cancel()
        for one in watching:
            one.cancel()


def _once(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RefusedError(
            422, "invalid", f"The key {twice[:80]!r} appears twice in one object of the request; leave one out."
        )


# Like most JSON parsers, pydantic silently takes the last of several equal keys.
_KEYS_ONCE = json.JSONDecoder(object_pairs_hook=_once)


def _checked(kind: type[B], content: bytes | str) -> B:
    try:
        body = kind.model_validate_json(content)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        first = problems[0]
        if first["type"] == "json_invalid":
            raise RefusedError(400, "not_json", f"The request is not valid JSON: {first['msg']}.") from None
        # Besides fields, pydantic's locations include its own functions.
        steps = [step for step in first["loc"] if not str(step).startswith("function-")]
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[:200]
        more = f" ({len(problems) - 1} more problem{'s' if len(problems) > 2 else ''})" if len(problems) > 1 else ""
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "too_long" and isinstance((whole := error.errors()[0])["input"], str):
            message = (
                f"text should have at most {whole['ctx']['max_length']:,} characters, found {len(whole['input']):,}"
            )
        if first["type"] == "string_type" and error.errors()[0]["input"] is None:
            message = "null is not allowed here; omit the field, or give a string"
        raise RefusedError(422, "invalid", f"Field '{place.lstrip('.') or 'body'}': {message}{more}.") from None
    # Every key has a colon, so if there are no more colons than parsed keys, no key is repeated. Otherwise, for example
    # if a text contains a colon, the request is parsed again.
    colons = content.count(":") if isinstance(content, str) else content.count(b":")
    if colons > _keys_of(body):
        _KEYS_ONCE.decode(content if isinstance(content, str) else content.decode())
    return body


_FIELDS_SET = attrgetter("__pydantic_fields_set__")  # `model_fields_set` is a Python function


def _keys_of(body: BaseModel) -> int:
    """Return the number of parsed keys of a request, or fewer if objects are nested deeper."""
    found = len(body.model_fields_set)
    for value in vars(body).values():
        if isinstance(value, dict):
            found += len(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            found += sum(map(len, map(_FIELDS_SET, value)))
    return found


async def _read_multipart(request: Request, kind: type[B], limits: Limits) -> tuple[B, dict[str, Upload]]:
    most = limits.uploads + 1
    try:
        form = await request.form(max_files=most, max_fields=most, max_part_size=limits.body_bytes)
    except (MultiPartException, HTTPException) as error:  # Starlette raises the second inside an application
        reason = error.message if isinstance(error, MultiPartException) else error.detail
        raise RefusedError(400, "not_multipart", f"The multipart form cannot be read: {reason}") from None
    try:
        parts = dict(form.multi_items())
        if len(parts) < len(form.multi_items()):
            raise RefusedError(422, "invalid", "Every field of a multipart form needs a unique name.")
        # Only the field name counts; the client's file name is ignored.
        read = {name: part if isinstance(part, str) else await part.read() for name, part in parts.items()}
        if "request" not in read:
            raise RefusedError(422, "invalid", "The multipart form needs a field 'request' with the request as JSON.")
        return _checked(kind, read.pop("request")), read
    finally:
        await form.close()


def decoded(name: str, upload: Upload) -> bytes:
    """Return the bytes of an image sent with a request.

    Raises:
        RefusedError: The text is not base64.
    """
    if isinstance(upload, bytes):
        return upload
    # Browsers encode files starting with "data:"; `base64` and mail programs insert line breaks.
    text = upload.partition(",")[2] if upload.startswith("data:") else upload
    try:
        return base64.b64decode(text.translate(_NO_BREAKS), validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            422, "bad_image", f"The upload {name[:80]!r} is not base64; encode the image file as base64."
        ) from None
