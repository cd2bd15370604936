"""Files of benchmarks in their official formats, written by tests, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frevl.data.benchmarks.load import Benchmark


def put(root: Path, name: str, content: Any) -> Path:
    """Write a file; lists of objects become JSONL when the name says so, other objects JSON."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(line) + "\n" for line in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content), encoding="utf-8")
    return path


def images(root: Path, *names: str) -> None:
    for name in names:
        put(root, name, "a reader of names does not look inside")


def simple(found: Benchmark) -> list[tuple[Any, ...]]:
    return [(row["image"], row["text"], row.get("target")) for row in found.rows]


def karpathy_image(split: str, name: str, *captions: str, folder: str = "") -> dict[str, Any]:
    image: dict[str, Any] = {"filename": name, "split": split, "imgid": 0, "sentids": [0]}
    if folder:
        image |= {"filepath": folder, "cocoid": 7}
    return image | {"sentences": [{"raw": raw, "tokens": raw.split(), "imgid": 0, "sentid": 1} for raw in captions]}
