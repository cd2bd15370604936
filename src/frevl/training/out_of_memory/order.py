"""The order of an epoch: all rows at random, or blocks at random and the rows of a few blocks among each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from frevl.runs.batches import EmbeddedPairs

__all__ = ["Deal", "deal_all", "deal_in_blocks"]

Deal = Callable[[int, int, torch.Generator], Iterator[Tensor]]
"""From the number of rows, the number of steps and the generator of an epoch to the rows of each step."""

_BLOCK = 1024  # rows that stand together in the file
_BLOCKS = 64  # that are shuffled together: 65,536 rows


def deal_all(count: int, steps: int, random: torch.Generator) -> Iterator[Tensor]:
    """Deal all rows at random into steps of nearly equal size."""
    yield from torch.randperm(count, generator=random).tensor_split(steps)


def deal_in_blocks(pairs: EmbeddedPairs) -> Deal:
    """Return how rows of pairs in a file are dealt, so that few pages of it are needed at a time.

    A thread reads the pages of the next blocks while the rows of these are learned from; what was used is let go.

    Args:
        pairs: Of mapped items, in the order of the file.
    """

    def deal(count: int, steps: int, random: torch.Generator) -> Iterator[Tensor]:
        order = shuffled_in_blocks(count, random)
        group, reached, end = _BLOCK * _BLOCKS, 0, 0
        with ThreadPoolExecutor(1, thread_name_prefix="frevl-ahead") as ahead:
            coming = ahead.submit(pairs.touch, order[:group])
            for rows in order.tensor_split(steps):
                reached += len(rows)
                if reached > end:  # the first rows of further blocks
                    coming.result()
                    pairs.release()
                    end += group
                    coming = ahead.submit(pairs.touch, order[end : end + group])
                yield rows
            coming.result()
        pairs.release()

    return deal


def shuffled_in_blocks(count: int, random: torch.Generator) -> Tensor:
    """Return ``(count,)`` int64, every row once: blocks at random, and within 64 of them the rows at random."""
    whole, rest = divmod(count, _BLOCK)
    # A last block that is not whole comes last, so that all groups but one are equally large.
    blocks = torch.cat([torch.randperm(whole, generator=random), torch.arange(whole, whole + bool(rest))])
    parts = []
    for some in torch.split(blocks, _BLOCKS):
        rows = (some[:, None] * _BLOCK + torch.arange(_BLOCK)).flatten()
        rows = rows[rows < count]
        parts.append(rows[torch.randperm(len(rows), generator=random)])
    return torch.cat(parts)
