"""Routes that the page needs besides those of the models: which parts work here, and the reports of the runs."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI, Query
from starlette.responses import Response

from frevl.deployment.service.answers import Posts, Sent, errors, json_answer
from frevl.deployment.service.explorer.asking.ask_schemas import PartsResponse, ReportsResponse
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.explorer.background.training_schemas import TrainingRequest
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.http.limits import RefusedError
from frevl.deployment.service.models import Service
from frevl.deployment.service.schemas import ModelRecord

__all__ = ["add_ask_routes"]

_READ = (401, 403, 422, 429, 503)
_TAG = "explore"


def add_ask_routes(
    app: FastAPI, service: Service, explorer: Explorer | None, reports: Reports, *, opens_explorer: bool
) -> None:
    """Add the routes.

    Args:
        app: The application.
        service: Service with the runs.
        explorer: Shows the images, or None.
        reports: Reports of the runs.
        opens_explorer: The page opens on the images even if runs can be queried.
    """

    @app.get("/explore/parts", response_model=PartsResponse, tags=[_TAG], responses=errors(*_READ))
    async def parts() -> Response:
        """Return which parts of the page work here."""
        found = await asyncio.to_thread(reports.all)
        has_pictures = explorer is not None and (opens_explorer or len(service.images) > 0)
        return json_answer(
            {
                **service.record(),
                "name": service.store.path.resolve().name,
                "opens": "pictures" if opens_explorer or not service.models else "ask",
                "explorer": has_pictures,
                "pictures": explorer is not None and explorer.thumbnails.pictures is not None,
                "reports": len(found),
            }
        )

    @app.get("/explore/reports", response_model=ReportsResponse, tags=[_TAG], responses=errors(*_READ))
    async def listed() -> Response:
        """List the pages that other commands wrote about the runs."""
        found = await asyncio.to_thread(reports.all)
        fields = ("id", "run", "title", "bytes", "changed")
        return json_answer({"reports": [{name: getattr(one, name) for name in fields} for one in found]})

    html: dict[int | str, dict[str, Any]] = {200: {"description": "A page.", "content": {"text/html": {}}}}

    @app.get("/explore/report", tags=[_TAG], response_class=Response, responses={**html, **errors(*_READ, 404, 413)})
    async def report(
        of: Annotated[str | None, Query(max_length=1000, description="Its id; defaults to the first one.")] = None,
    ) -> Response:
        """Return a report for a frame; the browser runs none of its scripts and fetches nothing that it references."""
        return await asyncio.to_thread(reports.answer, of)

    if explorer is not None:
        _add_training_route(app, explorer, reports)

    @app.get("/report", include_in_schema=False)
    async def first() -> Response:
        return await asyncio.to_thread(reports.answer, None)


def _add_training_route(app: FastAPI, explorer: Explorer, reports: Reports) -> None:
    posts = Posts(app, explorer.service.limits)

    @posts("/explore/training/ask", TrainingRequest, ModelRecord)
    async def ask(asked: TrainingRequest, _: Sent) -> dict[str, Any]:
        """Serve a run that was trained here until the service ends, so that it can be queried and compared."""
        return await _serve(explorer, reports, asked.name)


async def _serve(explorer: Explorer, reports: Reports, name: str) -> dict[str, Any]:
    explorer.check_writable()
    job = await explorer.ask(lambda: explorer.trainings.one(name))
    if job.state() != "done":
        raise RefusedError(409, "not_done", f"The run {name[:80]!r} is not available: its training is {job.state()}.")
    model = await explorer.service.add(name, job.run, device=explorer.device)
    reports.add(name, job.run)
    return model.record()
