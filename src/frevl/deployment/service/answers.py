"""Route answers and their documentation: JSON, errors, and bodies that routes read themselves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json
from starlette.responses import Response

from frevl.deployment.service.http.body import JSON, MULTIPART, Upload, read_body, unless_gone
from frevl.deployment.service.http.limits import Keys, Limits
from frevl.deployment.service.http.origins import check_site
from frevl.deployment.service.schemas import ErrorResponse

__all__ = ["ERRORS", "Posts", "Sent", "body_of", "document_bodies", "errors", "json_answer", "respond"]

ERRORS = {
    400: "The body is not JSON or not a multipart form.",
    401: "API key missing or wrong.",
    403: "This service does not accept labels, the request comes from another site, or its host is not this machine.",
    404: "Unknown model, image or upload.",
    408: "The request took too long to arrive.",
    409: "The model does another task, or a conflict prevents the request, such as a training in progress.",
    413: "Too large, or too many items.",
    415: "Unsupported content type.",
    422: "A field is missing or wrong, or an image cannot be read.",
    429: "This client already uses its share of the service; see Retry-After.",
    500: "An unexpected failure of the service.",
    503: "Too many requests are waiting, or the service is stopping; see Retry-After.",
}


async def respond(request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """Wait for an answer for as long as the client stays connected."""
    record = await unless_gone(request.receive, answer)
    return Response(status_code=499) if record is None else json_answer(record)


def json_answer(record: Mapping[str, Any]) -> Response:
    """Answer with JSON; non-finite numbers become null."""
    return Response(to_json(record, inf_nan_mode="null", serialize_unknown=True), media_type=JSON)


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe the error responses of a route."""
    return {code: {"model": ErrorResponse, "description": ERRORS[code]} for code in codes}


def body_of(body: type[BaseModel]) -> dict[str, Any]:
    """Describe a request body in the two forms that `read_body` accepts: JSON and multipart."""
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    form = {
        "type": "object",
        "required": ["request"],
        "properties": {"request": reference},
        # Images: files, or text in base64.
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    # Objects in a multipart form are sent as JSON when their content type says so.
    encoding = {"request": {"contentType": JSON}}
    content = {JSON: {"schema": reference}, MULTIPART: {"schema": form, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


Sent = Mapping[str, Upload]
"""Uploads sent with a body, by name."""

Work = Callable[[Any, Sent], Coroutine[Any, Any, dict[str, Any]]]


class Posts:
    """Adds the POST routes below ``/explore``: put ``@posts(path, body, answer)`` above the handler.

    The handler receives the validated body and the uploads; its docstring becomes the description in the document.

    Args:
        app: The application.
        limits: Limits on a body.
    """

    def __init__(self, app: FastAPI, limits: Limits) -> None:
        self._app, self._limits = app, limits

    def __call__(
        self, path: str, body: type[BaseModel], answer: type[BaseModel], *, writes: bool = True
    ) -> Callable[[Work], Work]:
        """Add a route; one that writes or starts background work refuses requests from pages of other sites."""

        def add(work: Work) -> Work:
            async def route(request: Request) -> Response:
                if writes:
                    check_site(request)
                return await respond(request, work(*await read_body(request, body, self._limits)))

            route.__name__, route.__doc__ = work.__name__, work.__doc__
            self._app.post(
                path,
                response_model=answer,
                tags=["explore"],
                responses=errors(*(code for code in ERRORS if code != 500)),
                openapi_extra=body_of(body),
            )(route)
            return work

        return add


def document_bodies(app: FastAPI, bodies: Sequence[type[BaseModel]], keys: Keys) -> None:
    """Add to the OpenAPI document what FastAPI cannot see, since the routes read their bodies themselves."""
    document = app.openapi()
    _, schemas = models_json_schema(
        [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
    )
    document["components"]["schemas"].update(schemas["$defs"])
    if keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        for path in ("/healthz", "/readyz"):
            document["paths"][path]["get"]["security"] = []
    app.openapi_schema = document
