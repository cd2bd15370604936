"""Request and response bodies for browsing a store."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from frevl.deployment.service.explorer.searching.filters import MOST_FILTERS, Filter
from frevl.deployment.service.schemas import Body, ImageId, Text, UploadName, Uploads

__all__ = ["FindRequest", "FindResponse", "ImagesResponse", "OverviewResponse"]


class EncoderRecord(Body):
    """An encoder with embeddings in the store."""

    name: str
    image_dim: int | None
    text_dim: int | None
    imported: bool
    used: bool = Field(description="Whether the explorer uses it for search and teaching.")


class RejectRecord(Body):
    """An item that could not be used."""

    kind: str
    id: str
    reason: str


class RejectsRecord(Body):
    """Rejected items, by reason."""

    reason: str
    count: int
    examples: list[RejectRecord]


class GrowthRecord(Body):
    """Number of rows after a commit."""

    at: str = Field(description="In UTC.")
    rows: int


class OverviewResponse(Body):
    """Contents of the store, and what can be done with it here."""

    name: str = Field(description="Name of the store's folder.")
    images: int
    texts: int
    without_embedding: int = Field(description="Images not embedded by the explorer's encoder.")
    copies: int = Field(description="Images whose content also exists under another id.")
    encoders: list[EncoderRecord]
    rejects: int
    reasons: list[RejectsRecord]
    picture_bytes: int
    store_bytes: dict[str, int] = Field(description="Size of each part of the store on disk.")
    growth: list[GrowthRecord] = Field(
        description="Number of images after each known commit, oldest first; compaction removes earlier commits."
    )
    text_growth: list[GrowthRecord]
    columns: dict[str, str] = Field(description="Metadata columns that filters can name, with their types.")
    pictures: bool = Field(description="Whether the service has access to the image files.")
    writable: bool = Field(description="Whether it accepts labels.")
    searches_text: bool
    searches_pictures: bool = Field(description="Whether an uploaded image can be used for search.")
    searching_models: list[str] = Field(
        description="Served runs that can search; text search needs one if the encoder cannot do it."
    )
    notes: list[str]


class GuessRecord(Body):
    """An image's likeliest class with its calibrated probability."""

    label: str
    probability: float


class ShownImage(Body):
    """An image with its labels and predicted class."""

    id: str
    labels: dict[str, str] = Field(description="Label of each labeller.")
    guess: GuessRecord | None = Field(None, description="The classifier's prediction, if there is one.")


class ImagesResponse(Body):
    """A page of images, in order."""

    total: int
    start: int
    images: list[ShownImage]


class FindRequest(Body):
    """What to search for: a text, an image in the store, or an uploaded image."""

    text: Annotated[Text | None, Field(max_length=2000)] = None
    image: ImageId | None = None
    upload: UploadName | None = None
    uploads: Uploads = Field(default_factory=dict)
    k: Annotated[int, Field(ge=1, le=500)] = 60
    where: Annotated[str | None, Field(max_length=1000, description="SQL over id, bytes and metadata columns.")] = None
    filters: Annotated[list[Filter], Field(max_length=MOST_FILTERS, description="Conditions that must all hold.")] = (
        Field(default_factory=list)
    )
    fold: Annotated[bool, Field(description="Show images with the same content only once.")] = True

    @model_validator(mode="after")
    def _one(self) -> FindRequest:
        given = [name for name in ("text", "image", "upload") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"a search needs exactly one of 'text', 'image' and 'upload', found {len(given)}")
        return self


class FoundImage(ShownImage):
    """A search hit."""

    similarity: float = Field(description="Cosine, -1 to 1.")
    copies: list[str] = Field(description="Other ids with the same content.")


class FindResponse(Body):
    """The most similar images first."""

    searched: int
    by: Literal["encoder", "run"]
    notes: list[str]
    images: list[FoundImage]
