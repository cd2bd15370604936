"""Kernel regression on many pairs, carried by a few landmarks, computed in blocks.

With the kernels ``K`` of all pairs with ``m`` landmarks and ``Z`` of the landmarks with each other, the minimiser of
the weighted squares of ``K b - Y`` plus ``ridge b' Z b`` is the best regression that the landmarks can represent (the
subset of regressors, or Nyström's method: Williams and Seeger 2001; Rudi, Camoriano and Rosasco 2015). If all pairs are
landmarks it is exact. With ``Z = L L'`` it is a ridge regression on the features ``K L^-T``, so the scores of a
held-out cluster have a closed form as well. The first ``k`` features are those of the first ``k`` landmarks alone.
Memory is that of a few ``(m, m)`` matrices, whatever the number of pairs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from frevl.models.inputs import mean_pool
from frevl.models.kernel_ridge import KernelFusion, by_size
from frevl.runs.targets import Answers
from frevl.training.examples import Examples

__all__ = ["Landmarks", "Regression", "whole_clusters"]

_PAIRS_AT_ONCE = 1024
_BLOCKS_KEPT = 64  # after which the pages of memory-mapped embeddings are released
_JITTER = 1e-6  # added to the kernel of a landmark with itself, which is 1: landmarks may be equal


@dataclass(frozen=True, eq=False)
class Landmarks:
    """Landmark pairs, and all pairs in terms of them; in double precision.

    Attributes:
        network: A network whose training pairs are the landmarks.
        factor: ``(m, m)`` lower triangular ``L``.
        examples: All training pairs.
        truth: The right answers of the training pairs.
        mean: ``(outputs,)`` weight of every class in the mean, which is subtracted from the targets.
        pair_weights: ``(n,)``, 1 on average; None: 1 for each.
    """

    network: KernelFusion
    factor: Tensor
    examples: Examples
    truth: Answers
    mean: Tensor
    pair_weights: Tensor | None

    @classmethod
    def of(cls, room: KernelFusion, examples: Examples, truth: Answers, pair_weights: Tensor | None) -> Landmarks:
        """Use the pairs of a network as landmarks."""
        network = copy.deepcopy(room).double()
        kernel = network.kernels(network.images[network.image_rows], network.texts[network.text_rows])
        kernel.diagonal().add_(_JITTER)
        return cls(network, torch.linalg.cholesky(kernel), examples, truth, network.mean, pair_weights)

    def blocks(self, rows: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield kernels with the landmarks, centred targets and weights of some pairs, a thousand at a time."""
        for number, part in enumerate(torch.split(rows, _PAIRS_AT_ONCE)):
            if number % _BLOCKS_KEPT == _BLOCKS_KEPT - 1:
                self.examples.pairs.release()
            yield self.kernels(part), self.targets(part), self.weights(part)

    def kernels(self, rows: Tensor) -> Tensor:
        """Return the ``(len(rows), m)`` kernels of some pairs with the landmarks."""
        pairs = self.examples.pairs
        image, text, image_mask, text_mask = pairs.inputs(pairs.image_rows[rows], pairs.text_rows[rows])
        image, text = mean_pool(image, image_mask).double(), mean_pool(text, text_mask).double()
        return self.network.kernels(self.network.normal_image(image), self.network.normal_text(text))

    def targets(self, rows: Tensor) -> Tensor:
        """Return the ``(len(rows), outputs)`` centred targets of some pairs."""
        return self.truth.dense(rows, len(self.mean)).double() - self.mean

    def weights(self, rows: Tensor) -> Tensor:
        """Return the ``(len(rows), 1)`` weights of some pairs."""
        if self.pair_weights is None:
            return torch.ones(len(rows), 1).double()
        return self.pair_weights[rows, None].double()


