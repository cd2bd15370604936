"""Compute on a device: check it, and divide work so that it fits the device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from frevl.errors import UsageError

if TYPE_CHECKING:
    import torch

LossOf = Callable[["torch.Tensor", "torch.Generator"], tuple["torch.Tensor", dict[str, "torch.Tensor"]]]

__all__ = ["Shares", "Steps", "check_device", "default_batch", "in_steps", "is_accelerator"]

Made = TypeVar("Made")

_log = logging.getLogger("frevl")


def is_accelerator(device: str | torch.device) -> bool:
    """Return whether a device is from NVIDIA, the only kind measured (docs/accelerator.md)."""
    return str(device).partition(":")[0] == "cuda"


def check_device(device: str) -> None:
    """Refuse a device that PyTorch cannot use on this machine.

    Raises:
        UsageError: PyTorch cannot use the device.
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


def in_steps(
    count: int, size: int, device: str | torch.device, make: Callable[[slice], Made]
) -> Iterator[tuple[slice, Made]]:
    """Compute rows step by step, in smaller steps once the device runs out of memory.

    Args:
        count: Number of rows; with none there is one empty step.
        size: Maximum rows per step.
        device: Device that computes.
        make: Computes the rows of a slice.

    Yields:
        The rows of a step and what was made of them, in order.

    Raises:
        UsageError: A step is already a single row, and still too large.
    """
    import torch

    steps = Steps(count, size, device)
    while steps.left:
        try:
            made = make(steps.rows)
        except torch.OutOfMemoryError as error:
            steps.halve(error)
            continue
        yield steps.rows, made
        steps.done()


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
            rows: ``(n,)`` int64, the rows of the step.
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
