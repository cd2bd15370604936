"""What this machine gives the process: cores and memory, and how threads share them."""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["cores_by_quota", "give_memory_back", "grant_processors", "memory_limit", "processors", "share_processors"]

_HOW_THREADS_WAIT = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Spins before a waiting thread sleeps. With none, a small training alone on a machine takes 1.6 times as long; with ten
# times as many, it crawls where many jobs compete for the cores (docs/scale-measurements.md).
_SPINS = "1000"
_GRANTED = "FREVL_GRANTED_PROCESSORS"
_HOW_MANY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def share_processors() -> None:
    """Make waiting threads sleep soon, and start only as many as this process has cores.

    For OpenMP, which PyTorch and scikit-learn use: it reads the environment when it is loaded, so this must be called
    before that. Where jobs compete for the cores, spinning threads take them from computing ones. The user's own
    settings are kept; a PyTorch already loaded is not changed.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _HOW_THREADS_WAIT):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    if not any(name in os.environ for name in _HOW_MANY_THREADS) and cores_by_quota() < _cores_by_affinity():
        os.environ["OMP_NUM_THREADS"] = str(processors())


def give_memory_back() -> None:
    """Let Arrow use the system's allocator, for a process that only runs a command of frevl.

    Arrow's own default (mimalloc) reserves a GiB at once and keeps what was freed. Both count where `ulimit` bounds a
    process (docs/scale.md). Arrow reads the environment when it is loaded, so this must be called before that. What the
    user has set is kept.
    """
    if "pyarrow" not in sys.modules:
        os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def processors() -> int:
    """Return how many CPU cores this process may use, by its affinity and the quota of its control groups.

    A quota of 1.5 counts as two, because waiting threads do not use it up. One of several workers on a machine has the
    cores that it was granted.
    """
    granted = int(os.environ.get(_GRANTED, "0"))
    return min(_cores_by_affinity(), max(1, math.ceil(min(cores_by_quota(), 1e6))), granted or sys.maxsize)


def grant_processors(count: int) -> None:
    """Limit this process and its children to a number of cores, leaving the rest to others."""
    os.environ[_GRANTED] = str(count)


def cores_by_quota(process: Path = Path("/proc/self")) -> float:
    """Return the CPU time that Linux grants a process's control groups, in cores; inf without a limit.

    Reads ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1) of its group and all ancestors; the smallest
    counts.

    Args:
        process: Folder with the files ``cgroup`` and ``mountinfo``.
    """
    cores = math.inf
    for folder in _control_groups(process, "cpu"):
        limit = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        # "max", -1 and an empty file mean no limit.
        if len(limit) == 2 and all(number.isdigit() and int(number) for number in limit):
            cores = min(cores, int(limit[0]) / int(limit[1]))
    return cores


def memory_limit(process: Path = Path("/proc/self")) -> float:
    """Return the maximum memory of a process in bytes; inf if there is no limit.

    The minimum of the machine's memory, the limits of the process's control groups (``memory.max`` of version 2,
    ``memory.limit_in_bytes`` of version 1), and those of ``ulimit`` (``-v``, ``-d``).

    Args:
        process: Folder with the files ``cgroup`` and ``mountinfo``.
    """
    limits = [math.inf]
    if sys.platform != "win32":
        import resource

        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        own = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
        limits += [limit for limit in own if limit != resource.RLIM_INFINITY]
    for folder in _control_groups(process, "memory"):
        granted = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        limits += [int(number) for number in granted if number.isdigit()]
    return min(limits)


def _cores_by_affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _control_groups(process: Path, rules: str) -> Iterator[Path]:
    """Yield the folders of the control groups that govern a process's ``cpu`` or ``memory``, innermost first."""
    own: dict[str, str] = {}
    for line in _lines(process / "cgroup"):  # 4:cpu,cpuacct:/some/group, or 0::/some/group in version 2
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        own.update(dict.fromkeys(controllers.split(","), path))
    for line in _lines(process / "mountinfo"):
        here, _, kind = line.partition(" - ")
        fields, kinds = here.split(), kind.split()
        if len(fields) < 5 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        controller = "" if kinds[0] == "cgroup2" else rules
        if controller not in own or (controller and controller not in kinds[2].split(",")):
            continue
        root, top = fields[3].rstrip("/"), Path(_unescaped(fields[4]))
        path = own[controller]
        # A container may see its own group as the whole hierarchy, but with the path it has outside.
        inside = path.removeprefix(root) if path.startswith(root) else ""
        group = top / inside.strip("/")
        while True:
            yield group
            if group == top or top not in group.parents:
                break
            group = group.parent


def _unescaped(path: str) -> str:
    """Decode a path of ``mountinfo``, where spaces are written as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, or a kernel without control groups
        return []


def _words(path: Path) -> list[str]:
    return (_lines(path) or [""])[0].split()
