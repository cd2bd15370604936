"""Dropout on some rows of a batch, identical to a single process's dropout on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from frevl.models.blocks import random_bits

__all__ = ["DropoutOfTheBatch"]


class DropoutOfTheBatch(TorchFunctionMode):
    """Draw the dropout of all rows in a batch and apply it to some of them.

    All workers have the same generator, so together they draw what one process draws. Drawing costs a hundredth of the
    matrix product before it. It affects every network that uses ``nn.Dropout``, ``F.dropout`` or
    `frevl.models.blocks.dropped`. A tensor whose first axis is not the rows gets ordinary dropout.

    Args:
        places: ``(k,)`` int64, the rows of the batch that are present.
        count: Number of rows in the batch.
    """

    def __init__(self, places: Tensor, count: int) -> None:
        super().__init__()
        self._shape, self._count = places.shape, count
        self._rows: Tensor | slice = places
        if len(places) and torch.equal(places, torch.arange(int(places[0]), int(places[0]) + len(places))):
            self._rows = slice(int(places[0]), int(places[0]) + len(places))  # which copies nothing

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace the two functions that draw dropout."""
        named = kwargs or {}
        if func not in (F.dropout, random_bits) or args[0].shape[:1] != self._shape:
            return func(*args, **named)
        x, rest = args[0], args[1:]
        if func is random_bits:
            return func(x.new_empty(1).expand(self._count, *x.shape[1:]))[self._rows]
        kept = func(
            x.new_ones(self._count, *x.shape[1:]), *rest, **named
        )  # zeros, and the reciprocal of the share kept
        return x * kept[self._rows if isinstance(self._rows, slice) else self._rows.to(x.device)]
