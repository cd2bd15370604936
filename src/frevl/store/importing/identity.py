"""The identity of imported vectors: declared by the user, or that of one of our encoders after verification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frevl.encoders.images import read_image
from frevl.encoders.interface import Encoder, pool
from frevl.encoders.registry import ENCODERS, PREFIXES, load_encoder
from frevl.errors import FingerprintError, ImageError, InputError, UsageError
from frevl.store.canaries import tower_records
from frevl.store.importing.layouts import Part
from frevl.store.towers import CANARY_COSINE, IMPORTED, Modality, Tower

__all__ = ["declared_towers", "verified_towers"]

_EMBEDDED_AGAIN = 32


def declared_towers(
    encoder: str,
    dims: dict[Modality, int],
    *,
    revision: str,
    preprocessing: str,
    common_space: bool,
    dtype: str,
) -> dict[Modality, Tower]:
    """Describe towers that frevl cannot run, as declared by the user."""
    towers: dict[Modality, Tower] = {}
    for modality, dim in dims.items():
        name = f"{encoder}-{modality}"
        identity = {
            "tower": name,
            "weights": IMPORTED,
            "revision": revision,
            "preprocessing": preprocessing,
            "tokens": "pooled",
            "normalisation": "unit length",
            "dtype": dtype,
        }
        if common_space:
            identity["common_space"] = f"{encoder}, {revision}, {dim}"
        # No canaries: this tower cannot be run.
        towers[modality] = Tower(name, modality, (encoder,), identity, dim, np.zeros((0, dim), np.float32))
    return towers


def verified_towers(
    encoder: str, parts: Sequence[Part], images: Path | None, *, dtype: str
) -> dict[Modality, Tower] | None:
    """Verify that one of our encoders made these vectors, using the first items as canaries.

    Args:
        encoder: The given name; None is returned if frevl has no encoder with this name.
        parts: The vectors.
        images: Folder of the images, needed to embed some of them again.
        dtype: Stored number type.

    Returns:
        The encoder's own towers, as if the encoder had filled the store.

    Raises:
        FingerprintError: The encoder gives different vectors (cosine below 0.9999).
        UsageError: The images needed for the check were not given.
        InputError: An image is missing from the folder, or cannot be read.
    """
    if encoder not in ENCODERS and not encoder.startswith(tuple(PREFIXES)):
        return None
    loaded = load_encoder(encoder)
    towers = {}
    records = {record.modality: record for record in tower_records(loaded, dtype=dtype)}
    for modality in dict.fromkeys(part.modality for part in parts):
        first = next(part for part in parts if part.modality == modality)
        if modality not in records:
            raise UsageError(f"The encoder '{encoder}' has no {modality} tower, so it cannot have made these vectors")
        if modality == "image" and images is None:
            raise UsageError(
                f"frevl has the encoder '{encoder}' and must verify that it made these vectors: give the folder of "
                "the images with --images, or declare another name with --encoder"
            )
        ids, found = _first_items(first)
        own = _embedded_again(loaded, modality, ids, images)
        if own.shape[1] != found.shape[1]:
            raise FingerprintError(
                f"{first.place}: the encoder '{encoder}' gives {own.shape[1]} numbers, found {found.shape[1]}; declare "
                "the encoder that made them with --encoder"
            )
        lengths = np.linalg.norm(own, axis=1) * np.linalg.norm(found, axis=1)
        cosines = (own * found).sum(axis=1) / np.maximum(lengths, 1e-12)
        if not cosines.min(initial=1.0) >= CANARY_COSINE:
            worst = int(cosines.argmin())
            raise FingerprintError(
                f"{first.place}: the encoder '{encoder}' gives another vector for '{ids[worst]:.80}' (cosine "
                f"{cosines[worst]:.5f}, expected at least {CANARY_COSINE}), so it did not make these; declare another "
                "name with --encoder"
            )
        towers[modality] = records[modality]
    return towers


def _first_items(part: Part) -> tuple[list[str], np.ndarray]:
    """Return up to 32 ids with usable vectors, ``(n, dim)`` float32."""
    block = next(part.blocks(8 * _EMBEDDED_AGAIN))
    named = block.columns["id"].to_pylist() if block.columns is not None else []
    with np.errstate(over="ignore"):
        values = block.vectors.astype(np.float32)
    usable = [
        row
        for row, id_ in enumerate(named)
        if id_ and id_.strip() and np.isfinite(values[row]).all() and values[row].any()
    ][:_EMBEDDED_AGAIN]
    if not usable:
        raise InputError(f"{part.place}: expected vectors, found no usable one among the first {len(named):,}")
    return [named[row] for row in usable], values[usable]


def _embedded_again(encoder: Encoder, modality: Modality, ids: Sequence[str], folder: Path | None) -> np.ndarray:
    if modality == "text" and encoder.text is not None:
        embedded = encoder.text.embed(ids)
        return pool(embedded.values, embedded.mask)
    tower = encoder.image
    if tower is None or folder is None:
        return np.zeros((0, 0), np.float32)
    try:
        prepared = [tower.prepare(read_image(folder / id_, target=tower.target)) for id_ in ids]
    except (ImageError, OSError) as error:
        raise InputError(f"{folder}: the images are needed to verify the vectors; {error}") from error
    embedded = tower.embed(prepared)
    return pool(embedded.values, embedded.mask)
