"""What there is to compute with: the cores of the processor that this process may use, and devices beside it."""

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
# Turns of a loop before a thread sleeps. Without any, a small training alone on a machine takes 1.6 times as long; with
# ten times as many it crawls where many jobs want the cores (docs/scale.md).
_SPINS = "1000"
_GRANTED = "FREVL_GRANTED_PROCESSORS"
_HOW_MANY_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_THREAD_LIMIT")


def share_processors() -> None:
    """Let threads that wait for each other sleep soon, and be as many as the cores that this process gets.

    For OpenMP, which PyTorch and scikit-learn compute with: it reads the environment when it is loaded, so this is
    called before. Where other jobs want the cores, threads that spin take them from those that compute. What the user
    has set stays, and so does a PyTorch that is loaded already.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in _HOW_THREADS_WAIT):
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    if not any(name in os.environ for name in _HOW_MANY_THREADS) and cores_by_quota() < _cores_by_affinity():
        os.environ["OMP_NUM_THREADS"] = str(processors())


def processors() -> int:
    """Return how many processor cores this process may use, of its affinity and of the quota of its control groups.

    A quota of one and a half is two: threads that wait take nothing of it. A worker among several on one machine has
    the cores that it was granted.
    """
    granted = int(os.environ.get(_GRANTED, "0"))
    return min(_cores_by_affinity(), max(1, math.ceil(min(cores_by_quota(), 1e6))), granted or sys.maxsize)


def grant_processors(count: int) -> None:
    """Let this process, and those that it starts, use no more than so many cores; others have the rest."""
    os.environ[_GRANTED] = str(count)


def cores_by_quota(process: Path = Path("/proc/self")) -> float:
    """Return the processor time that Linux grants the control groups of a process, in cores; inf without a limit.

    Reads ``cpu.max`` (version 2) and ``cpu.cfs_quota_us`` (version 1) of its group and of all above: the least counts.

    Args:
        process: Folder with the files ``cgroup`` and ``mountinfo``.
    """
    cores = math.inf
    for folder in _control_groups(process, "cpu"):
        limit = _words(folder / "cpu.max") or [
            *_words(folder / "cpu.cfs_quota_us"),
            *_words(folder / "cpu.cfs_period_us"),
        ]
        # "max", -1 and nothing are no limit.
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
        # A container may see its own group as the whole hierarchy, and the path that it has outside.
        inside = path.removeprefix(root) if path.startswith(root) else ""
        group = top / inside.strip("/")
        while True:
            yield group
            if group == top or top not in group.parents:
                break
            group = group.parent


def _unescaped(path: str) -> str:
    """Return a path of ``mountinfo``, where blanks are written as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # another system, or a kernel without control groups
        return []


def _words(path: Path) -> list[str]:
    return (_lines(path) or [""])[0].split()


def is_accelerator(device: str | torch.device) -> bool:
    """Whether it is an NVIDIA device: the kind that was measured (docs/accelerator.md)."""
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
    """Pairs to score at once: a processor keeps 1,024 in its cache, an accelerator is idle with so few."""
    return 16_384 if is_accelerator(device) else 1024


class Steps:
    """Rows in steps of one size; where the device's memory ends, in smaller ones.

    Attributes:
        rows: The rows of this step, as a slice.
        size: Most rows of a step.
    """

    def __init__(self, count: int, size: int, device: str | torch.device) -> None:
        """Begin with the first step; of no rows there is one step, which is empty."""
        self.size, self._count, self._device = size, count, device
        self.rows = slice(0, min(size, count))
        self._empty = count == 0

    @property
    def left(self) -> bool:
        """Whether there is a step to do."""
        return self._empty or self.rows.start < self._count

    def done(self) -> None:
        """Go to the next step."""
        self._empty = False
        self.rows = slice(self.rows.stop, min(self.rows.stop + self.size, self._count))

    def halve(self, error: Exception) -> None:
        """Make this step and all that follow half as large, with a note.

        Raises:
            UsageError: A step is a single row already.
        """
        rows = self.rows.stop - self.rows.start
        if rows <= 1:
            raise _too_little(self._device, error) from error
        self.size = rows // 2
        self.rows = slice(self.rows.start, self.rows.start + self.size)
        _tell(self._device, rows, self.size)


class Shares:
    """Rows of a step of training in equal shares; where the device's memory ends, in twice as many.

    Args:
        device: Of the training.
        divisible: Whether a step may be divided; workers that share one out could divide it differently.
    """

    def __init__(self, device: str, *, divisible: bool = True) -> None:
        self._device, self._divisible, self.count = device, divisible, 1

    def gradients(
        self, loss_of: LossOf, rows: torch.Tensor, random: torch.Generator, optimiser: torch.optim.Optimizer
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the gradients of a step; they are summed over its shares, and losses are means over them.

        What a loss computes among the rows of a batch it then computes within each share.

        Args:
            loss_of: The loss of rows with its named terms.
            rows: ``(n,)`` of the step.
            random: Of the choices that the loss makes.
            optimiser: Its gradients are cleared where a step is restarted.

        Returns:
            Loss and terms, without gradients.

        Raises:
            UsageError: A share is a single row already, and still too large.
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
                f"--device: the memory of '{self._device}' does not hold one worker's share of a step "
                f"({str(error).split('.')[0]}); take more workers, or a smaller batch with --set batch_size="
            ) from error
        if self.count >= rows:
            raise _too_little(self._device, error) from error
        before = -(-rows // self.count)
        self.count *= 2
        _tell(self._device, before, -(-rows // self.count))


def _tell(device: object, before: int, after: int) -> None:
    import torch

    _log.warning("frevl: %s ran out of memory with %d rows at once; from now on it gets %d.", device, before, after)
    torch.cuda.empty_cache()  # does nothing where there is no NVIDIA device


def _too_little(device: object, error: Exception) -> UsageError:
    return UsageError(
        f"--device: the memory of '{device}' does not hold the network at work on one row "
        f"({str(error).split('.')[0]}); end other programs on it, or leave --device out"
    )
