"""Bodies of requests and answers about the map."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.explorer.look_schemas import ShownImage
from frevl.deployment.service.schemas import Body

__all__ = ["MOST_CHOSEN", "ColoursResponse", "MapMethod", "MapResponse", "PointsRequest", "PointsResponse"]

MOST_CHOSEN = 1_000

MapMethod = Literal["components", "neighbours"]
"""Two principal components, or PaCMAP, which keeps neighbours together."""


class MapResponse(Body):
    """Pictures as points in the plane."""

    key: str = Field(description="Of this version of the store; points of another one are refused.")
    total: int = Field(description="Pictures of the store that have an embedding.")
    count: int = Field(description="Points; at most 100,000, thinned at random.")
    points: str = Field(description="Base64 of little-endian float32: x and y of each point, in [-1, 1].")
    explained: list[float] = Field(description="Share of the variance along x and y; zeros for neighbours.")
    method: MapMethod
    methods: list[MapMethod] = Field(description="Which can be had here.")
    computing: bool = Field(description="Whether it is being computed; ask again.")
    problem: str = Field(description="Why there is no map, in words.")


class ColoursResponse(Body):
    """What colours the points."""

    key: str
    names: list[str] = Field(description="Of the classes or clusters; empty for probabilities and doubt.")
    values: list[int] = Field(
        description="Of each point: a class (-1: none, -2: disputed), or 0 to 255 for 0 to 1 (-1: unknown)."
    )


class PointsRequest(Body):
    """Points whose pictures are asked for."""

    key: Annotated[str, Field(max_length=64)]
    method: MapMethod = "components"
    points: Annotated[list[Annotated[int, Field(ge=0, lt=100_000)]], Field(min_length=1, max_length=MOST_CHOSEN)]


class PointsResponse(Body):
    """The pictures of these points, in their order."""

    images: list[ShownImage]