@dataclass(frozen=True, eq=False)
class Regression:
    """Sums of squares and products of features and targets, from which any penalty can be solved.

    Attributes:
        landmarks: The landmarks that define the features.
        squares: ``(m, m)`` weighted products of the features.
        products: ``(m, outputs)`` weighted products of features and targets.
    """

    landmarks: Landmarks
    squares: Tensor
    products: Tensor

    @classmethod
    def of(cls, landmarks: Landmarks, rows: Tensor) -> Regression:
        """Add up some pairs, block by block."""
        size, outputs = len(landmarks.factor), len(landmarks.mean)
        squares, products = torch.zeros(size, size).double(), torch.zeros(size, outputs).double()
        for kernels, targets, weights in landmarks.blocks(rows):
            weighted = kernels * weights
            squares.addmm_(kernels.T, weighted)
            products.addmm_(weighted.T, targets)
        factor = landmarks.factor
        half = torch.linalg.solve_triangular(factor, squares, upper=False)
        squares = torch.linalg.solve_triangular(factor, half.T, upper=False)
        return cls(landmarks, squares, torch.linalg.solve_triangular(factor, products, upper=False))

    def first(self, count: int) -> Regression:
        """Return the same with only the first landmarks."""
        return Regression(self.landmarks, self.squares[:count, :count], self.products[:count])

    def without(self, other: Regression) -> Regression:
        """Return the same without some of its pairs."""
        return Regression(self.landmarks, self.squares - other.squares, self.products - other.products)

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return ``(k, outputs)`` alphas of the landmarks, and the ``(k, k)`` factor of the inverted matrix."""
        size = len(self.squares)
        factor, penalised = self.landmarks.factor[:size, :size], self.squares.clone()
        penalised.diagonal().add_(ridge)
        root = torch.linalg.cholesky(penalised)
        weights = torch.cholesky_solve(self.products, root)
        return torch.linalg.solve_triangular(factor.T, weights, upper=True), factor @ root

    def held_out(self, ridge: float, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Solve, and score pairs as if each one's cluster had been held out.

        With ``H = X (X'WX + ridge)^-1 X' W`` for the features X of a cluster, the errors without it are ``(I - H)^-1``
        times those with it. A cluster with more pairs than landmarks is held out by solving again.

        Args:
            ridge: Penalty, above 0.
            rows: ``(r,)`` pairs of whole clusters.

        Returns:
            ``(k, outputs)`` alphas of the landmarks and ``(r, outputs)`` centred scores.
        """
        alphas, root = self.solve(ridge)
        clusters = self.landmarks.examples.clusters[rows]
        scores = torch.empty(len(rows), alphas.shape[1]).double()
        large = max(_PAIRS_AT_ONCE, len(alphas))
        for places in _in_blocks(clusters):
            if len(places) > large:
                scores[places] = self._solved_again(ridge, rows[places])
            else:
                scores[places] = self._left_out(alphas, root, rows[places], clusters[places])
        return alphas, scores

    def _left_out(self, alphas: Tensor, root: Tensor, rows: Tensor, clusters: Tensor) -> Tensor:
        kernels = self.landmarks.kernels(rows)[:, : len(alphas)]
        targets, weights = self.landmarks.targets(rows), self.landmarks.weights(rows)
        features = torch.linalg.solve_triangular(root, kernels.T, upper=False).T
        errors = targets - kernels @ alphas
        for members in by_size(clusters):
            own = features[members]
            hat = own @ own.mT * weights[members].mT
            errors[members] = torch.linalg.solve(torch.eye(members.shape[1]).double() - hat, errors[members])
        return targets - errors

    def _solved_again(self, ridge: float, rows: Tensor) -> Tensor:
        size = len(self.squares)
        alphas, _ = self.without(Regression.of(self.landmarks, rows).first(size)).solve(ridge)
        return torch.cat([kernels[:, :size] @ alphas for kernels, _, _ in self.landmarks.blocks(rows)])


def _in_blocks(clusters: Tensor) -> Iterator[Tensor]:
    """Yield the positions of whole clusters, about a thousand pairs at a time, or one larger cluster."""
    order = clusters.argsort(stable=True)
    sizes = torch.unique_consecutive(clusters[order], return_counts=True)[1].tolist()
    start = end = 0
    for size in sizes:
        if end > start and end + size - start > _PAIRS_AT_ONCE:
            yield order[start:end]
            start = end
        end += size
    yield order[start:end]


def whole_clusters(clusters: Tensor, most: int) -> Tensor:
    """Return the rows of random whole clusters up to a number of pairs, but at least one cluster."""
    _, numbers, sizes = torch.unique(clusters, return_inverse=True, return_counts=True)
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(0))
    fitting = order[sizes[order] <= most]
    taken = fitting[sizes[fitting].cumsum(0) <= most]
    if not len(taken):
        taken = sizes.argmin()[None]
    wanted = torch.zeros(len(sizes), dtype=torch.bool)
    wanted[taken] = True
    return wanted[numbers].nonzero()[:, 0]
