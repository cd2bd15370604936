"""Turn the tokens that a network returns into those that a store keeps."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["MOST_CHARACTERS", "keep_layers", "keep_tokens", "readable"]


def keep_layers(tokens: np.ndarray, kind: str, layers: int, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Reduce tokens that hold several hidden states side by side; each is kept and scaled as `keep_tokens` does.

    The whole is divided by the square root of the number of states, so that its pooled embedding has unit length.

    Args:
        tokens: ``(tokens, layers * width)`` float.
        kind: As for `keep_tokens`.
        layers: How many hidden states.
        shape: As for `keep_tokens`.

    Returns:
        ``(kept tokens, layers * width)`` float32.
    """
    parts = [keep_tokens(part, kind, shape) for part in np.split(tokens, layers, axis=1)]
    return parts[0] if layers == 1 else np.concatenate(parts, axis=1) / np.float32(math.sqrt(layers))


def keep_tokens(tokens: np.ndarray, kind: str, shape: tuple[int, int] | None = None) -> np.ndarray:
    """Reduce one item's tokens to the requested kind, and scale them.

    Every kind is divided by one number, the length of the mean of all tokens (ours). So the pooled embedding has
    unit length, the mean of word tokens or of a 7x7 grid of 49 tokens is the pooled embedding, and how tokens
    differ in length survives. Where a grid does not divide evenly its cells overlap, and its mean is only close
    to the pooled embedding.

    Args:
        tokens: ``(tokens, dim)`` float; for a grid kind row by row.
        kind: ``"pooled"``, ``"words"`` (all tokens), or ``"GxG"``: cell averages as in adaptive average pooling
            (``torch.nn.AdaptiveAvgPool2d``), so cell i of G covers floor(i n/G) to ceil((i+1) n/G) of n.
        shape: Rows and columns of the grid; None for a square one.

    Returns:
        ``(1, dim)``, ``(tokens, dim)`` or ``(G * G, dim)`` float32.
    """
    mean = tokens.mean(axis=0, dtype=np.float64)
    # No product of vectors: towers call this from several threads, and a product of more than 10,000 numbers starts
    # threads of its own, which made 12,064 wide embeddings three times as slow as their network.
    length = math.sqrt(float(np.square(mean).sum())) or 1.0  # a picture that silences the network stays zero
    if kind == "pooled":
        tokens = mean[None]
    elif kind != "words":
        tokens = _cell_averages(tokens, int(kind.split("x")[0]), shape)
    scaled: np.ndarray = tokens / length
    return scaled.astype(np.float32)


def _cell_averages(tokens: np.ndarray, wanted: int, shape: tuple[int, int] | None) -> np.ndarray:
    """Average ``(rows * columns, dim)`` to ``(wanted², dim)``: first over rows, then over columns."""
    side, dim = math.isqrt(len(tokens)), tokens.shape[1]
    rows, columns = shape or (side, side)
    if rows == columns == wanted:
        return tokens
    # Slices and no matrix product: towers call this from several threads, where a threaded product took ten times
    # as long as it should.
    grid = tokens.reshape(rows, columns, dim)
    averaged = np.stack([grid[start:stop].mean(axis=0) for start, stop in _cells(rows, wanted)])
    across = [averaged[:, start:stop].mean(axis=1) for start, stop in _cells(columns, wanted)]
    return np.stack(across, axis=1).reshape(-1, dim)


def _cells(count: int, wanted: int) -> list[tuple[int, int]]:
    return [(i * count // wanted, -(-(i + 1) * count // wanted)) for i in range(wanted)]


# A tokenizer splits all of a text before it cuts: 6 million characters took 16 s and 1.4 GB.
MOST_CHARACTERS = 100_000


def readable(text: str) -> str:
    """Return the beginning of a text as any tokenizer can read it, at most `MOST_CHARACTERS`.

    Half of a surrogate pair, as broken JSON may hold, has no UTF-8: it becomes U+FFFD.
    """
    return text[:MOST_CHARACTERS].encode("utf-16", "surrogatepass").decode("utf-16", "replace")
