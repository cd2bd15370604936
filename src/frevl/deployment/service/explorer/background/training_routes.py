"""The routes of trainings."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request
from pydantic import BaseModel
from starlette.responses import Response

from frevl.deployment.service.answers import body_of, errors, json_answer, respond
from frevl.deployment.service.explorer.background import training_handlers
from frevl.deployment.service.explorer.background.training_schemas import (
    TrainingDetail,
    TrainingRecord,
    TrainingRequest,
    TrainingsResponse,
    TrainRequest,
)
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.page_files import check_site
from frevl.deployment.service.http.body import read_body

__all__ = ["TRAINING_BODIES", "add_training_routes"]

TRAINING_BODIES: tuple[type[BaseModel], ...] = (TrainRequest, TrainingRequest)
"""Bodies that these routes read themselves."""

_READ = (401, 403, 422, 429, 503)
_WRITE = (400, 401, 403, 404, 408, 409, 413, 415, 422, 429, 503)
_TAG = "explore"


def add_training_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the routes of trainings to an application."""
    limits = explorer.service.limits

    @app.get("/explore/trainings", response_model=TrainingsResponse, tags=[_TAG], responses=errors(*_READ))
    async def listed() -> Response:
        """List the trainings that were started here, the newest first, with their progress."""
        return json_answer(await training_handlers.listed(explorer))

    @app.get("/explore/training", response_model=TrainingDetail, tags=[_TAG], responses=errors(*_READ, 404))
    async def detail(name: Annotated[str, Query(min_length=1, max_length=200)]) -> Response:
        """Say all of one training, and what it said last."""
        return json_answer(await training_handlers.detail(explorer, name))

    @app.post(
        "/explore/train",
        response_model=TrainingRecord,
        tags=[_TAG],
        responses=errors(*_WRITE),
        openapi_extra=body_of(TrainRequest),
    )
    async def start(request: Request) -> Response:
        """Train a run in the background on the labels, or on a pairs file that is sent along; one at a time."""
        check_site(request)
        asked, uploads = await read_body(request, TrainRequest, limits)
        return await respond(request, training_handlers.start(explorer, asked, uploads))

    @app.post(
        "/explore/training/cancel",
        response_model=TrainingRecord,
        tags=[_TAG],
        responses=errors(*_WRITE),
        openapi_extra=body_of(TrainingRequest),
    )
    async def cancel(request: Request) -> Response:
        """Ask a training to end; what it has reached is kept."""
        check_site(request)
        asked, _ = await read_body(request, TrainingRequest, limits)
        return await respond(request, training_handlers.cancel(explorer, asked))

    @app.post(
        "/explore/training/resume",
        response_model=TrainingRecord,
        tags=[_TAG],
        responses=errors(*_WRITE),
        openapi_extra=body_of(TrainingRequest),
    )
    async def resume(request: Request) -> Response:
        """Continue a training that was cancelled, killed or failed."""
        check_site(request)
        asked, _ = await read_body(request, TrainingRequest, limits)
        return await respond(request, training_handlers.resume(explorer, asked))
