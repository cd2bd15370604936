"""Origin checks: a browser sends the requests of any page, and states which site the page is from."""

from __future__ import annotations

import ipaddress

from starlette.requests import Request

from frevl.deployment.service.http.limits import RefusedError

__all__ = ["check_host", "check_site"]


def check_site(request: Request) -> None:
    """Refuse requests from pages of other sites, whose forms could otherwise write labels or start and stop trainings.

    The browser's name for this service is in ``Host`` or, behind a proxy that rewrites ``Host``, in
    ``X-Forwarded-Host``; a page of another site cannot set the latter without a preflight request, which is refused.

    Raises:
        RefusedError: The request comes from another site.
    """
    origin = request.headers.get("origin")
    own = {request.headers.get("host", ""), request.headers.get("x-forwarded-host") or request.headers.get("host", "")}
    crossed = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
    if crossed or (origin is not None and origin.partition("://")[2] not in own):
        raise RefusedError(
            403, "other_site", "Requests that write or start work are accepted only from this service's own page."
        )


def check_host(host: str) -> None:
    """Refuse host names that an attacker could point at this machine to make their page pass as ours.

    This is DNS rebinding: the name resolves to 127.0.0.1 once the page is loaded. Only ``localhost`` and IP addresses
    are safe. The check is for services without keys that only this machine can reach.

    Args:
        host: The header; empty if missing, which no browser does.

    Raises:
        RefusedError: The host is any other name.
    """
    name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if not host or name.lower().removesuffix(".") == "localhost":
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise RefusedError(
            403, "other_host", "This service answers only to localhost and IP addresses, not to the host "
                f"{name[:80]!r}; open it by its IP address, set API keys, or start it with --host.",
        ) from None  # fmt: skip
