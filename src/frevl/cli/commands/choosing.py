"""The command that chooses what to label next."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.cli.options import (
    OUTPUT,
    ColumnsOption,
    DeviceOption,
    JsonOption,
    RunOption,
    StoreOption,
    app,
    by_columns,
    say,
    typed,
    write,
)


@app.command()
def select(
    store: StoreOption,
    run: RunOption,
    pairs: Annotated[Path, typer.Option(readable=False, help="Pool of pairs without targets to choose from.")],
    out: Annotated[
        Path, typer.Option(readable=False, help="File to write: the chosen pairs, the most wanted first."), OUTPUT
    ],
    columns: ColumnsOption = None,
    k: Annotated[int | None, typer.Option("-k", help="How many pairs to choose.", show_default="100")] = None,
    by: Annotated[
        str | None,
        typer.Option(
            help="mixed (margin times distance), margin (the least sure), cover (the farthest from what is known) or "
            "doubt (the largest posterior variance).",
            show_default="mixed",
        ),
    ] = None,
    per_image: Annotated[int | None, typer.Option(help="Most pairs of one image.", show_default="1")] = None,
    labelled: Annotated[
        list[Path] | None,
        typer.Option(readable=False, help="Pairs labelled since the run was made; may be repeated."),
    ] = None,
    device: DeviceOption = None,
    json: JsonOption = None,
) -> None:
    """Choose which pairs to label next, so that the run gains most from them."""
    from frevl.runs.choosing.selecting import select_pairs
    from frevl.runs.scorer import Scorer

    scorer = Scorer.open(run, store=store, **typed(device=device))
    found = select_pairs(
        scorer, by_columns(columns, pairs), out, **typed(k=k, by=by, per_image=per_image, labelled=labelled)
    )
    say(f"{found.sentence()} Wrote {out}.")
    write(json, {**found.record(), "out": str(out)})
