"""How the routes answer and are documented: JSON, errors, and bodies that they read themselves."""

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
from frevl.deployment.service.http.sites import check_site
from frevl.deployment.service.schemas import ErrorResponse

__all__ = ["ERRORS", "Posts", "Sent", "body_of", "document_bodies", "errors", "json_answer", "respond"]

ERRORS = {
    400: "The body is not JSON or not a multipart form.",
    401: "No API key, or a wrong one.",
    403: "This service takes no labels, or none from another site; or another host than this machine is asked for.",
    404: "An unknown model, image or upload.",
    408: "The request took too long to arrive.",
    409: "The model does another task, or something else stands in the way, such as a training that is under way.",
    413: "Too large, or too many items.",
    415: "Another content type.",
    422: "A field is missing or wrong, or an image cannot be read.",
    429: "This client has its share of the service already; see Retry-After.",
    500: "An unexpected failure of the service.",
    503: "Too much is waiting, or the service is stopping; see Retry-After.",
}


async def respond(request: Request, answer: Coroutine[Any, Any, dict[str, Any]]) -> Response:
    """Wait for an answer, as long as the client does."""
    record = await unless_gone(request.receive, answer)
    return Response(status_code=499) if record is None else json_answer(record)


def json_answer(record: Mapping[str, Any]) -> Response:
    """Answer with JSON; numbers that are not finite become null."""
    return Response(to_json(record, inf_nan_mode="null", serialize_unknown=True), media_type=JSON)


def errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Describe the refusals of a route."""
    return {code: {"model": ErrorResponse, "description": ERRORS[code]} for code in codes}


def body_of(body: type[BaseModel]) -> dict[str, Any]:
    """Describe a body that `read_body` reads, in both forms."""
    reference = {"$ref": f"#/components/schemas/{body.__name__}"}
    form = {
        "type": "object",
        "required": ["request"],
        "properties": {"request": reference},
        # Images: files, or text in base64.
        "additionalProperties": {"type": "string", "format": "binary"},
    }
    # The keys of an object in a multipart form are sent as JSON when their content type says so.
    encoding = {"request": {"contentType": JSON}}
    content = {JSON: {"schema": reference}, MULTIPART: {"schema": form, "encoding": encoding}}
    return {"requestBody": {"required": True, "content": content}}


Sent = Mapping[str, Upload]
"""What was sent along with a body, by name."""

Work = Callable[[Any, Sent], Coroutine[Any, Any, dict[str, Any]]]


class Posts:
    """Adds the routes below ``/explore`` that are sent a body: ``@posts(path, body, answer)`` above what answers it.

    What is decorated gets the checked body and what was sent along; its docstring is the description in the document.

    Args:
        app: The application.
        limits: Of a body.
    """

    def __init__(self, app: FastAPI, limits: Limits) -> None:
        self._app, self._limits = app, limits

    def __call__(
        self, path: str, body: type[BaseModel], answer: type[BaseModel], *, writes: bool = True
    ) -> Callable[[Work], Work]:
        """Add a route; one that writes, or starts work that goes on, takes nothing from the page of another site."""

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
    """Add to the OpenAPI document what FastAPI cannot see, because the routes read their bodies themselves."""
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
