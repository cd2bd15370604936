"""The answer about the classifier that is being taught."""

from __future__ import annotations

from pydantic import Field

from frevl.deployment.service.schemas import Body

__all__ = ["TeachResponse"]


class AccuracyRecord(Body):
    """Accuracy on held-out labels, with its 95 % interval by picture."""

    value: float
    low: float | None
    high: float | None
    pictures: int


class ConfusionRecord(Body):
    """Labelled pictures of one class that the classifier puts into one class."""

    label: str
    said: str
    pictures: int


class TeachResponse(Body):
    """What the classifier knows. Fields beside the first three are there once it is ready."""

    busy: bool = Field(description="Whether it is being fitted right now.")
    ready: bool
    problem: str = Field(description="Why there is no classifier, in words.")
    version: int | None = Field(None, description="Of the labels that it has learned.")
    pictures: int | None = Field(None, description="Labelled pictures that it has learned.")
    classes: list[str] | None = None
    method: str | None = None
    accuracy: AccuracyRecord | None = Field(
        None,
        description="Of held-out labels. Where these were chosen because they are doubtful, others are easier.",
    )
    confusion: list[ConfusionRecord] | None = None
    wrong: int | None = Field(None, description="Labels that the classifier contradicts when it has not seen them.")
    seconds: dict[str, float] | None = None
    notes: list[str] | None = None
