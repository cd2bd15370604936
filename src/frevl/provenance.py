"""Where a number comes from: versions, command and hardware, kept with every result."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

__all__ = ["hardware", "provenance"]

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


def provenance(*, run: str, store_fingerprint: str, seed: int) -> dict[str, object]:
    """Return the provenance record of a result (design, "Result JSON")."""
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
        "versions": versions,
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "hardware": hardware(),
    }
