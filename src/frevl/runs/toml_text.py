"""TOML, written: the standard library only reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["toml_text"]


def toml_text(record: Mapping[str, Any]) -> str:
    """Return values, lists and tables (one level) as TOML; what is None is left out.

    The standard library reads TOML and does not write it; these few types are all that a command needs.

    Raises:
        TypeError: A value of another type.
    """
    lines = [_line(name, value) for name, value in record.items() if not isinstance(value, Mapping | None)]
    for name, table in record.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(name)}]"]
            lines += [_line(key, value) for key, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    return f"{_key(name)} = {_toml(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    if isinstance(value, str | Path):
        # Quoted as JSON does, which TOML reads too; only the character 127 has to be escaped beside.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"TOML is not written for {type(value).__name__}")
