"""Fixed items whose embeddings a store keeps, to detect changes in an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from frevl.encoders.interface import Embeddings, Encoder, ImageTower, TextTower, pool
from frevl.errors import EncoderError
from frevl.store.towers import Modality, Tower, check_same

__all__ = ["CANARY_TEXTS", "canary_images", "check_encoder", "tower_records"]

CANARY_TEXTS = (
    "A brown dog runs along the beach.",
    "How many red circles are there to the left of the bus?",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich! 1,234.5 ?",
)


def canary_images() -> list[Image.Image]:
    """Draw three fixed RGB images: smooth colour, fine stripes, seeded noise."""
    y, x = np.mgrid[0:96, 0:128]
    smooth = np.stack([2 * x, 2 * y, 255 - x - y], axis=2)
    stripes = np.stack([(x // 4 % 2) * 255, (y // 6 % 2) * 255, ((x + y) // 8 % 2) * 255], axis=2)
    # Plain integer arithmetic, because a library's random numbers may change with its version.
    noise = np.stack([(x * 7919 + y * 104729 + c * 1299709) * 2654435761 % 4294967296 >> 24 for c in range(3)], axis=2)
    return [Image.fromarray(picture.astype(np.uint8)) for picture in (smooth, stripes, noise)]


def tower_records(encoder: Encoder, *, dtype: str) -> list[Tower]:
    """Embed the canaries with the towers of an encoder.

    Args:
        encoder: A loaded encoder.
        dtype: Number type in which its embeddings are stored; part of the identity.

    Returns:
        One record per tower.

    Raises:
        EncoderError: A tower returns a value that is not finite.
    """
    records = []
    if encoder.image is not None:
        images = [encoder.image.prepare(image) for image in canary_images()]
        records.append(_record(encoder.name, encoder.image, "image", encoder.image.embed(images), dtype))
    if encoder.text is not None:
        records.append(_record(encoder.name, encoder.text, "text", encoder.text.embed(CANARY_TEXTS), dtype))
    return records


def _record(encoder: str, tower: ImageTower | TextTower, modality: Modality, answers: Embeddings, dtype: str) -> Tower:
    canaries = pool(answers.values, answers.mask)
    if not np.isfinite(canaries).all():
        raise EncoderError(f"The tower '{tower.name}' returns non-finite values for its canaries; reinstall it")
    return Tower(
        name=tower.name,
        modality=modality,
        encoders=(encoder,),
        identity={**tower.identity, "dtype": dtype},
        dim=tower.dim,
        canaries=canaries,
    )


def check_encoder(encoder: Encoder, towers: Sequence[Tower], place: str) -> None:
    """Refuse an encoder that did not produce these towers; towers with other names are skipped.

    Args:
        encoder: A loaded encoder.
        towers: Towers as recorded in the store. Images and texts may be stored in different types.
        place: Path of the store, for the message.

    Raises:
        FingerprintError: A field of a tower's identity, or its embeddings of the canaries, differ.
    """
    answered = {tower.name: tower for tower in tower_records(encoder, dtype="float16")}
    for stored in towers:
        found = answered.get(stored.name)
        if found is not None:
            identity = {**found.identity, "dtype": stored.identity["dtype"]}
            check_same(stored, replace(found, identity=identity), place)
