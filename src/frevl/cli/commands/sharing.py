"""The command that turns a run into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import OUTPUT, ColumnsOption, JsonOption, RunOption, app, by_columns, say, typed, write


@app.command()
def export(
    run: RunOption,
    onnx: Annotated[
        Path | None,
        typer.Option(readable=False, help="File to write.", show_default="model.onnx in the run"),
        OUTPUT,
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8", help="Products in 8-bit integers; needs labelled pairs.", show_default="off"),
    ] = None,
    store: Annotated[Path | None, typer.Option(readable=False, help="Store of the pairs to compare on.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(readable=False, help="Pairs to compare on.", show_default="random embeddings")
    ] = None,
    columns: ColumnsOption = None,
    json: JsonOption = None,
) -> None:
    """Write a run as one ONNX file, after a comparison with PyTorch."""
    from frevl.deployment.export.exporting import export as run_export

    done = run_export(**typed(run=run, onnx=onnx, int8=int8, store=store, pairs=by_columns(columns, pairs)))
    say(done.sentence())
    write(json, done.record())


@app.command()
def publish(
    run: RunOption,
    to: Annotated[str, typer.Option(help="Id on the hub, for example somebody/my-run.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Write here what would be sent, and send nothing.", show_default="send it"),
        OUTPUT,
    ] = None,
    result: Annotated[
        list[Path] | None, typer.Option(help="JSON of frevl evaluate, for the model card; may be repeated.")
    ] = None,
    diagnosis: Annotated[
        Path | None, typer.Option(help="JSON of frevl diagnose, for the verdict in the model card.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private", help="Make the repository private if it is new.", show_default="off")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Send a run with a model card to a model hub, or write what would be sent."""
    from frevl.runs.publishing import push_run, write_published_run

    for_the_card = typed(results=result, diagnosis=diagnosis)
    if folder is not None:
        write_published_run(run, folder, name=to, **for_the_card)
        say(f"Wrote {folder}: look at README.md, then leave --folder out to send it to {to}.")
        write(json, {"folder": str(folder), "address": None})
        return
    address = push_run(run, to, **for_the_card, **typed(private=private))
    say(f"Sent: {address}")
    write(json, {"folder": None, "address": address})
