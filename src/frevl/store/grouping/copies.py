"""Copies count as one item: in ranks, where a copy would compete with its twin, and in intervals."""

from __future__ import annotations

from dataclasses import replace

from frevl.data.names import text_content
from frevl.data.pairs import Pairs
from frevl.store.reader import Store

__all__ = ["one_item_each"]


def one_item_each(pairs: Pairs, store: Store) -> tuple[Pairs, int]:
    """Name every image and text by its first copy, and keep each pair once.

    Args:
        pairs: Pairs whose images are in the store.
        store: Knows the content of the images.

    Returns:
        The pairs that are left, in their order, and how many images and texts were copies of another one.
    """
    hashes = store.content_hashes(pairs.images)
    of_image: dict[str, str] = {}
    of_text: dict[str, str] = {}
    images = [of_image.setdefault(hashes.get(image, image), image) for image in pairs.images]
    texts = [of_text.setdefault(text_content(text), text) for text in pairs.texts]
    copies = len(set(pairs.images)) - len(of_image) + len(set(pairs.texts)) - len(of_text)
    first = {pair: row for row, pair in reversed(list(enumerate(zip(images, texts, strict=True))))}
    rows = sorted(first.values())
    kept = pairs.select(rows)
    return replace(kept, images=[images[row] for row in rows], texts=[texts[row] for row in rows]), copies
