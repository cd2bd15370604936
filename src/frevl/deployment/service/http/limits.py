"""What the service refuses, and how it says so."""

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
    """How much one client may ask, and how much the service holds at a time.

    Attributes:
        body_bytes: Largest request body.
        body_seconds: A body must have arrived completely after this time.
        held_bytes: Bodies of all requests under way, together.
        requests: Requests under way at a time.
        pixels: Most pixels of an image that is sent along, judged by its header.
        uploads: Most images sent along with a request.
        items: Most pairs, texts or images of a request.
        text_characters: Longest text.
        waiting_items: Most items that wait for the model; a request beyond that is told to come back.
        batch_items: Most items that are run together (a single larger request runs alone).
    """

    body_bytes: int = 16 << 20
    body_seconds: float = 20.0
    held_bytes: int = 256 << 20
    requests: int = 512
    pixels: int = 25_000_000
    uploads: int = 16
    items: int = 1024
    text_characters: int = 2000
    waiting_items: int = 16_384
    batch_items: int = 256


class Keys:
    """API keys, of which only hashes are kept.

    Args:
        keys: At least 16 characters each; none means that everybody may ask.

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


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
