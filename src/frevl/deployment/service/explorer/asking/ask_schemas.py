"""Response bodies about the available parts of the page, and about reports."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from frevl.deployment.service.schemas import Body, ModelsResponse

__all__ = ["PartsResponse", "ReportsResponse"]


class PartsResponse(ModelsResponse):
    """What the page can do here, in addition to ``/v1/models``."""

    name: str = Field(description="Name of the store's folder.")
    opens: Literal["ask", "pictures"] = Field(description="Which part the page opens on.")
    explorer: bool = Field(description="Whether the images of the store can be browsed; false if it has none.")
    pictures: bool = Field(description="Whether the service has access to the image files.")
    reports: int = Field(description="Number of reports.")


class ReportRecord(Body):
    """A page that a command wrote."""

    id: str = Field(description="Value for /explore/report?of=.")
    run: str = Field(description="The run whose folder it is in; empty for one given with --report.")
    title: str
    bytes: int
    changed: float = Field(description="When it was written, seconds since 1970.")


class ReportsResponse(Body):
    """All current reports."""

    reports: list[ReportRecord]
