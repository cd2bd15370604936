"""Arrays of embeddings: pooling tokens, and putting rows of different lengths into one batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["pool", "stack"]


def pool(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mean over the tokens that exist.

    Args:
        values: ``(n, tokens, dim)``.
        mask: ``(n, tokens)`` bool.

    Returns:
        ``(n, dim)`` float32.
    """
    if values.shape[1] == 1:
        return values[:, 0].astype(np.float32)
    weights = (mask / np.maximum(mask.sum(axis=1, keepdims=True), 1)).astype(np.float32)
    pooled = np.empty((len(values), values.shape[2]), np.float32)
    for start in range(0, len(values), 1024):  # in blocks: a float32 copy of all tokens may not fit
        block = slice(start, start + 1024)
        pooled[block] = np.matmul(weights[block, None], values[block].astype(np.float32))[:, 0]
    return pooled


def stack(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Put embeddings of different lengths into one batch.

    Args:
        rows: At least one ``(tokens, dim)`` array, all of one type and width.

    Returns:
        ``(n, longest, dim)``, zero where there is no token, and a ``(n, longest)`` bool mask.
    """
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    values = np.zeros((len(rows), int(lengths.max()), rows[0].shape[1]), rows[0].dtype)
    values[mask] = np.concatenate(rows)
    return values, mask
