"""The routes below ``/explore``, documented like all others, with the same keys and limits."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel
from starlette.responses import Response

from frevl.deployment.service.answers import Posts, Sent, errors, json_answer
from frevl.deployment.service.explorer import browse_handlers, label_handlers
from frevl.deployment.service.explorer.background.training_routes import TRAINING_BODIES, add_training_routes
from frevl.deployment.service.explorer.browse_schemas import (
    FindRequest,
    FindResponse,
    ImagesResponse,
    OverviewResponse,
)
from frevl.deployment.service.explorer.curating.curate_routes import CURATION_BODIES, add_curation_routes
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.label_schemas import (
    DefineRequest,
    ImportRequest,
    ImportResponse,
    LabelsRequest,
    LabelsResponse,
    RenameRequest,
    UndoneResponse,
    UndoRequest,
    WrittenResponse,
)
from frevl.deployment.service.explorer.mapping.map_routes import add_map_routes
from frevl.deployment.service.explorer.mapping.map_schemas import PointsRequest
from frevl.deployment.service.explorer.searching.search_routes import SEARCH_BODIES, add_search_routes
from frevl.deployment.service.explorer.teaching.teach_schemas import TeachResponse
from frevl.store.labels.entries import LONGEST_NAME

__all__ = ["EXPLORER_BODIES", "add_explorer_routes"]

EXPLORER_BODIES: tuple[type[BaseModel], ...] = (
    FindRequest,
    PointsRequest,
    LabelsRequest,
    UndoRequest,
    DefineRequest,
    RenameRequest,
    ImportRequest,
    *SEARCH_BODIES,
    *TRAINING_BODIES,
    *CURATION_BODIES,
)
"""Bodies that these routes read themselves."""

_READ = (401, 403, 422, 429, 503)
_TAG = "explore"


def add_explorer_routes(app: FastAPI, explorer: Explorer) -> None:
    """Add the explorer's routes to an application."""
    _add_look_routes(app, explorer)
    _add_label_routes(app, explorer)
    add_map_routes(app, explorer)
    add_search_routes(app, explorer)
    add_training_routes(app, explorer)
    add_curation_routes(app, explorer)


def _add_look_routes(app: FastAPI, explorer: Explorer) -> None:
    posts = Posts(app, explorer.service.limits)

    @app.get("/explore/overview", response_model=OverviewResponse, tags=[_TAG], responses=errors(*_READ))
    async def overview() -> Response:
        """Describe the store's contents and what can be done with it here."""
        return json_answer(await browse_handlers.overview(explorer))

    @app.get("/explore/images", response_model=ImagesResponse, tags=[_TAG], responses=errors(*_READ, 409))
    async def images(
        start: Annotated[int, Query(ge=0, le=2**40)] = 0,
        count: Annotated[int, Query(ge=1, le=browse_handlers.MOST_SHOWN)] = 100,
        shown: Annotated[browse_handlers.Shown, Query()] = "all",
        label: Annotated[str | None, Query(max_length=LONGEST_NAME, description="Only images of this class.")] = None,
        where: Annotated[str | None, Query(max_length=1000, description="SQL over id, bytes and metadata.")] = None,
        filters: Annotated[
            str | None, Query(max_length=8000, description="JSON list of filters on columns, as in `/explore/find`.")
        ] = None,
        order: Annotated[
            browse_handlers.Order, Query(description="Any order other than the store's requires a classifier.")
        ] = "store",
        of: Annotated[str | None, Query(max_length=LONGEST_NAME, description="Class, with order=class.")] = None,
    ) -> Response:
        """List images, in store order or as ranked by the classifier.

        ``next``: those whose labels would teach most; ``doubt``: least certain first; ``wrong``: labels that the
        classifier contradicts; ``class``: likeliest members of a class first.
        """
        found = browse_handlers.images(
            explorer,
            start=start,
            count=count,
            shown=shown,
            label=label,
            where=where,
            filters=filters,
            order=order,
            of=of,
        )
        return json_answer(await found)

    @app.get("/explore/teach", response_model=TeachResponse, tags=[_TAG], responses=errors(*_READ))
    async def teach() -> Response:
        """Return what the classifier has learned from the labels; the first request starts teaching."""
        if explorer.teacher is None:
            return json_answer({"busy": False, "ready": False, "problem": "Teaching is disabled on this service."})
        await explorer.rows()
        await explorer.ask(explorer.teacher.wake)
        return json_answer(explorer.teacher.state())

    @app.get(
        "/explore/thumbnail",
        tags=[_TAG],
        response_class=Response,
        responses={200: {"description": "A JPEG.", "content": {"image/jpeg": {}}}, **errors(*_READ, 404)},
    )
    async def thumbnail(
        image: Annotated[str, Query(min_length=1, max_length=4096)],
        side: Annotated[Literal["160", "320", "960"], Query(description="Pixels of the longer side.")] = "320",
    ) -> Response:
        """Return a thumbnail of an image in the store."""
        await explorer.service.check_images([image])
        made = await explorer.ask(lambda: explorer.thumbnails.read(image, int(side)))
        headers = {"Cache-Control": "private, max-age=600", "Cross-Origin-Resource-Policy": "same-origin"}
        return Response(made, media_type="image/jpeg", headers=headers)

    @posts("/explore/find", FindRequest, FindResponse, writes=False)
    async def find(asked: FindRequest, uploads: Sent) -> dict[str, Any]:
        """Find the images most similar to a text, an image in the store, or an uploaded image."""
        return await browse_handlers.find(explorer, asked, uploads)


