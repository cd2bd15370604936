"""What a kernel fusion may be made of: sums of kernels, simplest first, and penalties, strongest first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frevl.errors import UsageError
from frevl.training.options import KernelOptions

__all__ = ["PENALTY_WITHOUT_CHOICE", "WITHOUT_CHOICE", "Sum", "penalties_of", "sums_of"]


@dataclass(frozen=True)
class Sum:
    """A sum of kernels that is tried.

    Attributes:
        name: In words.
        shares: Of text, image and their product; they sum to 1.
        option: The field of `KernelOptions` that switches it.
    """

    name: str
    shares: tuple[float, float, float]
    option: str


# Simplest first: the order that decides between equals. Of many shares these earned their place; linear kernels and
# other widths did not (research/experiments/log.md).
_SUMS = (
    Sum("text alone", (1.0, 0.0, 0.0), "text_alone"),
    Sum("image alone", (0.0, 1.0, 0.0), "image_alone"),
    Sum("product", (0.25, 0.0, 0.75), "product"),
    Sum("image and text", (0.25, 0.75, 0.0), "sums"),
    Sum("text, image and product", (0.6, 0.2, 0.2), "sums"),
)
WITHOUT_CHOICE = Sum("text, image and product", (0.25, 0.25, 0.5), "sums")
PENALTY_WITHOUT_CHOICE = 1.0


def sums_of(options: KernelOptions, *, image: bool, text: bool) -> list[Sum]:
    """Return the sums to try, simplest first.

    Args:
        options: Which sums the user wants.
        image: Whether images can tell pairs apart: there are embeddings of more than one.
        text: The same of texts.

    Raises:
        UsageError: The options leave none.
    """
    if not (image and text):
        return [_SUMS[1] if image else _SUMS[0]]
    chosen = [one for one in _SUMS if getattr(options, one.option)]
    if not chosen:
        raise UsageError(
            "The options of the model 'kernel' leave no sum of kernels to try; set one of text_alone, image_alone, "
            "product and sums to true"
        )
    return chosen


def penalties_of(options: KernelOptions) -> list[float]:
    """Return the penalties to try, the strongest first, two a power of ten.

    Raises:
        UsageError: The smallest is above the largest.
    """
    largest, smallest = options.largest_penalty, options.smallest_penalty
    if smallest > largest:
        raise UsageError(
            f"The option 'smallest_penalty' of the model 'kernel' must not be above largest_penalty ({largest:g}), "
            f"found {smallest:g}"
        )
    steps = math.floor(2 * math.log10(largest / smallest) + 0.1)
    return [float(f"{largest / 10 ** (step / 2):.2g}") for step in range(steps + 1)]
