"""The routes of trainings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response

from frevl.deployment.service.answers import Posts, Sent, errors, json_answer
from frevl.deployment.service.explorer.background import training_handlers
from frevl.deployment.service.explorer.background.training_schemas import (
    TrainingDetail,
    TrainingRecord,
    TrainingRequest,
    TrainingsResponse,
    TrainRequest,
)
from frevl.deployment.service.explorer.explorer import Explorer

__all__ = ["TRAINING_BODIES", "add_training_routes"]

TRAINING_BODIES: tuple[type[BaseModel], ...] = (TrainRequest, TrainingRequest)
"""Request bodies that these routes read themselves."""

_READ = (401, 403, 422, 429, 503)
_TAG = "explore"


def add_training_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the training routes to an application."""
    posts = Posts(app, explorer.service.limits)

    @app.get("/explore/trainings", response_model=TrainingsResponse, tags=[_TAG], responses=errors(*_READ))
    async def listed() -> Response:
        """List the trainings started here, newest first, with their progress."""
        return json_answer(await training_handlers.listed(explorer))

    @app.get("/explore/training", response_model=TrainingDetail, tags=[_TAG], responses=errors(*_READ, 404))
    async def detail(name: Annotated[str, Query(min_length=1, max_length=200)]) -> Response:
        """Return the details of one training and its latest output."""
        return json_answer(await training_handlers.detail(explorer, name))

    @posts("/explore/train", TrainRequest, TrainingRecord)
    async def start(asked: TrainRequest, uploads: Sent) -> dict[str, Any]:
        """Train a run in the background on the labels or an uploaded pairs file; one at a time."""
        return await training_handlers.start(explorer, asked, uploads)

    @posts("/explore/training/cancel", TrainingRequest, TrainingRecord)
    async def cancel(asked: TrainingRequest, _: Sent) -> dict[str, Any]:
        """Cancel a training; its progress is kept."""
        return await training_handlers.cancel(explorer, asked)

    @posts("/explore/training/resume", TrainingRequest, TrainingRecord)
    async def resume(asked: TrainingRequest, _: Sent) -> dict[str, Any]:
        """Resume a training that was cancelled, killed or failed."""
        return await training_handlers.resume(explorer, asked)
