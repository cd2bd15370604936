"""What this machine can do at most: float32 matrix products and memory traffic, and the roofline of the two.

The roofline is that of Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", 2009.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from frevl.costs import Record
from frevl.costs.timing import rate_record, take_turns

__all__ = ["PRODUCT_SIDE", "Limits", "measure_limits", "product"]

PRODUCT_SIDE = 2048
_MEGABYTES = 256


@dataclass(frozen=True)
class Limits:
    """Measured limits of this process on this machine.

    Attributes:
        flops: Floating-point operations a second of a large float32 matrix product.
        bytes: Bytes a second that a large copy reads and writes.
    """

    flops: float
    bytes: float

    def attainable(self, flops: float, moved: float) -> float:
        """Most operations a second of work with so many operations that moves so many bytes."""
        return min(self.flops, self.bytes * flops / moved)


def product(side: int = PRODUCT_SIDE) -> Callable[[], object]:
    """Return a call that multiplies two square float32 matrices: ``2 * side**3`` operations."""
    a, b, c = torch.randn(side, side), torch.randn(side, side), torch.empty(side, side)
    return lambda: torch.mm(a, b, out=c)


def measure_limits(*, rounds: int = 7, side: int = PRODUCT_SIDE, megabytes: int = _MEGABYTES) -> list[Record]:
    """Measure both limits: records ``matrix products`` (operations/s) and ``memory`` (bytes/s)."""
    source = torch.ones(megabytes << 18)
    target = torch.empty_like(source)
    with torch.inference_mode():
        found = take_turns({"product": product(side), "copy": lambda: target.copy_(source)}, rounds=rounds)
    return [
        rate_record(
            "machine",
            f"matrix products: float32, {side} x {side}, {torch.get_num_threads()} threads",
            found["product"],
            items=2 * side**3,
            unit="operations/s",
        ),
        rate_record(
            "machine",
            f"memory: a copy of {megabytes} MB, read and written",
            found["copy"],
            items=2 * source.nbytes,
            unit="bytes/s",
        ),
    ]
