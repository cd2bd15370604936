"""The command line: its entry point, and what a failure looks like."""

from __future__ import annotations

import sys

import typer

from frevl.commands import (
    app,
    cost,
    data,
    diagnosis,
    encoders,
    export,
    importing,
    lessons,
    publishing,
    scoring,
    searching,
    service,
    training,
)
from frevl.errors import FrevlError, UsageError

__all__ = ["app", "main"]

# Importing a file of commands adds them; the order here is the order of the help.
_COMMANDS = (
    training,
    data,
    importing,
    lessons,
    scoring,
    searching,
    diagnosis,
    encoders,
    export,
    publishing,
    service,
    cost,
)


def main() -> None:
    """Run the command line: exit 0 on success, 2 on wrong use, 1 on a known failure with one clear sentence."""
    try:
        app()
    except FrevlError as error:
        typer.echo(f"frevl: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        typer.echo("frevl: interrupted; what was committed is kept, run the same command again to go on", err=True)
        sys.exit(130)
