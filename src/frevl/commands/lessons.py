"""The command that makes pictures and statements to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from frevl.commands import JsonOption, app, say, typed, write


@app.command()
def lessons(
    out: Annotated[Path, typer.Option(readable=False, help="Folder for the pictures and lessons.jsonl.")],
    pictures: Annotated[int | None, typer.Option(min=100, help="Pictures to draw.", show_default="3000")] = None,
    statements: Annotated[
        int | None, typer.Option(min=2, help="Different statements to make.", show_default="20000")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.", show_default="0")] = None,
    json: JsonOption = None,
) -> None:
    """Draw coloured shapes and make true and false statements about them: pairs to learn counting and places from."""
    from frevl.lessons import make_lessons

    made = make_lessons(out, **typed(pictures=pictures, statements=statements, seed=seed))
    say(
        f"Wrote {made.pairs:,} pairs of {made.statements:,} statements and {made.pictures:,} pictures to "
        f"{made.pairs_file}."
    )
    write(
        json,
        {
            "pairs_file": str(made.pairs_file),
            "pairs": made.pairs,
            "statements": made.statements,
            "pictures": made.pictures,
        },
    )
