"""How the routes answer and are documented: JSON, errors, and bodies that they read themselves."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from pydantic_core import to_json
from starlette.responses import Response

from frevl.deployment.service.http.body import JSON, MULTIPART, unless_gone
from frevl.deployment.service.http.limits import Keys
from frevl.deployment.service.schemas import ErrorResponse

__all__ = ["ERRORS", "body_of", "document_bodies", "errors", "json_answer", "respond"]

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
