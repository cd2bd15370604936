"""The routes for columns and search explanations."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import Response

from frevl.deployment.service.answers import Posts, Sent, errors, json_answer
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.searching.columns import columns
from frevl.deployment.service.explorer.searching.search_schemas import ColumnsResponse, WhyRequest, WhyResponse
from frevl.deployment.service.explorer.searching.why import why

__all__ = ["SEARCH_BODIES", "add_search_routes"]

SEARCH_BODIES: tuple[type[BaseModel], ...] = (WhyRequest,)
"""Bodies that these routes read themselves."""

_TAG = "explore"


def add_search_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes for columns and search explanations to an application."""
    posts = Posts(app, explorer.service.limits)

    @app.get("/explore/columns", response_model=ColumnsResponse, tags=[_TAG], responses=errors(401, 403, 422, 429, 503))
    async def of_columns() -> Response:
        """List the columns that can be filtered, with their most frequent values."""
        return json_answer(await columns(explorer))

    @posts("/explore/why", WhyRequest, WhyResponse, writes=False)
    async def of_why(asked: WhyRequest, _: Sent) -> dict[str, Any]:
        """Explain why an image was found: the store's nearest captions, and the contribution of each query word."""
        return await why(explorer, asked)
