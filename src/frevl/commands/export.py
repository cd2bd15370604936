"""The command that turns a run into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, RunOption, app, say, typed, write


@app.command()
def export(
    run: RunOption,
    onnx: Annotated[
        Path | None, typer.Option(readable=False, help="File to write.", show_default="model.onnx in the run")
    ] = None,
    int8: Annotated[
        bool | None,
        typer.Option("--int8", help="Products in 8-bit integers; needs labelled pairs.", show_default="off"),
    ] = None,
    store: Annotated[Path | None, typer.Option(readable=False, help="Store of the pairs to compare on.")] = None,
    pairs: Annotated[
        Path | None, typer.Option(readable=False, help="Pairs to compare on.", show_default="random embeddings")
    ] = None,
    json: JsonOption = None,
) -> None:
    """Write a run as one ONNX file, after a comparison with PyTorch."""
    from frevl.export import export as run_export

    done = run_export(**typed(run=run, onnx=onnx, int8=int8, store=store, pairs=pairs))
    say(done.sentence())
    write(json, done.record())
