"""Limits and keys of the service, and the error for refused requests."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass

from frevl.errors import FrevlError, UsageError

__all__ = ["KEYS_VARIABLE", "Keys", "Limits", "RefusedError"]

KEYS_VARIABLE = "FREVL_API_KEYS"
"""Environment variable with comma-separated API keys; without it the service is open."""

_SHORTEST_KEY = 16


class RefusedError(FrevlError):
    """A request answered with an error.

    Attributes:
        status: HTTP status.
        code: Short code for programs, such as ``unknown_image``.
        retry_after: Seconds after which to retry, or None.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.retry_after = retry_after


@dataclass(frozen=True)
class Limits:
    """Limits on a request, and on what the service holds at a time.

    Attributes:
        body_bytes: Largest request body.
        body_seconds: Time within which a body must arrive completely.
        answer_seconds: Time within which a client must read the next 256 KiB of a large answer.
        held_bytes: Total bytes of bodies and large answers of all requests.
        requests: Requests being worked on at a time.
        waiting_requests: Requests waiting for their clients at a time (arriving bodies, large answers being read).
            Beyond this, the oldest request of the client with the most gives way.
        connections: Open connections. Beyond this, an idle one gives way in the same manner.
        client_share: Share of ``held_bytes``, ``requests``, ``waiting_requests`` and ``waiting_items`` that one client
            may have, 0 to 1. A client is a key or, without keys, an address.
        pixels: Maximum pixels of an uploaded image, according to its header.
        uploads: Maximum uploaded images per request.
        items: Maximum pairs, texts or images per request.
        text_characters: Maximum length of a text.
        waiting_items: Maximum items waiting for the model; further requests are asked to retry.
        batch_items: Maximum items run together (a single larger request runs alone).
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
    """API keys, stored only as hashes.

    Args:
        keys: At least 16 characters each; without any, anyone may send requests.

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
            UsageError: A key is too short, or the variable is set but empty.
        """
        value = os.environ.get(KEYS_VARIABLE)
        keys = [key.strip() for key in (value or "").split(",") if key.strip()]
        if value is not None and not keys:
            raise UsageError(f"{KEYS_VARIABLE} is set but contains no key; add keys, or unset it to serve everyone")
        return cls(keys)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, key: str) -> bool:
        """Return whether this is one of the keys, in constant time."""
        given = _hash(key)
        found = False
        for known in self._hashes:
            found |= hmac.compare_digest(known, given)
        return found

    @staticmethod
    def name_of(key: str) -> str:
        """Return a name that identifies a key without revealing it."""
        return f"key {_hash(key).hex()[:16]}"


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
