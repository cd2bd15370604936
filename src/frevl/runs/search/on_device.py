"""Exact nearest neighbours on an accelerator: one pass over half-precision vectors that stay in its memory.

A query is split into two float16 parts, so that the products are as exact as with the query in float32; the sums are
float32. Of the scores, the largest of every group of rows is kept first: the ten best rows lie in the ten best groups.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["VectorsOnDevice"]

_GROUP = 1024  # rows of which the largest score is found in one step
_QUERIES = 32  # at a time: their scores of all rows are in memory at once


class VectorsOnDevice:
    """Vectors in the memory of a device, searched exactly.

    Attributes:
        vectors: ``(rows, d)`` float16 on the device.
    """

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def scores(self, queries: Tensor) -> Tensor:
        """Return the ``(n, rows)`` float32 dot products with ``(n, d)`` float32 queries."""
        if not self.vectors.is_cuda:  # a processor multiplies float16 slowly
            return queries @ self.vectors.t().float()
        high = queries.half()
        low = (queries - high.float()).half()
        both = torch.mm(torch.cat([high, low]), self.vectors.t(), out_dtype=torch.float32)
        return both[: len(queries)].add_(both[len(queries) :])

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Find the rows with the largest dot products, exactly: every row is read.

        Args:
            queries: ``(n, d)`` float32 on the device.
            k: How many rows to find; fewer are found where there are fewer.

        Returns:
            ``(n, k)`` row numbers, the best first, and ``(n, k)`` float32 dot products.
        """
        parts = [self._nearest(part, min(k, len(self.vectors))) for part in torch.split(queries, _QUERIES)]
        return torch.cat([rows for rows, _ in parts]), torch.cat([values for _, values in parts])

    def _nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        scores, rows = self.scores(queries), len(self.vectors)
        whole = rows // _GROUP * _GROUP
        grouped: Tensor = scores[:, :whole].unflatten(1, (-1, _GROUP))  # type: ignore[no-untyped-call]
        best = grouped.amax(dim=2)
        best = best.topk(min(k, best.shape[1]), dim=1).indices
        # The rows of the best groups, and those behind the last whole group.
        numbers = (best[:, :, None] * _GROUP + torch.arange(_GROUP, device=scores.device)).flatten(1)
        rest = torch.arange(whole, rows, device=scores.device).expand(len(queries), -1)
        numbers = torch.cat([numbers, rest], dim=1)
        values, places = scores.gather(1, numbers).topk(k, dim=1)
        return numbers.gather(1, places), values
