"""The response body for the classifier being taught."""

from __future__ import annotations

from pydantic import Field

from frevl.deployment.service.schemas import Body

__all__ = ["TeachResponse"]


class AccuracyRecord(Body):
    """Accuracy on held-out labels, with its 95 % interval by image."""

    value: float
    low: float | None
    high: float | None
    pictures: int


class ConfusionRecord(Body):
    """Labelled images of one class that the classifier assigns to another."""

    label: str
    said: str
    pictures: int


class TeachResponse(Body):
    """State of the classifier. All fields except the first three appear once it is ready."""

    busy: bool = Field(description="Whether it is being fitted right now.")
    ready: bool
    problem: str = Field(description="Why there is no classifier.")
    version: int | None = Field(None, description="Version of the labels it was fitted to.")
    pictures: int | None = Field(None, description="Number of labelled images it was fitted to.")
    classes: list[str] | None = None
    method: str | None = None
    accuracy: AccuracyRecord | None = Field(
        None,
        description="Accuracy on held-out labels; lower than on other images if doubtful ones were labelled first.",
    )
    confusion: list[ConfusionRecord] | None = None
    wrong: int | None = Field(None, description="Labels that the classifier contradicts when they are held out.")
    seconds: dict[str, float] | None = None
    notes: list[str] | None = None
