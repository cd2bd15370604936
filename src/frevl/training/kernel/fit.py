"""Fit a kernel fusion: solve it for several sums of kernels and penalties, and choose the simplest of the best.

Everything is compared by exact leave-one-cluster-out scores (a cluster is usually one image), so nothing has to be held
out. The penalty of a sum minimises the squared error; among the sums, the simplest within one standard error of the
best accuracy is chosen. Pairs whose class occurs in no other cluster carry no information on either and are ignored; if
too few others remain, shares and penalty are fixed. The procedure is ours; the experiments behind it are in
research/experiments/log.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from frevl.errors import TrainingError, UsageError
from frevl.models.inputs import mean_pool
from frevl.models.kernel_ridge import MOST_PAIRS, KernelFusion
from frevl.runs.targets import Answers, class_weights_of
from frevl.training.examples import Examples
from frevl.training.kernel.problem import (
    PENALTY_WITHOUT_CHOICE,
    WITHOUT_CHOICE,
    Problem,
    Solved,
    Sum,
    known_pairs,
    penalties_of,
    standardise,
    sums_of,
    varies,
)
from frevl.training.options import KernelOptions
from frevl.training.selection.measures import standard_error

__all__ = [
    "COMPARED",
    "FEWEST_KNOWN",
    "PRIOR_SCALE",
    "KernelFit",
    "compare",
    "enough",
    "fit_kernel",
    "fit_kernel_on",
    "notes_on",
    "pair_weights_of",
    "simplest",
]

FEWEST_KNOWN = 20
"""Minimum number of pairs whose class occurs in another cluster; with fewer, and under half of all, nothing is
chosen."""

PRIOR_SCALE = 60.0
"""Scale of the scores if nothing can be held out to calibrate them; measured, research/experiments/log.md."""

_SCREENED = 1_000  # pairs used to find an initial penalty for every sum and to drop hopeless sums
_HOPELESS = 3.0  # standard errors below the best
_LIGHTEST = 1e-3  # minimum weight of a pair, so that its penalty stays finite
COMPARED = 4_000  # pairs on which the sums are compared; the chosen sum is then solved on all pairs


@dataclass(frozen=True)
class KernelFit:
    """The chosen solution, and its results on held-out clusters (images).

    Attributes:
        chosen: The chosen sum of kernels.
        ridge: The chosen penalty.
        metric: Accuracy, in [0, 1], of the held-out scores of `known` pairs; 0 if there are none.
        best_metric: Accuracy of the best sum, which need not be the chosen one.
        held_out: ``(n, outputs)`` scores of every training pair by the solution without its cluster.
        known: ``(n,)`` bool: another cluster has a class of the pair, so that its held-out score is meaningful.
        notes: Notes for the user.
        rows: Training pairs to which `held_out` and `known` refer; None means all.
        approximation: How the solution was approximated, for the run; None if it is exact.
    """

    chosen: Sum
    ridge: float
    metric: float
    best_metric: float
    held_out: Tensor
    known: Tensor
    notes: tuple[str, ...] = ()
    rows: Tensor | None = None
    approximation: dict[str, Any] | None = None

    @property
    def decided(self) -> bool:
        """Return whether there were pairs to base the choice on."""
        return enough(self.known)


def fit_kernel_on(
    train: Examples, outputs: int, options: KernelOptions | None = None
) -> tuple[KernelFusion, KernelFit]:
    """Fit a kernel fusion on the items that the training pairs use.

    Args:
        train: Examples of a classification.
        outputs: Number of classes.
        options: The sums and penalties to try.

    Raises:
        UsageError: The examples are for matching, or the options leave nothing to try.
        TrainingError: There are too many pairs.
    """
    if not isinstance(train.truth, Answers):
        raise UsageError("The model 'kernel' does classification only; for matching use a fusion, mlp or linear")
    image_numbers, image_rows = torch.unique(train.pairs.image_rows, return_inverse=True)
    text_numbers, text_rows = torch.unique(train.pairs.text_rows, return_inverse=True)
    images, image_mask = train.pairs.images[image_numbers].float(), train.pairs.image_mask[image_numbers]
    texts, text_mask = train.pairs.texts[text_numbers].float(), train.pairs.text_mask[text_numbers]
    weights = train.truth.dense(torch.arange(len(train)), outputs)
    of_classes = class_weights_of(train.truth, outputs, None if options is None else options.class_weight)
    return fit_kernel(
        mean_pool(images, image_mask),
        mean_pool(texts, text_mask),
        image_rows,
        text_rows,
        weights,
        train.clusters,
        options,
        None if of_classes is None else pair_weights_of(weights, of_classes),
    )


def pair_weights_of(weights: Tensor, of_classes: Tensor) -> Tensor:
    """Return ``(n,)`` weights above 0: the mean weight of each pair's classes, from ``(n, outputs)`` class weights."""
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return (shares @ of_classes).clamp(min=_LIGHTEST)


