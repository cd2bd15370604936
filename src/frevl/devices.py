"""Compute resources: the CPU cores that this process may use, and accelerators."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from frevl.errors import UsageError

if TYPE_CHECKING:
    import torch

LossOf = Callable[["torch.Tensor", "torch.Generator"], tuple["torch.Tensor", dict[str, "torch.Tensor"]]]

__all__ = [
    "Shares",
    "Steps",
    "check_device",
    "cores_by_quota",
    "default_batch",
    "grant_processors",
    "is_accelerator",
    "memory_limit",
    "processors",
    "share_processors",
]

_log = logging.getLogger("frevl")

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


def processors() -> int:
    """Return how many CPU cores this process may use, by its affinity and the quota of its control groups.

    A quota of 1.5 counts as two: waiting threads do not use it up. One of several workers on a machine has the cores
        that it was granted.
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
    """Return the bytes of memory that a process may take at the most; inf where nothing says so.

    The least of what the machine has, what its control groups grant (``memory.max`` of version 2,
    ``memory.limit_in_bytes`` of version 1), and what ``ulimit`` leaves this process (``-v``, ``-d``).

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
    """Yield the folders of the control groups that rule a process's ``cpu`` or ``memory``, innermost first."""
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


def is_accelerator(device: str | torch.device) -> bool:
    """Return whether it is an NVIDIA device, the only kind measured (docs/accelerator.md)."""
    return str(device).partition(":")[0] == "cuda"


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use on this machine.

    Raises:
        UsageError: It cannot.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"--device: '{device}' cannot be used here ({reason})") from error


def default_batch(device: str) -> int:
    """Return the scoring batch size: a CPU keeps 1,024 pairs in its cache, which would leave an accelerator idle."""
    return 16_384 if is_accelerator(device) else 1024


class Steps:
    """Split rows into steps of equal size, and into smaller ones when the device runs out of memory.

    Attributes:
        rows: The rows of this step, as a slice.
        size: Maximum rows per step.
    """

    def __init__(self, count: int, size: int, device: str | torch.device) -> None:
        """Begin with the first step; with no rows there is one empty step."""
        self.size, self._count, self._device = size, count, device
        self.rows = slice(0, min(size, count))
        self._empty = count == 0

    @property
    def left(self) -> bool:
        """Return whether steps remain."""
        return self._empty or self.rows.start < self._count

    def done(self) -> None:
        """Move on to the next step."""
        self._empty = False
        self.rows = slice(self.rows.stop, min(self.rows.stop + self.size, self._count))

    def halve(self, error: Exception) -> None:
        """Halve the size of this and all later steps, with a note.

        Raises:
            UsageError: A step is already a single row.
        """
        rows = self.rows.stop - self.rows.start
        if rows <= 1:
            raise _too_little(self._device, error) from error
        self.size = rows // 2
        self.rows = slice(self.rows.start, self.rows.start + self.size)
        _tell(self._device, rows, self.size)


class Shares:
    """Split a training step into equal shares, and into twice as many when the device runs out of memory.

    Args:
        device: Device used for training.
        divisible: Whether a step may be divided; workers that share a step could divide it differently.
    """

    def __init__(self, device: str, *, divisible: bool = True) -> None:
        self._device, self._divisible, self.count = device, divisible, 1

    def gradients(
        self, loss_of: LossOf, rows: torch.Tensor, random: torch.Generator, optimiser: torch.optim.Optimizer
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the gradients of a step, summed over its shares; losses are averaged over them.

        A loss that compares the rows of a batch then compares them within each share.

        Args:
            loss_of: Returns the loss of rows and its named terms.
            rows: ``(n,)`` of the step.
            random: Random generator for the loss.
            optimiser: Its gradients are cleared when a step is restarted.

        Returns:
            Loss and terms, without gradients.

        Raises:
            UsageError: A share is already a single row, and still too large.
        """
        import torch

        while True:
            shares = rows.tensor_split(min(self.count, len(rows)))
            sums: list[torch.Tensor] = []
            names: list[str] = []
            try:
                for share in shares:
                    loss, terms = loss_of(share, random)
                    part = len(share) / len(rows)
                    torch.autograd.backward(loss if len(shares) == 1 else loss * part)
                    values = [loss.detach(), *(term.detach() for term in terms.values())]
                    if len(shares) > 1:
                        values = [value * part for value in values]
                    sums = [a + b for a, b in zip(sums, values, strict=True)] if sums else values
                    names = list(terms)
            except torch.OutOfMemoryError as error:
                self._double(len(rows), error)
                optimiser.zero_grad(set_to_none=True)
                continue
            return sums[0], dict(zip(names, sums[1:], strict=True))

    def _double(self, rows: int, error: Exception) -> None:
        if not self._divisible:
            raise UsageError(
                f"--device: the memory of '{self._device}' is too small for one worker's share of a step "
                f"({str(error).split('.')[0]}); use more workers, or a smaller batch with --set batch_size="
            ) from error
        if self.count >= rows:
            raise _too_little(self._device, error) from error
        before = -(-rows // self.count)
        self.count *= 2
        _tell(self._device, before, -(-rows // self.count))


def _tell(device: object, before: int, after: int) -> None:
    import torch

    _log.warning("frevl: %s ran out of memory with %d rows at once; using %d from now on.", device, before, after)
    torch.cuda.empty_cache()  # does nothing where there is no NVIDIA device


def _too_little(device: object, error: Exception) -> UsageError:
    return UsageError(
        f"--device: the memory of '{device}' is too small to run the network on one row "
        f"({str(error).split('.')[0]}); stop other programs on it, or leave out --device"
    )
