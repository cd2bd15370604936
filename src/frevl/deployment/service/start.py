"""Start the service: open what it serves, listen, and shut down gracefully."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from frevl.data.formats.table_parts import is_in_parts
from frevl.deployment.service.app import Application
from frevl.deployment.service.explorer.asking.reports import Reports
from frevl.deployment.service.explorer.curating.curations import Curations, Removal
from frevl.deployment.service.explorer.explorer import Explorer
from frevl.deployment.service.explorer.teaching.lesson import Fit
from frevl.deployment.service.http.connection import Connection, OpenConnections, allow_open_files
from frevl.deployment.service.http.gc_tuning import freeze_loaded_objects, switch_threads_often
from frevl.deployment.service.http.limits import Keys, Limits
from frevl.deployment.service.http.log import log_json_lines
from frevl.deployment.service.http.metrics import Metrics
from frevl.deployment.service.models import Service
from frevl.errors import UsageError
from frevl.runs.scorer import Scorer
from frevl.store.reader import Store
from frevl.store.remote.address import place_of

__all__ = ["serve", "service_config"]

_log = logging.getLogger("frevl.service")


def serve(
    store: str | Path,
    runs: Mapping[str, str | Path],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    images: str | Path | None = None,
    report: str | Path | Sequence[str | Path] | None = None,
    page: bool = True,
    labels: bool = False,
    explore: bool = False,
    encoder: str | None = None,
    fit: Fit | None = None,
    curation: str | Path | None = None,
    pairs: str | Path | None = None,
    command: Sequence[str] = (),
    removal: Removal | None = None,
    device: str = "cpu",
    limits: Limits | None = None,
    ready: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Serve runs until the process receives SIGTERM or SIGINT; accepted requests are finished first.

    API keys are read from the environment variable ``FREVL_API_KEYS``; without it, anyone who can reach the port is
    served. Logs are JSON lines on standard error.

    Args:
        store: Folder of the store.
        runs: Folders of runs by name; the first is the default.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one, which is logged.
        images: Folder of the images, so that the page can show them; without it, the page shows their ids.
        report: Pages to show before those in the run folders.
        page: Serve the web page as well.
        labels: Let clients label the store, curate data, and train and serve runs.
        explore: Open the page on the images of the store; no run is needed then.
        encoder: Encoder whose embeddings the explorer uses; None lets it choose.
        fit: Fits the classifier taught in the explorer.
        curation: Result of ``frevl curate --json`` to review in the explorer.
        pairs: A pairs file that may be curated from the explorer.
        command: Command that runs ``frevl`` for a curation; empty disables curating from the page.
        removal: Compares what a curation removes after all decisions with random removal.
        device: Device for PyTorch.
        limits: Limits on requests and clients; None takes the defaults.
        ready: Called once requests are accepted, with ``url``, ``models`` and the start-up ``seconds``.

    Raises:
        UsageError: No run, a missing folder or file, an address in use, or keys that are too short.
        FrevlError: A run or the store cannot be used.
    """
    if not runs and not explore:
        raise UsageError("Nothing to serve: name at least one run with --run")
    shown = [Path(one) for one in ([report] if isinstance(report, str | Path) else report or [])]
    _check_files(images, shown, pairs)
    started = time.monotonic()
    keys, limits, metrics = Keys.of_environment(), limits or Limits(), Metrics()
    with _bound(host, port) as address:  # bound first, so that an address in use fails fast
        # Messages omit the server's paths; a relative one such as `store` could not be told from the word.
        opened = Store.open(place_of(store).absolute())
        runs = {name: Path(run).absolute() if Path(run).is_dir() else run for name, run in runs.items()}
        scorers = {name: Scorer.open(run, store=opened, device=device) for name, run in runs.items()}
        service = Service(scorers, store=opened, limits=limits, observe=metrics.batch)
        folder = None if images is None else Path(images)
        curations = Curations(
            opened.path,
            writable=labels,
            given=None if curation is None else Path(curation).absolute(),
            pairs=None if pairs is None else Path(pairs).absolute(),
            images=folder,
            command=command,
            removal=removal,
        )
        explorer = None
        if explore or opened.select_towers("image"):  # a store of texts alone has no images to browse
            explorer = Explorer(
                service, images=folder, encoder=encoder, writable=labels, fit=fit, device=device, curations=curations
            )
        app = Application(
            service,
            keys=keys,
            metrics=metrics,
            reports=Reports({name: Path(run) for name, run in runs.items()}, shown),
            page=page,
            explorer=explorer,
            opens_explorer=explore,
            is_local=_is_local(address),
        )

        def announce(port: int) -> None:
            freeze_loaded_objects()
            record = {
                "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
                "models": [model.record() for model in service.models.values()],
                "seconds": round(time.monotonic() - started, 2),
            }
            _log.info("ready", extra={"fields": record})
            if ready is not None:
                ready(record)

        _listen(app, limits, address, announce)


def _check_files(images: str | Path | None, reports: Sequence[Path], pairs: str | Path | None) -> None:
    """Refuse a folder or file that does not exist."""
    if images is not None and not Path(images).is_dir():
        raise UsageError(f"{images}: no such folder; expected the folder of the images")
    for path in reports:
        if not path.is_file():
            raise UsageError(f"{path}: no such file; expected the HTML file of a diagnosis")
    if pairs is not None and not Path(pairs).is_file() and not is_in_parts(Path(pairs)):
        raise UsageError(f"{pairs}: no such file; expected a pairs file to curate")


def _listen(app: ASGIApp, limits: Limits, address: socket.socket, announce: Callable[[int], None]) -> None:
    """Serve until a signal ends the process; ``announce`` is called with the port once requests are accepted."""
    log_json_lines()
    switch_threads_often()
    for stop in (signal.SIGTERM, signal.SIGINT):
        # uvicorn shuts down and then re-sends itself the signal; the process should exit successfully.
        signal.signal(stop, lambda *_: None)
    _Server(service_config(app, allow_open_files(limits.connections)), announce).run(sockets=[address])


def service_config(app: ASGIApp, connections: int = 0) -> uvicorn.Config:
    """Return uvicorn's configuration for an application with a number of connections; 0 for no limit."""
    return uvicorn.Config(
        app,
        http=cast("Any", partial(Connection, open_connections=OpenConnections(connections))),
        ws="none",
        backlog=2048,
        access_log=False,
        log_config=None,
        server_header=False,
        # Longer than clients keep idle connections (5 s is common): the client should close first, or a request sent
        # while we close is lost.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=30,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, announcing when it is ready."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[int], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and sockets:
            self._announce(sockets[0].getsockname()[1])


def _bound(host: str, port: int) -> socket.socket:
    """Bind an address; clients cannot connect until the server listens on it."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise UsageError(
            f"Cannot listen on {host}, port {port} ({error.strerror or error}); choose others with --host and --port"
        ) from None
    return taken


def _is_local(bound: socket.socket) -> bool:
    """Return whether only this machine can reach an address."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback
