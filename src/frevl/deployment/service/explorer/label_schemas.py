"""Bodies of requests and answers about labels."""

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
By = Annotated[_Name, Field(description="Who labels.", examples=["ada"])]
RequestId = Annotated[
    str | None,
    Field(
        pattern="^[A-Za-z0-9_-]{1,64}$",
        description="An id of your own. The same request again under it writes only what is missing of it (where the "
        "service was killed in the middle of writing), so that it is safe to ask again; something "
        "else under it is refused.",
    ),
]
_ClassName = Annotated[_Name, Field(description="Name of a class.", examples=["cat"])]


class ImageLabel(Body):
    """A picture and its class."""

    image: Annotated[ImageId, Field(examples=["0.png"])]
    label: Annotated[_ClassName | None, Field(description="The class; null takes the own label back.")]


class LabelsRequest(Body):
    """Labels to write: all or none; where the service is killed while it writes, the same again writes the rest."""

    by: By
    id: RequestId = None
    labels: Annotated[list[ImageLabel], Field(min_length=1)]


class UndoRequest(Body):
    """What to take back: what this labeller wrote last, or under an id."""

    by: By
    id: RequestId = None


class DefineRequest(Body):
    """Classes to name; those that are there already stay."""

    by: By
    id: RequestId = None
    names: Annotated[list[_ClassName], Field(min_length=1)]


class RenameRequest(Body):
    """Another name for a class."""

    by: By
    id: RequestId = None
    name: _ClassName
    to: _ClassName
    merge: Annotated[bool, Field(description="Where the new name is taken, make both one class.")] = False


class ImportRequest(Body):
    """A pairs file whose images and targets are taken as labels; the file is the only upload."""

    by: By
    id: RequestId = None
    format: Literal["jsonl", "csv"] = "jsonl"
    uploads: Uploads = Field(default_factory=dict)


class WrittenResponse(Body):
    """What was written; it is on the disk."""

    id: str = Field(description="By which it can be undone.")
    written: int = Field(description="How many; 0 where all had been written under this id already.")
    version: int
    renamed: dict[str, str] = Field(
        default_factory=dict, description="Former names that were given here, and what these classes are called now."
    )


class UndoneResponse(Body):
    """What no longer counts."""

    id: str
    version: int
    images: dict[str, dict[str, str]] = Field(description="Labels of these pictures now, by labeller.")


class ImportResponse(Body):
    """What was taken from a file."""

    id: str
    written: int
    left_out: int
    version: int
    notes: list[str] = Field(description="Why lines were left out.")


class ClassRecord(Body):
    """A class and the number of labels that it has, of all labellers."""

    name: str
    labels: int


class AgreementRecord(Body):
    """Two labellers on the pictures that both labelled."""

    first: str
    second: str
    images: int
    agreement: float = Field(description="Share of these with the same class.")
    kappa: float | None = Field(description="Cohen's kappa; null where both use one class only.")


class LabelsResponse(Body):
    """What all labels amount to."""

    version: int = Field(description="Grows with every entry; another one for another file, in every process the same.")
    writable: bool = Field(description="Whether this service takes labels.")
    images: int = Field(description="Pictures with a class on which labellers agree, or that most of them give.")
    disputed: int = Field(description="Pictures to which labellers give different classes equally often.")
    classes: list[ClassRecord]
    renamed: dict[str, str] = Field(description="Former names of classes, and what these are called now.")
    labellers: dict[str, int]
    agreement: list[AgreementRecord]
    notes: list[str]
