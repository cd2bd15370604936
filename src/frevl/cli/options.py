"""The commands, a file a theme; each parses, calls one function and prints.

A flag that was not typed is not passed on: every default stands in the signature of the function that is called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand

from frevl.errors import FrevlError
from frevl.outputs import refuse_inputs

__all__ = [
    "OUTPUT",
    "Commands",
    "JsonOption",
    "QuietOption",
    "RunOption",
    "StoreOption",
    "app",
    "say",
    "store_app",
    "typed",
    "write",
    "written_by",
]

OUTPUT = "output"
"""Stands in the annotation of an option whose file or folder is written: it may be none that another option reads."""

F = TypeVar("F", bound=Callable[..., Any])


class _Command(TyperCommand):
    """A command that does not begin if one of its outputs would destroy one of its inputs."""

    def invoke(self, ctx: Any) -> Any:
        flags = {param.name: next((o for o in param.opts if o.startswith("-")), param.name) for param in self.params}
        outputs = {flags[name]: ctx.params.get(name) for name in written_by(self)}
        inputs = {flags.get(name, name): value for name, value in ctx.params.items() if flags.get(name) not in outputs}
        refuse_inputs(outputs, inputs)
        return super().invoke(ctx)


class Commands(typer.Typer):
    """Commands that all check their outputs."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Add a command, as Typer's own method does."""
        return super().command(name, **{"cls": _Command, **options})


def written_by(command: TyperCommand) -> list[str]:
    """Return the names of the parameters that a command writes to: those with `OUTPUT` in their annotation."""
    hints = get_type_hints(inspect.unwrap(command.callback or (lambda: None)), include_extras=True)
    return [name for name, hint in hints.items() if OUTPUT in getattr(hint, "__metadata__", ())]


app = Commands(
    help="Vision-language understanding on frozen embeddings: embed once, train a small fusion, measure it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = Commands(help="Look into a store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

StoreOption = Annotated[Path, typer.Option("--store", readable=False, help="Folder of the store.")]
RunOption = Annotated[Path, typer.Option("--run", readable=False, help="Folder of the run.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", readable=False, help="Write the result to this JSON file."), OUTPUT
]
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
