"""Make pages shareable: they may show file names, but never the folders of the machine."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

__all__ = ["shareable"]

# An absolute path as one word of a command, also after `--option=`.
_PATH = re.compile(r"(?<![^\s='\"])(?:~|/|[A-Za-z]:[\\/])[^\s'\"]*")


def shareable(record: dict[str, Any]) -> dict[str, Any]:
    """Return a diagnosis JSON for sharing: full paths of the store and in the command become names."""
    origin = dict(record.get("provenance", {}))
    store = str(origin.get("store", ""))
    shown = _replaced(record, store, _name(store)) if PurePath(store).is_absolute() else dict(record)
    if "command" in origin:
        origin["command"] = _PATH.sub(lambda found: _name(found.group()), str(origin["command"]))
    return {**shown, "provenance": {**origin, **({"store": _name(store)} if store else {})}}


def _name(path: str) -> str:
    """Return the last part of a path, in Unix or Windows form."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1] or path


def _replaced(value: Any, old: str, new: str) -> Any:
    """Replace a text in all strings of nested dictionaries and lists."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return {key: _replaced(one, old, new) for key, one in value.items()}
    return [_replaced(one, old, new) for one in value] if isinstance(value, list) else value
