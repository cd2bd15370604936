"""The HTTP application and its routes; `frevl.deployment.service.start` runs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from frevl.deployment.service import handlers
from frevl.deployment.service.answers import ERRORS, body_of, document_bodies, errors, json_answer, respond
from frevl.deployment.service.explorer.asking.ask_routes import add_ask_routes
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.page_files import add_page
from frevl.deployment.service.explorer.routes import EXPLORER_BODIES, add_explorer_routes
from frevl.deployment.service.http.body import read_body
from frevl.deployment.service.http.limits import Keys, RefusedError
from frevl.deployment.service.http.metrics import Metrics
from frevl.deployment.service.http.middleware import Middleware, error_response
from frevl.deployment.service.http.origins import check_host
from frevl.deployment.service.models import Service
from frevl.deployment.service.schemas import (
    AnswerRequest,
    AnswerResponse,
    EmbedRequest,
    EmbedResponse,
    ModelsResponse,
    ScoreRequest,
    ScoreResponse,
    SearchRequest,
    SearchResponse,
    StateResponse,
)
from frevl.version import __version__

__all__ = ["Application"]

_DESCRIPTION = """
Scores, answers, searches and embeds with trained runs on frozen embeddings. An image is given by its id in the store,
or uploaded: as base64 text in `uploads`, or as a file of a multipart form whose field `request` holds the JSON.
Every error has the form `{"error": {"code", "message", "request_id"}}`; its message says what to do.
"""


class Application:
    """The complete service as an ASGI application: the routes and the page.

    Args:
        service: The models; closed when the application is shut down.
        keys: Who may send requests.
        metrics: Where requests are counted.
        page: Serve the page, at ``/`` and ``/explore/``.
        reports: Pages that other commands wrote about the runs; the first is shown at ``/report``.
        explorer: Shows the images of the store and takes labels; None leaves these routes out.
        opens_explorer: The page opens on the images, and ``/`` redirects to ``/explore/``.
        is_local: Only this machine can reach the service. Then, without keys, ``/report`` and everything below
            ``/explore`` are answered only for requests to ``localhost`` or an IP address.
    """

    def __init__(
        self,
        service: Service,
        *,
        keys: Keys | None = None,
        metrics: Metrics | None = None,
        page: bool = True,
        reports: Reports | None = None,
        explorer: Explorer | None = None,
        opens_explorer: bool = False,
        is_local: bool = False,
    ) -> None:
        keys, metrics = keys or Keys(), metrics or Metrics()
        self._service, self._explorer = service, explorer
        self._checks_host = is_local and not keys
        self.api = _api(service, explorer, metrics, self._lifespan)
        add_ask_routes(self.api, service, explorer, reports or Reports(), opens_explorer=opens_explorer)
        if page:
            add_page(self.api, leads=opens_explorer)
        # Done last: FastAPI forgets the document when a route is added.
        document_bodies(self.api, [*_BODIES, *(EXPLORER_BODIES if explorer is not None else ())], keys)
        self._metrics = metrics
        self._direct = {
            route.path: route
            for route in self.api.routes
            if isinstance(route, APIRoute) and "POST" in (route.methods or ())
        }
        self._middleware = Middleware(self._choose, limits=service.limits, keys=keys, metrics=metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        await self._middleware(scope, receive, send)

    async def _choose(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if self._checks_host and (path in ("/explore", "/report") or path.startswith("/explore/")):
            check_host(dict(scope["headers"]).get(b"host", b"").decode("latin-1"))
        if scope.get("method") == "POST" and path in self._direct:
            await self._answer_directly(self._direct[path], Request(scope, receive, send))
        else:
            await self.api(scope, receive, send)

    async def _answer_directly(self, route: APIRoute, request: Request) -> None:
        """Answer without FastAPI's layers, as these routes read and validate their own bodies.

        Those layers take two fifths of the time of a small request (measured).
        """
        request.scope["route"] = route
        try:
            response = await route.endpoint(request)
        except RefusedError as error:
            self._metrics.refused.labels(error.code).inc()
            response = error_response(error, request.scope["state"]["request_id"])
        await response(request.scope, request.receive, request._send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        yield
        # Active requests have been answered by now; nobody is waiting for what is left in the queue.
        await asyncio.to_thread(self._service.close)
        if self._explorer is not None:
            await asyncio.to_thread(self._explorer.close)


_BODIES = (ScoreRequest, AnswerRequest, SearchRequest, EmbedRequest)


def _api(
    service: Service,
    explorer: Explorer | None,
    metrics: Metrics,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]],
) -> FastAPI:

    app: FastAPI = FastAPIOffline(
        title="frevl",
        version=__version__,
        description=_DESCRIPTION,
        docs_url="/docs",
        redoc_url=None,
        static_url="/docs/assets",
        # By default, the page would send the document to an external validator.
        swagger_ui_parameters={"validatorUrl": None},
        lifespan=lifespan,
    )
    _add_handlers(app, metrics)
    _add_state_routes(app, service, metrics)
    _add_model_routes(app, service)
    if explorer is not None:
        add_explorer_routes(app, explorer)
    return app


def _add_handlers(app: FastAPI, metrics: Metrics) -> None:
    def id_of(request: Request) -> str:
        return str(request.scope["state"]["request_id"])

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        metrics.refused.labels(error.code).inc()
        return error_response(error, id_of(request))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:  # noqa: ARG001
        # Starlette re-raises the error after this, and the middleware logs it.
        sentence = "The service failed here; see its log under the request id."
        return error_response(RefusedError(500, "internal", sentence), id_of(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"][1:])[:200]
        metrics.refused.labels("invalid").inc()
        sentence = f"Field '{field or 'body'}': {first['msg'].removeprefix('Value error, ')}."
        return error_response(RefusedError(422, "invalid", sentence), id_of(request))

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        code = {404: "no_such_route", 405: "wrong_method"}.get(error.status_code, "refused")
        sentence = f"{request.method[:20]} {request.url.path[:100]}: {error.detail}; the routes are listed at /docs."
        response = error_response(RefusedError(error.status_code, code, sentence), id_of(request))
        response.headers.update(error.headers or {})
        return response


def _add_state_routes(app: FastAPI, service: Service, metrics: Metrics) -> None:
    @app.get("/healthz", response_model=StateResponse, tags=["state"], summary="Whether the process is alive")
    async def healthz() -> Response:
        return json_answer({"status": "alive"})

    @app.get(
        "/readyz",
        response_model=StateResponse,
        tags=["state"],
        summary="Whether requests are accepted",
        responses=errors(503),
    )
    async def readyz() -> Response:
        if service.queue.closed:
            raise RefusedError(503, "stopping", "The service is stopping.", retry_after=1)
        return json_answer({"status": "ready"})

    @app.get(
        "/metrics",
        response_class=PlainTextResponse,
        tags=["state"],
        summary="Counters for Prometheus",
        responses=errors(401),
    )
    async def numbers() -> Response:
        metrics.waiting.set(service.queue.waiting)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", response_model=ModelsResponse, tags=["models"], responses=errors(401))
    async def models() -> Response:
        """List the models, and the limits of a request."""
        return json_answer(service.record())


def _add_model_routes(app: FastAPI, service: Service) -> None:
    def post(path: str, body: type[BaseModel], answer: type[BaseModel]) -> Callable[[Any], Any]:
        codes = [code for code in ERRORS if code not in (403, 500)]
        return app.post(
            path, response_model=answer, tags=["models"], responses=errors(*codes), openapi_extra=body_of(body)
        )

    @post("/v1/score", ScoreRequest, ScoreResponse)
    async def score(request: Request) -> Response:
        """Score pairs of an image and a text."""
        asked, uploads = await read_body(request, ScoreRequest, service.limits)
        model = service.model(asked.model)
        return await respond(request, handlers.score(service, model, asked, uploads))

    @post("/v1/answer", AnswerRequest, AnswerResponse)
    async def answer(request: Request) -> Response:
        """Answer questions about images, or abstain."""
        asked, uploads = await read_body(request, AnswerRequest, service.limits)
        model = service.model(asked.model, task="classification")
        return await respond(request, handlers.answer(service, model, asked, uploads))

    @post("/v1/search", SearchRequest, SearchResponse)
    async def search(request: Request) -> Response:
        """Find images for a text or an image, or texts for an image."""
        asked, uploads = await read_body(request, SearchRequest, service.limits)
        model = service.searching_model(asked.model)
        return await respond(request, handlers.search(service, model, asked, uploads))

    @post("/v1/embed", EmbedRequest, EmbedResponse)
    async def embed(request: Request) -> Response:
        """Embed texts and images with the encoders of a model."""
        asked, uploads = await read_body(request, EmbedRequest, service.limits)
        return await respond(request, handlers.embed(service, service.model(asked.model), asked, uploads))
