"""The cosine of an encoder with a common space, adapted to the user's own pairs.

The addition is regularised canonical correlation (Hotelling 1936; ridge as in Vinod 1976): directions in which images
and texts of the training pairs vary together, found in closed form. Its weight is small, so the score stays close to
the cosine::

    logit = scale (cosine + weight * canonical cosine)

A network with as many parameters, trained from random weights, is worse than the cosine on hundreds of pairs
(research/experiments/log.md). Pure torch; the combination is ours.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from frevl.models.inputs import frozen
from frevl.models.retrieval.two_tower import Cosine

__all__ = ["AdaptedCosine", "fit_adapted_cosine"]


class AdaptedCosine(Cosine):
    """A `Cosine` whose unit vectors are extended by canonical directions."""

    key = "adapted-cosine"

    def __init__(
        self,
        *,
        spaces: list[list[int]],
        rank: int,
        weight: float,
        scale: float = 1.0,
        bias: float = 0.0,
        alignment: dict[str, Any] | None = None,
        alignment_weight: float = 0.0,
        text_maps: bool = False,
    ) -> None:
        """Build the network without its weights.

        Args:
            spaces: As in `Cosine`.
            rank: Number of canonical directions.
            weight: Weight of their cosine relative to the encoder's; 0 leaves the encoder's cosine alone.
            scale: Logit of an encoder's cosine of 1.
            bias: Added to the logit.
            alignment: Arguments of the additional `Alignment`, or None.
            alignment_weight: Weight of the alignment's cosine in the logit.
            text_maps: As in `Cosine`; canonical directions are then found after applying the maps.
        """
        super().__init__(
            spaces=spaces, scale=scale, bias=bias, alignment=alignment, alignment_weight=alignment_weight,
            text_maps=text_maps,
        )  # fmt: skip
        self.settings = {**self.settings, "rank": rank, "weight": weight}
        self.weight = weight
        width = sum(stop - start for start, stop, _, _ in spaces)
        self.image_mean, self.image_map = frozen(width), frozen(width, rank)
        self.text_mean, self.text_map = frozen(width), frozen(width, rank)

    @property
    def own_scale(self) -> Tensor:
        """The logit of a joined cosine of 1."""
        return self.logit_scale * (1 + self.weight)

    def own_image_vectors(self, image: Tensor) -> Tensor:
        """Return ``(n, d + rank)`` unit vectors."""
        return self._beside(super().own_image_vectors(image), self.image_mean, self.image_map)

    def own_text_vectors(self, text: Tensor) -> Tensor:
        """Return ``(n, d + rank)`` unit vectors."""
        return self._beside(super().own_text_vectors(text), self.text_mean, self.text_map)

    def _beside(self, vectors: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
        if self.weight == 0:
            return vectors
        canonical = F.normalize(F.normalize(vectors - mean, dim=1) @ directions, dim=1)
        return torch.cat([vectors, math.sqrt(self.weight) * canonical], dim=1) / math.sqrt(1 + self.weight)


def fit_adapted_cosine(
    cosine: Cosine,
    images: Tensor,
    texts: Tensor,
    *,
    weight: float,
    scale: float,
    rank: int = 128,
    penalty: float = 3.0,
) -> AdaptedCosine:
    """Find the canonical directions of right pairs.

    Args:
        cosine: The cosine of the encoder.
        images: ``(n, image_dim)`` pooled embeddings of the images of the right pairs.
        texts: ``(n, text_dim)`` pooled embeddings of their texts.
        weight: Weight of the canonical cosine.
        scale: Logit of an encoder's cosine of 1.
        rank: Maximum number of directions.
        penalty: Ridge penalty, in units of the mean variance of a direction.
    """
    with torch.no_grad():
        image, text = cosine.own_image_vectors(images.float()), cosine.own_text_vectors(texts.float())
    rank = min(rank, image.shape[1], len(image))
    network = AdaptedCosine(spaces=cosine.spaces, rank=rank, weight=weight, scale=scale)
    network.image_mean.copy_(image.mean(dim=0))
    network.text_mean.copy_(text.mean(dim=0))
    image, text = F.normalize(image - network.image_mean, dim=1), F.normalize(text - network.text_mean, dim=1)
    of_image, of_text = _whitening(image, penalty), _whitening(text, penalty)
    left, correlations, right = torch.linalg.svd(of_image @ (image.T @ text / len(image)) @ of_text)
    strength = correlations[:rank].sqrt()
    network.image_map.copy_(of_image @ left[:, :rank] * strength)
    network.text_map.copy_(of_text @ right[:rank].T * strength)
    return network.eval()


def _whitening(vectors: Tensor, penalty: float) -> Tensor:
    """Return the inverse root of the covariance of ``(n, d)`` vectors, ``(d, d)``; the ridge is in mean variances."""
    variances, directions = torch.linalg.eigh(vectors.T @ vectors / len(vectors))
    variances = variances.clamp(min=0)
    least = variances.mean().clamp(min=1e-12)  # identical vectors have no directions
    whitened: Tensor = directions / (variances + penalty * least).sqrt() @ directions.T
    return whitened
