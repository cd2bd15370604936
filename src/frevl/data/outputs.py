"""No output replaces an input: one check for commands (`frevl.cli.options`) and for functions that read and write."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from frevl.data.formats.table_parts import ARROW, is_in_parts
from frevl.errors import UsageError

__all__ = ["is_stdout", "refuse_inputs"]

# In an input folder, a file with an output's suffix may be replaced: most likely the same command wrote it before (a
# result kept next to the images, or in its run). Any other file there, such as an image, may not be replaced ...
_ENDINGS = {"--json": (".json",), "--html": (".html", ".htm"), "--markdown": (".md",), "--onnx": (".onnx",)}
_OTHER_ENDINGS = (".json", ".jsonl", ".md", ".npz", ".svg")
# ... nor may those that make a run.
_RUN_FILES = {"config.toml", "log.jsonl", "run.json", "seeds.json", "settings.json"}
_RUN_FILES |= {f"{name}.safetensors" for name in ("posterior", "seen", "state", "weights")}


def refuse_inputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Refuse to overwrite inputs. Links are followed.

    Args:
        outputs: Paths to write (or None), by the option that the user knows, such as ``--out``. Folders will have files
            written into them.
        inputs: What will be read, by option: a path or a list of paths; anything else is ignored. In ``hf:FOLDER`` and
            ``NAME=FOLDER``, the folder counts.

    Raises:
        UsageError: An output is an input, would replace a file inside an input folder, is another output, or is ``-``.
    """
    read = [(name, path) for name, value in inputs.items() for path in _existing(value)]
    # A store to which items are added is also read.
    read += [(name, path) for name, value in outputs.items() for path in _existing(value) if _is_store(Path(path))]
    written: dict[Path, tuple[str, Any]] = {}
    for name, value in outputs.items():
        if not isinstance(value, str | Path):
            continue
        if str(value) == "-":
            raise UsageError(f"{name} takes a path, and - is none; for standard output, name /dev/stdout")
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
    """Describe the harm that writing to a place would do to a source; empty if none. Links are already resolved."""
    if place == source or (_exists(place) and place.samefile(source)):
        return "is the same path as {}, and writing would destroy it"
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
    """Return whether a file with one JSON object per line was written by frevl: pairs, or pairs with scores."""
    try:
        with file.open("rb") as lines:
            first = json.loads(lines.readline(1 << 20) or b"{}")
        return isinstance(first, dict) and (not first or {"image", "text"} <= set(first))
    except (OSError, ValueError, RecursionError):
        return False


def _existing(value: Any) -> Iterator[str]:
    """Yield the existing paths that a value names."""
    if isinstance(value, str | Path):
        text = os.fspath(value)
        spellings = {text, text.removeprefix("hf:").partition("#")[0].partition("@")[0], text.partition("=")[2]}
        yield from sorted(filter(_exists, spellings))
        yield from _matching(text)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _existing(one)


def _matching(pattern: str) -> Iterator[str]:
    """Yield the files of a table in parts that is given as a pattern."""
    path = Path(pattern)
    if path.suffix.lower() in ARROW and not _exists(pattern) and is_in_parts(path):
        yield from map(str, path.parent.glob(path.name))


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists fails for a query that is too long to be a path


def _is_stream(path: str | Path) -> bool:
    """Return whether it is a terminal, a pipe or a device, where writing replaces nothing."""
    return _exists(path) and not Path(path).is_file() and not Path(path).is_dir()


def is_stdout(path: Path) -> bool:
    """Return whether a path leads to standard output, such as ``/dev/stdout``, whatever that is redirected to."""
    try:
        return os.path.samestat(path.stat(), os.fstat(1))
    except (OSError, ValueError):  # a new file, or no standard output
        return False
