"""Shared by all commands: the app, ``--config``, flags of several commands, and writing of results.

A flag that was not typed is not passed on: the called function has the default. ``--config FILE.toml`` holds options;
the command line takes precedence. Its keys are the long names of flags (``time-limit = 600``) or the names of
arguments; its table ``set`` holds options of the model.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from frevl.errors import FrevlError, InputError, UsageError, nearest

__all__ = [
    "OUTPUT",
    "ColumnsOption",
    "Commands",
    "ConfigOption",
    "DeviceOption",
    "GroupByOption",
    "GroupsOption",
    "JsonOption",
    "QuietOption",
    "RayOption",
    "RunOption",
    "SetOption",
    "StoreOption",
    "app",
    "apply_config",
    "by_columns",
    "merged_settings",
    "say",
    "settings_of",
    "store_app",
    "typed",
    "write",
    "written_by",
]

_OF_THE_FILE = "frevl.settings"
_OUTPUT_IS_STDOUT: ContextVar[bool] = ContextVar("output_is_stdout", default=False)


def apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Use the file's values for flags that were not typed (callback of ``--config``).

    Raises:
        UsageError: An unknown key (the nearest is suggested), or a value of the wrong kind.
        InputError: The file cannot be read.
    """
    if path is None:
        return None
    parameters = {key_of(one): one for one in context.command.params if one.name not in ("config", "help")}
    values: dict[str, Any] = {}
    for key, value in _read(path).items():
        if key not in parameters:
            command = context.command_path.removeprefix(context.find_root().command_path).strip()
            raise UsageError(f"{path}: '{key}' is not an option of frevl {command}. {nearest(key, parameters)}")
        if key == "set":
            context.meta[_OF_THE_FILE] = _settings(path, value)
        else:
            values[str(parameters[key].name)] = _checked(path, key, value, parameters[key])
    context.default_map = values
    return path


def merged_settings(context: typer.Context, typed: Sequence[str] | None) -> list[str] | None:
    """Return ``NAME=VALUE`` from the file's table ``set`` and the command line, which wins name by name."""
    given = context.meta.get(_OF_THE_FILE)
    if given is None:
        return None if typed is None else list(typed)
    again = {one.partition("=")[0].strip() for one in typed or ()}
    return [*(f"{name}={value}" for name, value in given.items() if name not in again), *(typed or ())]


def key_of(parameter: Any) -> str:
    """Return the long name of a flag, or the name of an argument."""
    flags = [one.lstrip("-") for one in parameter.opts if one.startswith("-")]
    return max(flags, key=len) if flags else str(parameter.name)


def _read(path: Path) -> dict[str, Any]:
    import tomllib  # here, because every start of the command line imports this file

    from frevl.files import read_text

    try:
        return tomllib.loads(read_text(path))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a TOML file") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file ({error})") from error


def _settings(path: Path, table: Any) -> dict[str, str]:
    """Return the values of the table ``set`` as they would be typed on the command line."""
    if not isinstance(table, dict):
        raise UsageError(f"{path}: 'set' must be a table, such as\n[set]\ndropout = 0.3")
    for name, value in table.items():
        if not isinstance(value, str | int | float):
            raise UsageError(
                f"{path}, table 'set': '{name}' must be a number, text, true or false, found {value!r:.40}"
            )
    return {name: str(value) for name, value in table.items()}


