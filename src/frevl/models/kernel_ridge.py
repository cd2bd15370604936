"""Kernel fusion: ridge regression with a product of two Gaussian kernels, one a modality. Pure torch.

``K((v, t), (v', t')) = k(t, t') * (c + (1 - c) * k(v, v'))`` holds every interaction of the two embeddings, has one
solution and no epochs, and is hard to beat on a few thousand pairs (research/experiments/log.md). With ``c = 1`` it
looks at the text alone. It is ours, beyond the paper. Memory grows with the square of the training pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.errors import TrainingError
from frevl.models.inputs import ZScore, frozen, mean_pool
from frevl.models.interface import PairNetwork

__all__ = [
    "MOST_PAIRS",
    "RIDGES",
    "TEXT_ONLY_SHARES",
    "KernelFit",
    "KernelFusion",
    "fit_kernel",
    "held_out_scores",
    "kernel_matrix",
]

MOST_PAIRS = 20_000  # the kernel matrix and its inverse then take 3.2 GB together
# The penalty is chosen at the first share, the share at that penalty: half the solutions of the whole grid.
TEXT_ONLY_SHARES = (0.25, 0.0, 1.0)
RIDGES = (3.0, 1.0, 0.3, 0.1)  # the strongest first: a weaker one has to be better, not as good
_PAIRS_AT_ONCE = 512


class KernelFusion(PairNetwork):
    """Scores ``sum over training pairs i of K((v, t), (v_i, t_i)) alpha_i + mean``.

    Embeddings are standardised in each dimension with training statistics, then scaled to unit length. Every item of
    the training pairs is stored once, however many pairs use it. Tokens are pooled by their mean.
    """

    key = "kernel"
    no_int8 = "the distances of a kernel fusion are small differences of large numbers"

    def __init__(self, *, image_dim: int, text_dim: int, outputs: int, pairs: int, images: int, texts: int) -> None:
        """Make room for a solution; `fit_kernel` fills it.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            outputs: Number of classes.
            pairs: Number of training pairs.
            images: Number of different images in them.
            texts: Number of different texts in them.
        """
        super().__init__()
        self.settings = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "outputs": outputs,
            "pairs": pairs,
            "images": images,
            "texts": texts,
        }
        self.image_mean, self.image_scale = frozen(image_dim), frozen(image_dim)
        self.text_mean, self.text_scale = frozen(text_dim), frozen(text_dim)
        self.images, self.texts = frozen(images, image_dim), frozen(texts, text_dim)
        self.image_rows = nn.Parameter(torch.zeros(pairs, dtype=torch.long), requires_grad=False)
        self.text_rows = nn.Parameter(torch.zeros(pairs, dtype=torch.long), requires_grad=False)
        self.alphas, self.mean = frozen(pairs, outputs), frozen(outputs)
        self.image_width, self.text_width = frozen(), frozen()
        self.blind_share = frozen()  # the share of the text alone; saved runs have it under this name

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        """Return ``(n, outputs)`` scores; the shapes are those of `PairNetwork.forward`.

        They are regressions on class membership, about 0 to 1; calibration turns them into probabilities.
        """
        v, t = self.normal_image(mean_pool(image, image_mask)), self.normal_text(mean_pool(text, text_mask))
        blocks = range(0, len(v), _PAIRS_AT_ONCE)  # a block of the kernel matrix at a time
        return torch.cat([self.of_normal(v[i : i + _PAIRS_AT_ONCE], t[i : i + _PAIRS_AT_ONCE]) for i in blocks])

    def of_normal(self, v: Tensor, t: Tensor) -> Tensor:
        """Return the ``(n, outputs)`` scores of `normal_image` and `normal_text` of pairs, all pairs at once."""
        seen = self.blind_share + (1 - self.blind_share) * kernel_matrix(v, self.images, self.image_width)
        kernel = kernel_matrix(t, self.texts, self.text_width)[:, self.text_rows] * seen[:, self.image_rows]
        return kernel @ self.alphas + self.mean

    def normal_image(self, images: Tensor) -> Tensor:
        """Standardise ``(n, image_dim)`` and scale it to unit length."""
        return F.normalize(self.input_statistics()[0](images), dim=1)

    def normal_text(self, texts: Tensor) -> Tensor:
        """Standardise ``(n, text_dim)`` and scale it to unit length."""
        return F.normalize(self.input_statistics()[1](texts), dim=1)

    def input_statistics(self) -> tuple[ZScore, ZScore]:
        """Mean and deviation of the training items, each counted once."""
        return ZScore(self.image_mean, self.image_scale), ZScore(self.text_mean, self.text_scale)

    def for_export(self) -> nn.Module:
        """Without the loop over blocks of pairs, which a graph for any number of pairs cannot hold."""
        return _InOneBlock(self)


class _InOneBlock(nn.Module):
    """`KernelFusion.forward`, all pairs at once."""

    def __init__(self, network: KernelFusion) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        pooled = mean_pool(image, image_mask), mean_pool(text, text_mask)
        return self.network.of_normal(self.network.normal_image(pooled[0]), self.network.normal_text(pooled[1]))


@dataclass(frozen=True)
class KernelFit:
    """What was chosen, and how it does on clusters (images) that the solution has not seen.

    Attributes:
        ridge: Chosen penalty.
        text_only_share: Chosen ``c``.
        metric: Share of right answers, in [0, 1], of the held-out scores.
        held_out: ``(n, outputs)`` scores of every training pair by the solution without its cluster.
    """

    ridge: float
    text_only_share: float
    metric: float
    held_out: Tensor


def fit_kernel(
    network: KernelFusion,
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    weights: Tensor,
    clusters: Tensor,
    *,
    text_only_shares: Sequence[float] = TEXT_ONLY_SHARES,
    ridges: Sequence[float] = RIDGES,
) -> KernelFit:
    """Solve the regression; penalty and share are chosen by exact leave-one-cluster-out scores.

    Args:
        network: Filled with the solution on all pairs.
        images: ``(images, image_dim)`` float32, pooled, every image once.
        texts: ``(texts, text_dim)`` float32, pooled, every text once.
        image_rows: ``(n,)`` int64, image of every pair.
        text_rows: ``(n,)`` int64, text of every pair.
        weights: ``(n, outputs)`` float32, weight of every class for every pair.
        clusters: ``(n,)`` int64; pairs of one number (mostly: of one image) are left out together.
        text_only_shares: Values of ``c`` to try, at least one.
        ridges: Penalties to try, at least one.

    Raises:
        TrainingError: There are more pairs than memory is planned for.
    """
    if len(image_rows) > MOST_PAIRS:
        raise TrainingError(
            f"The kernel fusion takes at most {MOST_PAIRS:,} training pairs, found {len(image_rows):,}: its memory "
            "grows with their square; train a fusion (--model tiny) instead"
        )
    for statistics, items in zip(network.input_statistics(), (images, texts), strict=True):
        statistics.fit(items)
    network.images.copy_(network.normal_image(images))
    network.texts.copy_(network.normal_text(texts))
    network.image_rows.copy_(image_rows)
    network.text_rows.copy_(text_rows)
    network.image_width.copy_(_median_distance(network.images))
    network.text_width.copy_(_median_distance(network.texts))
    network.mean.copy_(weights.mean(dim=0))
    centred = weights - network.mean

    image_kernel = kernel_matrix(network.images, network.images, network.image_width)[image_rows][:, image_rows]
    text_kernel = kernel_matrix(network.texts, network.texts, network.text_width)[text_rows][:, text_rows]
    best: KernelFit | None = None
    for text_only_share in text_only_shares:
        kernel = text_kernel * (text_only_share + (1 - text_only_share) * image_kernel)
        for ridge in ridges if best is None else (best.ridge,):
            alphas, held_out = held_out_scores(kernel, centred, clusters, ridge)
            held_out += network.mean
            metric = weights.gather(1, held_out.argmax(dim=1, keepdim=True)).mean().item()
            # As good without the image is better: it is simpler.
            if best is None or metric > best.metric or (metric == best.metric and text_only_share == 1.0):
                best = KernelFit(ridge, text_only_share, metric, held_out)
                network.alphas.copy_(alphas)
                network.blind_share.copy_(torch.tensor(text_only_share))
    if best is None:
        raise TrainingError(
            "The kernel fusion found no solution: the embeddings are not finite; run frevl store verify"
        )
    return best


def held_out_scores(kernel: Tensor, targets: Tensor, groups: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Solve kernel ridge regression, and score every pair as if its whole group had been left out.

    With ``G = (K + ridge I)^-1`` and ``alpha = G Y``, the error on a group that is left out is
    ``G_gg^-1 alpha_g``: exact, without solving again (the block form of the leave-one-out identity).

    Args:
        kernel: ``(n, n)`` symmetric.
        targets: ``(n, outputs)``.
        groups: ``(n,)`` int64; pairs of the same number are left out together.
        ridge: Penalty above 0.

    Returns:
        ``(n, outputs)`` alphas and ``(n, outputs)`` held-out scores.
    """
    factor = torch.linalg.cholesky(kernel + ridge * torch.eye(len(kernel)))
    inverse = torch.cholesky_inverse(factor)
    alphas = inverse @ targets
    errors = torch.empty_like(alphas)
    counts = torch.bincount(groups)
    for rows in torch.split(groups.argsort(stable=True), counts[counts > 0].tolist()):
        errors[rows] = torch.linalg.solve(inverse[rows][:, rows], alphas[rows])
    return alphas, targets - errors


def kernel_matrix(a: Tensor, b: Tensor, width: Tensor | float) -> Tensor:
    """Gaussian kernel ``exp(-|a - b|^2 / width)``.

    Args:
        a: ``(n, d)``.
        b: ``(m, d)``.
        width: Squared width, above 0.

    Returns:
        ``(n, m)`` in (0, 1].
    """
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return squares.clamp_(min=0).div_(-width).exp_()


def _median_distance(items: Tensor, most: int = 2000) -> Tensor:
    """Median squared distance of different items, the usual width of a Gaussian kernel; of a sample if many."""
    step = max(1, len(items) // most)
    some = items[::step]
    distances = torch.cdist(some, some).square()
    different = distances[distances > 1e-6]
    return different.median() if len(different) else torch.ones(())
