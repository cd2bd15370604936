"""Commands that serve runs and measure what a pair costs."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from frevl.cli.options import OUTPUT, DeviceOption, JsonOption, QuietOption, StoreOption, app, say, typed, write
from frevl.errors import MissingExtraError, UsageError

ReportOption = Annotated[
    list[Path] | None,
    typer.Option(readable=False, help="HTML report to display; may be repeated.", show_default="those in the runs"),
]


@app.command()
def serve(
    store: StoreOption,
    run: Annotated[
        list[str],
        typer.Option("--run", help="Folder of a run, or NAME=FOLDER; may be repeated; the first is the default."),
    ],
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8000")] = None,
    images: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of the images, to show them on the page.", show_default="ids only"),
    ] = None,
    report: ReportOption = None,
    page: Annotated[
        bool | None, typer.Option("--page/--no-page", help="Serve the web page.", show_default="on")
    ] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Let clients label the store, curate data, and train and serve runs.",
            show_default="off",
        ),
    ] = None,
    device: DeviceOption = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", readable=False, help="When ready, write address and models to this JSON file."),
        OUTPUT,
    ] = None,
) -> None:
    """Serve runs over HTTP, with a web page to ask, match and search.

    API keys are read from the environment variable FREVL_API_KEYS.
    """
    try:
        gc.disable()  # until ready: loaded objects stay, and scanning them takes a fifth of the start-up time
        options = typed(host=host, port=port, images=images, report=report, page=page, labels=labels, device=device)
        _serve(store, run, options, json)
    finally:
        gc.enable()


@app.command()
def explore(
    store: StoreOption,
    images: Annotated[
        Path | None,
        typer.Option(readable=False, help="Folder of the images, to display them.", show_default="ids only"),
    ] = None,
    run: Annotated[
        list[str] | None,
        typer.Option("--run", help="Run to ask or search with, or NAME=FOLDER; may be repeated."),
    ] = None,
    curation: Annotated[
        Path | None,
        typer.Option(readable=False, help="Result of frevl curate --json to review."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(readable=False, help="Pairs file that can be curated from the page."),
    ] = None,
    report: ReportOption = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder used for search and teaching.", show_default="one that also embeds texts, or the first"
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port to listen on.", show_default="8000")] = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Allow labelling the store, curating data, and training and serving runs.",
            show_default="on",
        ),
    ] = None,
    device: DeviceOption = None,
    json: Annotated[
        Path | None,
        typer.Option("--json", readable=False, help="When ready, write address and models to this JSON file."),
        OUTPUT,
    ] = None,
) -> None:
    """Explore a store in the browser: search, label, teach and curate.

    Labels are kept in the store. API keys are read from the environment variable FREVL_API_KEYS.
    """
    try:
        gc.disable()
        options = typed(
            images=images,
            curation=curation,
            pairs=pairs,
            encoder=encoder,
            report=report,
            host=host,
            port=port,
            device=device,
        )
        options["command"] = [sys.executable, "-m", "frevl"]
        _serve(store, run or [], {**options, "labels": labels is not False, "explore": True}, json)
    finally:
        gc.enable()


def _serve(store: Path, runs: list[str], options: dict[str, Any], json: Path | None) -> None:
    try:
        from frevl.deployment.service.start import serve as run_serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _LIBRARIES:
            raise
        raise MissingExtraError(error.name, "serve") from error

    def ready(record: dict[str, Any]) -> None:
        write(json, record)
        say(f"Ready at {record['url']} after {record['seconds']} s (routes: {record['url']}/docs).")

    def fit(*given: Any, **options: Any) -> Any:
        # The service does not import the room `training`, so it receives this function, which imports it on first use.
        from frevl.training.classification.teaching import teach

        return teach(*given, **options)

    def removal(*given: Any, **options: Any) -> Any:
        from frevl.diagnosis.curation.removal.report import removed_of_lines

        return removed_of_lines(*given, **options)

    run_serve(store, _named(runs), **options, fit=fit, removal=removal, ready=ready)


_LIBRARIES = {"fastapi", "fastapi_offline", "httptools", "prometheus_client", "pydantic", "starlette", "uvicorn"}


def _named(runs: list[str]) -> dict[str, str]:
    """Split ``NAME=FOLDER``; without a name, use the folder's name."""
    named: dict[str, str] = {}
    for given in runs:
        name, equals, folder = given.partition("=")
        # A folder may have an equals sign in its path; a name has no slash.
        if not equals or "/" in name or not name:
            name, folder = Path(given).resolve().name, given
        if name in named:
            raise UsageError(
                f"--run {given}: the name '{name}' is already in use; choose another with --run NAME=FOLDER"
            )
        named[name] = folder
    return named


@app.command()
def bench(
    quick: Annotated[
        bool | None, typer.Option("--quick", help="Take fewer measurements, in under a minute.", show_default="off")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(readable=False, help="Write the results to this Markdown file, with a plot next to it."),
        OUTPUT,
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Measure time, energy and operations per pair on this machine."""
    from frevl.deployment.efficiency.bench import bench as run_bench
    from frevl.deployment.efficiency.page import goals_table

    done = run_bench(**typed(quick=quick, out=out, show=None if quiet else say))
    say(goals_table(done.record()))
    write(json, done.record())
