"""Scores of many pairs of few items: what depends on one item alone is done once an item. Pure torch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from frevl.batches import EmbeddedPairs
from frevl.dual import Cosine, Dual
from frevl.fusion import Fusion
from frevl.rerank import Reranked

__all__ = ["by_item", "logits_by_item"]

PairLogits = Callable[[Tensor, Tensor], Tensor]


def by_item(network: nn.Module, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """Do the work of single items.

    Args:
        network: In evaluation mode, on the device.
        embedded: The items; its pairs play no part.
        batch_size: Items at once.
        device: Where to work.

    Returns:
        A function from ``(n,)`` image rows and ``(n,)`` text rows to ``(n, outputs)`` logits. Call both in inference
        mode.
    """
    if isinstance(network, Fusion):
        return _fusion(network, embedded, batch_size, device)
    if isinstance(network, Dual | Cosine | Reranked):
        return _reranked(network, embedded, batch_size, device)
    return lambda rows, columns: network(*embedded.inputs(rows, columns, device))


def logits_by_item(network: nn.Module, embedded: EmbeddedPairs, batch_size: int, device: str) -> Tensor:
    """Return the ``(n, outputs)`` logits of all pairs on the CPU, as `frevl.batches.logits_of` does.

    For networks whose work for an item is much (a reranker's crowd is thousands of dot products).
    """
    with torch.inference_mode():
        logits = by_item(network, embedded, batch_size, device)
        starts = range(0, len(embedded), batch_size)
        rows = [slice(start, start + batch_size) for start in starts]
        return torch.cat([logits(embedded.image_rows[part], embedded.text_rows[part]).cpu() for part in rows])


def _fusion(network: Fusion, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """A fusion projects every item once: what is left for a pair are the blocks and the head."""

    def projected(project: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        parts = values.split(batch_size)  # type: ignore[no-untyped-call]
        return torch.cat([project(part.to(device).float()) for part in parts])

    image = projected(network.project_image, embedded.images)
    text = projected(network.project_text, embedded.texts)
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

    return logits


def _reranked(network: Dual | Cosine | Reranked, embedded: EmbeddedPairs, batch_size: int, device: str) -> PairLogits:
    """A first stage makes one vector an item; a reranker its crowd and its projection too."""

    def items(make: Callable[..., tuple[Tensor, ...]], values: Tensor, mask: Tensor) -> list[Tensor]:
        starts = range(0, len(values), batch_size)
        parts = [
            make(values[start : start + batch_size].to(device).float(), _mask(mask[start : start + batch_size], device))
            for start in starts
        ]
        return [torch.cat(field) for field in zip(*parts, strict=True)]

    if isinstance(network, Reranked):
        images = items(network.image_items, embedded.images, embedded.image_mask)
        texts = items(network.text_items, embedded.texts, embedded.text_mask)

        def logits(rows: Tensor, columns: Tensor) -> Tensor:
            return network.blend(
                network.terms(
                    (images[0][rows], images[1][rows], images[2][rows]),
                    (texts[0][columns], texts[1][columns], texts[2][columns]),
                    _mask(embedded.image_mask[rows], device),
                    _mask(embedded.text_mask[columns], device),
                )
            )

        return logits
    (image,) = items(lambda *one: (network.image_vectors(*one),), embedded.images, embedded.image_mask)
    (text,) = items(lambda *one: (network.text_vectors(*one),), embedded.texts, embedded.text_mask)
    return lambda rows, columns: network.of_vectors(image[rows], text[columns])


def _mask(mask: Tensor, device: str) -> Tensor | None:
    return None if mask.shape[1] == 1 else mask.to(device)
