"""Handlers of training requests, one function per route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frevl.deployment.service.explorer.background.training_schemas import TrainingRequest, TrainRequest
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.label_handlers import exported, read_sent
from frevl.deployment.service.http.body import Upload, decoded
from frevl.deployment.service.http.limits import RefusedError
from frevl.errors import UsageError

__all__ = ["cancel", "detail", "listed", "resume", "start"]


async def listed(explorer: Explorer) -> dict[str, Any]:
    """List all trainings."""
    found = await explorer.ask(lambda: [job.record() for job in explorer.trainings.all()])
    return {"writable": explorer.writable, "trainings": [_scrubbed(explorer, record) for record in found]}


async def detail(explorer: Explorer, name: str) -> dict[str, Any]:
    """Return the details of one training."""
    return _scrubbed(explorer, await explorer.ask(lambda: explorer.trainings.one(name).detail()))


async def start(explorer: Explorer, asked: TrainRequest, uploads: Mapping[str, Upload]) -> dict[str, Any]:
    """Start a training on the labels, or on an uploaded file."""
    explorer.check_writable()
    if len(uploads) > 1:
        raise RefusedError(422, "invalid", f"A training takes one pairs file, found {len(uploads)}.")
    if uploads:
        (name, upload), *_ = uploads.items()
        content = decoded(name, upload)
        pairs = await explorer.ask(lambda: _lines_of(content, asked.format))
    else:
        content = await exported(explorer, "jsonl", None)
        pairs = content.count(b"\n")
        if asked.task == "matching":
            raise RefusedError(
                422, "invalid", "Labels are for classification; for matching, upload a file of image-text pairs.",
            )  # fmt: skip
        if not pairs:
            raise RefusedError(409, "no_labels", "There are no labels to train on yet; label some images first.")

    job = await explorer.ask(
        lambda: explorer.trainings.start(
            content,
            form=asked.format if uploads else "jsonl",
            name=asked.name,
            task=asked.task,
            model=asked.model,
            by=asked.by,
            pairs=pairs,
            of_labels=not uploads,
            minutes=asked.minutes,
        ).record()
    )
    return _scrubbed(explorer, job)


async def cancel(explorer: Explorer, asked: TrainingRequest) -> dict[str, Any]:
    """Cancel a training."""
    explorer.check_writable()
    return _scrubbed(explorer, await explorer.ask(lambda: explorer.trainings.cancel(asked.name).record()))


async def resume(explorer: Explorer, asked: TrainingRequest) -> dict[str, Any]:
    """Resume a training that was stopped."""
    explorer.check_writable()
    return _scrubbed(explorer, await explorer.ask(lambda: explorer.trainings.resume(asked.name).record()))


def _lines_of(content: bytes, form: str) -> int:
    """Return how many pairs a file has, so that an invalid file is refused before anything starts."""
    count = len(read_sent(content, form))
    if not count:
        raise UsageError("The file has no pairs.")
    return count


def _scrubbed(explorer: Explorer, record: dict[str, Any]) -> dict[str, Any]:
    """Remove the store's path from every sentence."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, str):
            found[key] = explorer.scrubbed(value)
        elif isinstance(value, list):
            found[key] = [explorer.scrubbed(one) if isinstance(one, str) else one for one in value]
        else:
            found[key] = value
    return found
