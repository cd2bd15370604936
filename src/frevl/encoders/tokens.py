"""From the tokens that a network gives to the tokens that a store keeps."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

__all__ = ["keep_tokens"]


def keep_tokens(tokens: np.ndarray, kind: str) -> np.ndarray:
    """Reduce one item's tokens to the kind that is asked for, and scale them.

    Every kind is divided by one number, the length of the mean of all tokens (ours). So the pooled embedding has
    unit length, the mean of word tokens or of a 7x7 grid of 49 tokens is the pooled embedding, and how tokens
    differ in length survives. Where a grid does not divide evenly its cells overlap, and its mean is only close
    to the pooled embedding.

    Args:
        tokens: ``(tokens, dim)`` float; for a grid kind row by row, square.
        kind: ``"pooled"``, ``"words"`` (all tokens), or ``"GxG"``: cell averages as in adaptive average pooling
            (``torch.nn.AdaptiveAvgPool2d``), so cell i of G covers floor(i n/G) to ceil((i+1) n/G) of n.

    Returns:
        ``(1, dim)``, ``(tokens, dim)`` or ``(G * G, dim)`` float32.
    """
    mean = tokens.mean(axis=0, dtype=np.float64)
    length = math.sqrt(float(mean @ mean)) or 1.0  # a picture that silences the network stays zero
    if kind == "pooled":
        tokens = mean[None]
    elif kind != "words":
        side, wanted = math.isqrt(len(tokens)), int(kind.split("x")[0])
        if side != wanted:
            tokens = np.matmul(_cells(side, wanted), tokens)
    scaled: np.ndarray = tokens / length
    return scaled.astype(np.float32)


@cache
def _cells(side: int, wanted: int) -> np.ndarray:
    """Return the averaging matrix ``(wanted², side²)`` float32; rows sum to 1."""
    rows = np.zeros((wanted, side))
    for i in range(wanted):
        start, stop = i * side // wanted, -(-(i + 1) * side // wanted)
        rows[i, start:stop] = 1 / (stop - start)
    return np.kron(rows, rows).astype(np.float32)
