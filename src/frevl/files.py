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
"""Maximum size in bytes of a record to read: as much as a million class names take."""


def read_record(path: Path) -> dict[str, Any]:
    """Read an untrusted settings file.

    Raises:
        OSError: It cannot be read.
        ValueError: It is larger than `LARGEST_RECORD`, not JSON, nested too deep, or not an object.
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
    """Write JSON atomically, in UTF-8; non-finite numbers become null."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_lines(path: Path, records: Iterable[Any]) -> None:
    """Write JSON objects atomically, one per line, as `write_json` would."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(plain(one), ensure_ascii=False, allow_nan=False) + "\n" for one in records)

    replace_file(path, write)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write next to the target, then rename: a reader sees the old or the new file; a failure leaves the old one.

    File and name are on the disk when this returns.

    A link stays a link, and its target is replaced. A terminal or a pipe is written to directly.

    Args:
        path: The file; its folder must exist.
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
        with contextlib.suppress(OSError):  # report the error of the write
            temporary.unlink(missing_ok=True)


def plain(value: Any) -> Any:
    """Convert numpy numbers, paths, tuples and times to JSON types; non-finite numbers become None."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    numpy = sys.modules.get("numpy")  # numpy is not imported here: a command without arrays would pay for it
    if numpy is not None and isinstance(value, numpy.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date | clock):
        return value.isoformat()
    return str(value) if isinstance(value, Path | timedelta) else value


# Errors of file systems that cannot flush a folder (some network ones); they keep names by other means.
_CANNOT_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}


def flush_file(path: str | Path) -> None:
    """Wait until a file's contents are on disk.

    Raises:
        OSError: The disk failed, or the file is missing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: str | Path) -> None:
    """Wait until a folder's entries are on disk: new, renamed and deleted names.

    Raises:
        OSError: The disk failed, or the folder is missing.
    """
    if os.name == "nt":  # Windows cannot open a folder; renames are on disk when they return
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
        except OSError:  # not every file system on macOS supports it
            pass
    os.fsync(descriptor)


# In an input folder, a file with an output's suffix may be replaced: most likely the same command wrote it before (a
# result kept next to the pictures, or in its run). Any other file there, such as a picture, may not ...
_ENDINGS = {"--json": (".json",), "--html": (".html", ".htm"), "--markdown": (".md",), "--onnx": (".onnx",)}
_OTHER_ENDINGS = (".json", ".jsonl", ".md", ".npz", ".svg")
# ... nor may those that make a run.
_RUN_FILES = {"config.toml", "log.jsonl", "run.json", "seeds.json", "settings.json"}
_RUN_FILES |= {f"{name}.safetensors" for name in ("posterior", "seen", "state", "weights")}


def made_again() -> Path:
    """Return the user's cache folder: ``$FREVL_CACHE``, or a folder below the system's cache."""
    chosen = os.environ.get("FREVL_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "frevl"


def refuse_inputs(outputs: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
    """Refuse to overwrite inputs. Links are followed.

    Args:
        outputs: Paths to write (or None), by the name that the user knows, such as ``--out``. Files will be written
            into a folder.
        inputs: What will be read, by name: a path or a list of paths; anything else is ignored. In ``hf:FOLDER`` and
            ``NAME=FOLDER``, the folder counts.

    Raises:
        UsageError: An output is an input, would replace a file inside an input folder, or is another output.
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
    """Whether a file with one JSON object per line was written by frevl: pairs, or pairs with scores."""
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
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _existing(one)


def _exists(path: str | Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110  # Path.exists fails for a query that is too long to be a path


def _is_stream(path: str | Path) -> bool:
    """Return whether it is a terminal, a pipe or a device, where writing replaces nothing."""
    return _exists(path) and not Path(path).is_file() and not Path(path).is_dir()
