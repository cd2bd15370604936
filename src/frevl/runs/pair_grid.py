"""Scores of many pairs of few items: what depends on one item alone is done once an item."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frevl.models.interface import Items, PairLogits, PairNetwork
from frevl.runs.batches import EmbeddedPairs, logits_of

__all__ = ["PairScores", "dot_products", "full_grid", "grid_scorer", "list_logits"]


def list_logits(network: PairNetwork, pairs: EmbeddedPairs, batch_size: int, device: str = "cpu") -> Tensor:
    """Return the ``(n, outputs)`` float32 logits of a list of pairs, on the CPU, by the cheaper of two ways.

    A network whose items are much work (`PairNetwork.item_work`) does it once an item; others take pair by pair.

    Args:
        network: On the device.
        pairs: The pairs and their embeddings.
        batch_size: Pairs or items at once.
        device: Where to work.
    """
    if network.item_work != "always":
        return logits_of(network, pairs, batch_size, device)
    network.eval()
    with torch.inference_mode():
        return grid_scorer(network, pairs, batch_size, device)(pairs.image_rows, pairs.text_rows).cpu()


def grid_scorer(network: PairNetwork, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """Do the work of single items.

    Args:
        network: In evaluation mode, on the device.
        embedded: The items; its pairs play no part.
        batch_size: Items at once.
        device: Where to work.

    Returns:
        A function from ``(n,)`` image rows and ``(n,)`` text rows, any number of them, to ``(n, outputs)`` logits. Call
        both in inference mode.
    """
    if network.item_work == "never":
        return _in_batches(lambda rows, columns: network(*embedded.inputs(rows, columns, device)), batch_size)
    images = _items(network.image_items, embedded.images, embedded.image_mask, batch_size, device)
    texts = _items(network.text_items, embedded.texts, embedded.text_mask, batch_size, device)
    # Only the masks are needed from here on: the embeddings themselves may go.
    image_mask, text_mask = _mask(embedded.image_mask, device), _mask(embedded.text_mask, device)
    shared = None if image_mask is not None or text_mask is not None else network.shared_scorer(images, texts)
    if shared is not None:
        return shared

    def logits(rows: Tensor, columns: Tensor) -> Tensor:
        return network.score_items(
            tuple(part[rows] for part in images),
            tuple(part[columns] for part in texts),
            None if image_mask is None else image_mask[rows],
            None if text_mask is None else text_mask[columns],
        )

    return _in_batches(logits, batch_size)


def _in_batches(logits: PairLogits, batch_size: int) -> PairLogits:
    def of_any_number(rows: Tensor, columns: Tensor) -> Tensor:
        first = logits(rows[:batch_size], columns[:batch_size])
        # Into one tensor: small pieces kept between large ones would keep the heap from being used again.
        found = first.new_empty(len(rows), first.shape[1])
        found[:batch_size] = first
        for start in range(batch_size, len(rows), batch_size):
            part = slice(start, start + batch_size)
            found[part] = logits(rows[part], columns[part])
        return found

    return of_any_number


def _items(
    make: Callable[[Tensor, Tensor | None], Items], values: Tensor, mask: Tensor, batch_size: int, device: str
) -> Items:
    fields: list[Tensor] = []
    for start in range(0, len(values), batch_size):
        part = slice(start, start + batch_size)
        made = make(values[part].to(device).float(), _mask(mask[part], device))
        # Into place: pieces that are joined at the end take twice the memory.
        fields = fields or [field.new_empty((len(values), *field.shape[1:])) for field in made]
        for field, piece in zip(fields, made, strict=True):
            field[part] = piece
    return tuple(fields)


def _mask(mask: Tensor, device: str) -> Tensor | None:
    return None if mask.shape[1] == 1 else mask.to(device)


_PAIRS = 1_048_576  # pairs whose numbers are in memory at once
_IN_MEMORY = 67_108_864  # scores; a larger grid lies in a temporary file, so that memory stays bounded

PairScores = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]


def empty_grid(images: int, texts: int) -> NDArray[np.float32]:
    """Make room for ``(images, texts)`` scores: in memory, or in an unnamed temporary file where they are many."""
    if images * texts <= _IN_MEMORY:
        return np.empty((images, texts), np.float32)
    with tempfile.TemporaryFile() as file:  # the mapping outlives the file's name
        return np.memmap(file, np.float32, "w+", shape=(images, texts))


def full_grid(images: int, texts: int, score: PairScores) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` scores of all pairs."""
    grid = empty_grid(images, texts)
    flat = grid.reshape(-1)
    for start in range(0, flat.size, _PAIRS):
        numbers = np.arange(start, min(start + _PAIRS, flat.size))
        flat[start : start + len(numbers)] = score(*np.divmod(numbers, texts))
    return grid


def dot_products(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the ``(images, texts)`` dot products of ``(images, d)`` and ``(texts, d)`` vectors."""
    grid = empty_grid(len(images), len(texts))
    for start in range(0, len(images), 256):
        np.matmul(images[start : start + 256], texts.T, out=grid[start : start + 256])
    return grid
