"""Whose page may ask: a browser sends what any page wants sent, and says which page that was."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from frevl.deployment.service.http.limits import RefusedError

__all__ = ["check_host", "check_site"]


def check_site(request: Request) -> None:
    """Refuse what a page of another site sends: browsers send forms anywhere, and so would label, train and stop.

    What the browser calls this service stands in ``Host``, or, behind a proxy that sends a ``Host`` of its own, in
    ``X-Forwarded-Host``; a page of another site cannot set that one without asking first, which is not granted.

    Raises:
        RefusedError: The browser says so.
    """
    origin = request.headers.get("origin")
    own = {request.headers.get("host", ""), request.headers.get("x-forwarded-host") or request.headers.get("host", "")}
    crossed = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if crossed or (origin is not None and origin.partition("://")[2] not in own):
        raise RefusedError(
            403, "other_site", "What writes or starts work is taken from the page of this service only, not of another."
        )


def check_host(host: str) -> None:
    """Refuse a name that somebody else may have given to this machine, so that their page passes as the own one.

    That is DNS rebinding: their name leads to 127.0.0.1 once their page is loaded. Names that nobody else can give are
    ``localhost`` and addresses. For a service that only this machine reaches, and that asks for no key.

    Args:
        host: The header; empty if there is none, which no browser sends.

    Raises:
        RefusedError: It is another name.
    """
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if not host or name.lower().removesuffix(".") == "localhost":
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise RefusedError(
            403, "other_host", "This service answers to localhost and to addresses only, found the host "
            f"{name[:80]!r}; open it by its address, set API keys, or start it with --host.",
        ) from None  # fmt: skip
