"""Answers about what the page can do here, and about reports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, ModelsResponse

__all__ = ["PartsResponse", "ReportsResponse"]


class PartsResponse(ModelsResponse):
    """What the page can do here, beside what ``/v1/models`` says."""

    name: str = Field(description="Name of the store's folder.")
    opens: Literal["ask", "pictures"] = Field(description="Which part the page opens on.")
    explorer: bool = Field(description="Whether the pictures of the store can be looked at; false if it has none.")
    pictures: bool = Field(description="Whether the service knows the files of the pictures.")
    reports: int = Field(description="How many reports there are.")


class ReportRecord(Body):
    """A page that a command wrote."""

    id: str = Field(description="What /explore/report?of= takes.")
    run: str = Field(description="The run in whose folder it lies; empty for one that was named with --report.")
    title: str
    bytes: int
    changed: float = Field(description="When it was written, seconds since 1970.")


class ReportsResponse(Body):
    """All reports that are there now."""

    reports: list[ReportRecord]
