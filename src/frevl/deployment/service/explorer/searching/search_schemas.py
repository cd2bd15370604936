"""Bodies of requests and answers about columns and reasons."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, ImageId, Text

__all__ = ["ColumnsResponse", "WhyRequest", "WhyResponse"]


class ValueRecord(Body):
    """A value of a column, and how many of the pictures that were looked at have it."""

    value: str | bool | int | float
    count: int


class ColumnRecord(Body):
    """A column that can be filtered by."""

    name: str
    type: str
    kind: Literal["text", "number", "flag", "date", "time", "other"] = Field(
        description="Which tests fit; other: missing, there."
    )
    zone: str | None = Field(description="Time zone in which its times are read and shown; null where they have none.")
    first: str | None = Field(description="Of dates and times the first among those that were looked at, else null.")
    last: str | None = Field(description="The last of these.")
    values: list[ValueRecord] = Field(description="The most frequent; empty where nearly all differ.")


class ColumnsResponse(Body):
    """Columns that filters can name."""

    looked_at: int = Field(description="Pictures whose values were counted, evenly over the store.")
    pictures: int
    columns: list[ColumnRecord]


class WhyRequest(Body):
    """A picture, and the text that it was found for."""

    image: ImageId
    text: Annotated[Text | None, Field(max_length=2000)] = None


class CaptionRecord(Body):
    """A text of the store near a picture."""

    text: str
    similarity: float = Field(description="Cosine, -1 to 1.")


class WordRecord(Body):
    """A word of the query."""

    word: str
    adds: float = Field(
        description="How much the similarity (with a run, its score) falls when the word is left out; negative where "
        "the word speaks against the picture."
    )


class WhyResponse(Body):
    """What can be said of why a picture was found. Words are weighed one at a time, so their parts need not add up."""

    by: Literal["encoder", "run"]
    of: str = Field(description="Name of the encoder or run.")
    captions: list[CaptionRecord]
    words: list[WordRecord]
    notes: list[str]
