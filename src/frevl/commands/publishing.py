"""The command that puts a run on a model hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, RunOption, app, say, typed, write


@app.command()
def publish(
    run: RunOption,
    to: Annotated[str, typer.Option(help="Id on the hub, for example somebody/my-run.")],
    folder: Annotated[
        Path | None, typer.Option(help="Write here what would be sent, and send nothing.", show_default="send it")
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
    from frevl.hub import push_run, write_published_run

    for_the_card = typed(results=result, diagnosis=diagnosis)
    if folder is not None:
        write_published_run(run, folder, name=to, **for_the_card)
        say(f"Wrote {folder}: look at README.md, then leave --folder out to send it to {to}.")
        write(json, {"folder": str(folder), "address": None})
        return
    address = push_run(run, to, **for_the_card, **typed(private=private))
    say(f"Sent: {address}")
    write(json, {"folder": None, "address": address})
