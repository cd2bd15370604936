"""Addresses of stores: local folders and object stores, and how to reach the latter."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NoReturn, cast

from frevl.errors import StoreError, UsageError

__all__ = ["CUT_OFF", "RemotePath", "cache_of", "is_remote", "place_of", "remote_failure", "storage_options"]

SCHEMES = ("s3", "gs", "az")

CUT_OFF = "its answer was cut off"
"""Describes an answer that ended too early; the same request may succeed."""

# The wording of problems by object stores and connections, and ours. Theirs is never quoted, because such answers may
# contain keys.
_REASONS = (
    (r"NoSuchBucket|NoSuchContainer|bucket .* does not exist", "there is no such bucket"),
    (r"RequestTimeTooSkewed|AuthorizationHeaderExpired|difference between the request time",
     "the clock of this machine is wrong: set it"),
    (r"\b40[13]\b|AccessDenied|Forbidden|SignatureDoesNotMatch|InvalidAccessKey|Unauthorized",
     "access was denied: check the credentials and their permissions"),
    (r"[Cc]redential|\bIMDS\b|metadata (service|endpoint)|InvalidToken|ExpiredToken",
     "there are no usable credentials for it"),
    (r"\b50[0-9]\b|SlowDown", "it answers with failures, even after retries"),
    (r"response body|decoding response|end of file|[Ii]ncomplete", CUT_OFF),
    (r"error sending request|connect|dns error|timed out|builder error", "it cannot be reached"),
    (r"\b404\b|[Nn]ot found|NoSuchKey", "a file of the store is missing"),
    (r"\b(400|301|307)\b|Redirect|AuthorizationHeaderMalformed", "it refuses the request: check the region"),
)  # fmt: skip


class RemotePath(PurePosixPath):
    """An address in an object store, printed as written; it does not exist in the local file system."""

    def __str__(self) -> str:
        return re.sub(r"^(\w+):/+", r"\1://", super().__str__())

    def resolve(self, strict: bool = False) -> RemotePath:  # noqa: ARG002
        """Return the address unchanged."""
        return self

    def absolute(self) -> RemotePath:
        """Return the address unchanged."""
        return self

    def exists(self) -> bool:
        """Return False."""
        return False

    def is_dir(self) -> bool:
        """Return False."""
        return False

    def is_file(self) -> bool:
        """Return False."""
        return False

    def iterdir(self) -> Iterator[RemotePath]:
        """Find nothing."""
        return iter(())

    def glob(self, pattern: str) -> Iterator[RemotePath]:  # noqa: ARG002
        """Find nothing."""
        return iter(())

    def rglob(self, pattern: str) -> Iterator[RemotePath]:  # noqa: ARG002
        """Find nothing."""
        return iter(())

    def _absent(self, *_: Any, **__: Any) -> NoReturn:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))

    def _read_only(self, *_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    stat = open = read_text = read_bytes = _absent
    mkdir = touch = write_text = write_bytes = unlink = _read_only


def place_of(store: str | PurePath) -> Path:
    """Return the location of a store.

    Returns:
        A path; a `RemotePath` for an object store.

    Raises:
        UsageError: It is another kind of address, or one without a bucket or with credentials.
    """
    if isinstance(store, RemotePath):
        return cast(Path, store)
    written = str(store)
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+", written)  # in a path one slash remains; C:/ is a drive
    if found is None:
        return Path(store)
    scheme, rest = found[1].lower(), written[found.end() :]
    if scheme not in SCHEMES:
        raise UsageError(  # the address is not quoted, as credentials may be anywhere after an unknown scheme
            f"{found[1]}://...: expected a local folder or an address s3://, gs:// or az://, found another "
            "address; mount it as a folder, or copy it here"
        )
    # A key may contain slashes, so that the bucket seems to end within it. No bucket name has one of these characters.
    if re.search("[@:%]", rest.partition("/")[0]) or re.search(":.*@", rest, re.DOTALL) or "?" in rest:
        raise UsageError(
            f"{scheme}://...: the address of a store must not contain credentials or options; provide credentials "
            "as for the object store's own tools, such as AWS_ACCESS_KEY_ID or a profile"
        )
    if not rest.strip("/"):
        raise UsageError(f"{scheme}://: the address of a store needs a bucket, as in {scheme}://bucket/store")
    return cast(Path, RemotePath(f"{scheme}:/{rest.rstrip('/')}"))


def is_remote(store: object) -> bool:
    """Return whether a store is in an object store."""
    return isinstance(store, RemotePath)


def storage_options() -> dict[str, str]:
    """Return the options that Lance does not read from the environment itself: a custom server.

    ``AWS_ENDPOINT_URL_S3`` and ``AWS_ENDPOINT_URL`` name it, or ``AZURE_STORAGE_ENDPOINT``, as for the tools of AWS and
    Azure; for Google's interface, ``gcs_base_url`` in the file of the service account, which Lance reads itself.
    Credentials are never passed: Lance finds them where those tools do.
    """
    options = {"client_max_retries": "5", "client_retry_timeout": "60"}
    given = os.environ.get
    servers = {
        "aws_endpoint": given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL"),
        "azure_endpoint": given("AZURE_STORAGE_ENDPOINT"),
    }
    options.update({name: endpoint for name, endpoint in servers.items() if endpoint})
    if any(address and address.startswith("http://") for address in (*servers.values(), _google_server())):
        options["allow_http"] = "true"
    return options


def _google_server() -> str | None:
    """Return the address of a server that replaces Google's, as the file of the service account names it."""
    account = os.environ.get("GOOGLE_SERVICE_ACCOUNT") or os.environ.get("GOOGLE_SERVICE_ACCOUNT_PATH")
    try:
        found = json.loads(Path(account).read_bytes()) if account else {}
        return str(found.get("gcs_base_url") or "")
    except (OSError, ValueError, AttributeError):
        return None  # Lance reads it too and says what is wrong


def remote_failure(store: Path, what: str, error: BaseException) -> StoreError:
    """Return the error to raise for a failure of an object store, or of Lance accessing it."""
    text = " ".join(str(error).split())
    reason = next((said for pattern, said in _REASONS if re.search(pattern, text)), "it cannot be used")
    return StoreError(
        f"{store}: {what} failed: {reason}; check the address, the network and the credentials, and try again"
    )


def cache_of(store: Path) -> Path:
    """Return the local folder for caching data computed from a remote store."""
    chosen = os.environ.get("FREVL_CACHE")
    home = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frevl"
    return home / "stores" / hashlib.sha256(str(store).encode()).hexdigest()[:16]
