"""Bodies of requests and answers about what is in a store."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from frevl.deployment.service.explorer.searching.filters import MOST_FILTERS, Filter
from frevl.deployment.service.schemas import Body, ImageId, Text, UploadName, Uploads

__all__ = ["FindRequest", "FindResponse", "ImagesResponse", "OverviewResponse"]


class EncoderRecord(Body):
    """An encoder whose embeddings are in the store."""

    name: str
    image_dim: int | None
    text_dim: int | None
    imported: bool
    used: bool = Field(description="Whether the explorer searches and teaches with it.")


class RejectRecord(Body):
    """Something that could not be used."""

    kind: str
    id: str
    reason: str


class RejectsRecord(Body):
    """What could not be used, by reason."""

    reason: str
    count: int
    examples: list[RejectRecord]


class GrowthRecord(Body):
    """How many rows there were after a commit."""

    at: str = Field(description="In UTC.")
    rows: int


class OverviewResponse(Body):
    """What is in the store, and what can be done with it here."""

    name: str = Field(description="Name of the store's folder.")
    images: int
    texts: int
    without_embedding: int = Field(description="Pictures that the explorer's encoder has not embedded.")
    copies: int = Field(description="Pictures whose content stands under another id too.")
    encoders: list[EncoderRecord]
    rejects: int
    reasons: list[RejectsRecord]
    picture_bytes: int
    store_bytes: dict[str, int] = Field(description="Size of each part of the store on disk.")
    growth: list[GrowthRecord] = Field(
        description="Pictures after commits that are still known, the oldest first; compacting forgets earlier ones."
    )
    text_growth: list[GrowthRecord]
    columns: dict[str, str] = Field(description="Metadata columns that filters can name, with their types.")
    pictures: bool = Field(description="Whether the service knows the files of the pictures.")
    writable: bool = Field(description="Whether it takes labels.")
    searches_text: bool
    searches_pictures: bool = Field(description="Whether a picture can be sent along to search with.")
    searching_models: list[str] = Field(description="Served runs that search; texts need one where the encoder cannot.")
    notes: list[str]


class GuessRecord(Body):
    """The likeliest class of a picture, and its calibrated probability."""

    label: str
    probability: float


class ShownImage(Body):
    """A picture, and what is known of it."""

    id: str
    labels: dict[str, str] = Field(description="What each labeller says.")
    guess: GuessRecord | None = Field(None, description="What the classifier says, if there is one.")


class ImagesResponse(Body):
    """Some of the pictures, in order."""

    total: int
    start: int
    images: list[ShownImage]


class FindRequest(Body):
    """What to look for: a text, a picture of the store, or one that is sent along."""

    text: Annotated[Text | None, Field(max_length=2000)] = None
    image: ImageId | None = None
    upload: UploadName | None = None
    uploads: Uploads = Field(default_factory=dict)
    k: Annotated[int, Field(ge=1, le=500)] = 60
    where: Annotated[str | None, Field(max_length=1000, description="SQL over id, bytes and metadata columns.")] = None
    filters: Annotated[list[Filter], Field(max_length=MOST_FILTERS, description="All must hold.")] = Field(
        default_factory=list
    )
    fold: Annotated[bool, Field(description="Show pictures of the same content once.")] = True

    @model_validator(mode="after")
    def _one(self) -> FindRequest:
        given = [name for name in ("text", "image", "upload") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a search needs one of 'text', 'image' and 'upload', found {len(given)}")
        return self


class FoundImage(ShownImage):
    """A picture that was found."""

    similarity: float = Field(description="Cosine, -1 to 1.")
    copies: list[str] = Field(description="Other ids of the same content.")


class FindResponse(Body):
    """The most similar pictures first."""

    searched: int
    by: Literal["encoder", "run"]
    notes: list[str]
    images: list[FoundImage]
