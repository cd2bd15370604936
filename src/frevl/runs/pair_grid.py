"""Scores of many pairs of few items: what depends on one item alone is done once an item. Pure torch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frevl.models.fusion import Fusion
from frevl.models.fusion_cpu import SharedItems, suits
from frevl.models.retrieval.reranker import Reranked
from frevl.models.retrieval.two_tower import Cosine, Dual
from frevl.runs.batches import EmbeddedPairs

__all__ = ["PairScores", "by_item", "dot_products", "full_grid", "logits_by_item"]

_MOST_SHARED_BYTES = 1 << 30

PairLogits = Callable[[Tensor, Tensor], Tensor]


def by_item(network: nn.Module, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
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
    if isinstance(network, Fusion):
        return _fusion(network, embedded, batch_size, device)
    if isinstance(network, Dual | Cosine | Reranked):
        return _in_batches(_reranked(network, embedded, batch_size, device), batch_size)
    return _in_batches(lambda rows, columns: network(*embedded.inputs(rows, columns, device)), batch_size)


def logits_by_item(network: nn.Module, embedded: EmbeddedPairs, batch_size: int, device: str) -> Tensor:
    """Return the ``(n, outputs)`` logits of all pairs on the CPU, as `frevl.runs.batches.logits_of` does.

    For networks whose work for an item is much (a reranker's crowd is thousands of dot products).
    """
    with torch.inference_mode():
        return by_item(network, embedded, batch_size, device)(embedded.image_rows, embedded.text_rows).cpu()


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


def _fusion(network: Fusion, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """A fusion projects every item once: what is left for a pair are the blocks and the head.

    Of a folded fusion on pooled items the first block, too, is mostly work of single items (`SharedItems`).
    """

    def projected(project: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        parts = values.split(batch_size)  # type: ignore[no-untyped-call]
        return torch.cat([project(part.to(device).float()) for part in parts])

    image = projected(network.project_image, embedded.images)
    text = projected(network.project_text, embedded.texts)
    pooled = image.shape[1] == text.shape[1] == 1
    if pooled and _shares_first_block(network, len(image) + len(text)) and suits(network, image, text):
        return SharedItems(network, image[:, 0], text[:, 0]).logits  # makes blocks of its own
    image_mask = None if image.shape[1] == 1 else embedded.image_mask.to(device)
    text_mask = None if text.shape[1] == 1 else embedded.text_mask.to(device)

    def logits(rows: Tensor, columns: Tensor) -> Tensor:
        fused = network.fuse(
            image[rows],
            text[columns],
            None if image_mask is None else image_mask[rows],
            None if text_mask is None else text_mask[columns],
        )
        scored: Tensor = network.head(fused)
        return scored

    return _in_batches(logits, batch_size)


def _shares_first_block(network: Fusion, items: int) -> bool:
    """Whether there is a first block whose work of single items can be kept, in bounded memory."""
    settings = network.settings
    floats = 2 * items * (settings["width"] + settings["ffn_width"])
    possible = network.is_folded and settings["layers"] and settings["cross_attention"]
    return bool(possible) and 4 * floats <= _MOST_SHARED_BYTES


def _reranked(network: Dual | Cosine | Reranked, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """A first stage makes one vector an item; a reranker its crowd and its projection too."""

    def items(make: Callable[..., tuple[Tensor, ...]], values: Tensor, mask: Tensor) -> list[Tensor]:
        fields: list[Tensor] = []
        for start in range(0, len(values), batch_size):
            part = slice(start, start + batch_size)
            made = make(values[part].to(device).float(), _mask(mask[part], device))
            # Into place: pieces that are joined at the end take twice the memory.
            fields = fields or [field.new_empty((len(values), *field.shape[1:])) for field in made]
            for field, piece in zip(fields, made, strict=True):
                field[part] = piece
        return fields

    if isinstance(network, Reranked):
        images = items(network.image_items, embedded.images, embedded.image_mask)
        texts = items(network.text_items, embedded.texts, embedded.text_mask)
        image_mask, text_mask = embedded.image_mask, embedded.text_mask  # the embeddings themselves may go

        def logits(rows: Tensor, columns: Tensor) -> Tensor:
            return network.blend(
                network.terms(
                    (images[0][rows], images[1][rows], images[2][rows]),
                    (texts[0][columns], texts[1][columns], texts[2][columns]),
                    _mask(image_mask[rows], device),
                    _mask(text_mask[columns], device),
                )
            )

        return logits
    (image,) = items(lambda *one: (network.image_vectors(*one),), embedded.images, embedded.image_mask)
    (text,) = items(lambda *one: (network.text_vectors(*one),), embedded.texts, embedded.text_mask)
    return lambda rows, columns: network.of_vectors(image[rows], text[columns])


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
