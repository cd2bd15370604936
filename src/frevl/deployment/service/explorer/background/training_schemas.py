"""Request and response bodies for trainings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, Uploads
from frevl.store.labels.entries import LONGEST_NAME

__all__ = [
    "NAME_PATTERN",
    "TrainRequest",
    "TrainingDetail",
    "TrainingRecord",
    "TrainingRequest",
    "TrainingsResponse",
]

NAME_PATTERN = "^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$"
_RunName = Annotated[str, Field(pattern=NAME_PATTERN, description="Name of the run: letters, digits, - and _.")]


class TrainRequest(Body):
    """What to train, on the labels or on a pairs file sent as the only upload."""

    by: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, description="Who requests it.")]
    name: Annotated[_RunName | None, Field(description="Name of the run; defaults to an unused one.")] = None
    task: Literal["classification", "matching"] = "classification"
    model: Annotated[
        str, Field(pattern="^[a-z][a-z0-9_-]{0,40}$", description="As `frevl train --model`; labels have no texts.")
    ] = "auto"
    minutes: Annotated[float | None, Field(gt=0.02, le=100_000, description="Time limit.")] = None
    format: Annotated[Literal["jsonl", "csv"], Field(description="Format of the uploaded file.")] = "jsonl"
    uploads: Uploads = Field(default_factory=dict)


class TrainingRequest(Body):
    """The training to act on."""

    name: _RunName


State = Literal["running", "stopping", "done", "cancelled", "failed", "interrupted", "deleted"]


class TrainingRecord(Body):
    """A training started here."""

    name: str
    state: Annotated[
        State,
        Field(description="interrupted: its process ended without a result; deleted: its folder was removed."),
    ]
    task: str
    model: str
    by: str
    pairs: int = Field(description="Lines it trains on.")
    of_labels: bool = Field(description="Whether it trains on the labels rather than an uploaded file.")
    started: str = Field(description="In UTC.")
    seconds: float = Field(description="Seconds since it started, or the seconds it took.")
    progress: float | None = Field(
        description="0 to 1: share of the maximum number of epochs; with auto, of its steps, weighted by their "
        "approximate durations; null if unknown."
    )
    step: str = Field(description="Description of its current step.")
    left: float | None = Field(description="Estimated seconds until its end; null if unknown.")
    at_most: float | None = Field(description="Seconds until its end at the latest; null if unknown.")
    accuracy: float | None = Field(
        description="Accuracy on development pairs in percent, once done; null for matching."
    )
    interval: list[float] | None = Field(description="Its 95 % interval, low and high, in percent; null if unknown.")
    problem: str = Field(description="Why there is no result.")


class TrainingDetail(TrainingRecord):
    """A training with details of its result."""

    folder: str = Field(description="Path of the run relative to the store's folder.")
    chosen: str = Field(description="The trained model, once done; for auto, the chosen one.")
    development: int | None = Field(description="Number of development pairs.")
    labels: list[str] = Field(description="Classes, the first hundred.")
    notes: list[str]
    commands: list[str] = Field(description="Commands to use the run from the command line.")
    said: list[str] = Field(description="The last lines of output.")


class TrainingsResponse(Body):
    """All trainings started here, newest first."""

    writable: bool = Field(description="Whether trainings can be started.")
    trainings: list[TrainingRecord]
