"""The connection to Ray: a cluster on this machine, created for one call, or an existing one.

Ray is the extra ``ray``. Its usage reports are switched off, and it is given little memory.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import secrets
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType

from frevl import errors
from frevl.errors import FrevlError, UsageError, library
from frevl.machine import processors
from frevl.version import __version__

__all__ = ["HERE", "connected", "refuse_other_code", "versions_here"]

HERE = "local"
"""Address that means: start a cluster on this machine alone, which ends with the call. The word is Ray's own."""

_OBJECTS = 256 << 20  # bytes of memory in which a local cluster keeps results until they are fetched
_LIBRARIES = ("pillow", "numpy", "onnxruntime", "torch", "transformers", "tokenizers", "open_clip_torch")


@contextmanager
def connected(address: str = HERE) -> Iterator[ModuleType]:
    """Connect to Ray and disconnect at the end. A program that is already connected keeps its connection.

    Args:
        address: `HERE`; ``auto`` for the cluster running on this machine; or ``HOST:PORT`` of a cluster's head node.
            All nodes need the same frevl, and must see files under the same paths.

    Yields:
        The module ``ray``.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: The address is invalid, or is that of Ray's client, which does not support this.
        FrevlError: There is no cluster at the address, it refuses the connection, or none can be started here.
    """
    if not address.strip() or "://" in address:
        raise UsageError(
            "--ray takes the address of a cluster's head, such as 10.0.0.5:6379, 'auto' for one running on this "
            f"machine, or nothing to start one here; found '{address}'"
        )
    # Ray reads these when imported: no report leaves the machine, and devices are hidden only from tasks that request
    # them.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray = library("ray", "ray")
    if ray.is_initialized():
        yield ray
        return
    folder = None
    try:
        if address == HERE:
            _own_token()
            folder = tempfile.mkdtemp(prefix="frevl-ray-")
            own = {"num_cpus": processors(), "object_store_memory": _OBJECTS, "_temp_dir": folder}
            _init(ray, address=HERE, include_dashboard=False, **own)
        else:
            _knock(address)
            _init(ray, address=address)
    # Ray raises exceptions of many kinds here: ConnectionError, ValueError, RuntimeError, its own.
    except Exception as error:
        _remove(folder)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = "no cluster could be started here" if address == HERE else f"no cluster answers at '{address}'"
        raise FrevlError(
            f"--ray: {what} ({reason}); check with ray status on its head; this machine needs the same Ray and "
            "Python versions and its token"
        ) from error
    try:
        with _quiet():
            yield ray
    finally:
        ray.shutdown()
        _remove(folder)


def _knock(address: str) -> None:
    """Refuse an address on which nothing listens; Ray would retry for minutes.

    Raises:
        OSError: Nothing listens there.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _init(ray: ModuleType, **options: object) -> None:
    with warnings.catch_warnings():
        # Ray starts its processes by a fork that immediately executes another program.
        warnings.filterwarnings("ignore", "lance is not fork-safe", UserWarning)
        ray.init(**options, log_to_driver=False, logging_level="error")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray from printing node events, which would mix with results on standard output."""
    try:  # a private function; if another version of Ray lacks it, Ray prints
        worker = importlib.import_module("ray._private.worker")
        printing = worker.print_to_stdstream
    except (ImportError, AttributeError):
        yield
        return
    setattr(worker, "print_to_stdstream", lambda *_, **__: None)  # noqa: B010 - mypy
    try:
        yield
    finally:
        setattr(worker, "print_to_stdstream", printing)  # noqa: B010


def _own_token() -> None:
    """Choose a secret token for our cluster; otherwise Ray would write one to the user's folder."""
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def versions_here() -> dict[str, str]:
    """Return this node's versions: frevl with a digest of its source, and the libraries that affect numbers."""
    versions = {"frevl": f"{__version__} ({_source_digest()})"}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def refuse_other_code(node: str, there: dict[str, str]) -> None:
    """Refuse a node that runs a different frevl from this process.

    Args:
        node: Name of the node.
        there: The result of `versions_here` on that node.

    Raises:
        FrevlError: The node's version or source differs.
    """
    here = versions_here()["frevl"]
    if there.get("frevl") != here:
        raise FrevlError(
            f"--ray: the node {node} runs frevl {there.get('frevl', 'unknown')}, this process runs {here}; install the "
            "same frevl on all nodes"
        )


@cache
def _source_digest() -> str:
    """Return a digest of this package's source: development versions share a version number."""
    root = Path(errors.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]
