"""Files that frevl writes: a reader never sees half of one, and none replaces what is read.

JSON is written atomically and read without trust. A file and its name survive a power failure only once they have been
flushed. Before a file is written, it is compared with those that are read: one check serves every command
(`frevl.cli.options`) and the functions that both read and write files.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

from frevl.errors import UsageError

__all__ = [
    "LARGEST_RECORD",
    "flush_file",
    "flush_folder",
    "made_again",
    "plain",
    "read_record",
    "refuse_inputs",
    "replace_file",
    "write_json",
    "write_lines",
]

try:
    import fcntl
except ImportError:  # no such module on Windows
    fcntl = None  # type: ignore[assignment]


LARGEST_RECORD = 32 << 20
"""Most bytes of a record that is read. A million class names take as much."""


def read_record(path: Path) -> dict[str, Any]:
    """Read an untrusted file of settings.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than `LARGEST_RECORD`, no JSON, nested too deep, or no object.
    """
    size = path.stat().st_size
    if size > LARGEST_RECORD:
        raise ValueError(f"'{path.name}' has {size:,} bytes, expected at most {LARGEST_RECORD:,}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"'{path.name}' is nested too deep") from None
    if not isinstance(record, dict):
        raise ValueError(f"expected an object in '{path.name}', found {type(record).__name__}")
    return record


def write_json(path: Path, record: Any) -> None:
    """Write JSON atomically, in UTF-8; numbers that are not finite become null."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON objects atomically, one a line, as `write_json` would."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(plain(one), ensure_ascii=False, allow_nan=False) + "\n" for one in records)

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside the target, then rename: a reader sees the old file or the new one, a failure leaves the old one.

    File and name are on the disk when this returns.

    A link stays a link, and the file that it leads to is replaced. What is no file (a terminal, a pipe) is written to.

    Args:
        path: The file; its folder must be there.
        write: Called with the path to write to.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        write(path)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        write(temporary)
        flush_file(temporary)
        if target.is_file():
            temporary.chmod(stat.S_IMODE(target.stat().st_mode))
        temporary.replace(target)
        flush_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):  # the error of the write is the one to tell
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Turn numpy numbers, paths, tuples and times into JSON types; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    numpy = sys.modules.get("numpy")  # not imported: a command that has no arrays would pay for it
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date | clock):
        return value.isoformat()
    return str(value) if isinstance(value, Path | timedelta) else value


# What file systems say that cannot flush a folder (some network file systems); they keep names by other means.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def flush_file(path: str | Path) -> None:
    """Wait until the content of a file is on disk.

    Raises:
        OSError: The disk failed, or the file is missing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str | Path) -> None:
    """Wait until the names in a folder are on disk: new, renamed and deleted ones.

    Raises:
        OSError: The disk failed, or the folder is missing.
    """
    if os.name == "nt":  # a folder cannot be opened there; renames are on the disk when they return
        return
    try:
        flush_file(path)
    except OSError as error:
        if error.errno not in _CANNOT_FLUSH:
            raise


def _flush(descriptor: int) -> None:
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS: fsync alone leaves the data in the drive's own cache
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError:  # not every file system there has it
            pass
    os.fsync(descriptor)


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
