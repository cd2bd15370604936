"""``--model cosine``: which columns of the concatenated embeddings lie in a common space of image and text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from frevl.errors import UsageError
from frevl.models.retrieval.two_tower import Cosine

if TYPE_CHECKING:
    from frevl.store.towers import Tower

__all__ = ["COMMON_SPACE", "cosine_of", "has_common_space"]

COMMON_SPACE = "common_space"
"""Field of a tower's identity: names the space that image and text embeddings share, equal in both towers.

Absent where an encoder has none. Beside it the image tower may have ``logit_scale`` and ``logit_bias``, numbers as
text: the encoder's own logits are ``logit_scale * cosine + logit_bias``.
"""


def has_common_space(image_towers: Sequence[Tower], text_towers: Sequence[Tower]) -> bool:
    """Return whether an image tower and a text tower share a space."""
    return bool(_spaces(image_towers) & _spaces(text_towers))


def cosine_of(image_towers: Sequence[Tower], text_towers: Sequence[Tower]) -> Cosine:
    """Build the network that needs no training.

    Args:
        image_towers: Image towers in the order in which their embeddings are concatenated.
        text_towers: The same for texts.

    Raises:
        UsageError: No image tower shares a space with a text tower.
    """
    spaces: list[list[int]] = []
    scales, biases = [], []
    image_start = 0
    for image in image_towers:
        text_start = 0
        for text in text_towers:
            space = image.identity.get(COMMON_SPACE)
            if space is not None and space == text.identity.get(COMMON_SPACE):
                spaces.append([image_start, image_start + image.dim, text_start, text_start + text.dim])
                scales.append(float(image.identity.get("logit_scale", "1")))
                biases.append(float(image.identity.get("logit_bias", "0")))
            text_start += text.dim
        image_start += image.dim
    if not spaces:
        raise UsageError(
            "The model 'cosine' needs an encoder whose images and texts lie in one space, as those of CLIP do; found "
            f"{', '.join(tower.name for tower in [*image_towers, *text_towers])}, which have none; take --model dual, "
            "which learns one"
        )
    return Cosine(spaces=spaces, scale=sum(scales) / len(scales), bias=sum(biases) / len(biases)).eval()


def _spaces(towers: Sequence[Tower]) -> set[str]:
    return {tower.identity[COMMON_SPACE] for tower in towers if COMMON_SPACE in tower.identity}
