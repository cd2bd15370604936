"""No output destroys an input: before a file is written, it is compared with those that are read.

One check serves every command (`frevl.cli.options`) and the functions that both read and write files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from frevl.errors import UsageError

__all__ = ["made_again", "refuse_inputs"]

# In a folder that is read, a file with the ending of an output may be replaced: it is most likely what the same command
# wrote before (a result kept beside the pictures, or in its run). Any other file there, a picture say, may not ...
_ENDINGS = {"--json": (".json",), "--html": (".html", ".htm"), "--markdown": (".md",), "--onnx": (".onnx",)}
_OTHER_ENDINGS = (".json", ".jsonl", ".md", ".npz", ".svg")
# ... nor may those that make a run.
_RUN_FILES = {"config.toml", "log.jsonl", "run.json", "seeds.json", "settings.json"}
_RUN_FILES |= {f"{name}.safetensors" for name in ("posterior", "seen", "state", "weights")}


def made_again() -> Path:
    """Return the user's folder of what is made again where it is missing: ``$FREVL_CACHE``, else below the system's."""
    chosen = os.environ.get("FREVL_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frevl"


def refuse_inputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Refuse to write over what is read. Links are followed.

    Args:
        outputs: What will be written, a path or None, by the name that the user knows it by, such as ``--out``. A
            folder is one that other files will be written to.
        inputs: What will be read, by name: a path, a list of them, or anything else, which is passed over. Of names
            such as ``hf:FOLDER`` and ``NAME=FOLDER`` the folder counts.

    Raises:
        UsageError: An output is an input, replaces a file inside a folder that is read, or is another output.
    """
    read = [(name, path) for name, value in inputs.items() for path in _existing(value)]
    # A store that is added to is read, too.
    read += [(name, path) for name, value in outputs.items() for path in _existing(value) if _is_store(Path(path))]
    written: dict[Path, tuple[str, Any]] = {}
    for name, value in outputs.items():
        if not isinstance(value, str | Path):
            continue
        if _is_stream(value):
            continue
        place = Path(os.path.realpath(value))
        for other, path in read:
            if other == name:
                continue
            problem = _problem(name, place, Path(os.path.realpath(path)))
            if problem:
                raise UsageError(f"{name} {value} {problem.format(f'{other} {path}')}; give another path with {name}")
        if place in written:
            other, path = written[place]
            raise UsageError(f"{name} and {other} both name {path}, and one would overwrite the other; give two paths")
        written[place] = name, value


def _problem(name: str, place: Path, source: Path) -> str:
    """Say what writing to a place would do to a source; an empty string if nothing. Both have no links."""
    if place == source or (_exists(place) and place.samefile(source)):
        return "is what {} names, and writing would destroy it"
    if source.is_dir() and source in place.parents and _exists(place) and place.is_file():
        harmless = place.suffix.lower() in _ENDINGS.get(name, _OTHER_ENDINGS) and place.name not in _RUN_FILES
        harmless &= place.suffix.lower() != ".jsonl" or _holds_pairs(place)
        return "would overwrite a file of {}" if _is_store(source) or not harmless else ""
    if source.parent == place and source.name in _RUN_FILES:
        return "is a folder in which {} would be overwritten"
    return ""


def _is_store(folder: Path) -> bool:
    return (folder / "towers.lance").is_dir()


def _holds_pairs(file: Path) -> bool:
    """Whether a file with one JSON object per line is one that frevl writes: pairs, or pairs with scores."""
    try:
        with file.open("rb") as lines:
            first = json.loads(lines.readline(1 << 20) or b"{}")
        return isinstance(first, dict) and (not first or {"image", "text"} <= set(first))
    except (OSError, ValueError, RecursionError):
        return False


def _existing(value: Any) -> Iterator[str]:
    """Yield the paths that a value names and that are there."""
    if isinstance(value, str | Path):
        text = os.fspath(value)
        spellings = {text, text.removeprefix("hf:").partition("#")[0].partition("@")[0], text.partition("=")[2]}
        yield from sorted(filter(_exists, spellings))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _existing(one)


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists fails for a query that is too long to be a path


def _is_stream(path: str | Path) -> bool:
    """Tell whether it is a terminal, a pipe or a device: writing replaces nothing."""
    return _exists(path) and not Path(path).is_file() and not Path(path).is_dir()
