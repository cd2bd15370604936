"""Kernel ridge regression from images to the meanings of their texts, in closed form and within seconds.

A two-tower network is trained to distinguish the pairs of a batch; the regression predicts the mean embedding of an
image's texts, and texts are compared with it by cosine. The two make different mistakes, so a weighted sum ranks better
than either (research/experiments/log.md). Pure torch; ours, after kernel dependency estimation and the alignment of
word vectors.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.inputs import ZScore, frozen, mean_pool, stored_in_half

__all__ = ["Alignment", "fit_alignment"]


class Alignment(nn.Module):
    """Maps images and texts to unit vectors of one space; stores its training images.

    A text is standardised, projected on the leading principal directions of the training texts, each divided by its
    standard deviation (whitening), and scaled to unit length. An image is standardised, scaled to unit length, and
    mapped into that space by Gaussian-kernel regression.
    """

    def __init__(self, *, image_dim: int, text_dim: int, anchors: int, rank: int, bandwidth: float = 0.7) -> None:
        """Build the network without its weights.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            anchors: Number of stored training images.
            rank: Width of the common space.
            bandwidth: Width of the Gaussian kernel between unit vectors.
        """
        super().__init__()
        self.settings: dict[str, Any] = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "anchors": anchors,
            "rank": rank,
            "bandwidth": bandwidth,
        }
        self.bandwidth = bandwidth
        self.image_mean, self.image_scale = frozen(image_dim), frozen(image_dim)
        self.text_mean, self.text_scale = frozen(text_dim), frozen(text_dim)
        self.anchors, self.coefficients = frozen(anchors, image_dim), frozen(anchors, rank)
        self.text_map, self.shift = frozen(text_dim, rank), frozen(rank)
        stored_in_half(self)

    @property
    def image_statistics(self) -> ZScore:
        """Mean and deviation of the training images."""
        return ZScore(self.image_mean, self.image_scale)

    @property
    def text_statistics(self) -> ZScore:
        """Mean and deviation of the training texts."""
        return ZScore(self.text_mean, self.text_scale)

    def image_vectors(self, image: Tensor, image_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, rank)`` unit vectors for ``(n, image_dim)`` or ``(n, Nv, image_dim)`` embeddings."""
        return F.normalize(self._kernel(self._directions(mean_pool(image, image_mask))) @ self.coefficients, dim=1)

    def text_vectors(self, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Return ``(n, rank)`` unit vectors for ``(n, text_dim)`` or ``(n, Nt, text_dim)`` embeddings."""
        return F.normalize(self._meanings(mean_pool(text, text_mask)) - self.shift, dim=1)

    def _directions(self, image: Tensor) -> Tensor:
        return F.normalize(self.image_statistics(image), dim=1)

    def _meanings(self, text: Tensor) -> Tensor:
        return F.normalize(self.text_statistics(text) @ self.text_map, dim=1)

    def _kernel(self, directions: Tensor) -> Tensor:
        return ((directions @ self.anchors.T - 1) / self.bandwidth**2).exp()


def fit_alignment(
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    *,
    seed: int,
    rank: int = 512,
    penalty: float = 1.0,
    most: int = 10_000,
) -> Alignment:
    """Solve the regression.

    Args:
        images: ``(images, image_dim)`` pooled embeddings.
        texts: ``(texts, text_dim)`` pooled embeddings.
        image_rows: ``(n,)`` int64, the image of each right pair.
        text_rows: ``(n,)`` int64, the text of each right pair.
        seed: Seed for sampling images if there are more than ``most``.
        rank: Number of principal directions of the texts to keep.
        penalty: Ridge penalty, relative to the kernel's diagonal of 1.
        most: Maximum number of training images; the time grows with its cube.
    """
    random = torch.Generator().manual_seed(seed)
    used = torch.unique(image_rows)
    used = used[torch.randperm(len(used), generator=random)[:most]].sort().values
    inside = torch.isin(image_rows, used)
    place = torch.searchsorted(used, image_rows[inside])
    text_ids, text_at = torch.unique(text_rows[inside], return_inverse=True)
    anchors, values = images[used].float(), texts[text_ids].float()
    rank = min(rank, texts.shape[1], len(text_ids))
    network = Alignment(image_dim=images.shape[1], text_dim=texts.shape[1], anchors=len(used), rank=rank)
    network.image_statistics.fit(anchors)
    network.text_statistics.fit(values)
    standard = network.text_statistics(values)
    spread, directions = torch.linalg.eigh((standard.T @ standard / len(standard)).double())
    spread, directions = spread.flip(0)[:rank].clamp(min=1e-6 * float(spread[-1])), directions.flip(1)[:, :rank]
    network.text_map.copy_((directions / spread.sqrt()).float())
    meanings = network._meanings(values)
    sums = torch.zeros(len(used), rank).index_add_(0, place, meanings[text_at])
    means = sums / torch.bincount(place, minlength=len(used))[:, None]
    network.shift.copy_(means.mean(dim=0))
    network.anchors.copy_(network._directions(anchors))
    kernel = network._kernel(network.anchors)
    kernel.diagonal().add_(penalty)
    network.coefficients.copy_(torch.linalg.solve(kernel, means - network.shift))
    return network.eval()
