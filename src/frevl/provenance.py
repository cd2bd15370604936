"""Where a number comes from: versions, command and hardware, kept with every result; and a command as TOML."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["hardware", "provenance", "toml_text"]

_LIBRARIES = ("frevl", "torch", "numpy", "pylance", "onnxruntime")


def hardware() -> dict[str, str | int]:
    """Return the processor's name, its cores and the memory in GiB."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = names[0] if names else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {"processor": name, "cores": os.cpu_count() or 1, "memory_gib": round(memory / 2**30)}


def provenance(*, run: str, store_fingerprint: str, seed: int, weights: str | None = None) -> dict[str, object]:
    """Return the provenance record of a result (design, "Result JSON"), with the hash of the weights if it has some."""
    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "run": run,
        "store_fingerprint": store_fingerprint,
        "seed": seed,
        **({} if weights is None else {"weights": weights}),
        "versions": versions,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": hardware(),
    }


def toml_text(record: Mapping[str, Any]) -> str:
    """Return values, lists and tables (one level) as TOML; None values are left out.

    The standard library reads TOML but does not write it; a command needs only these few types.

    Raises:
        TypeError: A value has another type.
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
        # Quoted as in JSON, which TOML accepts too; only character 127 must be escaped in addition.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    raise TypeError(f"TOML is not written for {type(value).__name__}")
