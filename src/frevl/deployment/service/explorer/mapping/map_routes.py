"""The routes of the map."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from starlette.responses import Response

from frevl.deployment.service.answers import body_of, errors, json_answer, respond
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.mapping import map_handlers
from frevl.deployment.service.explorer.mapping.map_schemas import (
    ColoursResponse,
    MapMethod,
    MapResponse,
    PointsRequest,
    PointsResponse,
)
from frevl.deployment.service.http.body import read_body
from frevl.deployment.service.http.origins import check_site
from frevl.store.labels.entries import LONGEST_NAME

__all__ = ["add_map_routes"]

_READ = (401, 403, 422, 429, 503)


def add_map_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the map routes to an application."""

    @app.get("/explore/map", response_model=MapResponse, tags=["explore"], responses=errors(*_READ))
    async def whole_map(request: Request, method: Annotated[MapMethod, Query()] = "components") -> Response:
        """Return images as points in the plane, computed once and cached.

        ``components``: the two principal components. ``neighbours``: PaCMAP, which keeps similar images together; it
        takes about a minute, during which the answer says that it is being computed. Pages of other sites may not
        request it.
        """
        _check(request, method)
        return json_answer(await map_handlers.whole_map(explorer, method))

    @app.get("/explore/map/colours", response_model=ColoursResponse, tags=["explore"], responses=errors(*_READ, 409))
    async def colours(
        request: Request,
        by: Annotated[map_handlers.ColourBy, Query()] = "label",
        of: Annotated[str | None, Query(max_length=LONGEST_NAME, description="Class, with by=probability.")] = None,
        method: Annotated[MapMethod, Query()] = "components",
    ) -> Response:
        """Return the values that colour the points: labels, clusters, predictions, a class probability, or doubt."""
        _check(request, method)
        return json_answer(await map_handlers.colours(explorer, by, of, method))

    @app.post(
        "/explore/map/images",
        response_model=PointsResponse,
        tags=["explore"],
        responses=errors(400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503),
        openapi_extra=body_of(PointsRequest),
    )
    async def pictures(request: Request) -> Response:
        """Return the images at some points."""
        asked, _ = await read_body(request, PointsRequest, explorer.service.limits)
        _check(request, asked.method)
        return await respond(request, map_handlers.pictures(explorer, asked))


def _check(request: Request, method: MapMethod) -> None:
    if method == "neighbours":  # it starts a process
        check_site(request)
