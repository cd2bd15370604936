"""The routes of curations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response, StreamingResponse

from frevl.deployment.service.answers import Posts, Sent, errors, json_answer
from frevl.deployment.service.explorer.curating import curate_handlers as handlers
from frevl.deployment.service.explorer.curating.curate_schemas import (
    CurationResponse,
    CurationsResponse,
    DecidedResponse,
    DecideRequest,
    DuplicatesResponse,
    JudgedResponse,
    LineFilter,
    RemovedResponse,
    StartCurationRequest,
    StopCurationRequest,
    UndecidedResponse,
    UndecideRequest,
)
from frevl.deployment.service.explorer.curating.removal import removed
from frevl.deployment.service.explorer.explorer import Explorer

__all__ = ["CURATION_BODIES", "add_curation_routes"]

CURATION_BODIES: tuple[type[BaseModel], ...] = (
    DecideRequest,
    UndecideRequest,
    StartCurationRequest,
    StopCurationRequest,
)
"""Request bodies that these routes read themselves."""

_READ = (401, 403, 404, 409, 422, 429, 503)
_TAG = "explore"
_Of = Annotated[str | None, Query(max_length=4096, description="Name of the curation; defaults to the first one.")]
_Start = Annotated[int, Query(ge=0, le=2**40)]
_Count = Annotated[int, Query(ge=1, le=handlers.MOST_SHOWN)]
_Shown = Annotated[handlers.Shown, Query(description="flagged: lines that curate drops; all: every checked line.")]


def add_curation_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the curation routes to an application."""
    _add_look_routes(app, explorer)
    _add_write_routes(app, explorer)


def _add_look_routes(app: FastAPI, explorer: Explorer) -> None:
    @app.get("/explore/curations", response_model=CurationsResponse, tags=[_TAG], responses=errors(*_READ))
    async def all_curations() -> Response:
        """List the curations, what can be curated from here, and the progress of a started one."""
        return json_answer(await handlers.curations(explorer))

    @app.get("/explore/curation", response_model=CurationResponse, tags=[_TAG], responses=errors(*_READ))
    async def curation(of: _Of = None) -> Response:
        """Return a curation's findings, and how many lines are left after all decisions."""
        return json_answer(await handlers.summary(explorer, of))

    @app.get("/explore/curation/lines", response_model=JudgedResponse, tags=[_TAG], responses=errors(*_READ))
    async def lines(
        by: Annotated[LineFilter, Query(alias="filter")],
        of: _Of = None,
        shown: _Shown = "flagged",
        start: _Start = 0,
        count: _Count = 50,
    ) -> Response:
        """List the lines that a filter checked, most suspicious first."""
        return json_answer(await handlers.judged(explorer, of, by, shown, start, count))

    @app.get("/explore/curation/copies", response_model=DuplicatesResponse, tags=[_TAG], responses=errors(*_READ))
    async def copies(of: _Of = None, shown: _Shown = "flagged", start: _Start = 0, count: _Count = 20) -> Response:
        """List groups of copies, each starting with the one that curate keeps."""
        return json_answer(await handlers.duplicates(explorer, of, shown, start, count))

    @app.get("/explore/curation/removed", response_model=RemovedResponse, tags=[_TAG], responses=errors(*_READ))
    async def removed_lines(of: _Of = None) -> Response:
        """Return which groups lose lines after all decisions, compared with removing as many lines at random."""
        return json_answer(await removed(explorer, of))

    @app.get(
        "/explore/curation/export",
        tags=[_TAG],
        response_class=Response,
        responses={
            200: {
                "description": "A pairs file, as `frevl train` reads it.",
                "content": {"application/x-ndjson": {}},
            },
            **errors(*_READ),
        },
    )
    async def export(of: _Of = None, lines: Annotated[Literal["kept", "dropped"], Query()] = "kept") -> Response:
        """Return the lines kept after all decisions, or the dropped ones, with the reason in their key ``curate``."""
        found = await handlers.exported(explorer, of, kept=lines == "kept")
        headers = {"Content-Disposition": f'attachment; filename="{lines}.jsonl"'}
        return StreamingResponse(found, media_type="application/x-ndjson", headers=headers)


def _add_write_routes(app: FastAPI, explorer: Explorer) -> None:
    posts = Posts(app, explorer.service.limits)

    @posts("/explore/curation/decide", DecideRequest, DecidedResponse)
    async def decide(asked: DecideRequest, _: Sent) -> dict[str, Any]:
        """Accept or overrule judgements; decisions are on disk when this is answered."""
        return await handlers.decide(explorer, asked)

    @posts("/explore/curation/undo", UndecideRequest, UndecidedResponse)
    async def undo(asked: UndecideRequest, _: Sent) -> dict[str, Any]:
        """Undo someone's last decisions, or those under an id; nothing is deleted from the file."""
        return await handlers.undo(explorer, asked)

    @posts("/explore/curation/start", StartCurationRequest, CurationsResponse)
    async def start(asked: StartCurationRequest, _: Sent) -> dict[str, Any]:
        """Curate the pairs file given at the start, or the store's labels, in the background; `frevl explore` only."""
        return await handlers.start(explorer, asked)

    @posts("/explore/curation/stop", StopCurationRequest, CurationsResponse)
    async def stop(_body: StopCurationRequest, _: Sent) -> dict[str, Any]:
        """Stop the curation; it continues when started again."""
        return await handlers.stop(explorer)
