"""The routes of columns and reasons."""

from __future__ import annotations

from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.responses import Response

from frevl.deployment.service.answers import body_of, errors, json_answer, respond
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.searching.columns import columns
from frevl.deployment.service.explorer.searching.search_schemas import ColumnsResponse, WhyRequest, WhyResponse
from frevl.deployment.service.explorer.searching.why import why
from frevl.deployment.service.http.body import read_body

__all__ = ["SEARCH_BODIES", "add_search_routes"]

SEARCH_BODIES: tuple[type[BaseModel], ...] = (WhyRequest,)
"""Bodies that these routes read themselves."""

_TAG = "explore"


def add_search_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes of columns and reasons to an application."""

    @app.get("/explore/columns", response_model=ColumnsResponse, tags=[_TAG], responses=errors(401, 403, 422, 429, 503))
    async def of_columns() -> Response:
        """List the columns that pictures can be filtered by, with their most frequent values."""
        return json_answer(await columns(explorer))

    @app.post(
        "/explore/why",
        response_model=WhyResponse,
        tags=[_TAG],
        responses=errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=body_of(WhyRequest),
    )
    async def of_why(request: Request) -> Response:
        """Say why a picture was found: the nearest captions of the store, and what each word of the query adds."""
        asked, _ = await read_body(request, WhyRequest, explorer.service.limits)
        return await respond(request, why(explorer, asked))