def _add_label_routes(app: FastAPI, explorer: Explorer) -> None:
    posts = Posts(app, explorer.service.limits)

    @app.get("/explore/labels", response_model=LabelsResponse, tags=[_TAG], responses=errors(*_READ))
    async def labels() -> Response:
        """Summarise all labels: classes, labellers, and their agreement."""
        return json_answer(await label_handlers.summary(explorer))

    @app.get(
        "/explore/labels/export",
        tags=[_TAG],
        response_class=Response,
        responses={
            200: {
                "description": "A pairs file, as `frevl classify --examples` reads it.",
                "content": {"application/x-ndjson": {}, "text/csv": {}},
            },
            **errors(*_READ),
        },
    )
    async def export(
        form: Annotated[Literal["jsonl", "csv"], Query(alias="format")] = "jsonl",
        by: Annotated[str | None, Query(max_length=LONGEST_NAME, description="Only of this labeller.")] = None,
    ) -> Response:
        """Return the labels as a pairs file, without the images on which labellers are split."""
        kind = {"jsonl": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}[form]
        headers = {"Content-Disposition": f'attachment; filename="labels.{form}"'}
        return Response(await label_handlers.exported(explorer, form, by), media_type=kind, headers=headers)

    @posts("/explore/label", LabelsRequest, WrittenResponse)
    async def label(asked: LabelsRequest, _: Sent) -> dict[str, Any]:
        """Write labels; they are on disk when this is answered."""
        return await label_handlers.label(explorer, asked)

    @posts("/explore/labels/undo", UndoRequest, UndoneResponse)
    async def undo(asked: UndoRequest, _: Sent) -> dict[str, Any]:
        """Undo a labeller's last entries, or those under an id; nothing is deleted from the file."""
        return await label_handlers.undo(explorer, asked)

    @posts("/explore/labels/import", ImportRequest, ImportResponse)
    async def take(asked: ImportRequest, uploads: Sent) -> dict[str, Any]:
        """Import a pairs file (its images and targets) as labels."""
        return await label_handlers.take_file(explorer, asked, uploads)

    @posts("/explore/classes", DefineRequest, WrittenResponse)
    async def define(asked: DefineRequest, _: Sent) -> dict[str, Any]:
        """Add classes."""
        return await label_handlers.define(explorer, asked)

    @posts("/explore/classes/rename", RenameRequest, WrittenResponse)
    async def rename(asked: RenameRequest, _: Sent) -> dict[str, Any]:
        """Rename a class; its labels stay, and the former name still refers to it."""
        return await label_handlers.rename(explorer, asked)
