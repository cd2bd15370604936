"""The commands, a file a theme; each parses, calls one function and prints.

A flag that was not typed is not passed on: every default stands in the signature of the function that is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from frevl.errors import FrevlError

__all__ = ["JsonOption", "QuietOption", "RunOption", "StoreOption", "app", "say", "store_app", "typed", "write"]

app = typer.Typer(
    help="Vision-language understanding on frozen embeddings: embed once, train a small fusion, measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(help="Look into a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

StoreOption = Annotated[Path, typer.Option("--store", readable=False, help="Folder of the store.")]
RunOption = Annotated[Path, typer.Option("--run", readable=False, help="Folder of the run.")]
JsonOption = Annotated[Path | None, typer.Option("--json", readable=False, help="Write the result to this JSON file.")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress lines.")]


def typed(**options: Any) -> dict[str, Any]:
    """Keep the options that were typed; defaults stand in the signature of the function that is called."""
    return {name: value for name, value in options.items() if value is not None}


def say(text: str) -> None:
    """Print to standard output."""
    typer.echo(text)


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Write the result of a command as JSON, if a file was named.

    Raises:
        FrevlError: The file cannot be written.
    """
    if path is None:
        return
    from frevl.jsonfile import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise FrevlError(f"{path}: the JSON cannot be written ({error.strerror or error})") from error
