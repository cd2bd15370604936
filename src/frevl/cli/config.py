"""``--config FILE.toml``: a whole command in a file. What is typed on the command line wins over the file.

The keys are the long names of the command's flags (``time-limit = 600``), or the name of an argument; the table ``set``
holds the options of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from frevl.errors import InputError, UsageError, nearest

__all__ = ["apply_config", "merged_settings"]

_OF_THE_FILE = "frevl.settings"


def apply_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take the values of a file for what is not typed; a callback of the flag ``--config``.

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
    """Return ``NAME=VALUE`` of the file's table ``set`` and of what was typed, which wins name by name."""
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

    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a TOML file, found none at this path") from None
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: expected a TOML file ({error})") from error


def _settings(path: Path, table: Any) -> dict[str, str]:
    """Return the values of the table ``set`` as they would be typed."""
    if not isinstance(table, dict):
        raise UsageError(f"{path}: 'set' must be a table, such as\n[set]\ndropout = 0.3")
    for name, value in table.items():
        if not isinstance(value, str | int | float):
            raise UsageError(
                f"{path}, table 'set': '{name}' must be a number, text, true or false, found {value!r:.40}"
            )
    return {name: str(value) for name, value in table.items()}


def _checked(path: Path, key: str, value: Any, parameter: Any) -> Any:
    """Return a value as the command line would hand it on; its range is checked there."""
    switch, several = bool(getattr(parameter, "is_flag", False)), bool(getattr(parameter, "multiple", False))
    if isinstance(value, dict) and "=" in str(parameter.metavar):
        value = [f"{name}={one}" for name, one in value.items()]  # as --columns takes it
    if isinstance(value, list) and not several:
        raise UsageError(f"{path}: '{key}' takes one value, found a list")
    entries = value if isinstance(value, list) else [value]
    for one in entries:
        if isinstance(one, bool) != switch or not isinstance(one, str | int | float):
            expected = "true or false" if switch else "a number or text"
            raise UsageError(f"{path}: '{key}' must be {expected}, found {one!r:.40}")
    texts = [one if switch else str(one) for one in entries]
    return texts if several else texts[0]
