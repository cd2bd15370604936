"""Processes that a service has started: told from others that got their id later, and what they said last."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["birth_of", "is_alive", "last_lines"]

_MOST_READ = 64 * 1024  # bytes of a log


def birth_of(process: int) -> str:
    """Return when a process began, in ticks of the system; empty where it does not say, or there is no such process."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = status.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]  # one that has ended and waits to be asked is gone


def is_alive(process: int, born: str) -> bool:
    """Tell whether the process of this id runs and is the one that began then."""
    if process <= 0:  # these stand for groups of processes
        return False
    if born or birth_of(os.getpid()):
        return bool(born) and birth_of(process) == born
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def last_lines(log: Path) -> list[str]:
    """Return the lines at the end of a log, the states of a progress line one by one; none if there is no log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_READ))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
