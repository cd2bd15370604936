"""Request and response bodies for the map."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.explorer.browse_schemas import ShownImage
from frevl.deployment.service.schemas import Body

__all__ = ["MOST_CHOSEN", "ColoursResponse", "MapMethod", "MapResponse", "PointsRequest", "PointsResponse"]

MOST_CHOSEN = 1_000

MapMethod = Literal["components", "neighbours"]
"""Two principal components, or PaCMAP, which keeps neighbours together."""


class MapResponse(Body):
    """Images as points in the plane."""

    key: str = Field(description="Version of the store; points of another version are refused.")
    total: int = Field(description="Number of images with an embedding.")
    count: int = Field(description="Number of points; at most 100,000, sampled at random.")
    points: str = Field(description="Base64 of little-endian float32: x and y of each point, in [-1, 1].")
    explained: list[float] = Field(description="Share of variance along x and y; zeros for neighbours.")
    method: MapMethod
    methods: list[MapMethod] = Field(description="The kinds of map available here.")
    computing: bool = Field(description="Whether it is being computed; if so, try again.")
    problem: str = Field(description="Why there is no map.")


class ColoursResponse(Body):
    """Values that colour the points."""

    key: str
    names: list[str] = Field(description="Names of classes or clusters; empty for probabilities and doubt.")
    values: list[int] = Field(
        description="For each point: a class (-1: none, -2: disputed), or 0 to 255 for 0 to 1 (-1: unknown)."
    )


class PointsRequest(Body):
    """Points whose images are requested."""

    key: Annotated[str, Field(max_length=64)]
    method: MapMethod = "components"
    points: Annotated[list[Annotated[int, Field(ge=0, lt=100_000)]], Field(min_length=1, max_length=MOST_CHOSEN)]


class PointsResponse(Body):
    """The images at these points, in the same order."""

    images: list[ShownImage]
