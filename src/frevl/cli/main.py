"""The entry point of the command line, and how failures are reported."""

from __future__ import annotations

import gc
import re
import sys
from typing import Annotated, NoReturn

import typer

from frevl.cli.commands import (
    classification,
    curation,
    data,
    deployment,
    diagnosis,
    models,
    runs,
    scoring,
    stores,
    training,
)
from frevl.cli.options import app
from frevl.errors import FrevlError, UsageError
from frevl.machine import give_memory_back, share_processors
from frevl.version import __version__

__all__ = ["app", "main"]

# What was loaded stays until the end. Not looking for garbage among it, there too, saves a tenth of `frevl --help`.
gc.freeze()

# Importing a file of commands registers them; `frevl.cli.options.ORDER` sets their order in the help.
_COMMANDS = (classification, curation, data, deployment, diagnosis, models, runs, scoring, stores, training)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frevl {__version__}")
        raise typer.Exit


@app.callback()
def frevl(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Vision-language understanding on frozen embeddings: embed once, train a small fusion, measure it."""


def main() -> None:
    """Run the command line: exit 0 on success, 2 on a usage error, 1 on a known failure with a one-sentence message."""
    share_processors()  # before a command loads torch
    give_memory_back()  # before it loads Arrow
    try:
        app()
    except FrevlError as error:
        typer.echo(f"frevl: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except MemoryError as error:  # of Python, NumPy and Arrow
        _end_without_memory(error)
    except RuntimeError as error:  # PyTorch has no error class of its own for main memory
        if type(error).__name__ == "OutOfMemoryError":  # of a device; this file does not import torch
            _end_without_device_memory(error)
        if "can't allocate memory" not in str(error) and "std::bad_alloc" not in str(error):
            raise
        _end_without_memory(error)
    except OSError as error:  # what no command expected, such as a full disk behind standard output
        where = error.filename or "standard output, or a file"
        typer.echo(f"frevl: {where}: cannot be read or written ({error.strerror or error})", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("frevl: interrupted; committed work is kept; run the same command again to continue", err=True)
        sys.exit(130)


def _end_without_memory(error: Exception) -> NoReturn:
    said = str(error).rpartition("DefaultCPUAllocator: ")[2].partition(". Error code")[0]
    said = said.replace("std::bad_alloc", "") or "no size is known"
    typer.echo(
        f"frevl: out of memory ({said}); committed work is kept; give this process more memory, close others, or use "
        "fewer pairs or smaller embeddings",
        err=True,
    )
    sys.exit(1)


def _end_without_device_memory(error: Exception) -> NoReturn:
    wanted = re.search(r"Tried to (allocate [\d.]+ \w+)", str(error))
    typer.echo(
        f"frevl: --device: out of memory ({f'tried to {wanted[1]}' if wanted else 'no size is known'}), "
        "though batches were made smaller where that helps; committed work is kept; stop other programs on the device, "
        "use a smaller model, or leave out --device",
        err=True,
    )
    sys.exit(1)