def _checked(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """Return a value as the command line would pass it on; ranges are checked there."""
    switch = bool(getattr(parameter, "is_flag", False))
    several = bool(getattr(parameter, "multiple", False)) or parameter.nargs == -1  # the latter are arguments
    if isinstance(value, dict) and "=" in str(parameter.metavar):
        value = [f"{name}={one}" for name, one in value.items()]  # the form that --columns takes
    if isinstance(value, list) and not several:
        raise UsageError(f"{path}: '{key}' takes one value, found a list")
    entries = value if isinstance(value, list) else [value]
    for one in entries:
        if isinstance(one, bool) != switch or not isinstance(one, str | int | float):
            expected = "true or false" if switch else "a number or text"
            raise UsageError(f"{path}: '{key}' must be {expected}, found {one!r:.40}")
    texts = [one if switch else str(one) for one in entries]
    return texts if several else texts[0]


OUTPUT = "output"
"""Marks an option whose file or folder is written: it must not be one that another option reads."""

F = TypeVar("F", bound=Callable[..., Any])

_WORDS = (  # how Typer writes a line of help, and how we show it
    (re.compile(r"<list\[(\w+)\]>"), r"<\1>"),
    (re.compile(r"<int( range)?>"), "<integer>"),
    (re.compile(r"<float( range)?>"), "<number>"),
    (re.compile(r"<str>"), "<text>"),
    (re.compile(r"<Path>"), "<path>"),
    (re.compile(r"\[default: \((.*?)\)(?=[\];])"), r"[default: \1"),
    (re.compile(r"(?<=[\[ ])x>=([\d.]+)(?=\]$)"), r"at least \1"),
    (re.compile(r"(?<=[\[ ])([\d.]+)<=x<=([\d.]+)(?=\]$)"), r"\1 to \2"),
)

_ALONE = {"--ray": "local"}
"""Meaning of an option given without its value, which Typer cannot express."""


class _Command(TyperCommand):
    """A command that reads ``--config``, and refuses an output that is an input, or a path given twice."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for parameter in self.params:
            setattr(parameter, "get_help_record", functools.partial(_plain_help, parameter.get_help_record))  # noqa: B010 - mypy

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {option for parameter in self.params for option in parameter.opts}
        whole: list[str] = []
        for word, following in zip(args, [*args[1:], "-"], strict=False):
            whole.append(word)
            if word in _ALONE and word in own and following.startswith("-"):
                whole.append(_ALONE[word])
        for one in (order := self.make_parser(ctx).parse_args(list(whole))[2]):
            kind = getattr(getattr(one, "type_descriptor", None), "annotation", None)
            if kind is Path and order.count(one) > 1 and not one.multiple:  # otherwise, the last would silently win
                raise UsageError(f"--{key_of(one)} takes one path and is given {order.count(one)} times; give it once")
        return super().parse_args(ctx, whole)

    def invoke(self, ctx: Any) -> Any:
        if "settings" in ctx.params:
            ctx.params["settings"] = merged_settings(ctx, ctx.params["settings"])
        flags = {param.name: next((o for o in param.opts if o.startswith("-")), param.name) for param in self.params}
        outputs = {flags[name]: ctx.params.get(name) for name in written_by(self)} | {"--model": None}  # no path
        inputs = {flags.get(name, name): value for name, value in ctx.params.items() if flags.get(name) not in outputs}
        from frevl.data.outputs import is_stdout, refuse_inputs

        refuse_inputs(outputs, inputs)
        _OUTPUT_IS_STDOUT.set(any(isinstance(path, Path) and is_stdout(path) for path in outputs.values()))
        return super().invoke(ctx)


def _plain_help(record: Callable[[Any], tuple[str, str] | None], context: Any) -> tuple[str, str] | None:
    """Return the flag and text of a help line, with types and ranges in words."""
    if (line := record(context)) is None:
        return None
    flag, text = line
    for pattern, words in _WORDS:
        flag, text = pattern.sub(words, flag), pattern.sub(words, text)
    return flag, text


class Commands(typer.Typer):
    """A group of commands that all accept ``--config`` and check their outputs."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[F], F]:
        """Add a command, as Typer's own method does."""
        add = super().command(name, **{"cls": _Command, **options})

        def decorate(function: F) -> F:
            add(_with_config(function))
            return function

        return decorate


def _with_config(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the parameter ``--config``, which `apply_config` reads, to the function of a command."""

    @functools.wraps(function)
    def command(*arguments: Any, config: Path | None = None, **named: Any) -> Any:  # noqa: ARG001
        return function(*arguments, **named)

    signature = inspect.signature(function, eval_str=True)
    config = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigOption)
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), config])  # type: ignore[attr-defined]
    # Evaluated here, as Typer would compile every annotation twice more: a seventh of the time of ``frevl --help``.
    evaluated = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    command.__annotations__ = {**evaluated, "config": ConfigOption, "return": signature.return_annotation}
    return command


def written_by(command: TyperCommand) -> list[str]:
    """Return the parameters that a command writes to: those annotated with `OUTPUT`."""
    hints = get_type_hints(inspect.unwrap(command.callback or (lambda: None)), include_extras=True)
    return [name for name, hint in hints.items() if OUTPUT in getattr(hint, "__metadata__", ())]


ORDER = (
    *(
        "extract",
        "import",
        "pairs",
        "train",
        "classify",
        "debias",
        "models",
        "evaluate",
        "score",
        "select",
        "search",
        "diagnose",
        "curate",
        "ablate",
    ),
    *("export", "publish", "serve", "explore", "bench", "store", "encoders", "demo"),
)
"""The order of the commands in the help: as a user needs them."""


class _Ordered(TyperGroup):
    """List the commands in the order of `ORDER`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = Commands(
    cls=_Ordered,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
store_app = Commands(
    help="Inspect, check, repair, merge and index a store.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(store_app, name="store")

StoreOption = Annotated[Path, typer.Option("--store", readable=False, help="Store folder, or s3://bucket/path.")]
RunOption = Annotated[Path, typer.Option("--run", readable=False, help="Folder of the run.")]
JsonOption = Annotated[
    Path | None, typer.Option("--json", readable=False, help="Write the result to this JSON file."), OUTPUT
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        readable=False,
        is_eager=True,
        callback=apply_config,
        help="Read the other options from this TOML file.",
    ),
]
DeviceOption = Annotated[str | None, typer.Option("--device", help="Device, such as cpu or cuda.", show_default="cpu")]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Do not show progress.")]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Ray cluster: address of its head node, or auto; without a value, this machine.",
    ),
]
GroupByOption = Annotated[
    str | None,
    typer.Option(help="Key of the pairs; equal values stay together."),
]
GroupsOption = Annotated[
    bool | None,
    typer.Option("--find-groups/--no-groups", help="Detect groups, such as copies.", show_default="on"),
]
EncoderOption = Annotated[
    list[str] | None, typer.Option(help="Encoder; may be repeated.", show_default="all with every item")
]
ImageEncoderOption = Annotated[list[str] | None, typer.Option(help="Encoder of the images.", show_default="--encoder")]
TextEncoderOption = Annotated[list[str] | None, typer.Option(help="Encoder of the texts.", show_default="--encoder")]
ColumnsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--columns",
        metavar="FIELD=NAME",
        help="Column names, such as image=file,text=title.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Option of the model, such as dropout=0.3; see frevl models show NAME. May be repeated.",
    ),
]


