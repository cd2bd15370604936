"""Fit a kernel fusion approximately, to more pairs than an exact solution allows.

The sum of kernels and an initial penalty are chosen as usual, by exact leave-one-cluster-out scores on a subset. That
sum is then fitted to all pairs with landmarks, and weaker penalties are tried using held-out scores of random clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from frevl.errors import UsageError
from frevl.models.kernel_ridge import MOST_PAIRS, KernelFusion, needs
from frevl.runs.targets import Answers
from frevl.training.examples import Examples
from frevl.training.kernel.fit import (
    COMPARED,
    PRIOR_SCALE,
    KernelFit,
    compare,
    enough,
    notes_on,
    simplest,
)
from frevl.training.kernel.landmarks import Landmarks, Regression, whole_clusters
from frevl.training.kernel.problem import PENALTY_WITHOUT_CHOICE, WITHOUT_CHOICE, Sum, drawn, penalties_of, sums_of
from frevl.training.kernel.subsets import Rooms
from frevl.training.options import KernelOptions

__all__ = ["fit_kernel_approximately"]

_HELD_OUT = 20_000  # pairs in whole clusters that are scored with their cluster held out


def fit_kernel_approximately(
    train: Examples, outputs: int, options: KernelOptions | None = None
) -> tuple[KernelFusion, KernelFit]:
    """Fit a kernel fusion with landmarks; its memory does not grow with the number of training pairs.

    Args:
        train: Examples of a classification.
        outputs: Number of classes.
        options: The sums and penalties to try, and the number of landmarks.

    Raises:
        UsageError: The examples are for matching, or the options leave nothing to try.
        TrainingError: The embeddings are not finite.
    """
    options = options or KernelOptions()
    if not isinstance(train.truth, Answers):
        raise UsageError("The model 'kernel' does classification only; for matching use a fusion, mlp or linear")
    rooms = Rooms.measured(train, train.truth, outputs, options)
    held = whole_clusters(train.clusters, _HELD_OUT)
    known = _known(train.truth, train.clusters, outputs)
    kind, penalties, tried = _choose(rooms, known, options)
    network = rooms.room(_landmark_rows(train, kind, options.landmarks), kind)
    landmarks = Landmarks.of(network, train, train.truth, rooms.pair_weights)
    regression = Regression.of(landmarks, torch.arange(len(train)))
    solved = _downhill(regression, penalties, held, known[held])
    half = _Scored.of(regression.first(max(1, len(landmarks.factor) // 2)), solved.ridge, held, known[held])
    # If most pairs are unknown, they cannot calibrate the scores.
    scale = PRIOR_SCALE if 2 * int(known.sum()) < len(known) else 1.0
    network.alphas.copy_(scale * solved.alphas)
    network.mean.mul_(scale)
    held_out = (scale * (solved.held_out + landmarks.mean)).float()
    approximation = {
        "method": "nystroem",
        "landmarks": len(landmarks.factor),
        "pairs": len(train),
        "held_out": {
            "n": int(known[held].sum()),
            "accuracy": 100 * solved.metric,
            "accuracy_with_half_the_landmarks": 100 * half.metric,
        },
    }
    fit = KernelFit(
        kind, solved.ridge, solved.metric, solved.metric, held_out, known[held], rows=held, approximation=approximation
    )
    said = (
        f"kernel: approximate, because an exact solution does not fit more than {MOST_PAIRS:,} pairs: "
        f"{len(landmarks.factor):,} of {len(train):,} training pairs serve as landmarks. Held out, "
        f"{100 * solved.metric:.1f} % of its answers are right, with half as many {100 * half.metric:.1f} %."
    )
    return network.eval(), replace(fit, notes=(said, *notes_on(fit, len(tried))))


@dataclass(frozen=True, eq=False)
class _Scored:
    """A regression solved with one penalty, and its held-out results."""

    ridge: float
    alphas: Tensor
    held_out: Tensor
    metric: float
    error: float

    @classmethod
    def of(cls, regression: Regression, ridge: float, held: Tensor, known: Tensor) -> _Scored:
        alphas, held_out = regression.held_out(ridge, held)
        landmarks = regression.landmarks
        scores, weights = held_out + landmarks.mean, landmarks.targets(held) + landmarks.mean
        hits = weights.gather(1, scores.argmax(dim=1, keepdim=True))[:, 0]
        squares = (scores - weights).square().sum(dim=1)
        counted = known if bool(known.any()) else torch.ones_like(known)
        if landmarks.pair_weights is not None:
            own = landmarks.pair_weights[held] / landmarks.pair_weights[held][counted].mean()
            hits, squares = hits * own, squares * own
        metric = hits[known].mean().item() if bool(known.any()) else 0.0
        return cls(ridge, alphas, held_out, metric, squares[counted].mean().item())


def _downhill(regression: Regression, penalties: list[float], held: Tensor, known: Tensor) -> _Scored:
    """Solve with weaker and weaker penalties while the held-out squared error falls."""
    best = _Scored.of(regression, penalties[0], held, known)
    for ridge in penalties[1:]:
        one = _Scored.of(regression, ridge, held, known)
        if not one.error < best.error:
            break
        best = one
    return best


def _choose(rooms: Rooms, known: Tensor, options: KernelOptions) -> tuple[Sum, list[float], list[Sum]]:
    """Choose the sum on a subset; return it, the penalties to try on all pairs, and the sums tried."""
    sides = [bool(rooms.state[f"{side}_scale"].isfinite().any()) for side in ("image", "text")]
    tried = sums_of(options, image=sides[0], text=sides[1])
    penalties = penalties_of(options)
    if not enough(known):
        return (tried[0] if len(tried) == 1 else WITHOUT_CHOICE), [PENALTY_WITHOUT_CHOICE], tried
    part = rooms.problem(drawn(rooms.train.clusters, COMPARED))
    found = simplest(compare(part, tried, penalties), part)
    return found.kind, penalties[penalties.index(found.ridge) :], tried


def _landmark_rows(train: Examples, kind: Sum, count: int) -> Tensor:
    """Draw landmark pairs that are distinct for the kernels."""
    of_text, of_image = needs(kind.shares)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    seen = [
        rows[order[: 4 * count]]
        for wanted, rows in ((of_image, train.pairs.image_rows), (of_text, train.pairs.text_rows))
        if wanted
    ]
    _, numbers = torch.unique(torch.stack(seen), dim=1, return_inverse=True)
    first = torch.full((int(numbers.max()) + 1,), len(numbers)).scatter_reduce(
        0, numbers, torch.arange(len(numbers)), "amin"
    )
    return order[first.sort().values[:count]]


def _known(answers: Answers, clusters: Tensor, outputs: int) -> Tensor:
    """Return the same as `known_pairs`, without class weights for every pair."""
    rows, places = ((answers.weights > 1e-6) & (answers.classes >= 0)).nonzero(as_tuple=True)
    classes = answers.classes[rows, places]
    totals = torch.bincount(classes, minlength=outputs)
    _, numbers, own = torch.unique(clusters[rows] * outputs + classes, return_inverse=True, return_counts=True)
    known = torch.zeros(len(clusters), dtype=torch.bool)
    known[rows[totals[classes] > own[numbers]]] = True
    return known
