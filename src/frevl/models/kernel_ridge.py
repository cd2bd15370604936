"""Kernel fusion: ridge regression with a sum of Gaussian kernels of the text, the image and both. Pure torch.

``K((v, t), (v', t')) = a k(t, t') + b k(v, v') + c k(t, t') k(v, v')``, where the shares a, b and c sum to 1. The
product holds every interaction of the two embeddings; a share of 1 uses one side alone, so the sum need not be
worse than either. It has a unique solution, needs no epochs, and is hard to beat on a few thousand pairs
(research/experiments/log.md). It is ours and not in the paper. Memory grows with the square of the training pairs, so
above `MOST_PAIRS` a subset of them, the landmarks, carries an approximate solution (`frevl.training.kernel.landmarks`).
`frevl.training.kernel.fit` chooses the shares and the penalty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frevl.models.inputs import ZScore, frozen, mean_pool
from frevl.models.interface import PairNetwork, PriorSide

__all__ = [
    "MOST_PAIRS",
    "KernelFusion",
    "by_size",
    "held_out_scores",
    "kernel_matrix",
    "median_distance",
    "mixed",
    "needs",
]

Shares = tuple[float | Tensor, float | Tensor, float | Tensor]

MOST_PAIRS = 20_000  # the kernel matrix and its inverse then take 3.2 GB together
_PAIRS_AT_ONCE = 512
_LANDMARKS = 1024  # training pairs that span the coordinates of `KernelFusion.last_layer_inputs`
_JITTER = 1e-4  # added to the diagonal: training pairs may be equal, and float32 kernels are off by 1e-6
_NUMBERS_AT_ONCE = 2**24  # in the blocks that are solved together: 64 MB


class KernelFusion(PairNetwork):
    """Scores ``sum over training pairs i of K((v, t), (v_i, t_i)) alpha_i + mean``.

    Embeddings are standardised per dimension with training statistics, then scaled to unit length. Every item of the
    training pairs is stored once, however many pairs use it. Token embeddings are mean-pooled. Image embeddings without
    negative numbers (activations after a ReLU) are first replaced by their square roots: the Hellinger kernel of
    Vedaldi and Zisserman 2012, which keeps a few large activations from dominating the rest.
    """

    key = "kernel"
    no_int8 = "the distances of a kernel fusion are small differences of large numbers"

    def __init__(
        self,
        *,
        image_dim: int,
        text_dim: int,
        outputs: int,
        pairs: int,
        images: int,
        texts: int,
        shares: Sequence[float] | None = None,
        image_root: bool = False,
    ) -> None:
        """Allocate room for a solution; `frevl.training.kernel.fit` fills it.

        Args:
            image_dim: Width of an image embedding.
            text_dim: Width of a text embedding.
            outputs: Number of classes.
            pairs: Number of training pairs, or of landmarks.
            images: Number of different images in them.
            texts: Number of different texts in them.
            shares: Shares of text, image and product in [0, 1], which sum to 1. None for a run from before there was an
                image share, whose text share is a weight.
            image_root: Take the square roots of image embeddings, with their signs.
        """
        super().__init__()
        self.shares = None if shares is None else (float(shares[0]), float(shares[1]), float(shares[2]))
        self.image_root = image_root
        settings: dict[str, Any] = {
            "image_dim": image_dim,
            "text_dim": text_dim,
            "outputs": outputs,
            "pairs": pairs,
            "images": images,
            "texts": texts,
        }
        if self.shares is not None:  # an old run keeps its saved settings
            settings |= {"shares": list(self.shares), "image_root": image_root}
        self.settings = settings
        self.image_mean, self.image_scale = frozen(image_dim), frozen(image_dim)
        self.text_mean, self.text_scale = frozen(text_dim), frozen(text_dim)
        self.images, self.texts = frozen(images, image_dim), frozen(texts, text_dim)
        self.image_rows = nn.Parameter(torch.zeros(pairs, dtype=torch.long), requires_grad=False)
        self.text_rows = nn.Parameter(torch.zeros(pairs, dtype=torch.long), requires_grad=False)
        self.alphas, self.mean = frozen(pairs, outputs), frozen(outputs)
        self.image_width, self.text_width = frozen(), frozen()
        self._carriers: tuple[object, Tensor, Tensor] | None = None
        # The text share; saved runs store it under this name, and older ones nowhere else.
        self.blind_share = frozen(fill=0.0 if self.shares is None else self.shares[0])

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
        """Return the ``(n, outputs)`` scores of pairs given as `normal_image` and `normal_text`, all at once."""
        return self.kernels(v, t) @ self.alphas + self.mean

    def kernels(self, v: Tensor, t: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the kernels of `normal_image` and `normal_text` pairs with the stored pairs, ``(n, pairs)``.

        Args:
            v: ``(n, image_dim)``, from `normal_image`.
            t: ``(n, text_dim)``, from `normal_text`.
            rows: ``(m,)`` stored pairs to compare with, giving ``(n, m)``; None for all.
        """
        shares, both = self._shares()
        text = self._kernel_of(t, self.texts, self.text_rows, rows, self.text_width) if both[0] else None
        image = self._kernel_of(v, self.images, self.image_rows, rows, self.image_width) if both[1] else None
        return mixed(text, image, shares)

    @staticmethod
    def _kernel_of(items: Tensor, own: Tensor, own_rows: Tensor, rows: Tensor | None, width: Tensor) -> Tensor:
        if rows is None:
            return kernel_matrix(items, own, width)[:, own_rows]
        return kernel_matrix(items, own[own_rows[rows]], width)

    def mean_logits(self, kept: PriorSide, items: Tensor, bank: Tensor) -> Tensor:
        """Average the bank's kernel first, because the scores are affine in it."""
        images, texts = (bank, items) if kept == "text" else (items, bank)
        shares, _ = self._shares()
        image = kernel_matrix(self.normal_image(images), self.images, self.image_width)
        text = kernel_matrix(self.normal_text(texts), self.texts, self.text_width)
        if kept == "text":
            image = image.mean(dim=0, keepdim=True).expand(len(items), -1)
        else:
            text = text.mean(dim=0, keepdim=True).expand(len(items), -1)
        return mixed(text[:, self.text_rows], image[:, self.image_rows], shares) @ self.alphas + self.mean

    def last_layer_inputs(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return coordinates of pairs relative to training pairs, whose products are the kernel (Nystroem features).

        With up to 1,024 training pairs they are exact, and the doubt is the posterior variance of the Gaussian process
        with this kernel and unit noise. With more pairs, 1,024 evenly spaced ones span the coordinates (subset of
        regressors, Quiñonero-Candela and Rasmussen 2005), and what they do not span counts as unknown.
        """
        v, t = self.normal_image(mean_pool(image, image_mask)), self.normal_text(mean_pool(text, text_mask))
        landmarks, factor = self._landmarks()
        seen = self.kernels(v, t, landmarks).double()
        return {"pair": torch.linalg.solve_triangular(factor, seen.T, upper=False).T.float()}

    def _landmarks(self) -> tuple[Tensor, Tensor]:
        """Return the rows of the pairs that span the coordinates, and the Cholesky factor of their kernel."""
        state = tuple((one.data_ptr(), None if one.is_inference() else one._version) for one in self.parameters())
        if self._carriers is None or self._carriers[0] != state:
            many = len(self.image_rows)
            rows = torch.arange(min(many, _LANDMARKS), device=self.image_rows.device) * many // min(many, _LANDMARKS)
            kernel = self.kernels(self.images[self.image_rows[rows]], self.texts[self.text_rows[rows]], rows).double()
            kernel.diagonal().add_(_JITTER)
            self._carriers = state, rows, torch.linalg.cholesky(kernel)
        return self._carriers[1:]

    def _shares(self) -> tuple[Shares, tuple[bool, bool]]:
        """Return the shares, and whether they require the kernels of the text and of the image."""
        if self.shares is None:  # a run from before there was an image share
            return (self.blind_share, 0.0, 1 - self.blind_share), (True, True)
        return self.shares, needs(self.shares)

    def normal_image(self, images: Tensor) -> Tensor:
        """Standardise ``(n, image_dim)`` (or their roots, if `image_root`) and scale to unit length."""
        values = images.sign() * images.abs().sqrt() if self.image_root else images
        return F.normalize(self.input_statistics()[0](values), dim=1)

    def normal_text(self, texts: Tensor) -> Tensor:
        """Standardise ``(n, text_dim)`` and scale to unit length."""
        return F.normalize(self.input_statistics()[1](texts), dim=1)

    def input_statistics(self) -> tuple[ZScore, ZScore]:
        """Return mean and deviation of the training items (of their roots, if `image_root`), each counted once."""
        return ZScore(self.image_mean, self.image_scale), ZScore(self.text_mean, self.text_scale)

    def for_export(self) -> nn.Module:
        """Return a form without the loop over blocks of pairs, which a graph for any number of pairs cannot contain."""
        return _InOneBlock(self)


class _InOneBlock(nn.Module):
    """`KernelFusion.forward` of all pairs at once."""

    def __init__(self, network: KernelFusion) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, image: Tensor, text: Tensor, image_mask: Tensor | None = None, text_mask: Tensor | None = None
    ) -> Tensor:
        pooled = mean_pool(image, image_mask), mean_pool(text, text_mask)
        return self.network.of_normal(self.network.normal_image(pooled[0]), self.network.normal_text(pooled[1]))


def held_out_scores(kernel: Tensor, targets: Tensor, groups: Tensor, ridge: float | Tensor) -> tuple[Tensor, Tensor]:
    """Solve kernel ridge regression, and score every pair as if its whole group had been held out.

    With ``G = (K + ridge I)^-1`` and ``alpha = G Y``, the error on a held-out group is
    ``G_gg^-1 alpha_g``: exact, without solving again (the block form of the leave-one-out identity).

    Args:
        kernel: ``(n, n)``, symmetric.
        targets: ``(n, outputs)`` values to predict.
        groups: ``(n,)`` int64; pairs with the same number are held out together.
        ridge: Penalty above 0; or ``(n,)``, one per pair and inversely proportional to its weight.

    Returns:
        ``(n, outputs)`` alphas and ``(n, outputs)`` held-out scores.
    """
    penalised = kernel.clone()
    penalised.diagonal().add_(ridge)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(penalised))
    alphas = inverse @ targets
    errors = torch.empty_like(alphas)
    for rows in by_size(groups):
        if rows.shape[1] == 1:
            alone = rows[:, 0]
            errors[alone] = alphas[alone] / inverse.diagonal()[alone, None]
            continue
        for part in torch.split(rows, max(1, _NUMBERS_AT_ONCE // rows.shape[1] ** 2)):
            errors[part] = torch.linalg.solve(inverse[part[:, :, None], part[:, None, :]], alphas[part])
    return alphas, targets - errors


def by_size(groups: Tensor) -> list[Tensor]:
    """Return, for every group size, the ``(groups, size)`` rows of the groups of that size."""
    order = groups.argsort(stable=True)
    _, sizes = torch.unique(groups, return_counts=True)
    ends = sizes.cumsum(0)
    return [
        order[(ends - size)[sizes == size][:, None] + torch.arange(int(size))] for size in torch.unique(sizes).tolist()
    ]


def needs(shares: Sequence[float]) -> tuple[bool, bool]:
    """Return whether a sum of kernels with these shares requires the kernels of the text and of the image."""
    text, image, product = shares
    return text > 0 or product > 0, image > 0 or product > 0


def mixed(text: Tensor | None, image: Tensor | None, shares: Shares) -> Tensor:
    """Return the sum of kernels ``shares[0] text + shares[1] image + shares[2] text image``.

    Args:
        text: ``(n, m)`` kernel; None if it is not needed; see `needs`.
        image: ``(n, m)`` kernel, likewise.
        shares: Shares of text, image and product; if there is only one kernel, its share has no effect.
    """
    of_text, of_image, of_product = shares
    if text is not None and image is not None:
        seen = text * (of_text + of_product * image)
        return seen if isinstance(of_image, float) and of_image == 0 else seen + of_image * image
    alone = image if text is None else text
    if alone is None:
        raise ValueError("a sum of kernels needs a share above 0")
    return alone


def kernel_matrix(a: Tensor, b: Tensor, width: Tensor | float) -> Tensor:
    """Return the Gaussian kernel ``exp(-|a - b|^2 / width)``.

    Args:
        a: ``(n, d)`` points.
        b: ``(m, d)`` points.
        width: Squared width, above 0.

    Returns:
        ``(n, m)`` in (0, 1].
    """
    squares = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1) - 2 * a @ b.T
    return squares.clamp_(min=0).div_(-width).exp_()


def median_distance(items: Tensor, most: int = 2000) -> Tensor:
    """Return the median squared distance of different items, the usual kernel width; of a sample if there are many."""
    step = max(1, len(items) // most)
    some = items[::step]
    distances = torch.cdist(some, some).square()
    different = distances[distances > 1e-6]
    return different.median() if len(different) else torch.ones(())
