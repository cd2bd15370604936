"""A file of labels that appears complete, continues after an interruption, and has one writer at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from frevl.errors import InputError, UsageError
from frevl.files import write_json

try:
    import fcntl
except ImportError:  # no such module on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["check_label_file", "continued"]

_OTHER_FORMATS = {".parquet", ".arrow", ".feather", ".csv", ".tsv", ".xlsx", ".npz", ".html"}


def check_label_file(out: Path) -> None:
    """Refuse a file name that suggests a format other than JSON lines, and a folder.

    Raises:
        UsageError: The name suggests another format, or is a folder.
    """
    if out.is_dir():
        raise UsageError(f"--out {out}: expected a file for the labels, found a folder; name one in it")
    if out.suffix.lower() in _OTHER_FORMATS:
        raise UsageError(f"--out {out}: labels are written as JSON lines; give it a name such as {out.stem}.jsonl")


@contextmanager
def continued(
    out: Path, identity: dict[str, Any], add: Callable[[dict[str, Any]], None]
) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a stream for further lines, and the number of those that an interrupted labelling has written.

    The lines are in ``.NAME.part`` until the block ends without an error. A link stays a link, and its target is
    replaced; a terminal, a pipe or a device is written to directly.

    Args:
        out: The file.
        identity: What determines the lines: a labelling with another identity is started again.
        add: Called with each line that is already written.

    Raises:
        InputError: The file cannot be written, or another labelling is writing it.
    """
    try:
        if out.exists() and not out.is_file():
            with out.open("wb") as stream:
                yield stream, 0
            return
        path = Path(os.path.realpath(out))
        path.parent.mkdir(parents=True, exist_ok=True)
        part, state = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.state")
        with part.open("a+b") as lines:
            _lock(lines, part, out)
            done = _written(lines, state, identity, add)
            yield lines, done
            lines.flush()
            os.fsync(lines.fileno())
            part.replace(path)
        state.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{out}: the labels cannot be written ({error.strerror or error})") from error


def _lock(lines: BinaryIO, part: Path, out: Path) -> None:
    """Refuse a second writer: lines of both would be mixed. The system unlocks the file when its process ends."""
    busy = f"{out}: another labelling is writing this file; wait for it, or give another path with --out"
    if fcntl is not None:
        try:
            fcntl.flock(lines, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(busy) from None
        except OSError:  # a file system without locks
            return
        # The other labelling may have finished, and renamed the file, after this one had opened it.
        if not part.exists() or not os.path.samestat(os.fstat(lines.fileno()), part.stat()):
            raise InputError(busy)


def _written(lines: BinaryIO, state: Path, identity: dict[str, Any], add: Callable[[dict[str, Any]], None]) -> int:
    """Count the complete lines of an interrupted identical labelling, and cut off an incomplete last one."""
    try:
        same = json.loads(state.read_text(encoding="utf-8")) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        lines.truncate(0)
        write_json(state, identity)
        return 0
    done = end = 0
    lines.seek(0)
    for line in lines:
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:
            row = None
        if row is None:
            break
        add(row)
        done, end = done + 1, end + len(line)
    lines.truncate(end)
    return done