def fit_kernel(
    images: Tensor,
    texts: Tensor,
    image_rows: Tensor,
    text_rows: Tensor,
    weights: Tensor,
    clusters: Tensor,
    options: KernelOptions | None = None,
    pair_weights: Tensor | None = None,
) -> tuple[KernelFusion, KernelFit]:
    """Solve the regression for the sum of kernels and the penalty with the best leave-one-cluster-out scores.

    Args:
        images: ``(images, image_dim)`` float32, pooled, every image once; ``image_dim`` may be 0.
        texts: ``(texts, text_dim)`` float32, pooled, every text once; ``text_dim`` may be 0.
        image_rows: ``(n,)`` int64, image of every pair.
        text_rows: ``(n,)`` int64, text of every pair.
        weights: ``(n, outputs)`` float32, weight of every class for every pair.
        clusters: ``(n,)`` int64; pairs with the same number (usually of the same image) are held out together.
        options: The sums and penalties to try.
        pair_weights: ``(n,)`` above 0, 1 on average: the weight of each pair's error. None means 1 for each.

    Returns:
        The network with the solution on all pairs, and the choices made.

    Raises:
        TrainingError: There are more pairs than memory allows for, or the embeddings are not finite.
        UsageError: The options leave nothing to try.
    """
    options = options or KernelOptions()
    if len(image_rows) > MOST_PAIRS:
        raise TrainingError(
            f"The kernel fusion takes at most {MOST_PAIRS:,} training pairs, found {len(image_rows):,}: its memory "
            "grows with their square; train a fusion (--model tiny) instead"
        )
    if not (bool(images.isfinite().all()) and bool(texts.isfinite().all())):
        raise TrainingError(
            "The kernel fusion found no solution: the embeddings are not finite; run frevl store verify"
        )
    room = KernelFusion(
        image_dim=images.shape[1],
        text_dim=texts.shape[1],
        outputs=weights.shape[1],
        pairs=len(image_rows),
        images=len(images),
        texts=len(texts),
        shares=(0.0, 1.0, 0.0),
        image_root=images.numel() > 0 and bool((images >= 0).all()),
    )
    standardise(room, images, texts)
    room.image_rows.copy_(image_rows)
    room.text_rows.copy_(text_rows)
    counted = weights if pair_weights is None else weights * (pair_weights / pair_weights.mean())[:, None]
    room.mean.copy_(counted.mean(dim=0))
    known = known_pairs(weights, clusters)
    whole = Problem(room, image_rows, text_rows, weights - room.mean, clusters, known, pair_weights)
    tried = sums_of(options, image=varies(room.images), text=varies(room.texts))
    penalties = penalties_of(options)
    if not enough(whole.known):
        fixed = tried[0] if len(tried) == 1 else WITHOUT_CHOICE
        solved = [whole.solve(fixed, PENALTY_WITHOUT_CHOICE)]
    else:
        solved = compare(whole.sample(COMPARED), tried, penalties)
        if len(whole.targets) > COMPARED:
            chosen = simplest(solved, whole.sample(COMPARED))
            solved = [downhill(whole, chosen.kind, penalties, penalties.index(chosen.ridge))]
    chosen = simplest(solved, whole)
    best = max(solved, key=lambda one: one.metric(whole))
    # If most pairs are unknown, they cannot calibrate the scores.
    scale = PRIOR_SCALE if 2 * int(whole.known.sum()) < len(whole.known) else 1.0
    held_out = scale * (chosen.held_out + room.mean)
    fit = KernelFit(chosen.kind, chosen.ridge, chosen.metric(whole), best.metric(whole), held_out, whole.known)
    network = KernelFusion(**{**room.settings, "shares": list(chosen.kind.shares)})
    solution = {
        "alphas": scale * chosen.alphas,
        "mean": scale * room.mean,
        "blind_share": torch.tensor(chosen.kind.shares[0]),
    }
    network.load_state_dict({**room.state_dict(), **solution})
    return network.eval(), replace(fit, notes=notes_on(fit, len(tried)))


