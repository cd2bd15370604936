"""Limits and keys of the service, and the error of a refused request."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass

from frevl.errors import FrevlError, UsageError

__all__ = ["KEYS_VARIABLE", "Keys", "Limits", "RefusedError"]

KEYS_VARIABLE = "FREVL_API_KEYS"
"""Environment variable with the API keys, separated by commas; without it the service is open."""

_SHORTEST_KEY = 16


class RefusedError(FrevlError):
    """A request that is answered with an error.

    Attributes:
        status: HTTP status.
        code: One word or two for programs, for example ``unknown_image``.
        retry_after: Seconds after which it is worth trying again, or None.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """How much a request may ask, and how much the service holds at a time.

    Attributes:
        body_bytes: Largest request body.
        body_seconds: A body must have arrived completely after this time.
        answer_seconds: A client must read the next 256 KiB of a large answer within this time.
        held_bytes: Bodies and large answers of all requests, together.
        requests: Requests that are worked on at a time.
        waiting_requests: Requests that wait for their clients at a time: bodies that arrive, large answers that are
            read. When there are more, the oldest of the client that has the most gives way.
        connections: Open connections. When there are more, an idle one gives way in the same manner.
        client_share: Share of ``held_bytes``, ``requests``, ``waiting_requests`` and ``waiting_items`` that one client
            may have, 0 to 1. A client is a key, or an address where there are no keys.
        pixels: Most pixels of an image that is sent along, according to its header.
        uploads: Most images sent along with a request.
        items: Most pairs, texts or images of a request.
        text_characters: Longest text.
        waiting_items: Most items that wait for the model; a request beyond that is asked to come back.
        batch_items: Most items that are run together (a single larger request runs alone).
    """

    body_bytes: int = 16 << 20
    body_seconds: float = 20.0
    answer_seconds: float = 30.0
    held_bytes: int = 256 << 20
    requests: int = 512
    waiting_requests: int = 1024
    connections: int = 2048
    client_share: float = 0.5
    pixels: int = 25_000_000
    uploads: int = 16
    items: int = 1024
    text_characters: int = 2000
    waiting_items: int = 16_384
    batch_items: int = 256


class Keys:
    """API keys, of which only hashes are kept.

    Args:
        keys: At least 16 characters each; without any, everybody may send requests.

    Raises:
        UsageError: A key is too short.
    """

    def __init__(self, keys: Sequence[str] = ()) -> None:
        for key in keys:
            if len(key) < _SHORTEST_KEY:
                raise UsageError(
                    f"{KEYS_VARIABLE}: expected keys of at least {_SHORTEST_KEY} characters, found one of {len(key)}; "
                    "make one with: python -c 'import secrets; print(secrets.token_urlsafe())'"
                )
        self._hashes = [_hash(key) for key in keys]

    @classmethod
    def of_environment(cls) -> Keys:
        """Read the keys from the environment.

        Raises:
            UsageError: A key is too short, or the variable is set and holds none.
        """
        value = os.environ.get(KEYS_VARIABLE)
        keys = [key.strip() for key in (value or "").split(",") if key.strip()]
        if value is not None and not keys:
            raise UsageError(
                f"{KEYS_VARIABLE} is set and holds no key; put keys into it, or unset it to serve everybody"
            )
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, key: str) -> bool:
        """Tell whether this is one of the keys, in a time that does not depend on which or on how much is right."""
        given = _hash(key)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, given)
        return found

    @staticmethod
    def name_of(key: str) -> str:
        """Return what tells a key from others, without the key itself."""
        return f"key {_hash(key).hex()[:16]}"


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
