"""Request and response bodies for columns and search explanations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, ImageId, Text

__all__ = ["ColumnsResponse", "WhyRequest", "WhyResponse"]


class ValueRecord(Body):
    """A value of a column, and how many of the sampled images have it."""

    value: str | bool | int | float
    count: int


class ColumnRecord(Body):
    """A column that can be filtered."""

    name: str
    type: str
    kind: Literal["text", "number", "flag", "date", "time", "other"] = Field(
        description="Determines the tests; other: missing, there."
    )
    zone: str | None = Field(description="Time zone in which its times are read and shown; null if they have none.")
    first: str | None = Field(description="Dates and times: the earliest of the sampled values; otherwise null.")
    last: str | None = Field(description="Dates and times: the latest of the sampled values; otherwise null.")
    values: list[ValueRecord] = Field(description="The most frequent values; empty if nearly all differ.")


class ColumnsResponse(Body):
    """Columns available for filters."""

    looked_at: int = Field(description="Number of images whose values were counted, sampled evenly over the store.")
    pictures: int
    columns: list[ColumnRecord]


class WhyRequest(Body):
    """An image and the text for which it was found."""

    image: ImageId
    text: Annotated[Text | None, Field(max_length=2000)] = None


class CaptionRecord(Body):
    """A text of the store that is near an image."""

    text: str
    similarity: float = Field(description="Cosine, -1 to 1.")


class WordRecord(Body):
    """A word of the query."""

    word: str
    adds: float = Field(
        description="Drop in similarity (with a run, in score) without the word; negative if it counts against the "
        "image."
    )


class WhyResponse(Body):
    """Why an image was found. Words are left out one at a time, so their contributions need not add up."""

    by: Literal["encoder", "run"]
    of: str = Field(description="Name of the encoder or run.")
    captions: list[CaptionRecord]
    words: list[WordRecord]
    notes: list[str]
