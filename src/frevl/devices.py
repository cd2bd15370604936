"""Devices beside the processor: whether they can be used, and how much they get at once: less where memory ends."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from frevl.errors import UsageError

if TYPE_CHECKING:
    import torch

LossOf = Callable[["torch.Tensor", "torch.Generator"], tuple["torch.Tensor", dict[str, "torch.Tensor"]]]

__all__ = ["Shares", "Steps", "check_device", "default_batch", "is_accelerator"]

_log = logging.getLogger("frevl")


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
    """Rows of a step of training in equal shares; where the device's memory ends, in twice as many."""

    def __init__(self, device: str) -> None:
        self._device, self.count = device, 1

    def gradients(
        self, loss_of: LossOf, rows: torch.Tensor, random: torch.Generator, optimiser: torch.optim.Optimizer
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute the gradients of a step; they are summed over its shares, and losses are means over them.

        What a loss computes among the rows of a batch it then computes within each share.

        Args:
            loss_of: The loss of rows with its named terms.
            rows: ``(n,)`` of the step.
            random: Of the choices that the loss makes.
            optimiser: Its gradients are cleared where a step is begun again.

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