def enough(known: Tensor) -> bool:
    """Return whether enough pairs are known to base a choice on."""
    count = int(known.sum())
    return count >= FEWEST_KNOWN or 2 * count > len(known)


def compare(problem: Problem, sums: Sequence[Sum], penalties: Sequence[float]) -> list[Solved]:
    """Solve every sum with its best penalty by squared error, except those shown to be hopeless on a subset."""
    part = problem.sample(_SCREENED)
    at, screened = len(penalties) // 2, []
    for kind in sums:
        screened.append(downhill(part, kind, penalties, at, upward=True))
        at = penalties.index(screened[-1].ridge)
    if part is problem:
        return screened
    # More pairs never need a stronger penalty than fewer pairs.
    return [
        downhill(problem, one.kind, penalties, penalties.index(one.ridge))
        for one in screened
        if _within(one, screened, part, _HOPELESS)
    ]


def downhill(problem: Problem, kind: Sum, penalties: Sequence[float], at: int, *, upward: bool = False) -> Solved:
    """Solve a sum with weaker penalties (``upward``: then stronger ones) while the squared error falls."""
    kernel = problem.kernel(kind)
    best = problem.solve(kind, penalties[at], kernel)
    for step in (1, -1) if upward else (1,):
        start = penalties.index(best.ridge)
        for place in range(start + step, len(penalties) if step > 0 else -1, step):
            one = problem.solve(kind, penalties[place], kernel)
            if not one.error < best.error:
                break
            best = one
        if penalties.index(best.ridge) != start:
            break
    return best


def simplest(solved: Sequence[Solved], problem: Problem) -> Solved:
    """Return the first sum within one standard error of the best."""
    return next(one for one in solved if _within(one, solved, problem, 1.0))


def _within(one: Solved, solved: Sequence[Solved], problem: Problem, errors: float) -> bool:
    """Return whether a sum is within a number of standard errors of the best (paired, by cluster)."""
    best = max(solved, key=lambda other: other.metric(problem))
    if one is best or not bool(problem.known.any()):
        return True
    _, clusters = torch.unique(problem.clusters[problem.known], return_inverse=True)
    behind = (best.hits - one.hits)[problem.known]
    return behind.mean().item() <= errors * standard_error(behind, clusters)


def notes_on(fit: KernelFit, sums: int) -> tuple[str, ...]:
    """Return notes on unexpected properties of a two-sided kernel."""
    if not fit.decided:
        return (
            f"kernel: nearly every class has just one example, so penalty ({fit.ridge:g}) and kernels "
            f"({fit.chosen.name}) are fixed, not chosen, and probabilities are not calibrated.",
        )
    if sums > 1 and fit.chosen.shares[0] == 1:
        return ("kernel: the image added nothing measurable, so the text alone answers.",)
    if sums > 1 and fit.chosen.shares[1] == 1:
        return ("kernel: the text added nothing measurable, so the image alone answers.",)
    return ()
