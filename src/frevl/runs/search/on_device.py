"""Exact nearest neighbours on an accelerator: one pass over half-precision vectors kept in its memory.

A query is split into two float16 parts, so the products are as exact as with a float32 query; sums are float32. The
first step keeps the largest score of every group of rows: the ten best rows are in the ten best groups.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from frevl.devices import is_accelerator
from frevl.runs.search.distances import nearest_rows

if TYPE_CHECKING:
    from frevl.runs.search.vectors import Shortlist

__all__ = ["VectorsOnDevice", "nearest_of"]

_log = logging.getLogger("frevl")

_GROUP = 1024  # rows per group, whose largest score is found in one step
_QUERIES = 32  # queries at a time: their scores for all rows are in memory at once


class VectorsOnDevice:
    """Vectors in device memory, searched exactly.

    Attributes:
        vectors: ``(rows, d)`` float16 on the device.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def scores(self, queries: Tensor) -> Tensor:
        """Return the ``(n, rows)`` float32 dot products with ``(n, d)`` float32 queries."""
        if not self.vectors.is_cuda:  # a CPU multiplies float16 slowly
            return queries @ self.vectors.t().float()
        high = queries.half()
        low = (queries - high.float()).half()
        both = torch.mm(torch.cat([high, low]), self.vectors.t(), out_dtype=torch.float32)
        return both[: len(queries)].add_(both[len(queries) :])

    def nearest(self, queries: Tensor, k: int, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find the rows with the largest dot products, exactly: every row is read.

        Args:
            queries: ``(n, d)`` float32 on the device.
            k: Number of rows to find; fewer if there are fewer.
            allowed: ``(rows,)`` bool on the device; the product of a row that is not allowed is minus infinity.

        Returns:
            ``(n, k)`` row numbers, best first, and ``(n, k)`` float32 dot products.
        """
        k = min(k, len(self.vectors))
        parts = [self._nearest(part, k, allowed) for part in torch.split(queries, _QUERIES)]
        return torch.cat([rows for rows, _ in parts]), torch.cat([values for _, values in parts])

    def _nearest(self, queries: Tensor, k: int, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        scores, rows = self.scores(queries), len(self.vectors)
        if allowed is not None:
            scores.masked_fill_(~allowed, -torch.inf)
        whole = rows // _GROUP * _GROUP
        grouped: Tensor = scores[:, :whole].unflatten(1, (-1, _GROUP))  # type: ignore[no-untyped-call]
        best = grouped.amax(dim=2)
        best = best.topk(min(k, best.shape[1]), dim=1).indices
        # The rows of the best groups, and those after the last whole group.
        numbers = (best[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)
        rest = torch.arange(whole, rows, device=scores.device).expand(len(queries), -1)
        numbers = torch.cat([numbers, rest], dim=1)
        values, places = scores.gather(1, numbers).topk(k, dim=1)
        return numbers.gather(1, places), values


def nearest_of(
    shortlist: Shortlist, query: np.ndarray, k: int, *, allowed: np.ndarray | None = None, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest rows of a store's vectors, on the scorer's device if it is an accelerator with enough memory.

    The vectors are copied there once per `frevl.runs.search.searching.Searcher`.

    Args:
        shortlist: The vectors.
        query: ``(d,)`` float32 query vector.
        k: Number of rows to find, at least 1.
        allowed: ``(rows,)`` bool, False for rows that must not be found; None allows all.
        threads: Number of threads for a search on the CPU.

    Returns:
        As in `frevl.runs.search.distances.nearest_rows`.
    """
    there = _placed(shortlist) if is_accelerator(shortlist.scorer.device) and len(shortlist) else None
    if there is None:
        return nearest_rows(shortlist.blocks, query, k, allowed=allowed, threads=threads)
    device = there.vectors.device
    try:
        with torch.inference_mode():
            asked = torch.from_numpy(query).to(device)[None]
            mask = None if allowed is None else torch.from_numpy(allowed).to(device)
            rows, products = (part[0].cpu().numpy() for part in there.nearest(asked, k, mask))
    except torch.OutOfMemoryError:
        _copies[shortlist] = len(shortlist), None  # frees the vectors, for whatever else needs the memory
        _log.warning("frevl: %s has no room to search %d vectors; searching on the CPU.", device, len(shortlist))
        return nearest_rows(shortlist.blocks, query, k, allowed=allowed, threads=threads)
    found = np.isfinite(products)
    return rows[found], products[found]


_copies: WeakKeyDictionary[Shortlist, tuple[int, VectorsOnDevice | None]] = WeakKeyDictionary()


def _placed(shortlist: Shortlist) -> VectorsOnDevice | None:
    """Return the vectors on the device, copied again after rows were added; None if they do not fit."""
    rows = len(shortlist)
    known = _copies.get(shortlist)
    if known is None or known[0] != rows:
        _copies.pop(shortlist, None)  # free the memory before allocating more
        try:
            whole = torch.empty(rows, shortlist.blocks[0].shape[1], dtype=torch.float16, device=shortlist.scorer.device)
            start = 0
            for block in shortlist.blocks:
                whole[start : start + len(block)] = torch.from_numpy(np.array(block))
                start += len(block)
            copied: VectorsOnDevice | None = VectorsOnDevice(whole)
        except torch.OutOfMemoryError:
            _log.warning(
                "frevl: %s has no room for %d vectors; searching on the CPU.",
                shortlist.scorer.device,
                rows,
            )
            copied = None
        known = _copies[shortlist] = rows, copied
    return known[1]
