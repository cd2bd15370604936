"""The command line: its entry point, and what a failure looks like."""

from __future__ import annotations

import sys

import typer

from frevl.cli import data, deployment, diagnosis, scoring, sharing, training
from frevl.cli.options import app
from frevl.errors import FrevlError, UsageError

__all__ = ["app", "main"]

# Importing a file of commands adds them; the order here is the order of the help.
_COMMANDS = (training, data, scoring, diagnosis, sharing, deployment)


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
