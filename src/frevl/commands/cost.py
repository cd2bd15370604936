"""The command that measures what everything costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, QuietOption, app, say, typed, write


@app.command()
def bench(
    quick: Annotated[
        bool | None, typer.Option("--quick", help="Under a minute, fewer measurements.", show_default="off")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(readable=False, help="Page to write, a plot beside it: docs/performance.md.", show_default="none"),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = None,
) -> None:
    """Measure time, energy and operations a pair on this machine, and when caching pays."""
    from frevl.costs.page import goals_table
    from frevl.efficiency import bench as run_bench

    done = run_bench(**typed(quick=quick, out=out, say=None if quiet else say))
    say(goals_table(done.record()))
    write(json, done.record())
