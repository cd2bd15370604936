"""Request and response bodies for labels."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, ImageId, Uploads
from frevl.store.labels.entries import LONGEST_NAME

__all__ = [
    "AgreementRecord",
    "By",
    "ClassRecord",
    "DefineRequest",
    "ImportRequest",
    "ImportResponse",
    "LabelsRequest",
    "LabelsResponse",
    "RenameRequest",
    "RequestId",
    "UndoRequest",
    "UndoneResponse",
    "WrittenResponse",
]

_Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
By = Annotated[_Name, Field(description="The labeller.", examples=["ada"])]
RequestId = Annotated[
    str | None,
    Field(
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="An id of your choice that makes retries safe: repeating a request writes only what is missing "
        "if the service was killed while writing; a different request under the same id is refused.",
    ),
]
_ClassName = Annotated[_Name, Field(description="Name of a class.", examples=["cat"])]


class ImageLabel(Body):
    """An image and its class."""

    image: Annotated[ImageId, Field(examples=["0.png"])]
    label: Annotated[_ClassName | None, Field(description="The class; null withdraws one's own label.")]


class LabelsRequest(Body):
    """Labels to write, all or none; if the service is killed while writing, repeating the request writes the rest."""

    by: By
    id: RequestId = None
    labels: Annotated[list[ImageLabel], Field(min_length=1)]


class UndoRequest(Body):
    """What to undo: this labeller's last labels, or those under an id."""

    by: By
    id: RequestId = None


class DefineRequest(Body):
    """Classes to add; existing ones stay."""

    by: By
    id: RequestId = None
    names: Annotated[list[_ClassName], Field(min_length=1)]


class RenameRequest(Body):
    """A new name for a class."""

    by: By
    id: RequestId = None
    name: _ClassName
    to: _ClassName
    merge: Annotated[bool, Field(description="If the new name is in use, merge both classes.")] = False


class ImportRequest(Body):
    """A pairs file whose images and targets become labels; the file is the only upload."""

    by: By
    id: RequestId = None
    format: Literal["jsonl", "csv"] = "jsonl"
    uploads: Uploads = Field(default_factory=dict)


class WrittenResponse(Body):
    """What was written to disk."""

    id: str = Field(description="Id by which it can be undone.")
    written: int = Field(description="Number of labels written; 0 if all had already been written under this id.")
    version: int
    renamed: dict[str, str] = Field(
        default_factory=dict, description="Former class names used in the request, with their current names."
    )


class UndoneResponse(Body):
    """Labels that no longer count."""

    id: str
    version: int
    images: dict[str, dict[str, str]] = Field(description="Current labels of these images, by labeller.")


class ImportResponse(Body):
    """What was imported from a file."""

    id: str
    written: int
    left_out: int
    version: int
    notes: list[str] = Field(description="Why lines were left out.")


class ClassRecord(Body):
    """A class and its number of labels over all labellers."""

    name: str
    labels: int


class AgreementRecord(Body):
    """Agreement of two labellers on the images that both labelled."""

    first: str
    second: str
    images: int
    agreement: float = Field(description="Share of these that got the same class.")
    kappa: float | None = Field(description="Cohen's kappa; null if both use only one class.")


class LabelsResponse(Body):
    """Summary of all labels."""

    version: int = Field(
        description="Increases with every entry; differs between files, and is the same in every process."
    )
    writable: bool = Field(description="Whether this service accepts labels.")
    images: int = Field(description="Images with a class given by all or most labellers.")
    disputed: int = Field(description="Images with a tie between classes.")
    classes: list[ClassRecord]
    renamed: dict[str, str] = Field(description="Former class names, with their current names.")
    labellers: dict[str, int]
    agreement: list[AgreementRecord]
    notes: list[str]
