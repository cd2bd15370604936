"""Processes that a service starts: finding them again, telling them from later ones, and reading their last output."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["birth_of", "is_alive", "last_lines", "recorded"]

_MOST_READ = 64 * 1024  # bytes read from the end of a log

# Uses only the standard library, without site packages, so it takes a few milliseconds. If the record cannot be
# written, the command runs all the same.
_RECORDS = """
import json, os, sys
file, command = sys.argv[1], sys.argv[2:]
try:
    with open(file, encoding="utf-8") as given:
        record = json.load(given)
    record["process"], record["born"] = os.getpid(), ""
    if os.path.exists("/proc/self/stat"):
        with open("/proc/self/stat", encoding="utf-8", errors="replace") as status:
            record["born"] = status.read().rpartition(")")[2].split()[19]
    with open(file + ".own", "w", encoding="utf-8") as written:
        json.dump(record, written)
    os.replace(file + ".own", file)
except (OSError, ValueError):
    pass
os.execvp(command[0], command)
"""


def recorded(command: Sequence[str], file: Path) -> list[str]:
    """Return a command that becomes the given one after writing ``process`` and ``born`` into a JSON record.

    So the process is found again even if the service is killed in the moment after starting it.
    """
    return [sys.executable, "-I", "-S", "-c", _RECORDS, str(file), *command]


def birth_of(process: int) -> str:
    """Return when a process began, in system ticks; empty if unknown, or if there is no such process."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # a zombie counts as gone


def is_alive(process: int, born: str) -> bool:
    """Return whether the process with this id is running and is the one that began at that time."""
    if process <= 0:  # these ids denote process groups
        return False
    if born or birth_of(os.getpid()):
        return bool(born) and birth_of(process) == born
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def last_lines(log: Path) -> list[str]:
    """Return the last lines of a log, each state of a progress line as its own line; empty without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_READ))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
