"""The explorer's page: files built from ``web/`` and shipped in the package."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse, RedirectResponse, Response

from frevl.deployment.service.http.limits import RefusedError

__all__ = ["PAGE", "add_page"]

PAGE = Path(__file__).with_name("page")
_KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
# Only what this service itself sends is run, shown or fetched; text is never executed.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI, *, leads: bool) -> None:
    """Add the page at ``/`` and ``/explore/``.

    Args:
        app: The application.
        leads: Redirect from ``/`` to ``/explore/`` instead of serving the page at both.
    """

    async def lead() -> Response:
        return RedirectResponse("/explore/")

    async def page() -> Response:
        return FileResponse(PAGE / "index.html", media_type=_KINDS[".html"], headers=_HEADERS)

    app.get("/explore", include_in_schema=False)(lead)
    if leads:
        app.get("/", include_in_schema=False)(lead)
    else:
        app.get("/", include_in_schema=False)(page)
    app.get("/explore/", include_in_schema=False)(page)

    @app.get("/explore/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        path = PAGE / name
        if path.name != name or path.suffix not in _KINDS or not path.is_file():
            raise RefusedError(404, "no_such_route", "The page has no such file.")
        return FileResponse(path, media_type=_KINDS[path.suffix], headers=_HEADERS)