def settings_of(given: list[str] | None) -> dict[str, Any]:
    """Return the values of ``--set name=value`` by name; numbers, true, false and none are converted.

    Raises:
        UsageError: There is no name or no equals sign, or a name is given twice.
    """
    found: dict[str, Any] = {}
    for one in given or ():
        name, equals, text = (part.strip() for part in one.partition("="))
        if not equals or not name:
            raise UsageError(f"--set takes NAME=VALUE, such as --set dropout=0.3; found '{one}'")
        if name in found:
            raise UsageError(f"--set {name} is given twice; give it once")
        found[name] = _value(text)
    return found


def _value(text: str) -> Any:
    words: dict[str, Any] = {"true": True, "false": False, "none": None}
    if (word := text.lower()) in words:
        return words[word]
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def by_columns(columns: list[str] | None, pairs: Path | None) -> Any:
    """Read pairs with named columns; without names, leave reading to the called function."""
    if not columns or pairs is None:
        return pairs
    from frevl.data.pairs import read_pairs

    return read_pairs(pairs, columns=columns)


def typed(without: Collection[str] = (), /, **options: Any) -> dict[str, Any]:
    """Keep the options that were typed, except some; defaults live in the signature of the called function."""
    return {name: value for name, value in options.items() if value is not None and name not in without}


def say(text: str) -> None:
    """Print to standard output, or to standard error if an output of the command is written to the former."""
    typer.echo(text, err=_OUTPUT_IS_STDOUT.get())


def write(path: Path | None, record: dict[str, Any]) -> None:
    """Write the result of a command as JSON, if a file was named.

    Raises:
        FrevlError: The file cannot be written.
    """
    if path is None:
        return
    from frevl.files import write_json

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, record)
    except OSError as error:
        raise FrevlError(f"{path}: the JSON cannot be written ({error.strerror or error})") from error
