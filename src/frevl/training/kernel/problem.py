"""A kernel regression with fixed pairs, for trying kernels and penalties."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.models.kernel_ridge import KernelFusion, held_out_scores, kernel_matrix, median_distance, mixed, needs
from frevl.training.options import KernelOptions

__all__ = [
    "PENALTY_WITHOUT_CHOICE",
    "WITHOUT_CHOICE",
    "Problem",
    "Solved",
    "Sum",
    "drawn",
    "known_pairs",
    "penalties_of",
    "standardise",
    "sums_of",
    "varies",
]


@dataclass(frozen=True)
class Sum:
    """A sum of kernels to try.

    Attributes:
        name: Name of the sum in words.
        shares: Shares of text, image and their product, which sum to 1.
        option: The field of `KernelOptions` that switches it on or off.
    """

    name: str
    shares: tuple[float, float, float]
    option: str


# In order of complexity, simplest first; ties go to the simpler sum. Of the many shares that were tried, these proved
# useful; linear kernels and other widths did not (research/experiments/log.md).
_SUMS = (
    Sum("text alone", (1.0, 0.0, 0.0), "text_alone"),
    Sum("image alone", (0.0, 1.0, 0.0), "image_alone"),
    Sum("product", (0.25, 0.0, 0.75), "product"),
    Sum("image and text", (0.25, 0.75, 0.0), "sums"),
    Sum("text, image and product", (0.6, 0.2, 0.2), "sums"),
)
WITHOUT_CHOICE = Sum("text, image and product", (0.25, 0.25, 0.5), "sums")
PENALTY_WITHOUT_CHOICE = 1.0


def sums_of(options: KernelOptions, *, image: bool, text: bool) -> list[Sum]:
    """Return the sums to try, simplest first.

    Args:
        options: The sums that the user allows.
        image: Whether images can distinguish pairs: whether there are embeddings of more than one.
        text: Whether texts can distinguish pairs: whether there are embeddings of more than one.

    Raises:
        UsageError: The options leave nothing to try.
    """
    if not (image and text):
        return [_SUMS[1] if image else _SUMS[0]]
    chosen = [one for one in _SUMS if getattr(options, one.option)]
    if not chosen:
        raise UsageError(
            "The options of the model 'kernel' leave no sum of kernels to try; set one of text_alone, image_alone, "
            "product and sums to true"
        )
    return chosen


def penalties_of(options: KernelOptions) -> list[float]:
    """Return the penalties to try, strongest first, two per power of ten.

    Raises:
        UsageError: The smallest penalty is above the largest.
    """
    largest, smallest = options.largest_penalty, options.smallest_penalty
    if smallest > largest:
        raise UsageError(
            f"The option 'smallest_penalty' of the model 'kernel' must not be above largest_penalty ({largest:g}), "
            f"found {smallest:g}"
        )
    steps = math.floor(2 * math.log10(largest / smallest) + 0.1)
    return [float(f"{largest / 10 ** (step / 2):.2g}") for step in range(steps + 1)]


@dataclass(frozen=True)
class Solved:
    """A sum of kernels solved with one penalty."""

    kind: Sum
    ridge: float
    alphas: Tensor
    held_out: Tensor
    hits: Tensor
    error: float

    def metric(self, problem: Problem) -> float:
        """Return the accuracy on the known pairs, in [0, 1]."""
        return self.hits[problem.known].mean().item() if bool(problem.known.any()) else 0.0


@dataclass(frozen=True, eq=False)
class Problem:
    """Pairs with centred targets, for which any sum of kernels can be solved."""

    room: KernelFusion
    image_rows: Tensor
    text_rows: Tensor
    targets: Tensor
    clusters: Tensor
    known: Tensor
    pair_weights: Tensor | None = None  # ``(n,)``, 1 on average

    def sample(self, most: int) -> Problem:
        """Return a subset of whole clusters with about ``most`` pairs, or everything if there are fewer."""
        if len(self.targets) <= most:
            return self
        rows = drawn(self.clusters, most)
        weights = self.targets[rows] + self.room.mean
        return replace(
            self,
            image_rows=self.image_rows[rows],
            text_rows=self.text_rows[rows],
            targets=self.targets[rows],
            clusters=self.clusters[rows],
            known=known_pairs(weights, self.clusters[rows]),
            pair_weights=None if self.pair_weights is None else self.pair_weights[rows],
        )

    def kernel(self, kind: Sum) -> Tensor:
        """Return the ``(n, n)`` sum of kernels of all pairs."""
        room, (of_text, of_image) = self.room, needs(kind.shares)
        text = _between(room.texts, self.text_rows, room.text_width) if of_text else None
        image = _between(room.images, self.image_rows, room.image_width) if of_image else None
        return mixed(text, image, kind.shares)

    def solve(self, kind: Sum, ridge: float, kernel: Tensor | None = None) -> Solved:
        """Solve one sum with one penalty, and score every pair with its cluster held out."""
        kernel = self.kernel(kind) if kernel is None else kernel
        penalty = ridge if self.pair_weights is None else ridge / self.pair_weights
        alphas, held_out = held_out_scores(kernel, self.targets, self.clusters, penalty)
        scores, weights = held_out + self.room.mean, self.targets + self.room.mean
        hits = weights.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
        known = self.known if bool(self.known.any()) else torch.ones_like(self.known)
        squares = (scores - weights).square().sum(dim=1)
        if self.pair_weights is not None:  # class weights also apply to the choice
            counted = self.pair_weights / self.pair_weights[known].mean()
            hits, squares = hits * counted, squares * counted
        error = squares[known].mean().item()
        return Solved(kind, ridge, alphas, held_out, hits, error)


def drawn(clusters: Tensor, most: int) -> Tensor:
    """Return ``(most,)`` rows in ascending order: the pairs of random clusters, the last of which may be cut."""
    names, numbers = torch.unique(clusters, return_inverse=True)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return order[numbers].argsort(stable=True)[:most].sort().values


def standardise(room: KernelFusion, images: Tensor, texts: Tensor) -> None:
    """Set statistics, items and kernel widths from the training items."""
    roots = images.sign() * images.abs().sqrt() if room.image_root else images
    for statistics, items in zip(room.input_statistics(), (roots, texts), strict=True):
        statistics.fit(items)
    room.images.copy_(room.normal_image(images))
    room.texts.copy_(room.normal_text(texts))
    room.image_width.copy_(median_distance(room.images))
    room.text_width.copy_(median_distance(room.texts))


def _between(items: Tensor, rows: Tensor, width: Tensor) -> Tensor:
    """Return the ``(n, n)`` kernel of the items of all pairs."""
    used, places = torch.unique(rows, return_inverse=True)
    return kernel_matrix(items[used], items[used], width)[places][:, places]


def varies(items: Tensor) -> bool:
    """Return whether items differ at all."""
    return items.shape[1] > 0 and bool((items != items[:1]).any())


def known_pairs(weights: Tensor, clusters: Tensor) -> Tensor:
    """Return ``(n,)`` bool: a class of the pair is also a class of a pair in another cluster."""
    rows, classes = (weights > 1e-6).nonzero(as_tuple=True)
    totals = torch.bincount(classes, minlength=weights.shape[1])
    _, places, own = torch.unique(
        torch.stack([clusters[rows], classes]), dim=1, return_inverse=True, return_counts=True
    )
    known = torch.zeros(len(weights), dtype=torch.bool)
    known[rows[totals[classes] > own[places]]] = True
    return known
